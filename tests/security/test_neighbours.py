"""One sandbox's load is its own: others are served meanwhile."""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.spawner.greedy import share_out
from tests.security.boxes import find_processes, status_of
from tests.support.owners import new_marker

if TYPE_CHECKING:
    from collections.abc import Callable

    from ms_enclave.boxes import Sandbox
    from ms_enclave.model import CommandResult

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


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes a second processor")
async def test_who_uses_all_of_its_share_leaves_the_station_a_processor() -> None:
    marker = new_marker()
    async with LocalSandboxManager() as manager:
        greedy = await _sandbox(manager, {"cpu_limit": 1, "timeout": 120})
        other = await _sandbox(manager, {"cpu_limit": 1})
        if greedy.isolation.guards["cgroup_cpu"] == "on":
            await _see_where_it_is_kept(greedy, other, marker)
            return
    pytest.skip("this machine gives no processor group")


UNTIL_KEPT = """
import os, time
child, end = os.fork(), time.monotonic() + 20
while len(os.sched_getaffinity(0)) > 1 and time.monotonic() < end:
    pass
if child:
    os.waitpid(child, 0)
    print(len(os.sched_getaffinity(0)))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes a second processor")
async def test_runs_that_were_made_ahead_are_kept_to_few_processors_too() -> None:
    async with LocalSandboxManager() as manager:
        config = {"cpu_limit": 1, "timeout": 60}
        probe = await _sandbox(manager, config)
        if probe.isolation.guards["cgroup_cpu"] != "on":
            pytest.skip("this machine gives no processor group")
        for _ in range(4):
            assert (await manager.run_code(UNTIL_KEPT, config=config)).stdout == "1\n"


async def _sandbox(manager: LocalSandboxManager, config: dict[str, Any]) -> Sandbox:
    found = await manager.get_sandbox(await manager.create_sandbox("process", config))
    assert found is not None
    return found


async def _see_where_it_is_kept(greedy: Sandbox, other: Sandbox, marker: str) -> None:
    def where() -> set[frozenset[int]]:
        return {frozenset(os.sched_getaffinity(pid)) for pid in find_processes(marker)}

    every = frozenset(os.sched_getaffinity(0))
    spin = f"sh -c 'while :; do :; done' {marker}"
    async with anyio.create_task_group() as group:
        group.start_soon(greedy.execute_command, f"{spin} & {spin}")
        await _until(lambda: len(find_processes(marker)) == 2)
        (first, _) = find_processes(marker)
        home = frozenset(os.sched_getaffinity(_station_above(first)))
        await _until(lambda: len(places := where()) == 1 and not places & {every, home})
        shown = await other.run_code("import os; print(*os.sched_getaffinity(0))")
        assert {int(word) for word in shown.stdout.split()} == every, "who is not goes anywhere"
        for pid in find_processes(marker):
            os.kill(pid, signal.SIGSTOP)
        await _until(lambda: where() == {every})
        for pid in find_processes(marker):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a descriptor limit of another process")
async def test_a_station_without_descriptors_for_a_moment_loses_nobody() -> None:
    """It tells how what it has ends, and goes on."""
    marker = new_marker()
    config = {"cpu_limit": 1, "timeout": 120, "cpu_time_limit": 100}
    async with LocalSandboxManager() as manager:
        box = await _sandbox(manager, config)
        async with anyio.create_task_group() as group:
            results: list[CommandResult] = []

            async def run() -> None:
                results.append(
                    await box.execute_command(["sh", "-c", "while :; do :; done", marker])
                )

            group.start_soon(run)
            await _until(lambda: len(find_processes(marker)) == 1)
            (pid,) = find_processes(marker)
            station = _station_above(pid)
            before = resource.prlimit(station, resource.RLIMIT_NOFILE)
            resource.prlimit(station, resource.RLIMIT_NOFILE, (3, before[1]))
            seen = int(status_of(station)["voluntary_ctxt_switches"])
            await _until(lambda: int(status_of(station)["voluntary_ctxt_switches"]) > seen + 3)
            os.kill(pid, signal.SIGTERM)
            await _until(lambda: bool(results))
            resource.prlimit(station, resource.RLIMIT_NOFILE, before)
        assert results[0].signal == signal.SIGTERM
        assert (await box.execute_command(["true"])).exit_code == 0


def _station_above(pid: int) -> int:
    """The child of a child of ours that a program descends from."""
    line = [pid]
    while line[-1] != os.getpid():
        line.append(int(status_of(line[-1])["PPid"]))
    return line[-3]


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.01)


def test_nobody_is_kept_to_less_than_it_may_have() -> None:
    assert share_out([1], [1]) == [{1}]
    assert share_out([2, 1], [0, 2, 3, 7]) == [{0, 2}, {3}]
    assert share_out([1, 1], [1]) == []
    assert share_out([], [1]) == []
