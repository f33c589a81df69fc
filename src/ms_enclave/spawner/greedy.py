"""Sandboxes that use all the processor time that they may have, and where they use it.

One that may have one processor of two and runs four programs has both for half of each of the
kernel's periods. Whoever is woken in that half, a station, an owner or another sandbox's program,
waits for the kernel's next tick, several times in each call. So such a sandbox is kept to as many
processors as it may have the time of, as long as all such together leave the station its own; it
loses nothing by that, and the others find a processor that is idle. Stations know nothing of each
other: where two keep somebody to the same processor, both see that he loses by it, and let him go.

No wall: a program may widen where it runs until it is looked at again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from .station import Box, Process, Station

__all__ = ["Greedy", "share_out"]

_PERIOD = 0.1
"""Seconds between looks: as long as the kernel's periods, each of which may begin with all the time
that a group has in it."""
_MOST_LOOKS = 64
"""Sandboxes that are looked at in a row, beside those that are kept."""
_BEGINS = 0.75
_GOES_ON = 0.4
"""Shares of the time that it may have from which on a sandbox is greedy, and stays it."""
_IDLE = 0.5
_TAKEN = 0.1
"""Shares of its time that a processor of others has to spare, and those of who is kept have not,
where that one has less than it began with only for being kept."""
_ALONE = 10.0
"""Seconds for which that one is not kept again."""
_STATISTICS = "/proc/stat"
_TICKS = os.sysconf("SC_CLK_TCK")
_PASSES = 8
"""How often its tasks are gone through at most: what is begun meanwhile is where its parent was."""


class _Look:
    """What was seen of a sandbox: when, the seconds of processor time that it had used until then,
    and whether it was greedy."""

    __slots__ = ("greedy", "used", "when")

    def __init__(self, when: float, used: float, greedy: bool) -> None:
        self.when = when
        self.used = used
        self.greedy = greedy


class Greedy:
    """Who of a station's sandboxes is greedy, and the processors that each of them is kept to."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._able = "cpu" in station.groups.controllers and len(station.processors) > 1
        self._next = 0.0
        self._runs: dict[Process, None] = {}
        """Those whose sandbox may be greedy, in the order in which it is looked at."""

        self._seen: dict[Box, _Look] = {}
        self._idle: tuple[float, dict[int, float]] = (0.0, {})
        """What each processor has had to spare until then, while somebody is kept."""

        self._alone: dict[Box, float] = {}
        """Whoever lost by being kept, and until when that is not tried again."""

        self._leaving: dict[Box, set[int]] = {}
        """Whoever is to be let go, and where he was kept."""

        self._first = os.urandom(1)[0]
        """Where the processors are begun with: others begin elsewhere."""

        self.home: int | None = None
        """The processor that the station stays on, if it stays on one."""

        self.kept: dict[Box, set[int]] = {}

    @property
    def taken(self) -> set[int]:
        """Processors on which somebody greedy runs."""
        return set[int]().union(*self.kept.values())

    @property
    def patience(self) -> float | None:
        """Seconds until there is something to look at."""
        return _PERIOD if self._runs or self.kept or self._leaving else None

    def attend_to(self, process: Process) -> None:
        """From now on it runs."""
        if self._able and process.box.group.limits[2] is not None:
            self._runs[process] = None

    def pass_over(self, process: Process) -> None:
        """From now on it does not."""
        self._runs.pop(process, None)

    def look(self, now: float) -> None:
        """See who has become greedy, and who is not any more."""
        if self.patience is None:
            self._next = 0.0
        elif not self._next:
            self._next = now + _PERIOD  # most runs are over by then
        elif now >= self._next:
            self._next = now + _PERIOD
            self._look_at_some(now)

    def _look_at_some(self, now: float) -> None:
        running = {*self.kept, *(process.box for process in self._runs)}
        living = set(self._station.boxes.values())
        self._seen = {box: seen for box, seen in self._seen.items() if box in running}
        self._alone = {
            box: until for box, until in self._alone.items() if box in running and now < until
        }
        spare = self._to_spare(now)
        for box in [*self.kept, *self._in_turn()]:
            self._look_at(box, now, spare)
        greedy = dict.fromkeys(box for box in (*self.kept, *self._seen) if box in living)
        self._keep([box for box in greedy if box in self._seen and self._seen[box].greedy])
        self._let_go(living)
        if self.kept and not self._idle[1]:
            self._idle = (now, _idle())

    def _in_turn(self) -> dict[Box, None]:
        """Some of those that are not kept, who waited longest first."""
        others = (process for process in self._runs if process.box not in self.kept)
        chosen = list(itertools.islice(others, _MOST_LOOKS))
        for process in chosen:
            del self._runs[process]
            self._runs[process] = None
        return dict.fromkeys(process.box for process in chosen)

    def _to_spare(self, now: float) -> dict[int, float]:
        """The share of its time that each processor had to spare since the last look."""
        before, self._idle = self._idle, (now, _idle() if self.kept else {})
        seconds = now - before[0]
        return {
            number: (idle - before[1][number]) / seconds
            for number, idle in self._idle[1].items()
            if number in before[1]
        }

    def _look_at(self, box: Box, now: float, spare: dict[int, float]) -> None:
        try:
            used = box.group.cpu()
        except OSError:
            return  # no descriptor is to be had, say: it counts as what it was
        if used is None:
            self._seen.pop(box, None)
            return
        before = self._seen.get(box)
        greedy = False
        if before is not None:
            most = (now - before.when) * (box.group.limits[2] or math.inf)
            share = (used - before.used) / most if most > 0 else 0.0
            if box not in self.kept:
                greedy = share >= _BEGINS and box not in self._alone
            elif share < _BEGINS and self._loses(self.kept[box], spare):
                self._alone[box] = now + _ALONE
                self._first = os.urandom(1)[0]
            else:
                greedy = share >= _GOES_ON
        self._seen[box] = _Look(now, used, greedy)

    def _loses(self, place: set[int], spare: dict[int, float]) -> bool:
        """Whether somebody else uses up where it is kept, and there is room elsewhere."""
        others = max(spare.get(number, 0.0) for number in self._station.processors - place)
        return others >= _IDLE and all(spare.get(number, 1.0) <= _TAKEN for number in place)

    def _keep(self, greedy: list[Box]) -> None:
        home = max(self._station.processors) if self.home is None else self.home
        needs = [math.ceil(box.group.limits[2] or math.inf) for box in greedy]
        others = sorted(self._station.processors - {home})
        first = self._first % len(others)
        places = share_out(needs, others[first:] + others[:first])
        self._leaving.update(self.kept)
        self.kept = dict(zip(greedy, places, strict=bool(places)))
        for box, place in self.kept.items():
            self._leaving.pop(box, None)
            _move(box, place)

    def _let_go(self, living: set[Box]) -> None:
        """Of those of them that are still there; once more of whom that failed for."""
        self._leaving = {
            box: place
            for box, place in self._leaving.items()
            if box in living and not _move(box, self._station.processors, only=place)
        }


