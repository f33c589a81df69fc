"""Turns one started process into one result: pure decisions first, a thin driver after them.

The decisions (what was printed, what the figures mean) are plain functions with table tests. The
driver owns a `Process` from the moment it is handed over until it is closed: output is drained the
whole time, so that a program never blocks on a full pipe, and a time-out, a limit or a cancellation
kills everything that the process started.
"""

from __future__ import annotations

import codecs
import logging
import signal as signals
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, BinaryIO

import anyio

from ms_enclave.boxes._relay import Relay, Sink, read_chunks
from ms_enclave.errors import SandboxLostError
from ms_enclave.model import CommandResult, ExecutionStatus, Usage, Verdict
from ms_enclave.spawner.pipes import PipeReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteReceiveStream, ByteSendStream

    from ms_enclave.channel.process import Exit, Process
    from ms_enclave.model.limits import ResolvedLimits

__all__ = [
    "Capture",
    "Job",
    "Judgement",
    "Observation",
    "execute",
    "format_seconds",
    "judge",
    "kill",
    "result",
    "wait_for_end",
]

logger = logging.getLogger(__name__)

KILL_BOUND = 10.0
"""Seconds that the end of a killed process tree may take before the box counts as lost."""

DRAIN_QUIET = 0.05
"""Seconds without a byte after which a pipe that a leftover process holds open is given up."""

DRAIN_TOTAL = 2.0
"""Seconds that draining may take in all after the command itself has ended."""

STDIN_CHUNK = 1 << 16

_MOMENT = 0.02
"""Seconds within which a program that ends has its output read afterwards."""

_SIGXCPU = 24
_SIGXFSZ = 25
_CPU_TOLERANCE = 0.5
"""The kernel holds the limit by ticks, each charged to whoever runs at that moment: beside others
that run as much it was seen to end a program after 0.80 of the time that it reports itself."""


# --- what the program printed -------------------------------------------------------------------


class Capture:
    """The first `limit` bytes of one output stream and a count of what came after them.

    Everything is accepted, so that whoever reads the pipe never has to stop reading it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._dropped = 0

    @property
    def total(self) -> int:
        """Bytes that the program wrote so far."""
        return len(self._kept) + self._dropped

    @property
    def exceeded(self) -> bool:
        """Whether the program wrote more than the limit."""
        return self._dropped > 0

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the stream; gives those of them that are kept."""
        kept = data[: max(0, self._limit - len(self._kept))]
        self._kept += kept
        self._dropped += len(data) - len(kept)
        return kept

    def skip(self, count: int) -> None:
        """So many bytes more have come that nobody has read: for one that has `exceeded`."""
        self._dropped += count

    def text(self) -> tuple[str, int]:
        """The text kept (UTF-8, invalid bytes replaced) and the bytes lost.

        The whole of it is decoded at once, so that where the chunks were cut cannot show; a
        character that the limit cut in two counts as lost instead of showing up as garbage.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(bytes(self._kept), final=not self.exceeded)
        return text, self._dropped + len(decoder.getstate()[0])


# --- what it means ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """What is said about an ended process."""

    status: ExecutionStatus
    verdict: Verdict
    exit_code: int
    signal: int | None
    error: str | None


def format_seconds(seconds: float) -> str:
    """`2.0` as "2", `12.5` as "12.5": how a person would write the figure."""
    return str(int(seconds)) if float(seconds).is_integer() else repr(float(seconds))


def judge(
    ended: Exit,
    limits: ResolvedLimits,
    *,
    timed_out: bool = False,
    output_killed: bool = False,
) -> Judgement:
    """What happened, from the box's own knowledge and from what the driver did.

    What the host knows goes before what the exit status suggests: a program can fake a status,
    never a time-out. Nothing that the program printed is looked at.

    Raises:
        SandboxLostError: the end says nothing about the program, because the box failed.
    """
    if ended.cause == "infra":
        raise SandboxLostError(ended.detail or "The sandbox failed while the command was running")
    if timed_out:
        text = f"Command timed out after {format_seconds(limits.timeout)} seconds"
        return Judgement(ExecutionStatus.TIMEOUT, Verdict.WALL_TIMEOUT, -1, None, text)
    verdict = Verdict.OUTPUT_LIMIT if output_killed else _verdict(ended, limits)
    if verdict is Verdict.OK:
        return Judgement(ExecutionStatus.SUCCESS, verdict, 0, None, None)
    text = f"Command failed with exit code {ended.exit_code}"
    reason = ended.detail or _reason(verdict, ended, limits)
    if reason:
        text = f"{text}: {reason}"
    return Judgement(ExecutionStatus.ERROR, verdict, ended.exit_code, ended.signal, text)


def _verdict(ended: Exit, limits: ResolvedLimits) -> Verdict:
    if ended.cause is not None:
        return Verdict(ended.cause)
    if ended.signal == _SIGXCPU and _used_up(ended, limits):
        return Verdict.CPU_TIMEOUT
    if ended.signal == _SIGXFSZ:
        return Verdict.DISK_LIMIT
    if ended.signal is not None:
        return Verdict.SIGNAL
    return Verdict.OK if ended.exit_code == 0 else Verdict.ERROR


def _used_up(ended: Exit, limits: ResolvedLimits) -> bool:
    # Any program may send itself SIGXCPU: only with the time really used is it the limit.
    if limits.cpu_time is None:
        return False
    return ended.cpu_user + ended.cpu_system >= limits.cpu_time * _CPU_TOLERANCE


def _reason(verdict: Verdict, ended: Exit, limits: ResolvedLimits) -> str:
    reasons = {
        Verdict.OOM: f"out of memory (limit {limits.memory} bytes)",
        Verdict.CPU_TIMEOUT: f"more than {format_seconds(limits.cpu_time or 0)} seconds of CPU",
        Verdict.OUTPUT_LIMIT: f"more than {limits.output} bytes of output",
        Verdict.PROCESS_LIMIT: f"too many processes (limit {limits.pids})",
        Verdict.DISK_LIMIT: f"disk limit exceeded (limit {limits.disk} bytes)",
        Verdict.POLICY_DENIED: "denied by the sandbox's policy",
    }
    if verdict is Verdict.SIGNAL and ended.signal is not None:
        return f"killed by signal {ended.signal}{_signal_name(ended.signal)}"
    return reasons.get(verdict, "")


def _signal_name(number: int) -> str:
    try:
        return f" ({signals.Signals(number).name})"
    except ValueError:  # a real-time signal, or one of another platform: the number says it
        return ""


# --- the driver ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What to make of one process: the caller's command, its input and what it may use."""

    command: str | list[str]
    limits: ResolvedLimits
    stdin: bytes | BinaryIO | None = None
    on_output: Sink | None = None
    isolation: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Observation:
    """What a driver saw. Filled while the process runs; read when it has ended."""

    stdout: Capture
    stderr: Capture
    started: float
    ended: Exit | None = None
    timed_out: bool = False
    output_killed: bool = False
    lost: SandboxLostError | None = None
    failed: Exception | None = None
    """What the caller's own input or `on_output` raised."""
    open_pumps: int = 2
    drained: anyio.Event = field(default_factory=anyio.Event)

    @property
    def progress(self) -> int:
        return self.stdout.total + self.stderr.total


