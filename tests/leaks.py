"""What a test may leave behind on the machine, seen as a list before and after.

Things are counted by kind and not by number: a pool that replaces an event loop leaves as many
descriptors as before, though other ones. Waiting is polling with a limit; the usual case, where
nothing is left, costs one look.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import stat
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

__all__ = [
    "GRACE",
    "KEPT_NETWORKS",
    "Snapshot",
    "become_subreaper",
    "engine_was_asked",
    "wait_until_gone",
    "watch_for_engines",
]

GRACE = 5.0
"""Seconds that closing may take after the test has ended before it counts as a leak."""

KEPT_NETWORKS = 40
"""Network namespaces that a living station has at most for what comes next: 16 that nobody is in,
as many of runs that left no trace, and a few that it is about to give."""

_PR_SET_CHILD_SUBREAPER = 36

# Worker threads that a library keeps for its next call, and ends by itself.
_POOLED_THREADS = re.compile(
    r"^(AnyIO worker thread|asyncio_\d+|ThreadPoolExecutor-|pytest_timeout)"
)
_NUMBER_IN_TARGET = re.compile(r":\[\d+\]$")
_ENGINE = "/var/run/docker.sock"
_OWNER = "ms-enclave.owner"
_OURS = re.compile(r"ms[-_]enclave")
_ENGINE_PROGRAMS = frozenset({"docker", "podman"})


def become_subreaper() -> None:
    """Let orphans of our processes become our children, so that none can leave by daemonising."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


_asked: set[str] = set()


def watch_for_engines() -> None:
    """Notice from now on when this process turns to a container engine, by whatever code of ours or
    of a library: by its socket or by a program of its. It cannot be undone; call it once."""

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.connect":
            place = arguments[1]
            if isinstance(place, (str, bytes)) and os.fsdecode(place).endswith("docker.sock"):
                _asked.add(os.fsdecode(place))
        elif event == "subprocess.Popen":
            name = os.path.basename(str(arguments[0]))
            if name in _ENGINE_PROGRAMS:
                _asked.add(name)

    sys.addaudithook(look)


def engine_was_asked() -> bool:
    """Whether that has happened since this was called last."""
    asked = bool(_asked)
    _asked.clear()
    return asked


@dataclass(frozen=True)
class Snapshot:
    """Everything of ours that exists now."""

    children: frozenset[tuple[int, str]]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    other_cgroups: frozenset[str]
    folders: frozenset[str]
    descriptors: Counter[str]
    threads: Counter[str]
    networks: Counter[str]
    """Network namespaces in which somebody below a child of ours is, by that child."""
    containers: frozenset[str] | None
    """None where nobody has looked."""

    @classmethod
    def take(cls, *, containers: bool = False) -> Snapshot:
        """Look once; at an engine's containers, too, if that is asked for: it takes longer."""
        groups = _cgroups()
        everybody = _everybody()
        return cls(
            children=frozenset(_children(everybody)),
            mounts=frozenset(_mounts()),
            cgroups=frozenset(group for group, ours in groups.items() if ours),
            other_cgroups=frozenset(group for group, ours in groups.items() if not ours),
            folders=frozenset(_folders()),
            descriptors=Counter(_descriptors()),
            threads=Counter(thread.name for thread in threading.enumerate()),
            networks=Counter({child: len(found) for child, found in _networks(everybody).items()}),
            containers=frozenset(_containers()) if containers else None,
        )

    def since(self, before: Snapshot) -> list[str]:
        """What is here now and was not before, one line a thing."""
        # Another run's do not become ours when the last process in them has ended.
        cgroups = self.cgroups - before.cgroups - before.other_cgroups
        return [
            *(f"process {pid}: {name}" for pid, name in sorted(self.children - before.children)),
            *(f"mount {point}" for point in sorted(self.mounts - before.mounts)),
            *(f"cgroup {path}" for path in sorted(cgroups)),
            *(f"folder or socket {path}" for path in sorted(self.folders - before.folders)),
            *(
                f"descriptor {kind}: {count} more"
                for kind, count in sorted((self.descriptors - before.descriptors).items())
            ),
            *(
                f"thread {name}"
                for name in sorted(self.threads - before.threads)
                if not _POOLED_THREADS.match(name)
            ),
            *(
                f"network namespaces below process {child}: {count}, and {KEPT_NETWORKS} may stay"
                for child, count in sorted(self.networks.items())
                if count > max(KEPT_NETWORKS, before.networks[child])
            ),
            *(
                f"container {name}"
                for name in sorted((self.containers or set()) - (before.containers or set()))
            ),
        ]


