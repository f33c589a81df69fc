"""Control groups of both versions, as the launcher prepares them and the station uses them.

The launcher (who may be host root) makes one group a station in every hierarchy that it can write
and hands over a descriptor of each; the station makes groups for sandboxes and their runs below it
and never names a path. On version 1 the limits sit in `memory`, `pids`, `cpu` and `cpuacct`, and
killing in the bare version 2 tree, where `cgroup.kill` works without any controller.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from . import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from ._shapes import GroupRow

__all__ = [
    "CALLERS",
    "PREFIX",
    "Figures",
    "Group",
    "Hierarchy",
    "Station",
    "discover",
    "end_left",
    "enter",
    "own_hierarchies",
    "prepare",
    "remove",
    "seat",
    "sweep",
    "usable",
]

PREFIX = "ms-enclave-"
"""How the name of every station's group begins."""

CALLERS = "enclave-callers"
"""Where those wait that were in a delegated group of version 2, which may hold groups or processes
but not both; the groups of stations are beside it."""

_VERSION_1 = ("memory", "pids", "cpu", "cpuacct")
_VERSION_2 = ("memory", "pids", "cpu")
_ROUNDS = 10
_MOST_SPARE = 64
_RESIDUE = 1 << 20  # bytes that the kernel may keep charged to an empty group
_OUR_WANT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
_PAGE = 4096
_MOST_TASKS = 1 << 20  # bytes of their numbers
_PERIOD = 100_000  # microseconds, the kernel's default for the bandwidth controller


class Hierarchy:
    """One mounted tree: its version, the controllers that work in it, a group in it, where its
    maker is, and where it is mounted."""

    __slots__ = ("controllers", "descriptor", "home", "path", "top", "version")

    def __init__(
        self, version: int, controllers: list[str], path: str, descriptor: int = -1, top: str = ""
    ) -> None:
        self.version = version
        self.controllers = controllers
        self.path = path
        self.home = path
        self.top = top
        self.descriptor = descriptor

    @property
    def late(self) -> bool:
        """Whether a process that is moved joins its group here only when it has been set up."""
        return not {"cpu", "pids"}.isdisjoint(self.controllers)

    @property
    def holds_time(self) -> bool:
        """Whether a group here can be left without processor time."""
        return "cpu" in self.controllers

    def row(self) -> GroupRow:
        return {"version": self.version, "controllers": self.controllers, "fd": self.descriptor}


class Figures:
    """What a group used: s of processor time, bytes and processes at the peak, kills for want of
    memory, and forks refused; None where nothing counts it."""

    __slots__ = ("cpu", "oom_kills", "peak_memory", "processes", "refused_forks")

    def __init__(self) -> None:
        self.cpu: float | None = None
        self.peak_memory: int | None = None
        self.processes: int | None = None
        self.oom_kills = 0
        self.refused_forks = 0


# --- the launcher's half ------------------------------------------------------------------------


def discover(mounts: str, own: str) -> list[Hierarchy]:
    """The hierarchies of /proc/self/mountinfo and the caller's groups in /proc/self/cgroup."""
    groups: dict[str, str] = {}
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            groups[name] = path
    found: list[Hierarchy] = []
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, point = left.split()[3:5]
        if ".." in root.split("/"):
            continue  # mounted from outside of our cgroup namespace: where we are in it is not told
        if kind == "cgroup2" and "" in groups:
            path = _below(point, root, groups[""])
            found.append(Hierarchy(2, [], path.removesuffix(f"/{CALLERS}"), top=point))
        elif kind == "cgroup":
            names = [name for name in options.split(",") if name in _VERSION_1]
            if names and names[0] in groups:
                found.append(Hierarchy(1, names, _below(point, root, groups[names[0]])))
    return found


