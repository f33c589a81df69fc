"""How the server answers: documents, errors, streams and events."""

from __future__ import annotations

import logging
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import anyio
from fastapi import Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from ms_enclave import wire
from ms_enclave.errors import ConfigError, QuotaExceededError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from fastapi import FastAPI, Request

__all__ = ["RefusedError", "add_error_handlers", "answer_error", "document", "events", "pieces"]

logger = logging.getLogger(__name__)

_AWAKE = b": awake\n\n"
_AWAKE_SECONDS = 15.0

HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


def document(value: Any, status: int = 200) -> Response:
    """A document of data or of a model."""
    return Response(wire.dump(value), status, HEADERS, wire.JSON)


class RefusedError(Exception):
    """An error that goes out with another status than its own."""

    def __init__(self, error: Exception, status: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.status = status


def error_document(error: BaseException, *, old: bool, status: int | None = None) -> Response:
    """An error as the version of the routes has it that was asked."""
    number = wire.status_of(error) if status is None else status
    data = wire.encode_error(error)
    if old:
        text = data["message"] or str(error)
        data = {"detail": f"{text.rstrip('. ')}. What to do: {data['remedy']}"
                if data.get("remedy") else text}  # fmt: skip
    answer = document(data if old else {"error": data}, number)
    if isinstance(error, QuotaExceededError) and error.retry_after is not None:
        answer.headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if number == 401:
        answer.headers["www-authenticate"] = "ApiKey"
    return answer


def note_error(scope: Any, error: BaseException) -> None:
    """Say in the state of a call what it failed with, for whoever counts it."""
    scope.setdefault("state", {})["code"] = wire.code_of(error)


def is_old(path: str) -> bool:
    """Whether a path is one of the routes that people already use."""
    return not path.startswith(f"{wire.V1}/")


async def answer_error(
    scope: Any, error: BaseException, receive: Any, send: Any, *, closing: bool = False
) -> None:
    """Answer with an error where no route has.

    Args:
        closing: whether the connection ends with it.
    """
    note_error(scope, error)
    answer = error_document(error, old=is_old(scope["path"]))
    if closing:
        answer.headers["connection"] = "close"
    await answer(scope, receive, send)


def add_error_handlers(app: FastAPI) -> None:
    """Have every error go out as data, ours with their classes' statuses."""

    async def ours(request: Request, error: Exception) -> Response:
        note_error(request.scope, error)
        return error_document(error, old=is_old(request.url.path))

    async def refused(request: Request, error: Exception) -> Response:
        refusal = cast("RefusedError", error)
        note_error(request.scope, refusal.error)
        return error_document(refusal.error, old=is_old(request.url.path), status=refusal.status)

    async def invalid(request: Request, error: Exception) -> Response:
        problems: list[Any] = list(cast("RequestValidationError", error).errors())
        said = "; ".join(_say(problem) for problem in problems)
        note_error(request.scope, ConfigError(said))
        return error_document(
            ConfigError(f"Invalid request: {said}"), old=is_old(request.url.path), status=422
        )

    async def of_the_framework(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 500)
        text = str(getattr(error, "detail", "")) or "refused"
        note_error(request.scope, ConfigError(text))
        answer = error_document(ConfigError(text), old=is_old(request.url.path), status=status)
        answer.headers.update(getattr(error, "headers", None) or {})
        return answer

    async def fault(request: Request, error: Exception) -> Response:
        # The class is enough to count by; the server's log has the rest, raised once more.
        note_error(request.scope, error)
        return error_document(error, old=is_old(request.url.path), status=500)

    from ms_enclave.errors import EnclaveError

    for kind in (EnclaveError, OSError):
        app.add_exception_handler(kind, ours)
    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_the_framework)
    app.add_exception_handler(Exception, fault)


def _say(problem: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in problem.get("loc", ()) if part != "body")
    text = str(problem.get("msg", "")).removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


async def pieces(source: AsyncGenerator[bytes, None]) -> Response:
    """A body that comes in pieces. What fails before the first is an error like any other; what
    fails later breaks the connection, so that nobody takes a part for the whole."""
    first = await anext(source, b"")

    async def rest() -> AsyncIterator[bytes]:
        async with aclosing(source):
            yield first
            async for piece in source:
                yield piece

    return StreamingResponse(rest(), 200, HEADERS, wire.STREAM)


async def events(source: AsyncGenerator[Any, None], *, eager: bool = True) -> Response:
    """Server-sent events of documents, then `end`; what fails on the way is an event `error`.

    Args:
        eager: whether to wait for the first, so that what fails before it has its status.
    """
    none: Any = object()
    first = await anext(source, none) if eager else none
    return StreamingResponse(
        _told(source, [] if first is none else [first], over=eager and first is none),
        200, HEADERS, wire.SSE,
    )  # fmt: skip


async def _told(
    source: AsyncGenerator[Any, None], begun: list[Any], *, over: bool
) -> AsyncIterator[bytes]:
    """The events as bytes, with a comment now and then: a dead connection shows when one writes."""
    async with aclosing(source):
        yield b": begun\n\n"
        for item in begun:
            yield wire.encode_event(item)
        try:
            async for text in _awake(source, over=over):
                yield text
        except Exception as error:
            if wire.encode_error(error)["code"] == wire.INTERNAL:
                logger.exception("a stream of events failed")
            yield wire.encode_event(wire.encode_error(error), "error")
        else:
            yield wire.encode_event({}, "end")


async def _awake(source: AsyncGenerator[Any, None], *, over: bool) -> AsyncIterator[bytes]:
    import asyncio

    step: asyncio.Future[Any] | None = None
    try:
        while not over:
            if step is None:
                step = asyncio.ensure_future(anext(source, None))  # type: ignore[arg-type]
            done, _ = await asyncio.wait([step], timeout=_AWAKE_SECONDS)
            if not done:
                yield _AWAKE
                continue
            item, step = step.result(), None
            if item is None:
                return
            yield wire.encode_event(item)
    finally:
        if step is not None:
            step.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([step])
