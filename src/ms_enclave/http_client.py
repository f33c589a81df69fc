"""The one place that talks HTTP to others: `aiohttp` with our errors and bounds.

Everything here runs on the private loop. A client sends no credentials to any other place than the
one it was made for: it follows no redirect.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
import anyio.to_thread
from yarl import URL

from ms_enclave._http_in_process import Content, InProcess
from ms_enclave.errors import ConfigError, ServerUnreachableError
from ms_enclave.version import __version__

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Mapping,
    )

__all__ = ["Answer", "Answering", "HttpClient", "Place"]

_TLS = (
    "let the machine trust the server's certificate (SSL_CERT_FILE names a file of it), or, where "
    "nobody can come between, set verify_ssl=False"
)
_CONNECT_SECONDS = 10.0

_Explain: TypeAlias = "Callable[[BaseException], ServerUnreachableError]"
_FAILED = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a connection that is none, or is none any more, raises."""
_SMALL = 1 << 20
"""Bytes that are handed to the socket in one go."""

_CONNECT = "see that the server runs and that this machine can reach it"


@dataclass(frozen=True)
class Place:
    """Where a server is and how it is spoken to."""

    base_url: str
    headers: tuple[tuple[str, str], ...] = ()
    """Sent with every request; what stands in them is told to nobody else."""
    verify_ssl: bool = True
    max_concurrency: int = 16
    """Requests at a time; further ones wait for their turn."""
    app: Any = None
    """An ASGI application in this process that is spoken to in place of a server."""

    def __repr__(self) -> str:
        return f"Place({self.shown})"

    @property
    def shown(self) -> str:
        """The address as it may stand in a message."""
        return self.base_url


@dataclass(frozen=True)
class Answer:
    """What a server answered, as far as it was read."""

    status: int
    headers: Mapping[str, str]
    """By name in small letters."""
    body: bytes
    whole: bool = True
    """Whether the body is all of it, and not the first bytes of more than was wanted."""


class HttpClient:
    """A client of one server, with a pool of connections; made by `open`.

    Cancelling a request closes its connection, which is how the server hears of it.
    """

    def __init__(self, place: Place, way: _Way) -> None:
        self._place = place
        self._way = way
        self._turns = anyio.Semaphore(place.max_concurrency)

    @classmethod
    async def open(cls, place: Place) -> HttpClient:
        """A client that has no connection yet.

        Raises:
            ConfigError: the address or a header is none.
        """
        check_place(place)
        if place.app is not None:
            return cls(place, InProcess(place.base_url, place.headers, place.app))
        return cls(place, _Network(place, *await anyio.to_thread.run_sync(_look_up, place)))

    async def post_json(
        self, path: str, body: Mapping[str, Any], *, seconds: float, most: int
    ) -> Answer:
        """Send a document, and read at most so many bytes of what is answered.

        Args:
            seconds: from when it is this request's turn to the last byte of the answer.

        Raises:
            ServerUnreachableError: the server does not answer, or not in time.
        """
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        async with self._turns:
            with anyio.move_on_after(seconds):
                return await self.send("POST", path, content=content, headers=headers, most=most)
        raise ServerUnreachableError(
            f"{self._place.shown} did not answer within {seconds:g} s",
            remedy="see what the server is busy with, or give it more time (request_timeout)",
        )

    async def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        most: int,
    ) -> Answer:
        """Make a request and read at most so many bytes of the answer. Waits for no turn, and as
        long as it takes: who has a deadline sets it.

        Raises:
            ServerUnreachableError: there is no connection, or it broke.
        """
        coming = await self._ask(method, path, content, headers)
        try:
            return await Answering(coming, self._unreachable).whole(most)
        finally:
            with anyio.CancelScope(shield=True):
                await coming.aclose()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        content: bytes | AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[Answering, None]:
        """Make a request for the length of a block, which reads the answer as it comes. Leaving
        the block before its end closes the connection. Raises as `send`.
        """
        coming = await self._ask(method, path, content, headers)
        try:
            yield Answering(coming, self._unreachable)
        finally:
            with anyio.CancelScope(shield=True):
                await coming.aclose()

    async def _ask(
        self,
        method: str,
        path: str,
        content: bytes | AsyncIterable[bytes] | None,
        headers: Mapping[str, str] | None,
    ) -> _Coming:
        upload = _Upload(content) if isinstance(content, AsyncIterable) else content
        try:
            return await self._way.ask(method, path, upload, dict(headers or {}))
        except _FAILED as error:
            if isinstance(upload, _Upload) and upload.failed is not None:
                raise upload.failed from None  # the caller's own, and no fault of the connection
            raise self._unreachable(error) from None  # its request has the key in a header

    def _unreachable(self, error: BaseException) -> ServerUnreachableError:
        said = str(error) or type(error).__name__
        remedy = _TLS if "CERTIFICATE_VERIFY_FAILED" in said else _CONNECT
        return ServerUnreachableError(f"{self._place.shown} does not answer: {said}", remedy=remedy)

    async def aclose(self) -> None:
        """Close its connections; whoever waits for an answer is told so."""
        await self._way.aclose()


