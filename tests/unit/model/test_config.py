"""Configs: strict, mutable, and open to what existing callers write."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest

from ms_enclave.model import (
    DockerNotebookConfig,
    DockerSandboxConfig,
    ProcessSandboxConfig,
    PythonExecutorConfig,
    SandboxConfig,
    SandboxManagerConfig,
    SandboxType,
    ToolConfig,
    VolcengineSandboxConfig,
    VolcengineSandboxManagerConfig,
)

SANDBOXES = [
    SandboxConfig,
    ProcessSandboxConfig,
    DockerSandboxConfig,
    DockerNotebookConfig,
    VolcengineSandboxConfig,
]
ALL = [*SANDBOXES, SandboxManagerConfig, VolcengineSandboxManagerConfig, ToolConfig]

OLD_DEFAULTS: dict[str, Any] = {
    "timeout": 30,
    "tools_config": {},
    "working_dir": "/sandbox",
    "env_vars": {},
    "resource_limits": {},
    "image": "python:3.11-slim",
    "command": None,
    "volumes": {},
    "ports": {},
    "network": "bridge",
    "network_enabled": True,
    "memory_limit": "4g",
    "cpu_limit": 2.0,
    "privileged": False,
    "remove_on_exit": True,
    "docker_executor_workers": 8,
    "pull_progress": True,
    "pull_progress_interval": 1.0,
}


@pytest.mark.parametrize("kind", ALL)
def test_none_is_accepted_for_every_field(kind: type[Any]) -> None:
    config = kind(**dict.fromkeys(kind.model_fields))
    for name in kind.model_fields:
        setattr(config, name, None)
    assert kind.model_validate(config.model_dump(exclude_none=True)) is not None


@pytest.mark.parametrize("kind", ALL)
def test_a_config_survives_a_round_trip(kind: type[Any]) -> None:
    config = kind()
    assert kind.model_validate(config.model_dump()) == config
    assert kind.model_validate_json(config.model_dump_json()) == config
    assert config.model_copy(deep=True) == config
    assert copy.deepcopy(config) == config


@pytest.mark.parametrize("kind", ALL)
def test_an_unknown_key_is_refused_by_name(kind: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"Unknown .* key 'no_such_key'"):
        kind(no_such_key=1)
    with pytest.raises(ValueError, match="no_such_key"):
        kind().no_such_key = 1


def test_a_mistyped_key_is_answered_with_what_was_meant() -> None:
    with pytest.raises(ValueError, match=r"Unknown sandbox config key 'timout' \(did you mean"):
        SandboxConfig.model_validate({"timout": 5})
    with pytest.raises(ValueError, match=r"keys 'a', 'b'"):
        SandboxConfig.model_validate({"a": 5, "b": 6})


def test_an_error_does_not_repeat_a_secret() -> None:
    with pytest.raises(ValueError, match="Unknown manager config key") as caught:
        SandboxManagerConfig.model_validate({"api_key": "hush-hush", "y": "hush-hush"})
    assert "hush-hush" not in str(caught.value)
    assert "hush-hush" not in repr(SandboxManagerConfig(api_key="hush-hush"))


def test_a_config_is_the_callers_to_change() -> None:
    config = DockerNotebookConfig(port=8888)
    config.port = 8889
    config.timeout = 12.5
    config.env_vars["A"] = "b"
    assert (config.port, config.timeout, config.env_vars) == (8889, 12.5, {"A": "b"})
    with pytest.raises(ValueError, match="port"):
        config.port = 1 << 16
    assert config.port == 8889


def test_what_was_said_is_known_also_where_it_was_changed_in_place() -> None:
    config = SandboxConfig(timeout=30)
    config.env_vars["A"] = "b"
    config.pids_limit = 5
    assert config.said() == {"timeout": 30, "env_vars": {"A": "b"}, "pids_limit": 5}
    assert SandboxConfig().said() == {}


# --- tools ---


@pytest.mark.parametrize(
    "given",
    [
        ["python_executor", "shell_executor"],
        ("python_executor", "shell_executor"),
        {"python_executor": {}, "shell_executor": {}},
    ],
)
def test_tools_are_named_in_a_list_or_a_dict(given: Any) -> None:
    config = SandboxConfig(tools_config=given)
    assert config.tools_config == {"python_executor": {}, "shell_executor": {}}
    assert list(config.tools_config) == ["python_executor", "shell_executor"]


def test_options_of_a_tool_stay_as_they_are() -> None:
    options = PythonExecutorConfig(timeout=5)
    config = SandboxConfig(tools_config={"python_executor": options, "shell_executor": None})
    assert config.tools_config["python_executor"] is options
    assert config.tools_config["shell_executor"] is None


@pytest.mark.parametrize("given", ["python_executor", 5])
def test_what_names_no_tools_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="tools_config"):
        SandboxConfig(tools_config=given)


# --- paths and variables ---


@pytest.mark.parametrize("path", ["", "x", "../x", "/a/../b", "/a\0b"])
def test_the_working_folder_is_a_plain_absolute_path(path: str) -> None:
    with pytest.raises(ValueError, match="working_dir"):
        SandboxConfig(working_dir=path)


def test_the_working_folder_is_tidied() -> None:
    assert SandboxConfig(working_dir="//work//here/").working_dir == "/work/here"


@pytest.mark.parametrize("variables", [{"": "x"}, {"A=B": "x"}, {"A": "x\0"}, {"A\0": "x"}])
def test_variables_that_no_environment_can_hold_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="env_vars"):
        SandboxConfig(env_vars=variables)


@pytest.mark.parametrize("kind", [ProcessSandboxConfig, DockerSandboxConfig])
def test_volumes_have_dockers_shape(kind: Any) -> None:
    volumes = {"/data": {"bind": "/mnt/data/", "mode": "ro"}, "/x": {"bind": "/x"}}
    assert kind(volumes=volumes).volumes == {
        "/data": {"bind": "/mnt/data", "mode": "ro"},
        "/x": {"bind": "/x", "mode": "rw"},
    }


@pytest.mark.parametrize("kind", [ProcessSandboxConfig, DockerSandboxConfig])
@pytest.mark.parametrize(
    "volumes",
    [
        {"/x": "/y"},
        {"/x": {}},
        {"/x": {"bind": "y"}},
        {"/x": {"bind": "/y/../z"}},
        {"/x": {"bind": "/y", "mode": "rx"}},
        {"/x": {"bind": "/y", "propagation": "shared"}},
        {"": {"bind": "/y"}},
        {"/x\0": {"bind": "/y"}},
        ["/x:/y"],
    ],
)
def test_volumes_of_another_shape_are_refused(kind: Any, volumes: Any) -> None:
    with pytest.raises(ValueError, match="volume"):
        kind(volumes=volumes)


# --- what existing callers write ---


def test_the_network_is_off_unless_asked_for() -> None:
    assert DockerSandboxConfig().network_enabled is False
    config = DockerSandboxConfig(network_enabled=True, network="bridge")
    assert (config.network_enabled, config.network) == (True, "bridge")


def test_a_whole_config_with_its_old_defaults_is_accepted_silently() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = DockerSandboxConfig.model_validate(OLD_DEFAULTS)
    assert config.image == "python:3.11-slim"
    assert not hasattr(config, "docker_executor_workers")


def test_a_field_without_use_is_accepted_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="docker_executor_workers has no effect"):
        DockerSandboxConfig.model_validate({"docker_executor_workers": 4})


def test_containers_are_removed_under_both_names() -> None:
    assert DockerSandboxConfig().remove_on_exit is True
    config = DockerSandboxConfig.model_validate({"auto_remove": False})
    assert (config.remove_on_exit, config.auto_remove) == (False, False)


def test_ports_have_dockers_shape() -> None:
    given: Any = {"80/tcp": 8080, 443: ("127.0.0.1", 8443), "53/udp": None}
    ports = DockerSandboxConfig(ports=given).ports
    assert ports == {"80/tcp": 8080, "443/tcp": ["127.0.0.1", 8443], "53/udp": None}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ports", {"http": 80}),
        ("ports", {"80/tcp": "many"}),
        ("ports", {"0": 80}),
        ("tmpfs", {"scratch": ""}),
        ("user", "a b"),
        ("user", "--privileged"),
        ("platform", "linux arm64"),
        ("hardening", "lax"),
        ("pull", "sometimes"),
        ("pull_progress_interval", 0),
        ("image", ""),
    ],
)
def test_what_no_container_could_have_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        DockerSandboxConfig.model_validate({field: value})


def test_folders_in_memory_can_be_a_list_and_capabilities_have_any_spelling() -> None:
    config = DockerSandboxConfig.model_validate({"tmpfs": ["/a"], "cap_add": ["cap_net_raw"]})
    assert config.tmpfs == {"/a": ""}
    assert config.cap_add == ["NET_RAW"]


def test_a_manager_keeps_the_callers_config_object() -> None:
    config = DockerSandboxConfig(image="mine")
    manager = SandboxManagerConfig(sandbox_config=config)
    assert manager.sandbox_config is config
    assert manager.model_dump()["sandbox_config"]["image"] == "mine"
    plain = SandboxManagerConfig(sandbox_config={"image": "mine"})
    assert plain.sandbox_config == {"image": "mine"}


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x", "", "file:///etc/passwd"])
def test_a_server_has_an_address_of_the_web(address: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        SandboxManagerConfig(base_url=address)


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf")])
def test_a_clean_up_interval_is_positive_or_none(interval: float) -> None:
    assert SandboxManagerConfig(cleanup_interval=None).cleanup_interval is None
    with pytest.raises(ValueError, match="cleanup_interval"):
        SandboxManagerConfig(cleanup_interval=interval)


def test_plain_strings_and_enums_are_the_same_in_a_config() -> None:
    tools: Any = [SandboxType.DOCKER]
    assert SandboxConfig(tools_config=tools).tools_config == {"docker": {}}