async def execute(spawn: Callable[[], Awaitable[Process]], job: Job) -> CommandResult:
    """Start a process, see it to its end and say what happened.

    The deadline runs from before the start. When this returns or raises, cancellation included,
    the process is closed; after a time-out, an exceeded `output_action="kill"` and a
    cancellation it and every descendant are gone.

    Raises:
        SandboxLostError: the box failed, or could not end the process.
    """
    began = datetime.now(timezone.utc)
    started = time.monotonic()
    seen = Observation(Capture(job.limits.output), Capture(job.limits.output), started)
    process = await spawn()
    try:
        if not await _sees_end(process, job, seen):
            await _observe(process, job, seen)
    except SandboxLostError:
        raise  # there is nobody left to ask for a kill, or it was asked for in vain
    except BaseException:
        # A cancelled call must not leave its program running; the reason goes on as it came.
        with anyio.CancelScope(shield=True):
            await _kill_quietly(process)
        raise
    finally:
        with anyio.move_on_after(KILL_BOUND, shield=True):
            await process.aclose()
    return result(job, seen, began)


async def _sees_end(process: Process, job: Job, seen: Observation) -> bool:
    """See a short program to its end, without tasks that would each be woken for it; False where
    there is more to do."""
    left = seen.started + job.limits.timeout - time.monotonic()
    if job.stdin is not None or job.on_output is not None or left <= _MOMENT:
        return False
    if not await process.ends_soon(_MOMENT):
        return False
    seen.ended = await process.wait()
    await _pump(process, process.stdout, seen.stdout.feed, seen.stdout, seen, job.limits)
    await _pump(process, process.stderr, seen.stderr.feed, seen.stderr, seen, job.limits)
    if seen.lost is not None:
        raise seen.lost
    return True


async def _observe(process: Process, job: Job, seen: Observation) -> None:
    relay = None if job.on_output is None else Relay(job.on_output)
    async with anyio.create_task_group() as group:
        if relay is not None:
            group.start_soon(_guard, relay.run, seen, group.cancel_scope)
        await _attend(process, job, seen, relay)
        if relay is not None:
            relay.end()
    # Kept out of the groups, which would wrap them.
    error = seen.lost or seen.failed
    if error is not None:
        raise error


async def _guard(
    work: Callable[[], Awaitable[None]], seen: Observation, scope: anyio.CancelScope
) -> None:
    """Do what runs code of the caller's; where that raises, it ends the call."""
    try:
        await work()
    except Exception as error:  # noqa: BLE001 - not ours to judge: the call raises it
        seen.failed = error
        scope.cancel()


