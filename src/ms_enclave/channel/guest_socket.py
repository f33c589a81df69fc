"""The host's socket to a guest, which a guest cannot make wait.

Whoever holds the other end of a Unix socket can attach descriptors to what it sends. A receiver
that asks for none lets go of them, and the last to let go of a TCP socket waits as long as its
SO_LINGER says: a guest could stop our event loop for hours. So they are refused where the kernel
can do that, and elsewhere taken and let go of by a thread that nobody waits for.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

__all__ = ["GuardedSocket", "GuestSocket", "HeardSocket", "let_go"]

_SO_PASSRIGHTS = 83  # asm-generic/socket.h, Linux 6.16; a socket that says no gets none
_SPACE = socket.CMSG_SPACE(253 * array.array("i").itemsize)  # SCM_MAX_FD: what one message can have


class GuardedSocket:
    """Takes a connected Unix socket over. Nothing here ever waits."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self.raw = connected
        self._refuses = _refuse_descriptors(connected)

    def fileno(self) -> int:
        """Its number; below 0 once it is closed."""
        return self.raw.fileno()

    def recv(self, size: int) -> bytes:
        """As of a socket. Raises ConnectionAbortedError where descriptors came, too."""
        data, attached, _, _ = self.raw.recvmsg(size, _SPACE)
        if attached:
            let_go(_descriptors(attached))
            raise ConnectionAbortedError("descriptors that nobody asked for")
        return data

    def send(self, data: bytes | memoryview) -> int:
        """As of a socket."""
        return self.raw.send(data)

    def close(self) -> None:
        """Close it. May be called twice."""
        if self.raw.fileno() < 0:
            return
        if self._refuses:
            self.raw.close()
        else:  # what was not received may have descriptors attached
            let_go([self.raw.detach()])


class GuestSocket(ByteStream):
    """The same as a byte stream. A guest that sends descriptors is a `BrokenResourceError`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = GuardedSocket(connected)

    @property
    @override
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket.raw}

    @override
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes."""
        while True:
            self._check()
            try:
                data = self._socket.recv(max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._socket.raw)
            except OSError as error:
                raise anyio.BrokenResourceError from error
            else:
                if data:
                    return data
                raise anyio.EndOfStream

    @override
    async def send(self, item: bytes) -> None:
        """Send all of it."""
        left = memoryview(item)
        while left:
            self._check()
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket.raw)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    def _check(self) -> None:
        if self._socket.fileno() < 0:
            raise anyio.ClosedResourceError

    @override
    async def send_eof(self) -> None:
        """End the way there."""
        with contextlib.suppress(OSError):
            self._socket.raw.shutdown(socket.SHUT_WR)

    @override
    async def aclose(self) -> None:
        """Close it; whoever waits for it learns of that. May be called twice."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket.raw)
            self._socket.close()


def _refuse_descriptors(connected: socket.socket) -> bool:
    try:
        connected.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def _descriptors(attached: Sequence[tuple[int, int, bytes]]) -> list[int]:
    numbers = array.array("i")
    for level, kind, data in attached:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return list(numbers)


class HeardSocket(GuestSocket):
    """One whose end somebody is to hear of: `on_end`, which may take a moment."""

    on_end: Callable[[], Awaitable[object]] | None = None

    @override
    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            return await super().receive(max_bytes)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            if self.on_end is not None:
                await self.on_end()
            raise


def let_go(numbers: list[int]) -> None:
    """Close descriptors of a stranger's, however long that takes."""

    def close() -> None:
        for number in numbers:
            with contextlib.suppress(OSError):
                os.close(number)

    threading.Thread(target=close, name="ms-enclave-closing", daemon=True).start()
