"""What a program may use: how it is said, and what holds in the end."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_enclave.model import Limits, ProcessSandboxConfig, SandboxConfig
from ms_enclave.model.limits import DEFAULT_LIMITS, ResolvedLimits

MIB = 1 << 20


def test_without_a_word_everything_but_memory_and_processor_is_bounded() -> None:
    assert SandboxConfig().resolve_limits() == DEFAULT_LIMITS
    assert (
        ResolvedLimits(
            timeout=30.0,
            cpu_time=None,
            memory=None,
            disk=256 * MIB,
            file_size=256 * MIB,
            cpu=None,
            pids=128,
            nofile=1024,
            output=10 * MIB,
            output_action="truncate",
        )
        == DEFAULT_LIMITS
    )
    assert ProcessSandboxConfig().resolve_limits().memory == 1024 * MIB


def test_every_limit_is_read_under_its_name() -> None:
    said = {
        "timeout": 1.5,
        "cpu_time_limit": 2,
        "memory_limit": "512m",
        "disk_limit": 7 * MIB,
        "file_size_limit": "1M",
        "cpu_limit": 0.5,
        "pids_limit": 9,
        "nofile_limit": 33,
        "output_limit": 100,
        "output_action": "kill",
    }
    expected = ResolvedLimits(1.5, 2, 512 * MIB, 7 * MIB, MIB, 0.5, 9, 33, 100, "kill")
    assert set(said) == set(Limits.model_fields)
    assert SandboxConfig(**said).resolve_limits() == expected
    assert SandboxConfig().resolve_limits(Limits(**said)) == expected
    assert SandboxConfig(resource_limits=said).resolve_limits() == expected


def test_a_call_makes_limits_tighter_and_never_wider() -> None:
    config = SandboxConfig(memory_limit="100m", pids_limit=10, output_limit=1000)
    wider = config.resolve_limits(Limits(memory_limit="1g", pids_limit=500, output_limit=99999))
    assert (wider.memory, wider.pids, wider.output) == (100 * MIB, 10, 1000)
    tighter = config.resolve_limits(Limits(memory_limit="1m", pids_limit=1, output_limit=0))
    assert (tighter.memory, tighter.pids, tighter.output) == (MIB, 1, 0)


def test_the_time_out_that_is_nearest_to_the_call_holds() -> None:
    config = SandboxConfig(timeout=10)
    assert config.resolve_limits().timeout == 10
    assert config.resolve_limits(Limits(timeout=60)).timeout == 60
    assert config.resolve_limits(Limits(timeout=60), 5).timeout == 5
    assert SandboxConfig(timeout=None).resolve_limits().timeout == 30


def test_a_file_is_never_larger_than_the_disk() -> None:
    assert SandboxConfig(disk_limit="1m").resolve_limits().file_size == MIB
    assert SandboxConfig(disk_limit="1m", file_size_limit="1g").resolve_limits().file_size == MIB


def test_a_field_goes_before_the_same_in_the_mapping() -> None:
    config = SandboxConfig(pids_limit=5, resource_limits={"pids_limit": 7, "nofile_limit": 9})
    assert (config.resolve_limits().pids, config.resolve_limits().nofile) == (5, 9)
    assert ProcessSandboxConfig(resource_limits={"memory_limit": "2m"}).resolve_limits().memory == (
        2 * MIB
    )


def test_none_means_no_limit_where_there_can_be_none_and_the_default_elsewhere() -> None:
    nothing: dict[str, Any] = dict.fromkeys(Limits.model_fields)
    assert ProcessSandboxConfig(**nothing).resolve_limits() == DEFAULT_LIMITS


@pytest.mark.parametrize("name", sorted(set(Limits.model_fields) - {"output_action"}))
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, -math.inf, True, "x", [], {}])
def test_what_is_no_amount_is_refused(name: str, value: Any) -> None:
    for config in (Limits, SandboxConfig):
        with pytest.raises(ValueError, match=name):
            config(**{name: value})
    with pytest.raises(ValueError, match=name):
        SandboxConfig(resource_limits={name: value})
    config = SandboxConfig()
    with pytest.raises(ValueError, match=name):
        setattr(config, name, value)


@pytest.mark.parametrize(
    "name", sorted(set(Limits.model_fields) - {"output_action", "output_limit"})
)
def test_nothing_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


@pytest.mark.parametrize("name", ["memory_limit", "disk_limit", "file_size_limit"])
@pytest.mark.parametrize("value", ["0", "0g", "1.5g", "-1m", "1x", "", " ", "g", "9" * 40, 1.5])
def test_what_is_no_size_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"Invalid \w+( size)? limit format|must be positive"):
        Limits(**{name: value})


def test_an_unknown_limit_is_named_with_what_was_meant() -> None:
    with pytest.raises(ValueError, match=r"Unknown limit key 'memory_limt' \(did you mean 'mem"):
        Limits.model_validate({"memory_limt": 1})
    with pytest.raises(ValueError, match="Unknown limit key 'ram'"):
        SandboxConfig(resource_limits={"ram": 1})


def test_a_mapping_changed_in_place_is_still_checked() -> None:
    config = SandboxConfig()
    config.resource_limits["pids_limit"] = 3
    assert config.resolve_limits().pids == 3
    config.resource_limits["ram"] = 3
    with pytest.raises(ValueError, match="Unknown limit key 'ram'"):
        config.resolve_limits()


amounts = st.integers(1, 1 << 40)


@given(own=amounts, call=st.none() | amounts)
def test_a_resolved_limit_is_the_least_that_was_said(own: int, call: int | None) -> None:
    limits = SandboxConfig(memory_limit=own, pids_limit=own, output_limit=own).resolve_limits(
        Limits(memory_limit=call, pids_limit=call, output_limit=call)
    )
    assert limits.memory == limits.pids == limits.output == min(own, call or own)
