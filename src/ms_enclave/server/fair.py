"""Turns among tenants: who asks for much waits for its own, not for others'."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ms_enclave.errors import QuotaExceededError
from ms_enclave.loop import on_loop, to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["FairQueue"]

_RETRY_SECONDS = 1.0


class FairQueue:
    """So many at a time, of all tenants; those that wait have their turns tenant by tenant.

    Args:
        at_once: how many have a turn at a time.
        waiting: how many of one tenant may wait for one.
        seconds: how long one waits.
        each: how many one tenant may have at a time that is not given another figure.
    """

    def __init__(
        self, at_once: int, *, waiting: int, seconds: float = 30.0, each: int | None = None
    ) -> None:
        self._at_once = at_once
        self._each = at_once if each is None else each
        self._most_waiting = waiting
        self._seconds = seconds
        self._busy: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._most: dict[str, int] = {}

    @asynccontextmanager
    async def turn(self, tenant: str, most: int | None = None) -> AsyncGenerator[None, None]:
        """Have a turn for the length of a block.

        Args:
            most: how many the tenant may have at a time; what there is for each where None.

        Raises:
            QuotaExceededError: too many of that tenant wait, or it did not come in time.
        """
        granted: list[None] = []  # also where whoever asked is cancelled in that moment
        try:
            await self._enter(granted, tenant, most)
            yield
        finally:
            if granted:
                await self._leave(tenant)

    @on_loop
    async def _enter(self, granted: list[None], tenant: str, most: int | None) -> None:
        await self._wait(tenant, most)
        granted.append(None)

    async def _wait(self, tenant: str, most: int | None) -> None:
        self._most[tenant] = self._each if most is None else most
        if tenant not in self._waiting and self._may(tenant):
            self._busy[tenant] += 1
            return
        mine = self._waiting.setdefault(tenant, deque())
        if len(mine) >= self._most_waiting:
            raise QuotaExceededError(
                f"{len(mine)} calls of this tenant wait already", retry_after=_RETRY_SECONDS
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine.append(turn)
        try:
            await asyncio.wait([turn], timeout=self._seconds)
        except BaseException:
            self._give_up(tenant, turn)
            raise
        if not turn.done():
            self._give_up(tenant, turn)
            raise QuotaExceededError(
                f"no turn came within {self._seconds:g} s", retry_after=_RETRY_SECONDS
            )

    def _give_up(self, tenant: str, turn: asyncio.Future[None]) -> None:
        if turn.done():  # it came in the very moment
            self._end_one(tenant)
            return
        mine = self._waiting[tenant]
        mine.remove(turn)
        if not mine:
            del self._waiting[tenant]

    @to_the_end
    async def _leave(self, tenant: str) -> None:
        self._end_one(tenant)

    def _end_one(self, tenant: str) -> None:
        self._busy[tenant] -= 1
        if not self._busy[tenant]:
            del self._busy[tenant]
        while (who := self._next()) is not None:
            mine = self._waiting[who]
            mine.popleft().set_result(None)
            self._busy[who] += 1
            self._waiting.move_to_end(who)
            if not mine:
                del self._waiting[who]

    def _next(self) -> str | None:
        return next((tenant for tenant in self._waiting if self._may(tenant)), None)

    def _may(self, tenant: str) -> bool:
        return self._busy.total() < self._at_once and self._busy[tenant] < self._most[tenant]
