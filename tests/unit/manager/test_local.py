"""The local manager over boxes that only live: life, ownership, clean-up, pool."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave import loop
from ms_enclave.errors import (
    ConfigError,
    IsolationUnavailableError,
    PoolEmptyError,
    SandboxLostError,
    SandboxNotFoundError,
    SandboxStartError,
    SandboxStateError,
    UnknownTypeError,
)
from ms_enclave.manager import local_manager
from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.model import ProcessSandboxConfig, SandboxConfig, SandboxStatus, ToolResult
from tests.unit.manager.nothing import Nothing

if TYPE_CHECKING:
    from tests.unit.manager.conftest import Time
    from tests.unit.manager.nothing import Script

# --- life ---


async def test_creating_starts_a_manager_that_never_was(script: Script) -> None:
    manager = LocalSandboxManager()
    assert manager._running is False
    await manager.create_sandbox("nothing")
    assert manager._running is True
    await manager.stop()
    assert manager._running is False
    assert not script.open_now


async def test_a_stopped_manager_makes_nothing_until_it_is_started_again(script: Script) -> None:
    manager = LocalSandboxManager()
    await manager.start()
    await manager.start()
    await manager.stop()
    await manager.stop()
    with pytest.raises(SandboxStateError, match="has been stopped"):
        await manager.create_sandbox("nothing")
    with pytest.raises(SandboxStateError):
        await manager.initialize_pool(1, "nothing")
    await manager.start()
    await manager.create_sandbox("nothing")
    await manager.stop()


async def test_a_stop_during_a_creation_ends_both(script: Script) -> None:
    script.opening_takes = 5
    manager = LocalSandboxManager()
    await manager.start()
    creating = asyncio.ensure_future(manager.create_sandbox("nothing"))
    while not manager._sandboxes:
        await asyncio.sleep(0.001)
    await manager.stop()
    with pytest.raises(SandboxStateError):
        await creating
    assert not script.open_now


async def test_a_stop_cannot_be_cancelled(script: Script) -> None:
    manager = LocalSandboxManager()
    await manager.create_sandbox("nothing")
    stopping = asyncio.ensure_future(manager.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert not script.open_now


async def test_what_cannot_be_removed_is_said_after_all_else_was(script: Script) -> None:
    manager = LocalSandboxManager()
    for _ in range(3):
        await manager.create_sandbox("nothing")
    script.closing_fails = SandboxLostError("stuck")
    with pytest.raises(SandboxLostError, match="stuck"):
        await manager.stop()
    assert len(script.released) == 1
    assert manager._sandboxes == {}


async def test_the_block_s_own_error_goes_before_that_of_the_stop(script: Script) -> None:
    with pytest.raises(KeyError):
        async with LocalSandboxManager() as manager:
            await manager.create_sandbox("nothing")
            script.closing_fails = SandboxLostError("stuck")
            raise KeyError


async def test_what_sandboxes_shared_is_given_back_once_with_their_owner(script: Script) -> None:
    for _ in range(2):
        async with LocalSandboxManager() as manager:
            await manager.create_sandbox("nothing")
            await manager.create_sandbox("nothing")
    assert len(script.owners) == 2
    assert set(script.released) == script.owners
    assert len(script.released) == 2


def test_three_event_loops_and_two_threads(script: Script) -> None:
    manager = LocalSandboxManager()
    asyncio.run(manager.start())
    first = asyncio.run(manager.create_sandbox("nothing"))
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.append(asyncio.run(manager.create_sandbox("nothing"))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {info.id for info in asyncio.run(manager.list_sandboxes())} == {first, *made}
    asyncio.run(manager.stop())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_cannot_use_its_parent_s_manager(script: Script) -> None:
    manager = LocalSandboxManager()
    loop.call(manager.start)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            loop.call(manager.create_sandbox, "nothing")
        except SandboxStateError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    loop.call(manager.stop)


# --- creating ---


async def test_a_creation_that_fails_leaves_nothing(
    manager: LocalSandboxManager, script: Script
) -> None:
    script.opening_fails = SandboxStartError("no")
    with pytest.raises(SandboxStartError):
        await manager.create_sandbox("nothing", sandbox_id="mine")
    assert await manager.get_sandbox_info("mine") is None
    script.opening_fails = None
    assert await manager.create_sandbox("nothing", sandbox_id="mine") == "mine"


async def test_a_creation_that_is_cancelled_leaves_nothing(
    manager: LocalSandboxManager, script: Script
) -> None:
    script.opening_takes = 5
    with anyio.move_on_after(0.02) as scope:
        await manager.create_sandbox("nothing")
    assert scope.cancelled_caught
    assert manager._sandboxes == {}


async def test_a_sandbox_for_a_block_is_not_lost_when_it_is_cancelled_at_any_time(
    manager: LocalSandboxManager, script: Script
) -> None:
    script.opening_takes = 0.002

    async def use() -> None:
        async with manager.sandbox("nothing"):
            await anyio.sleep(0.001)

    for delay in range(12):
        with anyio.move_on_after(delay / 2000):
            await use()
    assert manager._sandboxes == {}


async def test_a_creation_that_was_just_done_when_it_was_cancelled_is_taken_back(
    manager: LocalSandboxManager, script: Script
) -> None:
    await manager.start()
    async with anyio.create_task_group() as group:
        group.start_soon(manager.create_sandbox, "nothing")
        await anyio.sleep(0)
        time.sleep(0.1)  # it ends on its own loop, and this one does not hear of it yet
        assert len(manager._sandboxes) == 1
        group.cancel_scope.cancel()
    assert manager._sandboxes == {}
    assert not script.open_now


async def test_an_id_is_used_once(manager: LocalSandboxManager) -> None:
    await manager.create_sandbox("nothing", sandbox_id="mine")
    with pytest.raises(ConfigError, match="taken"):
        await manager.create_sandbox("nothing", sandbox_id="mine")


async def test_an_unknown_type_is_said_so(manager: LocalSandboxManager) -> None:
    with pytest.raises(UnknownTypeError, match="Sandbox type warp is not registered"):
        await manager.create_sandbox("warp")


async def test_the_manager_s_own_sandbox_config_is_the_default(script: Script) -> None:
    async with LocalSandboxManager(sandbox_config=SandboxConfig(timeout=7)) as manager:
        box = await manager.get_sandbox(await manager.create_sandbox("nothing"))
        assert box is not None
        assert box.config.timeout == 7


async def test_auto_takes_the_first_that_works(
    manager: LocalSandboxManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_manager, "BEST_FIRST", ("absent", "broken", "nothing"))
    made = await manager.create_sandbox()
    info = await manager.get_sandbox_info(made)
    assert info is not None
    assert info.type == "nothing"


async def test_auto_takes_the_type_that_the_config_is_for(
    manager: LocalSandboxManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_manager, "BEST_FIRST", ("broken", "nothing"))
    for config, suits in (
        (ProcessSandboxConfig(), [False, True]),
        (SandboxConfig(), [True, True]),
        ({}, [True, True]),
        (None, [True, True]),
    ):
        for name, expected in zip(local_manager.BEST_FIRST, suits, strict=True):
            assert await loop.run(manager._suits, name, config) is expected


async def test_auto_says_what_to_do_where_nothing_works(
    manager: LocalSandboxManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_manager, "BEST_FIRST", ("broken",))
    with pytest.raises(IsolationUnavailableError, match="no walls here") as caught:
        await manager.create_sandbox()
    assert caught.value.remedy is not None
    assert "sysctl walls=1" in caught.value.remedy
    assert manager._sandboxes == {}


# --- looking ---


async def test_sandboxes_are_listed_by_state(manager: LocalSandboxManager) -> None:
    one = await manager.create_sandbox("nothing")
    two = await manager.create_sandbox("nothing")
    await manager.stop_sandbox(one)
    assert [info.id for info in await manager.list_sandboxes("stopped")] == [one]
    assert [info.id for info in await manager.list_sandboxes(SandboxStatus.RUNNING)] == [two]
    with pytest.raises(ConfigError, match="tired"):
        await manager.list_sandboxes("tired")


async def test_statistics(manager: LocalSandboxManager) -> None:
    await manager.create_sandbox("nothing")
    await manager.initialize_pool(2, "nothing")
    assert await manager.get_stats() == {
        "manager_type": "local",
        "total_sandboxes": 3,
        "status_counts": {"running": 3},
        "sandbox_types": {"nothing": 3},
        "running": True,
        "cleanup_interval": 300,
        "pool_size": 2,
        "pool_enabled": True,
        "pool_initialized": True,
        "pool_waiting": 0,
    }


async def test_a_stand_in_in_the_table_is_used_like_a_sandbox() -> None:
    class StandIn:
        def __init__(self) -> None:
            self.calls: list[tuple[str, Any]] = []

        async def execute_tool(self, tool: str, parameters: dict[str, Any]) -> ToolResult:
            step = home.create_future()  # it lives on the loop of the test
            home.call_soon(step.set_result, None)
            await step
            self.calls.append((tool, parameters))
            return ToolResult(tool_name=tool, status="success", output="stood in")

    home = asyncio.get_running_loop()
    manager = LocalSandboxManager()
    stand_in = StandIn()
    manager._sandboxes = {"s": stand_in}  # type: ignore[dict-item]
    result = await manager.execute_tool("s", "python_executor", {"code": "1"})
    assert result.output == "stood in"
    assert stand_in.calls == [("python_executor", {"code": "1"})]


async def test_a_lost_sandbox_is_listed_with_its_reason(
    manager: LocalSandboxManager,
) -> None:
    made = await manager.create_sandbox("nothing")
    box = await manager.get_sandbox(made)
    assert box is not None

    async def lose() -> None:
        box._lost("its box has gone")

    await loop.run(lose)
    info = await manager.get_sandbox_info(made)
    assert info is not None
    assert (info.status, info.metadata["error"]) == ("error", "its box has gone")


# --- clean-up ---


async def test_old_and_ended_sandboxes_are_cleaned_up(
    manager: LocalSandboxManager, time: Time
) -> None:
    running = await manager.create_sandbox("nothing")
    stopped = await manager.create_sandbox("nothing")
    await manager.stop_sandbox(stopped)
    assert await manager.cleanup_expired() == []
    time.pass_(minutes=61)
    assert await manager.cleanup_expired() == [stopped]
    time.pass_(hours=46)
    assert await manager.cleanup_expired() == []
    time.pass_(hours=2)
    assert await manager.cleanup_expired() == [running]
    assert manager._sandboxes == {}


async def test_ages_are_settable(script: Script, time: Time) -> None:
    async with LocalSandboxManager(max_age=10, retention=5, clock=time) as manager:
        one = await manager.create_sandbox("nothing")
        time.pass_(seconds=11)
        assert await manager.cleanup_expired() == [one]


async def test_a_ttl_beyond_all_dates_is_for_ever(manager: LocalSandboxManager, time: Time) -> None:
    made = await manager.create_sandbox("nothing", {"ttl": 1e300})
    renewed = await manager.create_sandbox("nothing", {"ttl": 1})
    await manager.renew(renewed, 1e300)
    time.pass_(days=3650)
    assert await manager.cleanup_expired() == []
    assert {info.id for info in await manager.list_sandboxes("running")} == {made, renewed}


async def test_a_ttl_takes_the_place_of_the_age(manager: LocalSandboxManager, time: Time) -> None:
    short = await manager.create_sandbox("nothing", {"ttl": 60})
    long = await manager.create_sandbox("nothing", {"ttl": 100 * 3600})
    time.pass_(seconds=61)
    assert await manager.cleanup_expired() == [short]
    time.pass_(hours=49)
    assert await manager.cleanup_expired() == []
    time.pass_(hours=52)
    assert await manager.cleanup_expired() == [long]


async def test_a_renewal_counts_from_now(manager: LocalSandboxManager, time: Time) -> None:
    made = await manager.create_sandbox("nothing", {"ttl": 60})
    time.pass_(seconds=59)
    await manager.renew(made, 60)
    time.pass_(seconds=59)
    assert await manager.cleanup_expired() == []
    time.pass_(seconds=2)
    assert await manager.cleanup_expired() == [made]
    with pytest.raises(SandboxNotFoundError):
        await manager.renew(made, 60)


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan")])
async def test_a_renewal_for_no_time_is_refused(manager: LocalSandboxManager, ttl: float) -> None:
    made = await manager.create_sandbox("nothing")
    with pytest.raises(ConfigError, match="ttl"):
        await manager.renew(made, ttl)


async def test_a_creation_time_that_was_changed_is_believed(manager: LocalSandboxManager) -> None:
    made = await manager.create_sandbox("nothing")
    box = await manager.get_sandbox(made)
    assert box is not None
    box.created_at = datetime.now(timezone.utc) - timedelta(hours=49)
    assert await manager.cleanup_expired() == [made]


async def test_time_limits_end_a_sandbox_without_anybody_s_asking(script: Script) -> None:
    async with LocalSandboxManager(cleanup_interval=None) as manager:
        await manager.create_sandbox("nothing", {"ttl": 0.05})
        await manager.create_sandbox("nothing", {"idle_timeout": 0.05})
        await manager.create_sandbox("nothing")
        with anyio.fail_after(5):
            while len(manager._sandboxes) > 1:
                await anyio.sleep(0.005)


async def test_a_sandbox_that_cannot_be_removed_stays_listed_and_is_tried_again(
    manager: LocalSandboxManager, script: Script, time: Time
) -> None:
    made = await manager.create_sandbox("nothing", {"ttl": 60})
    script.closing_fails = SandboxLostError("stuck")
    with pytest.raises(SandboxLostError):
        await manager.delete_sandbox(made)
    info = await manager.get_sandbox_info(made)
    assert info is not None
    assert info.status == SandboxStatus.ERROR
    script.closing_fails = None
    assert await manager.delete_sandbox(made)


async def test_all_can_be_ended_at_once(manager: LocalSandboxManager, script: Script) -> None:
    for _ in range(5):
        await manager.create_sandbox("nothing")
    await manager.cleanup_all_sandboxes()
    assert manager._sandboxes == {}
    assert not script.open_now


# --- the pool ---


async def test_a_pool_beyond_all_measure_is_refused_before_it_is_begun(
    manager: LocalSandboxManager,
) -> None:
    with pytest.raises(ConfigError, match="10000 sandboxes at most"):
        await manager.initialize_pool(10_001, "nothing")


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -1])
async def test_whoever_borrows_waits_for_a_time_that_there_is(
    manager: LocalSandboxManager, timeout: float
) -> None:
    await manager.initialize_pool(1, "nothing")
    with pytest.raises(ConfigError, match="timeout"):
        async with manager.borrow(timeout=timeout):
            pass
    async with manager.borrow(timeout=0):
        pass


async def test_a_pool_keeps_its_ids_while_sandboxes_are_replaced(
    manager: LocalSandboxManager, script: Script
) -> None:
    ids = await manager.initialize_pool(2, "nothing")
    assert manager._sandbox_pool == ids
    assert manager._pool_initialized
    async with manager.borrow() as first:
        assert first.id == ids[0]
        assert manager._sandbox_pool == [ids[1]]
    async with manager._pool_condition:
        assert manager._sandbox_pool == [ids[1], ids[0]]
    with anyio.fail_after(5):
        while script.opened < 3:  # the first one's successor is ready
            await anyio.sleep(0.001)
    async with manager.borrow() as second:
        assert second.id == ids[1]
    async with manager.borrow() as third:
        assert third.id == ids[0]
        assert third is not first
    assert first.status is SandboxStatus.STOPPED


async def test_a_sandbox_that_can_become_as_new_goes_back(
    manager: LocalSandboxManager, script: Script
) -> None:
    Nothing.as_new = True
    await manager.initialize_pool(1, "nothing")
    async with manager.borrow() as first:
        pass
    async with manager.borrow() as second:
        assert second is first
    assert script.opened == 1


async def test_a_failed_loan_costs_the_sandbox_its_life(
    manager: LocalSandboxManager, script: Script
) -> None:
    Nothing.as_new = True
    await manager.initialize_pool(1, "nothing")
    with pytest.raises(KeyError):
        async with manager.borrow() as first:
            raise KeyError
    async with manager.borrow(timeout=5) as second:
        assert second is not first


async def test_initialising_twice_is_harmless_also_at_the_same_time(
    manager: LocalSandboxManager, script: Script
) -> None:
    script.opening_takes = 0.01
    ids = await asyncio.gather(*[manager.initialize_pool(2, "nothing") for _ in range(3)])
    assert ids[0] == ids[1] == ids[2]
    assert script.opened == 2


async def test_a_pool_that_cannot_be_made_leaves_nothing(
    manager: LocalSandboxManager, script: Script
) -> None:
    script.opening_fails = SandboxStartError("no")
    with pytest.raises(SandboxStartError):
        await manager.initialize_pool(3, "nothing")
    assert not manager._pool_initialized
    assert manager._sandboxes == {}
    with pytest.raises(PoolEmptyError, match="initialize_pool first"):
        await manager.execute_tool_in_pool("x", {})


async def test_a_pool_of_nothing_and_of_less(manager: LocalSandboxManager) -> None:
    assert await manager.initialize_pool(0, "nothing") == []
    with pytest.raises(PoolEmptyError):
        async with manager.borrow():
            pass
    with pytest.raises(ConfigError, match="Pool size must be non-negative"):
        await manager.initialize_pool(-1, "nothing")


async def test_the_size_comes_from_the_config(script: Script) -> None:
    async with LocalSandboxManager({"pool_size": 2}) as manager:
        assert len(await manager.initialize_pool(sandbox_type="nothing")) == 2


async def test_a_deleted_member_is_replaced_by_itself(
    manager: LocalSandboxManager, script: Script
) -> None:
    ids = await manager.initialize_pool(2, "nothing")
    await manager.delete_sandbox(ids[0])
    with anyio.fail_after(5):
        while script.opened < 3:
            await anyio.sleep(0.001)
    async with manager.borrow() as box:
        assert box.id in ids


async def test_after_cleaning_up_all_the_pool_fills_again(
    manager: LocalSandboxManager, script: Script
) -> None:
    ids = await manager.initialize_pool(2, "nothing")
    await manager.cleanup_all_sandboxes()
    assert manager._sandboxes == {}
    assert manager._sandbox_pool == ids
    async with manager.borrow(timeout=5) as box:
        assert box.id in ids


async def test_a_borrower_cancelled_at_any_time_loses_no_sandbox(
    manager: LocalSandboxManager, script: Script
) -> None:
    await manager.initialize_pool(1, "nothing")

    async def borrow() -> None:
        async with manager.borrow():
            await anyio.sleep(0.001)

    for delay in range(16):
        with anyio.move_on_after(delay / 4000):
            await borrow()
    async with manager.borrow(timeout=5):
        pass


async def test_a_stop_ends_loans_and_those_who_wait(script: Script) -> None:
    manager = LocalSandboxManager()
    await manager.initialize_pool(1, "nothing")
    async with manager.borrow() as box:
        waiting = asyncio.ensure_future(manager.execute_tool_in_pool("x", {}))
        await asyncio.sleep(0.01)
        await manager.stop()
        assert box.status is SandboxStatus.STOPPED
        with pytest.raises(PoolEmptyError):
            await waiting
    assert manager._sandbox_pool == []
    assert not script.open_now


async def test_a_start_waits_for_the_stop_that_is_under_way(script: Script) -> None:
    manager = LocalSandboxManager()
    await manager.create_sandbox("nothing")
    await asyncio.gather(manager.stop(), manager.stop(), manager.start())
    assert manager._running
    assert not script.open_now
    assert len(script.released) == 1
    await manager.create_sandbox("nothing")
    await manager.stop()


async def test_an_error_of_the_stop_alone_is_raised_by_the_block(script: Script) -> None:
    with pytest.raises(SandboxLostError, match="stuck"):
        async with LocalSandboxManager() as manager:
            await manager.create_sandbox("nothing")
            script.closing_fails = SandboxLostError("stuck")


async def test_cleaning_up_all_says_what_stayed(
    manager: LocalSandboxManager, script: Script
) -> None:
    for _ in range(3):
        await manager.create_sandbox("nothing")
    script.closing_fails = SandboxLostError("stuck")
    with pytest.raises(SandboxLostError):
        await manager.cleanup_all_sandboxes()
    assert await manager.cleanup_expired() == []
    script.closing_fails = None
    await manager.cleanup_all_sandboxes()
    assert manager._sandboxes == {}


async def test_a_sandbox_put_into_the_table_is_cleaned_up_by_its_own_times(
    manager: LocalSandboxManager, script: Script
) -> None:
    box = Nothing(sandbox_id="theirs")
    await box.start()
    box.created_at = datetime.now(timezone.utc) - timedelta(hours=49)
    manager._sandboxes["theirs"] = box
    assert await manager.cleanup_expired() == ["theirs"]


async def test_a_pool_stays_equal_when_the_caller_s_config_changes(
    manager: LocalSandboxManager, script: Script
) -> None:
    config = ProcessSandboxConfig(timeout=5)
    await manager.initialize_pool(1, "nothing", config)
    config.timeout = 9
    for _ in range(2):
        async with manager.borrow(timeout=5) as box:
            assert box.config.timeout == 5


async def test_what_a_backend_raises_reaches_the_caller_and_leaves_nothing(
    manager: LocalSandboxManager, script: Script
) -> None:
    script.opening_fails = RuntimeError("port is already allocated")
    with pytest.raises(RuntimeError, match="port is already allocated"):
        await manager.create_sandbox("nothing")
    assert manager._sandboxes == {}
