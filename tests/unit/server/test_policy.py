"""What may be asked for on a server: every field that reaches the machine, by every route."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave import wire
from ms_enclave.boxes._inputs import coerce_config
from ms_enclave.cli.main import app
from ms_enclave.errors import ConfigError, IsolationUnavailableError, NotAllowedError
from ms_enclave.manager import HttpSandboxManager, LocalSandboxManager
from ms_enclave.model import (
    DockerNotebookConfig,
    DockerSandboxConfig,
    Limits,
    ProcessSandboxConfig,
    SandboxConfig,
)
from ms_enclave.server import Policy, Principal, create_server
from ms_enclave.server.governed import Governed, GovernedAccess
from tests.support.subprocess_box import install
from tests.unit.server.test_gate import KEY, ask, serving

if TYPE_CHECKING:
    from pathlib import Path

    from ms_enclave.server import SandboxServer

install()

TYPES: dict[str, type[SandboxConfig]] = {
    "process": ProcessSandboxConfig,
    "docker": DockerSandboxConfig,
    "docker_notebook": DockerNotebookConfig,
}
ROOT = {"/": {"bind": "/host", "mode": "ro"}}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("process", {"volumes": ROOT}, "the volume '/'"),
    ("process", {"rootfs": "/"}, "rootfs='/'"),
    ("process", {"rootfs": "oci-archive:/some.tar"}, "rootfs='oci-archive:/some.tar'"),
    ("process", {"python": "/root/venv"}, "python='/root/venv'"),
    ("process", {"network_enabled": True}, "network_enabled"),
    ("process", {"isolation": "best"}, "isolation='best'"),
    ("process", {"isolation": "landlock"}, "isolation='landlock'"),
    ("docker", {"volumes": ROOT}, "the volume '/'"),
    ("docker", {"volumes": {"someones": {"bind": "/data"}}}, "the volume 'someones'"),
    ("docker", {"privileged": True}, "privileged"),
    ("docker", {"cap_add": ["SYS_ADMIN"]}, "cap_add"),
    ("docker", {"gpus": "all"}, "gpus"),
    ("docker", {"runtime": "anything"}, "runtime='anything'"),
    ("docker", {"ports": {"80": None}}, "ports"),
    ("docker", {"network_enabled": True}, "network_enabled"),
    ("docker", {"hardening": "default"}, "hardening='default'"),
    ("docker", {"auto_remove": False}, "remove_on_exit=False"),
    ("docker_notebook", {"wheels": "/root"}, "wheels='/root'"),
    ("docker_notebook", {"port": 8888}, "port"),
]


def of(sandbox_type: str, config: dict[str, Any]) -> SandboxConfig:
    return coerce_config(TYPES[sandbox_type], config)


@pytest.mark.parametrize(("sandbox_type", "config", "words"), REFUSED)
def test_nothing_of_the_machine_is_given_by_default(
    sandbox_type: str, config: dict[str, Any], words: str
) -> None:
    given = Policy().harden(of(sandbox_type, config))
    with pytest.raises(NotAllowedError) as refused:
        Policy().check(given)
    assert refused.value.message == f"not allowed on this server: {words}"
    Policy.everything().check(of(sandbox_type, config))


@pytest.mark.parametrize("sandbox_type", TYPES)
def test_what_asks_for_nothing_is_allowed(sandbox_type: str) -> None:
    Policy().check(Policy().harden(of(sandbox_type, {"memory_limit": "64m", "timeout": 5})))


def test_all_that_is_refused_is_named() -> None:
    config = of("docker", {"privileged": True, "volumes": ROOT, "hardening": "strict"})
    with pytest.raises(NotAllowedError, match=r"the volume '/'; privileged"):
        Policy().check(config)


def test_every_field_that_names_something_of_the_host_is_known_here() -> None:
    """A new field has to be put on one side or the other."""
    harmless = {
        *SandboxConfig.model_fields, "preload", "pull", "pull_progress", "pull_progress_interval",
        "command", "entrypoint", "user", "tmpfs", "read_only", "extra_hosts", "platform",
        "host", "token",
    } - {"network_enabled", "isolation"}  # fmt: skip
    held = {
        "network_enabled", "isolation", "python", "rootfs", "volumes", "image", "python_image",
        "base_image", "ports", "port", "network", "runtime", "hardening", "privileged", "cap_add",
        "gpus", "wheels", "remove_on_exit",
    }  # fmt: skip
    every = {name for kind in TYPES.values() for name in kind.model_fields}
    assert every == harmless | held


def test_a_container_is_hardened_unless_it_may_be_less() -> None:
    assert Policy().harden(of("docker", {})).said()["hardening"] == "strict"
    loose = Policy(hardening="default")
    assert loose.harden(of("docker", {"hardening": "strict"})).said()["hardening"] == "strict"
    assert loose.harden(of("docker", {})).said()["hardening"] == "default"


@pytest.mark.parametrize("sandbox_type", TYPES)
@pytest.mark.parametrize(
    "asked", [{"output_limit": 10**12}, {"resource_limits": {"output_limit": "1t"}}]
)
def test_output_takes_no_more_of_the_servers_memory_than_it_may(
    sandbox_type: str, asked: dict[str, Any]
) -> None:
    def kept(policy: Policy, asked: dict[str, Any]) -> int:
        given = policy.harden(of(sandbox_type, asked))
        policy.check(given)
        return given.resolve_limits(Limits(output_limit=10**13)).output

    assert kept(Policy(), asked) == 16 << 20
    assert kept(Policy(output="1m"), {}) == 1 << 20
    assert kept(Policy(output="1m"), {"output_limit": 5}) == 5
    assert kept(Policy(output=None), asked) >= 10**12


def test_no_more_checkpoints_are_in_memory_than_may_be() -> None:
    def kept(policy: Policy, **asked: int) -> int:
        return policy.harden(of("process", asked)).max_checkpoints

    assert kept(Policy(), max_checkpoints=20) == 8
    assert kept(Policy(checkpoints=3)) == 3
    assert kept(Policy(checkpoints=3), max_checkpoints=1) == 1
    assert kept(Policy.everything(), max_checkpoints=20) == 20


@pytest.mark.parametrize(
    ("path", "mode", "is_allowed"),
    [
        ("/data", "ro", True), ("/data/", "ro", True), ("/x/../data", "ro", True),
        ("/data", "rw", False), ("/data/below", "ro", False), ("/scratch", "rw", True),
        ("/", "ro", False), ("data", "ro", False),
    ],
)  # fmt: skip
def test_a_path_stands_for_itself(path: str, mode: str, *, is_allowed: bool) -> None:
    policy = Policy(host_paths={"/data": "ro", "/scratch": "rw"})
    config = of("process", {"volumes": {path: {"bind": "/in", "mode": mode}}})
    if is_allowed:
        policy.check(config)
        return
    with pytest.raises(NotAllowedError, match="the volume"):
        policy.check(config)


def test_images_go_by_patterns_and_networks_by_name() -> None:
    policy = Policy(images=("ours/*",), network=True, networks=("tests",))
    wanted = {"hardening": "strict", "network_enabled": True}
    policy.check(of("docker", {**wanted, "image": "ours/base:1", "network": "tests"}))
    policy.check(of("docker", {"hardening": "strict"}))  # the image that we take by ourselves
    with pytest.raises(NotAllowedError, match="image='theirs'"):
        policy.check(of("docker", {"hardening": "strict", "image": "theirs"}))
    with pytest.raises(NotAllowedError, match="network='bridge'"):
        policy.check(of("docker", wanted))


# --- by every route ---

WAYS = [
    ("/sandbox/create?sandbox_type=process", None, 400),
    ("/sandbox/create?sandbox_type=auto", None, 400),
    ("/pool/initialize?pool_size=1&sandbox_type=process", None, 403),
    ("/v1/sandboxes", {"sandbox_type": "process"}, 403),
    ("/v1/sandboxes", {"sandbox_type": "auto"}, 403),
    ("/v1/run", {"code": "print(1)"}, 403),
    ("/v1/pool", {"pool_size": 1, "sandbox_type": "process"}, 403),
    ("/v1/pool", {"pool_size": 1}, 403),
]


@pytest.mark.parametrize(("path", "body", "status"), WAYS)
async def test_no_route_goes_past_it(path: str, body: Any, status: int) -> None:
    config = {"volumes": ROOT}
    async with serving() as server:
        content = wire.dump(config if body is None else {**body, "config": config})
        said = await ask(server, "POST", path, content)
        assert said.status == status, said
        assert "the volume '/'" in said.body.decode()
        assert await server.manager.list_sandboxes() == []


async def test_a_type_that_is_not_named_is_not_made() -> None:
    async def made(server: SandboxServer) -> str:
        async with HttpSandboxManager(app=server.app) as manager:
            return await manager.create_sandbox("subprocess")

    async with serving() as server:
        with pytest.raises(NotAllowedError, match="no sandbox of type subprocess"):
            await made(server)
    async with serving(policy={"sandbox_types": ["subprocess"]}) as server:
        assert await made(server)
        async with HttpSandboxManager(app=server.app) as manager:
            with pytest.raises(NotAllowedError, match="no sandbox of type auto"):
                await manager.create_sandbox("auto")


async def test_the_owners_own_config_is_the_owners_word(tmp_path: Path) -> None:
    volumes = {str(tmp_path): {"bind": "/in", "mode": "ro"}}
    tmp_path.chmod(0o755)
    (tmp_path / "note").write_text("from the owner")
    manager = LocalSandboxManager(sandbox_config={"volumes": volumes})
    server = create_server(manager, api_key=KEY)
    async with manager, HttpSandboxManager(app=server.app, api_key=KEY) as remote:
        done = await remote.run_code("print(open('/in/note').read())")
    assert done.stdout == "from the owner\n", done


async def test_the_owners_config_of_a_type_means_that_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    manager = LocalSandboxManager(sandbox_config=DockerSandboxConfig(image="any"))
    server = create_server(manager, api_key=KEY)
    async with manager, HttpSandboxManager(app=server.app, api_key=KEY) as remote:
        said = r"^no sandbox type works on this machine: The container engine cannot be reached"
        with pytest.raises(IsolationUnavailableError, match=said):
            await remote.run_code("print(1)")
        with pytest.raises(IsolationUnavailableError, match=said):
            await remote.create_sandbox()


async def test_what_else_is_known_of_somebody_stays_known() -> None:
    @dataclass(frozen=True)
    class Known(Principal):
        may_write: bool = True

    class Readers:
        needs_key = True

        async def authenticate(self, key: str | None) -> Principal | None:
            return Known("reader", manager, may_write=False) if key else None

    manager = LocalSandboxManager()
    found = await GovernedAccess(Readers(), Policy()).authenticate("any")
    assert isinstance(found, Known)
    assert (found.name, found.may_write) == ("reader", False)
    assert isinstance(found.manager, Governed)


@pytest.mark.parametrize("policy", [{"hostpaths": {}}, {"host_paths": {"/": "all"}}])
def test_a_wrong_policy_is_told(policy: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Invalid policy"):
        create_server(LocalSandboxManager(), policy=policy)


def test_a_file_of_the_command_line_is_read(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    file = tmp_path / "policy.json"
    for text, words in (
        ("[]", "must hold an object"), ("{", "is no JSON"),
        (json.dumps({"hostpaths": {}}), "hostpaths"),
    ):  # fmt: skip
        file.write_text(text)
        done = CliRunner().invoke(app, ["server", "--port", "0", "--policy", str(file)])
        assert done.exit_code != 0
        assert words in done.output + str(done.exception), done.output
