"""Commands that live on: started in a sandbox, found again by id, read again from a cursor.

A sandbox owns its commands: each has a task on the private loop that takes what it prints and sees
it to its end, whether anybody has a handle or not. They end with the sandbox.
"""

from __future__ import annotations

import asyncio
import errno
import signal as signals
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import anyio

from ms_enclave.boxes import _execution as execution
from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._output_log import OutputLog, Tail
from ms_enclave.channel.process import Exit
from ms_enclave.errors import (
    CommandNotFoundError,
    ConfigError,
    EnclaveError,
    QuotaExceededError,
    SandboxLostError,
    SandboxStateError,
)
from ms_enclave.loop import iterate_on_loop, on_loop
from ms_enclave.model import CommandInfo, CommandResult, OutputChunk, OutputEvent

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream

    from ms_enclave.boxes._execution import Job
    from ms_enclave.boxes._output_log import Piece, Stream
    from ms_enclave.boxes.files import Files
    from ms_enclave.channel.process import Process

__all__ = ["Command", "Commands"]

MOST = 1000
"""Commands of one sandbox that may run at a time."""

REMEMBERED = 250
"""Commands that have ended and can still be found."""

READ_LIMIT = 16 << 20
"""Bytes that one `read` gives at most."""

_EVENT = 1 << 16
_SLICE = 1 << 20
_PUT_SECONDS = 10.0

_END_OF_INPUT = b"\x04"
"""What a person types at a terminal where their input ends (Ctrl-D)."""

_WITH_ITS_BOX = Exit(exit_code=137, signal=9)

Use = Callable[[], AbstractAsyncContextManager[None]]


