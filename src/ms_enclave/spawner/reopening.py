"""Has a new process open what the one had that it goes on from, before anything in it runs.

Each file is opened anew, at the same place: no two processes are ever to share an open file. The
process makes the calls itself, as it was ordered, with the rights that it has in its sandbox and in
the view that it has there. A thread that goes on first would find its descriptors closed, and what
it opened then would have their numbers.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._shapes import FileRow

__all__ = ["Opened", "ReopenError", "reopen"]

_PIPE2, _SOCKETPAIR, _EVENTFD2, _EPOLL_CREATE1, _EPOLL_CTL = 293, 53, 290, 291, 233
_LSEEK, _FCNTL, _CHDIR, _UMASK, _CLOSE, _OPENAT, _DUP3 = 8, 72, 80, 95, 3, 257, 292
"""Numbers of x86-64: nothing else has carriers."""
_SETFD, _SETFL, _DUPFD_CLOEXEC = 2, 4, 1030
_ADD, _COUNTS_DOWN = 1, 1
_UNIX, _SOCK_CLOEXEC = 1, 0o2000000
_AT_FDCWD = -100
_STANDARD = 3
_PATH = 0o10000000  # O_PATH


class Opened:
    """What a process had open, its folder and its umask."""

    __slots__ = ("cwd", "files", "umask")

    def __init__(self, files: Sequence[FileRow], cwd: str, umask: int) -> None:
        self.files = files
        self.cwd = cwd
        self.umask = umask


class ReopenError(Exception):
    """What was open is not there to be opened, or cannot be; the text says what."""


class _Process:
    """Makes calls in a stopped process.

    `call` has it make one, and gives what comes of it, an errno as a negative number; `put` writes
    bytes where it finds them, and gives the address, and `get` gives what is there then.
    """

    def __init__(
        self,
        call: Callable[..., int],
        put: Callable[[bytes], int],
        get: Callable[[int], bytes],
        free: int,
    ) -> None:
        self._call = call
        self._put = put
        self._get = get
        self._free = free
        self.ends: dict[tuple[str, int], int] = {}
        """Other ends of what was made, by what it is, that have no number of theirs yet: out of
        the way, from `free` on."""

    def make(self, what: str, number: int, *arguments: int) -> int:
        result = self._call(number, *arguments)
        if result < 0:
            raise ReopenError(f"{what}: {os.strerror(-result)}")
        return result

    def open(self, path: str, flags: int) -> int:
        where = self._put(os.fsencode(path) + b"\0")
        return self.make(path, _OPENAT, _AT_FDCWD, where, flags | os.O_CLOEXEC, 0)

    def enter(self, path: str) -> None:
        self.make(path, _CHDIR, self._put(os.fsencode(path) + b"\0"))

    def place(self, opened: int, number: int, *, closes: bool) -> None:
        """Give an open file the number that it is to have."""
        what = f"descriptor {number}"
        if opened != number:
            self.copy(opened, number, closes=closes)
            self.make(what, _CLOSE, opened)
        elif not closes:
            self.make(what, _FCNTL, number, _SETFD, 0)

    def two(self, what: str, order: Callable[[int], tuple[int, ...]]) -> tuple[int, int]:
        """Two descriptors that a call leaves in memory: `order` is the call, for an address."""
        self.make(what, *order(self._put(bytes(8))))
        one, other = struct.unpack("=2i", self._get(8))
        return one, other

    def watch(self, queue: int, watched: int, events: int, data: int) -> None:
        where = self._put(struct.pack("=IQ", events, data))
        self.make(f"descriptor {queue}", _EPOLL_CTL, queue, _ADD, watched, where)

    def put_aside(self, opened: int) -> int:
        """Move a descriptor to where nobody is to have one."""
        moved = self.make(f"descriptor {opened}", _FCNTL, opened, _DUPFD_CLOEXEC, self._free)
        self.make(f"descriptor {opened}", _CLOSE, opened)
        return moved

    def copy(self, opened: int, number: int, *, closes: bool) -> None:
        """Have the same open file under one more number."""
        self.make(f"descriptor {number}", _DUP3, opened, number, os.O_CLOEXEC if closes else 0)


def reopen(
    opened: Opened,
    call: Callable[..., int],
    put: Callable[[bytes], int],
    get: Callable[[int], bytes],
) -> None:
    """Do it in a process that has no files but its streams and its channel. See `_Process`.

    Raises ReopenError; whoever asked ends the process then.
    """
    free = max((row.get("fd", 0) for row in opened.files), default=0) + 1
    process = _Process(call, put, get, free)
    process.make("umask", _UMASK, opened.umask)
    process.enter(opened.cwd)
    for row in opened.files:
        _open_again(process, row)
    for row in opened.files:  # what a queue watches is there by now
        for watch in row.get("watches", ()):
            process.watch(row.get("fd", -1), *watch)


def _open_again(process: _Process, row: FileRow) -> None:
    number, closes = row.get("fd", -1), row.get("cloexec", False)
    same, path = row.get("same"), row.get("path", "")
    flags, offset = row.get("flags", 0), row.get("offset", 0)
    if row.get("closed"):
        process.make(f"descriptor {number}", _CLOSE, number)
    elif same is not None:
        process.copy(same, number, closes=closes)
    elif row.get("dropped"):
        # Its number is taken: what is opened next must not be had for it. Nothing can be read from
        # it or written to it, and what a program prints is lost.
        spare = (os.devnull, os.O_RDWR) if number < _STANDARD else ("/", _PATH)
        process.place(process.open(*spare), number, closes=closes)
    elif any(kind in row for kind in ("pipe", "pair", "count", "watches")):
        made = _make_anew(process, row)
        if flags and "count" not in row:
            process.make(f"descriptor {number}", _FCNTL, made, _SETFL, flags)
        process.place(made, number, closes=closes)
    else:
        # A pipe that has come into a file's place would hold up the station until somebody comes.
        found = process.open(path, flags | os.O_NONBLOCK)
        if not flags & os.O_NONBLOCK:
            process.make(path, _FCNTL, found, _SETFL, flags)
        if offset:
            process.make(path, _LSEEK, found, offset, os.SEEK_SET)
        process.place(found, number, closes=closes)


def _make_anew(process: _Process, row: FileRow) -> int:
    """What is nobody else's; the other end is put aside until its own number comes."""
    what = f"descriptor {row.get('fd', -1)}"
    if "watches" in row:
        return process.make(what, _EPOLL_CREATE1, os.O_CLOEXEC)
    if "count" in row:
        flags = os.O_CLOEXEC | row.get("flags", 0) | (_COUNTS_DOWN if row.get("counts_down") else 0)
        return process.make(what, _EVENTFD2, row["count"], flags)
    key = ("pipe", row["pipe"]) if "pipe" in row else ("pair", row.get("pair", 0))
    made = process.ends.pop(key, None)
    if made is not None:
        return made
    kind = row.get("kind", 0) | _SOCK_CLOEXEC
    ends = process.two(
        what,
        lambda where: (
            (_PIPE2, where, os.O_CLOEXEC) if "pipe" in row else (_SOCKETPAIR, _UNIX, kind, 0, where)
        ),
    )
    own = row.get("end", 0)
    process.ends[key] = process.put_aside(ends[1 - own])
    return ends[own]
