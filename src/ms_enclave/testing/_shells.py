"""Shells: what one line changes, the next one finds."""

# ruff: noqa: S101, ASYNC110 - these are tests

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.errors import ConfigError, SandboxStateError
from ms_enclave.model import ExecutionStatus, Verdict
from ms_enclave.testing._suite import HEARTBEAT, SandboxSuite, beats, needs, wait_for_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ms_enclave.boxes import Sandbox, Shell

__all__ = ["ShellContract"]

_MUCH = r"head -c 300000 /dev/zero | tr '\0' y"


class ShellContract(SandboxSuite):
    """`sandbox.shell()`, over any sandbox that has terminals."""

    @pytest.fixture
    async def shell(self, box: Sandbox) -> AsyncIterator[Shell]:
        """A shell of a test's own."""
        needs(box, "terminals")
        shell = await box.shell("test")
        yield shell
        await shell.close()

    # --- what stays ---

    async def test_folder_and_variables_and_functions_stay(self, shell: Shell) -> None:
        first = await shell.run("mkdir -p sub; cd sub; X='a  b'; export Y=c; f() { echo f$1; }")
        assert (first.exit_code, first.stdout, first.stderr) == (0, "", "")
        second = await shell.run('basename "$PWD"; echo "$X"; sh -c \'echo $Y\'; f 1')
        assert second.stdout == "sub\na  b\nc\nf1\n"
        assert second.metadata["shell"] in ("bash", "sh")
        assert "new_shell" not in second.metadata

    async def test_jobs_stay(self, shell: Shell) -> None:
        started = await shell.run("sleep 600 & echo $!")
        assert started.stdout.strip().isdigit()
        assert "sleep 600" in (await shell.run("jobs")).stdout
        ended = await shell.run("kill %1; wait %1; echo $?")
        assert ended.stdout == "143\n"

    async def test_each_line_has_its_own_status(self, shell: Shell) -> None:
        assert (await shell.run("true")).status == ExecutionStatus.SUCCESS
        failed = await shell.run("(exit 7)")
        assert (failed.exit_code, failed.verdict) == (7, Verdict.ERROR)
        assert (await shell.run("no-such-program-here")).exit_code == 127
        assert (await shell.run("sh -c 'kill -9 $$'")).exit_code == 137
        assert (await shell.run("true")).exit_code == 0

    async def test_both_outputs_are_apart_and_whole(self, shell: Shell) -> None:
        result = await shell.run(f"printf out; printf err >&2; {_MUCH}")
        assert result.stdout == "out" + "y" * 300000
        assert result.stderr == "err"

    async def test_several_lines_are_one(self, shell: Shell) -> None:
        result = await shell.run("if true\nthen echo 'it''s'\nfi\ncat <<E\n$((1 + 1))\nE\n")
        assert result.stdout == "its\n2\n"

    async def test_the_input_of_a_line_is_empty(self, shell: Shell) -> None:
        result = await shell.run("cat; read x; echo $?", timeout=10)
        assert result.stdout == "1\n"
        assert (await shell.run("echo next")).stdout == "next\n"

    async def test_what_is_no_syntax_costs_the_line_only(self, shell: Shell) -> None:
        await shell.run("X=here")
        for line in ("if", "echo 'open", "echo )", "fi", "{", "for", 'echo "$(', "a() {"):
            result = await shell.run(line, timeout=10)
            assert result.exit_code not in (0, -1), line
            assert result.stderr
            assert (await shell.run("echo $X")).stdout == "here\n"

    async def test_characters_are_nothing_special(self, shell: Shell) -> None:
        text = "é!x `$'\"\\ \t#~*[a];&|<>(){}\x01\x7f"
        quoted = "'" + text.replace("'", "'\\''") + "'"
        assert (await shell.run(f"printf %s {quoted}")).stdout == text

    async def test_a_long_line_is_a_line(self, shell: Shell) -> None:
        word = "x" * 200_000
        assert (await shell.run(f"X={word}; echo ${{#X}}", timeout=20)).stdout == "200000\n"

    async def test_what_it_prints_is_no_status(self, shell: Shell) -> None:
        """Neither on its outputs nor on the terminal that is behind them."""
        lies = "echo 0; echo x 0 >/dev/tty; echo 00000000000000000000000000000000 0 >/dev/tty"
        result = await shell.run(f"{lies}; sleep 1.5; (exit 9)")
        assert (result.stdout, result.exit_code) == ("0\n", 9)

    async def test_a_lines_output_beyond_the_limit_is_cut(self) -> None:
        async with self.opened(output_limit=1000) as box:
            needs(box, "terminals")
            shell = await box.shell()
            result = await shell.run(f"{_MUCH}; exit_() {{ return 3; }}; exit_")
            assert (result.stdout, result.truncated) == ("y" * 1000, {"stdout": 299_000})
            assert result.exit_code == 3
            assert (await shell.run("echo a")).stdout == "a\n"

    async def test_what_a_job_prints_later_comes_with_the_next_line(self, shell: Shell) -> None:
        await shell.run("(until [ -e late ]; do sleep 0.02; done; echo late; : >told) &")
        quick = await shell.run("echo quick")
        assert quick.stdout == "quick\n"
        result = await shell.run(": >late; until [ -e told ]; do sleep 0.02; done; echo now")
        assert result.stdout == "late\nnow\n"

    async def test_outputs_that_are_sent_elsewhere_stay_there(self, shell: Shell) -> None:
        await shell.run("exec 5>&1 >log; echo one")
        assert (await shell.run("echo two")).stdout == ""
        assert (await shell.run("cat log >&5; exec >&5; echo three")).stdout == "one\ntwo\nthree\n"

    # --- several ---

    async def test_shells_are_apart_and_found_by_name(self, box: Sandbox) -> None:
        needs(box, "terminals")
        one, two = await box.shell("one"), await box.shell("two", env={"X": "given"}, cwd="/")
        await one.run("X=1")
        assert (await two.run("echo $X $PWD")).stdout == "given /\n"
        again = await box.shell("one")
        assert (await again.run("echo $X")).stdout == "1\n"
        assert again.pid == one.pid
        await one.close()
        assert again.pid is None
        assert (await again.run("echo =$X")).stdout == "=\n"
        await again.close()
        await two.close()

    async def test_lines_take_turns(self, shell: Shell) -> None:
        results: list[str] = []

        async def run(number: int) -> None:
            result = await shell.run(f"echo {number}; sleep 0.05; echo {number}")
            results.append(result.stdout)

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(run, number)
        assert sorted(results) == [f"{number}\n{number}\n" for number in range(5)]

    # --- what hangs ---

    async def test_a_line_whose_time_is_over_ends_and_the_shell_does_not(
        self, shell: Shell
    ) -> None:
        await shell.run("X=kept")
        result = await shell.run("echo begun; sleep 600; echo never", timeout=0.5)
        assert (result.verdict, result.exit_code) == (Verdict.WALL_TIMEOUT, -1)
        assert result.error == "Command timed out after 0.5 seconds"
        assert result.stdout == "begun\n"
        after = await shell.run("echo $X")
        assert after.stdout == "kept\n"
        assert "new_shell" not in after.metadata

    @pytest.mark.parametrize(
        "line",
        [
            "while :; do :; done",
            "while sleep 0.05; do :; done",
            "sh -c \"trap '' INT TERM HUP; while :; do sleep 0.05; done\"",
            "yes | cat >/dev/null",
            "yes",
            "cat /dev/zero >/dev/null; sleep 600",
        ],
    )
    async def test_whatever_hangs_costs_the_line_only(self, shell: Shell, line: str) -> None:
        await shell.run("X=kept")
        result = await shell.run(line, timeout=0.5)
        assert result.verdict == Verdict.WALL_TIMEOUT
        assert (await shell.run("echo $X")).stdout == "kept\n"

    @pytest.mark.parametrize("timeout", [1e-6, 1e-4, 1e-3, 1e-2])
    async def test_one_that_is_still_being_read_is_not_done_by_halves(
        self, shell: Shell, timeout: float
    ) -> None:
        await shell.run("X=kept")
        line = f"Y='{'; X=lost; ' * 20_000}'; sleep 600"
        result = await shell.run(line, timeout=timeout)
        assert result.verdict == Verdict.WALL_TIMEOUT
        assert (await shell.run("echo $X")).stdout == "kept\n"

    async def test_a_job_in_the_background_survives_a_lines_time_out(self, shell: Shell) -> None:
        await shell.run("sleep 600 & pid=$!")
        assert (await shell.run("sleep 600", timeout=0.3)).verdict == Verdict.WALL_TIMEOUT
        assert (await shell.run("kill -0 $pid; echo $?")).stdout == "0\n"

    async def test_a_line_can_be_interrupted(self, shell: Shell) -> None:
        await shell.run("X=kept")
        results: list[Any] = []

        async def run() -> None:
            results.append(await shell.run("sleep 600; echo never"))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            with anyio.fail_after(20):
                while not results:
                    await shell.interrupt()
                    await anyio.sleep(0.02)
        (result,) = results
        assert result.exit_code == 130
        assert "never" not in result.stdout
        assert (await shell.run("echo $X")).stdout == "kept\n"

    async def test_a_line_that_is_cancelled_ends_and_the_shell_does_not(
        self, clean: Sandbox, shell: Shell
    ) -> None:
        await shell.run("X=kept")
        async with beats(clean), anyio.create_task_group() as group:
            group.start_soon(shell.run, HEARTBEAT)
            await wait_for_file(clean, "beat")
            group.cancel_scope.cancel()
        assert (await shell.run("echo $X")).stdout == "kept\n"

    async def test_a_shell_that_lets_nothing_end_it_is_replaced(self, shell: Shell) -> None:
        began = time.monotonic()
        result = await shell.run("X=lost; trap '' INT; while :; do :; done", timeout=0.5)
        assert result.verdict == Verdict.WALL_TIMEOUT
        assert result.metadata["shell_ended"]
        assert time.monotonic() - began < 15
        after = await shell.run("echo =$X")
        assert after.stdout == "=\n"
        assert after.metadata["new_shell"]

    # --- its end ---

    @pytest.mark.parametrize(
        ("line", "code", "verdict"),
        [
            ("exit 3", 3, Verdict.ERROR),
            ("exec true", 0, Verdict.OK),
            ("exec sh -c 'echo from; exit 5'", 5, Verdict.ERROR),
            ("kill -9 $$", 137, Verdict.SIGNAL),
        ],
    )
    async def test_a_line_that_ends_its_shell_says_so(
        self, shell: Shell, line: str, code: int, verdict: Verdict
    ) -> None:
        await shell.run("X=lost")
        result = await shell.run(f"echo out; {line}", timeout=10)
        assert result.stdout.startswith("out\n")
        assert (result.exit_code, result.verdict) == (code, verdict)
        assert result.metadata["shell_ended"] is True
        assert "the next line begins a new shell" in (result.error or "")
        after = await shell.run("echo =$X")
        assert (after.stdout, after.metadata["new_shell"]) == ("=\n", True)
        assert "new_shell" not in (await shell.run("true")).metadata

    async def test_one_that_execs_away_and_stays_costs_its_time(self, shell: Shell) -> None:
        result = await shell.run("exec sleep 600", timeout=0.5)
        assert (result.verdict, result.metadata["shell_ended"]) == (Verdict.WALL_TIMEOUT, True)
        assert (await shell.run("echo new")).metadata["new_shell"] is True

    async def test_one_that_was_killed_between_lines_is_replaced(
        self, box: Sandbox, shell: Shell
    ) -> None:
        await shell.run("X=lost")
        await box.execute_command(f"kill -9 {shell.pid}")
        with anyio.fail_after(10):
            while shell.pid is not None:
                await anyio.sleep(0.01)
        after = await shell.run("echo =$X")
        assert (after.stdout, after.metadata["new_shell"]) == ("=\n", True)

    async def test_closing_it_ends_its_jobs(self, clean: Sandbox, shell: Shell) -> None:
        async with beats(clean):
            await shell.run(f"({HEARTBEAT}) & ")
            await wait_for_file(clean, "beat")
            await shell.close()
            await shell.close()

    async def test_it_ends_with_its_sandbox(self) -> None:
        async with self.opened() as box:
            needs(box, "terminals")
            shell = await box.shell()
            await shell.run("sleep 600 &")
        assert shell.pid is None
        for call in (lambda: shell.run("true"), shell.interrupt, shell.close):
            with pytest.raises(SandboxStateError):
                await call()

    @pytest.mark.parametrize("line", ["", "  ", "a\0b", 5, None, ["ls"]])
    async def test_a_line_that_is_none_is_the_callers_mistake(
        self, shell: Shell, line: Any
    ) -> None:
        with pytest.raises(ConfigError):
            await shell.run(line)

    @pytest.mark.parametrize("name", ["", "a b", "x" * 65, 5, None, "../x"])
    async def test_a_name_that_is_none_is_the_callers_mistake(
        self, box: Sandbox, name: Any
    ) -> None:
        needs(box, "terminals")
        with pytest.raises(ConfigError, match="name"):
            await box.shell(name)