def own_hierarchies() -> list[Hierarchy]:
    """Where the caller may make groups, in every hierarchy that there is: where it is.

    In version 2 a group that somebody else arranges holds processes and so no groups with limits;
    whoever may write at the top of the machine's tree goes there, as engines of containers do.
    """
    with open("/proc/self/mountinfo") as mounts, open("/proc/self/cgroup") as own:
        found = discover(mounts.read(), own.read())
    for hierarchy in found:
        top = hierarchy.top
        if hierarchy.version == 2 and not (_is_delegated(hierarchy.path) or _has_type(top)):
            hierarchy.path = top if os.access(top, os.W_OK) else hierarchy.path
    return found


def usable(hierarchy: Hierarchy) -> list[str]:
    """The controllers that groups made there would have. Changes nothing."""
    path = hierarchy.path
    if not os.access(path, os.W_OK):
        return []
    if hierarchy.version == 1:
        return hierarchy.controllers
    if _has_type(path) and not _is_delegated(path):
        return []
    try:
        with open(f"{path}/cgroup.controllers") as file:
            offered = file.read().split()
    except OSError:
        return []
    writable = os.access(f"{path}/cgroup.procs", os.W_OK)
    return [name for name in _VERSION_2 if writable and name in offered]


def sweep(found: list[Hierarchy]) -> bool:
    """Remove what dead stations left; False if something of theirs cannot be removed yet.

    A living station holds a lock on its groups, whoever may see them, so it is never touched.
    """
    clean = True
    for hierarchy in found:
        try:
            names = [name for name in os.listdir(hierarchy.path) if name.startswith(PREFIX)]
        except OSError:
            continue
        for name in names:
            clean = _sweep_one(f"{hierarchy.path}/{name}") and clean
    return clean


def end_left(found: list[Hierarchy], name: str) -> bool:
    """Kill whoever is in the groups called `name` and remove them; False while somebody is there.

    For whoever made the station, when its launcher is dead: the lock of these groups, which the
    station holds to its end, does not say that they are somebody else's.
    """
    clean = True
    for hierarchy in found:
        path = f"{hierarchy.path}/{name}"
        try:
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # there is none, or it is gone
        try:
            _kill_all(held)
            remove(path)
        except OSError:
            clean = False
        finally:
            os.close(held)
    return clean


def left_in(hierarchy: Hierarchy) -> list[str]:
    """Groups of stations that are dead, and of launchers that are just being made. Only looks."""
    try:
        names = sorted(name for name in os.listdir(hierarchy.path) if name.startswith(PREFIX))
    except OSError:
        return []
    paths = [f"{hierarchy.path}/{name}" for name in names]
    return [path for path in paths if not _is_held(path)]


def remove_left(path: str) -> bool:
    """Remove a group that `left_in` found, unless somebody holds it; whether it is gone."""
    _sweep_one(path)
    return not os.path.exists(path)


def _is_held(path: str) -> bool:
    try:
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True  # it has just gone, or is not ours to see
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return True
    finally:
        os.close(opened)
    return False


def _sweep_one(path: str) -> bool:
    try:
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return True  # it has just gone, or is not ours to see
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _kill_all(held)
        remove(path)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(held)
    return True


def _kill_all(group: int) -> None:
    """Kill whoever is in a group or below it, where the kernel does that (version 2)."""
    with contextlib.suppress(OSError):
        file = os.open("cgroup.kill", os.O_WRONLY | os.O_CLOEXEC, dir_fd=group)
        try:
            os.write(file, b"1")
        finally:
            os.close(file)


def _below(point: str, root: str, group: str) -> str:
    """Where a group is seen, for a mount that shows the hierarchy from `root` on."""
    inside = os.path.relpath(group, root) if root != "/" else group.lstrip("/")
    return point if inside in ("", ".") or inside.startswith("..") else f"{point}/{inside}"


_RAN_OUT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EIO})
"""What says nothing of whether a group may be had."""


def prepare(found: list[Hierarchy], name: str, owner: int | None) -> list[Hierarchy]:
    """Make a group called `name` in each hierarchy where that works, for uid `owner` to use.

    Raises OSError, with nothing left, where one is ours to use and cannot be made ready.
    """
    ready: list[Hierarchy] = []
    try:
        for hierarchy in found:
            made = _prepare_one(hierarchy, name, owner)
            if made is not None:
                ready.append(made)
    except BaseException:
        for made in ready:
            os.close(made.descriptor)
            remove(made.path)
        raise
    return ready


