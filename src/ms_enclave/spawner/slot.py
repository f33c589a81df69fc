"""Slots: the namespaces that a sandbox lives in, each held by an init that does nothing but reap.

A slot is made ahead of need and knows nothing of the sandbox that will use it; `furnish` gives it
the sandbox's own file systems when one takes it. The init drops everything it could use before any
code of a user runs beside it: it has no capability, takes a filter, and cannot be traced.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct

from . import _calls as calls
from . import survey, tracer
from .root import STORE
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

    from ._shapes import Masks, Trees, User

    Folder = tuple[str, str, int, tuple[int, int]]  # name, target, mode, owner

__all__ = ["ROOTLESS_ID", "Slot", "SlotError", "furnish", "make_slot"]

ROOTLESS_ID = 1000
_IDS = 65536
_PATIENCE = 10.0
_SHARED_MEMORY = "size=64m,nr_inodes=1k,mode=1777"
_ATTRIBUTES = calls.MOUNT_NOSUID | calls.MOUNT_NODEV
_MASKED = (  # shows the host's hardware, users or kernel; not one of them is needed by a program
    "acpi", "asound", "cmdline", "config.gz", "diskstats", "interrupts", "iomem", "kallsyms",
    "kcore", "key-users", "keys", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats",
    "locks", "modules", "partitions", "sched_debug", "scsi", "slabinfo", "timer_list",
    "timer_stats", "vmallocinfo",
)  # fmt: skip
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


class SlotError(Exception):
    """A slot could not be made. `step` names what was being done."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(f"{step}: {os.strerror(number)}")
        self.step = step
        self.number = number


class Slot:
    """A set of namespaces: the pid of its init, and its number among the station's id ranges.

    `first_id` is the id of the station that is 0 inside, None for a one-id map.
    """

    __slots__ = ("first_id", "init", "namespace", "number")

    def __init__(self, init: int, number: int, first_id: int | None) -> None:
        self.init = init
        self.number = number
        self.first_id = first_id
        self.namespace = os.stat(f"/proc/{init}/ns/pid").st_ino

    def members(self, crowd: survey.Crowd | None = None) -> survey.Members:
        """Every process of the slot but its init."""
        return survey.in_namespace(self.init, self.namespace, crowd)

    def outside(self, user: User) -> int:
        """The station's number for a user of the slot; 0 for the only one of a one-id map."""
        return 0 if self.first_id is None else self.first_id + user[0]


def make_slot(
    number: int,
    root_mode: bool,
    hostname: str,
    init_filter: bytes,
    keep: set[int],
    masks: Masks,
    image: str = "",
) -> Slot:
    """Make a slot. Raises SlotError, and then nothing of it is left.

    `init_filter` is the seccomp program for the init; `keep` the set of CPUs it may use; `masks`
    are an empty file and an empty folder to hide things with; `image` is the folder that becomes
    the slot's root, empty for the station's own.
    """
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    try:
        pid = calls.clone(calls.EVERY_NAMESPACE)
        if pid == 0:
            _become_init(root_mode, hostname, init_filter, keep, masks, image, go_read, ready_write)
        os.close(ready_write)
        ready_write = -1
        _write_map(pid, number, root_mode)
        os.write(go_write, b"g")
        answer = b"init|110"  # ETIMEDOUT
        if select.select([ready_read], [], [], _PATIENCE)[0]:
            answer = os.read(ready_read, 4096)
    finally:
        for descriptor in (ready_read, go_read, go_write, ready_write):
            if descriptor >= 0:
                os.close(descriptor)
    if answer != b"ready":
        tracer.kill(pid)
        step, _, number_text = answer.decode().partition("|")
        raise SlotError(step or "init", int(number_text or 0))
    return Slot(pid, number, number * _IDS if root_mode else None)


