"""What the process sandbox asks of its station, purely: plans, limits, documents, reports."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ms_enclave.boxes._environment import BASE_ENVIRONMENT
from ms_enclave.boxes._process_network import REFUSED, helpers
from ms_enclave.errors import CapabilityError, ConfigError
from ms_enclave.spawner import landlock, seccomp
from ms_enclave.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.boxes._process_plan import RuntimePlan
    from ms_enclave.channel.process import KernelRequest, SpawnRequest
    from ms_enclave.model import IsolationReport
    from ms_enclave.model.limits import ResolvedLimits

__all__ = [
    "DEFAULT_USER",
    "box_limits",
    "capabilities",
    "code_document",
    "command_document",
    "isolation_report",
    "kernel_document",
    "landlock_plan",
    "landlock_report",
    "landlock_user",
    "plan_key",
    "program_limits",
    "resolve_user",
    "seeded",
    "station_fields",
    "station_plan",
]

DEFAULT_USER = (1000, 1000)
SLOTS = 1024
_BYTES_PER_INODE = 16384
_FEWEST_INODES = 1024
_HARD_STACK = 64 << 20
_SOFT_STACK = 8 << 20
_BEYOND_DISK = 1 << 20  # so that a full disk says that it is full
_BEYOND_GROUP = 8
_BEYOND_WATCH = 256 << 20  # bytes that a process may be ahead of whoever watches it
_CPU_GRACE = 2  # s that the kernel's own limit is behind the one that the station watches

_NAMES = {"sandbox": 1000, "nobody": 65534}


def box_limits(limits: ResolvedLimits) -> dict[str, Any]:
    """The limits of a whole sandbox: bytes, processes, cores, files."""
    return {
        "memory": limits.memory,
        "pids": limits.pids,
        "cpu": limits.cpu,
        "disk": limits.disk,
        "inodes": _inodes(limits),
    }


def _inodes(limits: ResolvedLimits) -> int:
    """Files, folders and links that may be stored."""
    return max(_FEWEST_INODES, limits.disk // _BYTES_PER_INODE)


def station_fields(
    limits: ResolvedLimits, user: tuple[int, int], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What the station needs to know of one process."""
    return {
        "user": user,
        "memory": limits.memory,
        "pids": limits.pids,
        "cpu": limits.cpu,
        "cpu_time": limits.cpu_time,
        "disk": limits.disk,
        "inodes": _inodes(limits),
        "preload": [],
        "rlimits": rlimits(limits, frozenset(facts["controllers"])),
    }


def rlimits(limits: ResolvedLimits, controllers: frozenset[str]) -> dict[int, tuple[int, int]]:
    """RLIMIT_* of a process, (soft, hard), by Linux number (asm-generic/resource.h).

    Where a control group holds a limit, and can tell that it did, the rlimit stands behind it.

    RLIMIT_CORE is 1 and not 0: a pipe in core_pattern is not stopped by 0. There is never an
    RLIMIT_AS, which breaks node, go and java. Without a memory group the station watches, and
    RLIMIT_DATA stands far enough behind it that whoever takes too much is killed, as by a group,
    before an allocation fails, and that the stacks of many threads still fit.
    """
    largest = limits.file_size
    if largest >= limits.disk:
        largest = limits.disk + _BEYOND_DISK
    processes = limits.pids + (_BEYOND_GROUP if "pids" in controllers else 0)
    found = {
        1: (largest, largest),  # FSIZE
        3: (_SOFT_STACK, _HARD_STACK),
        4: (1, 1),  # CORE
        6: (processes, processes),  # NPROC
        7: (limits.nofile, limits.nofile),
        8: (65536, 65536),  # MEMLOCK
        11: (1024, 1024),  # SIGPENDING
        12: (65536, 65536),  # MSGQUEUE
        13: (0, 0),  # NICE
        14: (0, 0),  # RTPRIO
    }
    if limits.cpu_time is not None:
        seconds = int(limits.cpu_time) + _CPU_GRACE
        found[0] = (seconds, seconds + 1)
    if limits.memory is not None and "memory" not in controllers:
        behind = 2 * limits.memory + _BEYOND_WATCH
        found[2] = (behind, behind)  # DATA
    return found


