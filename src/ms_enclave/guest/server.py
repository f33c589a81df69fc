"""Serves one host over one socket: files and programs, in one thread and bounded memory.

`serve` is all there is to call. It returns when the host has gone, after everything that it started
is gone too.
"""

from __future__ import annotations

import _socket  # `socket` costs as much to import as all the rest
import errno
import os
import sys
import time

from . import archive, files, kept, ports, programs, protocol, search, watch
from .ahead import Starter
from .call import Call
from .loop import READ, WRITE, Cancelled, Loop, Task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol, Sequence

    from .loop import Steps
    from .protocol import Frame

    class Link(Protocol):
        """A channel of two non-blocking directions, which may be one descriptor."""

        def source(self) -> int: ...
        def target(self) -> int: ...
        def recv(self, size: int) -> bytes: ...
        def send(self, data: bytes | memoryview) -> int: ...
        def close(self) -> None: ...


__all__ = ["as_link", "serve", "serve_link"]

_MAX_CALLS = 1024
_RECEIVE = 1 << 18
_OUT_HIGH = 1 << 18
"""Bytes that may wait for the socket before those who produce data have to wait."""
_OUT_STOP = 1 << 20
"""Bytes that may wait for the socket before nothing more is read from it."""
_FAREWELL = 5.0

_OPERATIONS: dict[str, Callable[[Call], Steps[dict[str, Any]]]] = {}
for _module in (files, archive, search, programs, ports, watch, kept):
    _OPERATIONS.update(_module.OPERATIONS)


def serve(fd: int, moved: Sequence[Sequence[str]] = (), *, ahead: bool = False) -> None:
    """Serve the host at the other end of a connected stream socket, until it hangs up.

    The descriptor is taken over and closed. Relative paths start where this process is, unless the
    host's greeting says another folder. `moved` are folders that the host may name, and where they
    really are.
    """
    while True:  # programs get 0 to 2 as theirs: what is ours must not be there
        spare = os.open(os.devnull, os.O_RDWR)
        if spare > 2:
            os.close(spare)
            break
    serve_link(as_link(fd), moved, ahead=ahead)


def as_link(fd: int) -> Link:
    """A connected stream socket, which is taken over, as a link."""
    return _Socket(fd)


def serve_link(
    link: Link, moved: Sequence[Sequence[str]] = (), *, ahead: bool = False, own: Loop | None = None
) -> kept.Terms | None:
    """The same over any link, which is closed at the end.

    Args:
        link: where the host is.
        moved: folders that were moved.
        ahead: whether the next program's processes are made before it is asked for.
        own: the loop to serve on, which is left open; without one it is made.

    Returns:
        Until when another host may come, where this one has said so: what was left running then
        still runs.
    """
    loop = own or Loop()
    server = _Server(link, loop, moved, ahead)
    try:
        server.run()
    finally:
        server.end_everything()
        if own is None:
            loop.close()
        link.close()
    return server.terms


class _Socket:
    """A connected stream socket as a link."""

    def __init__(self, fd: int) -> None:
        self._socket = _socket.socket(fileno=fd)
        self._socket.setblocking(False)
        os.set_inheritable(fd, False)

    def source(self) -> int:
        return self._socket.fileno()

    def target(self) -> int:
        return self._socket.fileno()

    def recv(self, size: int) -> bytes:
        return self._socket.recv(size)

    def send(self, data: bytes | memoryview) -> int:
        return self._socket.send(data)

    def close(self) -> None:
        self._socket.close()


