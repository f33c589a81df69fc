"""Outliving a host: a container that is kept waits for the next one, for as long as it was told.

The next one comes over standard input, to which the engine attaches it as it did the first: with a
secret, as eight decimal digits that say how long it is and as many bytes. Then it is offered a
socket (`offer`), as the first was.
"""

from __future__ import annotations

import os
import time

from .loop import READ
from .offer import Offer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .call import Call
    from .loop import Loop, Steps

__all__ = ["OPERATIONS", "Terms", "next_host"]

_DIGITS = 8
_MOST_WORDS = 1000  # of a secret, and its length
_PATIENCE = 10_000  # milliseconds that a host has to take what it is offered


class Terms:
    """How long to wait for another host.

    Args:
        left: seconds from now on; None: for ever.
        idle: seconds without a host; None: as long as is left.
    """

    def __init__(self, left: float | None, idle: float | None) -> None:
        self._until = None if left is None else time.monotonic() + left
        self._idle = idle

    def deadline(self) -> float | None:
        """When to give up, by the monotonic clock, if the host has just gone."""
        idle = None if self._idle is None else time.monotonic() + self._idle
        ends = [end for end in (self._until, idle) if end is not None]
        return min(ends) if ends else None


def keep(call: Call) -> Steps[dict[str, Any]]:
    """Have the end of the channel not be the end of everything."""
    yield 0
    call.sender.keep(Terms(_seconds(call, "left"), _seconds(call, "idle")))
    return {}


def _seconds(call: Call, name: str) -> float | None:
    thousandths = call.number_of(name)
    return None if thousandths is None else thousandths / 1000


def next_host(terms: Terms, loop: Loop, source: int, target: int) -> int:
    """Wait for the next host; gives a socket to it, or -1 where none can come any more."""
    deadline = terms.deadline()
    said = bytearray()
    os.set_blocking(source, False)
    while True:
        loop.watch_always(source, READ, lambda _events: None)
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return -1
        loop.poll(left)
        loop.run_ready()
        try:
            part = os.read(source, _MOST_WORDS)
        except BlockingIOError:
            continue
        if not part:
            return -1  # its engine has closed it
        said += part
        secret = _secret(said)
        if secret:
            loop.unwatch(source)
            number = Offer(secret, target).settle(source, _PATIENCE)
            if number >= 0:
                return number


def _secret(said: bytearray) -> bytes:
    """What was said, once it is whole; what is no secret is forgotten."""
    head, rest = bytes(said[:_DIGITS]), bytes(said[_DIGITS:])
    if (len(head) == _DIGITS and not head.isdigit()) or len(said) > _MOST_WORDS:
        del said[:]
    if len(head) < _DIGITS or not head.isdigit() or len(rest) < int(head):
        return b""
    del said[:]
    return rest[: int(head)]


OPERATIONS = {"keep": keep}
