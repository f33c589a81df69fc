"""The one place that talks HTTP to others: `httpx2` with our errors and bounds.

Everything here runs on the private loop. A client sends no credentials to any other place than the
one it was made for: it follows no redirect.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx2

from ms_enclave.errors import ConfigError, ServerUnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "HttpClient", "Place"]

_TLS = (
    "let the machine trust the server's certificate (SSL_CERT_FILE names a file of it), or, where "
    "nobody can come between, set verify_ssl=False"
)
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
    """A client of one server, with a pool of connections; made by `open_client`.

    Cancelling a request closes its connection, which is how the server hears of it.
    """

    def __init__(self, place: Place, client: httpx2.AsyncClient) -> None:
        self._place = place
        self._client = client
        self._turns = anyio.Semaphore(place.max_concurrency)

    @classmethod
    async def open(cls, place: Place) -> HttpClient:
        """A client that has no connection yet.

        Raises:
            ConfigError: the address or a header is none.
        """
        check_place(place)
        return cls(place, await anyio.to_thread.run_sync(_make, place))

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
        async with self._turns:
            with anyio.move_on_after(seconds):
                return await self._post(path, content, most)
        raise ServerUnreachableError(
            f"{self._place.shown} did not answer within {seconds:g} s",
            remedy="see what the server is busy with, or give it more time (request_timeout)",
        )

    async def _post(self, path: str, content: bytes, most: int) -> Answer:
        headers = {"Content-Type": "application/json"}
        try:
            async with self._client.stream("POST", path, content=content, headers=headers) as got:
                body = bytearray()
                async for piece in got.aiter_bytes():
                    body += piece
                    if len(body) > most:
                        break
                found = {name.lower(): value for name, value in got.headers.items()}
                return Answer(got.status_code, found, bytes(body[:most]), len(body) <= most)
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            raise self._unreachable(error) from None  # its request has the key in a header

    def _unreachable(self, error: Exception) -> ServerUnreachableError:
        said = str(error) or type(error).__name__
        remedy = _TLS if "CERTIFICATE_VERIFY_FAILED" in said else _CONNECT
        return ServerUnreachableError(f"{self._place.shown} does not answer: {said}", remedy=remedy)

    async def aclose(self) -> None:
        """Close its connections; whoever waits for an answer is told so."""
        await self._client.aclose()


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


def _make(place: Place) -> httpx2.AsyncClient:
    """In a worker thread: it reads the certificates that the machine trusts."""
    return httpx2.AsyncClient(
        base_url=place.base_url,
        headers=dict(place.headers),
        verify=place.verify_ssl,
        timeout=None,  # `post_json` has one deadline for all of it
        limits=httpx2.Limits(max_keepalive_connections=place.max_concurrency),
    )
