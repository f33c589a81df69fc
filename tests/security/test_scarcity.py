"""A station that can open nothing for a while: nobody is lost, and nobody outlives his time."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave import loop
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import SandboxLostError
from tests.security.boxes import (
    ColdSandbox,
    LandlockSandbox,
    NoGroupsLandlockSandbox,
    NoGroupsSandbox,
    find_processes,
    status_of,
    wait_for_processes,
    wait_until_gone,
)
from tests.support.owners import new_marker

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from ms_enclave.boxes import Sandbox
    from ms_enclave.spawner.client import StationClient

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.namespaces,
    pytest.mark.skipif(os.geteuid() != 0, reason="takes a descriptor limit of another process"),
]

KINDS = [ProcessSandbox, ColdSandbox, NoGroupsSandbox, LandlockSandbox, NoGroupsLandlockSandbox]
FAMILY = "setsid sleep {0} & exec sleep {0}"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_end_without_descriptors_is_told_and_ends_nobody_else(
    kind: type[ProcessSandbox],
) -> None:
    marker = new_marker()
    async with kind() as neighbour, kind() as box, anyio.create_task_group() as group:
        assert _station_of(neighbour) is _station_of(box)
        results: list[int | None] = []

        async def run() -> None:
            results.append((await box.execute_command(["sleep", marker])).signal)

        group.start_soon(run)
        await _until(lambda: len(find_processes(marker)) == 1)
        (pid,) = find_processes(marker)
        with _nothing_to_open(_line_above(pid)[-3]):
            os.kill(pid, signal.SIGTERM)
            await _until(lambda: bool(results))
        assert results == [signal.SIGTERM]
        for each in (box, neighbour):
            assert (await each.run_code("print(1)")).stdout == "1\n"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_kill_without_descriptors_is_done_as_soon_as_there_are(
    kind: type[ProcessSandbox],
) -> None:
    marker = new_marker()
    async with kind() as box, anyio.create_task_group() as group:
        results: list[int | None] = []
        station = _station_of(box)
        killed: list[object] = []

        async def run() -> None:
            command = ["sh", "-c", FAMILY.format(marker)]
            results.append((await box.execute_command(command)).signal)

        async def kill() -> None:
            number = max(station._processes)  # pyright: ignore[reportPrivateUsage]
            killed.append(await loop.run(station.ask, "kill", process=number))

        group.start_soon(run)
        await _until(lambda: len(find_processes(marker)) == 2)
        with _nothing_to_open(_line_above(find_processes(marker)[0])[-3]):
            group.start_soon(kill)
            await _until(lambda: bool(station._answers))  # pyright: ignore[reportPrivateUsage]
            await loop.run(station.ask, "signal", process=-1, signal=0)  # the kill came before
            assert not killed, "nobody could see whether they are gone"
        await _until(lambda: bool(killed))
        assert find_processes(marker) == []
        await _until(lambda: bool(results))
        assert results == [signal.SIGKILL]
        assert (await box.run_code("print(1)")).stdout == "1\n"


async def test_a_station_that_cannot_kill_for_long_ends_with_all_that_it_has() -> None:
    marker = new_marker()
    async with ProcessSandbox() as box, anyio.create_task_group() as group:
        station = _station_of(box)

        async def run() -> None:
            with contextlib.suppress(SandboxLostError):
                await box.execute_command(["sh", "-c", FAMILY.format(marker)])

        group.start_soon(run)
        await _until(lambda: len(find_processes(marker)) == 2)
        number = max(station._processes)  # pyright: ignore[reportPrivateUsage]
        with (
            _nothing_to_open(_line_above(find_processes(marker)[0])[-3]),
            pytest.raises(SandboxLostError),
        ):
            await loop.run(station.ask, "kill", process=number)
        assert wait_until_gone(marker) == []


@pytest.mark.parametrize("kind", [LandlockSandbox, NoGroupsLandlockSandbox])
async def test_whom_a_killed_keeper_leaves_is_ended_as_soon_as_there_are_descriptors(
    kind: type[ProcessSandbox],
) -> None:
    marker = new_marker()
    async with kind() as neighbour, kind() as box:
        await box.execute_command(["sh", "-c", f"setsid sleep {marker} >/dev/null 2>&1 &"])
        (pid,) = wait_for_processes(marker)
        *_, keeper, station, _launcher, _we = _line_above(pid)
        with _nothing_to_open(station):
            os.kill(keeper, signal.SIGKILL)
            await _until(lambda: not os.path.exists(f"/proc/{keeper}"))
        assert wait_until_gone(marker) == []
        with pytest.raises(SandboxLostError):
            await box.run_code("print(1)")
        assert (await neighbour.run_code("print(1)")).stdout == "1\n"


@contextlib.contextmanager
def _nothing_to_open(pid: int) -> Generator[None, None, None]:
    """A process that has all the descriptors that it may have."""
    before: Any = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have ended with them
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _line_above(pid: int) -> list[int]:
    """A process and those that it descends from: before us our launcher, and before that its
    station."""
    line = [pid]
    while line[-1] != os.getpid():
        line.append(int(status_of(line[-1])["PPid"]))
    return line


def _station_of(box: Sandbox) -> StationClient:
    assert isinstance(box, ProcessSandbox)
    return box._station  # pyright: ignore[reportPrivateUsage]


async def _until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.01)
