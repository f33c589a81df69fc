"""What the tier `gvisor` asks `runsc` for, purely: its command line, its bundle, its report."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from ms_enclave.boxes import _process_request as requests
from ms_enclave.boxes._own_kernel import host_tasks
from ms_enclave.boxes._process_tiers import Place, Tier
from ms_enclave.channel import guest_loader as loader
from ms_enclave.errors import CapabilityError
from ms_enclave.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ms_enclave.boxes._process_plan import RuntimePlan
    from ms_enclave.model import IsolationReport, ProcessSandboxConfig

__all__ = ["GvisorTier"]

CONTAINER = "sandbox"
"""What `runsc` calls it: each has a state folder of its own."""

_HOME = "/run/enclave/gvisor"  # as in spawner.gvisor_launcher
_IMAGE = "/run/enclave/image"  # as in spawner.root
_HIDDEN = ("/run/enclave", "/sys")
_OWN_MEMORY = 128 << 20
"""Bytes that gVisor's kernel and its file servers may have beside the sandbox's programs."""


class GvisorTier(Tier):
    """A kernel of the sandbox's own, which is a program of the host: see `docs/process.md`.

    Args:
        runsc: the path of the program.
        version: in its words.
    """

    name = "gvisor"
    able = frozenset()
    everything = frozenset({"python", "kernel", "limits", "isolation"})
    """All that such a sandbox can do."""

    def __init__(self, runsc: str, version: str) -> None:
        self._runsc = runsc
        self._version = version

    def station_plan(self, plan: RuntimePlan, config: ProcessSandboxConfig) -> dict[str, Any]:
        _refuse(config)
        return _launcher_plan(plan, config, self._runsc)

    def place(self, config: ProcessSandboxConfig, box: Mapping[str, Any]) -> Place:
        return Place(config.working_dir, None)

    def user(
        self, user: str | int | None, facts: Mapping[str, Any], place: Place
    ) -> tuple[int, int]:
        own = requests.DEFAULT_USER[0]
        if user in (None, "sandbox", own, str(own)):
            return requests.DEFAULT_USER
        raise CapabilityError(
            "users",
            remedy=f"a sandbox of tier gvisor has one user, {own}: leave `user` out, or use"
            " isolation='namespace'",
        )

    def report(self, facts: Mapping[str, Any], place: Place) -> IsolationReport:
        return _report(facts["controllers"], self._version)


def _refuse(config: ProcessSandboxConfig) -> None:
    """Refuse what this tier does not have.

    Raises:
        CapabilityError: the config wants it.
    """
    writable = [host for host, row in config.volumes.items() if row["mode"] == "rw"]
    remedy = "leave it out, or use isolation='namespace'"
    if config.network_enabled:
        raise CapabilityError("network", remedy=remedy)
    if config.on_owner_death == "keep":
        raise CapabilityError("keep", remedy=remedy)
    if config.preload:
        raise CapabilityError("preload", remedy=remedy)
    if writable:
        raise CapabilityError(
            "volumes",
            message=f"A sandbox of tier gvisor cannot write to {writable[0]} of the host",
            remedy="give it mode 'ro', or use isolation='namespace'",
        )


def _launcher_plan(plan: RuntimePlan, config: ProcessSandboxConfig, runsc: str) -> dict[str, Any]:
    """What the launcher of one sandbox is given (JSON).

    Args:
        runsc: the path of the program.
    """
    box = requests.box_limits(config.resolve_limits())
    if box["memory"] is not None:
        box["memory"] += _OWN_MEMORY
    if box["pids"] is not None:
        box["pids"] = host_tasks(box["pids"])
    return {
        **requests.station_plan(plan, config.working_dir),
        "launcher": "gvisor_launcher.py",
        "limits": box,
        "runsc": runsc,
        "runsc_words": [
            "runsc", f"--root={_HOME}/state", "--network=none", "--ignore-cgroups",
            "--file-access-mounts=exclusive",  # nobody else changes what is writable
            "run", f"--bundle={_HOME}/bundle", CONTAINER,
        ],
        "bundle": _bundle(plan, config),
        "user": list(requests.DEFAULT_USER),
    }  # fmt: skip


def _bundle(plan: RuntimePlan, config: ProcessSandboxConfig) -> dict[str, Any]:
    uid, gid = requests.DEFAULT_USER
    environment = requests.environment(plan, config.working_dir)
    nothing: list[str] = []
    kinds = ("bounding", "effective", "inheritable", "permitted", "ambient")
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": gid},
            "args": [*plan.python, *_words()],
            "env": [f"{name}={value}" for name, value in environment.items()],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(kinds, nothing),
        },
        "root": {"path": "/" if plan.image is None else _IMAGE, "readonly": True},
        "hostname": "sandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            *(_empty(path, "0555") for path in _HIDDEN if plan.image is None or path == "/sys"),
            _empty("/dev/shm", "1777"),  # noqa: S108 - the sandbox's
            _shown(f"{_HOME}/disk/tmp", "/tmp"),  # noqa: S108 - the sandbox's
            _shown(f"{_HOME}/disk/work", config.working_dir),
            *(_shown(bind.source, bind.target, "ro") for bind in plan.late),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "network", "ipc", "uts")],
        },
    }


def _words() -> list[str]:
    """What makes a guest of an interpreter.

    Its standard input and output are one socket, and gVisor may take the one that it looks at later
    for one that does not block, since it has made it so itself.
    """
    *options, text = loader.argv("")[1:]
    return [*options, f"import os\nfor each in (0, 1): os.set_blocking(each, True)\n{text}"]


def _shown(source: str, target: str, mode: str = "rw") -> dict[str, Any]:
    options = ["rbind", mode, "nosuid", "nodev"]
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _empty(target: str, mode: str) -> dict[str, Any]:
    options = ["nosuid", "nodev", f"mode={mode}"]
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}


def _report(controllers: Sequence[str], version: str) -> IsolationReport:
    """Which walls stand.

    Args:
        controllers: those of the control groups that hold the sandbox.
        version: of `runsc`, in its words.
    """
    from ms_enclave.model import IsolationReport  # slow to import

    def active(name: str) -> str:
        return "on" if name in controllers else "off"

    guards = dict.fromkeys(
        (
            "own_kernel", "user_namespace", "mount_namespace", "pid_namespace",
            "network_namespace", "ipc_namespace", "uts_namespace", "no_new_privs",
            "no_capabilities", "seccomp", "rlimits", "read_only_root", "disk_limit", "no_network",
        ),
        "on",
    )  # fmt: skip
    guards |= {
        "cgroup_memory": active("memory"),
        "cgroup_pids": active("pids"),
        "cgroup_cpu": active("cpu"),
        "lock_limit": active("memory"),  # they are in its own kernel's memory
        "cgroup_namespace": "n/a",
        "cgroup_kill": "n/a",
        "own_ids": "off",
        "hidden_guest": "off",
        "outlives_bombs": "off",
        "landlock": "n/a",
        "layers": "off",
        "zygote": "off",
    }
    versions = {"ms-enclave": __version__, "python": platform.python_version(), "runsc": version}
    return IsolationReport(
        tier=GvisorTier.name, guards=guards, kernel=platform.release(), versions=versions
    )
