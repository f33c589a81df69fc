"""What a container is made from: a pure function from a config to the engine's own document."""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from ms_enclave.boxes._own_kernel import host_tasks
from ms_enclave.errors import CapabilityError, ConfigError
from ms_enclave.model import IsolationReport, Limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ms_enclave.model import DockerSandboxConfig
    from ms_enclave.model.limits import ResolvedLimits

    Document = dict[str, Any]

__all__ = [
    "LABEL",
    "Dialect",
    "Plan",
    "isolation_report",
    "limits_of",
    "main_command",
    "plan_container",
    "program_limits",
]


LABEL = "ms-enclave."
"""What the names of our labels begin with."""

KEPT_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID")
"""What package managers need of root."""

_BEYOND_DISK = 1 << 20
_PAGE = 4096
_BYTES_PER_FILE = 16384
_FEWEST_FILES = 1024
_LOOPBACK = {"net.ipv6.conf.lo.disable_ipv6": "0"}
"""Engines take `::1` away where a network has no IPv6. Nothing of the host is behind it."""
_CPU_PERIOD = 100_000  # microseconds
_STRICT_LIMITS: Mapping[str, Any] = {
    "memory_limit": "512m", "cpu_limit": 1.0, "disk_limit": "256m", "pids_limit": 128,
}  # fmt: skip
_STRICT_ULIMITS: Mapping[str, int] = {
    "core": 1,  # not 0, which a core pattern that is a pipe ignores
    "memlock": 65536, "msgqueue": 65536, "sigpending": 1024, "nice": 0, "rtprio": 0,
}  # fmt: skip
_STRICT_TMPFS: Mapping[str, str] = {
    "/tmp": "rw,exec,nosuid,nodev,size=64m,nr_inodes=8k,mode=1777",  # noqa: S108 - the container's
    "/run": "rw,noexec,nosuid,nodev,size=1m,nr_inodes=256,mode=1777",
}
_ARCHITECTURES = ("", "amd64", "x86_64", "arm64", "aarch64")
"""Those that our filter of system calls knows; "" is the machine's own."""

_MASKED_BY_ENGINES = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
_MASKED_IN_STRICT = (
    *(
        f"/proc/{name}"
        for name in (
            "interrupts", "kallsyms", "key-users", "iomem", "config.gz", "kpageflags",
            "kpagecount", "kpagecgroup", "vmallocinfo", "slabinfo", "cmdline", "partitions",
            "diskstats", "locks", "modules",
        )
    ),
    # Not its control groups: they are its own, and the guest counts in them what was killed.
    *(
        f"/sys/{name}"
        for name in ("block", "class", "dev", "bus", "module", "kernel", "devices/virtual")
    ),
    "/etc/resolv.conf",  # without a network it would still name the host's
)  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


_OWN_KERNEL = re.compile("runsc|kata|gvisor", re.IGNORECASE)
"""Runtimes, by the names that engines give them, that give a container a kernel of its own."""
_KERNEL_AS_PROGRAM = re.compile("runsc|gvisor", re.IGNORECASE)
"""Those whose kernel is a program. The engine counts each of its threads as one of the container's,
and it ends, and the container with it, when it is refused one."""
_COUNTED = frozenset({"memory", "cpu", "pids"})


def read_engine(info: Mapping[str, Any]) -> tuple[bool, frozenset[str]]:
    """Whether an id in a container is the same one outside, and what the engine can limit.

    Args:
        info: what the engine says of itself (`GET /info`).
    """
    options: list[Any] = info.get("SecurityOptions") or []
    words = [str(option) for option in options]
    rootless = bool(info.get("Rootless")) or any("name=rootless" in word for word in words)
    apart = rootless or any("name=userns" in word for word in words)
    if rootless and str(info.get("CgroupVersion") or "1") == "1":
        return not apart, frozenset()  # only root may have control groups of that version
    names = {"memory": "MemoryLimit", "cpu": "CpuCfsQuota", "pids": "PidsLimit"}
    return not apart, frozenset(one for one, name in names.items() if info.get(name, True))


@dataclass(frozen=True)
class Dialect:
    """In what engines differ that speak the same language."""

    filtering: str | None = None
    """Our profile of system calls as it takes it: the text, or the path of a file; None where it
    gets none of ours."""
    plain_memory: bool = False
    """Whether its folders in memory know neither a number of files nor an owner."""
    hosts_ids: bool = True
    """Whether an id in a container is the same one outside."""
    counts: frozenset[str] = _COUNTED
    """Of memory, processor time and processes, what it can limit."""