def wait_until_gone(before: Snapshot, grace: float = GRACE) -> list[str]:
    """Return what is still left `grace` seconds later; nothing as soon as nothing is left."""
    deadline = time.monotonic() + grace
    pause = 0.001
    while True:
        if pause > 0.05:  # whoever started it had the time to wait for it
            reap_zombies(before)
        left = Snapshot.take(containers=before.containers is not None).since(before)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def reap_zombies(before: Snapshot) -> None:
    """Collect processes that have ended; `Popen` itself complains of those it was not asked for."""
    for pid, _ in set(_children(_everybody(), dead=True)) - before.children:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue  # somebody waited for it in between


class _Row(NamedTuple):
    """A process, as its stat file shows it."""

    parent: int
    state: str
    name: str


def _everybody() -> dict[int, _Row]:
    """Every process that there is, by its number. Hot: each test looks twice."""
    found: dict[int, _Row] = {}
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if not entry.isdigit():
            continue
        try:
            opened = os.open(f"/proc/{entry}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it ended while we looked
        try:
            text = os.read(opened, 1024)
        except OSError:
            continue
        finally:
            os.close(opened)
        before, _, rest = text.rpartition(b")")
        state, parent = rest.split(None, 2)[:2]
        name = before.partition(b"(")[2].decode(errors="replace")
        found[int(entry)] = _Row(int(parent), state.decode(), name)
    return found


def _children(everybody: dict[int, _Row], *, dead: bool = False) -> list[tuple[int, str]]:
    me = os.getpid()
    return [
        (pid, row.name)
        for pid, row in everybody.items()
        if row.parent == me and (not dead or row.state == "Z")
    ]


def _networks(everybody: dict[int, _Row]) -> dict[str, set[str]]:
    """By child of ours, the network namespaces other than our own in which it or whoever is below
    it is. A namespace that only a descriptor of ours holds is one of our descriptors."""
    below: dict[int, list[int]] = {}
    for pid, row in everybody.items():
        below.setdefault(row.parent, []).append(pid)
    children = below.get(os.getpid(), [])
    if not children:
        return {}
    own = os.readlink("/proc/self/ns/net")
    found: dict[str, set[str]] = {}
    for child in children:
        rest = [child]
        while rest:
            pid = rest.pop()
            rest += below.get(pid, [])
            try:
                space = os.readlink(f"/proc/{pid}/ns/net")
            except OSError:
                continue  # it has ended, or is not ours to look at
            if space != own:
                found.setdefault(str(child), set()).add(space)
    return found


def _mounts() -> list[str]:
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.split()[4] for line in lines if _OURS.search(line)]


def _cgroups() -> dict[str, bool]:
    """The project's groups in every hierarchy, and whether they are empty or hold our processes."""
    stations: dict[str, list[str]] = {}  # a station has a group of one name in every hierarchy
    for parent in _cgroup_parents():
        for group in _subfolders(parent):
            if _OURS.search(os.path.basename(group)):
                stations.setdefault(os.path.basename(group), []).append(group)
    found: dict[str, bool] = {}
    for name, groups in stations.items():
        if name not in _others and any(_is_somebody_elses(group) for group in groups):
            _others.add(name)
        ours = name not in _others
        lives = any(_holds_processes(group) for group in groups)
        for group in groups:
            below = [path for path in _subfolders(group) if not (lives and _is_spare(path))]
            found |= dict.fromkeys((group, *below), ours)
    return found


