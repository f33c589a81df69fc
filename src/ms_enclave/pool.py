"""Lend, check, replace: a pool of constant size whose members are prepared ahead of need.

The pool is handed functions and knows nothing of what it lends. It has a fixed number of *slots*,
each with a key that stays, and each with at most one member that is replaced when it was used,
when its loan failed and when it died. Borrowers are served strictly first in, first out, and so
are slots: one that comes back queues behind the others.

Everything here runs on one event loop. What decides is synchronous and cannot be cancelled half
way; creating, resetting and destroying run in the pool's own tasks, whoever caused them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from ms_enclave.errors import PoolEmptyError, PoolTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Loan", "Pool"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
"""Seconds between attempts to create a member; doubled after each failure."""


class _Slot(Generic[T]):
    """One place in the pool. It has a member only while that is ready to be lent."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.member: T | None = None
        self.mending: anyio.CancelScope | None = None
        self.error: Exception | None = None


class Loan(Generic[T]):
    """A member in somebody's hands. Not giving it back leaves the pool one smaller."""

    def __init__(self, slot: _Slot[T], member: T) -> None:
        self.slot = slot
        self.member = member


class Pool(Generic[T]):
    """A fixed number of members, each lent to one borrower at a time.

    Owns its members from `open` until `close`, except while they are lent. Cancelling a borrower
    takes it out of the queue and gives back what it was being handed.

    Args:
        keys: one for each slot; what `create` gets.
        create: makes the member of a slot; all or nothing.
        destroy: ends a member; always finishes, and is not to be cancelled.
        check: whether a member is alive; cheap.
        reset: make a used member as new. False (or an exception): it cannot be, so replace it.
    """

    def __init__(
        self,
        keys: Sequence[str],
        *,
        create: Callable[[str], Awaitable[T]],
        destroy: Callable[[T], Awaitable[object]],
        check: Callable[[T], bool],
        reset: Callable[[T], Awaitable[bool]],
    ) -> None:
        self._create = create
        self._destroy = destroy
        self._check = check
        self._reset = reset
        self._queue: deque[_Slot[T]] = deque(_Slot(key) for key in keys)
        self._size = len(self._queue)
        self._waiters: deque[asyncio.Future[Loan[T]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._dormant = False
        self._closed = False

    @property
    def size(self) -> int:
        """The number of slots, lent ones included."""
        return self._size

    @property
    def waiting(self) -> int:
        """The number of borrowers who wait."""
        return sum(not waiter.done() for waiter in self._waiters)

    @property
    def _resting(self) -> bool:
        return self._closed or self._dormant

    def keys(self) -> list[str]:
        """The keys of the slots that are not lent, the next to be lent first."""
        return [slot.key for slot in self._queue]

    async def open(self) -> None:
        """Create all members at once. One that fails undoes all, and its error is raised."""
        failures: list[Exception] = []

        async def fill(slot: _Slot[T]) -> None:
            try:
                slot.member = await self._create(slot.key)
            except Exception as error:  # noqa: BLE001 - raised below, when all others have ended
                failures.append(error)
                tasks.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as tasks:
                for slot in list(self._queue):
                    tasks.start_soon(fill, slot)
        except BaseException:
            await self.close()
            raise
        if failures:
            await self.close()
            raise failures[0]
        self._assign()

    async def lend(self, timeout: float | None = None) -> Loan[T]:
        """Wait for a member, `timeout` seconds at most; for ever where None.

        Raises:
            PoolEmptyError: the pool has no slots, or was closed.
            PoolTimeoutError: none was free in time.
            Exception: what `create` raised, where nothing is left to wait for.
        """
        if self._closed or not self._size:
            raise PoolEmptyError
        self._wake_up()
        waiter: asyncio.Future[Loan[T]] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._assign()
        try:
            with anyio.move_on_after(timeout):
                await waiter
        except BaseException:
            self._withdraw(waiter)
            raise
        if waiter.done() and not waiter.cancelled():
            return waiter.result()
        self._withdraw(waiter)
        raise PoolTimeoutError(0.0 if timeout is None else timeout)

    def give_back(self, loan: Loan[T], *, failed: bool) -> None:
        """End a loan. A failed or dead member is replaced, another one reset or replaced."""
        slot, member = loan.slot, loan.member
        self._queue.append(slot)
        usable = not failed and not self._resting and self._check(member)
        self._mend(slot, member, usable=usable)

    def sweep(self) -> None:
        """Replace the members that died while nobody used them."""
        for slot in self._queue:
            member = slot.member
            if member is not None and not self._check(member):
                self._replace(slot)

    async def drain(self) -> None:
        """Destroy what is not lent; the next borrower has it made again."""
        self._dormant = True
        await self._discard_all()
        self._go_on()

    async def close(self) -> None:
        """Destroy what is not lent, refuse borrowers; a loan given back later is destroyed."""
        self._closed = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(PoolEmptyError())
        await self._discard_all()

    async def _discard_all(self) -> None:
        with anyio.CancelScope(shield=True):
            while True:
                for slot in self._queue:
                    if slot.mending is not None:
                        slot.mending.cancel()
                    elif slot.member is not None:
                        self._replace(slot)
                if not self._tasks or not self._resting:
                    return
                await asyncio.wait(self._tasks)

    def _wake_up(self) -> None:
        self._dormant = False
        for slot in self._queue:
            if slot.member is None and slot.mending is None:
                self._replace(slot)

    def _withdraw(self, waiter: asyncio.Future[Loan[T]]) -> None:
        """A borrower has gone: nobody holds what it was handed."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            loan = waiter.result()
            loan.slot.member = loan.member
            self._queue.appendleft(loan.slot)
            if self._resting:
                self._replace(loan.slot)
            self._assign()

    def _assign(self) -> None:
        """Hand ready members to waiting borrowers, both in the order in which they came."""
        self.sweep()
        for slot in list(self._queue):
            while self._waiters and self._waiters[0].done():
                self._waiters.popleft()
            if not self._waiters:
                return
            if slot.member is not None:
                self._queue.remove(slot)
                loan = Loan(slot, slot.member)
                slot.member = None
                self._waiters.popleft().set_result(loan)

    def _replace(self, slot: _Slot[T]) -> None:
        member, slot.member = slot.member, None
        self._mend(slot, member, usable=False)

    def _mend(self, slot: _Slot[T], member: T | None, *, usable: bool) -> None:
        """Have a slot made ready again, in a task of the pool's own."""

        async def work() -> None:
            try:
                with scope:
                    await self._renew(slot, member, usable=usable)
            finally:
                self._tasks.discard(task)
                if slot.mending is scope:
                    slot.mending = None
                self._go_on()

        scope = slot.mending = anyio.CancelScope()
        task = asyncio.ensure_future(work())
        self._tasks.add(task)

    def _go_on(self) -> None:
        if self._waiters and not self._closed:
            self._wake_up()  # nobody waits for a pool at rest
        self._assign()

    async def _renew(self, slot: _Slot[T], member: T | None, *, usable: bool) -> None:
        """Make a slot ready again, unless the pool rests."""
        if member is not None:
            if usable and await self._was_reset(member):
                slot.member = member
                return
            await self._discard(member)
        pause = _FIRST_PAUSE
        while not self._resting:
            try:
                slot.member = await self._create(slot.key)
            except Exception as error:  # noqa: BLE001 - retried; the waiters are told
                logger.warning("a pool member could not be replaced: %s", error)
                slot.error = error
                self._give_up_where_hopeless(error)
            else:
                slot.error = None
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _give_up_where_hopeless(self, error: Exception) -> None:
        """Tell the borrowers, where no member is left that could come back to them."""
        everyone_is_here = len(self._queue) == self._size
        if everyone_is_here and all(slot.error is not None for slot in self._queue):
            while self._waiters:
                waiter = self._waiters.popleft()
                if not waiter.done():
                    waiter.set_exception(error)

    async def _was_reset(self, member: T) -> bool:
        try:
            return await self._reset(member) and self._check(member)
        except asyncio.CancelledError:
            await self._discard(member)
            raise
        except Exception:  # what cannot be reset is replaced, whatever the reason
            logger.exception("resetting a pool member failed")
            return False

    async def _discard(self, member: T) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await self._destroy(member)
            except Exception:  # the boundary: nobody waits for it
                logger.exception("destroying a pool member failed")
