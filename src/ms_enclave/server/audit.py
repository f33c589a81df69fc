"""The audit log: each call that does something is written down before it is done.

Names are: of actions, tools, programs and files. What is in files, commands and the environment may
be secret, and is not.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import time
from dataclasses import dataclass, replace
from email.message import Message
from typing import TYPE_CHECKING, Any, cast

from fastapi import Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, APIWebSocketRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from typing_extensions import override

from ms_enclave import wire
from ms_enclave.errors import ConfigError, SandboxStateError, StoreUnavailableError
from ms_enclave.loop import on_loop, to_the_end
from ms_enclave.server.answers import RefusedError
from ms_enclave.server.short import replay, shorten

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping

    from fastapi import Response
    from fastapi.dependencies.models import Dependant
    from fastapi.requests import HTTPConnection
    from sqlalchemy import Connection

    from ms_enclave.errors import EnclaveError
    from ms_enclave.server.access import Principal
    from ms_enclave.server.store import Store

__all__ = [
    "KEPT_DAYS", "Audit", "AuditedRoute", "Ending", "Entry", "Refusal", "audit_socket",
    "describe_call", "refusal_of",
]  # fmt: skip

logger = logging.getLogger(__name__)

KEPT_DAYS = 90
"""Days after which an entry is forgotten."""

_DAY = 86400
_FORGET_SECONDS = 3600.0
_MOST_ENDINGS = 10_000
_MOST_NAME = 200
ALIKE_SECONDS = 60.0
_MOST_REFUSED = 1000
_REFUSED = frozenset({401, 403, 429})
_LOOKS = frozenset({"exists", "list_folder", "stat", "search", "wait"})
"""What is asked for by a POST and changes nothing."""
_NAMES = (
    "sandbox_type", "tool_name", "language", "path", "source", "target", "target_dir", "name",
    "port", "signal", "ttl", "pool_size", "tag",
)  # fmt: skip
_OF_TOOLS = ("operation", "file_path", "path", "language")
_COMMANDS = ("command", "line")
_PLAIN = re.compile(r"[\w./+@-]{1,100}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MOST_NUMBER = 1e18


@dataclass(frozen=True)
class Entry:
    """Something that was about to be done."""

    at: float
    tenant: str
    key: str | None
    """By which key; None for who runs the server."""
    action: str
    sandbox: str | None = None
    detail: dict[str, Any] | None = None
    request: str | None = None


@dataclass(frozen=True)
class Ending:
    """What came of it."""

    number: int
    outcome: str
    """`ok`, or an error's code."""
    seconds: float
    sandbox: str | None = None
    """The one that was made."""


@dataclass(frozen=True)
class Refusal:
    """A call that was refused before it was one."""

    entry: Entry
    outcome: str
    """The error's code."""