class _Server:
    def __init__(self, link: Link, loop: Loop, moved: Sequence[Sequence[str]], ahead: bool) -> None:
        self.loop = loop
        self.starter = Starter(loop, ahead)
        self.folder = os.getcwdb()
        self.moved = [(os.fsencode(name), os.fsencode(place)) for name, place in moved]
        self.terms: kept.Terms | None = None
        """How it goes on after the host, if it does."""
        self._link = link
        self._decoder = protocol.Decoder()
        self._greeted = False
        self._open = True
        self._calls: dict[int, Call] = {}
        self._last_call = 0
        self._unfinished: dict[int, bytearray] = {}
        self._out = bytearray()
        self._waiting: list[Task] = []

    # --- the loop ---

    def run(self) -> None:
        """Serve until the host hangs up or breaks the protocol."""
        try:
            while self._open:
                self._watch_socket()
                self.loop.poll()
                self.loop.run_ready()
                self._flush()
        except ConnectionError:
            pass  # the host hung up with something of ours still unread: the same as an end
        except protocol.FrameError as error:
            # Nobody is there to be told: what is inside has no other way out, and wants none.
            self._say(f"the channel is broken: {error}")
            self.terms = None

    def end_everything(self) -> None:
        """Cancel all calls and wait, within bounds, until what they started is gone: all of it, or
        without what was left running where that goes on."""
        self._out.clear()
        self._open = False
        self.starter.close()
        self.loop.unwatch(self._link.source())
        self.loop.unwatch(self._link.target())
        for call in list(self._calls.values()):
            self.loop.cancel(call.task)
        if self.terms is None:
            rest = Task(programs.kill_everything(self.loop), lambda _failure, _result: None)
        else:
            rest = Task(_nothing(), lambda _failure, _result: None)
        self.loop.start(rest)
        deadline = time.monotonic() + _FAREWELL
        while (self._calls or not rest.ended) and time.monotonic() < deadline:
            self.loop.poll(0.1)
            self.loop.run_ready()

    def _watch_socket(self) -> None:
        source, target = self._link.source(), self._link.target()
        reading = READ if len(self._out) < _OUT_STOP else 0
        writing = WRITE if self._out else 0
        if source == target:
            self.loop.watch_always(source, reading | writing, self._on_socket)
        else:
            self.loop.watch_always(source, reading, lambda _events: self._receive())
            self.loop.watch_always(target, writing, lambda _events: self._flush())

    def _on_socket(self, events: int) -> None:
        if events & READ:
            self._receive()
        if events & WRITE:
            self._flush()

    def _receive(self) -> None:
        try:
            data = self._link.recv(_RECEIVE)
        except BlockingIOError:
            return
        if not data:
            self._open = False
            return
        for frame in self._decoder.feed(data):
            self._on_frame(frame)

    def _flush(self) -> None:
        while self._out and self._open:
            try:
                with memoryview(self._out) as waiting, waiting[:_RECEIVE] as piece:
                    sent = self._link.send(piece)
            except BlockingIOError:
                break
            del self._out[:sent]
        if self._waiting and self.has_room():
            waiting, self._waiting = self._waiting, []
            for task in waiting:
                self.loop.wake(task)

    # --- what calls use ---

    def send(self, frame: bytes) -> None:
        if self._open:
            self._out += frame

    def has_room(self) -> bool:
        return len(self._out) < _OUT_HIGH

    def wait_for_room(self, task: Task) -> None:
        self._waiting.append(task)

    def keep(self, terms: kept.Terms) -> None:
        self.terms = terms

    def find(self, call: object) -> Call | None:
        return self._calls.get(call) if isinstance(call, int) else None

    # --- frames ---

    def _on_frame(self, frame: Frame) -> None:
        kind, channel, number, payload = frame
        if not self._greeted:
            self._greet(kind, payload)
            return
        if kind == protocol.REQUEST:
            self._on_request(number, channel, payload)
            return
        if number > self._last_call:
            raise protocol.FrameError("a frame for a call that was never made")
        call = self._calls.get(number)
        if call is not None:  # else it has ended meanwhile, which the host will learn
            self._on_frame_of(call, kind, channel, payload)

    def _on_frame_of(self, call: Call, kind: int, channel: int, payload: bytes) -> None:
        if kind == protocol.DATA:
            call.on_data(payload)
        elif kind == protocol.END:
            call.on_end()
        elif kind == protocol.CREDIT:
            call.on_credit(protocol.load_credit(payload), channel)
        elif kind == protocol.CANCEL:
            self.loop.cancel(call.task)
        else:
            raise protocol.FrameError(f"a frame of kind {kind} from the host")

    def _greet(self, kind: int, payload: bytes) -> None:
        if kind != protocol.HELLO:
            raise protocol.FrameError("no greeting")
        body = protocol.load_body(payload)
        folder = body.get("folder")
        if isinstance(folder, str) and folder.startswith("/"):
            self.folder = folder.encode("utf-8", "surrogateescape")
        self._greeted = True
        ours = {
            "version": protocol.VERSION,
            "pid": os.getpid(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "folder": self.folder.decode("utf-8", "surrogateescape"),
        }
        self.send(protocol.encode(protocol.HELLO, 0, protocol.dump(ours)))
        if body.get("version") != protocol.VERSION:
            raise protocol.FrameError("another version of the protocol")

    def _on_request(self, number: int, more: int, payload: bytes) -> None:
        text = self._unfinished.pop(number, None)
        if text is None:
            if number <= self._last_call:
                raise protocol.FrameError("a call was made twice")
            self._last_call = number
            text = bytearray()
        text += payload
        if len(text) + sum(map(len, self._unfinished.values())) > protocol.MAX_BODY:
            raise protocol.FrameError(f"a request of more than {protocol.MAX_BODY} bytes")
        if more:
            self._unfinished[number] = text
            return
        self._begin(number, protocol.load_body(bytes(text)))

    def _begin(self, number: int, body: dict[str, Any]) -> None:
        operation = _OPERATIONS.get(str(body.get("op")))
        if operation is None or len(self._calls) >= _MAX_CALLS:
            error = {"errno": errno.ENOSYS if operation is None else errno.EAGAIN}
            self.send(protocol.encode(protocol.ERROR, number, protocol.dump(error)))
            return
        call = Call(number, body, self)
        self._calls[number] = call
        call.task = Task(operation(call), lambda failure, result: self._end(call, failure, result))
        self.loop.start(call.task)

    def _end(self, call: Call, failure: object, result: dict[str, Any]) -> None:
        del self._calls[call.number]
        call.say_all()
        if failure is None:
            self.send(protocol.encode(protocol.RESULT, call.number, protocol.dump(result)))
            return
        if isinstance(failure, protocol.FrameError):
            raise failure
        body = _describe(failure)
        self.send(protocol.encode(protocol.ERROR, call.number, protocol.dump(body)))

    @staticmethod
    def _say(text: str) -> None:
        try:
            os.write(2, (f"ms-enclave guest: {text}\n").encode("utf-8", "replace"))
        except OSError:
            return


def _nothing() -> Steps[None]:
    yield 0


def _describe(failure: object) -> dict[str, Any]:
    """A failure as it goes to the host, which knows a number better than our words."""
    if isinstance(failure, Cancelled):
        return {"cancelled": True}
    if isinstance(failure, files.NotPlain):
        return {"errno": failure.errno, "special": True}
    if isinstance(failure, OSError) and failure.errno:
        return {"errno": failure.errno}
    if isinstance(failure, MemoryError):
        return {"errno": errno.ENOMEM}
    if isinstance(failure, (ValueError, OverflowError)):
        return {"refused": str(failure)[:1000]}  # Python's own, too, as for a path that cannot be
    return {"errno": errno.EIO, "detail": f"{type(failure).__name__}: {str(failure)[:1000]}"}
