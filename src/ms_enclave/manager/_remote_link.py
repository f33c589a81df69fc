"""How calls go to a server: one request each, with its deadline, and errors as they were raised."""

from __future__ import annotations

import asyncio
import logging
import secrets
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import quote, urlencode

import anyio

from ms_enclave import wire
from ms_enclave.errors import EnclaveError, SandboxStateError, ServerUnreachableError
from ms_enclave.http_client import HttpClient
from ms_enclave.loop import add_closer, remove_closer
from ms_enclave.utils.tracing import carry, span

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Awaitable,
        Callable,
        Generator,
        Mapping,
    )

    from ms_enclave.http_client import Answering, Place

__all__ = ["Link", "path_of"]

logger = logging.getLogger(__name__)

_MOST = 256 << 20
"""Bytes of a document: 16 MiB of output in base64, or a hundred thousand names, are far less."""
_TRIES = 3
_PAUSE = 0.2


def path_of(*parts: str, **query: Any) -> str:
    """A path of version 1; what is None in the query is left out."""
    path = "/".join((wire.V1, *(quote(part, safe="") for part in parts)))
    said = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }
    return f"{path}?{urlencode(said)}" if said else path


@contextmanager
def _traced(method: str, path: str, headers: dict[str, str]) -> Generator[None, None, None]:
    """A request as a part of its caller's trace, of which its headers then tell the server."""
    with span(f"{method} request", "CLIENT", http__request__method=method, url__path=path):
        carry(headers)
        yield


class Handle(Protocol):
    """What wants to know of the end of a sandbox."""

    def note_end(self) -> None:
        """It has ended."""
        ...


