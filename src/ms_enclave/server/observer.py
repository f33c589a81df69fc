"""What is seen of every call, in one place: its id, its line in the log, and what is counted."""

from __future__ import annotations

import logging
import re
import secrets
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.utils.tracing import HEADER, span

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from ms_enclave.manager import SandboxManager
    from ms_enclave.model.events import SandboxEvent
    from ms_enclave.server.access import Access, Principal
    from ms_enclave.server.metrics import Metrics

__all__ = ["REQUEST_HEADER", "REQUEST_ID", "ObservedAccess", "Observer"]

logger = logging.getLogger("ms_enclave.server.calls")

REQUEST_HEADER = "x-request-id"
REQUEST_ID: ContextVar[str | None] = ContextVar("ms_enclave_request_id", default=None)
"""The id of the call that is being answered, for whatever is logged meanwhile."""

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_GONE = 499
"""What stands for the status of a call whose caller had gone before there was one."""
_UNLOGGED = frozenset({"/health", "/health/ready", "/metrics"})
"""What machines ask again and again."""


class Observer:
    """Sees calls through, and counts them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def see(
        self,
        scope: Any,
        headers: dict[bytes, bytes],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
        answer: Callable[[Callable[[Any], Awaitable[None]]], Awaitable[None]],
    ) -> None:
        """One call, whose answer has its id.

        Args:
            answer: answers it by the `send` that it is given.
        """
        since, state = time.perf_counter(), scope.setdefault("state", {})
        given = headers.get(REQUEST_HEADER.encode(), b"")
        name = given.decode() if _ID.fullmatch(given) else secrets.token_hex(8)
        state["request_id"] = name
        said = [_GONE]

        async def tell(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                said[0] = message["status"]
                message["headers"] = [
                    *message.get("headers", ()), (REQUEST_HEADER.encode(), name.encode())
                ]  # fmt: skip
            await send(message)

        token = REQUEST_ID.set(name)
        parent = headers.get(HEADER.encode(), b"").decode("latin-1")
        try:
            with span(f"{scope['method']} call", "SERVER", of=parent, request__id=name) as begun:
                await answer(tell)
                if begun is not None:
                    begun.set_attribute("http.route", getattr(scope.get("route"), "path", "none"))
                    begun.set_attribute("http.response.status_code", said[0])
        finally:
            self._note(scope, said[0], time.perf_counter() - since)
            REQUEST_ID.reset(token)

    def _note(self, scope: Any, status: int, seconds: float) -> None:
        state = scope["state"]
        principal: Principal | None = state.get("principal")
        tenant = "" if principal is None else principal.name
        route, code = getattr(scope.get("route"), "path", "none"), state.get("code")
        self._metrics.count(tenant, route, status, code, seconds)
        if route not in _UNLOGGED and logger.isEnabledFor(logging.INFO):
            logger.info(
                "%s %s %d in %.1f ms", scope["method"], route, status, seconds * 1000,
                extra={
                    "request_id": state["request_id"], "tenant": tenant, "route": route,
                    "method": scope["method"], "status": status, "code": code,
                    "seconds": round(seconds, 6),
                    "sandbox_id": scope.get("path_params", {}).get("sandbox_id"),
                },
            )  # fmt: skip


class ObservedAccess:
    """Lets the same people in, and listens to what happens to the sandboxes of those who came."""

    def __init__(
        self, access: Access, listeners: Sequence[Callable[[str, SandboxEvent], object]]
    ) -> None:
        self._access = access
        self._listeners = listeners
        self._known: WeakKeyDictionary[SandboxManager, str] = WeakKeyDictionary()

    @property
    def needs_key(self) -> bool:
        """Whether nobody is let in without one."""
        return self._access.needs_key

    async def authenticate(self, key: str | None) -> Principal | None:
        """Whose key it is."""
        found = await self._access.authenticate(key)
        if found is not None and found.manager not in self._known:
            self._listen(found.name, found.manager)
        return found

    def _listen(self, tenant: str, manager: SandboxManager) -> None:
        self._known[manager] = tenant
        if isinstance(manager, LocalSandboxManager):
            manager.listeners.append(lambda event: self._tell(tenant, event))

    def _tell(self, tenant: str, event: SandboxEvent) -> None:
        for listener in self._listeners:
            listener(tenant, event)
