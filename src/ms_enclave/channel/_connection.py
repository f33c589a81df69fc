"""Frames over a byte stream: calls to a guest that is not trusted.

Every frame is checked before it means anything. What the other end sends is held only as far as it
was asked for, and a frame that breaks the rules ends the connection with `ProtocolError`: from then
on every call fails, because nothing that comes has a meaning any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import SocketAttribute
from typing_extensions import override

from ms_enclave.errors import SandboxLostError
from ms_enclave.guest import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from anyio.abc import ByteStream

__all__ = ["Call", "CallFailed", "Connection", "ProtocolError"]

MAX_CALLS = 500
"""Calls at a time; further ones wait. The guest has room for more, so that `kill` always fits."""

MAX_LASTING = 400
"""Calls at a time that last as long as somebody wants, as a connection to a port. They take no room
from the others; further ones are refused, because nobody knows how long they would wait."""

MAX_WIDE = 32
"""Calls at a time whose windows are wide; a guest can make us hold as much. Further ones are as the
others."""

_CHUNK = protocol.MAX_PAYLOAD
_RECEIVE = 1 << 18
_OUT_HIGH = 1 << 18
"""Bytes that may wait to be sent before whoever sends data has to wait."""

_END_SECONDS = 1.0

_PATIENCE = 1.0
"""Seconds of silence, while something is asked of a guest, after which it is woken."""

_LASTING_PATIENCE = 10.0
"""The same where all that is asked of it may well be silent for long."""

_EVENTS = 16
"""Events that a call may have waiting; programs have three in all."""


class ProtocolError(SandboxLostError):
    """What is inside broke the protocol: the sandbox is not to be talked to any more."""


class _News:
    """Wakes everybody who waits for something to change."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    async def wait(self) -> None:
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

    def tell(self) -> None:
        if self._event is not None:
            self._event.set()
            self._event = None


class _Inbox:
    """What has come on one channel of a call and was not taken yet; at most a window."""

    def __init__(self, window: int) -> None:
        self.chunks: deque[bytes] = deque()
        self.window = protocol.ReceiveWindow(window)

    def take(self, limit: int) -> bytes:
        """The next bytes, as many as there are up to a limit: each piece costs its taker a hop."""
        if len(self.chunks) == 1 and len(self.chunks[0]) <= limit:
            return self.chunks.popleft()
        parts: list[bytes] = []
        while self.chunks and limit > 0:
            chunk = self.chunks.popleft()
            if len(chunk) > limit:
                self.chunks.appendleft(chunk[limit:])
                chunk = chunk[:limit]
            limit -= len(chunk)
            parts.append(chunk)
        return b"".join(parts)


