"""What there is of `process` sandboxes on this machine, whoever made it; and removing it.

Sandboxes of a living process stand in its register. What a dead one has left shows by itself:
launchers that nobody has any more (with a state folder: what is kept for the next manager; without:
what is ending, or hangs), and control groups that no station holds. Nothing is asked and nothing is
touched by looking. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ms_enclave.boxes import _state_lock as state_lock
from ms_enclave.boxes._inputs import validate_sandbox_id
from ms_enclave.errors import ConfigError
from ms_enclave.model.diagnosis import FoundSandbox
from ms_enclave.spawner import cgroups, register
from ms_enclave.spawner.keeping import identity

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Launcher",
    "end_box",
    "end_group",
    "end_launcher",
    "find",
    "launchers",
    "place_of",
]

_PROGRAMS = tuple(
    f"/ms_enclave/spawner/{name}.py"
    for name in ("launcher", "landlock_launcher", "gvisor_launcher")
)
_WORDS = 7
"""Words of a launcher's command line before the state folder: see `spawner.launch`."""

_END_SECONDS = 10.0


@dataclass(frozen=True)
class Launcher:
    """The first process of a station."""

    pid: int
    start: int
    user: int
    owner: tuple[int, int]
    """Pid and start time of who has started it."""
    folder: str | None
    """Where its next owner finds it, if it is to have one."""

    @property
    def has_owner(self) -> bool:
        """Whether somebody living has it: who started it, or who has its state folder locked."""
        if self.folder is not None:
            return state_lock.is_held(state_lock.of(self.folder))
        return _start_of(self.owner[0]) == self.owner[1]

    @property
    def is_there(self) -> bool:
        """Whether it has not ended."""
        return _start_of(self.pid) == self.start


# --- looking ------------------------------------------------------------------------------------


def find(sandbox_type: str) -> list[FoundSandbox]:
    """All of it, oldest first; as root that of every user, otherwise of this one."""
    found = [_living(sandbox_type, row) for pid in _pids() for row in register.read(pid)]
    rows = [row for row in found if row is not None]
    for launcher in launchers():
        if not launcher.has_owner:
            rows += _left(sandbox_type, launcher)
    rows += [_group(sandbox_type, path) for path in _idle_groups()]
    return sorted(rows, key=lambda row: (row.created, row.id))


def launchers() -> list[Launcher]:
    """Every launcher that this user may end."""
    found: list[Launcher] = []
    for pid in _pids():
        words = _command(pid)
        if len(words) < _WORDS or not words[3].endswith(_PROGRAMS) or words[1:3] != ["-I", "-S"]:
            continue
        with contextlib.suppress(OSError, ValueError):
            user = os.stat(f"/proc/{pid}").st_uid
            owner, _, began = words[6].partition(":")
            if os.geteuid() not in (0, user) or not _is_among_ours(pid):
                continue
            folder = words[_WORDS] if len(words) > _WORDS else None
            row = Launcher(pid, _start_of(pid), user, (int(owner), int(began)), folder)
            if row.start:
                found.append(row)
    return found


def _living(sandbox_type: str, row: dict[str, Any]) -> FoundSandbox | None:
    """A row of somebody's register, which need not be one of ours."""
    try:
        if row["type"] != sandbox_type:
            return None
        launcher, init = int(row["launcher"]), int(row["init"])
        place = f"box {launcher}:{int(row['began'])} {init}"
        return FoundSandbox(
            sandbox_type=sandbox_type,
            id=validate_sandbox_id(row["id"]),
            place=place,
            state="running" if _init_of(launcher, init) else "lost",
            created=str(row["created"])[:40],
            manager=str(row["manager"])[:40],
            owner="alive",
            kept=bool(row["kept"]),
        )
    except (KeyError, TypeError, ValueError, ConfigError):
        return None


