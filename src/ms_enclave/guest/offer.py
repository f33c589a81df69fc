"""A socket of the host's in place of the stream that an engine attaches.

The host names a secret. The guest makes a pair of sockets, sends the secret into one of them, and
says on standard output which descriptor the other is. A host that may look into this process takes
that one, reads the secret there, and so knows whose it is; it sends back a socket of its own, whose
other end nobody in here has ever had. A host that cannot goes on with standard input.
"""

import _socket
import os
import select
import sys

__all__ = ["Offer"]

_SIZE = 4  # of a descriptor's number


class Offer:
    """Made as soon as the secret is known: while the host takes it, the guest can do other things.

    `settle` ends it.
    """

    def __init__(self, secret: bytes, target: int = 1) -> None:
        self._ours, self._theirs = _socket.socketpair()
        self._ours.send(secret)
        os.write(target, b"%08d" % self._theirs.fileno())

    def settle(self, source: int, patience: "int | None" = None) -> int:
        """Wait for what the host does: the descriptor that has come; below 0 where it goes on with
        `source`, has ended, or has done nothing for so many milliseconds."""
        try:
            poll = select.poll()
            for descriptor in (source, self._ours.fileno()):
                poll.register(descriptor, select.POLLIN)
            ready = [descriptor for descriptor, _ in poll.poll(patience)]
            if not ready or source in ready:
                return -1
            return self._take()
        finally:
            self._ours.close()
            self._theirs.close()

    def _take(self) -> int:
        _, attached, _, _ = self._ours.recvmsg(1, _socket.CMSG_SPACE(_SIZE))
        for level, kind, data in attached:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS) and len(data) >= _SIZE:
                return int.from_bytes(data[:_SIZE], sys.byteorder)
        return -1  # it did not get through
