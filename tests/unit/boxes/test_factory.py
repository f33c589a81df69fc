"""Sandboxes by the name of their type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes import Sandbox, SandboxFactory, factory, register_sandbox
from ms_enclave.errors import ConfigError, UnknownTypeError
from ms_enclave.model import SandboxConfig, SandboxStatus, SandboxType
from tests.support.scripted_box import ScriptedSandbox

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    SandboxFactory.register_sandbox("scripted", ScriptedSandbox)
    return


def test_a_sandbox_is_made_but_not_started() -> None:
    box = SandboxFactory.create_sandbox("scripted")
    assert isinstance(box, ScriptedSandbox)
    assert box.status is SandboxStatus.CREATED
    assert box.did == []


def test_a_config_comes_as_a_dict_or_an_object() -> None:
    assert SandboxFactory.create_sandbox("scripted", {"timeout": 5}).config.timeout == 5
    config = SandboxConfig(timeout=6)
    assert SandboxFactory.create_sandbox("scripted", config).config is config
    assert SandboxFactory.create_sandbox("scripted", config=None).config.timeout == 30


def test_an_id_can_be_given() -> None:
    assert SandboxFactory.create_sandbox("scripted", None, "mine-1").id == "mine-1"
    assert SandboxFactory.create_sandbox("scripted", sandbox_id="x").id == "x"
    with pytest.raises(ConfigError):
        SandboxFactory.create_sandbox("scripted", sandbox_id="../x")


def test_an_unknown_type_is_said_in_the_known_words() -> None:
    with pytest.raises(UnknownTypeError, match="Sandbox type no_such is not registered"):
        SandboxFactory.create_sandbox("no_such")
    with pytest.raises(ValueError, match="not registered"):
        SandboxFactory.get_class("no_such")


def test_the_types_are_listed_as_names() -> None:
    types = SandboxFactory.get_available_types()
    assert "process" in types
    assert "scripted" in types
    assert SandboxType.PROCESS in types


def test_a_class_is_registered_by_decoration_and_used_by_enum_or_name() -> None:
    @register_sandbox("decorated_here")
    class Decorated(ScriptedSandbox):
        sandbox_type = "decorated_here"

    assert SandboxFactory.get_class("decorated_here") is Decorated
    assert isinstance(SandboxFactory.create_sandbox("decorated_here"), Decorated)


def test_a_backend_writes_three_methods() -> None:
    assert Sandbox.__abstractmethods__ == {"_open", "_spawn", "_connect_guest"}


def test_who_offers_a_capability_is_known() -> None:
    assert "process" in factory.types_offering("python")
    assert "scripted" not in factory.types_offering("python")
    assert factory.types_offering("no_such_capability") == []
