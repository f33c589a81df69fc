"""The guest as the first process of a container, or as one that was started in it later.

Its channel are standard input and output, as the engine attaches them, or a socket that a host on
the same machine hands over in their place. They are moved out of the way: standard output becomes
standard error, which the host keeps the end of, and nothing that is started here has either of
them. When the channel ends, so does this process; as the first one it takes the container along.

The socket comes like this. The host names a secret. The guest makes a pair of sockets, sends the
secret into one of them, and says which descriptor the other is. A host that may look into this
process takes that one, reads the secret there, and so knows whose it is; it sends back a socket of
its own, whose other end nobody in here has ever had. A host that cannot just goes on as before.
"""

from __future__ import annotations

import _socket
import array
import os
import select

from . import execution, kills, server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

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


def main(secret: bytes) -> NoReturn:
    """Serve the host until it hangs up. Without a secret, it wants no socket of its own."""
    pipes = _Pipes(os.dup(0), os.dup(1))
    link = _offer(secret, pipes) if secret else pipes
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    os.umask(0o022)
    kills.start()
    __import__("fcntl")  # else each program loads it, just before it begins
    execution.hide()
    server.serve_link(link)
    os._exit(0)


def _offer(secret: bytes, pipes: _Pipes) -> Link:
    """What the host wants to talk over: a socket of its own, or what there is."""
    ours, theirs = _socket.socketpair()
    try:
        ours.send(secret)
        os.write(pipes.target(), b"%08d" % theirs.fileno())
        poll = select.poll()
        for source in (pipes.source(), ours.fileno()):
            poll.register(source, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll()]
        if pipes.source() in ready:  # its first words, or its end
            return pipes
        number = _take(ours)
    finally:
        ours.close()
        theirs.close()
    if number < 0:
        return pipes
    pipes.close()
    return server.as_link(number)


def _take(ours: _socket.socket) -> int:
    """The descriptor that has come; below 0 where it did not get through."""
    numbers = array.array("i")
    _, attached, _, _ = ours.recvmsg(1, _socket.CMSG_SPACE(numbers.itemsize))
    for level, kind, data in attached:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return numbers[0] if numbers else -1