def _is_spare(group: str) -> bool:
    """Whether a living station keeps the group for its next sandbox."""
    return os.path.basename(group).startswith("box-") and not _holds_processes(group)


def _holds_processes(group: str) -> bool:
    for folder, _, _ in os.walk(group):
        try:
            with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                if file.read():
                    return True
        except OSError:
            continue
    return False


def _cgroup_parents() -> set[str]:
    """The root of every hierarchy and our own place in it, below which ours are made."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    roots = [line.split()[4] for line in mounts if re.match(r"cgroup2? ", line.partition(" - ")[2])]
    places = {"", *(line.split(":", 2)[2].rstrip("/") for line in own)}
    return {root + place for root in roots for place in places if os.path.isdir(root + place)}


def _subfolders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


_others: set[str] = set()
"""Stations that were seen to be another run's: whose they are when they are dead cannot be seen."""


def _is_somebody_elses(group: str) -> bool:
    """Whether another run on this machine owns the group: who is in it, or where nobody is yet, who
    has locked it, is not under us."""
    for folder, _, _ in os.walk(group):
        try:
            with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                pids = file.read().split()
        except OSError:
            continue
        if pids:
            return not any(_is_under_us(int(pid)) for pid in pids)
    holder = _holder(group)
    return holder > 0 and not _is_under_us(holder)


def _holder(path: str) -> int:
    """Who has locked a folder; 0 where nobody has who can be seen."""
    try:
        status = os.stat(path)
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    device = status.st_dev
    place = f"{os.major(device):02x}:{os.minor(device):02x}:{status.st_ino}"
    for line in locks:
        words = line.split()
        if words[1:2] == ["FLOCK"] and words[5] == place:
            return int(words[4])
    return 0


def _is_under_us(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:
            return False
    return False


def _folders() -> list[str]:
    """What lies in the run's own temporary folder, and where else a socket of ours could be."""
    found = [
        entry
        for entry in _listing(tempfile.gettempdir())
        if not os.path.basename(entry).startswith("pytest-of-")
    ]
    for place in ("/run", "/dev/shm", "/run/user/" + str(os.getuid())):
        found += (entry for entry in _listing(place) if _belongs_to_this_run(entry))
    return found


def _containers() -> list[str]:
    """An engine's containers, also those that do not run, that a process of this run has made."""
    asked = quote(json.dumps({"label": [_OWNER]}))
    connection = HTTPConnection("engine", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(10)
        connection.sock.connect(_ENGINE)
        connection.request("GET", f"/containers/json?all=1&filters={asked}")
        rows = json.loads(connection.getresponse().read())
    except OSError:
        return []  # there is none
    finally:
        connection.close()
    return [row["Names"][0] for row in rows if _is_by_us(row["Labels"][_OWNER])]


def _is_by_us(owner: str) -> bool:
    """Whether an owner, as a container's label names it, is one of our processes."""
    pid = owner.partition(":")[2].partition(":")[0]
    return pid.isdigit() and _is_under_us(int(pid))


def _listing(path: str) -> list[str]:
    try:
        return [os.path.join(path, name) for name in os.listdir(path)]
    except OSError:
        return []


def _belongs_to_this_run(path: str) -> bool:
    return bool(_OURS.search(path)) and str(os.getpid()) in path


def _descriptors() -> list[str]:
    found: list[str] = []
    for entry in _listing("/proc/self/fd"):
        try:
            target = os.readlink(entry)
            mode = os.stat(entry).st_mode
        except OSError:
            continue  # the one the listing itself used
        if stat.S_ISREG(mode) and not _OURS.search(target):
            continue  # caches and captured output of the test tools
        found.append(_NUMBER_IN_TARGET.sub("", target))
    return found
