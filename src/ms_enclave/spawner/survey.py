"""What runs in a slot, seen from the station through /proc: for figures, and for killing a run's
descendants where no control group can. A sandbox cannot change what is read here, only race it,
so killing stops everybody first and looks again until nobody new is found."""

from __future__ import annotations

import os
import signal

__all__ = ["Usage", "inner_pid", "is_alive", "kill_descendants", "start_time", "usage"]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROUNDS = 50


class Usage:
    """Seconds of processor time, bytes in memory and processes of a run, at one moment."""

    __slots__ = ("cpu", "memory", "processes")

    def __init__(self) -> None:
        self.cpu = 0.0
        self.memory = 0
        self.processes = 0


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the state on (field 3 is index 0); None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read(1024).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> int:
    """When it started, in clock ticks since boot; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_alive(pid: int) -> bool:
    """Whether it is there and not only waiting to be reaped."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in (b"Z", b"X")


def inner_pid(pid: int) -> int:
    """Its pid as it is seen in its own namespace; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            for line in file.read().splitlines():
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0


def _members(slot) -> dict[int, list[bytes]]:
    """Every process of the slot but its init, with its stat fields."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == slot.init:
            continue
        try:
            if os.stat(f"/proc/{name}/ns/pid").st_ino != slot.namespace:
                continue
        except OSError:
            continue  # it has just gone
        fields = _stat(int(name))
        if fields and fields[0] not in (b"Z", b"X"):
            found[int(name)] = fields
    return found


def _of_run(slot, main: int, since: int, others: set[int]) -> dict[int, list[bytes]]:
    """The members that descend from `main`: by parent, or orphans born after it that no other
    run's process is an ancestor of."""
    members = _members(slot)
    chosen = {}
    for pid, fields in members.items():
        top, parent = pid, int(fields[1])
        while top not in others and top != main and parent in members:
            top, parent = parent, int(members[parent][1])
        orphan = top not in others and int(members[top][19]) >= since
        if top == main or orphan:
            chosen[pid] = fields
    return chosen


def usage(slot, main: int, since: int, others: set[int]) -> Usage:
    """What a run uses now. Processor time of descendants that ended and were waited for counts."""
    seen = Usage()
    for fields in _of_run(slot, main, since, others).values():
        seen.cpu += sum(int(field) for field in fields[11:15]) / _TICKS
        seen.memory += int(fields[21]) * _PAGE
        seen.processes += 1
    return seen


def kill_descendants(slot, main: int, since: int, others: set[int]) -> int:
    """Kill a run with all that descends from it; returns how many were there."""
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        fresh = _of_run(slot, main, since, others).keys() - stopped
        if not fresh:
            break
        for pid in fresh:
            _signal(pid, signal.SIGSTOP)
        stopped |= fresh
    for pid in stopped:
        _signal(pid, signal.SIGKILL)
    return len(stopped)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