@dataclass(frozen=True)
class Plan:
    """How to make one container."""

    document: Document
    """What the engine is given, but for the program that it starts."""
    bounded_folder: bool
    """Whether the working folder is a place of its own, with a size."""
    guards: Mapping[str, str] = field(default_factory=dict[str, str])
    hosts: str | None = None
    """What is to stand in its /etc/hosts, where the engine does not write one."""


def limits_of(config: DockerSandboxConfig) -> ResolvedLimits:
    """The limits of a sandbox: where `hardening` is strict, smaller ones unless they were given."""
    if config.hardening == "strict":
        fields = config.model_fields_set | set(config.resource_limits)
        unsaid = {name: value for name, value in _STRICT_LIMITS.items() if name not in fields}
        return config.resolve_limits(Limits.model_validate(unsaid))
    return config.resolve_limits()


def program_limits(limits: ResolvedLimits) -> ResolvedLimits:
    """The limits of one program: a full working folder is to be found before a file is too big."""
    if limits.file_size < limits.disk:
        return limits
    return replace(limits, file_size=limits.disk + _BEYOND_DISK)


def plan_container(
    config: DockerSandboxConfig,
    limits: ResolvedLimits,
    labels: Mapping[str, str],
    *,
    image_user: str = "",
    strict_user: int,
    folder_is_free: bool = True,
    carried: tuple[str, str] | None = None,
    dialect: Dialect,
) -> Plan:
    """What to ask an engine for.

    Args:
        image_user: who the image wants to be run as.
        strict_user: the number of the user that is only this sandbox's, for `hardening="strict"`.
        folder_is_free: whether the image has nothing where the working folder is to be.
        carried: a volume with a Python, and the folder where it is to be seen.
        dialect: what the engine understands.

    Raises:
        ConfigError: the config asks for what its hardening or its other fields rule out.
        CapabilityError: it asks for what no container of ours does.
    """
    _refuse(config)
    strict = config.hardening == "strict"
    user = f"{strict_user}:{strict_user}" if strict else _text(config.user)
    mounts = [_mount(source, options) for source, options in config.volumes.items()]
    if carried is not None:
        mounts.append(_carried_mount(*carried))
    tmpfs = dict(_STRICT_TMPFS) if strict else {}
    if dialect.plain_memory:
        tmpfs = {path: re.sub(r",nr_inodes=\w+", "", options) for path, options in tmpfs.items()}
    tmpfs.update(config.tmpfs)
    own_folder = folder_is_free and not _is_mounted(config, tmpfs)
    if own_folder:
        size = _size_options(limits.disk, dialect, strict=strict)
        tmpfs[config.working_dir] = _folder_options(size, user or image_user, dialect)
    host: Document = {
        **_walls(config, dialect.filtering, strict=strict),
        **_resources(limits, config.runtime, strict=strict),
        "NetworkMode": (config.network or "none") if config.network_enabled else "none",
        "AutoRemove": config.remove_on_exit,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "none", "Config": {}},  # what it says is read, and fills no disk
        "Init": False,
        "Sysctls": dict(_LOOPBACK),
        "Mounts": mounts,
        "Tmpfs": tmpfs,
        "ExtraHosts": [f"{name}:{address}" for name, address in config.extra_hosts.items()],
        "PortBindings": {port: _bindings(place) for port, place in config.ports.items()},
    }
    # A container without any network costs an engine that manages one for it half of its start, and
    # some engines a deadlock when many come and go. So it is asked for nothing but the namespace,
    # in which the runtime brings up the loopback interface.
    alone = not config.network_enabled and not host["ReadonlyRootfs"]
    if config.runtime:
        host["Runtime"] = config.runtime
    if config.gpus is not None:
        host["DeviceRequests"] = [_gpus(config.gpus)]
    document: Document = {
        "Image": config.image,
        "User": user,
        "NetworkDisabled": alone,
        "WorkingDir": "/",  # engines would make another one, and hide that the image has none
        "Labels": dict(labels),
        "OpenStdin": True,
        # Its end is that of whoever is attached, unless somebody else is to come.
        "StdinOnce": config.on_owner_death != "keep",
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "Cmd": [],
        "StopSignal": "SIGKILL",
        "Healthcheck": {"Test": ["NONE"]},
        "ExposedPorts": {port: {} for port in config.ports},
        "HostConfig": host,
    }
    as_root = (user or image_user).partition(":")[0] in ("", "0", "root")
    return Plan(
        document,
        own_folder,
        _guards(config, host, dialect, own_folder=own_folder, as_root=as_root),
        _hosts(config.extra_hosts) if alone else None,
    )


