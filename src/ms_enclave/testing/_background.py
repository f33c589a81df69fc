"""Commands that live on: found again, read again, fed, signalled, and ended with their sandbox."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.errors import CommandNotFoundError, ConfigError, SandboxStateError
from ms_enclave.model import ExecutionStatus, Limits, Verdict
from ms_enclave.testing._suite import HEARTBEAT, SandboxSuite, beats, wait_for_file

if TYPE_CHECKING:
    from ms_enclave.boxes import Command, Sandbox

__all__ = ["BackgroundContract"]

MIB = 1 << 20


async def whole(command: Command, after: int = 0) -> bytes:
    """All that a command prints, read piece by piece."""
    data = b""
    with anyio.fail_after(30):
        while True:
            chunk = await command.read(after=after, max_bytes=MIB, wait=5)
            assert chunk.lost == 0
            data += chunk.data
            after = chunk.cursor
            if chunk.eof:
                return data


class BackgroundContract(SandboxSuite):
    """`start_command` and its handles, over any sandbox."""

    # --- started, and found again ---

    async def test_what_it_prints_comes_as_events(self, box: Sandbox) -> None:
        command = await box.start_command(
            "for i in 1 2 3; do echo $i; sleep 0.1; done; echo e >&2; exit 3"
        )
        events = [event async for event in command.events()]
        out = b"".join(event.data for event in events if event.stream == "stdout")
        err = b"".join(event.data for event in events if event.stream == "stderr")
        assert (out, err) == (b"1\n2\n3\n", b"e\n")
        assert events[0].data == b"1\n"
        assert [event.cursor for event in events] == sorted({event.cursor for event in events})
        assert events[-1].cursor == 8
        result = await command.wait(10)
        assert (result.stdout, result.stderr, result.exit_code) == ("1\n2\n3\n", "e\n", 3)
        assert (result.status, result.verdict) == (ExecutionStatus.ERROR, Verdict.ERROR)
        assert command.returncode == 3

    async def test_it_outlives_its_handle(self, box: Sandbox) -> None:
        name = (await box.start_command("sleep 0.3; echo done", tag="a name")).id
        command = await box.get_command(name)
        assert (command.returncode, command.tag) == (None, "a name")
        assert (await command.wait(10)).stdout == "done\n"
        again = await box.get_command(name)
        assert (again.returncode, again.command) == (0, "sleep 0.3; echo done")
        assert (await again.read()).data == b"done\n"

    async def test_all_are_listed(self, fresh: Sandbox) -> None:
        first = await fresh.start_command(["sleep", "60"], tag="server")
        second = await fresh.start_command("echo out; exit 4")
        await second.wait(10)
        one, two = await fresh.list_commands()
        assert (one.id, one.tag, one.command, one.returncode) == (
            first.id, "server", ["sleep", "60"], None,
        )  # fmt: skip
        assert (two.id, two.tag, two.returncode, two.cursor) == (second.id, None, 4, 4)
        assert one.pid == first.pid > 0

    async def test_an_id_that_nothing_has_is_an_error(self, box: Sandbox) -> None:
        with pytest.raises(CommandNotFoundError, match="nosuch"):
            await box.get_command("nosuch")

    async def test_it_runs_beside_other_calls(self, box: Sandbox) -> None:
        command = await box.start_command("until [ -e beside ]; do sleep 0.02; done; echo went")
        assert (await box.execute_command("touch beside; echo set")).stdout == "set\n"
        assert (await command.wait(10)).stdout == "went\n"

    async def test_it_has_the_folder_and_environment_that_were_asked_for(
        self, box: Sandbox
    ) -> None:
        command = await box.start_command("pwd; echo $X", cwd="/", env={"X": "a b"})
        assert (await command.wait(10)).stdout == "/\na b\n"

    async def test_one_that_is_missing_is_127(self, box: Sandbox) -> None:
        result = await (await box.start_command(["no-such-program-here"])).wait(10)
        assert (result.exit_code, result.verdict) == (127, Verdict.ERROR)

    @pytest.mark.timeout(180)
    async def test_two_hundred_run_at_once(self) -> None:
        async with self.opened(pids_limit=600) as box:
            commands = [
                await box.start_command(["sh", "-c", f"echo {number}; exec sleep 600"])
                for number in range(200)
            ]
            for number, command in enumerate(commands):
                assert (await command.read(wait=20)).data == f"{number}\n".encode()
            assert [info.returncode for info in await box.list_commands()] == [None] * 200
            await commands[7].kill()
            assert commands[7].returncode == 137
            assert commands[8].returncode is None

    # --- its output ---

    async def test_it_is_read_again_from_any_cursor(self, box: Sandbox) -> None:
        command = await box.start_command("printf 0123456789")
        await command.wait(10)
        first = await command.read(after=2, max_bytes=3)
        assert (first.data, first.cursor, first.lost, first.eof) == (b"234", 5, 0, False)
        rest = await command.read(after=first.cursor)
        assert (rest.data, rest.cursor, rest.eof) == (b"56789", 10, True)
        nothing = await command.read(after=10)
        assert (nothing.data, nothing.cursor, nothing.eof) == (b"", 10, True)
        assert [event.data async for event in command.events(after=8)] == [b"89"]

    async def test_reading_does_not_wait_unless_told_to(self, box: Sandbox) -> None:
        command = await box.start_command("until [ -e said ]; do sleep 0.02; done; echo x")
        chunk = await command.read()
        assert (chunk.data, chunk.cursor, chunk.eof) == (b"", 0, False)
        await box.files.write("said", "")
        assert (await command.read(wait=10)).data == b"x\n"

    async def test_old_output_is_still_there(self, box: Sandbox) -> None:
        """More than the host holds of it; the order of the streams stays, too."""
        line = (
            "i=0; while [ $i -lt 20 ]; do printf '%0100000d' $i; printf e$i >&2; i=$((i+1)); done"
        )
        command = await box.start_command(line)
        result = await command.wait(60)
        data = await whole(command)
        assert sorted(data) == sorted((result.stdout + result.stderr).encode())
        assert result.stdout == "".join(f"{number:0100000d}" for number in range(20))
        assert result.truncated == {}
        assert (await command.read(after=100, max_bytes=10)).data == data[100:110]

    async def test_a_cursor_that_is_too_old_says_what_is_lost(self, box: Sandbox) -> None:
        command = await box.start_command(
            "yes | head -c 8000000; printf end", limits=Limits(output_limit=MIB)
        )
        result = await command.wait(60)
        assert result.stdout.endswith("y\nend")
        assert len(result.stdout) == MIB
        assert result.truncated == {"stdout": 8000003 - MIB}
        chunk = await command.read(after=5)
        assert chunk.lost > 0
        assert chunk.cursor == 5 + chunk.lost + len(chunk.data)
        event = await anext(command.events(after=5))
        assert event.lost == chunk.lost
        assert event.cursor == 5 + event.lost + len(event.data)
        assert (await command.read(after=8000000)).data == b"end"

    async def test_nobody_has_to_read_it(self, box: Sandbox) -> None:
        command = await box.start_command("yes | head -c 50000000; echo done >&2")
        result = await command.wait(60)
        assert result.stderr == "done\n"
        assert len(result.stdout) + result.truncated["stdout"] == 50_000_000

    @pytest.mark.parametrize("after", [-1, 7, 1.5, "0", True])
    async def test_a_cursor_that_it_never_had_is_the_callers_mistake(
        self, box: Sandbox, after: Any
    ) -> None:
        command = await box.start_command("printf abc")
        await command.wait(10)
        with pytest.raises(ConfigError, match="after"):
            await command.read(after=after)
        with pytest.raises(ConfigError, match="after"):
            await anext(command.events(after=after))

    # --- its input ---

    async def test_it_is_given_input(self, box: Sandbox) -> None:
        command = await box.start_command("while read -r a; do echo got $a; done", stdin=True)
        await command.write("one\n")
        assert (await command.read(wait=10)).data == b"got one\n"
        await command.write(b"two\n")
        assert (await command.read(after=8, wait=10)).data == b"got two\n"
        await command.close_stdin()
        await command.close_stdin()
        assert (await command.wait(10)).exit_code == 0

    async def test_its_input_is_empty_unless_asked_for(self, box: Sandbox) -> None:
        command = await box.start_command(["cat"])
        assert (await command.wait(10)).stdout == ""
        with pytest.raises(SandboxStateError, match="stdin=True"):
            await command.write("x")

    async def test_input_after_its_end_is_a_broken_pipe(self, box: Sandbox) -> None:
        command = await box.start_command("exec <&-; sleep 60", stdin=True)
        with pytest.raises(BrokenPipeError), anyio.fail_after(20):
            await command.write(b"x" * 10 * MIB)
        await command.kill()
        with pytest.raises(BrokenPipeError):
            await command.write("x")
        closed = await box.start_command(["sleep", "60"], stdin=True)
        await closed.close_stdin()
        with pytest.raises(SandboxStateError, match="closed"):
            await closed.write("x")
        await closed.kill()

    # --- its end ---

    async def test_a_wait_that_is_too_short_ends_the_wait_only(self, box: Sandbox) -> None:
        command = await box.start_command("sleep 0.6; echo done")
        with pytest.raises(TimeoutError):
            await command.wait(0.1)
        assert command.returncode is None
        assert (await command.wait(10)).stdout == "done\n"

    async def test_many_may_wait(self, box: Sandbox) -> None:
        command = await box.start_command("sleep 0.2; exit 5")
        codes: list[int] = []

        async def wait() -> None:
            codes.append((await command.wait(10)).exit_code)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(wait)
        assert codes == [5] * 5

    @pytest.mark.parametrize("name", ["INT", "SIGINT", 2])
    async def test_a_signal_reaches_it(self, box: Sandbox, name: Any) -> None:
        command = await box.start_command(
            ["sh", "-c", "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.02; done"]
        )
        assert (await command.read(wait=10)).data == b"ready\n"
        await command.send_signal(name)
        result = await command.wait(10)
        assert (result.stdout, result.exit_code) == ("ready\ncaught\n", 9)
        await command.send_signal(name)  # nobody is there any more

    @pytest.mark.parametrize("name", ["NOSUCH", 0, 65, -1, True, None, "SIG_IGN"])
    async def test_a_signal_that_is_none_is_the_callers_mistake(
        self, box: Sandbox, name: Any
    ) -> None:
        command = await box.start_command("true")
        with pytest.raises(ConfigError, match="signal"):
            await command.send_signal(name)

    async def test_a_kill_takes_everything_that_it_started(self, clean: Sandbox) -> None:
        async with beats(clean):
            command = await clean.start_command(
                f"setsid sh -c \"trap '' TERM HUP; {HEARTBEAT}\" & sleep 60"
            )
            await wait_for_file(clean, "beat")
            await command.kill()
            assert (await command.wait(10)).verdict == Verdict.SIGNAL
            assert command.returncode == 137
            await command.kill()

    async def test_it_is_ended_in_time(self, clean: Sandbox) -> None:
        async with beats(clean):
            command = await clean.start_command(f"echo out; ({HEARTBEAT}) & sleep 60", timeout=1)
            await wait_for_file(clean, "beat")
            result = await command.wait(20)
        assert (result.verdict, result.exit_code) == (Verdict.WALL_TIMEOUT, -1)
        assert (result.stdout, command.returncode) == ("out\n", -1)
        assert result.error == "Command timed out after 1 seconds"

    async def test_the_configs_time_out_is_not_for_it(self) -> None:
        async with self.opened(timeout=0.3) as box:
            command = await box.start_command("sleep 0.8; echo done")
            assert (await command.wait(10)).stdout == "done\n"
            limited = await box.start_command("sleep 60", limits=Limits(timeout=0.3))
            assert (await limited.wait(10)).verdict == Verdict.WALL_TIMEOUT

    async def test_output_beyond_the_limit_can_be_its_end(self, box: Sandbox) -> None:
        limits = Limits(output_limit=1000, output_action="kill")
        result = await (await box.start_command("yes", limits=limits)).wait(20)
        assert result.verdict == Verdict.OUTPUT_LIMIT

    async def test_a_child_that_it_leaves_behind_does_not_hold_up_its_end(
        self, fresh: Sandbox
    ) -> None:
        command = await fresh.start_command("sleep 60 & echo hi; exit 2")
        result = await command.wait(10)
        assert (result.stdout, result.exit_code) == ("hi\n", 2)
        assert (await command.read()).eof

    async def test_it_ends_with_its_sandbox(self) -> None:
        async with self.opened() as box:
            command = await box.start_command("echo x; sleep 600", stdin=True)
            assert (await command.read(wait=10)).data == b"x\n"
        assert command.returncode == 137
        for call in (command.read, command.wait, command.kill, command.close_stdin):
            with pytest.raises(SandboxStateError):
                await call()
        with pytest.raises(SandboxStateError):
            await box.list_commands()
        with pytest.raises(SandboxStateError):
            await box.start_command("true")

    async def test_whoever_reads_when_the_sandbox_stops_is_told(self) -> None:
        told: list[str] = []
        async with self.opened() as box, anyio.create_task_group() as group:
            command = await box.start_command("sleep 600")

            async def read() -> None:
                with pytest.raises(SandboxStateError):
                    await anext(command.events())
                told.append("events")

            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await box.stop()
        assert told == ["events"]

    # --- the caller's mistakes ---

    @pytest.mark.parametrize(
        "arguments",
        [
            {"command": ""},
            {"command": []},
            {"command": "a\0b"},
            {"command": "true", "timeout": 0},
            {"command": "true", "timeout": math.inf},
            {"command": "true", "tag": ""},
            {"command": "true", "tag": "a\nb"},
            {"command": "true", "tag": "x" * 201},
            {"command": "true", "tag": 5},
            {"command": "true", "env": {"a=b": "c"}},
            {"command": "true", "limits": {"no_such_limit": 1}},
        ],
    )
    async def test_what_makes_no_sense_is_not_started(
        self, box: Sandbox, arguments: dict[str, Any]
    ) -> None:
        before = len(await box.list_commands())
        with pytest.raises(ConfigError):
            await box.start_command(**arguments)
        assert len(await box.list_commands()) == before
