"""Running programs: what is started, what comes back, and that it always ends."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.errors import ConfigError
from ms_enclave.model import ExecutionStatus, Limits, Verdict
from ms_enclave.testing._suite import HEARTBEAT, SandboxSuite, beats, wait_for_file

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

__all__ = ["CommandContract"]

MIB = 1 << 20


class CommandContract(SandboxSuite):
    """`execute_command`, over any handle."""

    # --- what is started ---

    async def test_a_string_is_a_shell_line(self, box: Sandbox) -> None:
        result = await box.execute_command("echo $((1 + 1)) | tr 2 3")
        assert result.stdout == "3\n"
        assert result.metadata["shell"] in ("bash", "sh")

    async def test_a_string_is_a_shell_line_with_a_time_out_too(self, box: Sandbox) -> None:
        assert (await box.execute_command("echo a && echo b", timeout=5)).stdout == "a\nb\n"

    async def test_bash_is_the_shell_where_there_is_one(self, box: Sandbox) -> None:
        result = await box.execute_command("[[ a == a ]] && set -o pipefail && echo yes")
        if result.metadata["shell"] == "bash":
            assert result.stdout == "yes\n"
        else:
            assert not await box.files.exists("/bin/bash")

    async def test_a_list_is_given_to_the_program_as_it_is(self, box: Sandbox) -> None:
        result = await box.execute_command(["echo", "$HOME", ";", "a  b", "*", ""])
        assert result.stdout == "$HOME ; a  b * \n"
        assert "shell" not in result.metadata

    async def test_the_result_holds_the_callers_own_command(self, box: Sandbox) -> None:
        assert (await box.execute_command("true")).command == "true"
        assert (await box.execute_command(["true"])).command == ["true"]

    async def test_it_starts_in_the_working_folder(self, box: Sandbox) -> None:
        result = await box.execute_command(["pwd"])
        assert result.stdout.strip() == box.config.working_dir

    async def test_it_starts_where_it_is_told(self, box: Sandbox) -> None:
        await box.files.mkdir("sub/deeper")
        assert (await box.execute_command(["pwd"], cwd="/")).stdout == "/\n"
        relative = await box.execute_command(["pwd"], cwd="sub/deeper")
        assert relative.stdout.strip() == f"{box.config.working_dir}/sub/deeper"

    async def test_a_folder_there_is_not_is_a_failure_of_the_command(self, box: Sandbox) -> None:
        result = await box.execute_command(["pwd"], cwd="no/such/folder")
        assert result.status == ExecutionStatus.ERROR
        assert result.exit_code in (126, 127)

    async def test_the_environment_is_the_callers_over_the_configs(self) -> None:
        async with self.opened(env_vars={"A": "config", "B": "config"}) as box:
            result = await box.execute_command('echo "$A $B $C"', env={"B": "call", "C": "é ü"})
            assert result.stdout == "config call é ü\n"

    async def test_nothing_of_the_hosts_environment_comes_in(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOST_SECRET", "leaked")
        async with self.opened() as box:
            assert "leaked" not in (await box.execute_command(["env"])).stdout

    async def test_it_can_be_told_which_user_to_be(self, box: Sandbox) -> None:
        own = int((await box.execute_command(["id", "-u"])).stdout)
        result = await box.execute_command(["id", "-u"], user=own)
        assert result.stdout.strip() == str(own)

    # --- what comes back ---

    async def test_both_streams_come_back_apart(self, box: Sandbox) -> None:
        result = await box.execute_command("echo out; echo err >&2")
        assert (result.stdout, result.stderr) == ("out\n", "err\n")
        assert result.status == ExecutionStatus.SUCCESS
        assert (result.verdict, result.exit_code, result.signal) == (Verdict.OK, 0, None)
        assert result.error is None
        assert not result.truncated

    @pytest.mark.parametrize("code", [1, 5, 42, 255])
    async def test_the_exit_code_comes_back(self, box: Sandbox, code: int) -> None:
        result = await box.execute_command(f"echo before; exit {code}")
        assert (result.exit_code, result.verdict) == (code, Verdict.ERROR)
        assert result.status == ExecutionStatus.ERROR
        assert result.stdout == "before\n"
        assert f"exit code {code}" in str(result.error)

    @pytest.mark.parametrize(("name", "number"), [("SEGV", 11), ("KILL", 9), ("TERM", 15)])
    async def test_a_signal_comes_back(self, box: Sandbox, name: str, number: int) -> None:
        result = await box.execute_command(["sh", "-c", f"kill -{name} $$"])
        assert (result.exit_code, result.signal) == (128 + number, number)
        assert (result.status, result.verdict) == (ExecutionStatus.ERROR, Verdict.SIGNAL)

    async def test_a_quick_death_by_a_signal_is_no_time_out(self, box: Sandbox) -> None:
        result = await box.execute_command(["sh", "-c", "kill -KILL $$"], timeout=20)
        assert result.status == ExecutionStatus.ERROR

    async def test_the_times_are_true(self, box: Sandbox) -> None:
        before = datetime.now(timezone.utc)
        result = await box.execute_command("sleep 0.2")
        assert 0.2 <= result.execution_time < 5
        assert before <= result.timestamp <= datetime.now(timezone.utc)
        assert result.usage is not None
        assert result.usage.wall == pytest.approx(result.execution_time)
        assert result.usage.source

    async def test_bytes_that_are_no_text_are_replaced(self, box: Sandbox) -> None:
        result = await box.execute_command(r"printf 'a\377\0b'; printf '\302' >&2")
        assert result.stdout == "a\ufffd\0b"
        assert result.stderr == "\ufffd"

    async def test_characters_are_whole_wherever_the_chunks_end(self, box: Sandbox) -> None:
        result = await box.execute_command("yes 'x€𝄞' | head -n 60000")
        assert result.stdout == "x€𝄞\n" * 60000

    async def test_output_beyond_the_limit_is_cut_and_counted(self, box: Sandbox) -> None:
        result = await box.execute_command(
            "yes | head -c 300000; echo err >&2; exit 3", limits=Limits(output_limit=1000)
        )
        assert result.stdout == "y\n" * 500
        assert result.truncated == {"stdout": 299_000}
        assert result.stderr == "err\n"
        assert (result.exit_code, result.verdict) == (3, Verdict.ERROR)

    @pytest.mark.timeout(180)
    async def test_a_hundred_mebibytes_neither_fill_the_memory_nor_hang(self, box: Sandbox) -> None:
        result = await box.execute_command(f"yes | head -c {100 * MIB}", timeout=120)
        assert result.exit_code == 0
        assert len(result.stdout) == 10 * MIB
        assert result.truncated == {"stdout": 90 * MIB}

    async def test_endless_output_does_not_hold_up_the_time_out(self, box: Sandbox) -> None:
        began = time.monotonic()
        result = await box.execute_command("yes", timeout=1)
        assert result.verdict == Verdict.WALL_TIMEOUT
        assert time.monotonic() - began < 10
        assert result.stdout.startswith("y\ny\n")

    async def test_output_beyond_the_limit_can_be_the_end(self, box: Sandbox) -> None:
        limits = Limits(output_limit=1000, output_action="kill")
        result = await box.execute_command("yes; echo never >&2", limits=limits, timeout=30)
        assert result.verdict == Verdict.OUTPUT_LIMIT
        assert result.status == ExecutionStatus.ERROR
        assert result.stdout == "y\n" * 500
        assert result.execution_time < 20

    # --- what goes in ---

    async def test_standard_input_is_empty_unless_given(self, box: Sandbox) -> None:
        assert (await box.execute_command(["cat"], timeout=10)).stdout == ""

    @pytest.mark.parametrize("stdin", ["é ü\n", b"raw\n", ""])
    async def test_standard_input_is_read(self, box: Sandbox, stdin: Any) -> None:
        text = stdin if isinstance(stdin, str) else stdin.decode()
        assert (await box.execute_command(["cat"], stdin=stdin)).stdout == text

    async def test_standard_input_takes_any_bytes_of_any_length(self, box: Sandbox) -> None:
        data = bytes(range(256)) * 4096 * 3
        result = await box.execute_command("cat >taken; wc -c <taken", stdin=data)
        assert result.stdout.strip() == str(len(data))
        assert await box.files.read("taken") == data

    async def test_a_program_need_not_read_its_input(self, box: Sandbox) -> None:
        result = await box.execute_command("exit 4", stdin=b"x" * 5 * MIB, timeout=20)
        assert result.exit_code == 4

    async def test_input_and_output_flow_at_the_same_time(self, box: Sandbox) -> None:
        data = "0123456789abcde\n" * (4 * MIB // 16)
        assert (await box.execute_command(["cat"], stdin=data, timeout=60)).stdout == data

    # --- what goes wrong ---

    @pytest.mark.parametrize(
        "command", ["", "  ", [], [""], None, 5, b"ls", ["ls", 5], "a\0b", ["a\0"], "\ud800"]
    )
    async def test_a_command_that_is_none_is_the_callers_mistake(
        self, box: Sandbox, command: Any
    ) -> None:
        with pytest.raises(ConfigError):
            await box.execute_command(command)

    @pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, "5", True])
    async def test_a_time_out_that_is_none_is_the_callers_mistake(
        self, box: Sandbox, timeout: Any
    ) -> None:
        with pytest.raises(ConfigError, match="timeout"):
            await box.execute_command("true", timeout=timeout)

    @pytest.mark.parametrize(
        "argument",
        [
            {"env": {"a=b": "c"}},
            {"env": {"a": "b\0"}},
            {"env": {"a": 1}},
            {"cwd": "a\0b"},
            {"cwd": ""},
            {"stdin": 5},
            {"user": -1},
            {"user": ""},
            {"limits": {"pids_limit": -1}},
            {"limits": {"no_such_limit": 1}},
        ],
    )
    async def test_an_argument_that_is_none_is_the_callers_mistake(
        self, box: Sandbox, argument: dict[str, Any]
    ) -> None:
        with pytest.raises(ConfigError):
            await box.execute_command("true", **argument)

    @pytest.mark.parametrize("command", [["no-such-program-here"], "no-such-program-here"])
    async def test_a_missing_program_is_127(self, box: Sandbox, command: Any) -> None:
        result = await box.execute_command(command)
        assert (result.exit_code, result.verdict) == (127, Verdict.ERROR)
        assert "not found" in result.stderr.lower() or "no such file" in result.stderr.lower()

    async def test_a_file_that_is_no_program_is_126(self, box: Sandbox) -> None:
        await box.files.write("plain", "text", mode=0o644)
        result = await box.execute_command([f"{box.config.working_dir}/plain"])
        assert (result.exit_code, result.verdict) == (126, Verdict.ERROR)

    # --- that it ends ---

    async def test_a_time_out_keeps_what_was_printed(self, box: Sandbox) -> None:
        began = time.monotonic()
        result = await box.execute_command("echo out; echo err >&2; sleep 60", timeout=0.5)
        assert time.monotonic() - began < 10
        assert (result.status, result.verdict) == (ExecutionStatus.TIMEOUT, Verdict.WALL_TIMEOUT)
        assert (result.exit_code, result.signal) == (-1, None)
        assert (result.stdout, result.stderr) == ("out\n", "err\n")
        assert result.error == "Command timed out after 0.5 seconds"

    async def test_the_nearest_time_out_counts(self) -> None:
        async with self.opened(timeout=0.5) as box:
            config = await box.execute_command("sleep 60")
            assert config.error == "Command timed out after 0.5 seconds"
            limits = await box.execute_command("sleep 60", limits=Limits(timeout=0.4))
            assert limits.error == "Command timed out after 0.4 seconds"
            call = await box.execute_command("sleep 60", timeout=0.3, limits=Limits(timeout=60))
            assert call.error == "Command timed out after 0.3 seconds"
            longer = await box.execute_command("sleep 0.8; echo done", timeout=20)
            assert longer.stdout == "done\n"

    async def test_a_time_out_reaches_a_program_that_ignores_sigterm(self, box: Sandbox) -> None:
        result = await box.execute_command("trap '' TERM INT HUP; sleep 60; sleep 60", timeout=0.5)
        assert result.verdict == Verdict.WALL_TIMEOUT
        assert result.execution_time < 10

    async def test_a_time_out_kills_children_that_became_daemons(self, clean: Sandbox) -> None:
        daemon = f"trap '' TERM HUP; {HEARTBEAT}"
        async with beats(clean):
            result = await clean.execute_command(
                [
                    "sh",
                    "-c",
                    'setsid sh -c "$1" </dev/null >/dev/null 2>&1 & sleep 60',
                    "-",
                    daemon,
                ],
                timeout=2,
            )
            assert result.verdict == Verdict.WALL_TIMEOUT

    async def test_a_cancel_kills_everything(self, clean: Sandbox) -> None:
        line = f"setsid sh -c \"trap '' TERM; {HEARTBEAT}\" & sleep 60"
        async with beats(clean), anyio.create_task_group() as group:
            group.start_soon(clean.execute_command, line)
            await wait_for_file(clean, "beat")
            group.cancel_scope.cancel()
        assert (await clean.execute_command("echo alive")).stdout == "alive\n"

    async def test_a_plain_asyncio_cancel_kills_everything_too(self, clean: Sandbox) -> None:
        async with beats(clean):
            task = asyncio.create_task(clean.execute_command(f"({HEARTBEAT}) & sleep 60"))
            await wait_for_file(clean, "beat")
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()

    async def test_one_that_closes_its_streams_is_waited_for(self, box: Sandbox) -> None:
        result = await box.execute_command("exec <&- >&- 2>&-; sleep 0.4; exit 3", timeout=20)
        assert result.exit_code == 3
        assert result.execution_time >= 0.4

    async def test_one_that_closes_its_streams_and_sleeps_times_out(self, box: Sandbox) -> None:
        result = await box.execute_command("exec <&- >&- 2>&-; sleep 60", timeout=0.5)
        assert result.verdict == Verdict.WALL_TIMEOUT

    async def test_a_background_child_does_not_hold_up_the_result(self, fresh: Sandbox) -> None:
        began = time.monotonic()
        result = await fresh.execute_command("sleep 30 & echo hi; exit 2", timeout=20)
        assert (result.stdout, result.exit_code) == ("hi\n", 2)
        assert time.monotonic() - began < 5

    async def test_a_background_child_that_prints_does_not_either(self, fresh: Sandbox) -> None:
        began = time.monotonic()
        result = await fresh.execute_command("yes & echo hi; exit 2", timeout=20)
        assert result.exit_code == 2
        assert time.monotonic() - began < 8

    async def test_all_output_of_a_finished_program_is_there(self, box: Sandbox) -> None:
        for _ in range(5):
            result = await box.execute_command("sleep 5 & yes | head -c 200000", timeout=20)
            assert len(result.stdout) == 200_000

    async def test_many_run_at_the_same_time(self, box: Sandbox) -> None:
        began = time.monotonic()
        async with anyio.create_task_group() as group:
            for _ in range(9):
                group.start_soon(box.execute_command, "sleep 2")
            quick = await box.execute_command("echo quick")
            assert quick.stdout == "quick\n"
            assert time.monotonic() - began < 2
        assert time.monotonic() - began < 12
