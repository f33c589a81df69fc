"""Who is kept to few processors and who is let go; plain files say what the kernel counts."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.spawner import cgroups, greedy
from ms_enclave.spawner.greedy import Greedy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes a second processor")

EVERY = os.sched_getaffinity(0)


class Part:
    """What `Greedy` sees of a station, a sandbox or a run."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Place:
    """A station with one group, and sandboxes with a processor's time each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.busy = EVERY
        """Processors that have nothing to spare."""

        self.spare = dict.fromkeys(EVERY, 0.0)
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.groups = cgroups.Station(
            [{"version": 1, "controllers": ["cpu", "cpuacct"], "fd": opened}]
        )
        self.boxes: dict[str, Any] = {}
        self.runs: dict[str, Any] = {}
        self.used: dict[str, float] = {}
        self.now = 100.0
        station: Any = Part(groups=self.groups, processors=EVERY, boxes=self.boxes)
        self.greedy = Greedy(station)
        self.sleeping: list[subprocess.Popen[bytes]] = []

    def add(self, name: str, limit: float | None = 1.0) -> int:
        """A sandbox with a process in it."""
        group = self.groups.group(name)
        group.limits = (None, None, limit)
        self.boxes[name] = Part(group=group)
        process = subprocess.Popen(["sleep", "1000"])
        self.sleeping.append(process)
        (self.folder / name / "tasks").write_text(f"{process.pid}\n")
        self.used[name] = 0.0
        self.begin(name)
        return process.pid

    def begin(self, name: str) -> None:
        if name in self.runs:
            self.greedy.pass_over(self.runs[name])
        self.runs[name] = Part(box=self.boxes[name])
        self.greedy.attend_to(self.runs[name])

    def pass_time(self, seconds: float, **shares: float) -> None:
        """Look every tenth of a second while each uses so much of the time; others nothing."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1001
            for number in EVERY - self.busy:
                self.spare[number] += 10.01
            rows = [f"cpu{n} 9 9 9 {idle:.0f} 0 9" for n, idle in self.spare.items()]
            (self.folder / "stat").write_text("\n".join(["cpu 1 1 1 1 1", *rows, "ctxt 7\n"]))
            for name, used in self.used.items():
                self.used[name] = used + 0.1001 * shares.get(name, 0.0)
                number = int(self.used[name] * 1e9)
                (self.folder / name / "cpuacct.usage").write_text(f"{number}\n")
            self.greedy.look(self.now)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(greedy, "_STATISTICS", str(tmp_path / "stat"))
    made = Place(tmp_path)
    yield made
    for box in made.boxes.values():
        box.group.close()
    os.close(made.groups.hierarchies[0].descriptor)
    for process in made.sleeping:
        process.kill()
        process.wait()


def test_who_uses_all_is_kept_until_it_rests(place: Place) -> None:
    pid = place.add("a")
    place.pass_time(0.3, a=1.0)
    assert len(os.sched_getaffinity(pid)) == 1
    place.pass_time(1, a=0.5)
    assert len(os.sched_getaffinity(pid)) == 1, "there is no room anywhere else"
    place.pass_time(0.1, a=0.1)
    assert os.sched_getaffinity(pid) == EVERY
    place.pass_time(0.2, a=1.0)
    assert len(os.sched_getaffinity(pid)) == 1


def test_who_loses_by_being_kept_is_let_go_and_left_alone(place: Place) -> None:
    """Somebody else is kept to the same processor, by another station."""
    pid = place.add("a")
    place.pass_time(0.3, a=1.0)
    place.busy = os.sched_getaffinity(pid)
    assert len(place.busy) == 1
    place.pass_time(0.1, a=0.5)
    for _ in range(90):
        assert os.sched_getaffinity(pid) == EVERY
        place.pass_time(0.1, a=1.0)
    place.pass_time(2, a=1.0)
    assert len(os.sched_getaffinity(pid)) == 1


def test_who_uses_less_by_itself_is_not_left_alone(place: Place) -> None:
    pid = place.add("a")
    place.pass_time(0.3, a=1.0)
    place.busy = set()
    place.pass_time(1, a=0.5)
    assert len(os.sched_getaffinity(pid)) == 1
    place.pass_time(0.1, a=0.3)
    assert os.sched_getaffinity(pid) == EVERY
    place.pass_time(0.2, a=1.0)
    assert len(os.sched_getaffinity(pid)) == 1


def test_stations_begin_with_different_processors(tmp_path: Path) -> None:
    begins: set[int] = set()
    for number in range(64):
        (tmp_path / str(number)).mkdir()
        place = Place(tmp_path / str(number))
        begins.add(place.greedy._first)
        os.close(place.groups.hierarchies[0].descriptor)
    assert len(begins) > 8


def test_a_look_that_fails_changes_nothing_and_ends_nobody(place: Place) -> None:
    pid = place.add("a")
    place.pass_time(0.3, a=1.0)
    kept = os.sched_getaffinity(pid)
    assert len(kept) == 1
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            os.open("/", os.O_RDONLY)
        for _ in range(5):
            place.now += 0.1001
            place.greedy.look(place.now)
        place.greedy.pass_over(place.runs["a"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.sched_getaffinity(pid) == kept
    place.pass_time(0.1)
    assert os.sched_getaffinity(pid) == EVERY
    assert place.greedy.patience is None


def test_who_could_not_be_let_go_is_so_later(place: Place) -> None:
    pid = place.add("a")
    place.pass_time(0.3, a=1.0)
    tasks = place.folder / "a" / "tasks"
    text = tasks.read_text()
    tasks.unlink()
    tasks.symlink_to(tasks)  # ELOOP, as often as it is opened
    place.pass_time(0.2)
    assert len(os.sched_getaffinity(pid)) == 1
    tasks.unlink()
    tasks.write_text(text)
    place.pass_time(0.1)
    assert os.sched_getaffinity(pid) == EVERY


def test_everybody_of_a_crowd_is_kept_and_let_go(place: Place) -> None:
    """The last of so many tasks that a file of them has several pages."""
    pid = place.add("a")
    tasks = place.folder / "a" / "tasks"
    tasks.write_text("4194303\n" * 3000 + f"{pid}\n")  # nobody's but for the last
    place.pass_time(0.3, a=1.0)
    assert len(os.sched_getaffinity(pid)) == 1
    place.pass_time(0.1)
    assert os.sched_getaffinity(pid) == EVERY


def test_not_everybody_is_looked_at_at_once_but_each_in_its_turn(place: Place) -> None:
    pid = place.add("a")
    place.greedy.pass_over(place.runs["a"])
    more: list[Any] = []
    for number in range(200):
        group = place.groups.group(f"box-{number}")
        group.limits = (None, None, 1.0)
        box = Part(group=group)
        place.boxes[f"box-{number}"] = box
        place.used[f"box-{number}"] = 0.0
        more.append(Part(box=box))
        place.greedy.attend_to(more[-1])
    place.begin("a")
    place.pass_time(0.3, a=1.0)
    assert os.sched_getaffinity(pid) == EVERY
    place.pass_time(1, a=1.0)
    assert len(os.sched_getaffinity(pid)) == 1
    for process in more:
        place.greedy.pass_over(process)


def test_nobody_is_looked_at_who_may_use_any_time(place: Place) -> None:
    place.add("a", None)
    assert place.greedy.patience is None