def program_limits(limits: ResolvedLimits) -> ResolvedLimits:
    """The limits of one program that a guest starts: a full disk is to be found before a file is
    too big."""
    if limits.file_size < limits.disk:
        return limits
    return replace(limits, file_size=limits.disk + _BEYOND_DISK)


def command_document(request: SpawnRequest) -> dict[str, Any]:
    """What a process reads from its channel in order to become a program."""
    return {
        "op": "exec", "argv": list(request.argv or ()), "cwd": request.cwd,
        "env": dict(request.env), "terminal": request.pty is not None,
    }  # fmt: skip


def code_document(request: SpawnRequest, preload: list[str], seed: int | None) -> dict[str, Any]:
    """What a process reads from its channel in order to run Python source."""
    return {
        "op": "run", "code": request.code, "args": list(request.args), "cwd": request.cwd,
        "env": dict(request.env), "preload": preload, "seed": seed,
    }  # fmt: skip


def seeded(request: SpawnRequest, seed: int | None) -> SpawnRequest:
    """The same for an interpreter that starts by itself, which nobody else gives its seed. What it
    has loaded then is `random` alone. The source is compiled apart, so that its lines keep their
    numbers, and what has to stand first in it does."""
    if seed is None or request.code is None:
        return request
    source = f"compile({request.code!r}, '<string>', 'exec')"
    return replace(request, code=f"__import__('random').seed({seed})\nexec({source})\n")


def kernel_document(request: KernelRequest, preload: list[str]) -> dict[str, Any]:
    """What a process reads from its channel in order to be a kernel."""
    return {
        "op": "kernel", "cwd": request.cwd, "env": dict(request.env), "preload": preload,
        "seed": request.seed, "ipython": request.ipython,
    }  # fmt: skip


def landlock_plan(plan: RuntimePlan, places: list[str]) -> dict[str, Any]:
    """The same for the tier `landlock`. `places`: folders in which the sandboxes' may be made."""
    return {
        **station_plan(plan, ""),
        "launcher": "landlock_launcher.py",
        "places": places,
        "newest": landlock.NEWEST,
        "filter": seccomp.filter_for("host").hex(),
    }


def resolve_user(user: str | int | None, root_mode: bool) -> tuple[int, int]:
    """uid and gid inside, for a name or a number.

    Raises:
        ConfigError: there is no such user.
        CapabilityError: root, or another user where the machine gives only one id.
    """
    if user is None:
        return DEFAULT_USER
    if isinstance(user, str):
        number = int(user) if user.isdigit() else _NAMES.get(user, 0 if user == "root" else None)
        if number is None:
            raise ConfigError(f"There is no user {user!r} in the sandbox")
        user = number
    if user == 0:
        raise CapabilityError("root", remedy="run as another user than 0; nothing here needs root")
    if user >= 65536:
        raise ConfigError(f"user must be below 65536, not {user}")
    if user != DEFAULT_USER[0] and not root_mode:
        raise CapabilityError(
            "users", remedy="started without root a sandbox has one user, 1000: leave `user` out"
        )
    return user, user


def landlock_user(user: str | int | None, own: int) -> tuple[int, int]:
    """uid and gid for a name or a number where the sandbox has one user, `own` on the host.

    Raises:
        CapabilityError: another one.
    """
    names = (None, "sandbox", DEFAULT_USER[0], str(DEFAULT_USER[0]), own, str(own))
    if user not in names:
        raise CapabilityError(
            "users", remedy=f"a sandbox of tier landlock has one user, {own}: leave `user` out"
        )
    return own, own


def capabilities(
    facts: Mapping[str, Any], layered: bool, *, network: bool = False
) -> frozenset[str]:
    """What a box can do, from what its station could get."""
    found = {"python", "kernel", "limits", "isolation", "terminals"}
    if network:
        found.add("network")
    if facts["kills_by_group"]:  # a group of version 2, which can also stand still
        found.add("pause")
    if layered:
        found.add("snapshot")
    if facts["traced"] and layered:
        found |= {"fork", "checkpoint"}
    return frozenset(found)


