"""How long the server waits for whoever is at the other end of a connection, and for how much."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, cast

from typing_extensions import override
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["Drain", "Patience"]


class Drain:
    """Aborts a connection whose other end takes nothing of what is sent for some seconds."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds
        self._left = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look from now on: something is left that was not taken."""
        if self._timer is None:
            self._wait()

    def end(self) -> None:
        """Look no more."""
        self._timer = _without(self._timer)

    def _wait(self) -> None:
        self._left = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        if self._transport.get_write_buffer_size() < self._left:  # slow, but steady
            self._wait()
        else:
            self._timer = None
            self._transport.abort()


class Patience(HttpToolsProtocol):
    """uvicorn's protocol with bounds: by itself it waits for ever, and for a head of any size.

    A connection that is waited for in vain is aborted, which cancels what it asked for. Where we
    are the ones who are slow, nobody is hurried.
    """

    head_seconds: ClassVar[float] = 30.0
    """From the connection, or the first byte of a further request, to the end of its head."""
    stall_seconds: ClassVar[float] = 60.0
    """Without a byte of a body that is owed, or without one being taken of what is sent."""
    most_head: ClassVar[int] = 64 << 10
    """Bytes of a head, or of what comes with a body and is none of it: that may be kept, too."""

    _in_head = True
    _in_body = False
    _is_ahead = False
    _head = 0
    _reading: asyncio.TimerHandle | None = None
    _drain: Drain

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._drain = Drain(transport, self.stall_seconds)
        transport.set_write_buffer_limits(0)  # else what is left of an answer could wait for ever
        self._reading = self._later(self.head_seconds, self._read_too_late)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._reading = _without(self._reading)
        self._drain.end()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._is_ahead:
            return
        self._head += len(data)
        super().data_received(data)
        if self.transport.is_closing() or not (self._in_head or self._in_body):
            self._reading = _without(self._reading)
            self._wait_for_another()
        elif self._in_body and self._head > self.most_head:
            self.transport.abort()
        elif self._in_head and self._head > self.most_head:
            self.send_400_response("The head of this request is too long.")
        elif self._in_body:
            self._reading = _without(self._reading)
            self._reading = self._later(self.stall_seconds, self._read_too_late)
        elif self._reading is None:
            self._reading = self._later(self.head_seconds, self._read_too_late)

    @override
    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # nobody asked for those that come after a body
            super().on_header(name, value)

    @override
    def on_headers_complete(self) -> None:
        self._in_head, self._in_body, self._head = False, True, 0
        before: RequestResponseCycle | None = cast("Any", self).cycle  # None before the first
        if before is None or before.response_complete:
            super().on_headers_complete()
            return
        # Sent ahead, while another is answered: uvicorn would look after the newest one only, and
        # would stop to read, so that nobody saw the caller of the first one go. Whoever does this
        # is answered once, and told by the end of the connection to ask the rest again.
        self._is_ahead = True
        before.keep_alive = False

    @override
    def on_body(self, body: bytes) -> None:
        self._head = 0
        if not self._is_ahead:
            super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._in_body, self._head = False, 0
        if not self._is_ahead:
            super().on_message_complete()

    @override
    def handle_websocket_upgrade(self) -> None:
        self._in_body = False
        self._reading = _without(self._reading)
        if not self._is_ahead:
            self._drain.end()
            super().handle_websocket_upgrade()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._drain.begin()

    @override
    def resume_writing(self) -> None:
        self._drain.end()
        super().resume_writing()

    def _wait_for_another(self) -> None:
        """As long as uvicorn does. What came was no request, or the rest of one that is answered;
        uvicorn has ended its own timer by anything that came."""
        before: RequestResponseCycle | None = cast("Any", self).cycle
        is_idle = before is not None and before.response_complete
        is_ours = self in self.connections  # not ended, and not become a WebSocket
        if is_idle and is_ours and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self._later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _read_too_late(self) -> None:
        if self.flow.read_paused:  # it is us who take nothing
            self._reading = self._later(self.stall_seconds, self._read_too_late)
        else:
            self.transport.abort()

    def _later(self, seconds: float, act: Callable[[], object]) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, act)


def _without(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