async def _attend(process: Process, job: Job, seen: Observation, relay: Relay | None) -> None:
    async with anyio.create_task_group() as group:

        async def feed() -> None:
            await _feed(process.stdin, job.stdin or b"")

        group.start_soon(_guard, feed, seen, group.cancel_scope)
        for name, stream, capture in (
            ("stdout", process.stdout, seen.stdout),
            ("stderr", process.stderr, seen.stderr),
        ):
            take = _taker(name, capture, relay)
            group.start_soon(_pump, process, stream, take, capture, seen, job.limits)
        try:
            await wait_for_end(process, job.limits.timeout, seen)
            await _settle(seen)
        except SandboxLostError as error:
            seen.lost = error
        group.cancel_scope.cancel()


def _taker(name: str, capture: Capture, relay: Relay | None) -> Callable[[bytes], object]:
    if relay is None:
        return capture.feed
    return lambda data: relay.put(name, capture.feed(data))


async def wait_for_end(process: Process, timeout: float, seen: Observation) -> None:
    """Wait for the process itself, not for its streams: it may close them and go on."""
    with anyio.move_on_after(seen.started + timeout - time.monotonic()):
        seen.ended = await process.wait()
        return
    seen.timed_out = True
    await kill(process)
    with anyio.move_on_after(KILL_BOUND):
        seen.ended = await process.wait()
    if seen.ended is None:
        raise SandboxLostError("The sandbox did not report the end of a killed command")


async def kill(process: Process) -> None:
    """Kill a process with everything below it. Raises SandboxLostError if that takes too long."""
    with anyio.move_on_after(KILL_BOUND) as scope:
        await process.kill()
    if scope.cancelled_caught:
        raise SandboxLostError("The processes of a command could not be killed")


async def _kill_quietly(process: Process) -> None:
    try:
        await kill(process)
    except SandboxLostError:
        # Another failure, or the caller's cancellation, is under way and must not be replaced.
        logger.exception("a command could not be killed after its call had ended")


async def _settle(seen: Observation) -> None:
    """Take what the ended command left in its pipes.

    Usually that is until their end. A background process that inherited a pipe keeps it open for
    as long as it likes: then reading stops as soon as the pipe has nothing more to give.
    """
    with anyio.move_on_after(DRAIN_TOTAL):
        while not seen.drained.is_set():
            before = seen.progress
            with anyio.move_on_after(DRAIN_QUIET):
                await seen.drained.wait()
            if seen.progress == before:
                return


async def _pump(
    process: Process,
    stream: ByteReceiveStream,
    take: Callable[[bytes], object],
    capture: Capture,
    seen: Observation,
    limits: ResolvedLimits,
) -> None:
    try:
        while True:
            if capture.exceeded and isinstance(stream, PipeReader) and stream.drops:
                capture.skip(await stream.pass_over())
            else:
                take(await stream.receive(STDIN_CHUNK))
            if capture.exceeded and limits.output_action == "kill" and not seen.output_killed:
                seen.output_killed = True
                await kill(process)
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    except SandboxLostError as error:  # reported once, by whoever waits for the process
        seen.lost = error
    seen.open_pumps -= 1
    if seen.open_pumps == 0:
        seen.drained.set()


async def _feed(stream: ByteSendStream | None, source: bytes | BinaryIO) -> None:
    if stream is None:
        return
    try:
        async for chunk in read_chunks(source, STDIN_CHUNK):
            await stream.send(chunk)
        await stream.aclose()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, SandboxLostError):
        # A program need not read its input; a lost box is reported by whoever waits for it.
        return


def result(
    job: Job, seen: Observation, began: datetime, *, wall: float | None = None
) -> CommandResult:
    """What is said of a process that was seen to its end. Raises SandboxLostError.

    Args:
        wall: seconds that it took; until now if None.
    """
    if seen.ended is None:
        raise SandboxLostError("The sandbox did not report the end of the command")
    ended = seen.ended
    said = judge(ended, job.limits, timed_out=seen.timed_out, output_killed=seen.output_killed)
    stdout, stdout_lost = seen.stdout.text()
    stderr, stderr_lost = seen.stderr.text()
    lost = {"stdout": stdout_lost, "stderr": stderr_lost}
    wall = time.monotonic() - seen.started if wall is None else wall
    return CommandResult(
        command=job.command,
        status=said.status,
        exit_code=said.exit_code,
        stdout=stdout,
        stderr=stderr,
        truncated={name: count for name, count in lost.items() if count},
        execution_time=wall,
        timestamp=began,
        verdict=said.verdict,
        signal=said.signal,
        usage=Usage(
            wall=wall,
            cpu_user=ended.cpu_user,
            cpu_system=ended.cpu_system,
            peak_memory=ended.peak_memory,
            processes=ended.processes,
            source=ended.source,
        ),
        isolation=job.isolation,
        error=said.error,
        metadata=dict(job.metadata),
    )
