"""Sees a process of a station to its end: the driver of `_execution`, for pipes that are our own.

What a short program printed is read when it has ended, so nothing is watched for it; what a longer
one prints is read as it comes. Runs on the private loop, without a task of its own.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import anyio

from ms_enclave.boxes import _execution as execution
from ms_enclave.errors import SandboxLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ms_enclave.boxes._execution import Capture, Job
    from ms_enclave.model import CommandResult
    from ms_enclave.spawner.client import StationProcess
    from ms_enclave.spawner.pipes import PipeReader

__all__ = ["follow"]

_MOMENT = 0.02  # s after which output is read while the program runs
_MOST_READS = 1 << 20


async def follow(spawn: Callable[[], Awaitable[StationProcess]], job: Job) -> CommandResult:
    """Start a process, see it to its end and say what happened, as `execution.execute` does.

    For a job without `on_output`, and without input that somebody would have to go on writing.

    Raises:
        SandboxStartError: it could not be started.
        SandboxLostError: the box failed, or could not end the process.
    """
    began, started = datetime.now(timezone.utc), time.monotonic()
    process = await spawn()
    watch = _Watch(process, job, started)
    try:
        await watch.see_to_the_end()
    except BaseException:
        with anyio.CancelScope(shield=True), anyio.move_on_after(execution.KILL_BOUND):
            await process.kill()
        raise
    finally:
        watch.close()
    return execution.result(job, watch.seen, began)


def _take(stream: PipeReader, capture: Capture) -> int | None:
    """Take what there is now: its bytes, 0 at the end, None for nothing yet."""
    if capture.exceeded and stream.drops:
        dropped = stream.drop()
        capture.skip(dropped or 0)
        return dropped
    data = stream.take()
    if data:
        capture.feed(data)
    return None if data is None else len(data)


class _Watch:
    """Reads what a process prints, and ends it in time."""

    def __init__(self, process: StationProcess, job: Job, started: float) -> None:
        captures = [execution.Capture(job.limits.output) for _ in range(2)]
        self.seen = execution.Observation(captures[0], captures[1], started)
        self._process = process
        self._limits = job.limits
        self._loop = asyncio.get_running_loop()
        self._open = list(zip(process.outputs, captures, strict=True))
        self._watched: list[PipeReader] = []
        """Those whose end is to be seen as it comes, each once."""

        self._timers: list[asyncio.TimerHandle] = []
        self._kill: asyncio.Task[None] | None = None
        self._news: asyncio.Event | None = None

    async def see_to_the_end(self) -> None:
        """Returns when it has ended and what it printed is read. Raises SandboxLostError."""
        left = self.seen.started + self._limits.timeout - time.monotonic()
        self._after(_MOMENT, self._read_as_it_comes)
        self._after(max(0.0, left), self._too_late)
        self.seen.ended = await self._process.wait()
        if self._kill is not None:
            await self._kill
        self._read_all()
        if self._open:
            await self._settle()

    def close(self) -> None:
        """Take back every timer and watch, and close the streams."""
        for timer in self._timers:
            timer.cancel()
        for stream in self._watched:
            self._loop.remove_reader(stream.fileno())
        if self._kill is not None:
            self._kill.cancel()
        self._process.release()

    def _after(self, seconds: float, do: Callable[[], object]) -> None:
        self._timers.append(self._loop.call_later(seconds, do))

    # --- reading --------------------------------------------------------------------------------

    def _read_as_it_comes(self) -> None:
        for stream, capture in self._open:
            if stream not in self._watched:
                self._loop.add_reader(stream.fileno(), self._take_some, stream, capture)
                self._watched.append(stream)

    def _take_some(self, stream: PipeReader, capture: Capture) -> None:
        if stream not in self._watched:
            return
        self._read(stream, capture, at_most=1)
        if capture.exceeded and stream in self._watched:
            self._loop.remove_reader(stream.fileno())
            self._loop.call_later(stream.pause, self._watch_again, stream, capture)
        if capture.exceeded and self._limits.output_action == "kill":
            self.seen.output_killed = True
            self._end()
        if self._news is not None:
            self._news.set()

    def _watch_again(self, stream: PipeReader, capture: Capture) -> None:
        if stream in self._watched and stream.fileno() >= 0:
            self._loop.add_reader(stream.fileno(), self._take_some, stream, capture)

    def _read_all(self) -> None:
        for stream, capture in list(self._open):
            self._read(stream, capture, _MOST_READS)

    def _read(self, stream: PipeReader, capture: Capture, at_most: int) -> None:
        """Take what is there, and see the end of the stream."""
        for _ in range(at_most):
            taken = _take(stream, capture)
            if taken is None:
                return
            if not taken:
                self._open.remove((stream, capture))
                if stream in self._watched:
                    self._watched.remove(stream)
                    self._loop.remove_reader(stream.fileno())
                return

    async def _settle(self) -> None:
        """A process that was left running holds a pipe: take what it still writes, until it is
        quiet for a moment."""
        self._news = asyncio.Event()
        self._read_as_it_comes()
        with anyio.move_on_after(execution.DRAIN_TOTAL):
            while self._open:
                self._news.clear()
                with anyio.move_on_after(execution.DRAIN_QUIET) as quiet:
                    await self._news.wait()
                if quiet.cancelled_caught:
                    return

    # --- ending ---------------------------------------------------------------------------------

    def _too_late(self) -> None:
        if self.seen.ended is None:
            self.seen.timed_out = True
            self._end()

    def _end(self) -> None:
        if self._kill is None:
            self._kill = self._loop.create_task(self._kill_all())

    async def _kill_all(self) -> None:
        """Everything that it started ends with it."""
        with anyio.move_on_after(execution.KILL_BOUND) as scope:
            try:
                await self._process.kill()
            except SandboxLostError as error:
                self._process.fail(error)
        if scope.cancelled_caught:
            text = "The processes of a command could not be killed"
            self._process.fail(SandboxLostError(text))
