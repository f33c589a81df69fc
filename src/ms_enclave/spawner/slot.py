"""Slots: the namespaces that a sandbox lives in, each held by an init that does nothing but reap.

A slot is made ahead of need and knows nothing of the sandbox that will use it; `furnish` gives it
the sandbox's own file systems when one takes it. The init drops everything it could use before any
code of a user runs beside it: it has no capability, takes a filter, and cannot be traced.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from . import _calls as calls
from . import survey, tracer
from .root import STORE
from .steps import EARLIER, Program, Step, StepError
from .store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import Masks, Trees, User
    from .layer import Layer
    from .seed import Forks, Home, Seed

    Folder = tuple[str, str, int, tuple[int, int]]  # name, target, mode, owner

__all__ = [
    "ROOTLESS_ID",
    "Slot",
    "SlotError",
    "folder_names",
    "furnish",
    "init_steps",
    "make_slot",
    "network_steps",
]

ROOTLESS_ID = 1000
_IDS = 65536
_SHARED_MEMORY = b"size=64m,nr_inodes=1k,mode=1777"
_ATTRIBUTES = calls.MOUNT_NOSUID | calls.MOUNT_NODEV
_NOATIME = 0x10  # MOUNT_ATTR_NOATIME: to have looked into a folder leaves nothing behind
_MASKED = (  # shows the host's hardware, users or kernel; not one of them is needed by a program
    "acpi", "asound", "cmdline", "config.gz", "diskstats", "interrupts", "iomem", "kallsyms",
    "kcore", "key-users", "keys", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats",
    "locks", "modules", "partitions", "sched_debug", "scsi", "slabinfo", "timer_list",
    "timer_stats", "vmallocinfo",
)  # fmt: skip
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
"""Errors that say what is missing now, and nothing of what the kernel can do."""
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


class SlotError(Exception):
    """A slot could not be made. `step` names what was being done."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(f"{step}: {os.strerror(number)}")
        self.step = step
        self.number = number


class Slot:
    """A set of namespaces: the pid of its init, and its number among the station's id ranges.

    `first_id` is the id of the station that is 0 inside, None for a one-id map; `home` is where its
    network namespace is from, and may be of use again, None for one of its own.
    """

    __slots__ = ("first_id", "home", "init", "namespace", "number")

    def __init__(self, init: int, number: int, first_id: int | None, home: Home | None) -> None:
        self.init = init
        self.number = number
        self.first_id = first_id
        self.home = home
        self.namespace = os.stat(f"/proc/{init}/ns/pid").st_ino

    @property
    def servants(self) -> int:
        """Processes of ours that the kernel counts as the sandbox's user's: with one id, init."""
        return 1 if self.first_id is None else 0

    def members(self, crowd: survey.Crowd | None = None) -> survey.Members:
        """Every process of the slot but its init."""
        return survey.in_namespace(self.init, self.namespace, crowd)

    def outside(self, user: User) -> int:
        """The station's number for a user of the slot; 0 for the only one of a one-id map."""
        return 0 if self.first_id is None else self.first_id + user[0]


def make_slot(number: int, root_mode: bool, source: Forks | Seed) -> Slot:
    """Make a slot with an init from `source`. Raises SlotError, and then nothing of it is left."""
    pid, home = 0, None
    try:
        pid, home = source.bear()
        _write_map(pid, number, root_mode)
        source.finish(pid)
        return Slot(pid, number, number * _IDS if root_mode else None, home)
    except BaseException as error:
        if pid > 0:
            tracer.kill(pid)
        if home is not None:
            home.end()
        if isinstance(error, StepError):
            raise SlotError(error.step, error.number) from None
        if isinstance(error, tracer.TraceError):
            raise SlotError(str(error), errno.ESRCH) from None
        raise


def _write_map(pid: int, number: int, root_mode: bool) -> None:
    if root_mode:
        line = f"0 {number * _IDS} {_IDS}\n"
    else:
        _put(f"/proc/{pid}/setgroups", "deny")
        line = f"{ROOTLESS_ID} 0 1\n"
    _put(f"/proc/{pid}/gid_map", line)
    _put(f"/proc/{pid}/uid_map", line)


