"""Output reaches the caller's function as it comes; a slow or a broken one harms nobody else."""

from __future__ import annotations

import io
import os
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes._execution import Job, execute
from ms_enclave.boxes._relay import Relay, read_chunks
from ms_enclave.model import SandboxConfig, Verdict
from tests.support.scripted import ScriptedProcess, an_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ms_enclave.boxes._relay import Sink
    from ms_enclave.model import CommandResult


def job(sink: Sink | None = None, stdin: Any = None, **limits: Any) -> Job:
    settings: dict[str, Any] = {"timeout": 20, "output_limit": 100, **limits}
    return Job(["x"], SandboxConfig(**settings).resolve_limits(), stdin=stdin, on_output=sink)


async def run(
    process: ScriptedProcess, what: Job, script: Callable[[], Awaitable[None]] | None = None
) -> CommandResult:
    async def spawn() -> ScriptedProcess:
        return process

    if script is None:
        return await execute(spawn, what)
    async with anyio.create_task_group() as group:
        group.start_soon(script)
        return await execute(spawn, what)


async def test_output_is_handed_over_before_the_program_ends() -> None:
    process = ScriptedProcess()
    got: list[tuple[str, bytes]] = []
    came = threading.Event()

    def sink(stream: str, data: bytes) -> None:
        got.append((stream, data))
        came.set()

    async def script() -> None:
        process.out.put(b"\xff first")
        while not came.is_set():
            await anyio.sleep(0.001)
        process.err.put(b"second")
        process.end(an_end())

    result = await run(process, job(sink), script)
    assert got == [("stdout", b"\xff first"), ("stderr", b"second")]
    assert (result.stdout, result.stderr) == ("\ufffd first", "second")


async def test_nothing_is_handed_over_beyond_the_limit() -> None:
    process = ScriptedProcess()
    got: list[bytes] = []

    async def script() -> None:
        for _ in range(5):
            process.out.put(b"x" * 30)
        process.end(an_end())

    result = await run(process, job(lambda _, data: got.append(data)), script)
    assert b"".join(got) == b"x" * 100
    assert result.truncated == {"stdout": 50}


async def test_a_slow_function_gets_everything_and_holds_up_nobody() -> None:
    process = ScriptedProcess()
    got: list[bytes] = []
    ended = threading.Event()

    def sink(stream: str, data: bytes) -> None:
        assert ended.wait(10)
        got.append(data)

    async def script() -> None:
        for number in range(5):
            process.out.put(b"%d" % number)
        process.end(an_end())
        while process.closes == 0 and not process.waiting.is_set():
            await anyio.sleep(0.001)
        await anyio.sleep(0.2)  # longer than the quiet after which a pipe is given up
        ended.set()

    result = await run(process, job(sink), script)
    assert b"".join(got) == b"01234"
    assert result.verdict is Verdict.OK


async def test_a_slow_function_takes_no_thread_of_others() -> None:
    threads = anyio.to_thread.current_default_thread_limiter()
    few, let_go, entered = threads.total_tokens, threading.Event(), threading.Event()
    process = ScriptedProcess()

    def sink(stream: str, data: bytes) -> None:
        entered.set()
        assert let_go.wait(20)

    async def script() -> None:
        process.out.put(b"x")
        process.end(an_end())
        while not entered.is_set():
            await anyio.sleep(0.001)
        try:
            with anyio.fail_after(5):
                await anyio.to_thread.run_sync(int)
        finally:
            let_go.set()

    threads.total_tokens = 1
    try:
        assert (await run(process, job(sink), script)).stdout == "x"
    finally:
        threads.total_tokens = few


async def test_what_the_function_raises_ends_the_program_and_is_raised() -> None:
    process = ScriptedProcess()

    def sink(stream: str, data: bytes) -> None:
        raise BrokenPipeError

    process.out.put(b"x")
    with pytest.raises(BrokenPipeError):
        await run(process, job(sink))
    assert process.kills == 1
    assert process.closes == 1


async def test_a_cancelled_call_does_not_wait_for_a_function_that_never_returns() -> None:
    process = ScriptedProcess()
    let_go = threading.Event()
    entered = threading.Event()

    def sink(stream: str, data: bytes) -> None:
        entered.set()
        let_go.wait(10)

    async def script() -> None:
        process.out.put(b"x")

    with anyio.move_on_after(0.2) as scope:
        await run(process, job(sink), script)
    assert scope.cancelled_caught
    assert entered.is_set()
    assert process.kills == 1
    let_go.set()


async def test_pieces_of_one_stream_are_joined_and_the_order_kept() -> None:
    got: list[tuple[str, bytes]] = []
    relay = Relay(lambda stream, data: got.append((stream, data)))
    for stream, data in [("a", b"1"), ("a", b"2"), ("b", b"3"), ("a", b"4"), ("a", b"")]:
        relay.put(stream, data)
    relay.end()
    await relay.run()
    assert got == [("a", b"12"), ("b", b"3"), ("a", b"4")]


async def test_a_file_is_read_as_the_program_goes_on() -> None:
    process = ScriptedProcess()
    reader, writer = os.pipe()

    async def script() -> None:
        os.write(writer, b"first")
        while bytes(process.input.taken) != b"first":
            await anyio.sleep(0.001)
        os.write(writer, b" second")
        os.close(writer)
        while not process.input.closed:
            await anyio.sleep(0.001)
        process.end(an_end())

    with open(reader, "rb") as source:
        await run(process, job(stdin=source), script)
    assert bytes(process.input.taken) == b"first second"


async def test_a_file_that_cannot_be_read_ends_the_program_and_says_why() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError("the disk is gone")

    process = ScriptedProcess()
    with pytest.raises(OSError, match="the disk is gone"):
        await run(process, job(stdin=Broken()))
    assert process.kills == 1


async def test_bytes_are_cut_into_chunks() -> None:
    assert [chunk async for chunk in read_chunks(b"abcde", 2)] == [b"ab", b"cd", b"e"]
    assert [chunk async for chunk in read_chunks(b"", 2)] == []