def _prepare_one(hierarchy: Hierarchy, name: str, owner: int | None) -> Hierarchy | None:
    """The same in one; None where that is not ours to use: the attestation says which guards there
    are."""
    path = f"{hierarchy.path}/{name}"
    try:
        controllers = hierarchy.controllers
        if hierarchy.version == 2:
            controllers = _enable_if_ours(hierarchy.path)
        os.mkdir(path)
    except OSError as error:
        if error.errno in _RAN_OUT:
            raise
        return None
    opened = -1
    try:
        opened = _lock_group(path)
        if hierarchy.version == 2:
            os.mkdir(f"{path}/station")
        if owner is not None:
            _give(path, owner)
    except BaseException:
        if opened >= 0:
            os.close(opened)
        with contextlib.suppress(OSError):  # a sweeper was here first, or will be
            remove(path)
        raise
    made = Hierarchy(hierarchy.version, list(controllers), path, opened)
    leaf = f"{hierarchy.path}/{CALLERS}"
    made.home = leaf if os.path.isdir(leaf) else hierarchy.home
    return made


def _lock_group(path: str) -> int:
    """A descriptor of a new group with the lock that keeps sweepers away until the station, too,
    has gone. Between its making and its locking a sweeper may take it for a dead one's."""
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        try:
            opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        is_there = False
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                is_there = os.stat(path).st_ino == os.fstat(opened).st_ino
        finally:
            if not is_there:
                os.close(opened)
        if is_there:
            return opened


def enter(group: Hierarchy) -> None:
    """Before the station is made: be where it must see all of its groups from.

    Its cgroup namespace begins where its maker is, and nothing is moved out of it or into it.
    """
    if group.version == 2 and group.home != os.path.dirname(group.path):
        _put(f"{group.path}/cgroup.procs", "0")


def seat(group: Hierarchy, pid: int) -> None:
    """Put the station into its leaf, ourselves back, and switch the controllers on for the rest.

    Raises OSError where that does not work although it did one level higher.
    """
    if group.version != 2:
        return
    _put(f"{group.path}/station/cgroup.procs", str(pid))
    if group.home != os.path.dirname(group.path):
        _put(f"{group.home}/cgroup.procs", "0")
    missing = set(group.controllers) - set(_enable(group.path, group.controllers))
    if missing:
        raise OSError(errno.EBUSY, f"no {', '.join(sorted(missing))} in a group of our own")


def _enable_if_ours(path: str) -> list[str]:
    """Switch controllers on for the children of a group, if nobody else arranges it.

    Not for one that holds processes: that would work for some controllers, and forbid the group
    to have any others, or children with processes.
    """
    if _has_type(path):
        if not _is_delegated(path):
            return []
        _clear(path)
    return _enable(path, _VERSION_2)


def _has_type(path: str) -> bool:
    """Whether it is any group of version 2 but the root of the machine's tree."""
    return os.path.exists(f"{path}/cgroup.type")


def _enable(path: str, wanted: Collection[str]) -> list[str]:
    """Switch controllers on for the children of a group; returns those that are on."""
    with open(f"{path}/cgroup.controllers") as file:
        offered = set(file.read().split())
    for name in wanted:
        if name in offered:
            try:
                with open(f"{path}/cgroup.subtree_control", "w") as file:
                    file.write(f"+{name}")
            except OSError:
                continue
    with open(f"{path}/cgroup.subtree_control") as file:
        return [name for name in file.read().split() if name in wanted]


def _is_delegated(path: str) -> bool:
    """Whether everything in a group is its user's to arrange: the service manager has marked it,
    it is the root of a container, or it has been so arranged before."""
    if os.path.isdir(f"{path}/{CALLERS}"):
        return True
    if os.path.ismount(path):
        return _has_type(path)
    for mark in ("trusted.delegate", "user.delegate"):
        try:
            if os.getxattr(path, mark) == b"1":
                return True
        except OSError:
            continue
    return False