class Call:
    """One call under way. Ends when the guest says so, or with the connection.

    Not made directly: `Connection.open`. `close` gives up a call that has not ended; nothing is
    waited for, and what still comes for it is dropped.
    """

    def __init__(self, connection: Connection, number: int, window: int) -> None:
        self.number = number
        self.ended = False
        self.closed = False
        self.news = _News()
        self.events: deque[dict[str, Any]] = deque()
        self._connection = connection
        self._result: dict[str, Any] = {}
        self._error: dict[str, Any] | None = None
        channels = range(protocol.MAX_CHANNEL + 1)
        self._send_windows = [protocol.SendWindow(window) for _ in channels]
        self._inboxes = [_Inbox(window) for _ in channels]

    # --- for whoever called ---

    async def result(self) -> dict[str, Any]:
        """Wait for the end of the call; give its result.

        Raises:
            CallFailed: the guest says that it failed.
            SandboxLostError: the connection ended first.
        """
        while not self.ended:
            self._connection.check()
            await self.news.wait()
        return self._outcome()

    async def ends_soon(self, seconds: float) -> bool:
        """Whether it has ended within a time, and whatever came for it is here. Answers earlier
        where so much has come that it should be received first.

        Raises:
            SandboxLostError: the connection ended.
        """
        with anyio.move_on_after(seconds):
            while not self.is_over:
                self._connection.check()
                if any(inbox.window.is_half_full for inbox in self._inboxes):
                    return False
                await self.news.wait()
        return self.ended

    def _outcome(self) -> dict[str, Any]:
        if self._error is not None:
            raise CallFailed(self._error)
        return self._result

    async def receive(self, channel: int = 0, limit: int = protocol.WIDE_WINDOW) -> bytes:
        """The next bytes on a channel, b"" when no more will come. Cancelled, it loses nothing.

        Raises:
            CallFailed, SandboxLostError: as `result`.
        """
        if not await self._has_come(channel):
            return b""
        return self._consumed(self._inboxes[channel].take(limit), channel)

    def take_now(self, channel: int, limit: int = protocol.WIDE_WINDOW) -> bytes:
        """What has come on a channel already, b"" for nothing."""
        inbox = self._inboxes[channel]
        return self._consumed(inbox.take(limit), channel) if inbox.chunks else b""

    async def receive_page(self) -> bytes:
        """The next whole frame of data, b"" when no more will come."""
        if not await self._has_come(0):
            return b""
        return self._consumed(self._inboxes[0].chunks.popleft(), 0)

    async def _has_come(self, channel: int) -> bool:
        """Wait for data on a channel; False when no more will come."""
        inbox = self._inboxes[channel]
        while not inbox.chunks:
            if self.ended:
                self._outcome()
            if self.ended or inbox.window.ended:
                return False
            if self.closed:
                raise anyio.ClosedResourceError
            self._connection.check()
            await self.news.wait()
        return True

    def _consumed(self, data: bytes, channel: int) -> bytes:
        granted = self._inboxes[channel].window.consume(len(data))
        if granted and not self.ended and not self.closed:
            self._connection.grant(self.number, channel, granted)
        return data

    async def send(self, data: bytes, channel: int = 0) -> bool:
        """Send bytes as the guest takes them. False: the call has ended, nobody wants them.

        Raises:
            SandboxLostError: the connection ended.
        """
        start = 0
        while start < len(data) and not self.is_over:
            start += await self.send_some(data, start, lambda: self.is_over, channel)
        return not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether sending has no sense any more."""
        return self.ended or self.closed

    async def send_some(
        self, data: bytes, start: int, unwanted: Callable[[], bool], channel: int = 0
    ) -> int:
        """Send the next bytes from `start` on as soon as there is room; gives how many.

        0 where, while waiting, they have become unwanted.
        """
        window = self._send_windows[channel]
        while not unwanted():
            self._connection.check()
            if not window.credit:
                await self.news.wait()
            elif self._connection.is_full:
                self._connection.wait_for_room(self)
                await self.news.wait()
            else:
                chunk = data[start : start + min(window.credit, _CHUNK)]
                window.take(len(chunk))
                self._connection.put(protocol.encode(protocol.DATA, self.number, chunk, channel))
                return len(chunk)
        return 0

    def send_end(self, channel: int = 0) -> None:
        """No more bytes will be sent on a channel."""
        if not self.ended and not self.closed:
            self._connection.put(protocol.encode(protocol.END, self.number, b"", channel))

    def close(self) -> None:
        """Have the guest end the call, where it has not yet."""
        if not self.closed:
            self.closed = True
            self._drop_data()
            self._connection.give_up(self)
            self.news.tell()

    # --- for the connection ---

    def on_frame(self, kind: int, channel: int, payload: bytes) -> None:
        """Take a frame of the guest's; FrameError if it has no place here."""
        if kind == protocol.DATA:
            self._on_data(channel, payload)
        elif kind == protocol.END:
            self._inboxes[channel].window.end()
        elif kind == protocol.CREDIT:
            self._send_windows[channel].grant(protocol.load_credit(payload))
        else:
            self._on_body(kind, protocol.load_body(payload))
        self.news.tell()

    def _on_data(self, channel: int, payload: bytes) -> None:
        inbox = self._inboxes[channel]
        inbox.window.receive(len(payload))
        if payload and not self.closed:
            inbox.chunks.append(payload)

    def _on_body(self, kind: int, body: dict[str, Any]) -> None:
        if kind == protocol.EVENT:
            if len(self.events) >= _EVENTS:
                raise protocol.FrameError("too many events")
            self.events.append(body)
            return
        self.ended = True
        if kind == protocol.ERROR:
            self._error = body
        else:
            self._result = body

    def _drop_data(self) -> None:
        for inbox in self._inboxes:
            inbox.chunks.clear()


