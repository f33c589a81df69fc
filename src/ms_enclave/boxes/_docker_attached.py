"""The streams of a process in a container, as an engine carries them: one stream of bytes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import aiohttp
import anyio
from anyio.abc import ByteStream
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiodocker.stream import Stream

__all__ = ["Attached"]

_LAST_WORDS = 0.2
"""Seconds that what a process has said may take to arrive after its end is known."""

_STDOUT = 1
_KEPT_WORDS = 4096
"""Bytes of what a container says beside its channel that are kept, for error messages."""


class Attached(ByteStream):
    """Standard input and output of a process in a container, as one stream.

    What comes on its standard error is kept, as far as it is worth a message: `said`.

    Args:
        find_pid: what the engine knows the process by on its machine; 0 where it does not say.
    """

    def __init__(self, stream: Stream, find_pid: Callable[[], Awaitable[int]]) -> None:
        self.find_pid = find_pid
        self._stream = stream
        self._listening: asyncio.Task[None] | None = None
        self._rest = b""
        self._said = bytearray()
        self._closed = False
        self.on_end: Callable[[], Awaitable[object]] | None = None
        """Told when the process has ended, unless `aclose` was first."""

    @property
    def said(self) -> str:
        """The last words on standard error."""
        return self._said.decode("utf-8", "replace").strip()

    @override
    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes."""
        while not self._rest:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                message = await self._stream.read_out()
            except (aiohttp.ClientError, OSError) as error:
                await self._tell_of_end()
                raise anyio.BrokenResourceError from error
            if message is None:
                await self._tell_of_end()
                raise anyio.EndOfStream
            if message.stream == _STDOUT:
                self._rest = message.data
            else:
                self._said += message.data
                del self._said[:-_KEPT_WORDS]
        data, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return data

    async def _tell_of_end(self) -> None:
        if self.on_end is not None and not self._closed:
            await self.on_end()

    def expect_end(self) -> None:
        """Its process has ended, as is known from elsewhere: take its last words, and end. Engines
        keep the stream open where not all was read that the process was sent."""
        transport = self._transport()
        if transport is not None:
            asyncio.get_running_loop().call_later(_LAST_WORDS, transport.abort)

    def listen(self) -> None:
        """Keep what is said from now on, for a process that is talked to by other means."""
        self._listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(
            anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError
        ):
            while True:
                await self.receive()

    def put(self, item: bytes) -> None:
        """Have something sent, before anything else; what comes of that is heard by `receive`."""
        transport = self._transport()
        if transport is not None:
            transport.write(item)

    def _transport(self) -> asyncio.Transport | None:
        response = self._stream._resp  # pyright: ignore[reportPrivateUsage] - it waits, or hides it
        connection = None if response is None else response.connection
        return None if connection is None else connection.transport

    @override
    async def send(self, item: bytes) -> None:
        """Send all of it."""
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            await self._stream.write_in(item)
        except (aiohttp.ClientError, OSError, RuntimeError, AssertionError) as error:
            # The last two are how `aiodocker` says that the other end has hung up.
            raise anyio.BrokenResourceError from error

    @override
    async def send_eof(self) -> None:
        """Not to be had without the way back."""
        await self.aclose()

    @override
    async def aclose(self) -> None:
        """Hang up. May be called twice."""
        if not self._closed:
            self._closed = True
            if self._listening is not None:
                self._listening.cancel()
            transport = self._transport()
            with contextlib.suppress(aiohttp.ClientError, OSError, AssertionError):
                await self._stream.close()
            if transport is not None:
                transport.abort()  # what was not taken from it never will be
