"""Who descends from whom in the guest's view of the processes."""

from __future__ import annotations

import os

__all__ = ["children", "descendants"]


def descendants(root: int) -> tuple[set[int], set[int]]:
    """The processes below one: those that live, and those of them that can do something.

    What is stopped cannot; nor can what waits in the kernel, as the parent of a `vfork` does for
    a child that was stopped before it had become another program.
    """
    below = _families()
    alive: set[int] = set()
    moving: set[int] = set()
    todo = [root]
    while todo:
        for pid, state in below.get(todo.pop(), ()):
            todo.append(pid)
            if state not in "ZX":
                alive.add(pid)
                if state not in "TtD":
                    moving.add(pid)
    return alive, moving


def children(parent: int) -> set[int]:
    """The processes that a process has to wait for, ended ones included."""
    return {pid for pid, _ in _families().get(parent, ())}


def _families() -> dict[int, list[tuple[int, str]]]:
    """Process ids and states, by parent."""
    below: dict[int, list[tuple[int, str]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            entry = _parent_and_state(name)
            if entry is not None:
                below.setdefault(entry[0], []).append((int(name), entry[1]))
    return below


def _parent_and_state(pid: str) -> tuple[int, str] | None:
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = os.read(descriptor, 1024).rpartition(b")")[2].split()
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return (int(fields[1]), fields[0].decode("ascii")) if len(fields) > 1 else None
