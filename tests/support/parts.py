"""The processes that a sandbox consists of, found from outside."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.security.boxes import status_of

__all__ = ["ROLES", "descendants_of", "find_part", "wait_until_dead"]

ROLES = ("launcher", "station", "zygote", "init", "guest")


def find_part(role: str, daemon: int) -> int:
    """The pid of a part of the sandbox in which a daemon runs that has lost its parent."""
    init = _parent(daemon)
    station = _parent(init)
    if role == "init":
        return init
    if role == "station":
        return station
    if role == "launcher":
        return _parent(station)
    beside = station if role == "zygote" else init
    space = os.readlink(f"/proc/{beside}/ns/pid")
    children = Path(f"/proc/{station}/task/{station}/children").read_text().split()
    found = [int(pid) for pid in children if _space(pid) == space and int(pid) != init]
    return found[0]


def descendants_of(pid: int) -> set[int]:
    """Everybody that a process has started, directly or not."""
    found: set[int] = set()
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= {int(child), *descendants_of(int(child))}
    except OSError:
        pass  # it has just ended
    return found


def wait_until_dead(pids: set[int], seconds: float) -> set[int]:
    """Those that still run after so long; one that only waits to be reaped does not run."""
    deadline = time.monotonic() + seconds
    while (left := {pid for pid in pids if _runs(pid)}) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left


def _runs(pid: int) -> bool:
    try:
        return status_of(pid)["State"][0] not in "ZX"
    except (OSError, KeyError):
        return False


def _parent(pid: int) -> int:
    return int(status_of(pid)["PPid"])


def _space(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
