"""What every request passes before a route sees it: size, key, deadline, and whether who asked is
still there. Plain ASGI: one layer, and one task a request."""

from __future__ import annotations

import asyncio
import math
import re
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import anyio

from ms_enclave import wire
from ms_enclave.errors import AuthenticationError, ConfigError, EnclaveError
from ms_enclave.server._pages import check_host, check_origin
from ms_enclave.server._recheck import asked_again
from ms_enclave.server.answers import answer_error
from ms_enclave.server.audit import refusal_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
    from typing import TypeAlias

    from ms_enclave.server.access import Access, Principal
    from ms_enclave.server.audit import Audit
    from ms_enclave.server.observer import Observer

    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    App: TypeAlias = Callable[[Any, Receive, Send], Awaitable[None]]

__all__ = ["GONE", "Gate"]

_OPEN = frozenset({"/health", "/health/ready"})
_UPLOADS = re.compile(
    r"/sandbox/[^/]+/archive|/v1/sandboxes/[^/]+/(archive|files/content)|/v1/snapshots/[^/]+/archive"
)
_NO_BODY = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
_QUERY_KEYS = frozenset({"api_key", "api-key", "apikey", "x-api-key"})
GONE = "connection_gone"
"""Where the state of a WebSocket has the event of its end, for who reads no messages meanwhile."""
CLOSING_SECONDS = 5.0
"""That a WebSocket has to take in what was sent before its end, or to say why it ends."""


class TooLargeError(EnclaveError):
    """The body has more bytes than a request of its kind may have."""

    code = "config"
    http_status = 413


