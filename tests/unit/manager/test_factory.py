"""Managers by name."""

from __future__ import annotations

import pytest

from ms_enclave.errors import ConfigError, UnknownTypeError
from ms_enclave.manager.base import SandboxManagerFactory, register_manager
from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.model import SandboxManagerConfig, SandboxManagerType


def test_without_a_type_and_an_address_it_is_local() -> None:
    assert type(SandboxManagerFactory.create_manager()) is LocalSandboxManager
    made = SandboxManagerFactory.create_manager(config=SandboxManagerConfig(pool_size=3))
    assert made.config.pool_size == 3


@pytest.mark.parametrize("name", ["local", SandboxManagerType.LOCAL])
def test_a_type_is_a_name(name: str) -> None:
    made = SandboxManagerFactory.create_manager(name, {"cleanup_interval": 9}, pool_size=2)
    assert (made.config.cleanup_interval, made.config.pool_size) == (9, 2)


def test_an_unknown_type_is_said_so_with_those_there_are() -> None:
    with pytest.raises(
        UnknownTypeError,
        match=r"Sandbox manager type 'warp' not registered. Available types: \[.*'local'",
    ):
        SandboxManagerFactory.create_manager("warp")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cleanup_interval": 0}, "Cleanup interval must be positive or None"),
        ({"pool_size": -1}, "Pool size must be non-negative"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LocalSandboxManager(**settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=said):
        SandboxManagerFactory.create_manager(config=settings)


def test_no_clean_up_interval_is_a_setting() -> None:
    assert LocalSandboxManager(cleanup_interval=None).config.cleanup_interval is None


def test_a_third_party_s_manager_is_made_by_its_name() -> None:
    @register_manager("theirs-in-test")
    class Theirs(LocalSandboxManager):
        pass

    assert type(SandboxManagerFactory.create_manager("theirs-in-test")) is Theirs
    assert {"local", "theirs-in-test"} <= set(SandboxManagerFactory.get_registered_types())
