"""A client of a gateway that listens on a sandbox's own loopback: HTTP and websockets.

Its connections go through the sandbox's guest, so that they need no network.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
from typing_extensions import override

from ms_enclave.errors import EnclaveError, SandboxLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.client_proto import ResponseHandler

    from ms_enclave.channel.ports import GuestPort

__all__ = ["Channels", "GatewayClient"]

_CHUNK = 1 << 18
_MOST_OF_ANSWER = 1 << 20
_ASK_BOUND = 30.0
"""Seconds that the gateway may take to answer."""


class GatewayClient:
    """A gateway of one sandbox. To be closed.

    Raises, from every method: SandboxLostError where the gateway does not answer, or not as one
    does; PortRefusedError where nothing listens.

    Args:
        reach: connects to its port.
    """

    def __init__(self, reach: Callable[[], Awaitable[GuestPort]], url: str, token: str) -> None:
        self._url = url
        self._connector = _Connector(reach)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            headers={"Authorization": f"token {token}"},
            timeout=aiohttp.ClientTimeout(total=_ASK_BOUND),
        )

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers, from JSON; None for nothing."""
        try:
            async with self._session.request(method, f"{self._url}{path}", json=body) as answer:
                text = bytearray()
                async for part in answer.content.iter_chunked(_CHUNK):
                    text += part
                    if len(text) > _MOST_OF_ANSWER:
                        raise _failed("its answer is too long")
                if answer.status >= 400:
                    raise _failed(f"{answer.status} {text[:500].decode('utf-8', 'replace')}")
                return json.loads(text) if text.strip() else None
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _cause(error) from error

    async def channels(self, kernel: str, session: str, most: int) -> Channels:
        """What a kernel says and is told.

        Args:
            most: bytes that one message may have.
        """
        url = f"{self._url}/api/kernels/{kernel}/channels?session_id={session}"
        try:
            return Channels(await self._session.ws_connect(url, max_msg_size=most))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _cause(error) from error

    async def aclose(self) -> None:
        """Hang up."""
        await self._session.close()
        await self._connector.end_pumps()


class Channels:
    """The websocket of one kernel."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._socket = socket

    async def receive(self) -> str | None:
        """The next message; None when no more will come."""
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                return str(message.data)
            if message.type is not aiohttp.WSMsgType.BINARY:
                return None

    async def send(self, text: str) -> None:
        """Send a message. Nothing happens where nobody listens any more."""
        with suppress(aiohttp.ClientError, OSError):
            await self._socket.send_str(text)

    async def aclose(self) -> None:
        """Hang up. May be called twice."""
        with suppress(aiohttp.ClientError, OSError):
            await self._socket.close()


def _cause(error: BaseException) -> EnclaveError:
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, EnclaveError):
            return inner
        inner = inner.__cause__ or inner.__context__
    return _failed(str(error) or type(error).__name__)


def _failed(words: str) -> SandboxLostError:
    return SandboxLostError(f"The notebook's gateway does not answer as one: {words}")


class _Connector(aiohttp.BaseConnector):
    """Connections that are one end of a pair of sockets; the other end is pumped to the guest."""

    def __init__(self, reach: Callable[[], Awaitable[GuestPort]]) -> None:
        super().__init__(limit=0, force_close=True)
        self._reach = reach
        self._pumps: set[asyncio.Task[None]] = set()

    @override
    async def _create_connection(
        self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        try:
            port = await self._reach()
        except EnclaveError as error:
            raise aiohttp.ClientConnectionError(str(error)) from error
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        pump = asyncio.create_task(_pump(port, ours))
        self._pumps.add(pump)
        pump.add_done_callback(self._pumps.discard)
        _, protocol = await self._loop.create_connection(self._factory, sock=theirs)
        return protocol

    async def end_pumps(self) -> None:
        """Let go of what connections are made of, once they were closed."""
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)


async def _pump(port: GuestPort, ours: socket.socket) -> None:
    """Carry bytes both ways until either has ended."""
    there = asyncio.create_task(_carry_there(port, ours))
    try:
        loop = asyncio.get_running_loop()
        while data := await port.receive(_CHUNK):
            await loop.sock_sendall(ours, data)
    except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, SandboxLostError):
        pass  # whoever reads sees the end of it
    finally:
        there.cancel()
        with suppress(asyncio.CancelledError):
            await there
        ours.close()
        port.close()


async def _carry_there(port: GuestPort, ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, SandboxLostError):
        while data := await loop.sock_recv(ours, _CHUNK):
            await port.send(data)
    port.close()
