"""Whatever dies, nothing of a sandbox outlives it, and whoever waits learns the truth."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from ms_enclave import loop
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import SandboxLostError
from tests.security.boxes import (
    ColdSandbox,
    NoGroupsLandlockSandbox,
    NoGroupsSandbox,
    find_processes,
    members_of,
    namespaces,
    status_of,
    wait_for_processes,
    wait_until_gone,
)
from tests.support.owners import groups_named

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

KINDS = [ProcessSandbox, ColdSandbox, NoGroupsSandbox]

DAEMONS = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            os.execvp('sleep', ['sleep', sys.argv[1]])
        os._exit(0)
print('started', flush=True)
time.sleep(600)
"""


def new_marker() -> str:
    return f"600.{secrets.randbelow(10**9)}"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_time_out_takes_the_daemons_along(kind: type[ProcessSandbox]) -> None:
    marker = new_marker()
    async with kind() as box:
        result = await box.run_code(DAEMONS, args=[marker], timeout=1.5)
        assert result.verdict == "wall_timeout"
        assert result.stdout == "started\n"
        assert find_processes(marker) == []
        assert (await box.run_code("print(1)")).stdout == "1\n"


RACE = """
import os, signal, sys
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.execvp('sleep', ['sleep', sys.argv[1]])
main = os.getpid()
os.fork()
while os.getpid() == main:
    signal.pause()
while True:  # everybody is always about to become somebody else's child
    try:
        if os.fork() == 0:
            os.setsid()
        elif os.fork() == 0:
            continue
        else:
            os._exit(0)
    except OSError:
        pass
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_no_program_forks_faster_than_it_is_killed(kind: type[ProcessSandbox]) -> None:
    marker = new_marker()
    async with kind({"pids_limit": 60}) as box:
        await box.execute_command(f"setsid sleep {marker}9 >/dev/null 2>&1 &")
        (bystander,) = wait_for_processes(f"{marker}9")
        space = namespaces(bystander)["pid"]
        allowed = {bystander, int(status_of(bystander)["PPid"])}
        for _ in range(3):
            result = await box.run_code(RACE, args=[marker], timeout=0.4)
            assert result.verdict != "ok"
            assert find_processes(marker) == []
            assert members_of(space) - allowed == set()
        assert find_processes(f"{marker}9") == [bystander]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancel_takes_the_daemons_along(kind: type[ProcessSandbox]) -> None:
    marker = new_marker()
    async with kind() as box, anyio.create_task_group() as group:

        async def run() -> None:
            await box.run_code(DAEMONS, args=[marker])

        group.start_soon(run)
        with anyio.fail_after(20):
            while len(find_processes(marker)) < 3:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    assert find_processes(marker) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_takes_everything_along(kind: type[ProcessSandbox]) -> None:
    marker = new_marker()
    async with kind() as box:
        result = await box.execute_command(f"setsid sleep {marker} >/dev/null 2>&1 &")
        assert result.exit_code == 0
        wait_for_processes(marker)
    assert find_processes(marker) == []


async def test_what_a_command_leaves_running_is_not_touched_by_another_ones_time_out() -> None:
    left, timed = new_marker(), new_marker()
    for kind in KINDS:
        async with kind() as box:
            await box.execute_command(f"setsid sleep {left} >/dev/null 2>&1 &")
            wait_for_processes(left)
            await box.execute_command(f"setsid sleep {timed} & sleep {timed}", timeout=0.5)
            assert len(find_processes(left)) == 1, kind
            assert find_processes(timed) == []


BUSY_THEN_IDLE = """
import os, sys, time
while time.process_time() < 0.7:
    pass
os.execvp('sleep', ['sleep', sys.argv[1]])
"""


@pytest.mark.parametrize("kind", [*KINDS, NoGroupsLandlockSandbox])
async def test_what_serves_the_files_does_not_answer_for_daemons(
    kind: type[ProcessSandbox],
) -> None:
    marker = new_marker()
    async with kind({"cpu_time_limit": 1}) as box:
        await box.files.write("busy.py", BUSY_THEN_IDLE)
        for _ in range(2):  # both together use more than one call may
            await box.execute_command(f"setsid python3 busy.py {marker} >/dev/null 2>&1 &")
        with anyio.fail_after(20):
            while [Path(f"/proc/{pid}/comm").read_text() for pid in find_processes(marker)] != [
                "sleep\n", "sleep\n"
            ]:  # fmt: skip
                await anyio.sleep(0.01)
        assert await box.files.read_text("busy.py") == BUSY_THEN_IDLE


SLOW_TO_END = """
import mmap, os, sys, time
if os.fork() == 0:
    os.setsid()
    memory = mmap.mmap(-1, 400 << 20)
    memory.madvise(15)  # MADV_NOHUGEPAGE: the kernel takes back every page by itself
    for place in range(0, len(memory), 4096):
        memory[place] = 1
    print('ready', flush=True)
