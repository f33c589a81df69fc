"""Closed sets of names, and the old words that are still understood."""

from __future__ import annotations

import json
import pickle
from enum import Enum

import pytest

from ms_enclave import model
from ms_enclave.model import ExecutionStatus, SandboxStatus, SandboxType, Verdict

ENUMS = [
    value
    for value in (getattr(model, name) for name in model.__all__)
    if isinstance(value, type) and issubclass(value, Enum)
]


@pytest.mark.parametrize("enum", ENUMS)
def test_a_member_is_its_plain_string(enum: type[Enum]) -> None:
    for member in enum:
        assert member == member.value
        assert {member.value: 1}[member] == 1
        assert json.loads(json.dumps(member)) == member.value
        assert enum(member.value) is member
        assert pickle.loads(pickle.dumps(member)) is member


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("initializing", SandboxStatus.CREATED),
        ("idle", SandboxStatus.RUNNING),
        ("busy", SandboxStatus.RUNNING),
    ],
)
def test_an_old_state_is_read_as_todays(old: str, now: SandboxStatus) -> None:
    assert SandboxStatus(old) is now
    assert getattr(SandboxStatus, old.upper()) is now
    assert old.upper() not in [member.name for member in SandboxStatus]
    assert model.SandboxInfo.model_validate({"id": "x", "status": old, "type": "t"}).status is now


@pytest.mark.parametrize("value", ["", "gone", None, 5, "CREATED"])
def test_what_was_never_a_state_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="is not a valid SandboxStatus"):
        SandboxStatus(value)


def test_a_notebook_accepts_what_a_container_accepts() -> None:
    assert SandboxType.get_compatible_types("docker") == {"docker"}
    assert SandboxType.get_compatible_types("docker_notebook") == {"docker_notebook", "docker"}
    assert SandboxType.get_compatible_types(SandboxType.VOLCENGINE) == {"volcengine"}
    assert SandboxType.is_compatible("docker_notebook", SandboxType.DOCKER)
    assert not SandboxType.is_compatible("docker", "docker_notebook")


def test_a_type_of_another_package_is_compatible_with_itself() -> None:
    assert SandboxType.get_compatible_types("theirs") == {"theirs"}
    assert SandboxType.is_compatible("theirs", "theirs")
    assert not SandboxType.is_compatible("theirs", "docker")


def test_every_end_has_a_word() -> None:
    assert len(Verdict) == 13
    assert ExecutionStatus.TIMEOUT == "timeout"