class Command:
    """A command that runs on by itself, like a `Popen`. A handle: dropping it changes nothing.

    What it prints is taken in whether it is read or not, so it never waits for a reader. The
    newest output is held in memory and older output in the sandbox's own files, up to the output
    limit; what is older still is lost, and `lost` says how much.

    Raises, from every method:
        SandboxStateError: the sandbox is not running; its commands have ended with it.
        SandboxLostError: the sandbox was lost.
    """

    def __init__(self, running: _Running, use: Use) -> None:
        self._running = running
        self._use = use
        self.id = running.id
        """The name under which `get_command` finds it."""
        self.pid = running.process.pid
        """Its process id, as seen inside."""
        self.command: str | list[str] = running.job.command
        """As the caller gave it: a shell line or an argv."""
        self.tag = running.tag
        """What the caller wrote on it."""

    @property
    def returncode(self) -> int | None:
        """None while it runs; then its exit code, as in `CommandResult`."""
        return self._running.returncode

    @property
    def cursor(self) -> int:
        """Bytes that it has printed so far."""
        return self._running.log.end

    @property
    def takes_input(self) -> bool:
        """Whether it was started to be given input, and that has not been closed."""
        return self._running.takes_input

    @iterate_on_loop
    async def events(self, *, after: int = 0) -> AsyncGenerator[OutputEvent, None]:
        """What it prints, from a cursor on, as it comes; ends with the command.

        Raises:
            ConfigError: `after` is not a cursor that it has had.
        """
        log = self._running.log
        self._check_cursor(after)
        while True:
            async with self._use():
                await log.wait_beyond(after)
                pieces = await log.read(after, _EVENT)
            for piece in pieces:
                yield OutputEvent.model_construct(
                    stream=piece.stream, data=piece.data, cursor=piece.end, lost=piece.start - after
                )
                after = piece.end
            if not pieces and log.finished:
                return

    @on_loop
    async def read(
        self, *, after: int = 0, max_bytes: int = 1 << 20, wait: float = 0.0
    ) -> OutputChunk:
        """What it has printed from a cursor on, on all its streams in the order in which it came.

        Args:
            after: a cursor that an event or a chunk gave; 0 for the beginning.
            max_bytes: at most so many, and never more than 16 MiB.
            wait: seconds to wait for something where there is nothing yet.

        Raises:
            ConfigError: an argument is not valid, or `after` is not a cursor that it has had.
        """
        most = min(inputs.validate_count("max_bytes", max_bytes), READ_LIMIT)
        seconds = 0.0 if wait == 0 else inputs.validate_timeout(wait, "wait")
        self._check_cursor(after)
        log = self._running.log
        async with self._use():
            with anyio.move_on_after(seconds):
                await log.wait_beyond(after)
            return _chunk(log, after, await log.read(after, most))

    @on_loop
    async def write(self, data: bytes | str) -> None:
        """Give it input; waits while it does not read what it was given before.

        Raises:
            SandboxStateError: it was started without `stdin=True`, or its input was closed.
            BrokenPipeError: it has ended, or reads no more.
        """
        content = data.encode() if isinstance(data, str) else bytes(data)
        async with self._use():
            await self._running.write(content)

    @on_loop
    async def close_stdin(self) -> None:
        """Its input ends here. Nothing happens where it has ended already. Into a terminal Ctrl-D
        is typed, which ends what reads there and is not for ever.

        Raises:
            SandboxStateError: it was started without `stdin=True`.
        """
        async with self._use():
            await self._running.close_stdin()

    @on_loop
    async def send_signal(self, signal: int | str) -> None:
        """Send it a signal, by number or name ("INT", "SIGINT"); nothing where it has ended.

        Raises:
            ConfigError: there is no such signal.
        """
        number = _signal_number(signal)
        async with self._use():
            await self._running.process.send_signal(number)

    @on_loop
    async def kill(self) -> None:
        """End it with everything that it started; returns when that is gone."""
        async with self._use():
            await self._running.kill()
            await self._running.ended.wait()

    @on_loop
    async def resize(self, rows: int, cols: int) -> None:
        """Give its terminal another size; it gets SIGWINCH. Nothing happens after its end.

        Raises:
            ConfigError: no terminal is of such a size.
            SandboxStateError: it was started without `pty`.
        """
        size = inputs.validate_size((rows, cols), "the size")
        terminal = self._running.process.terminal
        if terminal is None or size is None:
            raise SandboxStateError(f"Command {self.id} was started without pty")
        async with self._use():
            await terminal.resize(*size)

    @on_loop
    async def wait(self, timeout: float | None = None) -> CommandResult:
        """Wait for its end and give its result, with the newest output up to the output limit.

        May be called any number of times, by many.

        Raises:
            TimeoutError: it did not end within `timeout` seconds; it runs on.
        """
        seconds = inputs.validate_timeout(timeout)
        async with self._use():
            with anyio.fail_after(seconds):
                await self._running.ended.wait()
            return await self._running.result()

    def _check_cursor(self, after: int) -> None:
        inputs.validate_count("after", after)
        if after > self._running.log.end:
            raise ConfigError(f"after={after} is beyond all that the command has printed")


class Commands:
    """The commands of one sandbox, and what older output they have in its files.

    Args:
        use: a call on the sandbox, for as long as it takes.
        own: has something undone with the box; called before there is anything to be undone.
        files: where older output goes, below `folder`.
    """

    def __init__(
        self, use: Use, own: Callable[[Callable[[], Awaitable[object]]], None], files: Files,
        folder: str,
    ) -> None:  # fmt: skip
        self._use = use
        self._own = own
        self._files = files
        self._folder = folder
        self._owned = False
        self._all: dict[str, _Running] = {}

    async def start(
        self, spawn: Callable[[], Awaitable[Process]], job: Job, *, timeout: float, tag: str | None
    ) -> Command:
        """Start a process and see to it from here on. Precondition: within a call on the box.

        Args:
            timeout: seconds after which it is ended; inf for never.

        Raises:
            QuotaExceededError: too many run already.
            Otherwise what `spawn` raises.
        """
        if not self._owned:
            self._own(self._end_all)
            self._owned = True
        if sum(one.returncode is None for one in self._all.values()) >= MOST:
            raise QuotaExceededError(f"A sandbox may have {MOST} commands running at a time")
        began, started = datetime.now(timezone.utc), time.monotonic()
        job = replace(job, limits=replace(job.limits, timeout=timeout))
        name = inputs.new_sandbox_id()
        keep = job.limits.output * 17 // 16  # with the book-keeping of what is not in tiny pieces
        log = OutputLog(_Shelf(self._files, f"{self._folder}/{name}"), keep)
        running = _Running(name, await spawn(), job, log, tag, began, started)
        # Nothing is awaited from here on: it is either ours, or was never there.
        self._all[name] = running
        running.task = asyncio.get_running_loop().create_task(running.attend())
        await self._forget_oldest()
        return Command(running, self._use)

    def get(self, name: str) -> Command:
        """A handle. Raises CommandNotFoundError."""
        running = self._all.get(name)
        if running is None:
            raise CommandNotFoundError(name)
        return Command(running, self._use)

    def list(self) -> list[CommandInfo]:
        """All that are known, in the order in which they were started."""
        return [running.info() for running in self._all.values()]

    async def _forget_oldest(self) -> None:
        ended = [name for name, one in self._all.items() if one.returncode is not None]
        for name in ended[: max(0, len(ended) - REMEMBERED)]:
            await self._all.pop(name).log.drop()

    async def _end_all(self) -> None:
        """The box is about to go: nobody is to wait for them any more."""
        for running in self._all.values():
            running.scope.cancel()
        tasks = [running.task for running in self._all.values() if running.task is not None]
        if tasks:
            await asyncio.wait(tasks)