class Link:
    """The way to one server, on the private loop: a pool of connections that is opened on first
    use, and small tasks that look how things are.

    Args:
        seconds: how long a request may take beyond what it is told to take; None for ever.
    """

    def __init__(self, place: Place, seconds: float | None) -> None:
        self._place = place
        self._seconds = seconds
        self._client: HttpClient | None = None
        self._ended = False
        self._opening = asyncio.Lock()
        self._home: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._handles: dict[str, weakref.WeakSet[Handle]] = {}
        self._looks: dict[object, asyncio.Task[None]] = {}
        self.on_made: Callable[[str], object] = lambda _sandbox_id: None
        """Told of a sandbox that another one's handle has made."""

    def begin(self) -> None:
        """Take calls, again after an `end`."""
        self._ended = False

    async def end(self) -> None:
        """Take no more calls, and close all connections."""
        self._ended = True
        await self.aclose()

    async def open(self) -> HttpClient:
        """The client.

        Raises:
            ConfigError: the address or the key is none.
            SandboxStateError: the manager was stopped.
        """
        if self._ended:
            raise SandboxStateError("This manager is not running: it was stopped")
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await HttpClient.open(self._place)
                    self._home = asyncio.get_running_loop()
                    add_closer(self, self.aclose, last=True)
        return self._client

    async def aclose(self) -> None:
        """Close all connections. The next call opens new ones."""
        remove_closer(self)
        tasks = [*self._looks.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def look(self, key: object, look: Callable[[], Awaitable[object]]) -> None:
        """Find out something in the background, once at a time for each key; from any thread."""
        home = self._home
        if home is not None and self._client is not None:
            with suppress(RuntimeError):  # that loop has ended, and everything with it
                home.call_soon_threadsafe(self._begin_look, key, look)

    def _begin_look(self, key: object, look: Callable[[], Awaitable[object]]) -> None:
        if key not in self._looks and self._client is not None:
            self._looks[key] = asyncio.ensure_future(self._see(key, look))

    async def _see(self, key: object, look: Callable[[], Awaitable[object]]) -> None:
        try:
            await look()
        except (EnclaveError, OSError):
            logger.debug("a look at %s failed", key, exc_info=True)
        finally:
            self._looks.pop(key, None)

    def know(self, sandbox_id: str, handle: Handle) -> None:
        """Have a handle told when its sandbox is ended from here."""
        self._handles.setdefault(sandbox_id, weakref.WeakSet()).add(handle)
        weakref.finalize(handle, self._drop, sandbox_id)

    def _drop(self, sandbox_id: str) -> None:
        if not any(True for _ in self._handles.get(sandbox_id, ())):  # its length counts the dead
            self._handles.pop(sandbox_id, None)

    def tell_end(self, sandbox_id: str) -> None:
        """A sandbox was ended."""
        for handle in list(self._handles.get(sandbox_id, ())):
            handle.note_end()

    def own(self, task: asyncio.Future[Any]) -> None:
        """See a task to its end when the link is closed."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- calls ---

    async def get(self, path: str, *, extra: float | None = 0.0) -> Any:
        """Ask for a document. A connection that broke is tried again: asking changes nothing."""
        return await self._again("GET", path, None, extra, {})

    async def post(
        self, path: str, body: Any = None, *, extra: float | None = 0.0, once: bool = True
    ) -> Any:
        """Have something done, and give the document that answers it.

        Args:
            extra: seconds that it is told to take; None where that may be for ever.
            once: whether it must not be done twice; where it may, a key sees to that it is not,
                and it is tried again when a connection broke.
        """
        content = wire.dump({} if body is None else body)
        if once:
            return await self._document("POST", path, content, extra, {})
        headers = {wire.IDEMPOTENCY_HEADER: secrets.token_hex(16)}
        return await self._again("POST", path, content, extra, headers)

    async def delete(self, path: str, *, extra: float | None = 0.0) -> Any:
        """Have something ended."""
        return await self._document("DELETE", path, None, extra, {})

    async def put(self, path: str, content: bytes | AsyncIterable[bytes]) -> Any:
        """Upload something, for as long as it takes."""
        return await self._document("PUT", path, content, None, {}, wire.STREAM)

    async def send(self, path: str, content: bytes) -> Any:
        """Give it some bytes, which wait there for whoever takes them."""
        return await self._document("POST", path, content, None, {}, wire.STREAM)

    async def _again(
        self, method: str, path: str, content: bytes | None, extra: float | None,
        headers: Mapping[str, str],
    ) -> Any:  # fmt: skip
        for attempt in range(1, _TRIES):
            try:
                return await self._document(method, path, content, extra, headers)
            except ServerUnreachableError as error:
                if getattr(error, "timed_out", False):
                    raise
                await anyio.sleep(_PAUSE * attempt)
        return await self._document(method, path, content, extra, headers)

    async def _document(
        self,
        method: str,
        path: str,
        content: bytes | AsyncIterable[bytes] | None,
        extra: float | None,
        headers: Mapping[str, str],
        kind: str = wire.JSON,
    ) -> Any:
        client = await self.open()
        said = dict(headers)
        if content is not None:
            said["content-type"] = kind
        seconds = None if self._seconds is None or extra is None else self._seconds + extra
        if seconds is not None:
            said[wire.DEADLINE_HEADER] = f"{seconds:.3f}"
        with _traced(method, path, said), anyio.move_on_after(seconds):
            answer = await client.send(method, path, content=content, headers=said, most=_MOST)
            if not answer.whole:
                raise EnclaveError(f"{self._place.shown} answered with more than {_MOST} bytes")
            return self._read(answer.status, answer.body)
        late = ServerUnreachableError(
            f"{self._place.shown} did not answer within {seconds:g} s",
            remedy="see what the server is busy with, or give it more time (timeout)",
        )
        late.__dict__["timed_out"] = True
        raise late

    def _read(self, status: int, body: bytes) -> Any:
        try:
            data = wire.load(body)
        except ValueError:
            data = None
        if status < 300 and data is not None:
            return data
        error = cast("dict[str, Any]", data).get("error") if isinstance(data, dict) else None
        raise wire.decode_error(
            error, f"{self._place.shown} answered with status {status} and nothing that says why"
        )

    @asynccontextmanager
    async def answering(
        self, method: str, path: str, body: Any = None
    ) -> AsyncGenerator[Answering, None]:
        """An answer that comes in pieces, for the length of a block."""
        client = await self.open()
        content = None if body is None else wire.dump(body)
        headers = {} if body is None else {"content-type": wire.JSON}
        carry(headers)
        async with client.stream(method, path, content=content, headers=headers) as answering:
            if answering.status >= 300:
                answer = await answering.whole(_MOST)
                self._read(answer.status, answer.body)
            yield answering

    async def events(self, method: str, path: str, body: Any = None) -> AsyncGenerator[Any, None]:
        """The documents of a stream of events, until its end. Raises what it ends with."""
        reader = wire.EventReader()
        async with self.answering(method, path, body) as answering:
            async for piece in answering.pieces():
                for name, data in reader.feed(piece):
                    if name == "end":
                        return
                    if name == "error":
                        raise wire.decode_error(wire.load(data))
                    yield wire.load(data)
        raise ServerUnreachableError(f"{self._place.shown} broke a stream of events off")