def _hosts(more: Mapping[str, str]) -> str:
    """As engines write it for a container without a network."""
    rows = [
        ("127.0.0.1", "localhost"),
        ("::1", "localhost ip6-localhost ip6-loopback"),
        *((address, name) for name, address in more.items()),
    ]
    return "".join(f"{address}\t{names}\n" for address, names in rows)


def _refuse(config: DockerSandboxConfig) -> None:
    if config.isolation not in (None, "best"):
        raise CapabilityError(
            f"isolation={config.isolation}", remedy="choose the engine's `runtime` instead"
        )
    network = config.network if config.network_enabled else None
    if network is not None and (network == "host" or network.startswith("container:")):
        raise ConfigError(
            f"network={network!r} would be a network that is not the sandbox's own",
            remedy="use 'bridge', or make one: docker network create",
        )
    if config.ports and not network:
        raise ConfigError(
            "`ports` needs a network, and sandboxes have none by default",
            remedy="set network_enabled=True, or reach the port by sandbox.connect(port)",
        )
    if config.hardening != "strict":
        return
    given = [
        name
        for name in ("volumes", "ports", "privileged", "cap_add", "gpus", "user")
        if getattr(config, name)
    ]
    if given:
        raise ConfigError(
            f"hardening='strict' does not allow {', '.join(given)}",
            remedy="leave that out, or use hardening='default'",
        )


def _walls(config: DockerSandboxConfig, filtering: str | None, *, strict: bool) -> Document:
    if config.privileged:
        return {"Privileged": True, "IpcMode": "private", "ReadonlyRootfs": config.read_only}
    options = ["no-new-privileges:true"]
    if (config.platform or "").partition("/")[2].partition("/")[0] in _ARCHITECTURES:
        options += [f"seccomp={filtering}"] if filtering else []
    walls: Document = {
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": [] if strict else sorted({*KEPT_CAPABILITIES, *config.cap_add}),
        "SecurityOpt": options,
        "ReadonlyRootfs": strict or config.read_only,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "OomScoreAdj": 500,
    }
    if strict:
        walls["MaskedPaths"] = [*_MASKED_BY_ENGINES, *_MASKED_IN_STRICT]
        walls["ReadonlyPaths"] = list(_READ_ONLY)
    return walls


def _resources(limits: ResolvedLimits, runtime: str | None, *, strict: bool) -> Document:
    is_program = _KERNEL_AS_PROGRAM.search(runtime or "")
    pids = host_tasks(limits.pids) if is_program else limits.pids
    found: Document = {"PidsLimit": pids, "ShmSize": 64 << 20}
    if limits.memory is not None:
        found |= {"Memory": limits.memory, "MemorySwap": limits.memory}  # the same: no swap
    if limits.cpu is not None:  # as a quota: more cores than the machine has are no mistake
        found |= {"CpuPeriod": _CPU_PERIOD, "CpuQuota": max(1000, int(limits.cpu * _CPU_PERIOD))}
    if strict:
        found["Ulimits"] = [
            {"Name": name, "Soft": value, "Hard": value} for name, value in _STRICT_ULIMITS.items()
        ]
    return found


def _text(user: str | int | None) -> str:
    return "" if user is None else str(user)


def _size_options(size: int, dialect: Dialect, *, strict: bool) -> str:
    """How much a working folder holds. A file without content takes no room, but memory of the
    kernel's: so there is a number of files, too, by default one for each page of room."""
    if dialect.plain_memory:
        return f"size={size}"
    files = size // (_BYTES_PER_FILE if strict else _PAGE)
    return f"size={size},nr_inodes={max(_FEWEST_FILES, files)}"


def _folder_options(size: str, user: str, dialect: Dialect) -> str:
    """Mount options of a working folder that belongs to the sandbox's user."""
    common = f"rw,exec,nosuid,nodev,{size}"
    name, _, group = user.partition(":")
    if name in ("", "root", "0"):
        return f"{common},mode=0755"
    if dialect.plain_memory or not name.isdigit():  # only the image knows the number
        return f"{common},mode=1777"
    return f"{common},mode=0755,uid={name},gid={group if group.isdigit() else name}"


