"""Has a new process open what the one had that it goes on from, before anything in it runs.

Each file is opened anew, at the same place: no two processes are ever to share an open file. The
process makes the calls itself, as it was ordered, with the rights that it has in its sandbox and in
the view that it has there. A thread that goes on first would find its descriptors closed, and what
it opened then would have their numbers.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._shapes import FileRow

__all__ = ["Opened", "ReopenError", "reopen"]

_LSEEK, _FCNTL, _CHDIR, _UMASK, _CLOSE, _OPENAT, _DUP3 = 8, 72, 80, 95, 3, 257, 292
"""Numbers of x86-64: nothing else has carriers."""
_SETFD, _SETFL = 2, 4
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
    a path where it finds it, and gives the address.
    """

    def __init__(self, call: Callable[..., int], put: Callable[[bytes], int]) -> None:
        self._call = call
        self._put = put

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

    def copy(self, opened: int, number: int, *, closes: bool) -> None:
        """Have the same open file under one more number."""
        self.make(f"descriptor {number}", _DUP3, opened, number, os.O_CLOEXEC if closes else 0)


def reopen(opened: Opened, call: Callable[..., int], put: Callable[[bytes], int]) -> None:
    """Do it in a process that has no files but its streams and its channel. See `_Process`.

    Raises ReopenError; whoever asked ends the process then.
    """
    process = _Process(call, put)
    process.make("umask", _UMASK, opened.umask)
    process.enter(opened.cwd)
    for row in opened.files:
        _open_again(process, row)


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
    else:
        # A pipe that has come into a file's place would hold up the station until somebody comes.
        found = process.open(path, flags | os.O_NONBLOCK)
        if not flags & os.O_NONBLOCK:
            process.make(path, _FCNTL, found, _SETFL, flags)
        if offset:
            process.make(path, _LSEEK, found, offset, os.SEEK_SET)
        process.place(found, number, closes=closes)
