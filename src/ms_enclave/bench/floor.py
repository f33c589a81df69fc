"""The C program that costs the least a sandbox can: what it does is read off a real sandbox.

A sandbox tells its namespaces and mounts; what its station does not have, the program makes. So
it stays the same work, however the slots are made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ms_enclave.bench.programs import processor_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["LOOK", "Floor", "Mount", "build_floor", "describe", "find_station", "parse", "steps_of"]

LOOK = (
    "import json, os\n"
    "kinds = ('user', 'mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup')\n"
    "found = {kind: os.stat('/proc/self/ns/' + kind).st_ino for kind in kinds}\n"
    "print(json.dumps([found, open('/proc/self/mountinfo').read()]))\n"
)
"""What a sandbox is asked to run, so that it tells what it is made of."""

_KINDS = {
    "user": 0x10000000, "mnt": 0x00020000, "pid": 0x20000000, "net": 0x40000000,
    "ipc": 0x08000000, "uts": 0x04000000, "cgroup": 0x02000000,
}  # fmt: skip
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8}
_TAKEN_OVER = ("size=", "nr_inodes=", "mode=", "hidepid=", "ptmxmode=", "max=")
_LAST_RANGE = 1023 * 65536  # of the ids that a station started by root has; it is used up last


class Mount(NamedTuple):
    """A line of mountinfo: what is shown where, and how."""

    device: str
    root: str
    point: str
    flags: int
    kind: str
    options: str


@dataclass(frozen=True)
class Floor:
    """The program, ready to be run against a station."""

    program: str
    station: int
    flags: int
    user: int
    steps: tuple[str, ...]

    def run(self, count: int) -> float:
        """Make and reap that many; seconds of processor time of everything that took part.

        Raises RuntimeError where the program fails.
        """
        return processor_time(self._argv(count), self._text)[0]

    def show(self) -> list[Mount]:
        """The mounts that one of them has."""
        text = processor_time([*self._argv(1), "show"], self._text)[1]
        return parse(text)

    @property
    def _text(self) -> str:
        return "".join(f"{step}\n" for step in self.steps)

    def _argv(self, count: int) -> list[str]:
        return [self.program, str(self.station), str(self.flags), str(self.user), str(count)]


def build_floor(folder: Path) -> str | None:
    """Compile it into a folder; its path, or None where there is no C compiler that can.

    The compiler's words go to standard error.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    program = folder / "floor"
    source = Path(__file__).with_name("floor.c")
    done = subprocess.run([compiler, "-O2", "-o", str(program), str(source)], check=False)
    return str(program) if done.returncode == 0 else None


def describe(program: str, station: int, told: str) -> Floor:
    """What the program has to do to be like the sandbox that printed `told` (see `LOOK`)."""
    spaces, mounts = json.loads(told)
    theirs = {kind: os.stat(f"/proc/{station}/ns/{kind}").st_ino for kind in _KINDS}
    flags = sum(bit for kind, bit in _KINDS.items() if spaces[kind] != theirs[kind])
    shared = parse(Path(f"/proc/{station}/mountinfo").read_text(encoding="utf-8"))
    ids = Path(f"/proc/{station}/uid_map").read_text(encoding="utf-8").split()
    user = _LAST_RANGE if int(ids[2]) > _LAST_RANGE else 0
    return Floor(program, station, flags, user, tuple(steps_of(parse(mounts), shared)))


def parse(text: str) -> list[Mount]:
    """The lines of a mountinfo, in the order in which they were mounted."""
    found: list[Mount] = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        _, _, device, root, point, options = left.split()[:6]
        kind, _, more = right.split(" ", 2)
        flags = sum(_FLAGS.get(word, 0) for word in options.split(","))
        found.append(Mount(device, root, point, flags, kind, more))
    return found


def steps_of(inside: Sequence[Mount], station: Sequence[Mount]) -> list[str]:
    """What makes the mounts of a sandbox out of those of its station."""
    known = [(mount.device, mount.root, mount.point) for mount in station]
    steps: list[str] = []
    for mount in inside:
        place = (mount.device, mount.root, mount.point)
        if place in known:
            known.remove(place)
            continue
        steps += _steps(mount, [*station, *inside[: inside.index(mount)]])
    return steps


def _steps(mount: Mount, before: Iterable[Mount]) -> list[str]:
    name = mount.point.strip("/").replace("/", "-")
    if mount.kind == "overlay":
        return [f"layer\t{name}\t{mount.point}"]
    source = _shown_at(mount, before)
    if source is not None:
        path, flags = source
        steps = [f"bind\t{path}\t{mount.point}"]
        if mount.flags != flags:  # a bind begins with those of its source
            steps.append(f"change\t{mount.point}\t{mount.flags}")
        return steps
    if mount.root != "/":  # a part of a file system that nobody shows: the sandbox's store
        return [f"folder\t{name}\t{mount.point}"]
    options = [word for word in mount.options.split(",") if word.startswith(_TAKEN_OVER)]
    return [f"mount\t{mount.kind}\t{mount.point}\t{mount.flags}\t{','.join(options)}"]


def _shown_at(mount: Mount, before: Iterable[Mount]) -> tuple[str, int] | None:
    """The path by which what a mount shows can already be seen, and with which flags."""
    for other in before:
        if other.device != mount.device:
            continue
        below = os.path.relpath(mount.root, other.root)
        if below == ".":
            return other.point, other.flags
        if not below.startswith(".."):
            return os.path.join(other.point, below), other.flags
    return None


def find_station() -> int | None:
    """The pid of a station of this process; None where it has none."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    mine = {pid for pid, parent in parents.items() if parent == os.getpid()}
    for pid, parent in parents.items():
        if parent in mine and os.path.basename(_command(parent)) == "launcher.py":
            return pid
    return None


def _command(pid: int) -> str:
    """The program that an interpreter runs, by its path."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((word.decode() for word in words if word.endswith(b".py")), "")
