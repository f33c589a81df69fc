"""Every case of `ms_enclave.attack` against every box: what went through is what its guards say.

That a case can go through at all is shown by `scripts/switches`, which takes the guards away; that
a bomb can, by limits that it does not reach.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ms_enclave.attack import BOMBS, CASES, Case, run_case, unbounded
from ms_enclave.attack.outside import Seen, check_bound, rows_of
from ms_enclave.attack.runner import judge
from ms_enclave.errors import CapabilityError
from ms_enclave.model.limits import ResolvedLimits
from tests.security.boxes import (
    ColdSandbox,
    GvisorSandbox,
    LandlockSandbox,
    NoGroupsSandbox,
    UnfilteredSandbox,
)
from tests.support.engine import WHEELS, WITHOUT_PYTHON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.boxes import Sandbox

EVERY = (*CASES, *BOMBS)
CASE_BY_NAME = {case.name: case for case in CASES}


UNSEEN = {
    "heap": "cgroup_memory",
    "mapping": "cgroup_memory",
    "many_processes": "cgroup_memory",
    "page_tables": "cgroup_memory",
    "files_in_memory": "cgroup_memory",
    "buffers": "cgroup_memory",
    "messages": "cgroup_memory",
    "spin": "cgroup_cpu",
}
"""By bomb, the guard without which it is held by looking, so not to the letter, or by nobody."""


class AttackSuite(ABC):
    """Base of the suites: one box, every case. What is let through, and why, is listed by name."""

    bounded: ClassVar[Mapping[str, str]] = {}
    """By case, the guard that is off."""

    @abstractmethod
    def create(self, limits: Mapping[str, Any]) -> Sandbox:
        """The box that is attacked, not yet started, with these limits."""

    @pytest.mark.parametrize("case", EVERY, ids=[case.name for case in EVERY])
    async def test_it_withstands(self, case: Case) -> None:
        async with self.create(case.limits) as box:
            finding = await run_case(box, case)
            guard = self.bounded.get(case.name)
            expected = {"held"} if guard is None else {"bounded"}
            unseen = UNSEEN.get(case.name, "")
            if box.isolation.guards.get(unseen) == "off":
                guard, expected = unseen, {"held", "bounded"}
            assert finding.outcome in expected, finding
            if guard is not None:
                assert box.isolation.guards[guard] == "off"


ONE_ID = {} if os.geteuid() == 0 else {"ids": "own_ids"}
"""Whose user has the number 0 one namespace further out, which is all that can be seen inside."""
LOCKS = {"locks": "lock_limit"}
"""Nobody counts those of ranges but a kernel of the sandbox's own."""


@pytest.mark.namespaces
class TestProcess(AttackSuite):
    bounded: ClassVar[Mapping[str, str]] = {**ONE_ID, **LOCKS}

    def create(self, limits: Mapping[str, Any]) -> Sandbox:
        from ms_enclave.boxes.process_sandbox import ProcessSandbox

        return ProcessSandbox(dict(dict(limits)))


@pytest.mark.namespaces
class TestCold(TestProcess):
    def create(self, limits: Mapping[str, Any]) -> Sandbox:
        return ColdSandbox(dict(limits))


@pytest.mark.namespaces
class TestNoGroups(TestProcess):
    def create(self, limits: Mapping[str, Any]) -> Sandbox:
        return NoGroupsSandbox(dict(dict(limits)))


@pytest.mark.namespaces
class TestLandlock(AttackSuite):
    bounded: ClassVar[Mapping[str, str]] = {"namespaces": "pid_namespace", **LOCKS}

    def create(self, limits: Mapping[str, Any]) -> Sandbox:
        return LandlockSandbox(dict(limits))


@pytest.mark.namespaces
@pytest.mark.runsc
class TestGvisor:
    """A kernel of its own answers: what that allows stays inside, and says so."""

    bounded: ClassVar[Mapping[str, str]] = {
        **{case.name: "" for case in CASES if case.by_kernel},
        "first_process": "hidden_guest",
    }

    @pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
    async def test_it_withstands(self, case: Case) -> None:
        async with GvisorSandbox() as box:
            assert box.isolation.guards["own_kernel"] == "on"
            finding = await run_case(box, case)
            guard = self.bounded.get(case.name)
            assert finding.outcome in ({"held"} if guard is None else {"held", "bounded"}), finding
            if guard:
                assert box.isolation.guards[guard] == "off"

    async def test_no_bomb_is_set_off_in_it(self) -> None:
        bomb = BOMBS[0]
        async with GvisorSandbox(dict(bomb.limits)) as box:
            with pytest.raises(CapabilityError, match="ends all of it"):
                await run_case(box, bomb)


@pytest.mark.docker
class TestDocker(AttackSuite):
    config: ClassVar[dict[str, Any]] = {}
    bounded: ClassVar[Mapping[str, str]] = {
        "ids": "own_ids",
        "privileges": "no_capabilities",
        "namespaces": "user_namespace",
        "the_machine": "masked_proc",
        "the_file_system": "read_only_root",
        "storing": "read_only_root",
        **LOCKS,
    }

    def create(self, limits: Mapping[str, Any]) -> Sandbox:
        from ms_enclave.boxes import DockerSandbox

        return DockerSandbox({**limits, **self.config})


@pytest.mark.docker
class TestDockerStrict(TestDocker):
    config: ClassVar[dict[str, Any]] = {"hardening": "strict"}
    bounded: ClassVar[Mapping[str, str]] = {
        "first_process": "hidden_guest",
        "namespaces": "user_namespace",
        **LOCKS,
    }


