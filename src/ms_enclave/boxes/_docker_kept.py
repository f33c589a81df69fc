"""What the next owner has to know of the containers that outlive this one: a file for each.

The files lie in the manager's state folder, which is its user's alone: they hold configs, and with
them environments. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from ms_enclave.boxes._inputs import validate_sandbox_id
from ms_enclave.errors import ConfigError

__all__ = ["Note", "forget", "left", "now", "read_all", "write"]

_END = ".json"


@dataclass(frozen=True)
class Note:
    """A container that is kept."""

    id: str
    container: str
    """Its full id."""
    config: dict[str, Any]
    created_at: str
    boot: str
    """Of the machine that it was made on."""
    until: float | None
    """When it ends by itself, on the clock that goes on while the machine sleeps; None: never."""
    environment: dict[str, str]
    user: str
    python: str
    isolation: dict[str, Any]
    metadata: dict[str, Any]


def now() -> tuple[str, float]:
    """This boot of the machine, and the seconds since then."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip(), time.clock_gettime(time.CLOCK_BOOTTIME)


def left(note: Note) -> float | None:
    """Seconds that it still has; None for ever, 0 where it has ended with its machine."""
    boot, clock = now()
    if note.boot != boot:
        return 0.0
    return None if note.until is None else max(0.0, note.until - clock)


def write(folder: str, note: Note) -> None:
    """Have it be found. Raises OSError, and nothing has changed."""
    os.makedirs(folder, 0o700, exist_ok=True)
    path = _path(folder, note.id)
    fresh = f"{path}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(note), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        raise


def forget(folder: str, sandbox_id: str) -> None:
    """It has ended. May be said twice."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(folder, sandbox_id))


def read_all(folder: str) -> tuple[list[Note], list[str]]:
    """What was left, and what is wrong with the rest of the folder, which stays as it is."""
    notes: list[Note] = []
    complaints: list[str] = []
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return [], []
    for name in names:
        if not name.endswith(_END):
            continue
        try:
            with open(os.path.join(folder, name)) as file:
                note = Note(**json.load(file))
            if validate_sandbox_id(note.id) + _END != name:
                raise ValueError("it is another one's")  # noqa: TRY301 - one way for all
            notes.append(note)
        except (OSError, ValueError, TypeError, ConfigError) as error:
            complaints.append(f"{name} cannot be read: {error}")
    return notes, complaints


def _path(folder: str, sandbox_id: str) -> str:
    return os.path.join(folder, f"{sandbox_id}{_END}")
