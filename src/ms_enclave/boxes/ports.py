"""Ports of a sandbox: what listens inside, and connections to it from outside.

Bytes go through the guest's channel, so a sandbox without a network can serve, and nothing of the
host listens or can be reached because of it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream
from typing_extensions import override

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._life import Life
from ms_enclave.errors import ConfigError, PortTimeoutError
from ms_enclave.loop import on_loop, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.ports import GuestPort
    from ms_enclave.model import PortInfo

__all__ = ["PortStream", "Ports"]

_FETCH = 1 << 20
"""Bytes that are taken from the private loop at once: each hop costs as much as copying them."""


class Ports(Life):
    """The part of a sandbox that knows its ports."""

    @abstractmethod
    def _use_guest(
        self, user: str | int | None = None
    ) -> AbstractAsyncContextManager[GuestConnection]: ...

    @abstractmethod
    def _using_again(self, guest: GuestConnection) -> AbstractAsyncContextManager[None]: ...

    @abstractmethod
    async def _require(self, capability: str) -> None: ...

    @on_loop
    async def list_ports(self) -> list[PortInfo]:
        """The TCP ports on which programs of the sandbox take connections, sorted by port.

        Raises:
            CapabilityError: the sandbox has no ports of its own.
            SandboxStateError: the sandbox is not running.
            SandboxLostError: the sandbox failed.
        """
        await self._require("ports")
        async with self._use_guest() as guest:
            return await guest.ports()

    @on_loop
    async def connect(self, port: int, *, timeout: float | None = 30.0) -> PortStream:
        """A connection to a TCP port on the sandbox's own loopback address.

        It ends with the sandbox, and lasts until it is closed: `async with` does that. It can be
        used on any event loop; one task may send while another receives.

        Args:
            timeout: seconds to wait for whoever listens to take the connection, as one does not
                whose queue is full; None for as long as it takes. The connection itself has none.

        Raises:
            PortRefusedError: nothing takes connections at that port.
            PortTimeoutError: something listens, and has not taken the connection in time.
            ConfigError: that is no port, or no time.
            OSError: `EMFILE`, the sandbox has 400 connections already.
            CapabilityError, SandboxStateError, SandboxLostError: as `list_ports`.
        """
        number = _validate_port(port)
        seconds = inputs.validate_timeout(timeout) or math.inf
        await self._require("ports")
        async with self._use_guest() as guest:
            stream: GuestPort | None = None
            with anyio.move_on_after(seconds):
                stream = await guest.connect_port(number)
            if stream is None:
                raise PortTimeoutError(number, seconds)
        return PortStream(stream, lambda: self._using_again(guest))


class PortStream(ByteStream):
    """Bytes to and from a port of a sandbox, as any byte stream of anyio's.

    `send` returns when the bytes are on their way, and waits while whoever listens takes none.
    What is received waits in the sandbox: at most a few hundred KiB of it are held here.

    Raises, from every method but `aclose`:
        anyio.EndOfStream: the other side has ended its way, and everything was received.
        anyio.BrokenResourceError: the connection broke, or nobody listens any more.
        anyio.ClosedResourceError: it was closed.
        anyio.BusyResourceError: another task does the same at this moment.
        SandboxStateError, SandboxLostError: the sandbox was stopped or lost.
    """

    def __init__(
        self, stream: GuestPort, using: Callable[[], AbstractAsyncContextManager[None]]
    ) -> None:
        self._stream = stream
        self._using = using
        self._waiting = memoryview(b"")
        self._closed = False
        self._receiving = anyio.ResourceGuard("reading from")
        self._sending = anyio.ResourceGuard("writing to")

    @override
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes, at most so many."""
        with self._receiving:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._waiting:
                await anyio.lowlevel.checkpoint_if_cancelled()
            elif not await run(self._fetch):
                raise anyio.EndOfStream
            data = bytes(self._waiting[:max_bytes])
            self._waiting = self._waiting[len(data) :]
            return data

    async def _fetch(self) -> bool:
        # Kept here and not returned: what a caller who is cancelled does not get must not be lost.
        async with self._using():
            self._waiting = memoryview(await self._stream.receive(_FETCH))
        return bool(self._waiting)

    @override
    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        with self._sending:
            if self._closed:
                raise anyio.ClosedResourceError
            await run(self._send, bytes(item))

    async def _send(self, item: bytes) -> None:
        async with self._using():
            await self._stream.send(item)

    @override
    async def send_eof(self) -> None:
        """End the way there; what comes from there can still be received."""
        with self._sending:
            if self._closed:
                raise anyio.ClosedResourceError
            await run(self._send_eof)

    async def _send_eof(self) -> None:
        self._stream.send_eof()

    @override
    async def aclose(self) -> None:
        """End both ways. What was sent before is still delivered, as far as somebody reads it."""
        self._closed = True
        self._waiting = memoryview(b"")
        with anyio.CancelScope(shield=True):
            await run(self._close)

    async def _close(self) -> None:
        self._stream.close()


def _validate_port(port: int) -> int:
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 1 << 16:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a port is a number from 1 to 65535, not {port!r}")
    return port