class Answering:
    """An answer on its way."""

    def __init__(self, coming: _Coming, unreachable: _Explain) -> None:
        self._coming = coming
        self._unreachable = unreachable
        self.status = coming.status
        self.headers = coming.headers
        """By name, in whatever letters."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its body as it comes. Raises ServerUnreachableError where the connection breaks."""
        try:
            async for piece in self._coming.pieces():
                yield piece
        except _FAILED as error:
            raise self._unreachable(error) from None

    async def whole(self, most: int) -> Answer:
        """The rest of it, at most so many bytes. Raises as `pieces`."""
        body = bytearray()
        try:
            async for piece in self._coming.pieces():
                body += piece
                if len(body) > most:
                    break
        except _FAILED as error:
            raise self._unreachable(error) from None
        return Answer(self.status, self.headers, bytes(body[:most]), len(body) <= most)


class _Coming(Protocol):
    """An answer of which the head is there."""

    status: int
    headers: Mapping[str, str]

    def pieces(self) -> AsyncIterator[bytes]:
        """Its body. Raises one of `_FAILED` where it breaks off."""
        ...

    async def aclose(self) -> None:
        """Nobody reads any more."""
        ...


class _Way(Protocol):
    """How requests reach an application."""

    async def ask(
        self, method: str, path: str, content: Content, headers: dict[str, str]
    ) -> _Coming:
        """Make a request, and wait for the head of its answer. Raises one of `_FAILED`."""
        ...

    async def aclose(self) -> None:
        """Make no more, and end those that are under way."""
        ...


class _Upload:
    """The bytes of a caller, that remembers what the caller raised in place of more."""

    def __init__(self, content: AsyncIterable[bytes]) -> None:
        self._content = content
        self.failed: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._content:
                yield piece
        except Exception as error:
            self.failed = error
            raise


# --- over a network -------------------------------------------------------------------------------


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Have nothing sent again that may have been taken: by itself, aiohttp repeats what is
    idempotent by its name when a kept connection turns out to be closed."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if isinstance(error, aiohttp.ClientConnectorError):
            raise
        raise aiohttp.ClientConnectionError(str(error)) from error


class _Network:
    """Requests through sockets."""

    def __init__(self, place: Place, trust: ssl.SSLContext | None, proxy: str | None) -> None:
        self._base = place.base_url.rstrip("/")
        self._proxy = proxy
        kept = place.max_concurrency > 0
        connector = aiohttp.TCPConnector(
            limit=0, force_close=not kept, ssl=place.verify_ssl if trust is None else trust
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={
                "User-Agent": f"ms-enclave/{__version__}",
                "Accept-Encoding": "identity",  # nothing that is read becomes more than was sent
                **dict(place.headers),
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            # One deadline for all of a request is set by who makes it; a connection has its own.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            auto_decompress=False,
            middlewares=(_send_once,),
        )

    async def ask(
        self, method: str, path: str, content: Content, headers: dict[str, str]
    ) -> _Received:
        """As `_Way` has it."""
        data: Any = content
        if isinstance(content, bytes) and len(content) > _SMALL:
            data = io.BytesIO(content)
        got = await self._session.request(
            method,
            URL(self._base + path, encoded=True),
            data=data,
            headers=headers,
            allow_redirects=False,
            proxy=self._proxy,
        )
        return _Received(got)

    async def aclose(self) -> None:
        """As `_Way` has it."""
        await self._session.close()


class _Received:
    """An answer from a socket."""

    def __init__(self, got: aiohttp.ClientResponse) -> None:
        self._got = got
        self.status = got.status
        self.headers: Mapping[str, str] = got.headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """As `_Coming` has it."""
        async for piece in self._got.content.iter_any():
            yield piece

    async def aclose(self) -> None:
        """As `_Coming` has it: a connection of which all was read is kept for the next request."""
        self._got.close()


def check_place(place: Place) -> None:
    """Refuse an address or a header that no request could have.

    Raises:
        ConfigError: names what is wrong, and no value of a header.
    """
    parts = urlsplit(place.base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"base_url must be like https://host:port: {place.base_url!r}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("base_url must not hold a name or a password", remedy="use api_key")
    for name, value in place.headers:
        plain = name.isascii() and value.isascii() and (name + value).isprintable()
        if not plain or not name or ":" in name or value != value.strip():
            raise ConfigError(f"the header {name!r} is none that a request can have")


def _look_up(place: Place) -> tuple[ssl.SSLContext | None, str | None]:
    """The certificates that the machine trusts, where they are needed, and the proxy to go by. In a
    worker thread: both may be in files."""
    parts = urlsplit(place.base_url)
    safe = parts.scheme == "https" and place.verify_ssl
    proxies = {} if proxy_bypass(parts.hostname or "") else getproxies()
    return (
        ssl.create_default_context() if safe else None,
        proxies.get(parts.scheme) or proxies.get("all"),
    )
