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
from urllib.parse import quote

__all__ = ["GRACE", "Snapshot", "become_subreaper", "wait_until_gone"]

GRACE = 5.0
"""Seconds that closing may take after the test has ended before it counts as a leak."""

_PR_SET_CHILD_SUBREAPER = 36

# Worker threads that a library keeps for its next call, and ends by itself.
_POOLED_THREADS = re.compile(
    r"^(AnyIO worker thread|asyncio_\d+|ThreadPoolExecutor-|pytest_timeout)"
)
_NUMBER_IN_TARGET = re.compile(r":\[\d+\]$")
_ENGINE = "/var/run/docker.sock"
_OWNER = "ms-enclave.owner"
_OURS = re.compile(r"ms[-_]enclave")


def become_subreaper() -> None:
    """Let orphans of our processes become our children, so that none can leave by daemonising."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


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
    containers: frozenset[str] | None
    """None where nobody has looked."""

    @classmethod
    def take(cls, *, containers: bool = False) -> Snapshot:
        """Look once; at an engine's containers, too, if that is asked for: it takes longer."""
        groups = _cgroups()
        return cls(
            children=frozenset(_children()),
            mounts=frozenset(_mounts()),
            cgroups=frozenset(group for group, ours in groups.items() if ours),
            other_cgroups=frozenset(group for group, ours in groups.items() if not ours),
            folders=frozenset(_folders()),
            descriptors=Counter(_descriptors()),
            threads=Counter(thread.name for thread in threading.enumerate()),
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
    for pid, _ in set(_children(dead=True)) - before.children:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue  # somebody waited for it in between


def _children(*, dead: bool = False) -> list[tuple[int, str]]:
    me = str(os.getpid())
    found: list[tuple[int, str]] = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                text = file.read().decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        name, _, rest = text.partition("(")[2].rpartition(")")
        state, parent = rest.split()[:2]
        if parent == me and (not dead or state == "Z"):
            found.append((int(entry), name))
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
    for groups in stations.values():
        ours = not any(_is_somebody_elses(group) for group in groups)
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


def _is_somebody_elses(group: str) -> bool:
    """Whether another run on this machine owns the group: its processes are not under us."""
    for folder, _, _ in os.walk(group):
        try:
            with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as file:
                pids = file.read().split()
        except OSError:
            continue
        if pids:
            return not any(_is_under_us(int(pid)) for pid in pids)
    return False


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