def _write_map(pid: int, number: int, root_mode: bool) -> None:
    if root_mode:
        line = f"0 {number * _IDS} {_IDS}\n"
    else:
        _put(f"/proc/{pid}/setgroups", "deny")
        line = f"{ROOTLESS_ID} 0 1\n"
    _put(f"/proc/{pid}/gid_map", line)
    _put(f"/proc/{pid}/uid_map", line)


def _become_init(
    root_mode: bool,
    hostname: str,
    init_filter: bytes,
    keep: set[int],
    masks: Masks,
    image: str,
    go: int,
    ready: int,
) -> NoReturn:
    """The child's side; never returns."""
    step = "start"
    try:
        for step in _set_up(root_mode, hostname, keep, masks, image, go):  # noqa: B007 - told where it ended
            pass
        step = "close_range"
        os.dup2(ready, 3)
        calls.close_range(4)
        step = "give up capabilities"
        for capability in range(64):
            try:
                calls.prctl(24, capability)  # CAPBSET_DROP
            except OSError:
                break
        calls.drop_all_capabilities()
        calls.prctl(4, 0)  # SET_DUMPABLE: nobody inside reads or traces it
        step = "seccomp"
        calls.set_seccomp(init_filter)
        os.write(3, b"ready")
        os.close(3)
        _reap_for_ever()
    except OSError as error:
        os.write(
            3 if step in ("give up capabilities", "seccomp") else ready,
            f"{step}|{error.errno}".encode(),
        )
    finally:
        os._exit(125)


def _set_up(
    root_mode: bool, hostname: str, keep: set[int], masks: Masks, image: str, go: int
) -> Iterator[str]:
    """Everything that needs the slot's capabilities, step by step; yields each step's name."""
    yield "wait for the id map"
    if os.read(go, 1) != b"g":
        raise OSError(32, "the station is gone")
    os.sched_setaffinity(0, keep)
    yield "take the slot's ids"
    user = 0 if root_mode else ROOTLESS_ID
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    os.setsid()
    yield "mount /proc"
    flags = calls.MS_NOSUID | calls.MS_NODEV | calls.MS_NOEXEC
    calls.mount("proc", f"{image}/proc", "proc", flags, "hidepid=2")
    yield "forbid user namespaces"
    _put(f"{image}/proc/sys/user/max_user_namespaces", "0")
    yield "cover parts of /proc"
    _cover_proc(f"{image}/proc", masks)
    yield "mount /dev/shm"
    calls.mount(
        "tmpfs", f"{image}/dev/shm", "tmpfs", calls.MS_NOSUID | calls.MS_NODEV, _SHARED_MEMORY
    )
    yield "mount /dev/pts"
    calls.mount(
        "devpts", f"{image}/dev/pts", "devpts", calls.MS_NOSUID | calls.MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,max=16",
    )  # fmt: skip
    yield "set the host name"
    socket.sethostname(hostname)
    yield "bring up the loopback interface"
    _loopback_up()
    if image:
        yield "enter the given root"
        _enter_root(image)
    os.chdir("/")


def _enter_root(image: str) -> None:
    """Make a folder with all that is mounted below it the root, and leave the other behind.

    A fresh copy of the mounts, because those that came from the station cannot be moved.
    """
    tree = calls.open_tree(image)
    calls.move_mount(tree, image)
    os.close(tree)
    os.chdir(image)
    calls.pivot_root(".", ".")
    calls.umount(".")


def _cover_proc(proc: str, masks: Masks) -> None:
    file, folder = masks
    for name in _MASKED:
        path = f"{proc}/{name}"
        if os.path.isdir(path):
            calls.mount(folder, path, None, calls.MS_BIND)
        elif os.path.exists(path):
            calls.mount(file, path, None, calls.MS_BIND)
    flags = calls.MS_BIND | calls.MS_REMOUNT | calls.MS_RDONLY | calls.MS_NOSUID
    for name in _READ_ONLY:
        path = f"{proc}/{name}"
        if os.path.exists(path):
            calls.mount(path, path, None, calls.MS_BIND)
            calls.mount(path, path, None, flags | calls.MS_NODEV | calls.MS_NOEXEC)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 1)  # IFF_UP
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


