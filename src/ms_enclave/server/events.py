"""What happened to sandboxes lately, for whoever listens: a stream for each tenant."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ms_enclave.model.events import SandboxEvent

__all__ = ["EventLog"]

REMEMBERED = 1000
"""Events of a tenant that can be heard again."""


class EventLog:
    """The last events of each tenant, numbered one after the other, from what no server before had.

    Whoever is too slow misses some: the numbers show it, and nothing waits for anybody.
    """

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._of: dict[str, deque[dict[str, Any]]] = {}
        self._changed: dict[str, asyncio.Event] = {}

    def add(self, tenant: str, event: SandboxEvent) -> None:
        """Something happened. Called on the private loop."""
        number = self._last.get(tenant, time.time_ns() // 1000) + 1
        self._last[tenant] = number
        said = {"number": number, **event.model_dump(mode="json")}
        self._of.setdefault(tenant, deque(maxlen=REMEMBERED)).append(said)
        changed = self._changed.pop(tenant, None)
        if changed is not None:
            changed.set()

    def listen(self, tenant: str, after: int | None = None) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a tenant: those after a number, as far as they are remembered, and all
        that come from now on; only the latter where None."""
        return self._heard(tenant, self._last.get(tenant, 0) if after is None else after)

    async def _heard(self, tenant: str, last: int) -> AsyncGenerator[dict[str, Any], None]:
        while True:
            for said in await self._more(tenant, last):
                last = said["number"]
                yield said

    @on_loop
    async def _more(self, tenant: str, last: int) -> list[dict[str, Any]]:
        while not (found := [one for one in self._of.get(tenant, ()) if one["number"] > last]):
            await self._changed.setdefault(tenant, asyncio.Event()).wait()
        return found
