"""Puts the application together: routes, errors, and the gate before them."""

from __future__ import annotations

import functools
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

from ms_enclave import wire
from ms_enclave.server import legacy, v1
from ms_enclave.server.answers import add_error_handlers
from ms_enclave.server.audit import AuditedRoute, audit_socket
from ms_enclave.server.documented import document_errors
from ms_enclave.server.events import EventLog
from ms_enclave.server.governed import GovernedAccess
from ms_enclave.server.idempotency import Once
from ms_enclave.server.metrics import Metrics
from ms_enclave.server.middleware import Gate
from ms_enclave.server.observer import ObservedAccess, Observer
from ms_enclave.server.v1.kernels import Known
from ms_enclave.server.v1.pools import Loans
from ms_enclave.server.v1.ports import Connections
from ms_enclave.server.v1.seen import metrics_router
from ms_enclave.server.webhooks import Webhooks
from ms_enclave.version import __version__

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from starlette.routing import BaseRoute

    from ms_enclave.server.access import Access
    from ms_enclave.server.audit import Audit
    from ms_enclave.server.policy import Policy

__all__ = ["make_app"]


def make_app(
    access: Access,
    policy: Policy,
    *,
    begin: Callable[[], Awaitable[object]],
    end: Callable[[], Awaitable[object]],
    is_ready: Callable[[], Awaitable[bool]],
    webhooks: Webhooks | None = None,
    audit: Audit | None = None,
) -> FastAPI:
    """The application over the managers of those who are let in.

    Args:
        policy: what all are held to who have none of their own.
        begin, end: what its start and its end do.
        is_ready: what `/health/ready` asks.
        webhooks: who is told what happens to sandboxes.
        audit: where it is written down who did what.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        del app
        await begin()
        try:
            yield
        finally:
            try:
                await end()
            finally:
                await told.aclose()

    told = Webhooks() if webhooks is None else webhooks
    closed = access.needs_key
    app = FastAPI(
        title="ms-enclave",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        separate_input_output_schemas=False,
    )
    app.state.once = Once()
    app.state.kernels = Known()
    app.state.connections = Connections()
    app.state.loans = Loans()
    app.state.is_ready = is_ready
    app.state.audit = audit
    app.state.begun = time.monotonic()
    app.state.needs_key = closed
    add_error_handlers(app)
    app.router.routes.extend(_routes())
    document_errors(app)
    metrics, events = Metrics(), EventLog()
    app.state.metrics = metrics
    app.state.events = events
    observed = ObservedAccess(access, [metrics.tell, events.add, told.tell])
    gate: Any = Gate
    app.add_middleware(
        gate,
        access=GovernedAccess(observed, policy),
        observer=Observer(metrics),
        audit=audit,
    )
    return app


_HOT = ("/tools/execute", "/run", "/exists", "/files/", "/kernels/", "/commands")
"""What is asked for again and again, the most frequent first: routes are looked through in turn."""


@functools.cache
def _routes() -> tuple[BaseRoute, ...]:
    """All of them, made once for every server of this process: they hold nothing."""
    every = APIRouter()
    for prefix, route in _hottest_first():
        _add(every, prefix, route)
    return tuple(every.routes)


def _hottest_first() -> list[tuple[str, BaseRoute]]:
    """Every route with its prefix; those of one shape stay in their order."""
    found = [(wire.V1, route) for router in v1.ROUTERS for route in router.routes]
    found += [("", route) for router in (legacy.router, metrics_router) for route in router.routes]

    def heat(row: tuple[str, BaseRoute]) -> int:
        path = getattr(row[1], "path", "")
        return next((place for place, part in enumerate(_HOT) if part in path), len(_HOT))

    return sorted(found, key=heat)


def _add(router: APIRouter, prefix: str, route: BaseRoute) -> None:
    """As `include_router` does, but into one list, which takes a third of the time to look through
    and knows each route by its whole path."""
    if isinstance(route, APIRoute):
        router.add_api_route(
            prefix + route.path,
            route.endpoint,
            methods=list(route.methods or ()),
            tags=route.tags,
            response_model=route.response_model,
            response_class=route.response_class,
            responses=route.responses,
            openapi_extra=route.openapi_extra,
            route_class_override=AuditedRoute,
        )
    elif isinstance(route, APIWebSocketRoute):
        router.add_api_websocket_route(
            prefix + route.path, route.endpoint, dependencies=[Depends(audit_socket)]
        )
