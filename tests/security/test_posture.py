"""What a live sandbox looks like from outside: the facts that no program in it can forge."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from tests.security.boxes import ColdSandbox, NoGroupsSandbox, find_processes, namespaces, status_of

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

KINDS = [ProcessSandbox, ColdSandbox, NoGroupsSandbox]
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
THREADS = """
import threading, time
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
import subprocess, sys
subprocess.run(['sleep', sys.argv[1]])
"""


async def live_processes(box: ProcessSandbox, group: anyio.abc.TaskGroup) -> list[int]:
    """Pids of a Python program with threads, of its child, and of a shell's child."""
    marker = f"60.{secrets.randbelow(10**9)}"

    async def run() -> None:
        await box.run_code(THREADS, args=[marker])

    async def run_shell() -> None:
        await box.execute_command(f"sleep {marker}; true")

    group.start_soon(run)
    group.start_soon(run_shell)
    with anyio.fail_after(20):
        while len(found := find_processes(marker)) < 2:
            await anyio.sleep(0.01)
    parents = [int(status_of(pid)["PPid"]) for pid in found]
    return [*found, *(pid for pid in parents if namespaces(pid) == namespaces(found[0]))]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_task_of_a_user_is_behind_every_wall(kind: type[ProcessSandbox]) -> None:
    async with kind() as box, anyio.create_task_group() as group:
        pids = await live_processes(box, group)
        assert len(pids) >= 3
        host = namespaces("self")
        for pid in pids:
            inside = namespaces(pid)
            assert not {name for name in host if host[name] == inside[name]}
            for task in os.listdir(f"/proc/{pid}/task"):
                row = status_of(pid, int(task))
                assert row["Seccomp"] == "2"
                assert row["NoNewPrivs"] == "1"
                assert {row[name] for name in CAPABILITIES} == {"0" * 16}
                assert "0" not in row["Uid"].split()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_no_outside_id_is_root(kind: type[ProcessSandbox]) -> None:
    async with kind() as box, anyio.create_task_group() as group:
        for pid in await live_processes(box, group):
            for name in ("uid_map", "gid_map"):
                for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
                    _, outside, _ = (int(word) for word in line.split())
                    assert outside != 0
                    if os.geteuid() == 0:
                        assert outside >= 100_000
        group.cancel_scope.cancel()


async def test_two_sandboxes_share_no_id_and_no_namespace() -> None:
    async with ProcessSandbox() as one, ProcessSandbox() as two, anyio.create_task_group() as group:
        first = (await live_processes(one, group))[0]
        second = (await live_processes(two, group))[0]
        shared = set(namespaces(first).values()) & set(namespaces(second).values())
        assert not shared
        if os.geteuid() == 0:
            assert status_of(first)["Uid"] != status_of(second)["Uid"]
        group.cancel_scope.cancel()


async def test_the_init_of_a_slot_has_nothing_to_give() -> None:
    async with ProcessSandbox() as box, anyio.create_task_group() as group:
        pid = (await live_processes(box, group))[0]
        space = namespaces(pid)["pid"]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                row = status_of(int(entry.name))
                same = os.readlink(entry / "ns" / "pid") == space
            except OSError:
                continue
            if same and row["NSpid"].split()[-1] == "1":
                assert {row[name] for name in CAPABILITIES} == {"0" * 16}
                assert row["Seccomp"] == "2"
                break
        else:
            pytest.fail("the slot has no init")
        group.cancel_scope.cancel()