def _put(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def init_steps(
    root_mode: bool,
    hostname: str,
    keep: set[int],
    masks: Masks,
    image: str,
    init_filter: bytes,
    descriptors: int,
) -> list[Step]:
    """What an init does before any code of a user runs beside it.

    `keep` is the set of CPUs it may use; `masks` are an empty file and an empty folder to hide
    things with; `image` is the folder that becomes the slot's root, empty for the station's own;
    `init_filter` the seccomp program that it reaps under; it keeps `descriptors` descriptors.
    """
    user = 0 if root_mode else ROOTLESS_ID
    flags = calls.MS_NOSUID | calls.MS_NODEV
    on_terminals = calls.MS_NOSUID | calls.MS_NOEXEC
    terminals = b"newinstance,ptmxmode=0666,mode=0620,max=16"
    return [
        Step("set its processors", "sched_setaffinity", 0, *_processors(keep)),
        Step("take the slot's ids", "setresgid", user, user, user),
        Step("take the slot's ids", "setresuid", user, user, user),
        Step("take the slot's ids", "setsid"),
        _mount("proc", f"{image}/proc", "proc", flags | calls.MS_NOEXEC, b"hidepid=2"),
        *_write("forbid user namespaces", f"{image}/proc/sys/user/max_user_namespaces", b"0"),
        *_cover_proc(f"{image}/proc", masks),
        _mount("tmpfs", f"{image}/dev/shm", "tmpfs", flags, _SHARED_MEMORY),
        _mount("devpts", f"{image}/dev/pts", "devpts", on_terminals, terminals),
        Step("set the host name", "sethostname", hostname.encode(), len(hostname.encode())),
        *(_enter_root(image.encode()) if image else ()),
        Step("enter the root", "chdir", b"/"),
        Step("close_range", "close_range", descriptors, 2**32 - 1, 0),
        *_give_up(init_filter),
    ]


def _mount(source: str, target: str, kind: str | None, flags: int, data: bytes | None) -> Step:
    name = None if kind is None else kind.encode()
    return Step(
        f"mount {target}", "mount", os.fsencode(source), os.fsencode(target), name, flags, data
    )


def _write(title: str, path: str, text: bytes) -> list[Step]:
    return [
        Step(title, "openat", -100, os.fsencode(path), os.O_WRONLY, 0),
        Step(title, "write", EARLIER, text, len(text)),
    ]


def _processors(keep: set[int]) -> tuple[int, bytes]:
    length = max(keep) // 64 * 8 + 8
    return length, sum(1 << cpu for cpu in keep).to_bytes(length, "little")


def _cover_proc(proc: str, masks: Masks) -> list[Step]:
    """What is there is the same in every /proc, so the station's own is looked at."""
    file, folder = masks
    made: list[Step] = []
    for name in _MASKED:
        if os.path.exists(f"/proc/{name}"):
            cover = folder if os.path.isdir(f"/proc/{name}") else file
            made.append(_mount(cover, f"{proc}/{name}", None, calls.MS_BIND, None))
    flags = calls.MS_BIND | calls.MS_REMOUNT | calls.MS_RDONLY | calls.MS_NOSUID
    for name in _READ_ONLY:
        path = f"{proc}/{name}"
        if os.path.exists(f"/proc/{name}"):
            made.append(_mount(path, path, None, calls.MS_BIND, None))
            made.append(_mount(path, path, None, flags | calls.MS_NODEV | calls.MS_NOEXEC, None))
    return made


def network_steps() -> list[Step]:
    """What a new network namespace wants: a loopback interface that is up."""
    title = "bring up the loopback interface"
    request = struct.pack("16sH22x", b"lo", 1)  # IFF_UP
    return [
        Step(title, "socket", socket.AF_INET, socket.SOCK_DGRAM, 0),
        Step(title, "ioctl", EARLIER, 0x8914, request),  # SIOCSIFFLAGS
    ]


def _enter_root(image: bytes) -> list[Step]:
    """Make a folder with all that is mounted below it the root, and leave the other behind.

    A fresh copy of the mounts, because those that came from the station cannot be moved.
    """
    title = "enter the given root"
    return [
        Step(title, "open_tree", -100, image, calls.TREE_COPY),
        Step(title, "move_mount", EARLIER, b"", -100, image, 4),  # F_EMPTY_PATH
        Step(title, "chdir", image),
        Step(title, "pivot_root", b".", b"."),
        Step(title, "umount2", b".", 2),  # MNT_DETACH
    ]


def _give_up(init_filter: bytes) -> list[Step]:
    title = "give up capabilities"
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    return [
        *(Step(title, "prctl", 24, number, 0, 0, 0) for number in range(last + 1)),  # CAPBSET_DROP
        Step(title, "capset", *calls.NO_CAPABILITIES),
        Step(title, "prctl", 4, 0, 0, 0, 0),  # SET_DUMPABLE: nobody inside reads or traces it
        Step("seccomp", "prctl", 38, 1, 0, 0, 0),  # NO_NEW_PRIVS
        Step("seccomp", "seccomp", 1, 0, Program(init_filter)),  # SET_MODE_FILTER
    ]


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
    below: Layer | None = None,
) -> Store:
    """Give a slot its work folder and /tmp, both on one store of `size` bytes and `inodes` files.

    `own_mounts` is a descriptor of the station's mount namespace, to come back to; `user` the uid
    and gid, inside, that own the work folder; `volumes` are further trees and where they go, and
    are closed; `layers` whether to try overlays; `below` has what the folders begin with, which
    takes overlays.
    Raises OSError, and then no store is left.
    """
    base = slot.first_id or 0
    inside = (user[0] + base, user[1] + base) if slot.first_id is not None else (0, 0)
    folders = [("tmp", "/tmp", 0o1777, (base, base)), ("work", work, 0o755, inside)]
    del folders[len(folder_names(work)) :]
    trees: Trees = []
    store = -1
    try:
        options = {"size": str(size), "nr_inodes": str(inodes), "mode": "0700"}
        attributes = _ATTRIBUTES if layers else _ATTRIBUTES | _NOATIME
        store = calls.make_filesystem("tmpfs", options, attributes)
        if below is not None:
            layered = True
            _add_forked_overlays(store, folders, trees, slot, below)
        else:
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


