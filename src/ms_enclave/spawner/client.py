"""The owner's end of a station: starts one, asks it for sandboxes and processes, hears their ends.

Lives on the private loop. Nothing here waits for the station with the loop blocked, and every
request that is under way when the station ends raises `SandboxLostError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import socket
import subprocess
import time
from typing import IO, TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ms_enclave.channel.process import Exit, Process
from ms_enclave.errors import (
    ForkRefusedError,
    IsolationUnavailableError,
    SandboxLostError,
    SandboxStartError,
)
from ms_enclave.spawner.keeping import identity
from ms_enclave.spawner.launch import Launched, launch
from ms_enclave.spawner.pipes import PipeReader, PipeWriter, open_null
from ms_enclave.spawner.terminal import HostTerminal, NothingReader

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from ms_enclave.spawner.keeping import Survivor

__all__ = ["StationClient", "StationProcess"]

_START_SECONDS = 20.0
_END_SECONDS = 10.0
_CLEAN_UP_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_FREEZE_SECONDS = 5.0
_FREEZE_PAUSE = 0.002
_PACKET = 1 << 17
_MOST_NOTE = 1 << 24
_PASSING = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOMEM, errno.ENOBUFS})
_INLINE = 1 << 15  # what a socket surely takes in one piece

_left: list[subprocess.Popen[bytes]] = []
"""Launchers that outlive us: `Popen` complains of one that is collected before it has ended."""


class StationClient:
    """One station. `start` it, `close` it; in between it can be asked from the private loop."""

    def __init__(self, plan: Mapping[str, Any], launched: Launched | None = None) -> None:
        self.plan = dict(plan)
        self._launched = launched
        self.facts: dict[str, Any] = {}
        self.users = 0
        self.keeps = self.plan.get("keep") is not None
        """Whether it outlives this process, where that does not end it before."""
        self._socket: socket.socket | None = None
        self._launcher: subprocess.Popen[bytes] | Survivor | None = None
        self.launcher = (0, 0)
        """Pid and start time of its first process."""
        self._notes = -1
        self._instance = ""
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._processes: dict[int, StationProcess] = {}
        self._boxes: dict[str, Callable[[str], object]] = {}
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._sending = asyncio.Lock()

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._socket is not None

    async def start(self, seconds: float = _START_SECONDS) -> None:
        """Start it, or take over one that is there, and wait until it is ready.

        Raises:
            IsolationUnavailableError: the machine does not allow what it needs.
            SandboxStartError: it ended or did not answer in time.
        """
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        try:
            ours = await anyio.to_thread.run_sync(self._launch)
            loop.add_reader(ours.fileno(), self._receive, ours)
            with anyio.fail_after(seconds):
                self.facts = await self._ready
        except TimeoutError:
            if self._launcher is not None:
                self._launcher.kill()
            await self.close()
            raise SandboxStartError("The station did not get ready in time") from None
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise

    def _launch(self) -> socket.socket:
        """In a worker thread: starting a process blocks."""
        launched = self._launched or launch(self.plan)
        self._launched = None
        self._launcher = launched.process
        pid = launched.process.pid
        with contextlib.suppress(OSError):  # it has ended: that will be said
            self.launcher = (pid, identity(pid)["start"])
        self._notes = launched.notes
        self._instance = launched.instance
        self._socket = launched.control
        return launched.control

    async def close(self) -> None:
        """End the station with everything in it; returns when all of it is gone. Idempotent."""
        if self.keeps and self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended, or hangs and is killed
                self._socket.send(_packet({"q": 0, "op": "end"}))
        self._disconnect("The station was closed")
        launcher, self._launcher = self._launcher, None
        if launcher is None:
            return
        try:
            await anyio.to_thread.run_sync(launcher.wait, _END_SECONDS)
        except subprocess.TimeoutExpired:
            launcher.kill()
            await anyio.to_thread.run_sync(launcher.wait)
        if launcher.returncode:
            await anyio.to_thread.run_sync(_clean_up_after_a_dead_launcher, self._instance)
        self._forget(launcher)

    async def leave(self) -> None:
        """Let it wait for its next owner, with everything in it. Idempotent.

        Calls that are under way raise `SandboxLostError`, and what they were running is ended.
        """
        self._disconnect("The sandbox was left to the next owner")
        launcher, self._launcher = self._launcher, None
        if launcher is not None:
            if isinstance(launcher, subprocess.Popen):
                _left[:] = [other for other in _left if other.poll() is None]
                _left.append(launcher)
            self._forget(launcher)

    def _forget(self, launcher: subprocess.Popen[bytes] | Survivor) -> None:
        os.close(self._notes)
        if not isinstance(launcher, subprocess.Popen):
            launcher.close()

    def _disconnect(self, text: str) -> None:
        """The station is not to be heard of any more; whoever waits for it learns so."""
        ours, self._socket = self._socket, None
        if ours is None:
            return
        asyncio.get_running_loop().remove_reader(ours.fileno())
        anyio.notify_closing(ours)
        ours.close()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(SandboxLostError(text))
        self._answers.clear()
        for process in list(self._processes.values()):
            process.lost(text)
        self._processes.clear()
        for lose in list(self._boxes.values()):
            lose(text)
        self._boxes.clear()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(SandboxStartError(f"{text}: {self._last_words()}"))
            self._ready.exception()  # retrieved: whoever gave up its start waits for it no more

    def _last_words(self) -> str:
        length = os.fstat(self._notes).st_size
        return os.pread(self._notes, 2000, max(0, length - 2000)).decode("utf-8", "replace").strip()

    # --- packets --------------------------------------------------------------------------------

    def _receive(self, ours: socket.socket) -> None:
        """Called by the loop when there is something to read."""
        while self._socket is ours:
            try:
                data = ours.recv(_PACKET)
            except OSError as error:
                if error.errno in _PASSING:
                    return  # what is there stays there, and the loop calls again
                data = b""
            if not data:
                self._disconnect("The station has ended")
                return
            self._take(json.loads(data))

    def _take(self, row: dict[str, Any]) -> None:
        event = row.get("event")
        if event is None:
            answer = self._answers.pop(row["q"], None)
            if answer is not None and not answer.done():
                answer.set_result(row)
        elif event == "exit":
            process = self._processes.pop(row["process"], None)
            if process is not None:
                process.ended(row)
        elif event == "lost":
            lose = self._boxes.pop(row["box"], None)
            if lose is not None:
                lose(row["text"])
        else:
            self._take_start(row)

    def _take_start(self, row: dict[str, Any]) -> None:
        """The station is ready, or says why it will never be."""
        if self._ready is None or self._ready.done():
            return
        if row["event"] == "ready":
            self._ready.set_result(row)
        else:
            self._ready.set_exception(start_error(row))

    async def ask(self, operation: str, descriptors: Sequence[int] = (), **fields: Any) -> Any:
        """Send a request and return what the answer's `ok` holds.

        Raises:
            SandboxLostError: the station is gone or does not answer.
            SandboxStartError: it could not do it; says which step failed.
        """
        number = next(self._numbers)
        packet = _packet({"q": number, "op": operation, **fields})
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                await self._deliver(packet, descriptors)
                row = await answer
        except TimeoutError:
            raise SandboxLostError("The station does not answer") from None
        finally:
            self._answers.pop(number, None)
        if "lost" in row:
            raise SandboxLostError(row["lost"])
        if "error" in row:
            raise SandboxStartError(f"The sandbox could not do it: {row['error']['text']}")
        return row["ok"]

    async def _deliver(self, packet: bytes, descriptors: Sequence[int]) -> None:
        """Send a packet in its turn. Raises SandboxLostError."""
        ours = self._socket
        if ours is None:
            raise SandboxLostError("The station has ended")
        if not self._sending.locked():
            try:
                socket.send_fds(ours, [packet], list(descriptors))
                return
            except OSError:  # full, or gone: what follows finds out
                pass
        async with self._sending:
            await _send(ours, packet, descriptors)

    # --- sandboxes and processes ----------------------------------------------------------------

    async def open_box(
        self, name: str, user: tuple[int, int], limits: Mapping[str, Any],
        on_lost: Callable[[str], object], *, checkpoint: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Give a sandbox a slot of its own. `on_lost` hears if it ends by itself; it begins with
        the files of a checkpoint, if one is named."""
        self._boxes[name] = on_lost
        fields: dict[str, Any] = {"box": name, "user": user, "limits": dict(limits)}
        if checkpoint is not None:
            fields["checkpoint"] = checkpoint
        try:
            return await self.ask("open", **fields)
        except BaseException:
            self._boxes.pop(name, None)
            if self.alive:
                with anyio.CancelScope(shield=True):
                    await self.ask("close", box=name)
            raise

    async def keep_box(self, name: str, note: str, **times: float | None) -> None:
        """Let a sandbox outlive us: for so long (`ttl`, `most`, `idle`), with a note for whoever
        recalls it."""
        with _preparing():
            file = _memory_file(note.encode())
        with file:
            await self.ask("keep", [file.fileno()], box=name, **times)

    async def recall_boxes(self) -> dict[str, tuple[dict[str, Any], str]]:
        """What a last owner left: name to facts (`left`: seconds that were promised) and note."""
        names = (await self.ask("list"))["boxes"]
        found: dict[str, tuple[dict[str, Any], str]] = {}
        for name in names:
            with (
                _memory_file() as file,
                contextlib.suppress(SandboxStartError),
            ):  # it ended just now
                facts = await self.ask("recall", [file.fileno()], box=name)
                found[name] = facts, os.pread(file.fileno(), _MOST_NOTE, 0).decode()
        return found

    async def compare(
        self, box: str, checkpoint: str, by: str | None
    ) -> tuple[list[str], list[tuple[str, str, str]]]:
        """What differs between the files of a checkpoint and of another one, or of the sandbox now:
        what was in the way of looking, and path, change and kind of each thing."""
        fields = {"checkpoint": checkpoint} | ({} if by is None else {"by": by})
        with _preparing():
            file = _memory_file()
        with file:
            told = await self.ask("diff", [file.fileno()], box=box, **fields)
            if "blockers" in told:
                return told["blockers"], []
            text = os.pread(file.fileno(), _MOST_NOTE, 0)
        return [], [(path, change, kind) for path, change, kind in json.loads(text)]

    def adopt_box(self, name: str, on_lost: Callable[[str], object]) -> None:
        """Take over a sandbox that a last owner left. `on_lost` hears if it ends by itself."""
        self._boxes[name] = on_lost

    async def freeze_box(self, name: str, frozen: bool) -> None:
        """Have all that is in a sandbox stand still, or go on; returns when it does.

        Raises:
            TimeoutError: something of it went on for too long. It is asked to stand still all the
                same.
        """
        with anyio.fail_after(_FREEZE_SECONDS):
            while not (await self.ask("freeze", box=name, frozen=frozen))["done"]:  # noqa: ASYNC110 - the kernel tells nobody
                await anyio.sleep(_FREEZE_PAUSE)

    async def close_box(self, name: str) -> None:
        """End a sandbox with everything in it; returns when it is gone."""
        self._boxes.pop(name, None)
        if self.alive:
            try:
                await self.ask("close", box=name)
            except SandboxLostError:
                if self.alive:
                    raise  # with its station it would be gone, too

    async def spawn(
        self, box: str, kind: str, document: Mapping[str, Any], fields: Mapping[str, Any],
        *, stdin: bool, terminal: HostTerminal | None = None, behind: bool = False,
    ) -> StationProcess:  # fmt: skip
        """Start a process: `document` is for the process itself, `fields` for the station.

        A terminal is taken over; `behind`: not as its standard streams.
        """
        try:
            process, channel = await self._start(
                box, kind, document, fields, stdin=stdin, terminal=terminal, behind=behind
            )
        except BaseException:
            if terminal is not None:
                await terminal.aclose()
            raise
        channel.close()
        return process

    async def open_terminal(
        self, box: str, user: tuple[int, int], size: tuple[int, int]
    ) -> HostTerminal:
        """A new terminal of a sandbox, of so many rows and columns.

        Raises:
            BlockingIOError: what runs in the sandbox leaves no terminal.
        """
        with _preparing():
            ours, theirs = socket.socketpair()
        ours.setblocking(False)  # what it is to bring is there when the answer is
        with ours:
            with theirs:
                answer = await self.ask("terminal", [theirs.fileno()], box=box, user=user)
            if "refused" in answer:
                raise BlockingIOError(errno.EAGAIN, "The sandbox has no terminal left to give")
            terminal = HostTerminal(*socket.recv_fds(ours, 1, 2)[1])
        terminal.set_size(*size)
        return terminal

    async def give(self, operation: str, **fields: Any) -> tuple[int, int] | dict[str, Any]:
        """A layer that the station makes (`copy`, `layer`) and the user namespace whose ids it has,
        as descriptors, the caller's; or what the station says instead."""
        with _preparing():
            ours, theirs = socket.socketpair()
        ours.setblocking(False)  # what it is to bring is there when the answer is
        with ours:
            with theirs:
                answer = await self.ask(operation, [theirs.fileno()], **fields)
            if answer:
                return answer
            layer, users = socket.recv_fds(ours, 1, 2)[1]
            return layer, users

    @staticmethod
    def run_like(fields: Mapping[str, Any], limits: Mapping[str, Any]) -> bytes:
        """What runs have in common whose processes have these fields for the station, and whose
        sandboxes these limits: the shape is `_shapes.RunRequest`."""
        return json.dumps({"kind": "python", "limits": limits, **fields}).encode()

    async def run(
        self, document: Mapping[str, Any], like: bytes, stdin: bytes | None
    ) -> StationProcess:
        """Start a process in a fresh sandbox of its own, which ends with it.

        Returns when the request is on its way: what becomes of it, the process's `wait` says.
        `like` is from `run_like`; `stdin` is all of its input and must fit into a pipe. Raises
        SandboxLostError.
        """
        with _preparing():
            process = self._new_process(stdin=stdin is not None)
        number = process.number
        self._boxes[f"run-{number}"] = process.lost
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        answer.add_done_callback(process.not_started)
        try:
            own = {"q": number, "op": "run", "box": f"run-{number}", "process": number}
            with _preparing(), _first_message(document, process.inner_ends) as (message, inner):
                if stdin is not None and process.input is not None:
                    os.write(process.input.fileno(), stdin)
                    process.input.close()
                packet = b"\n".join((json.dumps(own).encode(), like, message))
                await self._deliver(packet, inner)
        except BaseException:
            await self._give_up(process)
            raise
        finally:
            process.close_inner_ends()
        return process

    def forget(self, process: StationProcess) -> None:
        """A run is over, whatever became of it."""
        self._processes.pop(process.number, None)
        self._boxes.pop(f"run-{process.number}", None)
        self._answers.pop(process.number, None)

    async def spawn_guest(
        self, box: str, document: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> tuple[StationProcess, socket.socket]:
        """Start a guest; returns its process and the connected end of its channel.

        Raises:
            BlockingIOError: what runs in the sandbox leaves no process for it.
            ConnectionResetError: what runs in the sandbox has killed it.
        """
        process, channel = await self._start(box, "guest", document, fields, stdin=False)
        if process.is_refused:
            channel.close()
            await process.abandon()
            text = "The sandbox is full of processes: none is left for its file server"
            raise BlockingIOError(errno.EAGAIN, text)
        if process.is_killed:
            channel.close()
            await process.abandon()
            raise ConnectionResetError("A program in the sandbox has killed its file server")
        return process, channel

    async def spawn_kernel(
        self, box: str, document: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> tuple[StationProcess, socket.socket]:
        """Start a kernel; returns its process and the connected end of its channel."""
        return await self._start(box, "kernel", document, fields, stdin=False)

    async def spawn_fork(
        self, box: str, checkpoint: str, fields: Mapping[str, Any]
    ) -> tuple[StationProcess, socket.socket]:
        """Start what a kernel was when a checkpoint was made; as `spawn_kernel`."""
        more = {**fields, "checkpoint": checkpoint}
        return await self._start(box, "kernel", None, more, stdin=False)

    async def _start(
        self, box: str, kind: str, document: Mapping[str, Any] | None, fields: Mapping[str, Any],
        *, stdin: bool, terminal: HostTerminal | None = None, behind: bool = False,
    ) -> tuple[StationProcess, socket.socket]:  # fmt: skip
        """A started process and our end of its channel, or nothing that is left of it.

        One without a document goes on from somewhere, and is given its streams alone.
        """
        with _preparing():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _preparing():
                process = self._new_process(stdin=stdin, terminal=terminal, behind=behind)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        try:
            with theirs:
                with _preparing():
                    if document is None:
                        socket.send_fds(ours, [b"F"], list(process.inner_ends))
                    else:
                        send_request(ours, document, process.inner_ends)
                answer = await self.ask(
                    "spawn", [theirs.fileno()], box=box, kind=kind, process=process.number, **fields
                )
            process.pid = answer["pid"]
            if "blockers" in answer:
                raise ForkRefusedError(blockers=answer["blockers"])
            if "refused" in answer:
                self._processes.pop(process.number, None)
                process.refused(answer["refused"])
            elif "killed" in answer:
                self._processes.pop(process.number, None)
                process.killed(answer["killed"], answer["cause"])
        except BaseException:
            ours.close()
            await self._give_up(process)
            raise
        finally:
            process.close_inner_ends()
        return process, ours

    def _new_process(
        self, *, stdin: bool, terminal: HostTerminal | None = None, behind: bool = False
    ) -> StationProcess:
        """A process that is to be. OSError leaves nothing open."""
        number = next(self._numbers)
        if terminal is None or behind:
            process = StationProcess(self, number, stdin=stdin, terminal=terminal)
        else:
            process = TerminalProcess(self, number, terminal)
        self._processes[process.number] = process
        return process

    async def _give_up(self, process: StationProcess) -> None:
        """Leave nothing of a spawn that failed or was cancelled: the station may be doing it."""
        self._processes.pop(process.number, None)
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(SandboxLostError, SandboxStartError):  # gone with its sandbox
                await process.kill()
            await process.abandon()


def _clean_up_after_a_dead_launcher(instance: str) -> None:
    """End what the launcher would have waited for, and remove what it would have removed.

    The station may be there still, killed but not ended, or stopped: it holds the lock that keeps
    everybody else's hands off its groups.
    """
    from ms_enclave.spawner import cgroups  # needs Linux, and hardly ever

    found = cgroups.own_hierarchies()
    deadline = time.monotonic() + _CLEAN_UP_SECONDS
    while not cgroups.end_left(found, f"{cgroups.PREFIX}{instance}"):
        if time.monotonic() > deadline:
            return
        time.sleep(0.005)


async def _send(ours: socket.socket, packet: bytes, descriptors: Sequence[int]) -> None:
    """Send a packet when there is room for it. One at a time: only one may wait for the room."""
    while ours.fileno() >= 0:  # it may be closed while others go first
        try:
            socket.send_fds(ours, [packet], list(descriptors))
            return
        except BlockingIOError:
            with contextlib.suppress(anyio.ClosedResourceError):
                await anyio.wait_writable(ours)
        except (BrokenPipeError, ConnectionResetError):
            break
        except OSError as error:
            raise _unprepared(error) from error
    raise SandboxLostError("The station has ended")


@contextlib.contextmanager
def _preparing() -> Generator[None, None, None]:
    """What this process itself cannot have is a start that failed, not the program's doing."""
    try:
        yield
    except OSError as error:
        raise _unprepared(error) from error


def _unprepared(error: OSError) -> SandboxStartError:
    remedy = None
    if error.errno == errno.EMFILE:
        remedy = "let this process have more files open at once (`ulimit -n`), or run less at once"
    return SandboxStartError(f"This process could not prepare it: {error.strerror}", remedy=remedy)


def _memory_file(content: bytes = b"") -> IO[bytes]:
    file = os.fdopen(os.memfd_create("note"), "r+b", buffering=0)
    file.write(content)
    return file


def _packet(request: Mapping[str, Any]) -> bytes:
    """A request as it is sent. Raises SandboxStartError for one that the station cannot take."""
    packet = json.dumps(request).encode()
    if len(packet) > _PACKET:
        raise SandboxStartError(f"A request of {len(packet)} bytes: {_PACKET} are the most")
    return packet


def send_request(
    connected: socket.socket, document: Mapping[str, Any], descriptors: Sequence[int]
) -> None:
    """Put a process's first message into its channel, where it waits for the process.

    A long request goes as a file in memory, so that its size does not matter.
    """
    with _first_message(document, descriptors) as (message, attached):
        socket.send_fds(connected, [message], attached)


@contextlib.contextmanager
def _first_message(
    document: Mapping[str, Any], descriptors: Sequence[int]
) -> Generator[tuple[bytes, list[int]], None, None]:
    """A process's first message, and what is attached to it."""
    content = json.dumps(document).encode()
    if len(content) <= _INLINE:
        yield b"\2" + content, list(descriptors)
        return
    with _memory_file(content) as request:
        yield b"\1", [request.fileno(), *descriptors]


def start_error(row: Mapping[str, Any]) -> SandboxStartError | IsolationUnavailableError:
    """The error for a start that failed at a step: what the machine forbids, or anything else."""
    text = f"The station could not start: {row['step']}: {row['text']}"
    if row["errno"] in (
        1,
        13,
        22,
        28,
        38,
        87,
        95,
    ):  # EPERM EACCES EINVAL ENOSPC ENOSYS EUSERS EOPNOTSUPP
        return IsolationUnavailableError(text, missing=[row["step"]])
    return SandboxStartError(text)


class StationProcess(Process):
    """A process in a sandbox of a station; its ends are pipes that the owner reads itself."""

    def __init__(
        self, station: StationClient, number: int, *, stdin: bool,
        terminal: HostTerminal | None = None,
    ) -> None:  # fmt: skip
        self._begin(station, number)
        opened: list[int] = []
        try:
            for _ in range(3 if stdin else 2):
                opened += os.pipe()
            if not stdin:
                opened.append(open_null())
            out_read, out_write, err_read, err_write, in_read = opened[:5]
            self.stdout = out = PipeReader(out_read)
            self.stderr = err = PipeReader(err_read)
            self.stdin = self.input = PipeWriter(opened[5]) if stdin else None
            self.outputs = (out, err)
            self.inner_ends = (in_read, out_write, err_write)
            for descriptor in (in_read, out_write, err_write)[0 if stdin else 1 :]:
                os.fchmod(descriptor, 0o666)  # so that /dev/stdout can be opened in there
            if terminal is not None:
                # Its other end stays open here: one that nobody has at the moment cannot be read.
                self.own_terminal = self.terminal = terminal
                self.inner_ends = (*self.inner_ends, os.dup(terminal.other))
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise

    def _begin(self, station: StationClient, number: int) -> None:
        self.pid = 0
        self.number = number
        self.is_refused = self.is_killed = False
        self.own_terminal: HostTerminal | None = None
        self._station = station
        self._exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def close_inner_ends(self) -> None:
        """Once the process has them they must not be held here, or no pipe would ever end."""
        for descriptor in self.inner_ends:
            os.close(descriptor)
        self.inner_ends = ()

    async def wait(self) -> Exit:
        return await asyncio.shield(self._exit)

    def not_started(self, answer: asyncio.Future[dict[str, Any]]) -> None:
        """The station answers a run only where it could not start it."""
        if self._exit.done() or answer.cancelled():
            return
        if answer.exception() is not None:
            self.fail(SandboxLostError("The station has ended"))
            return
        row = answer.result()
        if "refused" in row.get("ok", {}):
            self.refused(row["ok"]["refused"])
        elif "ok" in row:
            self.killed(row["ok"]["killed"], row["ok"]["cause"])
        elif "lost" in row:
            self.fail(SandboxLostError(row["lost"]))
        else:
            self.fail(SandboxStartError(f"The sandbox could not do it: {row['error']['text']}"))

    def fail(self, error: Exception) -> None:
        """There is no end to be heard of: `wait` raises."""
        if not self._exit.done():
            self._exit.set_exception(error)
            self._exit.exception()

    def release(self) -> None:
        """Close what a run had, when nobody waits for anything of it."""
        for stream in (*self.outputs, *([self.input] if self.input else [])):
            stream.close()
        self._station.forget(self)

    async def send_signal(self, signum: int) -> None:
        if not self._exit.done():
            await self._station.ask("signal", process=self.number, signal=signum)

    async def kill(self) -> None:
        if self._station.alive:
            await self._station.ask("kill", process=self.number)

    async def aclose(self) -> None:
        try:
            if not self._exit.done():
                await self.kill()
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """Close the streams of a process that is gone, or never came to be."""
        for stream in (self.stdin, self.stdout, self.stderr, self.own_terminal):
            if stream is not None:
                await stream.aclose()
        if not self._exit.done():
            self._exit.cancel()
        elif not self._exit.cancelled():
            self._exit.exception()  # retrieved, so that nobody warns of it

    def lost(self, text: str) -> None:
        self.fail(SandboxLostError(text))

    def refused(self, cause: str) -> None:
        """What already runs in the sandbox leaves it no room: the program's doing, not ours."""
        self.is_refused = True
        self._exit.set_result(Exit(exit_code=126, cause=cause))

    def killed(self, number: int, cause: str | None) -> None:
        """Another program of the sandbox has killed or stopped it before it could begin."""
        self.is_killed = True
        self._exit.set_result(Exit(exit_code=128 + number, signal=number, cause=cause))

    def ended(self, row: Mapping[str, Any]) -> None:
        """The station has reaped it."""
        if self._exit.done():
            return
        number = os.waitstatus_to_exitcode(row["status"])
        self._exit.set_result(
            Exit(
                exit_code=number if number >= 0 else 128 - number,
                signal=None if number >= 0 else -number,
                cause=row["cause"],
                cpu_user=row["cpu_user"],
                cpu_system=row["cpu_system"],
                peak_memory=row["peak_memory"],
                processes=row["processes"],
                source=row["source"],
            )
        )


class TerminalProcess(StationProcess):
    """A process whose standard streams are a terminal."""

    def __init__(self, station: StationClient, number: int, terminal: HostTerminal) -> None:
        self._begin(station, number)
        self.own_terminal = self.terminal = terminal
        nothing = NothingReader()
        self.stdin = self.input = terminal.input
        self.stdout, self.stderr = terminal.reader, nothing
        self.outputs = (terminal.reader, nothing)
        self.inner_ends = tuple(os.dup(terminal.other) for _ in range(3))
        terminal.close_other()
