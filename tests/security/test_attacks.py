"""Every case of `ms_enclave.attack` against every box: what went through is what its guards say.

That a case can go through at all is shown by `scripts/switches`, which takes the guards away.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ms_enclave.attack import CASES, Case, run_case
from ms_enclave.attack.runner import judge
from tests.security.boxes import (
    ColdSandbox,
    LandlockSandbox,
    NoGroupsSandbox,
    UnfilteredSandbox,
)
from tests.support.engine import WITHOUT_PYTHON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.boxes import Sandbox

CASE_BY_NAME = {case.name: case for case in CASES}


class AttackSuite(ABC):
    """Base of the suites: one box, every case. What is let through, and why, is listed by name."""

    bounded: ClassVar[Mapping[str, str]] = {}
    """By case, the guard that is off."""

    @abstractmethod
    def create(self) -> Sandbox:
        """The box that is attacked, not yet started."""

    @pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
    async def test_it_withstands(self, case: Case) -> None:
        async with self.create() as box:
            finding = await run_case(box, case)
            guard = self.bounded.get(case.name)
            assert finding.outcome == ("held" if guard is None else "bounded"), finding
            if guard is not None:
                assert box.isolation.guards[guard] == "off"


ONE_ID = {} if os.geteuid() == 0 else {"ids": "own_ids"}
"""Whose user has the number 0 one namespace further out, which is all that can be seen inside."""


@pytest.mark.namespaces
class TestProcess(AttackSuite):
    bounded: ClassVar[Mapping[str, str]] = ONE_ID

    def create(self) -> Sandbox:
        from ms_enclave.boxes.process_sandbox import ProcessSandbox

        return ProcessSandbox()


@pytest.mark.namespaces
class TestCold(TestProcess):
    def create(self) -> Sandbox:
        return ColdSandbox()


@pytest.mark.namespaces
class TestNoGroups(TestProcess):
    def create(self) -> Sandbox:
        return NoGroupsSandbox()


@pytest.mark.namespaces
class TestLandlock(AttackSuite):
    bounded: ClassVar[Mapping[str, str]] = {"namespaces": "pid_namespace"}

    def create(self) -> Sandbox:
        return LandlockSandbox()


@pytest.mark.docker
class TestDocker(AttackSuite):
    config: ClassVar[dict[str, Any]] = {}
    bounded: ClassVar[Mapping[str, str]] = {
        "ids": "own_ids",
        "privileges": "no_capabilities",
        "namespaces": "user_namespace",
        "the_machine": "masked_proc",
        "the_file_system": "read_only_root",
    }

    def create(self) -> Sandbox:
        from ms_enclave.boxes import DockerSandbox

        return DockerSandbox(dict(self.config))


@pytest.mark.docker
class TestDockerStrict(TestDocker):
    config: ClassVar[dict[str, Any]] = {"hardening": "strict"}
    bounded: ClassVar[Mapping[str, str]] = {
        "first_process": "hidden_guest",
        "namespaces": "user_namespace",
    }


@pytest.mark.docker
class TestDockerWithoutPython(TestDocker):
    config: ClassVar[dict[str, Any]] = {"image": WITHOUT_PYTHON}


@pytest.mark.namespaces
@pytest.mark.parametrize("name", ["rings", "other_processes", "every_other_call", "weak_spots"])
async def test_control_without_a_filter_they_go_through(name: str) -> None:
    async with UnfilteredSandbox() as box:
        assert (await run_case(box, CASE_BY_NAME[name])).outcome in ("open", "bounded")


def test_what_goes_through_is_bounded_only_by_a_guard_that_is_off() -> None:
    case = CASES[0]
    tried = {"one": ["EPERM", ""], "two": ["ok: seen", "own_ids"], "three": ["ok", ""]}
    finding = judge(case, tried, {"own_ids": "off"})
    assert (finding.outcome, set(finding.went)) == ("open", {"two", "three"})
    del tried["three"]
    assert judge(case, tried, {"own_ids": "off"}).outcome == "bounded"
    assert judge(case, tried, {"own_ids": "on"}).outcome == "open"
    assert judge(case, tried, {}).outcome == "open"
    del tried["two"]
    assert judge(case, tried, {}).outcome == "held"
    assert judge(case, {}, {}).outcome == "vacuous"