time.sleep(600)
"""


async def close_while_it_is_killed(box: ProcessSandbox) -> None:
    """Ask for the end of its run, and before that has come for the end of the sandbox."""
    said: list[bytes] = []
    station = box._station  # pyright: ignore[reportPrivateUsage]

    async def run() -> None:
        with contextlib.suppress(SandboxLostError):
            await box.run_code(SLOW_TO_END, on_output=lambda _, data: said.append(data))

    async def kill() -> None:
        (number,) = runs.keys() - before
        await loop.run(station.ask, "kill", process=number)

    async def close() -> None:
        await loop.run(station.ask, "close", box=box.id)

    runs = station._processes  # pyright: ignore[reportPrivateUsage]
    before = set(runs)
    async with anyio.create_task_group() as group:
        group.start_soon(run)
        with anyio.fail_after(20):
            while not said:
                await anyio.sleep(0.01)
        group.start_soon(kill)
        group.start_soon(close)


async def test_a_run_that_is_being_killed_as_its_sandbox_ends_takes_no_other_along() -> None:
    async with ProcessSandbox() as other:
        for _ in range(3):
            box = ProcessSandbox({"memory_limit": "512m"})
            await box.start()
            try:
                await close_while_it_is_killed(box)
            finally:
                await box.stop()
            assert (await other.run_code("print(1)")).stdout == "1\n"


OWNER = """
import asyncio, os, sys
from ms_enclave.boxes.process_sandbox import ProcessSandbox
async def main():
    box = ProcessSandbox()
    await box.start()
    print('ready', flush=True)
    await box.execute_command(['sleep', sys.argv[1]])
asyncio.run(main())
"""


def test_when_the_owner_is_killed_nothing_is_left() -> None:
    marker = new_marker()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, marker], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        while not [pid for pid in find_processes(marker) if pid != owner.pid]:
            assert owner.poll() is None
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()
    assert wait_until_gone(marker, 1.0) == []


def station_of(marker: str) -> int:
    """The pid of the station whose child the marked process is."""
    (pid,) = find_processes(marker)
    return int(status_of(pid)["PPid"])


@pytest.mark.parametrize("victim", ["station", "launcher"])
async def test_when_the_station_is_killed_callers_learn_it(victim: str) -> None:
    marker = new_marker()
    box = ProcessSandbox()
    await box.start()
    try:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                with pytest.raises(SandboxLostError):
                    await box.execute_command(["sleep", marker])

            group.start_soon(run)
            with anyio.fail_after(20):
                while not find_processes(marker):
                    await anyio.sleep(0.01)
            pid = station_of(marker)
            if victim == "launcher":
                pid = int(status_of(pid)["PPid"])
            os.kill(pid, signal.SIGKILL)
        assert wait_until_gone(marker) == []
        assert box.status == "error"
    finally:
        await box.stop()


async def test_killing_the_init_from_outside_is_a_lost_sandbox_and_no_other() -> None:
    marker = new_marker()
    async with ProcessSandbox() as other:
        box = ProcessSandbox()
        await box.start()
        try:
            await box.execute_command(f"setsid sleep {marker} >/dev/null 2>&1 &")
            (pid,) = wait_for_processes(marker)
            os.kill(int(status_of(pid)["PPid"]), signal.SIGKILL)
            with pytest.raises(SandboxLostError), anyio.fail_after(10):
                while True:
                    await box.execute_command(["true"])
            assert wait_until_gone(marker, 1.0) == []
            assert (await other.run_code("print(1)")).stdout == "1\n"
        finally:
            await box.stop()


async def test_no_group_and_no_store_is_left() -> None:
    marker = new_marker()
    async with ProcessSandbox() as box:
        await box.execute_command(f"setsid sleep {marker} >/dev/null 2>&1 &")
        (pid,) = wait_for_processes(marker)
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        names = {line.split(":")[2].split("/ms-enclave-")[1].split("/")[0] for line in lines
                 if "/ms-enclave-" in line}  # fmt: skip
        if box.isolation.guards["cgroup_pids"] == "on":
            assert len(names) == 1
    assert groups_named({f"ms-enclave-{name}" for name in names}) == set()
