"""The short way of a call of the usual shape: a JSON body of one model, for something of the path.

FastAPI reads, checks and finds all of that as well, for several times the processor time, most of
it for what these calls have not. What is not as it should be goes on to FastAPI, so that it alone
says what is wrong.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ms_enclave import wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import Request, Response
    from fastapi.dependencies.models import Dependant
    from fastapi.routing import APIRoute

__all__ = ["ShortWay", "replay", "shorten"]


class ShortWay:
    """How one route is called. Made by `shorten`."""

    def __init__(self, route: APIRoute, kind: type[BaseModel]) -> None:
        self._name = route.dependant.body_params[0].name
        self._kind = kind
        self._call = _Taker(route.dependant)

    async def read(self, request: Request) -> dict[str, Any] | None:
        """The body, for the endpoint; None where something is wrong with it or with the path, or
        may be."""
        if request.headers.get("content-type") != wire.JSON:
            return None
        data = await request.body()
        if not self._call.is_right(request.path_params):
            return None
        try:
            return {self._name: self._kind.model_validate(wire.load(data))}
        except ValueError:  # pydantic's ValidationError is one
            return None

    async def answer(self, request: Request, body: dict[str, Any]) -> Response:
        """Make the call, with what was read."""
        return await self._call.call(request, body, {})


class _Taker:
    """A function that takes things of a request: an endpoint, or what finds one of those things."""

    def __init__(self, of: Dependant) -> None:
        self.name = of.name or ""
        self._function: Any = of.call
        self._path = [(field.name, field.alias, field) for field in of.path_params]
        names = (of.request_param_name, of.http_connection_param_name)
        self._request_names = [name for name in names if name is not None]
        self._needs = [_Taker(each) for each in of.dependencies]

    def is_right(self, path: dict[str, Any]) -> bool:
        """Whether what stands in a path is what it may be."""
        return all(
            not field.validate(path.get(alias), {}, loc=("path", alias))[1]
            for _, alias, field in self._path
        ) and all(need.is_right(path) for need in self._needs)

    async def call(self, request: Request, given: dict[str, Any], found: dict[Any, Any]) -> Any:
        """Call it, after what finds for it what it takes; each once for a request."""
        if self._function in found:
            return found[self._function]
        for name in self._request_names:
            given[name] = request
        for name, alias, field in self._path:
            given[name], _ = field.validate(request.path_params[alias], {}, loc=("path", alias))
        for need in self._needs:
            given[need.name] = await need.call(request, {}, found)
        made = found[self._function] = await self._function(**given)
        return made


def shorten(route: APIRoute) -> ShortWay | None:
    """The short way of a route; None where it takes more than a body and something of the path."""
    every = _with_needs(route.dependant)
    bodies = [field for one in every for field in one.body_params]
    if len(bodies) != 1 or bodies[0] is not route.body_field or any(map(_takes_more, every)):
        return None
    kind = bodies[0].field_info.annotation
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return None
    return ShortWay(route, kind)


def _with_needs(dependant: Dependant) -> list[Dependant]:
    return [dependant, *(deep for one in dependant.dependencies for deep in _with_needs(one))]


def _takes_more(one: Dependant) -> bool:
    return bool(
        one.query_params or one.header_params or one.cookie_params or one.websocket_param_name
        or one.response_param_name or one.background_tasks_param_name
        or one.security_scopes_param_name or not inspect.iscoroutinefunction(one.call)
    )  # fmt: skip


def replay(body: bytes, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """What gives a body that was read once more, and then whatever comes."""
    told = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return told.pop() if told else await receive()

    return again