def _left(sandbox_type: str, launcher: Launcher) -> Iterator[FoundSandbox]:
    """What a launcher without an owner has."""
    where = f"{launcher.pid}:{launcher.start}"
    if launcher.folder is None:
        yield _remains(sandbox_type, f"station-{launcher.pid}", f"station {where}", "ending")
        return
    for station in _children(launcher.pid):
        for note in register.notes_of(station):
            with contextlib.suppress(KeyError, ConfigError):
                yield FoundSandbox(
                    sandbox_type=sandbox_type,
                    id=validate_sandbox_id(note["id"]),
                    place=f"kept {where}",
                    state="kept",
                    created=str(note["created_at"])[:19],
                    owner="gone",
                    kept=True,
                )


def _group(sandbox_type: str, path: str) -> FoundSandbox:
    return _remains(sandbox_type, os.path.basename(path), f"group {path}", "control group")


def _remains(sandbox_type: str, name: str, place: str, state: str) -> FoundSandbox:
    return FoundSandbox(sandbox_type=sandbox_type, id=name, place=place, state=state, owner="gone")


def _idle_groups() -> list[str]:
    """Control groups of ours that no station holds."""
    return [path for hierarchy in cgroups.own_hierarchies() for path in cgroups.left_in(hierarchy)]


# --- removing -----------------------------------------------------------------------------------


def place_of(found: FoundSandbox) -> tuple[str, str]:
    """What sort of thing was found, and where."""
    sort, _, where = found.place.partition(" ")
    return sort, where


def end_launcher(where: str) -> None:
    """End a station with all that it has, unless somebody has it by now."""
    launcher = _still(where)
    if launcher is None or launcher.has_owner:
        return
    _kill_and_wait(launcher.pid, launcher.start)


def end_box(where: str) -> None:
    """End a sandbox whose owner lives: its first process, and with that all others. The owner hears
    of it as of any sandbox that ends by itself."""
    launcher = _still(where.partition(" ")[0])
    wanted = where.partition(" ")[2]
    if launcher is None or not wanted.isdigit():
        return
    init = _init_of(launcher.pid, int(wanted))
    if init:
        _kill_and_wait(init, _start_of(init))


def end_group(path: str) -> None:
    """Remove a control group, unless a station holds it by now."""
    cgroups.remove_left(path)


def _still(where: str) -> Launcher | None:
    """The launcher of a place, if it is that one still."""
    known = {f"{launcher.pid}:{launcher.start}": launcher for launcher in launchers()}
    return known.get(where)


def _kill_and_wait(pid: int, start: int) -> None:
    """By a descriptor: the number may be another's a moment later."""
    try:
        held = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _start_of(pid) == start:
            signal.pidfd_send_signal(held, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(held)
    deadline = time.monotonic() + _END_SECONDS
    while _start_of(pid) == start and time.monotonic() < deadline:
        time.sleep(0.01)


# --- processes ----------------------------------------------------------------------------------


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _start_of(pid: int) -> int:
    """When a process began; 0 where there is none, or only what its parent has not yet taken."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X"):
                return 0
        return identity(pid)["start"]
    except OSError:
        return 0


def _command(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(1 << 16).split(b"\0")
    except OSError:
        return []
    return [word.decode(errors="replace") for word in words[:-1]]


def _children(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _numbers(pid: int) -> list[int]:
    """What a process is called in each of its pid namespaces, ours first."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return [int(word) for word in line.split()[1:]]
    return []


def _init_of(launcher: int, number: int) -> int:
    """The first process of a sandbox, by what its station calls it; 0 where it has ended."""
    for station in _children(launcher):
        level = len(_numbers(station)) - 1
        for child in _children(station):
            numbers = _numbers(child)
            if len(numbers) > level and numbers[level] == number and _start_of(child):
                return child
    return 0


def _is_among_ours(pid: int) -> bool:
    """Whether a process counts processes as we do: one in a sandbox may call itself anything."""
    return os.stat(f"/proc/{pid}/ns/pid").st_ino == os.stat("/proc/self/ns/pid").st_ino
