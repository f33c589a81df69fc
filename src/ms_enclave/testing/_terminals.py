"""Terminals: what a person has, for programs that want one."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.errors import ConfigError, SandboxStateError
from ms_enclave.model import Verdict
from ms_enclave.testing._suite import SandboxSuite, needs, wait_for_file

if TYPE_CHECKING:
    from ms_enclave.boxes import Command, Sandbox

__all__ = ["TerminalContract"]


async def shown(command: Command, text: str, after: int = 0) -> int:
    """Wait until a terminal shows a text; the cursor after the chunk in which it was."""
    seen = b""
    with anyio.fail_after(20):
        while text.encode() not in seen:
            chunk = await command.read(after=after, wait=5)
            seen += chunk.data
            after = chunk.cursor
            assert text.encode() in seen or not chunk.eof, seen
    return after


class TerminalContract(SandboxSuite):
    """`start_command(pty=…)`, over any sandbox that has terminals."""

    @pytest.fixture(autouse=True)
    def _has_terminals(self, box: Sandbox) -> None:
        needs(box, "terminals")

    async def test_it_is_a_terminal(self, box: Sandbox) -> None:
        command = await box.start_command(
            "test -t 0 && test -t 1 && test -t 2 && stty size && echo $TERM && echo tty > /dev/tty",
            pty=(31, 97),
        )
        events = [event async for event in command.events()]
        assert {event.stream for event in events} == {"pty"}
        assert b"".join(event.data for event in events) == b"31 97\r\nxterm-256color\r\ntty\r\n"
        result = await command.wait(10)
        assert (result.stdout, result.stderr) == ("31 97\r\nxterm-256color\r\ntty\r\n", "")
        assert (await box.list_commands())[-1].pty

    async def test_what_is_typed_is_echoed_and_read(self, box: Sandbox) -> None:
        command = await box.start_command(["cat"], pty=(24, 80))
        await command.write("hello\n")
        after = await shown(command, "hello\r\nhello\r\n")
        await command.close_stdin()
        result = await command.wait(10)
        assert result.exit_code == 0
        assert (await command.read(after=after)).eof

    async def test_its_bytes_are_raw_where_the_program_says_so(self, box: Sandbox) -> None:
        everything = bytes(range(256)) * 4
        command = await box.start_command(
            "stty raw -echo; echo ready; head -c 1024 | od -An -v -tu1 | tr -d '\\n'", pty=(24, 80)
        )
        await shown(command, "ready")
        await command.write(everything)
        result = await command.wait(20)
        numbers = result.stdout.partition("ready")[2].split()
        assert bytes(int(number) for number in numbers) == everything

    async def test_another_size_is_seen_and_told(self, box: Sandbox) -> None:
        command = await box.start_command(
            ["sh", "-c", "trap 'stty size' WINCH; echo ready; until [ -e enough ]; do sleep 0.02;"
             " done; rm enough"],
            pty=(24, 80),
        )  # fmt: skip
        await shown(command, "ready")
        await command.resize(50, 132)
        await shown(command, "50 132")
        await box.files.write("enough", "")
        assert (await command.wait(10)).exit_code == 0
        await command.resize(10, 10)  # nobody is there any more

    async def test_ctrl_c_reaches_what_is_in_the_foreground(self, box: Sandbox) -> None:
        command = await box.start_command(["sh", "-i"], pty=(24, 80), env={"PS1": "ready> "})
        await shown(command, "ready> ")
        await command.write("sh -c 'echo begun >begun; exec sleep 600'\n")
        await wait_for_file(box, "begun")
        await box.files.remove("begun")
        await command.write("\x03")
        await command.write("echo status=$?; exit 7\n")
        await shown(command, "status=130")
        assert (await command.wait(10)).exit_code == 7

    async def test_hanging_up_ends_it(self, box: Sandbox) -> None:
        command = await box.start_command(["sleep", "600"], pty=(24, 80))
        await command.kill()
        assert (await command.wait(10)).verdict == Verdict.SIGNAL

    async def test_its_end_is_its_own(self, box: Sandbox) -> None:
        command = await box.start_command("echo bye; exit 3", pty=(24, 80), timeout=20)
        result = await command.wait(10)
        assert (result.stdout, result.exit_code) == ("bye\r\n", 3)
        late = await box.start_command("echo x; sleep 600", pty=(24, 80), timeout=0.5)
        result = await late.wait(10)
        assert (result.verdict, result.stdout) == (Verdict.WALL_TIMEOUT, "x\r\n")

    async def test_endless_output_is_bounded(self, box: Sandbox) -> None:
        command = await box.start_command(
            "yes", pty=(24, 80), timeout=1, limits={"output_limit": 1000}
        )
        result = await command.wait(20)
        assert len(result.stdout) <= 1000
        assert result.truncated["stdout"] > 1000

    async def test_terminals_are_given_back(self, box: Sandbox) -> None:
        for number in range(40):
            command = await box.start_command(f"echo {number}", pty=(24, 80))
            assert (await command.wait(10)).stdout == f"{number}\r\n"

    @pytest.mark.parametrize(
        "size", [(0, 80), (24, 0), (-1, 80), (24, 10000), (24,), (24, 80, 1), "24x80", (2.5, 80)]
    )
    async def test_a_size_that_is_none_is_the_callers_mistake(
        self, box: Sandbox, size: Any
    ) -> None:
        with pytest.raises(ConfigError, match="rows and columns"):
            await box.start_command("true", pty=size)

    async def test_a_resize_to_nothing_is_the_callers_mistake(self, box: Sandbox) -> None:
        command = await box.start_command(["cat"], pty=(24, 80))
        for rows, cols in ((0, 0), (0, 80), (24, 0), (24, 70000)):
            with pytest.raises(ConfigError, match="rows and columns"):
                await command.resize(rows, cols)
        await command.kill()

    async def test_one_without_a_terminal_has_no_size(self, box: Sandbox) -> None:
        command = await box.start_command("true")
        with pytest.raises(SandboxStateError, match="pty"):
            await command.resize(24, 80)