class Audit:
    """Writes entries, many at a time. Those of calls that wait for it are written first, those of
    calls that are over when there is time.

    Args:
        store: where; asked for each time, since there is none before the server has started.
        clock: the time of day in seconds.
    """

    def __init__(self, store: Callable[[], Store], clock: Callable[[], float]) -> None:
        self._store = store
        self.clock = clock
        self._new: list[tuple[Entry, asyncio.Future[int]]] = []
        self._endings: list[Ending | Refusal] = []
        self._refused: dict[tuple[str | None, ...], _Refused] = {}
        self._writer: asyncio.Task[None] | None = None
        self._forget_at = 0.0

    @on_loop
    async def begin(self, entry: Entry) -> int:
        """Write down what is about to be done; gives its number.

        Raises:
            StoreUnavailableError: it cannot be written, so it must not be done.
        """
        written: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._new.append((entry, written))
        self._wake()
        return await written

    @to_the_end
    async def end(self, ending: Ending) -> None:
        """Write down what came of it, in a moment."""
        self._add(ending)

    def _add(self, what: Ending | Refusal) -> None:
        if len(self._endings) < _MOST_ENDINGS:  # while the store is away they are told later
            self._endings.append(what)
        self._wake()

    @on_loop
    async def refuse(self, refusal: Refusal) -> None:
        """Write down a refusal, in a moment. Those that are alike within a minute make two entries,
        of which the second says how many `more` there were: who is refused fills no store."""
        entry = refusal.entry
        place = (entry.tenant, entry.key, refusal.outcome, (entry.detail or {}).get("from"))
        if place not in self._refused and len(self._refused) >= _MOST_REFUSED:
            place = place[:3]
        known = self._refused.get(place)
        if known is not None:
            known.more += 1
            return
        later = asyncio.get_running_loop().call_later(ALIKE_SECONDS, self._tell_more, place)
        self._refused[place] = _Refused(refusal, later)
        self._add(refusal)

    def _tell_more(self, place: tuple[str | None, ...]) -> None:
        known = self._refused.pop(place)
        known.later.cancel()
        if known.more:
            entry = known.first.entry
            detail = {**(entry.detail or {}), "more": known.more}
            told = replace(entry, at=self.clock(), detail=detail, request=None)
            self._add(replace(known.first, entry=told))

    async def read(self, **which: Any) -> list[dict[str, Any]]:
        """Entries; see `list_entries`. Raises StoreUnavailableError."""
        from ms_enclave.server.store import entries

        return await self._store().reading(
            lambda connection: entries.list_entries(connection, **which)
        )

    @on_loop
    async def flush(self) -> None:
        """Wait until all is written that can be."""
        for place in list(self._refused):
            self._tell_more(place)
        while self._writer is not None:
            await asyncio.wait([self._writer])

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        try:
            while self._new or self._endings:
                new, self._new = self._new, []
                endings, self._endings = self._endings, []
                if not await self._write_some(new, endings):
                    return
        finally:
            self._writer = None

    async def _write_some(
        self, new: list[tuple[Entry, asyncio.Future[int]]], endings: list[Ending | Refusal]
    ) -> bool:
        waiting = [written for _, written in new]
        try:
            numbers = await self._store().writing(self._work([entry for entry, _ in new], endings))
        except (StoreUnavailableError, SandboxStateError) as error:
            self._endings = endings + self._endings
            _fail(waiting, error)
            return bool(self._new)  # those have come since; the endings wait for the next one
        except Exception as error:  # one of them cannot be written, which is nothing to the others
            if len(new) + len(endings) == 1:
                logger.exception("an entry of the audit log cannot be written")
                _fail(waiting, error)
                return True
            for one in new:
                await self._write_some([one], [])
            for ending in endings:
                await self._write_some([], [ending])
            return True
        for written, number in zip(waiting, numbers, strict=True):
            if not written.done():  # else who asked has gone
                written.set_result(number)
        return True

    def _work(
        self, new: list[Entry], endings: list[Ending | Refusal]
    ) -> Callable[[Connection], list[int]]:
        from ms_enclave.server.store import entries  # here, where a store is there

        before = None
        if time.monotonic() >= self._forget_at:
            self._forget_at = time.monotonic() + _FORGET_SECONDS
            before = self.clock() - KEPT_DAYS * _DAY

        def work(connection: Connection) -> list[int]:
            if before is not None:
                entries.forget_entries(connection, before)
            numbers = [entries.add_entry(connection, entry) for entry in new]
            for ending in endings:
                entries.write_outcome(connection, ending)
            return numbers

        return work


@dataclass
class _Refused:
    """A refusal that was written down, and how many like it came since."""

    first: Refusal
    later: asyncio.TimerHandle
    more: int = 0


def refusal_of(
    scope: Any, who: Principal | None, error: EnclaveError, now: float
) -> Refusal | None:
    """What is written down where nobody was let in, or nobody could be served; else None. Pure.

    Of somebody unknown there is the address, and nothing that they have sent: they choose it.
    """
    if error.http_status not in _REFUSED:
        return None
    client = scope.get("client")
    detail = {"method": scope.get("method", "WEBSOCKET"), "from": client[0] if client else None}
    tenant, key = ("", None) if who is None else (who.name, who.key)
    request = scope.get("state", {}).get("request_id")
    return Refusal(Entry(now, tenant, key, "refused", detail=detail, request=request), error.code)


def _fail(waiting: list[asyncio.Future[int]], error: Exception) -> None:
    """Have those who wait for it raise it."""
    for written in waiting:
        if not written.done():
            written.set_exception(error)


