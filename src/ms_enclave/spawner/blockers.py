"""What keeps a process from being forked, and what of its files its forks have to open themselves.

Pure: the texts of /proc and what was seen of descriptors in, reasons and rows out. Whatever is not
known to be harmless is a reason: what a fork would share with its parent, or would miss.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._shapes import FileRow

__all__ = ["Descriptor", "Mounts", "files", "maps", "others", "status"]

_MOST_FILES = 200
_STANDARD = 3
_CHANNEL = 3
_DELETED = " (deleted)"
_DEVICES = frozenset({"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"})
_NO_FILES = frozenset({"proc", "sysfs", "devpts", "mqueue"})
"""Kinds of file systems whose files say something else in another place."""
_KEPT_FLAGS = (
    os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK | os.O_SYNC | os.O_DSYNC | os.O_CLOEXEC
    | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME
)  # fmt: skip
_MOST_NAMED = 8


class Descriptor:
    """What was seen of one descriptor of a process.

    `leads` says whether its path leads to the same file in the sandbox; `same` is a lower
    descriptor that is the same open file, None for none.
    """

    __slots__ = ("inode", "leads", "mode", "number", "same", "target", "text")

    def __init__(
        self, number: int, target: str, text: str, mode: int, leads: bool, same: int | None,
        inode: int = 0,
    ) -> None:  # fmt: skip
        self.inode = inode
        self.number = number
        self.target = target
        self.text = text
        self.mode = mode
        self.leads = leads
        self.same = same

    def field(self, name: str, base: int) -> int:
        """A number of /proc/PID/fdinfo/N."""
        for line in _lines(self.text):
            key, _, value = line.partition(":")
            if key == name:
                return int(value, base)
        return 0

    @property
    def locked(self) -> bool:
        return any(line.startswith("lock:") for line in _lines(self.text))


class Mounts:
    """What is mounted in a sandbox, of the text of its /proc/PID/mountinfo; `carried` are the
    folders whose files a fork has, and `volumes` those that it shares by intention."""

    def __init__(self, text: str, carried: Sequence[str], volumes: Sequence[str]) -> None:
        self.carried = tuple(carried)
        self.volumes = tuple(volumes)
        self._rows: list[tuple[str, str, bool]] = []
        fixed: set[str] = set()
        changing: set[str] = set()
        for line in _lines(text):
            left, _, right = line.partition(" - ")
            _, _, device, _, point, options = left.split()[:6]
            point = _unescaped(point)
            read_only = "ro" in options.split(",")
            self._rows.append((point, right.split()[0], read_only))
            if read_only:
                fixed.add(device)
            elif point not in self.volumes:
                changing.add(device)
        self.fixed = fixed - changing
        """Devices of what nobody in the sandbox can write to."""

    def carries(self, path: str) -> bool:
        """Whether a fork finds the same file there."""
        found = ("", "", False)
        for row in self._rows:  # of two at one point the later one is seen
            if _below(path, row[0]) and len(row[0]) >= len(found[0]):
                found = row
        point, kind, read_only = found
        if kind in _NO_FILES:
            return False
        return read_only or point in self.carried or point in self.volumes


def _lines(text: str) -> list[str]:
    """As the kernel ends them: names have in them what other ways to count would end one at."""
    return [line for line in text.split("\n") if line]


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def _unescaped(text: str) -> str:
    for code, sign in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, sign)
    return text


def maps(text: str, mounts: Mounts) -> list[str]:
    """Reasons among what a process has mapped, of the text of its /proc/PID/maps: memory that it
    would share with its forks, and files that somebody may change under them."""
    found: dict[str, None] = {}
    seen: set[tuple[str, ...]] = set()  # a library has some five maps
    for line in _lines(text):
        _, rights, _, device, inode, *rest = line.split(maxsplit=5)
        key = rights[3], device, inode, *rest
        if key in seen:
            continue
        seen.add(key)
        name = _unescaped(rest[0]) if rest else ""
        if inode == "0":
            if rights[3] == "s":
                found[f"shared memory ({name or 'anonymous'})"] = None
            continue
        if _is_fixed(device, name, mounts):
            continue
        kind = "shared memory" if rights[3] == "s" else "a file that can change"
        found[f"{kind} is mapped: {name}"] = None
    return _few([*found], "more maps like these")


def _is_fixed(device: str, name: str, mounts: Mounts) -> bool:
    """Whether nobody in the sandbox can write to a mapped file."""
    major, minor = (int(word, 16) for word in device.split(":"))
    return (
        f"{major}:{minor}" in mounts.fixed
        and not name.endswith(_DELETED)
        and not any(_below(name, folder) for folder in (*mounts.volumes, *mounts.carried))
    )


def files(
    descriptors: Sequence[Descriptor],
    mounts: Mounts,
    dropped: list[str] | None = None,
    inner: Mapping[int, FileRow] | None = None,
) -> tuple[list[str], list[FileRow]]:
    """Reasons among what a process has open, and what a fork has to open to have the same.

    Its standard streams, as long as they are pipes or nothing, and its channel a fork gets anew.
    Reasons are put into `dropped` instead, where that is given, and the fork has nothing there.
    `inner` are descriptors that it makes anew.
    """
    inner = inner or {}
    reasons: list[str] = []
    rows: list[FileRow] = []
    renewed: set[int] = set()
    carried: set[int] = set()
    for found in sorted(descriptors, key=lambda one: one.number):
        number, kind = found.number, stat.S_IFMT(found.mode)
        if number == _CHANNEL and kind == stat.S_IFSOCK:
            continue
        if found.same is not None and found.same in renewed | carried:
            carried.add(number)
            rows.append({"fd": number, "same": found.same, "cloexec": _closes(found)})
        elif number < _STANDARD and (kind == stat.S_IFIFO or found.target == "/dev/null"):
            renewed.add(number)
        else:
            reason = None if number in inner else _why_not(found, mounts)
            if reason is None:
                carried.add(number)
                rows.append(inner.get(number) or _file(found))
            elif dropped is None:
                reasons.append(reason)
            else:
                dropped.append(reason)
                rows.append({"fd": number, "dropped": True, "cloexec": _closes(found)})
    standing = {found.number for found in descriptors}
    closed: list[FileRow] = [
        {"fd": number, "closed": True} for number in range(_STANDARD) if number not in standing
    ]
    rows += closed
    if len(rows) > _MOST_FILES:
        reasons.append(f"{len(rows)} open files ({_MOST_FILES} can be opened again)")
    return _few(reasons, "more open files like these"), [_without_lost(row, rows) for row in rows]


def _without_lost(row: FileRow, rows: Sequence[FileRow]) -> FileRow:
    """A row; a queue does not watch what is dropped."""
    watches = row.get("watches")
    if not watches:
        return row
    lost = {one.get("fd") for one in rows if one.get("dropped")}
    return {**row, "watches": [watch for watch in watches if watch[0] not in lost]}


def _file(found: Descriptor) -> FileRow:
    return {
        "fd": found.number,
        "path": found.target,
        "flags": found.field("flags", 8) & _KEPT_FLAGS,
        "offset": found.field("pos", 10),
        "cloexec": _closes(found),
    }


def _closes(found: Descriptor) -> bool:
    return bool(found.field("flags", 8) & os.O_CLOEXEC)


def _why_not(found: Descriptor, mounts: Mounts) -> str | None:
    """Why a fork cannot open the same itself; None where it can."""
    what, kind = f"descriptor {found.number}", stat.S_IFMT(found.mode)
    if found.target.startswith(("pipe:", "socket:", "anon_inode:", "/memfd:")) or kind in (
        stat.S_IFIFO, stat.S_IFSOCK,
    ):  # fmt: skip
        return f"{what} is {_named(found.target)}"
    if found.target in _DEVICES and kind == stat.S_IFCHR:
        return None
    if not found.leads:
        return f"{what} is a file that has no name any more: {found.target}"
    if kind not in (stat.S_IFREG, stat.S_IFDIR) or not mounts.carries(found.target):
        return f"{what} is {found.target}"
    if found.locked:
        return f"{what} is a locked file: {found.target}"
    if kind == stat.S_IFDIR and found.field("pos", 10):
        return f"{what} is a folder that is being listed: {found.target}"
    return None


def _named(target: str) -> str:
    kind = target.partition(":")[0]
    names = {"pipe": "a pipe", "socket": "a socket", "/memfd": "a file in memory"}
    if kind == "anon_inode":
        return target.partition(":")[2].strip("[]") + " (of the kernel's)"
    return names.get(kind, target)


def status(process: str, shadow: str) -> list[str]:
    """Reasons in the text of /proc/PID/status, of a process and of what it was made from."""
    own, first = _filters(process), _filters(shadow)
    if own == first:
        return []
    return [f"it has put itself under {own - first} more seccomp filters"]


def _filters(text: str) -> int:
    for line in _lines(text):
        if line.startswith("Seccomp_filters:"):
            return int(line.split()[1])
    return 0


def others(threads: Sequence[str], processes: Sequence[str]) -> list[str]:
    """Reasons among the other threads of a process and the other processes of its sandbox."""
    found = [f"thread {name}" for name in threads]
    return _few(found + [f"process {name}" for name in processes], "more of them")


def _few(reasons: list[str], rest: str) -> list[str]:
    left = len(reasons) - _MOST_NAMED
    return reasons if left <= 0 else [*reasons[:_MOST_NAMED], f"{left} {rest}"]
