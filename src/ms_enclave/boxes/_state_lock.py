"""Whether a living manager has a state folder, without asking or disturbing it."""

from __future__ import annotations

import os

__all__ = ["is_held", "of"]


def of(folder: str) -> str:
    """The lock of the state folder that the folder of one type of sandbox is in."""
    return os.path.join(os.path.dirname(folder), "owner.lock")


def is_held(path: str) -> bool:
    """Whether somebody holds a file's lock; taking it to see would be in a manager's way."""
    try:
        status = os.stat(path)
        with open("/proc/locks") as file:
            locks = [line.split() for line in file]
    except (OSError, ValueError):  # nothing is there, or it is no path
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(words[1] == "FLOCK" and words[5] == place for words in locks if len(words) > 5)