def folder_names(work: str) -> tuple[str, ...]:
    """Folders of a store that a slot shows as they are, where they have no layers above them."""
    return ("tmp",) if work == "/tmp" else ("tmp", "work")


def _add_overlays(store: int, folders: list[Folder], trees: Trees) -> bool:
    """A layer above the store for each folder; False where the kernel is too old for that."""
    made: Trees = []
    try:
        for name, target, mode, owner in folders:
            made.append((_overlay(store, name, mode, owner, None), target))
    except OSError as error:
        for tree, _ in made:
            os.close(tree)
        if error.errno in _SCARCE:
            raise
        return False
    trees += made
    return True


def _add_forked_overlays(
    store: int, folders: list[Folder], trees: Trees, slot: Slot, below: Layer
) -> None:
    """The same above what another sandbox had stored."""
    base = slot.first_id or 0
    users = os.open(f"/proc/{slot.init}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    shown = -1
    try:
        shown = below.show(slot.first_id, users)
        for name, target, _, _ in folders:
            mode, (uid, gid) = below.owner(name)
            lower = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=shown)
            try:
                trees.append((_overlay(store, name, mode, (base + uid, base + gid), lower), target))
            finally:
                os.close(lower)
    finally:
        os.close(users)
        if shown >= 0:
            os.close(shown)


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
        try:
            calls.umount(STORE)
        except OSError as error:  # the next slot would see it
            calls.end_at_once(f"the store of a sandbox cannot be hidden again: {error}")


def _overlay(store: int, name: str, mode: int, owner: tuple[int, int], below: int | None) -> int:
    """A detached overlay of folders of the store; above one of another store, if that is given."""
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
        bottom = lower if below is None else below
        return calls.make_filesystem(
            "overlay",
            {"userxattr": None, "lowerdir+": bottom, "upperdir": upper, "workdir": scratch},
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
            calls.come_back(own_mounts, calls.CLONE_NEWNS)
    finally:
        os.close(inside)
