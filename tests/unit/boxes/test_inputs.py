"""What callers give to a sandbox is checked before it reaches a box."""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes.files import validate_path
from ms_enclave.errors import ConfigError
from ms_enclave.model import DockerSandboxConfig, Limits, ProcessSandboxConfig, SandboxConfig


@pytest.mark.parametrize("command", ["", "   ", "\n", [], ["", "a"]])
def test_an_empty_command_is_refused(command: Any) -> None:
    with pytest.raises(ConfigError, match="No command provided"):
        inputs.validate_command(command)


@pytest.mark.parametrize("command", ["a\0b", ["a", "b\0"], ["\0"]])
def test_nul_bytes_in_a_command_are_refused(command: Any) -> None:
    with pytest.raises(ConfigError, match="NUL"):
        inputs.validate_command(command)


@pytest.mark.parametrize(
    "command", [None, 5, b"ls", {"a": 1}, ["ls", 5], ["ls", None], ["ls", b"x"], {"ls"}, "\ud800"]
)
def test_a_command_that_is_no_text_is_refused(command: Any) -> None:
    with pytest.raises(ConfigError):
        inputs.validate_command(command)


def test_a_command_keeps_its_shape() -> None:
    assert inputs.validate_command("echo  hi") == "echo  hi"
    assert inputs.validate_command(("ls", "-l")) == ["ls", "-l"]
    assert inputs.validate_command(["printf", ""]) == ["printf", ""]


def test_a_string_goes_through_the_shell_and_a_list_does_not() -> None:
    assert inputs.command_argv("a | b", "/bin/bash") == ("/bin/bash", "-c", "a | b")
    assert inputs.command_argv(["a", "| b"], "/bin/bash") == ("a", "| b")


@pytest.mark.parametrize("timeout", [0, -1, -0.5, math.nan, math.inf, -math.inf, "5", True, [3]])
def test_a_time_out_that_is_no_time_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        inputs.validate_timeout(timeout)


def test_whole_and_broken_seconds_are_time_outs() -> None:
    assert inputs.validate_timeout(3) == 3.0
    assert inputs.validate_timeout(12.5) == 12.5
    assert inputs.validate_timeout(None) is None


@pytest.mark.parametrize("user", [True, -1, 1 << 32, "", "a\0b", 1.5, b"root"])
def test_a_user_that_cannot_be_is_refused(user: Any) -> None:
    with pytest.raises(ConfigError, match="user"):
        inputs.validate_user(user)


@pytest.mark.parametrize("user", [None, 0, 1000, "nobody"])
def test_users_are_names_or_numbers(user: Any) -> None:
    assert inputs.validate_user(user) == user


def test_a_relative_cwd_starts_at_the_working_folder() -> None:
    assert inputs.resolve_cwd(None, "/sandbox") == "/sandbox"
    assert inputs.resolve_cwd("sub", "/sandbox") == "/sandbox/sub"
    assert inputs.resolve_cwd("/tmp", "/sandbox") == "/tmp"


@pytest.mark.parametrize("cwd", ["", "a\0b", 5, b"/tmp"])
def test_a_cwd_that_is_no_path_is_refused(cwd: Any) -> None:
    with pytest.raises(ConfigError, match="cwd"):
        inputs.resolve_cwd(cwd, "/sandbox")


def test_later_environments_win() -> None:
    merged = inputs.merge_environment({"A": "1", "B": "1"}, None, {"B": "2"}, {"C": ""})
    assert merged == {"A": "1", "B": "2", "C": ""}


@pytest.mark.parametrize(
    "env", [{"": "x"}, {"a=b": "x"}, {"a\0": "x"}, {"a": "x\0"}, {"a": 5}, {5: "a"}, ["a"], "a"]
)
def test_an_environment_that_cannot_be_is_refused(env: Any) -> None:
    with pytest.raises(ConfigError, match="env"):
        inputs.merge_environment(env)


