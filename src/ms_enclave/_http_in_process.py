"""Requests to an ASGI application in this process, as a connection would carry them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, MutableMapping

__all__ = ["Content", "Exchange", "Headers", "InProcess"]

logger = logging.getLogger(__name__)

Content: TypeAlias = "bytes | AsyncIterable[bytes] | None"
Headers: TypeAlias = tuple[tuple[str, str], ...]

_END_SECONDS = 15.0
"""What an application has to end a call whose caller has gone."""


class InProcess:
    """Requests to an ASGI application, whose answers come as it gives them.

    Each runs in a task of its own on the private loop, which ends with its answer: closing that
    early is to the application what a lost connection is.
    """

    def __init__(self, base_url: str, headers: Headers, app: Any) -> None:
        self._base_url = base_url
        self._headers = headers
        self._app = app

    async def ask(
        self, method: str, path: str, content: Content, headers: dict[str, str]
    ) -> Exchange:
        """Make a request, and wait for the head of its answer. Raises ConnectionError where there
        is none, and whatever the content raises."""
        all_headers = {**dict(self._headers), **headers}
        exchange = Exchange(self._base_url, method, path, content, all_headers)
        exchange.task = asyncio.ensure_future(exchange.run(self._app))
        try:
            await exchange.head
        except BaseException:
            await exchange.aclose()
            raise
        return exchange

    async def aclose(self) -> None:
        """Nothing: whoever makes a request ends it."""


class Exchange:
    """One request to an application in this process, and its answer."""

    status: int
    headers: Mapping[str, str]

    def __init__(
        self, base_url: str, method: str, path: str, content: Content, headers: dict[str, str]
    ) -> None:
        self._base_url = base_url
        self._method = method
        self._path, _, self._query = path.partition("?")
        self._headers = headers
        if not isinstance(content, AsyncIterable):
            content, whole = None, content or b""
            self._headers["content-length"] = str(len(whole))
            self._first: bytes | None = whole
        else:
            self._first = None
        self._upload = None if content is None else content.__aiter__()
        self._gone = anyio.Event()
        self._pipe, self._pieces = anyio.create_memory_object_stream[bytes](8)
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Future[None] | None = None
        self._whole = False

    async def run(self, app: Any) -> None:
        """See the application through."""
        try:
            await app(self._scope(), self._receive, self._send)
        except Exception as error:
            logger.warning("an application in this process failed", exc_info=error)
            self._break(error)
        else:
            if not self._whole:
                self._break(RuntimeError("no answer"))
        finally:
            self._pipe.close()
            if not self.head.done():
                self.head.cancel()

    def _scope(self) -> dict[str, Any]:
        url = urlsplit(self._base_url)
        path = url.path.rstrip("/") + self._path
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self._method,
            "headers": [
                (b"host", url.netloc.encode()),
                *((name.lower().encode(), said.encode()) for name, said in self._headers.items()),
            ],
            "scheme": url.scheme,
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": self._query.encode(),
            "server": (url.hostname, url.port or {"http": 80, "https": 443}[url.scheme]),
            "client": ("127.0.0.1", 1),
            "root_path": "",
        }

    async def _receive(self) -> dict[str, Any]:
        if self._first is not None:
            first, self._first = self._first, None
            return {"type": "http.request", "body": first, "more_body": False}
        if self._upload is not None:
            async for piece in self._upload:
                return {"type": "http.request", "body": piece, "more_body": True}
            self._upload = None
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1"): said.decode("latin-1")
                for name, said in message.get("headers", ())
            }
            if not self.head.done():
                self.head.set_result(None)
        elif message["type"] == "http.response.body" and not self._gone.is_set():
            if body := message.get("body", b""):
                with suppress(anyio.BrokenResourceError):  # nobody reads any more
                    await self._pipe.send(body)
            self._whole = not message.get("more_body", False)

    def _break(self, error: Exception) -> None:
        if not self.head.done():
            self.head.set_exception(ConnectionError(f"no answer: {type(error).__name__}"))

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its body as it comes. Raises ConnectionError where it breaks off."""
        async for piece in self._pieces:
            yield piece
        if not self._whole:
            raise ConnectionError("the answer broke off")

    async def aclose(self) -> None:
        """The reader has gone, or has all of it."""
        self._gone.set()
        self._pieces.close()
        if self.task is not None and not self.task.done():
            await asyncio.wait([self.task], timeout=_END_SECONDS)
            self.task.cancel()
            await asyncio.wait([self.task])