class _Running:
    """A started command: its process, what it printed, and how it ended."""

    def __init__(
        self, name: str, process: Process, job: Job, log: OutputLog, tag: str | None,
        began: datetime, started: float,
    ) -> None:  # fmt: skip
        self.id = name
        self.process = process
        self.job = job
        self.log = log
        self.tag = tag
        self.began = began
        self.task: asyncio.Task[None] | None = None
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self._seen = execution.Observation(
            Tail(job.limits.output), Tail(job.limits.output), started
        )
        self._wall = 0.0
        self._writing = anyio.Lock()
        self._input_closed = False
        self.has_terminal = process.terminal is not None

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        if not self.ended.is_set() or self._seen.ended is None:
            return None
        return -1 if self._seen.timed_out else self._seen.ended.exit_code

    @property
    def takes_input(self) -> bool:
        """Whether there is an input that was not closed."""
        return self.process.stdin is not None and not self._input_closed

    def info(self) -> CommandInfo:
        """As of now."""
        return CommandInfo(
            id=self.id, command=self.job.command, tag=self.tag, pid=self.process.pid,
            pty=self.has_terminal, started_at=self.began, returncode=self.returncode,
            cursor=self.log.end,
        )  # fmt: skip

    async def attend(self) -> None:
        """See it to its end; never raises."""
        try:
            with self.scope:
                await self._attend()
        except Exception as error:  # noqa: BLE001 - the boundary of a task: whoever waits raises it
            self._seen.failed = error
        finally:
            with anyio.move_on_after(execution.KILL_BOUND, shield=True):
                await self._close()
            self._wall = time.monotonic() - self._seen.started
            self.log.finish()
            self.ended.set()

    async def _attend(self) -> None:
        async with anyio.create_task_group() as group:
            out: Stream = "pty" if self.has_terminal else "stdout"
            group.start_soon(self._pump, out, self.process.stdout)
            group.start_soon(self._pump, "stderr", self.process.stderr)
            try:
                await execution.wait_for_end(self.process, self.job.limits.timeout, self._seen)
                await self._settle()
            except SandboxLostError as error:
                self._seen.lost = error
            group.cancel_scope.cancel()

    async def _close(self) -> None:
        try:
            if self.scope.cancel_called:  # its sandbox goes, and takes it along
                self._seen.ended = self._seen.ended or _WITH_ITS_BOX
                await self.process.abandon()
            else:
                await self.process.aclose()
        except EnclaveError as error:
            self._seen.lost = self._seen.lost or SandboxLostError(error.message)

    async def _pump(self, stream: Stream, source: ByteReceiveStream) -> None:
        limits = self.job.limits
        try:
            while True:
                await self.log.append(stream, await source.receive())
                beyond = self.log.totals[stream] > limits.output
                if beyond and limits.output_action == "kill" and not self._seen.output_killed:
                    self._seen.output_killed = True
                    await self.kill()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        except SandboxLostError as error:  # reported once, by whoever waits for the process
            self._seen.lost = error
        self._seen.open_pumps -= 1
        if self._seen.open_pumps == 0:
            self._seen.drained.set()

    async def _settle(self) -> None:
        """Take what it left in its pipes: to their end, or until they have nothing more to give
        where a process that it left running holds them open."""
        with anyio.move_on_after(execution.DRAIN_TOTAL):
            while not self._seen.drained.is_set():
                before = self.log.end
                with anyio.move_on_after(execution.DRAIN_QUIET):
                    await self._seen.drained.wait()
                if self.log.end == before and not self.log.busy:
                    return

    async def kill(self) -> None:
        await execution.kill(self.process)

    async def write(self, content: bytes) -> None:
        stream = self.process.stdin
        if stream is None or self._input_closed:
            why = "started without stdin=True" if stream is None else "closed"
            raise SandboxStateError(f"Command {self.id} has no input: {why}")
        async with self._writing:
            try:
                await stream.send(content)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                text = f"Command {self.id} reads no input any more"
                raise BrokenPipeError(errno.EPIPE, text) from None

    async def close_stdin(self) -> None:
        stream = self.process.stdin
        if stream is None:
            raise SandboxStateError(f"Command {self.id} has no input to close")
        if self.has_terminal:
            await self.write(_END_OF_INPUT)
            return
        self._input_closed = True
        async with self._writing:
            await stream.aclose()

    async def result(self) -> CommandResult:
        """What is said of it. Precondition: it has ended. Raises SandboxLostError."""
        seen = self._seen
        error = seen.lost or seen.failed
        if error is not None:
            raise SandboxLostError(str(error)) from error
        limit = self.job.limits.output
        tails: dict[Stream, Tail] = {name: Tail(limit) for name in ("stdout", "stderr", "pty")}
        after = 0
        while pieces := await self.log.read(after, _SLICE):
            for piece in pieces:
                tails[piece.stream].feed(piece.data)
                after = piece.end
        for name, tail in tails.items():
            tail.miss(self.log.totals[name] - tail.total)
        out = tails["pty"] if self.log.totals["pty"] else tails["stdout"]
        whole = replace(seen, stdout=out, stderr=tails["stderr"])
        return execution.result(self.job, whole, self.began, wall=self._wall)


