"""The driver ends every process it was given, and says what happened to it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.boxes import _execution
from ms_enclave.boxes._execution import Job, execute
from ms_enclave.errors import SandboxLostError
from ms_enclave.model import CommandResult, SandboxConfig, Verdict
from tests.support.scripted import ScriptedProcess, an_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def job(stdin: bytes | None = None, **limits: Any) -> Job:
    settings: dict[str, Any] = {"timeout": 20, "output_limit": 100, **limits}
    return Job(["x"], SandboxConfig(**settings).resolve_limits(), stdin=stdin)


async def run(
    process: ScriptedProcess, what: Job, script: Callable[[], Awaitable[None]] | None = None
) -> CommandResult:
    async def spawn() -> ScriptedProcess:
        return process

    outcome: CommandResult | SandboxLostError
    async with anyio.create_task_group() as group:
        if script is not None:
            group.start_soon(script)
        try:
            outcome = await execute(spawn, what)
        except SandboxLostError as error:  # the group would wrap it
            outcome = error
    if isinstance(outcome, SandboxLostError):
        raise outcome
    return outcome


async def test_the_streams_and_the_end_make_the_result() -> None:
    process = ScriptedProcess()

    async def script() -> None:
        await process.waiting.wait()
        process.out.put(b"one ")
        process.err.put(b"err")
        process.out.put(b"two")
        process.end(an_end(3, cpu_user=0.25, peak_memory=5, processes=2))

    result = await run(process, job(b"in"), script)
    assert (result.stdout, result.stderr, result.exit_code) == ("one two", "err", 3)
    assert bytes(process.input.taken) == b"in"
    assert process.input.closed
    assert result.usage is not None
    assert (result.usage.cpu_user, result.usage.peak_memory, result.usage.processes) == (0.25, 5, 2)
    assert (process.kills, process.closes) == (0, 1)


async def test_input_that_nobody_reads_is_no_failure() -> None:
    process = ScriptedProcess()
    process.input.broken = True

    async def script() -> None:
        await process.waiting.wait()
        process.end(an_end())

    result = await run(process, job(b"x" * 1_000_000), script)
    assert result.verdict is Verdict.OK


async def test_a_time_out_kills_and_keeps_what_came() -> None:
    process = ScriptedProcess()
    process.out.put(b"so far")
    result = await run(process, job(timeout=0.05))
    assert (result.verdict, result.exit_code, result.stdout) == (
        Verdict.WALL_TIMEOUT,
        -1,
        "so far",
    )
    assert (process.kills, process.closes) == (1, 1)


async def test_a_pipe_that_somebody_holds_open_is_read_until_it_is_empty() -> None:
    process = ScriptedProcess()

    async def script() -> None:
        await process.waiting.wait()
        for _ in range(20):
            process.out.put(b"abc")
        process.end(an_end(), close=False)

    began = time.monotonic()
    result = await run(process, job(), script)
    assert result.stdout == "abc" * 20
    assert time.monotonic() - began < 1
    assert process.closes == 1


async def test_a_pipe_that_somebody_goes_on_writing_to_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_execution, "DRAIN_TOTAL", 0.2)
    process = ScriptedProcess()
    done = anyio.Event()

    async def script() -> None:
        await process.waiting.wait()
        process.end(an_end(), close=False)
        while not done.is_set():
            process.out.put(b".")
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as group:
        group.start_soon(script)
        result = await run(process, job())
        done.set()
    assert result.stdout.startswith("...")


async def test_output_beyond_the_limit_kills_once_where_asked() -> None:
    process = ScriptedProcess()
    for _ in range(10):
        process.out.put(b"x" * 50)
        process.err.put(b"y" * 50)
    result = await run(process, job(output_action="kill"))
    assert result.verdict is Verdict.OUTPUT_LIMIT
    assert len(result.stdout) == 100
    assert process.kills == 1


async def test_a_lost_box_is_an_error_and_not_a_result() -> None:
    process = ScriptedProcess()

    async def script() -> None:
        await process.waiting.wait()
        process.end(SandboxLostError("the channel ended"))

    with pytest.raises(SandboxLostError, match="the channel ended"):
        await run(process, job(), script)
    assert process.closes == 1


async def test_an_end_that_the_box_cannot_explain_is_an_error() -> None:
    process = ScriptedProcess()
    process.end(an_end(1, cause="infra", detail="no slot"))
    with pytest.raises(SandboxLostError, match="no slot"):
        await run(process, job())


async def test_what_cannot_be_killed_means_that_the_box_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_execution, "KILL_BOUND", 0.05)
    process = ScriptedProcess(immortal=True)
    with pytest.raises(SandboxLostError, match="killed"):
        await run(process, job(timeout=0.05))
    assert process.closes == 1


async def test_a_cancelled_call_kills_and_stays_cancelled() -> None:
    process = ScriptedProcess()
    with anyio.move_on_after(0.05) as scope:
        await run(process, job())
    assert scope.cancelled_caught
    assert (process.kills, process.closes) == (1, 1)


async def test_a_cancelled_call_stays_cancelled_even_where_nothing_can_be_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_execution, "KILL_BOUND", 0.05)
    process = ScriptedProcess(immortal=True)
    with anyio.move_on_after(0.05) as scope:
        await run(process, job())
    assert scope.cancelled_caught
    assert process.closes == 1


async def test_a_start_that_fails_is_passed_on() -> None:
    async def spawn() -> ScriptedProcess:
        raise SandboxLostError("no such box")

    with pytest.raises(SandboxLostError, match="no such box"):
        await execute(spawn, job())
