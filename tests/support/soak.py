"""Makes and stops sandboxes by the thousand, cancels some of it at random moments, and looks what
is left: `python -m tests.support.soak [COUNT] [SEED]` prints it as JSON.

The manager lives on while it is looked at, so that what it and its station keep is seen, too.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio

from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.security.boxes import status_of

__all__ = ["main"]

AT_ONCE = 4
CANCELLED = 0.05
WARM_UP = 40
FIRST = 0.06
"""Seconds of a cycle, as long as that has not been measured."""
SETTLE_SECONDS = 10.0
PARTS = ("manager", "launcher", "station")


async def cycle(manager: LocalSandboxManager) -> None:
    """One sandbox's life."""
    name = await manager.create_sandbox("process")
    try:
        box = await manager.get_sandbox(name)
        assert box is not None
        await box.files.write("data", b"x" * 10_000)
        assert (await box.run_code("print(1)")).stdout == "1\n"
        result = await box.execute_command("setsid sleep 600 > /dev/null 2>&1 & cat data | wc -c")
        assert result.stdout.strip() == "10000"
    finally:
        with anyio.CancelScope(shield=True):
            await manager.delete_sandbox(name)


async def soak(
    manager: LocalSandboxManager, count: int, chance: random.Random, usual: float
) -> list[float]:
    """So many cycles, some at once; gives the seconds of those that were not cancelled. One that
    is to be is cancelled before the `usual` time (s) of a cycle, or has ended before that."""
    times: list[float] = []
    todo = iter(range(count))

    async def work() -> None:
        for _ in todo:
            patience = chance.uniform(0, usual) if chance.random() < CANCELLED else 60.0
            began = time.perf_counter()
            with anyio.move_on_after(patience) as scope:
                await cycle(manager)
            if not scope.cancelled_caught:
                times.append(time.perf_counter() - began)

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(work)
    return times


def pids() -> dict[str, int]:
    """Who serves this process's sandboxes, as long as there is one station."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    (launcher,) = {pid for path in children for pid in path.read_text().split()}
    (station,) = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return {"manager": os.getpid(), "launcher": int(launcher), "station": int(station)}


def held(who: dict[str, int]) -> dict[str, int]:
    """Everything countable that the three have, by name."""
    found: dict[str, int] = {}
    for name, pid in who.items():
        found[f"descriptors of the {name}"] = len(os.listdir(f"/proc/{pid}/fd"))
        found[f"threads of the {name}"] = int(status_of(pid)["Threads"])
    # Worker threads wait a while for more work, and end by themselves.
    ours = [thread for thread in threading.enumerate() if "AnyIO worker" not in thread.name]
    found["threads of the manager"] = len(ours)
    found["mounts"] = Path(f"/proc/{who['station']}/mountinfo").read_text().count("\n")
    children = Path(f"/proc/{who['station']}/task/{who['station']}/children").read_text().split()
    spaces: set[str] = set()
    for pid in children:
        for kind in ("mnt", "net", "pid", "user", "ipc", "uts", "cgroup"):
            try:
                spaces.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                continue
    found["processes of the station"] = len(children)
    found["namespaces"] = len(spaces)
    found["control groups"] = sum(len(folders) for folders in groups_of(who["station"]))
    return found


def groups_of(station: int) -> list[list[str]]:
    """The folders in each of the station's control groups."""
    names = {
        word
        for line in Path(f"/proc/{station}/cgroup").read_text().splitlines()
        for word in line.split("/")
        if word.startswith("ms-enclave-")
    }
    return [folders for path, folders, _ in os.walk("/sys/fs/cgroup") if names & {*path.split("/")}]


def memory(who: dict[str, int]) -> dict[str, int]:
    """KiB of each that are in memory."""
    return {name: int(status_of(pid)["VmRSS"].split()[0]) for name, pid in who.items()}


def settled(who: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    """What is held more than before, once that does not change for the better any more."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        now = held(who)
        more = {name: now[name] - before[name] for name in now if now[name] > before[name]}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.05)


async def main(count: int, seed: int) -> dict[str, Any]:
    chance = random.Random(seed)
    async with LocalSandboxManager() as manager:
        usual = statistics.median(await soak(manager, WARM_UP, chance, FIRST))
        await anyio.sleep(1)
        who = pids()
        before, memory_before = held(who), memory(who)
        began = time.monotonic()
        times = await soak(manager, count, chance, usual)
        seconds = time.monotonic() - began
        more = await anyio.to_thread.run_sync(settled, who, before)
        grown = {name: now - memory_before[name] for name, now in memory(who).items()}
        listed = len(await manager.list_sandboxes())
    first, last = (statistics.median(part) for part in (times[:100], times[-100:]))
    return {
        "count": count,
        "cancelled": count - len(times),
        "seconds": seconds,
        "left": more,
        "listed": listed,
        "grown_kib": grown,
        "last_by_first": last / first,
    }


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    count, seed = words + [200, 9][len(words) :]
    print(json.dumps(anyio.run(main, count, seed)))