class _Shelf:
    """Older output of one command, as files in its sandbox."""

    def __init__(self, files: Files, folder: str) -> None:
        self._files = files
        self._folder = folder

    async def put(self, number: int, block: bytes) -> bool:
        """Store a block; whether it is there."""
        try:
            with anyio.fail_after(_PUT_SECONDS):
                await self._files.write(f"{self._folder}/{number}", block, mode=0o600)
        except (EnclaveError, OSError):  # a full disk, a guest that does not answer, …
            return False
        return True

    async def get(self, number: int, size: int) -> bytes | None:
        """A block, if it is still there."""
        try:
            with anyio.fail_after(_PUT_SECONDS):
                return await self._files.read(f"{self._folder}/{number}", limit=size)
        except (EnclaveError, OSError):
            return None

    async def drop(self, number: int) -> None:
        """Remove a block."""
        try:
            with anyio.fail_after(_PUT_SECONDS):
                await self._files.remove(f"{self._folder}/{number}")
        except (EnclaveError, OSError):
            return


def _chunk(log: OutputLog, after: int, pieces: list[Piece]) -> OutputChunk:
    """Pieces as one chunk: up to the first gap in them, if there is one."""
    lost = (pieces[0].start if pieces else after) - after
    cursor = after + lost
    data: list[bytes] = []
    for piece in pieces:
        if piece.start != cursor:
            break
        data.append(piece.data)
        cursor = piece.end
    eof = log.finished and cursor == log.end
    return OutputChunk.model_construct(data=b"".join(data), cursor=cursor, lost=lost, eof=eof)


def _signal_number(signal: object) -> int:
    if isinstance(signal, str):
        name = signal.upper() if signal.upper().startswith("SIG") else f"SIG{signal.upper()}"
        found = getattr(signals, name, None)
        if isinstance(found, signals.Signals):
            return int(found)
    elif isinstance(signal, int) and not isinstance(signal, bool) and 0 < signal <= 64:
        return int(signal)
    raise ConfigError(f"There is no signal {signal!r}")