@pytest.mark.docker
class TestDockerWithoutPython(TestDocker):
    config: ClassVar[dict[str, Any]] = {"image": WITHOUT_PYTHON}


@pytest.mark.docker
async def test_a_notebook_withstands_what_a_container_does() -> None:
    """One after the other in one: it takes seconds to start, and the cases change nothing."""
    from ms_enclave.boxes import DockerNotebook

    outcomes: dict[str, str] = {}
    async with DockerNotebook({"wheels": str(WHEELS), "pull": "never"}) as box:
        guards = box.isolation.guards
        for case in CASES:
            finding = await run_case(box, case)
            assert finding.outcome in ("held", "bounded"), finding
            outcomes[case.name] = finding.outcome
    bounded = {name for name, outcome in outcomes.items() if outcome == "bounded"}
    assert bounded == TestDocker.bounded.keys() & outcomes.keys()
    assert {guards[TestDocker.bounded[name]] for name in bounded} == {"off"}


@pytest.mark.namespaces
@pytest.mark.parametrize("name", ["rings", "other_processes", "every_other_call", "weak_spots"])
async def test_control_without_a_filter_they_go_through(name: str) -> None:
    async with UnfilteredSandbox() as box:
        assert (await run_case(box, CASE_BY_NAME[name])).outcome in ("open", "bounded")


FIXED = {
    "shared_memory": {"files in shared memory"},
    "storing": {"a file with holes"},
    "descriptors": {"inotify", "terminals"},
    "output_flood": {"print without end"},
    "zombies": {"fill up with orphans"},
    "queues": {"signals", "queues"},
}
"""By bomb, what no limit of the config holds; each but the machine's own has a switch."""


@pytest.mark.namespaces
@pytest.mark.parametrize("bomb", BOMBS, ids=[bomb.name for bomb in BOMBS])
async def test_control_with_limits_that_it_does_not_reach_a_bomb_goes_through(bomb: Case) -> None:
    case = unbounded(bomb)
    async with TestProcess().create(case.limits) as box:
        finding = await run_case(box, case)
        assert set(finding.refused) == FIXED.get(case.name, set()), finding
        assert len(finding.went) + len(finding.refused) == finding.tried > 0


@pytest.mark.namespaces
async def test_no_bomb_is_set_off_in_what_nobody_holds() -> None:
    from ms_enclave.boxes.process_sandbox import ProcessSandbox

    async with ProcessSandbox() as box:
        check_bound(box)
    async with ProcessSandbox({"memory_limit": None}) as box:
        with pytest.raises(CapabilityError, match="bounds its memory"):
            check_bound(box)
        with pytest.raises(CapabilityError, match="bounds its memory"):
            await run_case(box, BOMBS[0])


WELL = Seen("process_limit", 1.0, 0.4, 50 << 20, 100, 0, True, 0, "")
SMALL = ResolvedLimits(timeout=5.0, memory=64 << 20, cpu=0.5, output=1000)


@pytest.mark.parametrize(
    ("change", "guard"),
    [
        ({"wall": 11.0}, ""),
        ({"survivors": 1, "verdict": "wall_timeout"}, ""),
        ({"serves": "SandboxLostError"}, ""),
        ({"kept": 5000}, ""),
        ({"peak_memory": 200 << 20}, "cgroup_memory"),
        ({"cpu": 1.0}, "cgroup_cpu"),
    ],
)
def test_what_is_seen_from_outside_decides(change: dict[str, Any], guard: str) -> None:
    bomb = BOMBS[0]
    assert rows_of(bomb, SMALL, WELL) == {"go on": ["process_limit", ""]}
    rows = rows_of(bomb, SMALL, replace(WELL, **change))
    (breach,) = [row for row in rows.values() if row[0].startswith("ok: ")]
    assert breach[1] == guard
    assert judge(bomb, rows, {}).outcome == "open"
    assert judge(bomb, rows, {guard: "off"}).outcome == ("bounded" if guard else "open")
    assert rows_of(bomb, SMALL, replace(WELL, verdict="ok")) == {}


def test_what_a_kernel_of_its_own_allows_stays_inside() -> None:
    asks, other = replace(CASES[0], by_kernel=True), replace(CASES[0], by_kernel=False)
    tried = {"one": ["ok", ""]}
    assert judge(asks, tried, {"own_kernel": "on"}).outcome == "bounded"
    assert judge(asks, tried, {}).outcome == "open"
    assert judge(other, tried, {"own_kernel": "on"}).outcome == "open"


def test_what_goes_through_is_bounded_only_by_a_guard_that_is_off() -> None:
    case = CASES[0]
    tried = {"one": ["EPERM", ""], "two": ["ok: seen", "own_ids"], "three": ["ok", ""]}
    finding = judge(case, tried, {"own_ids": "off"})
    assert (finding.outcome, set(finding.went)) == ("open", {"two", "three"})
    del tried["three"]
    assert judge(case, tried, {"own_ids": "off"}).outcome == "bounded"
    assert judge(case, tried, {"own_ids": "on"}).outcome == "open"
    either = {"two": ["ok", "disk_limit file_limit"]}
    assert judge(case, either, {"disk_limit": "on", "file_limit": "off"}).outcome == "bounded"
    assert judge(case, either, {"disk_limit": "on", "file_limit": "on"}).outcome == "open"
    assert judge(case, tried, {}).outcome == "open"
    del tried["two"]
    assert judge(case, tried, {}).outcome == "held"
    assert judge(case, {}, {}).outcome == "vacuous"