def test_standard_input_is_text_or_bytes() -> None:
    assert inputs.normalise_stdin(None) is None
    assert inputs.normalise_stdin("é") == "é".encode()
    assert inputs.normalise_stdin(bytearray(b"\xff\0")) == b"\xff\0"
    with pytest.raises(ConfigError, match="stdin"):
        inputs.normalise_stdin(5)


def test_arguments_are_a_list_of_text() -> None:
    assert inputs.validate_args(()) == ()
    assert inputs.validate_args(["", "a b"]) == ("", "a b")
    for args in ("abc", [1], None, ["\0"]):
        with pytest.raises(ConfigError, match="args"):
            inputs.validate_args(args)


def test_code_may_be_empty_but_must_be_text() -> None:
    assert inputs.validate_code("") == ""
    with pytest.raises(ConfigError, match="code"):
        inputs.validate_code(b"print()")


def test_new_ids_are_eight_letters_that_nobody_confuses() -> None:
    ids = {inputs.new_sandbox_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(re.fullmatch(r"[23456789abcdefghijkmnopqrstuvwxyz]{8}", item) for item in ids)


@pytest.mark.parametrize("sandbox_id", ["", "a/b", "..", "a" * 65, "a\n", "a b", 5, "é"])
def test_ids_that_could_be_a_path_are_refused(sandbox_id: Any) -> None:
    with pytest.raises(ConfigError, match="sandbox_id"):
        inputs.validate_sandbox_id(sandbox_id)


@given(st.text())
def test_an_accepted_id_is_a_harmless_file_name(text: str) -> None:
    try:
        accepted = inputs.validate_sandbox_id(text)
    except ConfigError:
        return
    path = PurePosixPath("/x") / accepted
    assert path.parent == PurePosixPath("/x")
    assert path.name == accepted


def test_a_dict_becomes_the_backends_own_config() -> None:
    config = inputs.coerce_config(ProcessSandboxConfig, {"timeout": 5})
    assert isinstance(config, ProcessSandboxConfig)
    assert config.timeout == 5


def test_the_callers_own_config_object_is_kept() -> None:
    config = ProcessSandboxConfig()
    assert inputs.coerce_config(ProcessSandboxConfig, config) is config


def test_a_general_config_is_converted_with_what_was_set() -> None:
    config = inputs.coerce_config(ProcessSandboxConfig, SandboxConfig(timeout=7))
    assert isinstance(config, ProcessSandboxConfig)
    assert config.timeout == 7
    assert config.memory_limit == ProcessSandboxConfig().memory_limit


def test_another_backends_field_is_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match="image"):
        inputs.coerce_config(ProcessSandboxConfig, DockerSandboxConfig(image="python:3.12"))


@pytest.mark.parametrize(
    "config", [{"no_such_key": 1}, {"timeout": "x"}, {"memory_limit": -1}, 5, "docker", ["a"]]
)
def test_a_config_that_is_none_is_the_callers_mistake(config: Any) -> None:
    with pytest.raises(ConfigError):
        inputs.coerce_config(ProcessSandboxConfig, config)


def test_limits_come_as_an_object_or_a_dict() -> None:
    limits = Limits(pids_limit=5)
    assert inputs.coerce_limits(None) is None
    assert inputs.coerce_limits(limits) is limits
    assert inputs.coerce_limits({"pids_limit": 5}) == limits


@pytest.mark.parametrize("limits", [{"pids_limit": -1}, {"memory": 5}, {"timeout": 0}, 5, "1g"])
def test_limits_that_are_none_are_refused(limits: Any) -> None:
    with pytest.raises(ConfigError):
        inputs.coerce_limits(limits)


@pytest.mark.parametrize("path", ["", "a\0b", "a" * 256, "a/" * 2049, 5, None, b"/tmp"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="path"):
        validate_path(path)


def test_paths_may_be_path_objects() -> None:
    assert validate_path(PurePosixPath("/a/b")) == "/a/b"
