"""One call of the host's, as an operation sees it: its parameters, its streams, its end."""

from __future__ import annotations

import collections
import os
import time

from . import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .ahead import Starter
    from .kept import Terms
    from .loop import Loop, Steps, Task

    class Sender(Protocol):
        """The guest's end of the channel."""

        loop: Loop
        starter: Starter
        folder: bytes
        moved: list[tuple[bytes, bytes]]

        def send(self, frame: bytes) -> None: ...
        def has_room(self) -> bool: ...
        def wait_for_room(self, task: Task) -> None: ...
        def find(self, call: object) -> Call | None: ...
        def keep(self, terms: Terms) -> None: ...


__all__ = ["Call", "Refused"]

_PATIENCE = 0.01
"""Seconds that what may be told along with something else waits for that."""


class Refused(ValueError):
    """What the caller asked for makes no sense; the text is for the caller."""


class Call:
    """Streams in bounded memory: what is sent waits for the host's credit, what comes has ours."""

    task: Task
    """The operation; set before it runs for the first time."""

    def __init__(self, number: int, body: dict[str, Any], sender: Sender) -> None:
        self.number = number
        self.body = body
        self.sender = sender
        self.loop = sender.loop
        self.child: Any = None
        """The program, where the call is one."""
        window = protocol.WIDE_WINDOW if self.flag("wide") else protocol.WINDOW
        self._send_windows = [protocol.SendWindow(window) for _ in range(protocol.MAX_CHANNEL + 1)]
        self._receive_window = protocol.ReceiveWindow(window)
        self._inbox: collections.deque[bytes] = collections.deque()
        self._is_brief = self.flag("brief")
        self._put_off = bytearray()
        self._put_off_until = 0.0

    def wake(self) -> None:
        self.loop.wake(self.task)

    # --- parameters ---

    def text(self, name: str) -> str:
        value = self.body.get(name)
        if not isinstance(value, str):
            raise Refused(f"{name} must be text")
        return value

    def number_of(self, name: str, default: int | None = None) -> int | None:
        value = self.body.get(name, default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise Refused(f"{name} must be a number")
        return value

    def value(self, name: str, kind: type) -> Any:
        value = self.body.get(name)
        if not isinstance(value, kind):
            raise Refused(f"{name} must be a {kind.__name__}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.body.get(name, default))

    def path(self, name: str = "path") -> bytes:
        """A path in the sandbox's own view; a relative one starts at the working folder."""
        path = os.path.join(self.sender.folder, encode_path(self.text(name)))
        for folder, place in self.sender.moved:
            if path == folder or path.startswith(folder.rstrip(b"/") + b"/"):
                return place + path[len(folder.rstrip(b"/")) :]
        return path

    # --- sending ---

    def credit(self, channel: int = 0) -> int:
        """Bytes that may be sent now; 0 also while the channel to the host is full.

        Whoever waits is woken when that has changed.
        """
        if not self.sender.has_room():
            self.sender.wait_for_room(self.task)
            return 0
        return min(self._send_windows[channel].credit, protocol.MAX_PAYLOAD)

    def room(self, amount: int = 1, channel: int = 0) -> Steps[int]:
        """Wait until that much can be sent; gives how much can be."""
        while True:
            credit = self.credit(channel)
            if credit >= amount:
                return credit
            yield None

    def send(self, data: bytes, channel: int = 0) -> None:
        """Send no more than `credit`."""
        self._send_windows[channel].take(len(data))
        self._say(protocol.encode(protocol.DATA, self.number, data, channel))

    def send_all(self, data: bytes) -> Steps[None]:
        start = 0
        while start < len(data):
            credit = yield from self.room()
            self.send(data[start : start + credit])
            start += credit

    def send_page(self, entries: list[Any]) -> Steps[None]:
        """Send a JSON list as one frame."""
        data = protocol.dump(entries)
        yield from self.room(len(data))
        self.send(data)

    def send_end(self, channel: int) -> None:
        self._say(protocol.encode(protocol.END, self.number, b"", channel), may_wait=True)

    def send_event(self, body: dict[str, Any], *, may_wait: bool = False) -> None:
        self._say(protocol.encode(protocol.EVENT, self.number, protocol.dump(body)), may_wait)

    def _say(self, frame: bytes, may_wait: bool = False) -> None:
        """Send a frame, or put it off: each that is sent alone wakes the host for nothing where the
        rest is to be said a moment later."""
        if not self._put_off:
            self._put_off_until = time.monotonic() + _PATIENCE
        self._put_off += frame
        if not (may_wait and self._is_brief):
            self.say_all()

    def say_all(self) -> None:
        """Send what was put off."""
        if self._put_off:
            self.sender.send(bytes(self._put_off))
            self._put_off.clear()

    def patience(self) -> float | None:
        """Seconds that what was put off may still wait; where that is none, it is sent. None where
        nothing waits."""
        if self._put_off and time.monotonic() >= self._put_off_until:
            self.say_all()
        return self._put_off_until - time.monotonic() if self._put_off else None

    # --- receiving ---

    def take(self) -> bytes | None:
        """The next bytes that came, b"" after the last of them, None when there are none yet."""
        if self._inbox:
            return self._inbox.popleft()
        return b"" if self._receive_window.ended else None

    def consumed(self, amount: int) -> None:
        """Bytes that were taken are used up: the host may send as many again."""
        granted = self._receive_window.consume(amount)
        if granted:
            self.sender.send(protocol.encode_credit(self.number, granted))

    def receive(self) -> Steps[bytes]:
        """Wait for the next bytes; b"" after the last."""
        while True:
            data = self.take()
            if data is not None:
                self.consumed(len(data))
                return data
            yield None

    # --- what the host sends ---

    def on_data(self, data: bytes) -> None:
        self._receive_window.receive(len(data))
        if data:
            self._inbox.append(data)
            self.wake()

    def on_end(self) -> None:
        self._receive_window.end()
        self.wake()

    def on_credit(self, amount: int, channel: int) -> None:
        self._send_windows[channel].grant(amount)
        self.wake()


def encode_path(text: str) -> bytes:
    if not text:
        raise Refused("an empty path")
    if "\0" in text:
        raise Refused("a path with a NUL byte")
    return text.encode("utf-8", "surrogateescape")