class AuditedRoute(APIRoute):
    """A route whose calls are written down, where the server has a log and they do something."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.short = shorten(self)
        """Past FastAPI, where its calls are of the usual shape."""

    @override
    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        if self.short is None or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        short, request = self.short, Request(scope, receive)
        body = await short.read(request)
        if body is None:
            again = replay(await request.body(), receive)
            await super().handle(scope, again, send)
            return
        response = await self._note(request, lambda request: short.answer(request, body))
        await response(scope, receive, send)

    @override
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        answer = super().get_route_handler()

        async def noted(request: Request) -> Response:
            return await self._note(request, answer)

        return noted

    async def _note(
        self, request: Request, answer: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        audit: Audit | None = request.app.state.audit
        if audit is None or not self._does_something:
            return await answer(request)
        entry = await _entry_of(self, request, audit.clock())
        number, since = await audit.begin(entry), time.perf_counter()
        outcome, sandbox = "cancelled", None
        try:
            response = await answer(request)
            outcome, sandbox = "ok", _made_by(response)
        except Exception as error:
            outcome = _outcome(error)
            raise
        finally:
            await audit.end(Ending(number, outcome, time.perf_counter() - since, sandbox))
        return response

    @functools.cached_property
    def _does_something(self) -> bool:
        return bool((self.methods or set()) - {"GET", "HEAD"}) and self.name not in _LOOKS


async def audit_socket(websocket: WebSocket) -> None:
    """Write down that a connection was opened, before it is."""
    audit: Audit | None = websocket.app.state.audit
    if audit is not None:
        entry = _entry(websocket.scope["route"], websocket, {}, audit.clock())
        await audit.end(Ending(await audit.begin(entry), "ok", 0.0))


async def _entry_of(route: AuditedRoute, request: Request, now: float) -> Entry:
    field = route.body_field
    if field is None:  # a stream, maybe, which is not for the memory
        return _entry(route, request, {}, now)
    body: Any = None
    if _is_json(request.headers.get("content-type", "")):
        try:
            body = await request.json()  # once for both: the route finds it read
        except (ValueError, RecursionError):
            body = None  # which the route will say
    kind = field.field_info.annotation
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return _entry(route, request, {field.name: body}, now)
    given = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    known = {name: given[name] for name in kind.model_fields if name in given}
    return _entry(route, request, known, now)


def _is_json(content_type: str) -> bool:
    """Whether FastAPI reads a body as JSON. Pure."""
    if not content_type:
        return False
    message = Message()
    message["content-type"] = content_type
    kind, subtype = message.get_content_maintype(), message.get_content_subtype()
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _entry(
    route: APIRoute | APIWebSocketRoute, request: HTTPConnection, body: dict[str, Any], now: float
) -> Entry:
    """What a call is, of all that its route knows, and of nothing else that stands in it."""
    who = request.state.principal
    asked = request.query_params
    said = {name: asked[name] for name in _query_of(route.dependant) if name in asked}
    said |= body
    said |= request.path_params
    return Entry(
        now, who.name, who.key, route.name, _id(said.get("sandbox_id")), describe_call(said),
        _short(getattr(request.state, "request_id", None)),
    )  # fmt: skip


def _query_of(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for further in dependant.dependencies:
        yield from _query_of(further)


def _id(given: Any) -> str | None:
    """An id, where it can be one."""
    return given if isinstance(given, str) and _ID.fullmatch(given) else None


def describe_call(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """What of a call's arguments is written down. Pure; None where there is nothing."""
    told = {name: _short(said[name]) for name in _NAMES if _is_name(said.get(name))}
    told |= _programs(said)
    parameters = said.get("parameters")
    if isinstance(parameters, dict):
        given = cast("dict[str, Any]", parameters)
        told |= {name: _short(given[name]) for name in _OF_TOOLS if _is_name(given.get(name))}
        told |= _programs(given)
    config = said.get("config")
    if isinstance(config, dict):
        image = cast("dict[str, Any]", config).get("image")
        told |= {"image": _short(image)} if _is_name(image) else {}
    return told or None


def _programs(said: Mapping[str, Any]) -> dict[str, str]:
    """The program that each command begins with, and no more of it."""
    return {name: _program(said[name]) for name in _COMMANDS if said.get(name)}


def _program(command: Any) -> str:
    words = command.split() if isinstance(command, str) else command
    if not isinstance(words, list):
        return "?"
    for word in cast("list[Any]", words):
        if not isinstance(word, str) or not _PLAIN.fullmatch(word):
            if isinstance(command, str) and isinstance(word, str) and "=" in word:
                continue  # a variable for the program, which may be a secret
            return "?"
        return os.path.basename(word) or "?"
    return "?"


def _is_name(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return isinstance(value, str) or abs(value) < _MOST_NUMBER  # which NaN is not, either


def _short(value: Any) -> Any:
    """The beginning of a text, as every store can hold it."""
    if not isinstance(value, str):
        return value
    return value[:_MOST_NAME].encode("utf-8", "replace").decode().replace("\0", "?")


def _outcome(error: Exception) -> str:
    if isinstance(error, RefusedError):
        error = error.error
    if isinstance(error, RequestValidationError | HTTPException):
        return ConfigError.code
    return str(wire.encode_error(error)["code"])


def _made_by(response: Response) -> str | None:
    """The sandbox that a call has made."""
    body = getattr(response, "body", b"")
    if not isinstance(body, bytes) or len(body) > 200 or b'"sandbox_id"' not in body:
        return None
    found = wire.load(body)
    return _id(cast("dict[str, Any]", found).get("sandbox_id")) if isinstance(found, dict) else None