def _reap_for_ever() -> NoReturn:
    children = frozenset({signal.SIGCHLD})
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        signal.sigwaitinfo(children)


def _put(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


# --- what a sandbox brings into its slot --------------------------------------------------------


def furnish(
    slot: Slot,
    own_mounts: int,
    work: str,
    size: int,
    inodes: int,
    user: User,
    volumes: Trees,
    *,
    layers: bool,
) -> Store:
    """Give a slot its work folder and /tmp, both on one store of `size` bytes and `inodes` files.

    `own_mounts` is a descriptor of the station's mount namespace, to come back to; `user` the uid
    and gid, inside, that own the work folder; `volumes` are further trees and where they go, and
    are closed; `layers` whether to try overlays.
    Raises OSError, and then no store is left.
    """
    base = slot.first_id or 0
    inside = (user[0] + base, user[1] + base) if slot.first_id is not None else (0, 0)
    folders = [("tmp", "/tmp", 0o1777, (base, base)), ("work", work, 0o755, inside)]
    if work == "/tmp":
        del folders[1]
    trees: Trees = []
    store = -1
    try:
        options = {"size": str(size), "nr_inodes": str(inodes), "mode": "0700"}
        store = calls.make_filesystem("tmpfs", options, _ATTRIBUTES)
        layered = layers and _add_overlays(store, folders, trees)
        if not layered:
            _add_plain_folders(store, folders, trees)
        trees += volumes
        _attach(slot, own_mounts, trees)
    except BaseException:
        if store >= 0:
            os.close(store)
        raise
    finally:
        for tree, _ in {*trees, *volumes}:
            os.close(tree)
    return Store(store, layered, size, inodes)


def _add_overlays(store: int, folders: list[Folder], trees: Trees) -> bool:
    """A layer above the store for each folder; False where the kernel is too old for that."""
    made: Trees = []
    try:
        for name, target, mode, owner in folders:
            made.append((_overlay(store, name, mode, owner), target))
    except OSError:
        for tree, _ in made:
            os.close(tree)
        return False
    trees += made
    return True


def _add_plain_folders(store: int, folders: list[Folder], trees: Trees) -> None:
    """Folders of the store itself: as bounded as overlays, but nothing can be stacked on them.

    The store is shown for a moment, because older kernels copy no part of a detached mount.
    """
    calls.move_mount(store, STORE)
    try:
        for name, target, mode, owner in folders:
            place = f"{STORE}/{name}"
            os.mkdir(place)
            os.chmod(place, mode)
            os.chown(place, *owner)
            trees.append((calls.open_tree(place), target))
    finally:
        calls.umount(STORE)


def _overlay(store: int, name: str, mode: int, owner: tuple[int, int]) -> int:
    layers: list[int] = []
    try:
        for kind in ("lower", "upper", "scratch"):
            path = f"{name}-{kind}"
            os.mkdir(path, 0o700, dir_fd=store)
            layers.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=store))
        for layer in layers[:2]:
            os.fchmod(layer, mode)
            os.fchown(layer, *owner)
        lower, upper, scratch = layers
        return calls.make_filesystem(
            "overlay",
            {"userxattr": None, "lowerdir+": lower, "upperdir": upper, "workdir": scratch},
            _ATTRIBUTES,
        )
    finally:
        for layer in layers:
            os.close(layer)


def _attach(slot: Slot, own_mounts: int, trees: Trees) -> None:
    """Mount detached trees inside a slot; the station steps in and back out."""
    inside = os.open(f"/proc/{slot.init}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.setns(inside, calls.CLONE_NEWNS)
        try:
            for tree, target in trees:
                if not os.path.exists(target):
                    os.makedirs(target, 0o755)
                calls.move_mount(tree, target)
        finally:
            calls.setns(own_mounts, calls.CLONE_NEWNS)
    finally:
        os.close(inside)