def _is_mounted(config: DockerSandboxConfig, tmpfs: Mapping[str, str]) -> bool:
    """Whether something of the config's shows at the working folder, or in it."""
    targets = [*(options["bind"] for options in config.volumes.values()), *tmpfs]
    return any(
        _below(config.working_dir, target) or _below(target, config.working_dir)
        for target in targets
    )


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _mount(source: str, options: Mapping[str, str]) -> Document:
    is_folder = source.startswith("/")
    return {
        "Type": "bind" if is_folder else "volume",
        "Source": posixpath.normpath(source) if is_folder else source,
        "Target": options["bind"],
        "ReadOnly": options["mode"] == "ro",
    }


def _carried_mount(volume: str, target: str) -> Document:
    # Without a copy of what the image has there: a volume that is not there must not look like one.
    return {
        "Type": "volume", "Source": volume, "Target": target, "ReadOnly": True,
        "VolumeOptions": {"NoCopy": True},
    }  # fmt: skip


def _bindings(place: Any) -> list[Document]:
    if isinstance(place, list):
        parts = cast("list[Any]", place)
        if len(parts) == 2 and isinstance(parts[0], str):
            return [{"HostIp": parts[0], "HostPort": _port(parts[1])}]
        return [binding for part in parts for binding in _bindings(part)]
    return [{"HostIp": "127.0.0.1", "HostPort": _port(place)}]


def _port(number: int | None) -> str:
    return str(number or "")


def _gpus(wanted: int | list[str] | str) -> Document:
    request: Document = {"Capabilities": [["gpu"]]}
    if isinstance(wanted, list):
        return {**request, "DeviceIDs": wanted}
    return {**request, "Count": -1 if wanted == "all" else wanted}


def main_command(config: DockerSandboxConfig, own_entrypoint: Sequence[str]) -> list[str] | None:
    """What is to run from the start on; None for nothing.

    Args:
        own_entrypoint: the image's.
    """
    if config.command is None and config.entrypoint is None:
        return None
    entrypoint = list(own_entrypoint) if config.entrypoint is None else _words(config.entrypoint)
    return [*entrypoint, *_words(config.command or [])] or None


def _words(given: str | list[str]) -> list[str]:
    try:
        return shlex.split(given) if isinstance(given, str) else list(given)
    except ValueError as error:
        raise ConfigError(f"command or entrypoint {given!r}: {error}") from None


def _guards(
    config: DockerSandboxConfig,
    host: Document,
    dialect: Dialect,
    *,
    own_folder: bool,
    as_root: bool,
) -> dict[str, str]:
    def active(yes: bool) -> str:
        return "on" if yes else "off"

    options: list[str] = host.get("SecurityOpt", [])
    return {
        **dict.fromkeys(
            ("mount_namespace", "pid_namespace", "network_namespace", "ipc_namespace",
             "uts_namespace", "rlimits"),
            "on",
        ),
        "cgroup_namespace": active(not config.privileged),
        "user_namespace": active(not dialect.hosts_ids and not config.privileged),
        "hidden_guest": active(as_root and not config.privileged),
        "masked_proc": active("MaskedPaths" in host),
        "cgroup_pids": active("pids" in dialect.counts),
        "cgroup_memory": active("Memory" in host and "memory" in dialect.counts),
        "cgroup_cpu": active("CpuQuota" in host and "cpu" in dialect.counts),
        "no_new_privs": active(not config.privileged),
        "no_capabilities": active(not config.privileged and not host["CapAdd"]),
        "seccomp": active(not config.privileged),
        "own_seccomp": active(any(option.startswith("seccomp=") for option in options)),
        "read_only_root": active(host["ReadonlyRootfs"]),
        "own_ids": active(config.hardening == "strict"),
        "disk_limit": active(own_folder),
        "file_limit": active(own_folder and not dialect.plain_memory),
        "lock_limit": "off",
        "no_network": active(host["NetworkMode"] == "none"),
    }  # fmt: skip


def isolation_report(plan: Plan, runtime: str, kernel: str) -> IsolationReport:
    """What stands around a container; `runtime` is the engine's name of what runs it."""
    guards = {**plan.guards, "own_kernel": "off"}
    if _OWN_KERNEL.search(runtime):
        # Its kernel answers the programs, and passes no filter on to the machine's for them.
        guards |= {"own_kernel": "on", "seccomp": "n/a", "own_seccomp": "n/a"}
        guards["lock_limit"] = guards["cgroup_memory"]  # they are in that kernel's memory
    return IsolationReport(
        tier="container", guards=guards, kernel=kernel, versions={"runtime": runtime}
    )