def isolation_report(
    facts: Mapping[str, Any], layered: bool, *, network: bool = False
) -> IsolationReport:
    """Which walls stand, as the station built them."""
    from ms_enclave.model import IsolationReport  # slow to import; a plan can be made without it

    def active(yes: bool) -> str:
        return "on" if yes else "off"

    controllers = set(facts["controllers"])
    guards = dict.fromkeys(
        (
            "user_namespace", "mount_namespace", "pid_namespace", "network_namespace",
            "ipc_namespace", "uts_namespace", "cgroup_namespace", "no_new_privs", "no_capabilities",
            "seccomp", "rlimits", "read_only_root", "disk_limit",
        ),
        "on",
    )  # fmt: skip
    guards |= {
        "own_ids": active(facts["root_mode"]),
        "cgroup_memory": active("memory" in controllers),
        "cgroup_pids": active("pids" in controllers),
        "cgroup_cpu": active("cpu" in controllers),
        "cgroup_kill": active(facts["kills_by_group"]),
        "layers": active(layered),
        "no_network": active(not network),
        "lock_limit": "off",
        "zygote": active(facts["traced"]),
        "landlock": "n/a",
    }
    versions = {"ms-enclave": __version__, "python": platform.python_version()}
    return IsolationReport(
        tier="namespace", guards=guards, kernel=platform.release(), versions=versions
    )


def landlock_report(facts: Mapping[str, Any]) -> IsolationReport:
    """The same for the tier `landlock`."""
    from ms_enclave.model import IsolationReport

    def active(yes: bool) -> str:
        return "on" if yes else "off"

    controllers, version = set(facts["controllers"]), facts["landlock"]
    guards = dict.fromkeys(
        (
            "user_namespace", "mount_namespace", "pid_namespace", "network_namespace",
            "ipc_namespace", "uts_namespace", "cgroup_namespace", "disk_limit",
        ),
        "off",
    )  # fmt: skip
    guards |= {
        "no_new_privs": "on",
        "no_capabilities": "on",
        "seccomp": "on",
        "rlimits": "on",
        "no_network": "on",
        "landlock": "on",
        "landlock_ports": active(version >= 4),
        "landlock_scopes": active(version >= 6),
        "read_only_root": "n/a",
        "own_ids": active(facts["root_mode"]),
        "cgroup_memory": active("memory" in controllers),
        "cgroup_pids": active("pids" in controllers),
        "cgroup_cpu": active("cpu" in controllers),
        "cgroup_kill": active(facts["kills_by_group"]),
        "lock_limit": "off",
        "layers": "n/a",
        "zygote": "off",
    }
    versions = {"ms-enclave": __version__, "python": platform.python_version()}
    return IsolationReport(
        tier="landlock", guards=guards, kernel=platform.release(),
        versions={**versions, "landlock": str(version)},
    )  # fmt: skip


def plan_key(plan: Mapping[str, Any]) -> str:
    """The same for plans that one station can serve."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def environment(plan: RuntimePlan, work: str) -> dict[str, str]:
    """The environment of a process that asks for nothing else."""
    return {**BASE_ENVIRONMENT, **plan.env, "HOME": work}


def station_plan(plan: RuntimePlan, work: str) -> dict[str, Any]:
    """The plan of a station as the launcher reads it (JSON)."""
    return {
        **plan.as_station(),
        "launcher": "launcher.py",
        "work": work,
        "environment": environment(plan, work),
        "slots": SLOTS,
        "hostname": "sandbox",
        "groups": True,
        "layers": True,
        "keep": None,
        "release": __version__,
        "helpers": helpers(),
        "refused": list(REFUSED),
        "filter": seccomp.filter_for("carrier").hex(),
        "init_filter": seccomp.filter_for("namespaces").hex(),
        "reaper_filter": seccomp.reaper_filter().hex(),
    }
