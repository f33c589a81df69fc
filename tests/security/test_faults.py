"""Whatever call fails while a sandbox is made, used or deleted: no wall is open, nothing is left.

A program in the sandbox makes a call that we hear of before the kernel does; there it is held while
its walls are read from outside. They have to be what they are where nothing fails, or the program
must not have begun.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.faulty import Faulty, Round
from tests.support.walls import difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="takes root to read another user's walls"),
]

EVERY = os.environ.get("MS_ENCLAVE_TEST_FAULTS") == "every"
"""Whether to have every call fail, and not a share of those that take long."""
SEED = int(os.environ.get("MS_ENCLAVE_TEST_SEED", "28"))
WITHOUT_NAMESPACES: dict[str, Any] = {"isolation": "landlock", "python": "/usr/bin/python3"}
GOOD = ["ok", 0, "done\n"]
ALIKE = 24
"""Calls by which two uses may differ, of some hundred."""

LESS = """
from ms_enclave.boxes.process_sandbox import ProcessSandbox
whole = ProcessSandbox._station_plan
ProcessSandbox._station_plan = lambda box: {{**whole(box), {!r}: {!r}}}
"""
"""What makes every station of a manager one of a poorer machine."""
POORER = {
    "without layers": LESS.format("layers", False),
    "without ptrace": LESS.format("cold_reason", "switched off for a test"),
    "without control groups": LESS.format("groups", False),
}


class Judge:
    """Compares each use with one where nothing failed, and counts."""

    def __init__(self, faulty: Faulty, how: str) -> None:
        self.faulty = faulty
        self.how = how
        good = self._settle()
        assert good.row.get("result") == GOOD, good.row
        (self.walls,) = good.marks
        self.turns = range(len(faulty.sequence))
        self.parts = faulty.parts()
        self.complaints: list[str] = []
        self.counts: Counter[str] = Counter()

    def _settle(self) -> Round:
        """Use sandboxes until one takes as many calls as the one before: what is kept for the next
        ones is there then, and everything is as it will be. Gives the last."""
        before = -1
        for _ in range(12):
            good = self.faulty.use(self.how)
            if abs(len(self.faulty.sequence) - before) <= ALIKE:
                return good
            before = len(self.faulty.sequence)
        raise AssertionError(f"no two uses are alike, the last with {before} calls")

    def try_all(self, numbers: Iterable[int], *, kill: bool = False) -> None:
        """Have one call fail after the other, and use a sandbox in peace after each."""
        for number in numbers:
            found = self.faulty.use(self.how, number, kill=kill)
            if found.hit is None:
                continue  # the order of calls is not always the same, nor is their number
            self.judge(found)
            self.judge_peace(found, self.faulty.use(self.how))
        self.complaints += self.faulty.excess(self.parts) if self.how == "warm" else []

    def judge(self, found: Round) -> None:
        if found.early:
            self.counts["set-up"] += 1
            self.counts["healed" if found.worked else "refused"] += 1
        else:
            self.counts["later"] += 1
        self.judge_walls(found, found)
        if found.worked:
            # What is the program already may have been killed by its neighbours inside.
            killed_inside = found.was_killed and found.row["result"] == ["signal", 137, ""]
            # An interpreter that has yet to begin is inside, too, and ends as any that cannot.
            began = not found.early or found.hit is None or found.hit.who != "boot" or found.marks
            if found.row["result"] != GOOD and began and not killed_inside:
                self.complain(found, f"the program is blamed: {found.row}")
        elif not found.row["ours"]:
            self.complain(found, f"not typed: {found.row}")
        elif found.marks and found.row["type"] == "SandboxStartError" and not found.is_deleting:
            self.complain(found, f"refused, and the program ran all the same: {found.row}")

    def judge_peace(self, found: Round, after: Round) -> None:
        if after.row.get("result") != GOOD:
            self.complain(found, f"the next one fails: {after.row}")
        self.judge_walls(found, after)

    def judge_walls(self, found: Round, ran: Round) -> None:
        for walls in ran.marks:
            for line in difference(self.walls, walls):
                self.complain(found, f"a wall is not as it should be: {line}")

    def complain(self, found: Round, text: str) -> None:
        self.complaints.append(f"{found.hit}: {text}")

    def close(self) -> None:
        """Nothing was wrong with what we saw, and nothing of it is left."""
        assert self.faulty.close() == 0
        assert self.faulty.watch.trouble == []
        assert not self.complaints, "\n".join(self.complaints)
        print(f"seed {SEED}: {dict(self.counts)}")


def some(numbers: Sequence[int], count: int) -> Sequence[int]:
    """So many of them, spread over the whole, others with each seed."""
    if EVERY or len(numbers) <= count:
        return numbers
    chance = random.Random(SEED)
    size = len(numbers) / count
    return [numbers[int(size * (n + chance.random()))] for n in range(count)]


def test_no_call_that_fails_while_a_sandbox_is_made_or_deleted_opens_a_wall() -> None:
    with Faulty() as faulty:
        judge = Judge(faulty, "warm")
        assert len(judge.turns) > 200
        judge.try_all(judge.turns)
        assert judge.counts["set-up"] > 200
        judge.close()


def test_no_call_that_fails_while_a_station_starts_or_ends_opens_a_wall() -> None:
    with Faulty() as faulty:
        judge = Judge(faulty, "cold")
        judge.try_all(some(judge.turns, 40))
        assert judge.counts["set-up"] > 30
        judge.close()


@pytest.mark.parametrize("machine", POORER)
@pytest.mark.parametrize("kill", [False, True])
def test_no_call_that_fails_on_a_poorer_machine_opens_a_wall(machine: str, kill: bool) -> None:
    """Where a station goes other ways: plain folders, interpreters instead of copies, looking."""
    with Faulty(before=POORER[machine]) as faulty:
        judge = Judge(faulty, "warm")
        judge.try_all(some(judge.turns, 12 if kill else 40), kill=kill)
        assert judge.counts["set-up"] > (3 if kill else 20)
        judge.close()


@pytest.mark.parametrize("kill", [False, True])
def test_no_call_that_fails_in_a_sandbox_without_namespaces_opens_a_wall(kill: bool) -> None:
    with Faulty(WITHOUT_NAMESPACES, traced=True) as faulty:
        judge = Judge(faulty, "warm")
        assert len(judge.turns) > 200
        judge.try_all(some(judge.turns, 10 if kill else 60), kill=kill)
        assert judge.counts["set-up"] > (3 if kill else 15)
        judge.close()


def test_no_helper_that_is_killed_while_a_sandbox_is_made_or_deleted_opens_a_wall() -> None:
    with Faulty() as faulty:
        judge = Judge(faulty, "warm")
        judge.try_all(some(judge.turns, 20), kill=True)
        assert judge.counts["set-up"] > 5  # a call of the manager's is left out, up to the next
        judge.close()


def test_control_what_is_missing_in_a_wall_is_seen() -> None:
    with Faulty() as whole, Faulty({"memory_limit": "128m"}) as other:
        walls = Judge(whole, "warm").walls
        assert difference(walls, Judge(whole, "warm").walls) == []
        found = difference(walls, Judge(other, "warm").walls)
        assert any("memory" in line for line in found), found
        for name, value in {"CapEff": "00000000a80425fb", "Seccomp": "0", "users": [0]}.items():
            assert difference(walls, {**walls, name: value})
        for row in walls["mounts"]:
            less = [other for other in walls["mounts"] if other != row]
            if row.startswith(("/proc", "/dev")):
                assert difference(walls, {**walls, "mounts": less})
        assert difference(walls, {**walls, "mounts": [*walls["mounts"], "/x rw tmpfs rw"]})


def test_a_second_listener_is_what_a_sandbox_without_namespaces_says_it_lacks() -> None:
    with Faulty(WITHOUT_NAMESPACES) as faulty:
        row = faulty.use("warm").row
        assert row["type"] == "SandboxStartError"
        assert "did not get behind its walls" in row["text"]
        assert faulty.close() == 0
