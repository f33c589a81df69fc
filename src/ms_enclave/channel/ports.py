"""The host's end of what a guest says and does about ports.

A guest that connects to something else than it was told to only shows its caller other bytes of
the same sandbox: the host itself opens nothing.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.channel._calls import GuestCalls, clean, failures
from ms_enclave.channel._connection import CallFailed
from ms_enclave.errors import PortRefusedError
from ms_enclave.guest import protocol
from ms_enclave.model import PortInfo

if TYPE_CHECKING:
    import builtins

    from ms_enclave.channel._connection import Call, Connection

__all__ = ["GuestPort", "GuestPorts"]

MOST_PORTS = 8192
"""Listening sockets that are told of."""

_REFUSED = frozenset({errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.ETIMEDOUT})
_NAME = 64


class GuestPorts(GuestCalls):
    """A part of `GuestConnection`: ports inside."""

    async def ports(self) -> builtins.list[PortInfo]:
        """What listens, sorted by port."""
        with self._failures(""):
            return [_port_info(entry) async for entry in self._pages("ports", ".", MOST_PORTS)]

    async def connect_port(self, port: int) -> GuestPort:
        """A connection to a port.

        Raises:
            PortRefusedError: nothing takes connections there.
            OSError: `EMFILE`, too many connections are open.
        """
        body = {"op": "connect", "port": port}
        call = await self._connection.open(body, lasting=True, wide=True)
        stream = GuestPort(self._connection, call, port)
        try:
            await stream.connected()
        except BaseException:
            call.close()
            raise
        return stream


class GuestPort:
    """Bytes to and from a port. To be closed, also after both ways have ended.

    One may send while another receives. What breaks it is told by `anyio.BrokenResourceError`,
    the end of the guest by `SandboxLostError`; cancelled, `receive` loses nothing.
    """

    def __init__(self, connection: Connection, call: Call, port: int) -> None:
        self._connection = connection
        self._call = call
        self._port = port
        self._connected = False
        self._deaf = False
        self._ended = False

    async def connected(self) -> None:
        """Wait until it is. Raises as `GuestPorts.connect_port`."""
        with failures(self._connection, ""):
            while not self._connected:
                self._take_events()
                if self._connected:
                    return
                if self._call.ended:
                    await self._refused()
                self._connection.check()
                await self._call.news.wait()

    async def _refused(self) -> None:
        try:
            await self._call.result()
        except CallFailed as failed:
            if failed.body.get("errno") not in _REFUSED:
                raise
            raise PortRefusedError(self._port) from None
        raise protocol.FrameError("no connection")

    def _take_events(self) -> None:
        while self._call.events:
            event = self._call.events.popleft()
            if event.get("connected") is True:
                self._connected = True
            elif event.get("deaf") is True:
                self._deaf = True
            else:
                raise protocol.FrameError("an event that is none")

    async def receive(self, limit: int) -> bytes:
        """The next bytes; b"" when no more will come."""
        try:
            return await self._call.receive(0, limit)
        except CallFailed as failed:
            raise anyio.BrokenResourceError from failed

    async def send(self, data: bytes) -> None:
        """Send bytes as whoever listens takes them."""
        start = 0
        while start < len(data):
            if self._ended or self._call.closed:
                raise anyio.ClosedResourceError
            if self._is_unheard():
                raise anyio.BrokenResourceError
            start += await self._call.send_some(data, start, self._is_unheard)

    def _is_unheard(self) -> bool:
        with failures(self._connection, ""):
            self._take_events()
        return self._deaf or self._call.is_over

    def send_eof(self) -> None:
        """No more will be sent; what comes can still be received."""
        if not self._ended:
            self._ended = True
            self._call.send_end()

    def close(self) -> None:
        """End it; what was sent is still delivered. May be called twice."""
        self.send_eof()
        self._call.close()


def _port_info(entry: list[Any]) -> PortInfo:
    if len(entry) != 4:
        raise protocol.FrameError("a port that is none")
    port, address, pid, name = entry
    if not _is_number(port, 1 << 16) or not isinstance(address, str):
        raise protocol.FrameError("a port that is none")
    if not (pid is None or _is_number(pid, 1 << 31)) or not isinstance(name, str | None):
        raise protocol.FrameError("a port of no process")
    return PortInfo(
        port=port,
        address=clean(address)[:_NAME],
        pid=pid,
        process=None if name is None else clean(name)[:_NAME],
    )


def _is_number(value: object, bound: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < bound
