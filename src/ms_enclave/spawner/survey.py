"""What runs in a sandbox, seen from the station through /proc: for figures, and for killing a run's
descendants where no control group can. A sandbox cannot change what is read here, only race it,
so killing stops everybody first and looks again until nobody new is found."""

from __future__ import annotations

import functools
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import Protocol

    Members = dict[int, list[bytes]]
    """Processes by pid, with their stat fields."""

    class Place(Protocol):
        """Where a sandbox runs."""

        def members(self, crowd: Crowd | None = None) -> Members:
            """Every process of the sandbox, without what only serves it."""
            ...


__all__ = [
    "Crowd",
    "Usage",
    "children_of",
    "descendants",
    "in_namespace",
    "inner_pid",
    "is_alive",
    "is_filtered",
    "is_killed",
    "is_stopped",
    "kill_children",
    "kill_descendants",
    "not_ended",
    "pin",
    "standing",
    "stop_and_kill",
    "tasks",
    "usage",
]

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROUNDS = 50
_MOST_CHILDREN = 1 << 16  # bytes of their numbers
_EXITING = 0x4  # PF_EXITING among the flags in /proc/PID/stat


class Usage:
    """Seconds of processor time, bytes in memory and processes of a run, at one moment; and
    how many processes and threads its whole sandbox has.

    `each` is the processor time of each process for itself, by its pid and the moment of its start.
    """

    __slots__ = ("cpu", "each", "memory", "pids", "processes", "tasks")

    def __init__(self) -> None:
        self.cpu = 0.0
        self.memory = 0
        self.processes = 0
        self.each: dict[tuple[int, int], float] = {}
        self.pids: list[int] = []
        self.tasks = 0