def _idle() -> dict[int, float]:
    """Seconds for which each processor has had nothing to do; nothing where that is not told."""
    found: dict[int, float] = {}
    with contextlib.suppress(OSError), open(_STATISTICS, "rb", buffering=0) as file:
        for line in file.read().splitlines():
            name, *ticks = line.split()
            if name[:3] == b"cpu" and name[3:]:
                found[int(name[3:])] = (int(ticks[3]) + int(ticks[4])) / _TICKS
    return found


def share_out(needs: Sequence[int], processors: Sequence[int]) -> list[set[int]]:
    """As many processors as each needs, nobody's twice; none for anybody if there are not enough.
    Pure."""
    if sum(needs) > len(processors):
        return []
    rest = iter(processors)
    return [{next(rest) for _ in range(need)} for need in needs]


def _move(box: Box, processors: Collection[int], only: set[int] | None = None) -> bool:
    """Let a sandbox's tasks run on these processors: those that may run `only` there, or elsewhere.
    False where somebody may be left for whom that is still to be done."""
    for _ in range(_PASSES):
        try:
            tasks = box.group.tasks()
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ENODEV)  # it has just gone
        moved = 0
        for task in tasks:
            with contextlib.suppress(OSError):  # it has just ended
                where = os.sched_getaffinity(task)
                if where == only or (only is None and not where <= set(processors)):
                    os.sched_setaffinity(task, processors)
                    moved += 1
        if not moved:
            return True
    return False