def _clear(path: str) -> None:
    """Move the processes of a delegated group to a leaf of it, so that it can have groups."""
    os.makedirs(f"{path}/{CALLERS}", exist_ok=True)
    for _ in range(_ROUNDS):
        with open(f"{path}/cgroup.procs") as file:
            pids = file.read().split()
        if not pids:
            return
        for pid in pids:
            try:
                _put(f"{path}/{CALLERS}/cgroup.procs", pid)
            except ProcessLookupError:
                continue  # it has just ended


def _put(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _give(path: str, owner: int) -> None:
    os.chown(path, owner, owner)
    for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        if os.path.exists(f"{path}/{name}"):
            os.chown(f"{path}/{name}", owner, owner)


def remove(path: str) -> None:
    """Remove a group and those below it. Raises OSError while a process is in one of them."""
    with contextlib.suppress(OSError):  # if none is, that takes no descriptor
        os.rmdir(path)
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                remove(entry.path)
    os.rmdir(path)


# --- the station's half -------------------------------------------------------------------------


class Station:
    """The groups of one station; makes one for each sandbox."""

    def __init__(self, rows: list[GroupRow]) -> None:
        self.hierarchies = [
            Hierarchy(row["version"], row["controllers"], "", row["fd"]) for row in rows
        ]
        controllers = {name: h for h in self.hierarchies for name in h.controllers}
        self.controllers = controllers
        self.killing = next((h for h in self.hierarchies if h.version == 2), None)
        self.renewable = all(h.version == 1 or not h.controllers for h in self.hierarchies)
        """Version 2 has books that cannot be closed, such as `memory.peak`."""
        self.spare: list[Group] = []
        self.lent = 0

    @property
    def complete(self) -> bool:
        """Whether groups hold memory, count processor time and kill: nothing is left to watch."""
        counted = "cpuacct" in self.controllers or (
            "cpu" in self.controllers and self.controllers["cpu"].version == 2
        )
        return counted and "memory" in self.controllers and self.killing is not None

    @property
    def kills_one_by_one(self) -> bool:
        """Whether the kernel ends one process of a group for memory and leaves the others."""
        memory = self.controllers.get("memory")
        return memory is not None and memory.version == 1

    @property
    def source(self) -> str:
        """Where figures come from, for `Usage.source`."""
        memory = self.controllers.get("memory")
        return "rusage" if memory is None else f"cgroup-v{memory.version}"

    def group(self, name: str) -> Group:
        return Group(self, name)

    def lend(
        self, memory: int | None = None, pids: int | None = None, cpu: float | None = None
    ) -> Group:
        """A group for a sandbox, with these limits: one that was used before, if there is one whose
        books could be made like new."""
        found = _take(self.spare, (memory, pids, cpu))
        if found is None:
            self.lent += 1
            found = Group(self, f"box-{self.lent}")
            found.lent = True
            found.limit_or_remove(memory, pids, cpu)
        return found

    def take_back(self, group: Group) -> bool:
        """Keep a group for the next sandbox, or remove it; False while somebody is in it."""
        if not group.lent or not group.renew():
            return group.remove()
        self.spare.append(group)
        if len(self.spare) > _MOST_SPARE:
            self.spare.pop(0).remove()
        return True


def _take(groups: list[Group], limits: tuple[int | None, int | None, float | None]) -> Group | None:
    """The last one with these limits out of a list."""
    for index in reversed(range(len(groups))):
        if groups[index].limits == limits:
            return groups.pop(index)
    return None


class Group:
    """A sandbox's group, or a run's below it, in every hierarchy at once."""

    def __init__(self, station: Station, name: str) -> None:
        self.station = station
        self.name = name
        self._entries: list[int] = []
        self._ways: tuple[int | None, list[int]] | None = None
        self._late: tuple[tuple[int, bool], list[int]] | None = None
        self._before = Figures()
        self._killed = False
        self._leaving = False
        """Whether it is to be removed, and so is nobody's next one."""

        self._again = False
        """Whether it is used more than once: then its files stay open."""

        self._files: dict[tuple[int, str, int], int] = {}
        self._children: list[Group] = []
        self._spare: list[Group] = []
        self._parent: Group | None = None
        self._made = 0
        self.lent = False
        self.limits: tuple[int | None, int | None, float | None] = (None, None, None)
        self._ours = 0
        made: list[Hierarchy] = []
        try:
            for hierarchy in station.hierarchies:
                os.mkdir(name, dir_fd=hierarchy.descriptor)
                made.append(hierarchy)
        except BaseException:
            for hierarchy in made:
                os.rmdir(name, dir_fd=hierarchy.descriptor)
            raise

    def child(
        self, memory: int | None = None, pids: int | None = None, cpu: float | None = None
    ) -> Group:
        """A group below this one with limits of its own, for one run."""
        found = _take(self._spare, (memory, pids, cpu))
        if found is not None:
            return found
        if not self._children:
            for hierarchy in self.station.hierarchies:
                if hierarchy.version == 2 and hierarchy.controllers:
                    text = " ".join(f"+{name}" for name in hierarchy.controllers)
                    self._write(hierarchy, "cgroup.subtree_control", text)
        self._made += 1
        made = Group(self.station, f"{self.name}/{self._made}")
        made._parent = self
        self._children.append(made)
        made.limit_or_remove(memory, pids, cpu)
        return made

    def put_away(self) -> bool:
        """A run is over: keep its group for the next one of the sandbox, or remove it."""
        parent = self._parent
        if parent is None:
            return self.remove()
        if not parent._spare and self._renew_own():
            parent._spare.append(self)
            return True
        return self.remove()

    def renew(self) -> bool:
        """Make it as a new one is, with the group of one run below; False where that cannot be."""
        if len(self._children) > 1 or not self._renew_own():
            return False
        try:
            if not all(child._reset() for child in self._children):
                return False
        except OSError:
            return False
        self._spare = list(self._children)
        return True

    def _renew_own(self) -> bool:
        try:
            return self._is_blank() and self._reset()
        except OSError:
            return False  # no descriptor is to be had, say: a new one is made where it is needed

    def _is_blank(self) -> bool:
        """Whether nobody is in it or below it, and next to nothing is charged to them."""
        if not self.station.renewable or self._killed or not self.empty():
            return False
        hierarchy = self._with("memory")
        charged = self._read(hierarchy, "memory.usage_in_bytes") if hierarchy else "0"
        return int(charged) <= _RESIDUE

    def _reset(self) -> bool:
        """Begin its books anew; False where they cannot be."""
        if self._killed or self._leaving:
            return False
        if (hierarchy := self._with("pids")) and self._read(hierarchy, "pids.peak").strip() not in (
            "", "0", "1",
        ):  # fmt: skip
            return False
        if hierarchy := self._with("memory"):
            self._write(hierarchy, "memory.max_usage_in_bytes", "0")
        if hierarchy := self._with("cpuacct"):
            self._write(hierarchy, "cpuacct.usage", "0")
        self._before = self._count_events(Figures())
        self._again = True
        return True

    def limit_or_remove(self, memory: int | None, pids: int | None, cpu: float | None) -> None:
        """Set the limits of a new group. Raises OSError, and then it is gone."""
        try:
            self.limit(memory=memory, pids=pids, cpu=cpu)
        except BaseException:
            self.remove()
            raise

    def limit(self, *, memory: int | None, pids: int | None, cpu: float | None) -> None:
        """Set limits: bytes, processes, cores. None leaves one as it is."""
        self.limits = (memory, pids, cpu)
        if memory is not None and (hierarchy := self._with("memory")):
            if hierarchy.version == 1:
                self._write(hierarchy, "memory.limit_in_bytes", str(memory))
                self._try(hierarchy, "memory.memsw.limit_in_bytes", str(memory))
                self._try(hierarchy, "memory.swappiness", "0")
            else:
                self._write(hierarchy, "memory.max", str(memory))
                self._try(hierarchy, "memory.swap.max", "0")
                self._try(hierarchy, "memory.oom.group", "1")
        if pids is not None and (hierarchy := self._with("pids")):
            self._write(hierarchy, "pids.max", str(pids))
        if cpu is not None and (hierarchy := self._with("cpu")):
            quota = max(1000, int(cpu * _PERIOD))
            if hierarchy.version == 1:
                self._write(hierarchy, "cpu.cfs_period_us", str(_PERIOD))
                self._write(hierarchy, "cpu.cfs_quota_us", str(quota))
            else:
                self._write(hierarchy, "cpu.max", f"{quota} {_PERIOD}")

    def make_room(self, more: int) -> None:
        """Let so many processes more be in it, and in the sandbox's that it is below, which are
        ours and none of the sandbox's; fewer, if that is below zero. Version 1 does not count them:
        see `admit`."""
        hierarchy = self._with("pids")
        if hierarchy is None or hierarchy.version == 1:
            return
        for group in (self, self._parent):
            if group is not None and group.limits[1] is not None:
                group._ours += more
                group._write(hierarchy, "pids.max", str(group.limits[1] + group._ours))

    @property
    def is_held(self) -> bool:
        """Whether processor time may have run out in it, or in the sandbox's that it is below."""
        return any(group.limits[2] is not None for group in (self, self._parent) if group)

    def is_full(self) -> bool:
        """Whether no process more may be in it: version 1 only refuses those that are forked there,
        and lets any number be moved in."""
        hierarchy, most = self._with("pids"), self.limits[1]
        if most is None or hierarchy is None or hierarchy.version != 1:
            return False
        return int(self._read(hierarchy, "pids.current")) >= most

    def entrance(self) -> tuple[int | None, list[int]]:
        """Ways in for a process that is being made and still the station's own: the descriptor of a
        group of version 2 to be born in, and files to which it writes a `0` itself.

        Neither way waits until no other process of the machine is just being made or ended, as to
        be moved does (and that can take milliseconds). Where processor time is held there is no
        such way: a group without any left would hold up the station, which waits for the process
        to set itself up. `settle` does the rest.
        """
        if self._ways is None:
            found = [h for h in self.station.hierarchies if not (self.is_held and h.holds_time)]
            folders = [
                os.open(self.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=h.descriptor)
                for h in found
                if h.version == 2
            ]
            files = [self._open(h, "tasks", os.O_WRONLY) for h in found if h.version == 1]
            self._ways = folders[0] if folders else None, files
        return self._ways

    def admit(self, pid: int, *, stays: bool = False) -> None:
        """Move a process here. What it makes from then on is born here.

        Not yet where processor time is held or processes are counted: as with `entrance`, and a
        helper of a process that is being made is none of the run's processes. `settle` does that.
        One that `stays` is moved everywhere, into a group that the station made for itself.
        """
        if not self._entries:
            for hierarchy in self.station.hierarchies:
                if not hierarchy.late or (stays and hierarchy.version == 2):
                    self._entries.append(self._open(hierarchy, "cgroup.procs", os.O_WRONLY))
        text = str(pid).encode()
        for entry in self._entries:
            os.write(entry, text)

    def settle(self, pid: int, user: int, *, entered: bool = False) -> None:
        """The last thing before a process goes its own way: move it to wherever it is not yet,
        after `admit` or, where it has `entered` by itself, after `entrance`.

        `user` is the station's number for the user that it has become. Version 1 lets nobody but
        host root and that user himself move it, and asks who opened the file; version 2 asks whose
        the groups are, which is the station.
        """
        if entered and not self.is_held:
            return
        if self._late is None or self._late[0] != (user, entered):
            self._close_late()
            late = [h for h in self.station.hierarchies if (h.holds_time if entered else h.late)]
            entries = [
                self._open(hierarchy, "cgroup.procs", os.O_WRONLY)
                for hierarchy in late
                if hierarchy.version == 2
            ]
            first = [hierarchy for hierarchy in late if hierarchy.version == 1]
            self._late = (user, entered), entries + self._open_as(first, "cgroup.procs", user)
        for entry in self._late[1]:
            os.write(entry, str(pid).encode())

    def _close_late(self) -> None:
        if self._late is not None:
            for entry in self._late[1]:
                os.close(entry)
        self._late = None

    def _open_as(self, hierarchies: list[Hierarchy], file: str, user: int) -> list[int]:
        if user == 0 or not hierarchies:
            return [self._open(hierarchy, file, os.O_WRONLY) for hierarchy in hierarchies]
        for hierarchy in hierarchies:
            os.chown(f"{self.name}/{file}", user, -1, dir_fd=hierarchy.descriptor)
        os.seteuid(user)
        try:
            return [self._open(hierarchy, file, os.O_WRONLY) for hierarchy in hierarchies]
        finally:
            os.seteuid(0)
            # What a change of ids takes away: SET_DUMPABLE, and SET_PDEATHSIG to the launcher.
            calls.prctl(4, 1)
            calls.prctl(1, 9)

    def figures(self) -> Figures:
        figures = self._count_events(Figures())
        figures.refused_forks -= self._before.refused_forks
        figures.oom_kills -= self._before.oom_kills
        if hierarchy := self._with("memory"):
            first = hierarchy.version == 1
            peak = self._read(hierarchy, "memory.max_usage_in_bytes" if first else "memory.peak")
            figures.peak_memory = int(peak) if peak else None
        if hierarchy := self._with("pids"):
            most = self._read(hierarchy, "pids.peak")  # since Linux 6.1
            figures.processes = int(most) - self._ours if most else None
        figures.cpu = self.cpu()
        return figures

    def _count_events(self, figures: Figures) -> Figures:
        figures.oom_kills = self._all_oom_kills()
        if hierarchy := self._with("pids"):
            figures.refused_forks = _number(self._read(hierarchy, "pids.events"), "max")
        return figures

    def oom_kills(self) -> int:
        """How many of its processes the kernel has ended for want of memory."""
        return self._all_oom_kills() - self._before.oom_kills

    def _all_oom_kills(self) -> int:
        if hierarchy := self._with("memory"):
            file = "memory.oom_control" if hierarchy.version == 1 else "memory.events"
            return _number(self._read(hierarchy, file), "oom_kill")
        return 0

    def cpu(self) -> float | None:
        """Seconds of processor time so far."""
        if hierarchy := self._with("cpuacct"):
            text = self._read(hierarchy, "cpuacct.usage")
            return int(text) / 1e9 if text else None
        if (hierarchy := self._with("cpu")) and hierarchy.version == 2:
            return _number(self._read(hierarchy, "cpu.stat"), "usage_usec") / 1e6
        return None

    def tasks(self) -> list[int]:
        """The threads in it and below it whose processor time is held."""
        hierarchy = self._with("cpu")
        if hierarchy is None:
            return []
        file = "tasks" if hierarchy.version == 1 else "cgroup.threads"
        whole, _, _ = self._read(hierarchy, file, _MOST_TASKS).rpartition("\n")
        found = [int(line) for line in whole.splitlines()]
        for child in self._children:
            found += child.tasks()
        return found

    def kill(self) -> bool:
        """SIGKILL everything in it at once; False where the kernel cannot. Raises OSError where
        that is not known, since we could not so much as try.

        Linux also kills whatever is ever born into it afterwards by `entrance`: it compares how
        often a group was killed with that of the group of who makes the process.
        """
        self._killed = True
        killing = self.station.killing
        return killing is not None and self._try(killing, "cgroup.kill", "1")

    def freeze(self, wanted: bool) -> bool:
        """Have everything in it and below it stand still, or go on; True once it is so.

        To stand still takes each process a moment: ask again. Raises OSError where no tree of
        version 2 is to be had, which alone can do it without holding up what is to be killed.
        """
        killing = self.station.killing
        if killing is None:
            raise OSError(errno.ENOTSUP, "no control group of version 2 to freeze")
        self._write(killing, "cgroup.freeze", str(int(wanted)))
        return bool(_number(self._read(killing, "cgroup.events"), "frozen")) is wanted

    def give_back(self) -> None:
        """Have the kernel take what of its memory can be read again, such as files of the host.

        Without swap, which sandboxes have none of, that is all that can be taken.
        """
        hierarchy = self._with("memory")
        if hierarchy is None:
            return
        if hierarchy.version == 1:
            self._try(hierarchy, "memory.force_empty", "0")
        else:
            self._try(hierarchy, "memory.reclaim", self._read(hierarchy, "memory.current") or "0")

    def empty(self) -> bool:
        """True if no process is left in it, as far as it can kill at all."""
        killing = self.station.killing
        return killing is None or not _number(self._read(killing, "cgroup.events"), "populated")

    def close(self) -> None:
        for entry in (*self._entries, *self._files.values()):
            os.close(entry)
        self._entries = []
        self._files = {}
        if self._ways is not None:
            folder, files = self._ways
            for entry in files if folder is None else [folder, *files]:
                os.close(entry)
        self._ways = None
        self._close_late()

    def remove(self) -> bool:
        """Remove it and its children; False while the kernel still counts somebody in it.

        Idempotent: one that has to be tried again may have gone with its sandbox's meanwhile.
        """
        self._leaving = True
        self.close()
        for child in list(self._children):
            if not child.remove():
                return False
        if not self._remove():
            return False
        if self._parent is not None and self in self._parent._children:
            self._parent._children.remove(self)
        return True

    def _remove(self) -> bool:
        gone = True
        for hierarchy in self.station.hierarchies:
            try:
                os.rmdir(self.name, dir_fd=hierarchy.descriptor)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone

    def _with(self, controller: str) -> Hierarchy | None:
        return self.station.controllers.get(controller)

    def _open(self, hierarchy: Hierarchy, file: str, flags: int) -> int:
        return os.open(f"{self.name}/{file}", flags | os.O_CLOEXEC, dir_fd=hierarchy.descriptor)

    def _file(self, hierarchy: Hierarchy, file: str, flags: int) -> int:
        """The same, open since it was last used; `_done` closes it if it is not to stay open."""
        key = hierarchy.descriptor, file, flags
        opened = self._files.get(key, -1)
        if opened < 0:
            opened = self._open(hierarchy, file, flags)
            if self._again:
                self._files[key] = opened
        return opened

    def _done(self, opened: int) -> None:
        if not self._again:
            os.close(opened)

    def _write(self, hierarchy: Hierarchy, file: str, text: str) -> None:
        opened = self._file(hierarchy, file, os.O_WRONLY)
        try:
            os.pwrite(opened, text.encode(), 0)
        finally:
            self._done(opened)

    def _try(self, hierarchy: Hierarchy, file: str, text: str) -> bool:
        """Write where the kernel has the file and the group may. Raises OSError where that is not
        known, since we could not so much as try."""
        try:
            self._write(hierarchy, file, text)
        except OSError as error:
            if error.errno in _OUR_WANT:
                raise
            return False
        return True

    def _read(self, hierarchy: Hierarchy, file: str, most: int = _PAGE) -> str:
        """A file's first page or, if `most` is more, page after page until its end or that."""
        try:
            opened = self._file(hierarchy, file, os.O_RDONLY)
        except FileNotFoundError:
            return ""
        try:
            text = piece = os.pread(opened, _PAGE, 0)
            while piece and len(text) < most - _PAGE:
                piece = os.pread(opened, _PAGE, len(text))
                text += piece
            return text.decode()
        finally:
            self._done(opened)


def _number(text: str, key: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0
