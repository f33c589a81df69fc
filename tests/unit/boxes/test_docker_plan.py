"""What an engine is asked for: the walls, the limits, and what is refused before it is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ms_enclave.boxes._docker_plan import (
    Dialect,
    Plan,
    isolation_report,
    limits_of,
    main_command,
    plan_container,
    program_limits,
    read_engine,
)
from ms_enclave.errors import CapabilityError, ConfigError
from ms_enclave.model import DockerSandboxConfig


def plan(
    *,
    folder_is_free: bool = True,
    image_user: str = "",
    dialect: Dialect = Dialect("{}"),  # noqa: B008 - it cannot be changed
    **fields: Any,
) -> Plan:
    config = DockerSandboxConfig.model_validate(fields)
    return plan_container(
        config, limits_of(config), {"a": "b"}, image_user=image_user, strict_user=23456,
        folder_is_free=folder_is_free, dialect=dialect,
    )  # fmt: skip


def host(**fields: Any) -> dict[str, Any]:
    return plan(**fields).document["HostConfig"]


def test_by_default_it_has_no_network_few_capabilities_and_no_way_to_more() -> None:
    made = host()
    assert made["NetworkMode"] == "none"
    assert made["CapDrop"] == ["ALL"]
    assert "SYS_ADMIN" not in made["CapAdd"]
    assert {"CHOWN", "SETUID", "SETGID"} <= set(made["CapAdd"])
    assert "no-new-privileges:true" in made["SecurityOpt"]
    assert any(option.startswith("seccomp={") for option in made["SecurityOpt"])
    assert not made["Privileged"]
    assert made["LogConfig"]["Type"] == "none"
    assert made["AutoRemove"]


def test_limits_are_those_of_every_sandbox() -> None:
    made = host(memory_limit="256m", cpu_limit=1.5, pids_limit=50, disk_limit="8m")
    assert made["Memory"] == made["MemorySwap"] == 256 << 20
    assert made["CpuQuota"] == 150_000
    assert made["PidsLimit"] == 50
    assert f"size={8 << 20},nr_inodes=2048," in made["Tmpfs"]["/sandbox"]


def test_what_counts_no_files_says_so() -> None:
    plain = plan(disk_limit="8m", dialect=Dialect("{}", plain_memory=True))
    assert "nr_inodes" not in plain.document["HostConfig"]["Tmpfs"]["/sandbox"]
    assert plain.guards["file_limit"] == "off"
    assert plan(disk_limit="8m").guards["file_limit"] == "on"
    assert plan(folder_is_free=False).guards["file_limit"] == "off"


def test_strict_takes_everything_away_that_it_can() -> None:
    made = plan(hardening="strict")
    walls = made.document["HostConfig"]
    assert made.document["User"] == "23456:23456"
    assert walls["CapAdd"] == []
    assert ",nr_inodes=16384," in walls["Tmpfs"]["/sandbox"]
    assert walls["ReadonlyRootfs"]
    assert "/proc/kallsyms" in walls["MaskedPaths"]
    assert walls["Memory"] == 512 << 20
    assert walls["PidsLimit"] == 128
    assert made.guards["no_capabilities"] == made.guards["read_only_root"] == "on"
    assert "uid=23456" in walls["Tmpfs"]["/sandbox"]


def test_a_limit_that_was_given_holds_in_strict_too() -> None:
    made = host(hardening="strict", memory_limit="1g", resource_limits={"pids_limit": 200})
    assert made["Memory"] == 1 << 30
    assert made["PidsLimit"] == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"volumes": {"/data": {"bind": "/data", "mode": "ro"}}},
        {"privileged": True},
        {"cap_add": ["NET_RAW"]},
        {"gpus": "all"},
        {"user": "root"},
        {"ports": {"80": 8080}, "network_enabled": True},
    ],
)
def test_strict_refuses_by_name_what_would_weaken_it(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        plan(hardening="strict", **fields)
    plan(**fields)


@pytest.mark.parametrize("network", ["host", "container:other"])
def test_a_network_that_is_not_its_own_is_refused(network: str) -> None:
    with pytest.raises(ConfigError, match="not the sandbox's own"):
        plan(network_enabled=True, network=network)
    assert host(network=network)["NetworkMode"] == "none"


def test_a_network_is_had_by_asking_for_it() -> None:
    assert host(network_enabled=True)["NetworkMode"] == "bridge"
    assert host(network_enabled=True, network="mine")["NetworkMode"] == "mine"


def test_published_ports_need_a_network_and_are_for_this_machine_only() -> None:
    with pytest.raises(ConfigError, match=r"sandbox\.connect"):
        plan(ports={"80": 8080})
    bindings = host(network_enabled=True, ports={"80": 8080, "81": None, "82": ("0.0.0.0", 82)})[
        "PortBindings"
    ]
    assert bindings == {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
        "81/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}],
        "82/tcp": [{"HostIp": "0.0.0.0", "HostPort": "82"}],
    }


def test_what_docker_cannot_do_is_said() -> None:
    with pytest.raises(CapabilityError, match="runtime"):
        plan(isolation="namespace")


@pytest.mark.parametrize(
    ("info", "same_ids", "counts"),
    [
        ({}, True, {"memory", "cpu", "pids"}),
        ({"SecurityOptions": ["name=seccomp", "name=userns"]}, False, {"memory", "cpu", "pids"}),
        ({"SecurityOptions": ["name=rootless"], "CgroupVersion": "1"}, False, set[str]()),
        ({"Rootless": True, "CgroupVersion": "2"}, False, {"memory", "cpu", "pids"}),
        ({"MemoryLimit": False, "PidsLimit": False}, True, {"cpu"}),
    ],
)
def test_an_engine_is_believed_what_it_cannot_do(
    info: dict[str, object], same_ids: bool, counts: set[str]
) -> None:
    assert read_engine(info) == (same_ids, counts)


def test_what_the_engine_cannot_limit_is_said() -> None:
    guards = plan(dialect=Dialect("{}", hosts_ids=False, counts=frozenset())).guards
    assert guards["user_namespace"] == "on"
    assert {guards[f"cgroup_{name}"] for name in ("memory", "cpu", "pids")} == {"off"}
    assert plan().guards["user_namespace"] == "off"


@pytest.mark.parametrize(
    ("runtime", "own"), [("runc", "off"), ("", "off"), ("runsc", "on"), ("kata-qemu", "on")]
)
def test_a_runtime_with_a_kernel_of_its_own_is_said(runtime: str, own: str) -> None:
    guards = isolation_report(plan(), runtime, "").guards
    assert guards["own_kernel"] == own
    assert guards["seccomp"] == ("n/a" if own == "on" else "on")
    assert guards["lock_limit"] == (guards["cgroup_memory"] if own == "on" else "off")


@pytest.mark.parametrize(
    ("runtime", "most"), [(None, 32), ("runc", 32), ("kata-qemu", 32), ("runsc", 2 * 32 + 256)]
)
def test_a_kernel_that_is_a_program_has_threads_of_its_own(runtime: str | None, most: int) -> None:
    assert host(runtime=runtime, pids_limit=32)["PidsLimit"] == most


def test_what_is_kept_can_be_attached_to_again() -> None:
    assert plan().document["StdinOnce"] is True
    assert plan(on_owner_death="keep").document["StdinOnce"] is False


def test_a_folder_of_the_image_is_not_hidden() -> None:
    assert not plan(folder_is_free=False).bounded_folder
    assert "/sandbox" not in host(folder_is_free=False)["Tmpfs"]
    assert plan(folder_is_free=False).guards["disk_limit"] == "off"


@pytest.mark.parametrize("bind", ["/sandbox", "/sandbox/data", "/"])
def test_a_volume_at_the_working_folder_is_not_hidden(bind: str) -> None:
    made = plan(volumes={"/data": {"bind": bind, "mode": "rw"}})
    assert not made.bounded_folder


def test_volumes_are_folders_or_names() -> None:
    mounts = host(
        volumes={"/data": {"bind": "/d", "mode": "ro"}, "cache": {"bind": "/c", "mode": "rw"}}
    )["Mounts"]
    assert [(one["Type"], one["Source"], one["Target"], one["ReadOnly"]) for one in mounts] == [
        ("bind", "/data", "/d", True),
        ("volume", "cache", "/c", False),
    ]


@pytest.mark.parametrize(
    ("user", "image_user", "expected"),
    [
        (None, "", "mode=0755"),
        (None, "app", "mode=1777"),
        (None, "1000", "uid=1000"),
        ("1000:7", "", "gid=7"),
        ("root", "app", "mode=0755"),
    ],
)
def test_the_working_folder_belongs_to_the_user(
    user: str | None, image_user: str, expected: str
) -> None:
    made = plan(user=user, image_user=image_user)
    assert expected in made.document["HostConfig"]["Tmpfs"]["/sandbox"]


def test_privileged_is_nothing_but_what_it_says() -> None:
    made = plan(privileged=True)
    assert made.document["HostConfig"]["Privileged"]
    assert made.guards["seccomp"] == made.guards["no_new_privs"] == "off"


def test_what_the_engine_is_to_choose_is_passed_on() -> None:
    made = host(runtime="runsc", gpus=["0", "1"], extra_hosts={"db": "10.0.0.1"}, tmpfs={"/t": ""})
    assert made["Runtime"] == "runsc"
    assert made["DeviceRequests"] == [{"Capabilities": [["gpu"]], "DeviceIDs": ["0", "1"]}]
    assert made["ExtraHosts"] == ["db:10.0.0.1"]
    assert made["Tmpfs"]["/t"] == ""
    assert host(gpus="all")["DeviceRequests"][0]["Count"] == -1


def test_a_foreign_architecture_has_the_engines_own_filter() -> None:
    options = host(platform="linux/386")["SecurityOpt"]
    assert not any(option.startswith("seccomp") for option in options)
    assert plan(platform="linux/386").guards["own_seccomp"] == "off"


@pytest.mark.parametrize(
    ("fields", "own", "expected"),
    [
        ({}, ["/init"], None),
        ({"command": "sleep 'a b'"}, [], ["sleep", "a b"]),
        ({"command": ["x"]}, ["/init"], ["/init", "x"]),
        ({"command": "x", "entrypoint": "run it"}, ["/init"], ["run", "it", "x"]),
        ({"entrypoint": ["srv"]}, ["/init"], ["srv"]),
    ],
)
def test_command_and_entrypoint_go_together_as_in_docker(
    fields: dict[str, Any], own: list[str], expected: list[str] | None
) -> None:
    assert main_command(DockerSandboxConfig.model_validate(fields), own) == expected


def test_a_command_that_no_shell_could_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="quotation"):
        main_command(DockerSandboxConfig(command="it's"), [])


def test_a_full_folder_shows_before_a_large_file_does() -> None:
    full = program_limits(limits_of(DockerSandboxConfig(disk_limit="4m")))
    assert full.file_size > full.disk
    small = program_limits(limits_of(DockerSandboxConfig(disk_limit="4m", file_size_limit="1m")))
    assert small.file_size == 1 << 20


def test_the_document_is_what_json_can_say() -> None:
    made = plan(command="x", ports={"80": 1}, network_enabled=True)
    assert json.loads(json.dumps(made.document)) == made.document