class CallFailed(Exception):
    """The guest says that a call failed; in its own words, which are not to be trusted."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__()
        self.body = body


class Connection:
    """The frames of one guest, over a stream that it takes over.

    `open` starts it and `aclose` ends it, in any order with calls under way: those fail with
    `SandboxLostError`. Two tasks of its own move the bytes, so that a call that is cancelled half
    way never leaves half a frame behind.

    Args:
        wake: called each second in which a guest that is asked for something says nothing. A
            program may have stopped it (SIGSTOP).
    """

    def __init__(
        self, stream: ByteStream, wake: Callable[[], Coroutine[Any, Any, object]] | None = None
    ) -> None:
        self.greeting: dict[str, Any] | None = None
        self._stream = stream
        self._decoder = protocol.Decoder()
        self._calls: dict[int, Call] = {}
        self._last = 0
        self._free = anyio.Semaphore(MAX_CALLS)
        self._ordinary: set[int] = set()
        self._lasting: set[int] = set()
        self._wide: set[int] = set()
        self._out: deque[bytes] = deque()
        self._out_size = 0
        self._wanting_room: set[Call] = set()
        self._grants: dict[tuple[int, int], int] = {}
        self._news = _News()
        self._failure: SandboxLostError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = wake
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_is_soon = False
        self._waking: asyncio.Task[object] | None = None
        self._heard = False

    # --- life ---

    async def start(self, hello: dict[str, Any]) -> dict[str, Any]:
        """Greet the guest and wait for its answer."""
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]
        for task in self._tasks:
            task.add_done_callback(self._on_task_end)
        self.put(protocol.encode(protocol.HELLO, 0, protocol.dump(hello)))
        self._listen()
        while self.greeting is None:
            self.check()
            await self._news.wait()
        return self.greeting

    async def aclose(self) -> None:
        """End it. Calls under way fail. May be called twice."""
        self.fail(SandboxLostError("The connection to the sandbox was closed"))
        tasks, self._tasks = self._tasks, []
        if self._waking is not None:
            self._waking.cancel()
        with anyio.CancelScope(shield=True):
            if tasks:
                await self._end_tasks(tasks)
            await anyio.aclose_forcefully(self._stream)

    async def _end_tasks(self, tasks: list[asyncio.Task[None]]) -> None:
        # Not by cancelling, where there is another way: a socket that becomes readable in the
        # moment in which its reader is cancelled makes the event loop complain.
        raw: socket.socket | None = self._stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
            await asyncio.wait(tasks, timeout=_END_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        # A fault of ours in one of them must not leave callers waiting for ever.
        error = None if task.cancelled() else task.exception()
        if error is not None:
            lost = SandboxLostError(f"The connection to the sandbox failed: {error!r}")
            lost.__cause__ = error
            self.fail(lost)

    def check(self) -> None:
        """Raise what ended the connection, if anything did."""
        if self._failure is not None:
            # A new one each time: a traceback belongs to one caller.
            raise type(self._failure)(self._failure.message) from self._failure.__cause__

    @property
    def is_lost(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self._failure is not None

    def fail(self, error: SandboxLostError) -> None:
        """End everything for a reason; the first one counts."""
        if self._failure is not None:
            return
        self._failure = error
        if self._alarm is not None:
            self._alarm.cancel()
        self._out.clear()
        self._out_size = 0
        self._grants.clear()
        self._wanting_room.clear()
        self._news.tell()
        for call in self._calls.values():
            call.news.tell()
        if self._ordinary:
            self._free.release()

    def broken(self, error: protocol.FrameError) -> ProtocolError:
        """End everything because of what the guest sent."""
        lost = ProtocolError(f"The sandbox's guest broke the protocol: {error}")
        lost.__cause__ = error
        self.fail(lost)
        return lost

    # --- calls ---

    async def open(
        self,
        body: dict[str, Any],
        *,
        urgent: bool = False,
        lasting: bool = False,
        wide: bool = False,
    ) -> Call:
        """Begin a call, waiting while there are too many; an urgent or lasting one never waits.

        `wide` asks for more bytes under way, for calls that move many.

        Raises:
            ValueError: the request is too long.
            OSError: `EMFILE`, there are too many lasting ones.
            SandboxLostError: the connection has ended.
        """
        protocol.encode_request(1, {**body, "wide": True})  # before anything is taken
        if lasting and len(self._lasting) >= MAX_LASTING:
            text = f"{MAX_LASTING} connections and the like to the sandbox are open"
            raise OSError(errno.EMFILE, text)
        ordinary = not (urgent or lasting)
        if ordinary:
            await self._wait_its_turn()
        self.check()
        if wide and len(self._wide) < MAX_WIDE:
            body = {**body, "wide": True}
        else:
            wide = False
        number = self._last = self._last + 1
        for kind, numbers in (
            (ordinary, self._ordinary), (lasting, self._lasting), (wide, self._wide)
        ):  # fmt: skip
            if kind:
                numbers.add(number)
        window = protocol.WIDE_WINDOW if wide else protocol.WINDOW
        call = self._calls[number] = Call(self, number, window)
        for frame in protocol.encode_request(number, body):
            self.put(frame)
        self._listen()
        return call

    async def _wait_its_turn(self) -> None:
        await self._free.acquire()
        if self._failure is not None:
            self._free.release()  # for the next one who waits, to learn of it as well

    def give_up(self, call: Call) -> None:
        """Cancel a call unless it has ended; its number stays taken until the guest agrees."""
        if not call.ended and self._failure is None:
            self._drop_grants(call.number)
            self.put(protocol.encode(protocol.CANCEL, call.number))

    def _listen(self) -> None:
        """See to it that a guest that says nothing is woken, as long as anything is asked of it."""
        if self._wake is None or self._failure is not None:
            return
        soon = self.greeting is None or len(self._calls) > len(self._lasting)
        if self._alarm is not None:
            if self._alarm_is_soon or not soon:
                return
            self._alarm.cancel()
        self._heard, self._alarm_is_soon = False, soon
        patience = _PATIENCE if soon else _LASTING_PATIENCE
        self._alarm = asyncio.get_running_loop().call_later(patience, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        if self.greeting is not None and not self._calls:
            return
        if self._wake is not None and not self._heard and self._waking is None:
            self._waking = asyncio.create_task(self._wake())
            self._waking.add_done_callback(self._on_woken)
        self._listen()

    def _on_woken(self, task: asyncio.Task[object]) -> None:
        self._waking = None
        if not task.cancelled():
            task.exception()  # whoever it could not reach is not there: the calls learn of it

    # --- sending ---

    @property
    def is_full(self) -> bool:
        """Whether enough waits to be sent."""
        return self._out_size >= _OUT_HIGH and self._failure is None

    def wait_for_room(self, call: Call) -> None:
        """Have a call told when less waits to be sent."""
        self._wanting_room.add(call)

    def _tell_of_room(self) -> None:
        waiting, self._wanting_room = self._wanting_room, set()
        for call in waiting:
            call.news.tell()

    def put(self, frame: bytes) -> None:
        """Have a frame sent, after those before it."""
        if self._failure is None:
            self._out.append(frame)
            self._out_size += len(frame)
            self._news.tell()

    def grant(self, number: int, channel: int, amount: int) -> None:
        """Have a credit sent; several for one channel become one."""
        key = (number, channel)
        self._grants[key] = self._grants.get(key, 0) + amount
        self._news.tell()

    async def _write(self) -> None:
        try:
            while self._failure is None:
                batch = self._next_batch()
                if batch:
                    await self._stream.send(batch)
                    self._tell_of_room()
                else:
                    await self._news.wait()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self.fail(SandboxLostError("The sandbox's guest does not listen any more"))

    def _next_batch(self) -> bytes:
        parts = [
            protocol.encode_credit(number, amount, channel)
            for (number, channel), amount in self._grants.items()
        ]
        self._grants.clear()
        size = 0
        while self._out and size < _OUT_HIGH:
            frame = self._out.popleft()
            size += len(frame)
            parts.append(frame)
        self._out_size -= size
        return b"".join(parts)

    # --- receiving ---

    async def _read(self) -> None:
        try:
            while self._failure is None:
                for frame in self._decoder.feed(await self._stream.receive(_RECEIVE)):
                    self._on_frame(frame)
        except protocol.FrameError as error:
            self.broken(error)
        except anyio.EndOfStream:
            self.fail(SandboxLostError("The sandbox's guest has ended"))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self.fail(SandboxLostError("The connection to the sandbox's guest broke"))

    def _on_frame(self, frame: protocol.Frame) -> None:
        self._heard = True
        kind, channel, number, payload = frame
        if kind == protocol.HELLO:
            if self.greeting is not None:
                raise protocol.FrameError("a second greeting")
            self.greeting = protocol.load_body(payload)
            self._news.tell()
            return
        if self.greeting is None:
            raise protocol.FrameError("no greeting")
        if kind in (protocol.REQUEST, protocol.CANCEL):
            raise protocol.FrameError(f"a frame of kind {kind} from a guest")
        call = self._calls.get(number)
        if call is None:
            raise protocol.FrameError("a frame for a call that is not open")
        call.on_frame(kind, channel, payload)
        if call.ended:
            self._forget(number)

    def _forget(self, number: int) -> None:
        del self._calls[number]
        self._drop_grants(number)
        self._lasting.discard(number)
        self._wide.discard(number)
        if number in self._ordinary:
            self._ordinary.discard(number)
            self._free.release()

    def _drop_grants(self, number: int) -> None:
        for channel in range(protocol.MAX_CHANNEL + 1):
            self._grants.pop((number, channel), None)

    @override
    def __repr__(self) -> str:
        return f"<Connection with {len(self._calls)} calls>"
