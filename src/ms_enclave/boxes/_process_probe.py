"""What this machine offers to the embedded sandbox, and what to do about what it does not.

Two halves: `host_facts` looks (reads /proc, tries things out in a helper that is thrown away), and
`problems` decides, purely. So every situation that was ever met can be a test, wherever it runs.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ms_enclave.boxes._process_network import helpers, missing_for_network, tun_is_usable
from ms_enclave.model.diagnosis import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "ATTEMPTS",
    "KERNEL_FLOOR",
    "USE_LINUX",
    "HostFacts",
    "host_facts",
    "landlock_remedy",
    "problems",
]

KERNEL_FLOOR = (5, 12)
"""`mount_setattr`, by which a whole tree is made read-only at once; everything else is older."""

USE_LINUX = "run ms-enclave on a Linux machine or in a Linux virtual machine (on Windows: WSL 2)"

_OVERLAY_KERNEL = (6, 6)
"""From here on a tmpfs keeps the extended attributes that an unprivileged overlay needs."""

_HELPER_TIMEOUT = 10.0

_MACHINES = ("x86_64", "aarch64")

ATTEMPTS = ("user_namespace", "id_map", "mount", "proc", "network_namespace", "seccomp", "ptrace")
"""What the helper tries out, each on its own: "" in the facts where it works, else the errno."""


@dataclass(frozen=True)
class HostFacts:
    """One machine as the embedded sandbox sees it. None where the kernel has no such setting."""

    platform: str = "linux"
    machine: str = "x86_64"
    kernel: tuple[int, int] = (6, 1)
    container: str = ""
    """What we run in (docker, podman, kubernetes, gvisor, lxc, …), or "" for none that shows."""
    chrooted: bool = False
    uid: int = 1000
    python: str = "/usr/bin/python3"
    """The real path of the interpreter: what an AppArmor profile is for."""
    max_user_namespaces: int | None = None
    unprivileged_userns_clone: int | None = None
    apparmor_restrict_userns: int | None = None
    apparmor_profile: str = ""
    ptrace_scope: int | None = None
    seccomp_mode: int = 0
    """Our own: 2 where whoever started us has put a filter on us."""
    landlock_abi: int = 0
    landlock_error: str = ""
    cgroup_version: str = "none"
    """`v1`, `v2`, `hybrid` or `none`."""
    cgroup_controllers: tuple[str, ...] = ()
    """Those of memory, pids and cpu under which we may make groups of our own."""
    network_helpers: tuple[str, ...] = ("/usr/bin/pasta",)
    """The programs that could give a sandbox a network."""
    tun: bool = True
    """Whether one of them can be given the device for it."""
    attempts: Mapping[str, str] = field(default_factory=dict[str, str])


# --- what to do about it ------------------------------------------------------------------------


def problems(facts: HostFacts) -> list[Problem]:
    """What keeps the embedded sandbox from working, or makes it weaker, the weightiest first.

    Every remedy is complete: commands to copy or settings to change.
    """
    if facts.platform != "linux":
        return [_not_linux(facts)]
    found = [*_blocking(facts), *_weakening(facts)]
    return sorted(found, key=lambda problem: not problem.blocks)


def _not_linux(facts: HostFacts) -> Problem:
    name = {"darwin": "macOS", "win32": "Windows"}.get(facts.platform, facts.platform)
    return Problem(
        what=f"the embedded sandbox is made of Linux namespaces, and this is {name}",
        remedy=USE_LINUX,
    )


def _blocking(facts: HostFacts) -> Iterator[Problem]:
    if facts.machine not in _MACHINES:
        yield Problem(
            what=f"there is no system-call filter for {facts.machine}",
            remedy=f"use a machine of type {' or '.join(_MACHINES)}",
        )
    if facts.kernel < KERNEL_FLOOR:
        yield Problem(
            what=f"Linux {_version(facts.kernel)} is too old: {_version(KERNEL_FLOOR)} is needed",
            remedy="boot a newer kernel (Debian: a kernel from backports; Ubuntu: the HWE kernel)",
        )
    if facts.container == "gvisor":
        yield Problem(
            what="gVisor, in which this runs, does not have what the sandbox is made of",
            remedy="run this container with runtime runc, or ms-enclave outside of it",
        )
        return
    for attempt, explain in _NAMESPACES:
        if _failed(facts, attempt):
            yield explain(facts)
            break  # what comes later fails for the same reason
    if _failed(facts, "seccomp"):
        yield _no_seccomp(facts)


def _failed(facts: HostFacts, attempt: str) -> str:
    return facts.attempts.get(attempt, "")


def _no_user_namespace(facts: HostFacts) -> Problem:
    what = "user namespaces, of which the sandbox is made, are refused"
    if facts.max_user_namespaces == 0:
        return _sysctl(f"{what} (user.max_user_namespaces is 0)", "user.max_user_namespaces", 15000)
    if facts.unprivileged_userns_clone == 0 and facts.uid != 0:
        name = "kernel.unprivileged_userns_clone"
        return _sysctl(f"{what} to ordinary users ({name} is 0)", name, 1)
    if facts.chrooted:
        return Problem(
            what=f"{what} to programs in a chroot",
            remedy="start it with systemd-nspawn, or with pivot_root instead of chroot: "
            "unshare --mount --fork sh -c 'mount --rbind ROOT ROOT && cd ROOT && "
            "pivot_root . . && umount -l . && exec ms-enclave doctor'",
        )
    if _restricted_by_apparmor(facts):
        return _apparmor(facts, what)
    if facts.container or facts.seccomp_mode:
        return _container(facts, f"{what} by the container's own system-call filter")
    error = _failed(facts, "user_namespace")
    if error == "ENOSPC":
        return _sysctl(f"{what}: too many are in use", "user.max_user_namespaces", 15000)
    if error in {"ENOSYS", "EINVAL"}:
        return Problem(
            what=f"{what}: this kernel has none",
            remedy="boot a kernel that was built with CONFIG_USER_NS=y",
        )
    return Problem(
        what=f"{what} ({error})",
        remedy="look for the security module that refuses them: journalctl -k -g denied; "
        "on SELinux: ausearch -m avc -ts recent",
    )


def _no_mounts(facts: HostFacts) -> Problem:
    error = _failed(facts, "mount") or _failed(facts, "network_namespace")
    what = f"namespaces can be made, but nothing may be done in them ({error})"
    if _restricted_by_apparmor(facts) and not facts.container:
        return _apparmor(facts, what)
    if facts.container or facts.seccomp_mode:
        return _container(facts, what)
    return Problem(
        what=what,
        remedy="look for the security module that refuses it: journalctl -k -g denied",
    )


def _no_id_map(facts: HostFacts) -> Problem:
    error = _failed(facts, "id_map")
    what = f"user ids cannot be mapped into a namespace ({error})"
    if facts.uid == 0:
        return Problem(
            what=f"{what}: this root lacks rights",
            remedy="add --cap-add SETUID --cap-add SETGID to docker run, or start ms-enclave as an "
            "ordinary user, who needs neither",
        )
    return Problem(what=what, remedy="look for what refuses it: journalctl -k -g denied")


def _no_proc(facts: HostFacts) -> Problem:
    what = f"a sandbox cannot have a /proc of its own ({_failed(facts, 'proc')})"
    if facts.container:
        return _container(facts, f"{what}: parts of this container's are masked")
    return Problem(
        what=f"{what}: something is mounted over a part of /proc",
        remedy="unmount what `findmnt --submounts /proc` shows below /proc",
    )


_NAMESPACES = (
    ("user_namespace", _no_user_namespace),
    ("mount", _no_mounts),
    ("network_namespace", _no_mounts),
    ("id_map", _no_id_map),
    ("proc", _no_proc),
)


def _no_seccomp(facts: HostFacts) -> Problem:
    what = f"no system-call filter can be set ({_failed(facts, 'seccomp')})"
    return Problem(what=what, remedy="boot a kernel that was built with CONFIG_SECCOMP_FILTER=y")


def _sysctl(what: str, name: str, value: int) -> Problem:
    return Problem(
        what=what,
        remedy=f"sudo sysctl -w {name}={value}   (to stay: echo '{name}={value}' | "
        "sudo tee /etc/sysctl.d/60-ms-enclave.conf)",
        command=f"sudo sysctl -w {name}={value} && echo '{name}={value}' | "
        "sudo tee /etc/sysctl.d/60-ms-enclave.conf",
    )


def _restricted_by_apparmor(facts: HostFacts) -> bool:
    confined = facts.apparmor_profile not in {"", "unconfined"}
    return facts.apparmor_restrict_userns == 1 and facts.uid != 0 and not confined


def _apparmor(facts: HostFacts, what: str) -> Problem:
    profile = (
        "abi <abi/4.0>,\\ninclude <tunables/global>\\n"
        f'profile ms-enclave "{facts.python}" flags=(unconfined) {{\\n  userns,\\n}}\\n'
    )
    command = (
        f"printf '{profile}' | sudo tee /etc/apparmor.d/ms-enclave && "
        "sudo apparmor_parser -r /etc/apparmor.d/ms-enclave"
    )
    return Problem(
        what=f"{what}: AppArmor allows it to listed programs only",
        remedy=f"list this Python: {command}   (or allow it to every program: "
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0)",
        command=command,
    )


_DOCKER_FLAGS = (
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)


def _container(facts: HostFacts, what: str) -> Problem:
    remedies = {
        "docker": f"start the container with: docker run {_DOCKER_FLAGS} …   "
        "(--privileged is not needed)",
        "podman": "start the container with: podman run --security-opt seccomp=unconfined "
        "--security-opt unmask=ALL --security-opt label=disable …",
        "kubernetes": "set in the pod: spec.hostUsers: false, and in the container: "
        "securityContext: {seccompProfile: {type: Unconfined}, "
        "appArmorProfile: {type: Unconfined}, procMount: Unmasked}",
        "lxc": "set on the host: lxc config set NAME security.nesting=true   "
        "(Proxmox: pct set ID --features nesting=1)",
        "systemd-nspawn": "start the container with: systemd-nspawn "
        "--system-call-filter='@mount @sandbox' --private-users=pick …",
    }
    general = (
        "have whoever started this program allow user namespaces and mounts in them: no seccomp "
        f"filter of its own (docker run {_DOCKER_FLAGS} …)"
    )
    return Problem(what=what, remedy=remedies.get(facts.container, general))


# --- what works, but less well ---


def _weakening(facts: HostFacts) -> Iterator[Problem]:
    for check in _WEAKENING:
        problem = check(facts)
        if problem is not None:
            yield problem


def _weak_cgroups(facts: HostFacts) -> Problem | None:
    missing = [name for name in ("memory", "pids", "cpu") if name not in facts.cgroup_controllers]
    if not missing:
        return None
    return Problem(
        what=f"no control groups for {', '.join(missing)}: the limits are kept per process, by "
        "rlimits and by watching",
        remedy=_cgroup_remedy(facts),
        blocks=False,
    )


def _cgroup_remedy(facts: HostFacts) -> str:
    if facts.cgroup_version == "none":
        return "mount them: sudo mount -t cgroup2 none /sys/fs/cgroup"
    if facts.container in {"docker", "kubernetes"}:
        return (
            "start the container with: docker run --cgroupns=private "
            "--security-opt writable-cgroups=true …   (Docker 28 or newer, cgroup v2)"
        )
    if facts.container == "podman":
        return "start the container with: podman run --security-opt unmask=/sys/fs/cgroup …"
    if facts.cgroup_version == "v2" and facts.uid != 0:
        return (
            "start it in a scope of your own: systemd-run --user --scope -p Delegate=yes "
            "ms-enclave …"
        )
    if facts.cgroup_version == "v2":
        return "systemd-run --scope -p Delegate=yes ms-enclave …"
    if facts.uid != 0:
        return "run it as root, or boot with systemd.unified_cgroup_hierarchy=1 (cgroup v2)"
    return "mount the missing v1 controllers, or boot with systemd.unified_cgroup_hierarchy=1"


def _weak_ptrace(facts: HostFacts) -> Problem | None:
    if facts.ptrace_scope == 3:
        return Problem(
            what="ptrace is switched off (kernel.yama.ptrace_scope is 3): sandboxes start more "
            "slowly and cannot be forked while they run",
            remedy="echo 'kernel.yama.ptrace_scope=1' | sudo tee /etc/sysctl.d/60-ms-enclave.conf, "
            "take the 3 out of the other files there, then reboot: it cannot be lowered before",
            blocks=False,
        )
    if not _failed(facts, "ptrace"):
        return None
    remedy = "look for what refuses it: journalctl -k -g denied"
    if facts.container:
        remedy = (
            "start the container with: --security-opt seccomp=unconfined (or --cap-add SYS_PTRACE)"
        )
    return Problem(
        what=f"ptrace is refused ({_failed(facts, 'ptrace')}): sandboxes start more slowly and "
        "cannot be forked while they run",
        remedy=remedy,
        blocks=False,
    )


def _weak_landlock(facts: HostFacts) -> Problem | None:
    if facts.landlock_abi > 0:
        return None
    return Problem(
        what="no Landlock: the tier landlock cannot be had",
        remedy=landlock_remedy(facts),
        blocks=False,
    )


def landlock_remedy(facts: HostFacts) -> str:
    """What to do where there is no Landlock."""
    remedy = "boot a kernel that was built with CONFIG_SECURITY_LANDLOCK=y (Linux 5.13 or newer)"
    if facts.landlock_error == "EOPNOTSUPP":
        remedy = (
            "add landlock to the boot parameter lsm= (now: cat /sys/kernel/security/lsm), as in "
            "lsm=landlock,lockdown,yama,integrity,apparmor,bpf, and reboot"
        )
    elif facts.landlock_error == "EPERM":
        remedy = "let the container's system-call filter pass landlock_create_ruleset and its kin"
    return remedy


def _weak_overlay(facts: HostFacts) -> Problem | None:
    if facts.kernel >= _OVERLAY_KERNEL:
        return None
    return Problem(
        what=f"Linux {_version(facts.kernel)} has no overlays over memory file systems: sandboxes "
        "cannot be forked or rolled back",
        remedy=f"boot Linux {_version(_OVERLAY_KERNEL)} or newer",
        blocks=False,
    )


def _no_network(facts: HostFacts) -> Problem | None:
    missing = missing_for_network(facts.network_helpers, tun=facts.tun)
    if missing is None:
        return None
    return Problem(what=missing[0], remedy=missing[1], blocks=False)


_WEAKENING: tuple[Callable[[HostFacts], Problem | None], ...] = (
    _weak_cgroups,
    _weak_landlock,
    _weak_ptrace,
    _weak_overlay,
    _no_network,
)


def _version(kernel: tuple[int, int]) -> str:
    return f"{kernel[0]}.{kernel[1]}"


# --- looking ------------------------------------------------------------------------------------


def host_facts(python: str | None = None) -> HostFacts:
    """Look at this machine. Blocks, for some hundredths of a second; not for an event loop.

    Args:
        python: the interpreter that makes the sandboxes; ours where None.
    """
    interpreter = python or sys.executable
    real = os.path.realpath(interpreter)
    machine = platform.machine()
    if sys.platform != "linux":
        return HostFacts(platform=sys.platform, machine=machine, python=real)
    abi, landlock_error = _landlock()
    version, controllers = _cgroups()
    return HostFacts(
        machine=machine,
        kernel=_kernel(platform.release()),
        container=_container_kind(),
        chrooted=_chrooted(),
        uid=os.geteuid(),
        python=real,
        max_user_namespaces=_setting("user/max_user_namespaces"),
        unprivileged_userns_clone=_setting("kernel/unprivileged_userns_clone"),
        apparmor_restrict_userns=_setting("kernel/apparmor_restrict_unprivileged_userns"),
        apparmor_profile=_read("/proc/self/attr/current").rstrip("\0\n"),
        ptrace_scope=_setting("kernel/yama/ptrace_scope"),
        seccomp_mode=_own_seccomp_mode(_read("/proc/self/status")),
        landlock_abi=abi,
        landlock_error=landlock_error,
        cgroup_version=version,
        cgroup_controllers=controllers,
        network_helpers=tuple(helpers()),
        tun=tun_is_usable(),
        attempts=_try_out(interpreter),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # a file that is not there says as much as one that is
        return ""


def _setting(name: str) -> int | None:
    text = _read(f"/proc/sys/{name}").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _kernel(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _own_seccomp_mode(status: str) -> int:
    match = re.search(r"^Seccomp:\s*(\d)", status, re.MULTILINE)
    return int(match[1]) if match else 0


def _container_kind() -> str:
    if "gvisor" in _read("/proc/version").lower() or platform.release() == "4.4.0":
        return "gvisor"
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    # The file alone proves nothing: virtual machines are made from images too. The mount does.
    if os.path.exists("/.dockerenv") and "/etc/resolv.conf" in _mount_points():
        return "docker"
    if os.path.exists("/run/.containerenv"):
        return "podman"
    return _read("/run/systemd/container").strip()


def _chrooted() -> bool:
    """Whether our root is not the root of our mounts: then the kernel refuses user namespaces."""
    mounted = _mount_points()
    if mounted and "/" not in mounted:
        return True
    try:
        here, first = os.stat("/"), os.stat("/proc/1/root/")
        same_mounts = os.readlink("/proc/self/ns/mnt") == os.readlink("/proc/1/ns/mnt")
    except OSError:  # an ordinary user may not look; the mounts have to do
        return False
    return same_mounts and (here.st_dev, here.st_ino) != (first.st_dev, first.st_ino)


def _mount_points() -> set[str]:
    return {line.split()[4] for line in _read("/proc/self/mountinfo").splitlines()}


def _landlock() -> tuple[int, str]:
    libc = ctypes.CDLL(None, use_errno=True)
    create_ruleset, version_flag = 444, 1  # the same number on every machine
    abi = libc.syscall(create_ruleset, None, ctypes.c_size_t(0), ctypes.c_uint(version_flag))
    if abi >= 0:
        return abi, ""
    number = ctypes.get_errno()
    return 0, errno.errorcode.get(number, str(number))


def _cgroups() -> tuple[str, tuple[str, ...]]:
    """Which kind there is, and the controllers under which we may make groups."""
    mounts = [line.split(" - ") for line in _read("/proc/self/mountinfo").splitlines()]
    kinds = {tail.split()[0] for _, tail in mounts if tail.startswith("cgroup")}
    if not kinds:
        return "none", ()
    from ms_enclave.spawner import cgroups  # needs Linux

    found = {name for hierarchy in cgroups.own_hierarchies() for name in cgroups.usable(hierarchy)}
    usable = tuple(name for name in ("memory", "pids", "cpu") if name in found)
    if kinds == {"cgroup2"}:
        return "v2", usable
    return ("hybrid" if "cgroup2" in kinds else "v1"), usable


def _try_out(python: str) -> dict[str, str]:
    """Try in a helper process, which ends with what it made, what a sandbox is made of."""
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", _HELPER],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_HELPER_TIMEOUT,
            check=True,
        )
        return {name: str(result) for name, result in json.loads(done.stdout).items()}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"helper": f"{type(error).__name__}: {error}"}


# Plain C through ctypes, each attempt in a child of its own: the helper has one thread, so it may
# fork, and what a child entered ends with it.
_HELPER = r"""
import ctypes, errno, json, os, signal, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
USER, NS, PID, NET, IPC, UTS, CGROUP = (
    0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000)