class Gate:
    """The layer around the routes. Puts the `Principal` into the request's state.

    A request whose caller has gone, or is not going to wait any longer, is cancelled.
    """

    def __init__(
        self, app: App, access: Access, observer: Observer, audit: Audit | None = None
    ) -> None:
        self._app = app
        self._audit = audit
        self._access = access
        self._observer = observer

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request, or one connection."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        if scope["type"] == "websocket":
            await self._answer(scope, headers, receive, send)
            return
        await self._observer.see(
            scope, headers, send, lambda tell: self._answer(scope, headers, receive, tell)
        )

    async def _answer(
        self, scope: Any, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        turn, who = AsyncExitStack(), None
        try:
            check_host(scope, headers)
            who = None if scope["path"] in _OPEN else await self._let_in(scope, headers)
            if scope["type"] == "websocket" or not self._access.needs_key:
                check_origin(headers)
            seconds = _deadline(headers)
            most = _most(scope["path"], headers, None if who is None else who.largest_body)
            if who is not None:
                scope.setdefault("state", {})["principal"] = who
                await turn.enter_async_context(who.turn())
        except EnclaveError as error:
            await self._note(scope, who, error)
            await _refuse(scope, send, receive, error)
            return
        async with turn:
            if scope["type"] == "websocket":
                await self._connect(scope, receive, send, who)
            else:
                attended = _Attended(receive, send, most, scope["method"] in _NO_BODY)
                await attended.run(self._app, scope, seconds, who)

    async def _note(self, scope: Any, who: Principal | None, error: EnclaveError) -> None:
        if self._audit is not None:
            refusal = refusal_of(scope, who, error, self._audit.clock())
            if refusal is not None:
                await self._audit.refuse(refusal)

    async def _connect(
        self, scope: Any, receive: Receive, send: Send, who: Principal | None
    ) -> None:
        refused = False

        def refuse() -> None:
            nonlocal refused
            refused = True
            tasks.cancel_scope.cancel()

        async def leave(gone: asyncio.Event) -> None:
            await gone.wait()
            # Who reads messages has that from the last of them, but who is held up reads none.
            await anyio.sleep(CLOSING_SECONDS)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            gone = scope.get("state", {}).get(GONE)
            if gone is not None:
                tasks.start_soon(leave, gone)
            with asked_again(who, tasks.start_soon, refuse):
                await self._app(scope, receive, send)
            tasks.cancel_scope.cancel()
        if refused:
            # It may have been closed meanwhile, and who reads nothing is not told.
            with suppress(Exception), anyio.move_on_after(CLOSING_SECONDS):
                await send(_closing(_revoked()))

    async def _let_in(self, scope: Any, headers: dict[bytes, bytes]) -> Principal:
        query = scope.get("query_string", b"")
        if query and any(name.lower() in _QUERY_KEYS for name, _ in _pairs(query)):
            raise AuthenticationError(
                "a key in an address is in every log on its way",
                remedy="send it in the header X-API-Key",
            )
        key = headers.get(wire.KEY_HEADER.encode())
        principal = await self._access.authenticate(None if key is None else key.decode("latin-1"))
        if principal is None:
            raise AuthenticationError(
                "Invalid or missing API key", remedy="send the right one in the header X-API-Key"
            )
        return principal


class _Attended:
    """One request while it is answered."""

    def __init__(self, receive: Receive, send: Send, most: int, bodiless: bool) -> None:
        self._receive = receive
        self._send = send
        self._left = most
        self._most = most
        self._bodiless = bodiless
        self._begun = False
        self._too_large: TooLargeError | None = None
        self._gone = asyncio.Event()
        self._is_revoked = False
        self._scope = anyio.CancelScope()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, app: App, scope: Any, seconds: float, who: Principal | None) -> None:
        failed: Exception | None = None
        self._scope.deadline = anyio.current_time() + seconds
        try:
            with self._scope:
                if self._bodiless:
                    self._start(self._watch)
                with asked_again(who, self._start, self._revoke):
                    await app(scope, self.receive, self.send)
        except Exception as error:  # noqa: BLE001 - raised below, when it was answered
            failed = None if self._gone.is_set() else error
        finally:
            for task in self._tasks:  # which wait for a message or an answer, and hold nothing
                task.cancel()
        if self._too_large is not None and not self._begun:
            await answer_error(scope, self._too_large, self.receive, self._send, closing=True)
        elif failed is not None:
            if not self._begun:  # by the layer beyond it would be answered unseen and without an id
                await answer_error(scope, failed, self.receive, self._send)
            raise failed  # for the log
        elif self._scope.cancelled_caught and not (self._begun or self._gone.is_set()):
            late = TimeoutError(f"not done within the {seconds:g} seconds that the caller gave")
            why = _revoked() if self._is_revoked else late
            await answer_error(scope, why, self.receive, self._send)

    def _start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have something done meanwhile. A task and no group, which costs a tenth of a call."""
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)

    def _revoke(self) -> None:
        self._is_revoked = True
        self._scope.cancel()

    async def receive(self) -> Message:
        """What the route reads."""
        if self._bodiless:
            self._bodiless = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._left < 0:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._leave()
            return message
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self._too_large = TooLargeError(f"a request of this kind may have {self._most} bytes")
            raise self._too_large
        if not message.get("more_body", False):
            self._left = -1
            self._start(self._watch)
        return message

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        self._gone.set()
        self._scope.cancel()

    async def send(self, message: Message) -> None:
        """What the route answers; what it makes of half a body is nobody's answer."""
        if self._too_large is not None and not self._begun:
            return
        self._begun = True
        await self._send(message)


def _headers(scope: Any) -> dict[bytes, bytes]:
    return dict(scope["headers"])


def _pairs(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def _deadline(headers: dict[bytes, bytes]) -> float:
    given = headers.get(wire.DEADLINE_HEADER.encode())
    return math.inf if given is None else wire.read_deadline(given.decode("latin-1"))


def _most(path: str, headers: dict[bytes, bytes], largest: int | None) -> int:
    most = wire.UPLOAD_LIMIT if _UPLOADS.fullmatch(path) else wire.JSON_LIMIT
    most = most if largest is None else min(most, largest)
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise ConfigError("content-length is no number")
    if len(length) > 15 or int(length) > most:
        raise TooLargeError(f"a request of this kind may have {most} bytes")
    return most


def _revoked() -> AuthenticationError:
    return AuthenticationError("the API key is not good any more", remedy="use another")


def _closing(error: EnclaveError) -> Message:
    code = 4000 + error.http_status
    return {"type": "websocket.close", "code": code, "reason": error.message[:100]}


async def _refuse(scope: Any, send: Send, receive: Receive, error: EnclaveError) -> None:
    if scope["type"] == "websocket":
        await receive()  # what asks to be let in
        await send(_closing(error))
        return
    # Nobody waits for the body of what is refused.
    await answer_error(scope, error, receive, send, closing=scope["method"] not in _NO_BODY)
