"""The guest as the first process of a container, or as one that was started in it later.

Its channel are standard input and output, as the engine attaches them, or a socket that a host on
the same machine hands over in their place (`offer`). They are moved out of the way: standard output
becomes standard error, which the host keeps the end of, and nothing that is started here has either
of them. When the channel ends, so does this process; as the first one it takes the container along.
"""

from __future__ import annotations

import os

from . import execution, kept, kills, server
from .loop import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .offer import Offer
    from .server import Link

__all__ = ["main"]


class _Pipes:
    """Two descriptors as a link."""

    def __init__(self, source: int, target: int) -> None:
        self._source, self._target = source, target
        for descriptor in (source, target):
            os.set_blocking(descriptor, False)

    def source(self) -> int:
        return self._source

    def target(self) -> int:
        return self._target

    def recv(self, size: int) -> bytes:
        return os.read(self._source, size)

    def send(self, data: bytes | memoryview) -> int:
        return os.write(self._target, data)

    def close(self) -> None:
        os.close(self._source)
        os.close(self._target)


def main(offer: Offer | None) -> NoReturn:
    """Serve the host until it hangs up; where it has said so, the next one too.

    Args:
        offer: made to a host that may have a socket of its own.
    """
    source, target = os.dup(0), os.dup(1)
    number = -1 if offer is None else offer.settle(source)
    link: Link = _Pipes(source, target) if number < 0 else server.as_link(number)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    os.umask(0o022)
    kills.start()
    __import__("fcntl")  # else each program loads it, just before it begins
    execution.hide()
    loop = Loop()
    while True:
        terms = server.serve_link(link, ahead=True, own=loop)
        if terms is None or number < 0:  # no other can be told from the last on the same stream
            os._exit(0)
        number = kept.next_host(terms, loop, source, target)
        if number < 0:
            os._exit(0)
        link = server.as_link(number)