UID, GID = os.geteuid(), os.getegid()
BASE = 300000

def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")

def write(path, text):
    with open(path, "w") as f:
        f.write(text)

def enter(extra=0):
    must(libc.unshare(USER | extra))
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", "0 %d 1" % UID)
    write("/proc/self/gid_map", "0 %d 1" % GID)

def user_namespace():
    must(libc.unshare(USER))

def id_map():
    if UID:
        return enter()
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(ready[1], b"1" if not libc.unshare(USER) else b"0")
            os.close(go[1])
            os.read(go[0], 1)
        finally:
            os._exit(0)
    try:
        if os.read(ready[0], 1) == b"1":
            for name in ("uid_map", "gid_map"):
                write("/proc/%d/%s" % (child, name), "0 %d 65536" % BASE)
    finally:
        os.close(go[1])
        os.waitpid(child, 0)

def mount():
    enter(NS | IPC | UTS | CGROUP)
    must(libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None))
    must(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 6, b"size=64k"))

def proc():
    enter(NS | PID)
    must(libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None))
    attempt_in_child(lambda: must(libc.mount(b"proc", b"/proc", b"proc", 14, None)))

def network_namespace():
    enter(NET)

def seccomp():
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
    allow = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)
    must(libc.prctl(38, 1, 0, 0, 0))
    must(libc.prctl(22, 2, ctypes.byref(Program(1, allow)), 0, 0))

def ptrace():
    child = os.fork()
    if not child:
        signal.pause()
        os._exit(0)
    try:
        libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        libc.ptrace.restype = ctypes.c_long
        must(libc.ptrace(0x4206, child, None, None))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

def attempt(function):
    r, w = os.pipe()
    child = os.fork()
    if not child:
        os.close(r)
        said = ""
        try:
            function()
        except OSError as error:
            said = errno.errorcode.get(error.errno, str(error.errno))
        except BaseException as error:
            said = repr(error)
        os.write(w, said.encode())
        os._exit(0)
    os.close(w)
    with os.fdopen(r, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(child, 0)
    return said

def attempt_in_child(function):
    said = attempt(function)
    if said:
        raise OSError(getattr(errno, said, errno.EPERM), "refused")

print(json.dumps({f.__name__: attempt(f) for f in (
    user_namespace, id_map, mount, proc, network_namespace, seccomp, ptrace)}))
"""
