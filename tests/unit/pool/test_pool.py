"""The pool, with members made of nothing: order, size, replacement, and who is told what."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_enclave.errors import PoolEmptyError, PoolTimeoutError
from ms_enclave.pool import Loan, Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(eq=False)
class Member:
    key: str
    number: int
    alive: bool = True
    uses: int = 0


@dataclass
class Workshop:
    """Makes members, and remembers what became of them."""

    resets: bool = False
    creating_fails: int = 0
    creating_takes: float = 0.0
    destroying_takes: float = 0.0
    made: list[Member] = field(default_factory=list)
    alive: set[Member] = field(default_factory=set)
    most_alive: int = 0

    async def create(self, key: str) -> Member:
        await anyio.sleep(self.creating_takes)
        if self.creating_fails:
            self.creating_fails -= 1
            raise OSError("no room")
        member = Member(key, len(self.made))
        self.made.append(member)
        self.alive.add(member)
        self.most_alive = max(self.most_alive, len(self.alive))
        return member

    async def destroy(self, member: Member) -> None:
        await anyio.sleep(self.destroying_takes)
        self.alive.remove(member)

    def check(self, member: Member) -> bool:
        return member.alive

    async def reset(self, member: Member) -> bool:
        await anyio.sleep(0)
        member.uses += 1
        return self.resets

    @asynccontextmanager
    async def pool(self, size: int) -> AsyncIterator[Pool[Member]]:
        pool = Pool(
            [f"k{number}" for number in range(size)],
            create=self.create,
            destroy=self.destroy,
            check=self.check,
            reset=self.reset,
        )
        await pool.open()
        try:
            yield pool
        finally:
            await pool.close()
            assert not self.alive


async def use(pool: Pool[Member], timeout: float | None = 5) -> Member:
    loan = await pool.lend(timeout)
    pool.give_back(loan, failed=False)
    return loan.member


async def test_members_are_lent_in_turn() -> None:
    workshop = Workshop(resets=True)
    async with workshop.pool(2) as pool:
        assert [(await use(pool)).key for _ in range(4)] == ["k0", "k1", "k0", "k1"]
        assert pool.keys() == ["k0", "k1"]
    assert len(workshop.made) == 2


async def test_borrowers_are_served_in_the_order_in_which_they_came() -> None:
    served: list[int] = []

    async def borrow(number: int) -> None:
        loan = await pool.lend(5)
        served.append(number)
        await anyio.sleep(0.001)
        pool.give_back(loan, failed=False)

    async with Workshop(resets=True).pool(1) as pool, anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(borrow, number)
    assert served == list(range(10))


async def test_what_cannot_be_reset_is_replaced_under_the_same_key() -> None:
    workshop = Workshop()
    async with workshop.pool(1) as pool:
        first, second = await use(pool), await use(pool)
    assert first is not second
    assert first.key == second.key == "k0"


async def test_a_used_member_that_was_reset_is_lent_again() -> None:
    async with Workshop(resets=True).pool(1) as pool:
        assert await use(pool) is await use(pool)


async def test_a_failed_loan_is_replaced_even_where_a_reset_would_do() -> None:
    async with Workshop(resets=True).pool(1) as pool:
        loan = await pool.lend(5)
        pool.give_back(loan, failed=True)
        assert (await use(pool)) is not loan.member
        assert loan.member.uses == 0


async def test_a_member_that_died_in_the_pool_is_never_lent() -> None:
    workshop = Workshop(resets=True)
    async with workshop.pool(2) as pool:
        workshop.made[0].alive = False
        assert (await use(pool)).number == 1
        pool.sweep()
        assert {(await use(pool)).number for _ in range(4)} == {1, 2}


async def test_a_member_that_died_in_use_is_replaced() -> None:
    async with Workshop(resets=True).pool(1) as pool:
        loan = await pool.lend(5)
        loan.member.alive = False
        pool.give_back(loan, failed=False)
        assert (await use(pool)).number == 1


async def test_waiting_ends_with_the_caller_s_own_figure() -> None:
    async with Workshop().pool(1) as pool:
        loan = await pool.lend(5)
        with pytest.raises(
            PoolTimeoutError, match=r"^Timeout waiting for available sandbox from pool after 0\.01s"
        ):
            await pool.lend(0.01)
        pool.give_back(loan, failed=False)
        await use(pool)


async def test_a_time_out_of_zero_takes_what_is_there() -> None:
    async with Workshop().pool(1) as pool:
        loan = await pool.lend(0)
        with pytest.raises(PoolTimeoutError):
            await pool.lend(0)
        pool.give_back(loan, failed=False)


async def test_a_pool_of_nothing_says_what_to_do() -> None:
    async with Workshop().pool(0) as pool:
        with pytest.raises(
            PoolEmptyError, match="Sandbox pool is empty, call initialize_pool first"
        ):
            await pool.lend(1)


async def test_a_cancelled_borrower_leaves_the_queue() -> None:
    async with Workshop(resets=True).pool(1) as pool:
        loan = await pool.lend(5)
        with anyio.move_on_after(0.01):
            await pool.lend(5)
        pool.give_back(loan, failed=False)
        assert (await use(pool)) is loan.member


async def test_a_borrower_cancelled_in_the_moment_of_hand_over_gives_it_back() -> None:
    async with Workshop(resets=True).pool(1) as pool:
        loan = await pool.lend(5)
        waiting = asyncio.ensure_future(pool.lend(5))
        await asyncio.sleep(0)
        pool.give_back(loan, failed=False)
        while not pool.keys() or pool._waiters:
            await asyncio.sleep(0)
            if not pool.keys():
                break  # handed over, and the borrower has not run since
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert pool.keys() == ["k0"]
        assert (await use(pool)) is loan.member


async def test_opening_is_all_or_nothing() -> None:
    workshop = Workshop(creating_fails=1)
    with pytest.raises(OSError, match="no room"):
        async with workshop.pool(3):
            pass
    assert not workshop.alive


async def test_a_cancelled_opening_leaves_nothing() -> None:
    workshop = Workshop(creating_takes=5)
    with anyio.move_on_after(0.01) as scope:
        async with workshop.pool(3):
            pass
    assert scope.cancelled_caught
    assert not workshop.alive


async def test_replacing_goes_on_until_it_works() -> None:
    workshop = Workshop()
    async with workshop.pool(2) as pool:
        await pool.lend(5)  # never comes back: somebody could still wait for it
        loan = await pool.lend(5)
        workshop.creating_fails = 2
        pool.give_back(loan, failed=True)
        assert (await use(pool)).number == 2
        workshop.alive.discard(workshop.made[0])


async def test_borrowers_are_told_when_there_is_nothing_left_to_wait_for() -> None:
    workshop = Workshop()
    async with workshop.pool(1) as pool:
        loan = await pool.lend(5)
        waiting = asyncio.ensure_future(pool.lend(None))
        await asyncio.sleep(0)
        workshop.creating_fails = 1
        pool.give_back(loan, failed=True)
        with pytest.raises(OSError, match="no room"):
            await waiting
        assert (await use(pool)).number == 1


async def test_a_drained_pool_fills_again_for_the_next_borrower() -> None:
    workshop = Workshop(resets=True)
    async with workshop.pool(2) as pool:
        await pool.drain()
        assert not workshop.alive
        assert pool.keys() == ["k0", "k1"]
        assert (await use(pool)).number in (2, 3)


async def test_a_borrower_during_a_drain_is_served() -> None:
    workshop = Workshop(destroying_takes=0.01)
    async with workshop.pool(2) as pool, anyio.create_task_group() as tasks:
        tasks.start_soon(pool.drain)
        await asyncio.sleep(0)
        await use(pool)


async def test_closing_ends_waiting_and_destroys_what_comes_back_later() -> None:
    workshop = Workshop(resets=True)
    async with workshop.pool(1) as pool:
        loan = await pool.lend(5)
        waiting = asyncio.ensure_future(pool.lend(None))
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(PoolEmptyError):
            await waiting
        with pytest.raises(PoolEmptyError):
            await pool.lend(1)
        pool.give_back(loan, failed=False)


async def test_the_number_of_members_never_grows() -> None:
    workshop = Workshop(creating_takes=0.001, destroying_takes=0.001)

    async def borrow() -> None:
        for _ in range(5):
            loan = await pool.lend(5)
            await asyncio.sleep(0)
            pool.give_back(loan, failed=loan.member.number % 3 == 0)

    async with workshop.pool(3) as pool, anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(borrow)
    assert workshop.most_alive == 3


ACTIONS = st.lists(
    st.sampled_from(["lend", "give", "fail", "kill", "sweep", "cancel", "tick", "drain"]),
    max_size=60,
)


@given(size=st.integers(1, 4), resets=st.booleans(), actions=ACTIONS)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_all_waiters_are_served_and_nothing_is_left(
    size: int, resets: bool, actions: list[str]
) -> None:
    asyncio.run(_live(size, resets, actions))


class Story:
    """What borrowers, and fate, do to a pool."""

    def __init__(self, workshop: Workshop, pool: Pool[Member]) -> None:
        self.workshop = workshop
        self.pool = pool
        self.loans: list[Loan[Member]] = []
        self.waiting: list[asyncio.Task[Loan[Member]]] = []

    async def lend(self) -> None:
        self.waiting.append(asyncio.ensure_future(self.pool.lend(None)))

    async def cancel(self) -> None:
        if self.waiting:
            self.waiting.pop().cancel()

    async def give(self, *, failed: bool = False) -> None:
        if self.loans:
            self.pool.give_back(self.loans.pop(0), failed=failed)

    async def fail(self) -> None:
        await self.give(failed=True)

    async def kill(self) -> None:
        self.workshop.made[-1].alive = False

    async def sweep(self) -> None:
        self.pool.sweep()

    async def tick(self) -> None:
        await asyncio.sleep(0)

    async def drain(self) -> None:
        await self.pool.drain()

    def look(self) -> None:
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            self.loans.append(task.result())
        assert len(self.workshop.alive) <= self.pool.size
        assert len({loan.slot.key for loan in self.loans}) == len(self.loans)

    async def end(self) -> None:
        """Everybody who waits is served, and everything comes back."""
        while self.waiting or self.loans:
            while self.loans:
                await self.give()
            if self.waiting:
                self.loans.append(await asyncio.wait_for(self.waiting.pop(0), 5))


async def _live(size: int, resets: bool, actions: list[str]) -> None:
    workshop = Workshop(resets=resets)
    async with workshop.pool(size) as pool:
        story = Story(workshop, pool)
        for action in actions:
            await getattr(story, action)()
            await asyncio.sleep(0)
            story.look()
        await story.end()