class Crowd:
    """Everybody whom the station sees, looked at once for all of its sandboxes."""

    def __init__(self) -> None:
        self._spaces: dict[int, list[int]] | None = None
        self._members: dict[int, Members] = {}
        self._everybody: Members | None = None

    @functools.cached_property
    def _pids(self) -> list[int]:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]

    def of_namespace(self, namespace: int) -> list[int]:
        """The pids in a pid namespace."""
        if self._spaces is None:
            self._spaces = {}
            for pid in _pids():
                try:
                    found = os.stat(f"/proc/{pid}/ns/pid").st_ino
                except OSError:
                    continue  # it has just gone
                self._spaces.setdefault(found, []).append(pid)
        return self._spaces.get(namespace, [])

    def alive_in(self, namespace: int) -> Members:
        """Those of a pid namespace that have not ended: read once, however many runs are there."""
        found = self._members.get(namespace)
        if found is None:
            rows = ((pid, _stat(pid)) for pid in self.of_namespace(namespace))
            found = {pid: row for pid, row in rows if row and row[0] not in (b"Z", b"X")}
            self._members[namespace] = found
        return found

    def everybody(self) -> Members:
        """All of them, the dead that nobody waited for included."""
        if self._everybody is None:
            rows = ((pid, _stat(pid)) for pid in _pids())
            self._everybody = {pid: fields for pid, fields in rows if fields}
        return self._everybody


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the state on (field 3 is index 0); None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read(1024).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_alive(pid: int) -> bool:
    """Whether it is there and has not begun to end. The init of a dying namespace waits for
    everybody else's end before it can be reaped, and counts as dead from its own begin of it."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in (b"Z", b"X") and not int(fields[6]) & _EXITING


def is_killed(pid: int) -> bool:
    """Whether it has been sent a SIGKILL that it has not yet followed."""
    bit = 1 << (signal.SIGKILL - 1)
    rows = _status(pid)
    return any(int(row[1], 16) & bit for row in rows if row[0] in (b"SigPnd:", b"ShdPnd:"))


def is_filtered(pid: int) -> bool:
    """Whether it runs under a seccomp filter, which no process can shed."""
    return [b"Seccomp:", b"2"] in _status(pid)


def _status(pid: int) -> list[list[bytes]]:
    """The words of each line of /proc/PID/status; none if it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            return [line.split() for line in file.read().splitlines()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped it."""
    fields = _stat(pid)
    return fields is not None and fields[0] == b"T"


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


def in_namespace(init: int, namespace: int, crowd: Crowd | None = None) -> Members:
    """Every process of a pid namespace but its init."""
    everybody = (crowd or Crowd()).alive_in(namespace)
    return {pid: fields for pid, fields in everybody.items() if pid != init}


def descendants(top: int, without: int = 0, crowd: Crowd | None = None) -> Members:
    """Every process that descends from `top`, which must be a subreaper, but `without`."""
    everybody = (crowd or Crowd()).everybody()
    below: dict[int, list[int]] = {}
    for pid, fields in everybody.items():
        below.setdefault(int(fields[1]), []).append(pid)
    found: Members = {}
    todo = [top]
    while todo:
        for pid in below.get(todo.pop(), ()):
            todo.append(pid)
            if pid != without and everybody[pid][0] not in (b"Z", b"X"):
                found[pid] = everybody[pid]
    return found


def children_of(pid: int) -> set[int]:
    """Its children, also those that have ended and were not waited for."""
    return {child for child, fields in Crowd().everybody().items() if int(fields[1]) == pid}


def pin(pid: int, processors: set[int]) -> None:
    """Let every thread of a process run on these processors only."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            if os.sched_getaffinity(int(thread)) - processors:
                os.sched_setaffinity(int(thread), processors)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return  # it has just gone


def standing(place: Place) -> dict[int, int]:
    """Who is there now: pid to the moment of its start, in clock ticks since boot."""
    return {pid: int(fields[19]) for pid, fields in place.members().items()}


def _of_run(
    members: Members, main: int, before: Mapping[int, int] | None, others: set[int]
) -> Members:
    """The members that descend from `main`: by parent, or orphans that were not there before it
    and that no other run's process is an ancestor of. Without orphans where `before` is None."""
    chosen: Members = {}
    for pid, fields in members.items():
        top, parent = pid, int(fields[1])
        while top not in others and top != main and parent in members:
            top, parent = parent, int(members[parent][1])
        is_new = before is not None and before.get(top) != int(members[top][19])
        if top == main or (is_new and top not in others):
            chosen[pid] = fields
    return chosen


def tasks(members: Members) -> int:
    """How many processes and threads they are."""
    return sum(int(fields[17]) for fields in members.values())


def usage(
    members: Members,
    main: int,
    before: Mapping[int, int] | None,
    others: set[int],
    most: int | None = None,
) -> Usage:
    """What a run uses now. Processor time of descendants that ended and were waited for counts.

    `members` are its sandbox's, `others` the main processes of the other runs there.

    Pages that processes share are counted for each of them, unless that comes to more than `most`
    bytes: then each gets its share of them, which takes longer to find out.
    """
    seen = Usage()
    seen.tasks = tasks(members)
    members = _of_run(members, main, before, others)
    seen.pids = list(members)
    for pid, fields in members.items():
        own = int(fields[11]) + int(fields[12])
        seen.each[pid, int(fields[19])] = own / _TICKS
        seen.cpu += sum(int(field) for field in fields[11:15]) / _TICKS
        seen.memory += int(fields[21]) * _PAGE
        seen.processes += 1
    if most is not None and seen.memory > most:
        seen.memory = sum(_share(pid, int(fields[21]) * _PAGE) for pid, fields in members.items())
    return seen


def _share(pid: int, resident: int) -> int:
    """Bytes of memory that are a process's own or its part of what it shares, without files."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb", buffering=0) as file:
            rows = [line.split() for line in file.read(4096).splitlines()]
    except PermissionError:
        return resident
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just gone
    sizes = {row[0]: int(row[1]) << 10 for row in rows if len(row) == 3}
    return sizes.get(b"Pss:", 0) - sizes.get(b"Pss_File:", 0)


def kill_descendants(
    place: Place, main: int, before: Mapping[int, int] | None, others: set[int]
) -> Members:
    """Kill a run with all that descends from it; returns who was there."""
    return stop_and_kill(lambda: _of_run(place.members(), main, before, others))


def stop_and_kill(look: Callable[[], Members]) -> Members:
    """Kill whoever `look` finds, until it finds nobody new; returns who was there."""
    stopped: Members = {}
    for _ in range(_ROUNDS):
        fresh = {pid: fields for pid, fields in look().items() if pid not in stopped}
        if not fresh:
            break
        for pid, fields in fresh.items():
            _signal(pid, fields, signal.SIGSTOP)
        stopped |= fresh
    for pid, fields in stopped.items():
        _signal(pid, fields, signal.SIGKILL)
    return stopped


def kill_children(parent: int, but: Collection[int]) -> int:
    """Kill the children of a process, but some; returns how many there were, the dead included.

    Who forks and ends again and again has gone whenever a look at everybody comes to him, on a busy
    machine each time. His parent's children are seen in one moment.
    """
    try:
        with open(f"/proc/{parent}/task/{parent}/children", "rb", buffering=0) as file:
            found = {int(word) for word in file.read(_MOST_CHILDREN).split()}.difference(but)
    except OSError:
        return 0  # it has ended, or this kernel does not tell
    for pid in found:
        try:
            held = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            now = _stat(pid)
            if now is not None and int(now[1]) == parent:  # not another that has its number by now
                signal.pidfd_send_signal(held, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            os.close(held)
    return len(found)


def not_ended(members: Members) -> Members:
    """Those who are there still. One that is killed may be a while yet, and be no child of anybody
    who was seen: in a look at all it need not be found."""
    found: Members = {}
    for pid, fields in members.items():
        now = _stat(pid)
        if now is not None and now[19] == fields[19] and now[0] not in (b"Z", b"X"):
            found[pid] = fields
    return found


def _signal(pid: int, seen: list[bytes], number: int) -> None:
    """Signal the process that was seen, and not another that has its number by now.

    The descriptor holds whoever has the number; that it is still the same one is looked at after.
    """
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        now = _stat(pid)
        if now is not None and (not seen or now[19] == seen[19]):
            signal.pidfd_send_signal(held, number)
    except ProcessLookupError:
        return
    finally:
        os.close(held)
