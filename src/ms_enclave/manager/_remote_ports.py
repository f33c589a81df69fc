"""A connection to a port of a sandbox on a server: one answer that goes on, and requests beside."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import anyio

from ms_enclave import wire
from ms_enclave.errors import EnclaveError, ServerUnreachableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ms_enclave.http_client import Answering
    from ms_enclave.manager._remote_link import Link

__all__ = ["RemotePort"]

_CONNECTION = "enclave-connection"
_WAITING = 4
"""Pieces that are held here for whoever receives."""


class RemotePort:
    """Bytes to and from a port, in the shape of `channel.ports.GuestPort`."""

    def __init__(self, link: Link, path: str, here: Callable[[], str]) -> None:
        self._link = link
        self._path = path
        self._here = here
        self._put, self._get = anyio.create_memory_object_stream[bytes](_WAITING)
        self._rest = b""
        self._error: Exception | None = None
        self._pump: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[object]] = set()
        self._eof = False
        self._closed = False

    @classmethod
    async def open(cls, link: Link, path: Callable[..., str], port: int) -> RemotePort:
        """Connect. Raises as `Sandbox.connect`."""
        stack = AsyncExitStack()
        try:
            answering = await stack.enter_async_context(
                link.answering("POST", path("ports", str(port), "connect"), {"timeout": None})
            )
            made = cls(
                link, path("connections", answering.headers[_CONNECTION]), lambda: path("info")
            )
        except BaseException:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
            raise
        made._pump = asyncio.ensure_future(made._receive_all(stack, answering))
        link.own(made._pump)
        return made

    async def _receive_all(self, stack: AsyncExitStack, answering: Answering) -> None:
        reader = wire.FrameReader()
        async with stack:
            try:
                async for piece in answering.pieces():
                    for data in reader.feed(piece):
                        await self._put.send(data)
                    if reader.ended:
                        self._error = reader.error
                        self._put.close()
                        await asyncio.Event().wait()  # the other way goes on until it is closed
                self._error = anyio.BrokenResourceError()
            except ServerUnreachableError as error:
                self._error = await self._why(error)
            except anyio.BrokenResourceError:
                pass  # it was closed
            finally:
                self._put.close()

    async def _why(self, error: Exception) -> Exception:
        """What the server says of the sandbox, where it answers."""
        try:
            await self._link.get(self._here())
        except EnclaveError as found:
            return found
        return error

    async def receive(self, limit: int) -> bytes:
        """The next bytes; b"" when no more will come."""
        if not self._rest:
            try:
                self._rest = await self._get.receive()
            except anyio.EndOfStream:
                self._raise()
                return b""
        data, self._rest = self._rest[:limit], self._rest[limit:]
        return data

    def _raise(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if isinstance(self._error, BrokenPipeError):
            raise anyio.BrokenResourceError from self._error
        if self._error is not None:
            raise self._error

    async def send(self, data: bytes) -> None:
        """Send bytes as whoever listens takes them."""
        for start in range(0, len(data), wire.CHUNK_LIMIT):
            if self._eof or self._closed:
                raise anyio.ClosedResourceError
            await self._send(data[start : start + wire.CHUNK_LIMIT])

    async def _send(self, piece: bytes) -> None:
        task: asyncio.Task[object] = asyncio.ensure_future(self._link.send(self._path, piece))
        self._sending.add(task)
        try:
            await asyncio.shield(task)
        except BrokenPipeError:
            raise anyio.BrokenResourceError from None
        except asyncio.CancelledError:
            if self._closed and task.cancelled():
                raise anyio.ClosedResourceError from None
            task.cancel()
            raise
        finally:
            self._sending.discard(task)

    def send_eof(self) -> None:
        """No more will be sent; what comes can still be received."""
        if not self._eof:
            self._eof = True
            self._ending = asyncio.ensure_future(self._tell(self._link.delete(self._path)))
            self._link.own(self._ending)

    async def _tell(self, call: Awaitable[object]) -> None:
        with suppress(EnclaveError, OSError):  # there is nobody any more who could be told
            await call

    def close(self) -> None:
        """End it; what was sent is still delivered. May be called twice."""
        if self._closed:
            return
        self._closed = True
        for task in list(self._sending):
            task.cancel()
        self._link.own(asyncio.ensure_future(self._end()))

    async def _end(self) -> None:
        self._put.close()
        if self._ending is not None:
            await asyncio.wait([self._ending])
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        self._get.close()
