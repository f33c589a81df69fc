"""One sandbox's load is its own: others are served meanwhile."""

from __future__ import annotations

import anyio
import pytest

from ms_enclave.manager.local_manager import LocalSandboxManager

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]


async def test_a_sandbox_without_processor_time_does_not_hold_up_the_station() -> None:
    """Starting a process in a starved sandbox must not wait for that sandbox's share, or every
    other sandbox of the station waits with it. Counted in calls, not in seconds: while one call
    of the starved one is under way, the neighbour gets many."""
    async with LocalSandboxManager() as manager, anyio.create_task_group() as group:
        starved_id = await manager.create_sandbox("process", {"cpu_limit": 0.01})
        starved = await manager.get_sandbox(starved_id)
        other = await manager.get_sandbox(await manager.create_sandbox("process"))
        assert starved is not None
        assert other is not None
        if starved.isolation.guards["cgroup_cpu"] != "on":
            pytest.skip("this machine gives no processor group")
        await starved.execute_command("for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done")
        ended = anyio.Event()

        async def slow() -> None:
            await starved.execute_command(["true"], timeout=60)
            ended.set()

        served = 0
        group.start_soon(slow)
        with anyio.move_on_after(60):
            while not ended.is_set() and served < 20:
                assert (await other.execute_command(["true"])).exit_code == 0
                served += 1
        assert served >= 5
        group.cancel_scope.cancel()
