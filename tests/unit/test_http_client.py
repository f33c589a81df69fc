"""The HTTP client against sockets that misbehave."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from ms_enclave.errors import ServerUnreachableError
from ms_enclave.http_client import HttpClient, Place
from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """Answers the first request of a connection, and closes it at the next without a word."""

    def __init__(self) -> None:
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._take(reader)
            writer.write(OK)
            await self._take(reader)
        except asyncio.IncompleteReadError:
            pass  # the client has gone
        finally:
            writer.close()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.split(b"\r\n")[0].decode())
        if b"chunked" in head:
            await reader.readuntil(b"0\r\n\r\n")


@asynccontextmanager
async def served() -> AsyncGenerator[tuple[Server, str], None]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    try:
        yield server, f"http://{host}:{port}"
    finally:
        listening.close()


async def letters() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


async def broken() -> AsyncIterator[bytes]:
    yield b"a"
    raise LookupError("no more of it")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
@on_loop
async def test_what_a_closed_connection_may_have_taken_is_not_sent_again(method: str) -> None:
    async with served() as (server, base):
        client = await HttpClient.open(Place(base))
        try:
            assert (await client.send("GET", "/first", most=10)).body == b"{}"
            content = letters() if method == "PUT" else None
            with pytest.raises(ServerUnreachableError):
                await client.send(method, "/second", content=content, most=10)
            assert server.heads == ["GET /first HTTP/1.1", f"{method} /second HTTP/1.1"]
        finally:
            await client.aclose()


@on_loop
async def test_what_an_upload_raises_is_raised_as_it_is() -> None:
    async with served() as (_, base):
        client = await HttpClient.open(Place(base))
        try:
            with pytest.raises(LookupError, match="no more of it"):
                await client.send("PUT", "/", content=broken(), most=10)
        finally:
            await client.aclose()


@on_loop
async def test_a_proxy_of_the_environment_is_gone_by(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served() as (server, base):
        monkeypatch.setenv("http_proxy", base)
        monkeypatch.setenv("no_proxy", "elsewhere.test")
        client = await HttpClient.open(Place("http://somewhere.test"))
        try:
            assert (await client.send("GET", "/a%20b?c=d", most=10)).status == 200
            assert server.heads == ["GET http://somewhere.test/a%20b?c=d HTTP/1.1"]
        finally:
            await client.aclose()
        client = await HttpClient.open(Place("http://elsewhere.test"))
        try:
            with pytest.raises(ServerUnreachableError):
                await client.send("GET", "/", most=10)
            assert len(server.heads) == 1
        finally:
            await client.aclose()
