"""The host's end of a guest: files and programs of one sandbox, over one stream.

What is inside is hostile. Nothing it says becomes a path, an import or a class here: errors go
through a closed table, texts are cut and quoted, figures are checked.
"""

from __future__ import annotations

import asyncio
import math
import os
from typing import TYPE_CHECKING, Any, cast

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream
from typing_extensions import override

from ms_enclave.channel._calls import (
    INT64,
    clean,
    failures,
    joined,
    number_in,
    relative,
    seconds_in,
)
from ms_enclave.channel._connection import Call, CallFailed, Connection, ProtocolError
from ms_enclave.channel.ports import GuestPorts
from ms_enclave.channel.process import Exit, KernelProcess, Process, SpawnRequest, Terminal
from ms_enclave.channel.watch import GuestWatch
from ms_enclave.errors import ConfigError, SandboxLostError
from ms_enclave.guest import protocol
from ms_enclave.model import FileInfo, SearchMatch

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine

    from anyio.abc import ByteStream

    from ms_enclave.channel.process import KernelRequest
    from ms_enclave.model.limits import ResolvedLimits

__all__ = ["GuestConnection", "ProtocolError"]

CONNECT_SECONDS = 10.0

_KINDS = ("file", "directory", "symlink", "other")


class GuestConnection(GuestPorts, GuestWatch):
    """A connected guest. It takes the stream over; `aclose` ends both.

    Methods raise what the same call would inside: `FileNotFoundError`, `IsADirectoryError`,
    `NotADirectoryError`, `PermissionError`, `FileExistsError` or another `OSError`; `ConfigError`
    for what no guest can do; `SandboxLostError` when the guest ends or the connection does, and
    its subclass `ProtocolError` when it sends what it must not. A guest may take its time or be
    silent for ever: every call can be cancelled, also by a time-out, and is then given up on both
    sides. Calls run at the same time; none holds up another.

    Args:
        stream: connected to `guest.server.serve`.
        working_dir: where relative paths start; where the guest was started, if None.
        wake: called from time to time while a guest that is asked for something says nothing: a
            program may have stopped it.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        working_dir: str | None = None,
        wake: Callable[[], Coroutine[Any, Any, object]] | None = None,
    ) -> None:
        super().__init__(Connection(stream, wake))
        self._working_dir = working_dir

    async def connect(self, timeout: float = CONNECT_SECONDS) -> None:
        """Greet the guest, once.

        Args:
            timeout: seconds that it may take to answer.

        Raises:
            SandboxLostError: it does not answer in time, or not in our protocol.
        """
        hello = {"version": protocol.VERSION, "folder": self._working_dir}
        try:
            with anyio.move_on_after(timeout) as scope:
                greeting = await self._connection.start(hello)
                _check_version(greeting)
        except BaseException:
            await self.aclose()
            raise
        if scope.cancelled_caught:
            await self.aclose()
            raise SandboxLostError(f"The sandbox's guest did not answer within {timeout:g} s")

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended, for whatever reason."""
        return self._connection.is_lost

    def give_up(self, reason: str) -> None:
        """End all calls at once with SandboxLostError(reason): nobody is there to answer them."""
        self._connection.fail(SandboxLostError(reason))

    async def aclose(self) -> None:
        """End the connection. The guest kills what it started and ends. May be called twice."""
        await self._connection.aclose()

    # --- files ---

    async def read(
        self, path: str, *, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a file as they come."""
        with self._failures(path):
            call = await self._open("read", path=path, offset=offset, limit=limit)
            try:
                while data := await call.receive():
                    yield data
                await call.result()
            finally:
                call.close()

    async def write(
        self,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = True,
    ) -> int:
        """Write a file; returns the bytes written. Cancelled, it leaves what was written so far."""
        flags = {"mode": mode, "append": append, "exclusive": exclusive, "parents": parents}
        result = await self._upload("write", data, path, path=path, **flags)
        with self._failures(path):
            return number_in(result, "written")

    async def list(
        self, path: str, depth: int = 1, limit: int = 100_000
    ) -> builtins.list[FileInfo]:
        """What is in a folder, `depth` levels down, sorted by path.

        Where there are more entries than the limit, which ones come is left open. Bytes of a name
        that are no UTF-8 show as U+FFFD.
        """
        entries: list[FileInfo] = []
        with self._failures(path):
            async for entry in self._pages("list", path, limit, depth=depth):
                name, described = _pair(entry)
                entries.append(_file_info(joined(path, relative(name)), described))
        return sorted(entries, key=lambda entry: entry.path)

    async def stat(self, path: str, follow: bool = True) -> FileInfo:
        """What a path is."""
        described = await self._ask("stat", path, path=path, follow=follow)
        with self._failures(path):
            return _file_info(path, described)

    async def exists(self, path: str) -> bool:
        """Whether there is anything at a path, a link that leads nowhere included."""
        return bool((await self._ask("exists", path, path=path)).get("exists"))

    async def mkdir(self, path: str, parents: bool = True) -> None:
        """Make a folder."""
        await self._ask("mkdir", path, path=path, parents=parents)

    async def move(self, source: str, target: str) -> None:
        """Rename, also to another file system."""
        await self._ask("move", source, source=source, target=target)

    async def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, a link or a folder."""
        await self._ask("remove", path, path=path, recursive=recursive)

    async def search(
        self, pattern: str, path: str, limit: int = 1000
    ) -> builtins.list[SearchMatch]:
        """Lines that match a regular expression, each cut at 1,000 characters.

        The guest's own `re` decides what a pattern means, and takes as long as it takes.
        """
        matches: list[SearchMatch] = []
        with self._failures(path):
            pages = self._pages("search", path, limit, pattern=pattern)
            matches.extend([_search_match(path, entry) async for entry in pages])
        return matches

    async def replace(self, path: str, old: str, new: str, count: int | None = None) -> int:
        """Replace a string in a file of at most 64 MiB; returns how often."""
        result = await self._ask("replace", path, path=path, old=old, new=new, count=count)
        with self._failures(path):
            return number_in(result, "count")

    async def put_archive(self, target_dir: str, chunks: AsyncIterable[bytes]) -> None:
        """Unpack an uncompressed tar below a folder, which is made if needed.

        Raises:
            ConfigError: it is none, or a member would land outside. What came before is there.
        """
        await self._upload("put_archive", chunks, target_dir, path=target_dir)

    async def get_archive(self, path: str) -> AsyncGenerator[bytes, None]:
        """A folder's content as tar, named from the folder on; or one file."""
        with self._failures(path):
            call = await self._open("get_archive", path=path)
            try:
                while data := await call.receive():
                    yield data
                await call.result()
            finally:
                call.close()

    async def keep(self, left: float | None, idle: float | None) -> None:
        """Have the end of this channel not be the end of the box: another one may come.

        Args:
            left: seconds until it ends all the same; None: never.
            idle: seconds that it waits for the next channel; None: as long as it lives.
        """
        await self._ask("keep", "", left=_thousandths(left), idle=_thousandths(idle))

    # --- programs ---

    async def spawn(self, request: SpawnRequest) -> Process:
        """Start a program. Cancelled, it is killed.

        Of the limits the guest sets those of processor time, file size and open files; the others
        are the box's.
        """
        body = {
            "argv": list(request.argv or request.args),
            "code": request.code,
            "cwd": request.cwd,
            "env": dict(request.env),
            "user": request.user,
            "stdin": request.stdin,
            "pty": request.pty,
            "behind": request.pty_behind,
            "brief": request.brief,
            "limits": _rlimits(request.limits),
        }
        _refuse_nul(request)
        return (await self._start(request, body))[0]

    async def start_kernel(self, request: KernelRequest) -> KernelProcess:
        """Start a kernel: a fork of the guest itself. Cancelled, it is killed."""
        body: dict[str, Any] = {
            "argv": [],
            "kernel": {
                "preload": list(request.preload),
                "seed": request.seed,
                "ipython": request.ipython,
            },
            "cwd": request.cwd,
            "env": dict(request.env),
            "stdin": True,
            "limits": _rlimits(request.limits),
        }
        program = SpawnRequest(argv=("kernel",), cwd=request.cwd, stdin=True)
        return _GuestKernel(*await self._start(program, body))

    async def _start(
        self, request: SpawnRequest, body: dict[str, Any]
    ) -> tuple[_GuestProcess, Call]:
        with self._failures(request.cwd):
            call = await self._open("spawn", **body)
            try:
                process = _GuestProcess(self._connection, call, request)
                await process.started()
            except BaseException:
                call.close()
                raise
            return process, call


def _thousandths(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


# --- programs ---


class _GuestProcess(Process):
    """A program that the guest started."""

    def __init__(self, connection: Connection, call: Call, request: SpawnRequest) -> None:
        self.pid = 0
        has_input = request.stdin or (request.pty is not None and not request.pty_behind)
        self.stdin = _Input(self, call) if has_input else None
        self.stdout = _Output(call, protocol.STDOUT)
        self.stderr = _Output(call, protocol.STDERR)
        self.stdin_closed = False
        self._connection = connection
        self._call = call
        self._exit: Exit | None = None
        self._started = False
        if request.pty is not None:
            channel = protocol.TERMINAL if request.pty_behind else protocol.STDOUT
            self.terminal = _GuestTerminal(_Output(call, channel), self.command)

    async def started(self) -> None:
        """Wait until it runs.

        Raises:
            CallFailed: it could not even be tried.
        """
        while not self._started:
            self.take_events()
            if self._started:
                return
            if self._call.ended:
                await self._call.result()
                raise protocol.FrameError("no program")
            self._connection.check()
            await self._call.news.wait()

    def take_events(self) -> None:
        """Take in what the guest has said about it."""
        while self._call.events:
            event = self._call.events.popleft()
            with failures(self._connection, ""):
                self._take_event(event)

    def _take_event(self, event: dict[str, Any]) -> None:
        if "pid" in event:
            self.pid = number_in(event, "pid")
            self._started = True
        elif "exit" in event:
            self._exit = _exit(event)
        elif "stdin" in event:
            self.stdin_closed = True
        else:
            raise protocol.FrameError("an event that is none")

    @override
    async def wait(self) -> Exit:
        while True:
            self.take_events()
            if self._exit is not None:
                return self._exit
            self._connection.check()
            if self._call.ended:
                raise SandboxLostError("The sandbox's guest did not say how a program ended")
            if self._call.closed:
                raise anyio.ClosedResourceError
            await self._call.news.wait()

    @override
    async def ends_soon(self, seconds: float) -> bool:
        return await self._call.ends_soon(seconds)

    @override
    async def send_signal(self, signum: int) -> None:
        await self.command("signal", signal=int(signum))

    @override
    async def kill(self) -> None:
        await self.command("kill")

    async def command(self, operation: str, **body: Any) -> None:
        """Have something done to it; nothing where it has ended."""
        if self._call.ended or self._call.closed:
            return  # nothing of it is left, or it is nobody's any more
        body = {"op": operation, "call": self._call.number, **body}
        call = await self._connection.open(body, urgent=True)
        try:
            with failures(self._connection, ""):
                await call.result()
        finally:
            call.close()

    @override
    async def abandon(self) -> None:
        self._call.close()

    @override
    async def aclose(self) -> None:
        if self._call.closed:
            return
        try:
            self.take_events()
            if self._exit is None and not self._call.ended and not self._connection.is_lost:
                await self.kill()
        except SandboxLostError:
            pass  # then nothing of it is left to close
        finally:
            self._call.close()


class _GuestTerminal(Terminal):
    def __init__(self, output: _Output, command: Callable[..., Awaitable[None]]) -> None:
        self.output = output
        self._command = command

    @override
    async def resize(self, rows: int, cols: int) -> None:
        await self._command("resize", rows=rows, cols=cols)

    @override
    async def interrupt(self) -> None:
        await self._command("interrupt")


class _GuestKernel(KernelProcess):
    """A kernel that the guest started; three tasks of its own take what it says."""

    def __init__(self, process: _GuestProcess, call: Call) -> None:
        self.process = process
        self._call = call
        self._take: Callable[[str, bytes], object] = lambda _source, _data: None
        self._tasks: list[asyncio.Task[None]] = []

    @override
    def listen(self, take: Callable[[str, bytes], object]) -> None:
        self._take = take
        self._tasks = [
            asyncio.ensure_future(self._pump(name, channel))
            for name, channel in _KERNEL_CHANNELS.items()
        ]

    async def _pump(self, name: str, channel: int) -> None:
        try:
            while data := await self._call.receive(channel, _KERNEL_CHUNK):
                self._take(name, data)
        except (CallFailed, SandboxLostError, anyio.ClosedResourceError):
            pass  # whoever waits for the process hears of it
        self._take(name, b"")

    @override
    def drain(self, *, channel: bool = False) -> None:
        for name, number in _KERNEL_CHANNELS.items():
            while (channel or name != "channel") and (data := self._call.take_now(number)):
                self._take(name, data)

    @override
    async def send(self, data: bytes) -> None:
        await self._call.send(data)

    @override
    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.process.aclose()


_KERNEL_CHANNELS = {"channel": 0, "stdout": protocol.STDOUT, "stderr": protocol.STDERR}
_KERNEL_CHUNK = 1 << 16


class _Output(ByteReceiveStream):
    def __init__(self, call: Call, channel: int) -> None:
        self._call = call
        self._channel = channel

    @override
    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._call.receive(self._channel, max_bytes)
        except CallFailed:
            raise anyio.EndOfStream from None
        if not data:
            raise anyio.EndOfStream
        return data

    @override
    async def aclose(self) -> None:
        """The process closes its streams itself; what is not read waits for that."""


class _Input(ByteSendStream):
    def __init__(self, process: _GuestProcess, call: Call) -> None:
        self._process = process
        self._call = call
        self._closed = False

    @override
    async def send(self, item: bytes) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        start = 0
        while start < len(item):
            if self._is_unread():
                raise anyio.BrokenResourceError
            start += await self._call.send_some(item, start, self._is_unread)

    def _is_unread(self) -> bool:
        self._process.take_events()
        return self._process.stdin_closed or self._call.ended or self._call.closed

    @override
    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._call.send_end(protocol.STDIN)


def _exit(event: dict[str, Any]) -> Exit:
    code, number = number_in(event, "exit"), event.get("signal")
    peak = event.get("peak_memory")
    if code > 255 or not (number is None or (isinstance(number, int) and 0 < number < 128)):
        raise protocol.FrameError("an exit status that is none")
    return Exit(
        exit_code=code,
        signal=number,
        cause=_cause(event.get("hit")),
        cpu_user=seconds_in(event, "cpu_user"),
        cpu_system=seconds_in(event, "cpu_system"),
        peak_memory=None if peak is None else number_in(event, "peak_memory"),
        source="rusage",
    )


def _cause(hit: object) -> str | None:
    """The limit of its container that a program ran into, where its guest can see that."""
    for name, cause in _CAUSES.items():
        if isinstance(hit, list) and name in hit:
            return cause
    return None


_CAUSES = {"oom": "oom", "processes": "process_limit"}


def _rlimits(limits: ResolvedLimits | None) -> dict[str, int]:
    if limits is None:
        return {}
    found = {"file_size": limits.file_size, "nofile": limits.nofile}
    if limits.cpu_time is not None:
        found["cpu"] = max(1, math.ceil(limits.cpu_time))
    return found


def _refuse_nul(request: SpawnRequest) -> None:
    words = [*(request.argv or ()), *request.args, request.cwd, request.code or ""]
    words += [*request.env, *request.env.values()]
    if any("\0" in word for word in words):
        raise ConfigError("A command, its folder and its environment cannot have NUL bytes")
    if any("=" in name or not name for name in request.env):
        raise ConfigError("The name of an environment variable cannot be empty or have a =")


# --- what a guest says ---


def _check_version(greeting: dict[str, Any]) -> None:
    if greeting.get("version") != protocol.VERSION:
        raise ProtocolError("The sandbox's guest speaks another version of the protocol")


def _pair(entry: list[Any]) -> tuple[Any, dict[str, Any]]:
    if len(entry) != 2 or not isinstance(entry[1], dict):
        raise protocol.FrameError("a list of files that is none")
    return entry[0], cast("dict[str, Any]", entry[1])


def _search_match(path: str, entry: list[Any]) -> SearchMatch:
    if len(entry) != 3 or not isinstance(entry[1], int) or not isinstance(entry[2], str):
        raise protocol.FrameError("a search result that is none")
    found = joined(path, relative(entry[0])) if entry[0] else clean(path)
    line = min(max(entry[1], 1), INT64 - 1)
    return SearchMatch.model_construct(path=found, line=line, text=clean(entry[2]))


def _file_info(path: str, body: dict[str, Any]) -> FileInfo:
    kind, modified = body.get("type"), body.get("modified")
    if kind not in _KINDS or not isinstance(modified, (int, float)) or abs(modified) > 1e15:
        raise protocol.FrameError("a file as none can be")
    # Checked here already, and there may be a hundred thousand of them.
    return FileInfo.model_construct(
        path=clean(path),
        name=clean(os.path.basename(path.rstrip("/")) or path),
        type=kind,
        size=number_in(body, "size"),
        mode=number_in(body, "mode") & 0o7777,
        modified=float(modified),
    )
