"""What a container's limits did to its programs, as its control groups count it.

Nothing is counted unless `start` was called: only in a container the files belong to nobody else.
"""

from __future__ import annotations

import os

__all__ = ["counts", "risen", "start"]

_GROUPS = "/sys/fs/cgroup"
_FILES = {
    "oom": (("memory.events", b"oom_kill"), ("memory/memory.oom_control", b"oom_kill")),
    "processes": (("pids.events", b"max"), ("pids/pids.events", b"max")),
}
"""By what was reached: where version 2 and version 1 of control groups count it, and as what."""

_open: dict[str, tuple[int, bytes]] = {}


def start() -> None:
    """Count from now on, as far as the container shows its groups."""
    for name, places in _FILES.items():
        for place, key in places:
            try:
                _open[name] = (os.open(os.path.join(_GROUPS, place), os.O_RDONLY), key)
            except OSError:
                continue
            break


def counts() -> dict[str, int]:
    """How often each limit was reached since the container began."""
    found: dict[str, int] = {}
    for name, (descriptor, key) in _open.items():
        try:
            lines = os.pread(descriptor, 4096, 0).splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if len(words) == 2 and words[0] == key:
                found[name] = int(words[1])
    return found


def risen(before: dict[str, int]) -> list[str]:
    """Which limits were reached since then."""
    now = counts()
    return [name for name in now if now[name] > before.get(name, now[name])]
