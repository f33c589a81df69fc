"""What can be seen of the server: metrics, and what happens to sandboxes."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from ms_enclave.errors import ConfigError
from ms_enclave.server.answers import HEADERS, events
from ms_enclave.server.finding import Who
from ms_enclave.server.v1.said import EVENTS

__all__ = ["metrics_router", "router"]

router = APIRouter(tags=["seen"])
metrics_router = APIRouter(tags=["seen"])


@router.get("/events", **EVENTS)
async def listen(
    who: Who, request: Request, after: Annotated[int | None, Query(ge=0)] = None
) -> Response:
    """What happens to sandboxes, as it happens. Each event has a `number`, after which one can go
    on: the header `Last-Event-ID` says it, too."""
    return await events(
        request.app.state.events.listen(who.name, _after(request, after)), eager=False
    )


def _after(request: Request, after: int | None) -> int | None:
    last = request.headers.get("last-event-id")
    if after is not None or last is None:
        return after
    if not last.isdigit() or len(last) > 18:
        raise ConfigError("last-event-id is no number of an event")
    return int(last)


@metrics_router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(who: Who, request: Request) -> Response:
    """Figures for Prometheus: of whoever asks, and of nobody else."""
    from ms_enclave.server.metrics import CONTENT_TYPE

    kept = request.app.state.metrics
    kept.see(who.name, await who.manager.list_sandboxes(), await who.manager.get_stats())
    return Response(kept.text(who.name), 200, HEADERS, CONTENT_TYPE)
