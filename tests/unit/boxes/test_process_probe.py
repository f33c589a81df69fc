"""For each machine that somebody may have: what is said about it, down to the remedy."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from ms_enclave.boxes import _process_probe as probe
from ms_enclave.boxes._landlock_probe import landlock_problem
from ms_enclave.boxes._process_probe import ATTEMPTS, HostFacts, problems

ALL_WORK = dict.fromkeys(ATTEMPTS, "")
NO_USER_NAMESPACE = {
    **ALL_WORK,
    "user_namespace": "EPERM",
    "mount": "EPERM",
    "proc": "EPERM",
    "network_namespace": "EPERM",
    "id_map": "EPERM",
}

DEBIAN_12_ROOT: dict[str, Any] = {
    "kernel": (6, 18),
    "uid": 0,
    "max_user_namespaces": 96365,
    "landlock_abi": 7,
    "cgroup_version": "hybrid",
    "cgroup_controllers": ("memory", "pids", "cpu"),
    "attempts": ALL_WORK,
}
DEBIAN_12_USER: dict[str, Any] = {
    **DEBIAN_12_ROOT,
    "uid": 1000,
    "unprivileged_userns_clone": 1,
    "cgroup_version": "v2",
}
UBUNTU_24_USER: dict[str, Any] = {
    **DEBIAN_12_USER,
    "apparmor_restrict_userns": 1,
    "apparmor_profile": "unconfined",
    "ptrace_scope": 1,
    "python": "/home/ann/.venv/bin/python3.12",
    # The namespace is given, and everything in it refused.
    "attempts": {
        **ALL_WORK,
        "id_map": "EACCES",
        "mount": "EACCES",
        "proc": "EACCES",
        "network_namespace": "EACCES",
    },
}
DOCKER_ROOT: dict[str, Any] = {
    **DEBIAN_12_ROOT,
    "container": "docker",
    "seccomp_mode": 2,
    "cgroup_version": "v2",
    "cgroup_controllers": (),
    "attempts": NO_USER_NAMESPACE,
}


def blocking(facts: HostFacts) -> list[str]:
    return [f"{each.what} -> {each.remedy}" for each in problems(facts) if each.blocks]


def weakening(facts: HostFacts) -> list[str]:
    return [f"{each.what} -> {each.remedy}" for each in problems(facts) if not each.blocks]


@pytest.mark.parametrize("machine", [DEBIAN_12_ROOT, DEBIAN_12_USER])
def test_a_machine_that_has_everything_has_no_problem(machine: dict[str, Any]) -> None:
    assert problems(HostFacts(**machine)) == []


@pytest.mark.parametrize(
    ("machine", "changes", "words"),
    [
        pytest.param({}, {"platform": "darwin"}, ["macOS", "virtual machine"], id="macOS"),
        pytest.param({}, {"platform": "win32"}, ["Windows", "WSL 2"], id="Windows"),
        pytest.param(DEBIAN_12_ROOT, {"machine": "riscv64"}, ["riscv64", "x86_64"], id="machine"),
        pytest.param(DEBIAN_12_ROOT, {"kernel": (5, 4)}, ["5.4", "5.12", "newer kernel"], id="old"),
        pytest.param(
            DEBIAN_12_USER,
            {
                "max_user_namespaces": 0,
                "attempts": {**NO_USER_NAMESPACE, "user_namespace": "ENOSPC"},
            },
            ["sudo sysctl -w user.max_user_namespaces=", "/etc/sysctl.d/"],
            id="max_user_namespaces",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"unprivileged_userns_clone": 0, "attempts": NO_USER_NAMESPACE},
            ["sudo sysctl -w kernel.unprivileged_userns_clone=1"],
            id="unprivileged_userns_clone",
        ),
        pytest.param(
            UBUNTU_24_USER,
            {},
            [
                "AppArmor",
                'profile ms-enclave "/home/ann/.venv/bin/python3.12" flags=(unconfined)',
                "apparmor_parser -r /etc/apparmor.d/ms-enclave",
                "kernel.apparmor_restrict_unprivileged_userns=0",
            ],
            id="Ubuntu 24.04",
        ),
        pytest.param(
            DOCKER_ROOT,
            {},
            [
                "docker run",
                "seccomp=unconfined",
                "apparmor=unconfined",
                "systempaths=unconfined",
                "--privileged is not needed",
            ],
            id="docker",
        ),
        pytest.param(
            DOCKER_ROOT,
            {"attempts": {**ALL_WORK, "proc": "EPERM"}},
            ["/proc of its own", "systempaths=unconfined"],
            id="docker with masked proc",
        ),
        pytest.param(
            DOCKER_ROOT, {"container": "podman"}, ["podman run", "unmask=ALL"], id="podman"
        ),
        pytest.param(
            DOCKER_ROOT,
            {"container": "kubernetes"},
            ["hostUsers: false", "seccompProfile", "procMount: Unmasked"],
            id="kubernetes",
        ),
        pytest.param(DOCKER_ROOT, {"container": "lxc"}, ["security.nesting=true"], id="lxc"),
        pytest.param(DOCKER_ROOT, {"container": "gvisor"}, ["gVisor", "runc"], id="gvisor"),
        pytest.param(
            DOCKER_ROOT, {"container": ""}, ["whoever started this program"], id="some filter"
        ),
        pytest.param(
            DEBIAN_12_ROOT,
            {"chrooted": True, "attempts": NO_USER_NAMESPACE},
            ["chroot", "pivot_root", "systemd-nspawn"],
            id="chroot",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"attempts": {**NO_USER_NAMESPACE, "user_namespace": "EINVAL"}},
            ["CONFIG_USER_NS=y"],
            id="kernel without user namespaces",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"attempts": {**NO_USER_NAMESPACE, "user_namespace": "ENOSPC"}},
            ["too many", "user.max_user_namespaces"],
            id="too many namespaces",
        ),
        pytest.param(
            DEBIAN_12_USER, {"attempts": NO_USER_NAMESPACE}, ["EPERM", "ausearch"], id="SELinux"
        ),
        pytest.param(
            DEBIAN_12_ROOT,
            {"attempts": {**ALL_WORK, "id_map": "EPERM"}},
            ["--cap-add SETUID", "ordinary user"],
            id="root without rights",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"attempts": {**ALL_WORK, "proc": "EPERM"}},
            ["findmnt --submounts /proc"],
            id="something over proc",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"attempts": {**ALL_WORK, "seccomp": "EINVAL"}},
            ["CONFIG_SECCOMP_FILTER=y"],
            id="kernel without seccomp",
        ),
    ],
)
def test_what_blocks_is_one_problem_with_its_remedy(
    machine: dict[str, Any], changes: dict[str, Any], words: list[str]
) -> None:
    found = blocking(HostFacts(**{**machine, **changes}))
    assert len(found) == 1
    for word in words:
        assert word in found[0]


@pytest.mark.parametrize(
    ("machine", "changes", "words"),
    [
        pytest.param(
            DEBIAN_12_USER,
            {"cgroup_controllers": ()},
            ["memory, pids, cpu", "systemd-run --user --scope -p Delegate=yes"],
            id="v2 without delegation",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"cgroup_controllers": ("memory", "pids")},
            ["for cpu", "Delegate=yes"],
            id="v2 without cpu",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"cgroup_version": "hybrid", "cgroup_controllers": ()},
            ["as root", "systemd.unified_cgroup_hierarchy=1"],
            id="v1 as a user",
        ),
        pytest.param(
            DEBIAN_12_ROOT,
            {"cgroup_version": "none", "cgroup_controllers": ()},
            ["mount -t cgroup2"],
            id="none mounted",
        ),
        pytest.param(
            DEBIAN_12_ROOT,
            {"container": "docker", "cgroup_version": "v2", "cgroup_controllers": ()},
            ["writable-cgroups=true"],
            id="docker",
        ),
        pytest.param(
            DEBIAN_12_USER, {"ptrace_scope": 3}, ["ptrace_scope=1", "reboot"], id="yama 3"
        ),
        pytest.param(
            DEBIAN_12_ROOT,
            {"container": "docker", "attempts": {**ALL_WORK, "ptrace": "EPERM"}},
            ["SYS_PTRACE"],
            id="ptrace in docker",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"landlock_abi": 0, "landlock_error": "ENOSYS"},
            ["CONFIG_SECURITY_LANDLOCK=y"],
            id="no landlock",
        ),
        pytest.param(
            DEBIAN_12_USER,
            {"landlock_abi": 0, "landlock_error": "EOPNOTSUPP"},
            ["lsm=landlock"],
            id="landlock switched off",
        ),
        pytest.param(DEBIAN_12_USER, {"kernel": (6, 1)}, ["6.1", "6.6"], id="no overlays"),
        pytest.param(
            DEBIAN_12_USER,
            {"network_helpers": ()},
            ["pasta", "slirp4netns", "apt-get install passt"],
            id="no helper for a network",
        ),
        pytest.param(
            DEBIAN_12_USER, {"tun": False}, ["/dev/net/tun", "modprobe tun"], id="no device for one"
        ),
    ],
)
def test_what_only_weakens_does_not_block(
    machine: dict[str, Any], changes: dict[str, Any], words: list[str]
) -> None:
    facts = HostFacts(**{**machine, **changes})
    assert blocking(facts) == []
    [found] = weakening(facts)
    for word in words:
        assert word in found


@pytest.mark.parametrize("scope", [None, 0, 1, 2])
def test_yama_below_three_is_no_problem(scope: int | None) -> None:
    assert problems(HostFacts(**{**DEBIAN_12_USER, "ptrace_scope": scope})) == []


def test_what_blocks_comes_first() -> None:
    found = problems(HostFacts(**DOCKER_ROOT))
    assert [each.blocks for each in found] == sorted((each.blocks for each in found), reverse=True)
    assert len(found) > 1


def test_another_platform_has_one_problem_only() -> None:
    assert len(problems(HostFacts(platform="darwin", machine="arm64", kernel=(0, 0)))) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a Linux machine")
def test_this_machine_can_be_looked_at_and_is_left_as_it_was() -> None:
    facts = probe.host_facts()
    assert facts.platform == "linux"
    assert facts.kernel > (3, 0)
    assert facts.cgroup_version in {"v1", "v2", "hybrid", "none"}
    assert set(facts.attempts) == set(ATTEMPTS)
    assert all(problem.remedy for problem in problems(facts))


def test_an_interpreter_that_cannot_be_started_is_said_so() -> None:
    assert set(probe.host_facts("/nonexistent/python").attempts) == {"helper"}


@pytest.mark.parametrize(
    ("machine", "begins"),
    [
        ({**DEBIAN_12_USER, "max_user_namespaces": 0, "attempts": NO_USER_NAMESPACE},
         "sudo sysctl -w user.max_user_namespaces=15000"),
        (UBUNTU_24_USER, "printf 'abi <abi/4.0>"),
        (DOCKER_ROOT, None),
    ],
)  # fmt: skip
def test_what_can_be_done_on_this_machine_is_a_line_for_its_shell(
    machine: dict[str, Any], begins: str | None
) -> None:
    command = problems(HostFacts(**machine))[0].command
    assert command is None if begins is None else (command or "").startswith(begins)


@pytest.mark.parametrize(
    ("step", "facts", "words"),
    [
        ("landlock", {"landlock_abi": 0, "landlock_error": "EOPNOTSUPP"}, "lsm=landlock"),
        ("landlock", {"landlock_abi": 0, "landlock_error": "ENOSYS"}, "CONFIG_SECURITY_LANDLOCK"),
        ("landlock", {"landlock_abi": 2}, "boot Linux 6.2"),
        ("ids", {"uid": 0}, "--cap-add SETUID"),
        ("folder", {}, "TMPDIR"),
    ],
)
def test_why_the_tier_landlock_cannot_be_had_is_told_with_what_to_do(
    step: str, facts: dict[str, Any], words: str
) -> None:
    problem = landlock_problem(replace(HostFacts(**DEBIAN_12_USER), **facts), step)
    assert problem is not None
    assert words in problem.remedy


def test_a_step_that_nothing_is_known_of_is_not_explained() -> None:
    assert landlock_problem(HostFacts(**DEBIAN_12_USER), "station") is None
