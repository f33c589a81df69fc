"""The guest as the first process of a container, or as one that was started in it later.

Its channel are standard input and output, as the engine attaches them. They are moved out of the
way: standard output becomes standard error, which the host keeps the end of, and nothing that is
started here has either of them. When the channel ends, so does this process, and as the first one
it takes the container along.
"""

from __future__ import annotations

import os

from . import execution, kills, server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

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


def main() -> NoReturn:
    """Serve the host until it hangs up."""
    link = _Pipes(os.dup(0), os.dup(1))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    os.umask(0o022)
    kills.start()
    execution.hide()
    server.serve_link(link)
    os._exit(0)
