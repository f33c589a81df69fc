"""What changes in a folder, as the kernel tells it (inotify), in bounded memory.

What the host does not take waits in the kernel's queue, and when that is full the kernel drops the
rest and says so: the host learns that something was lost, never that nothing happened.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time

from .files import Page
from .loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterator

    from .call import Call
    from .loop import Steps

__all__ = ["OPERATIONS"]

_BUFFER = 1 << 16
_MOST_FOLDERS = 8192
_TOLD_TWICE = 1.0  # s
_EVENT = struct.Struct("=iIII")  # struct inotify_event: wd, mask, cookie, len (linux/inotify.h)

_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_UNMOUNT, _OVERFLOW, _IGNORED = 0x2000, 0x4000, 0x8000
_ONLY_FOLDERS, _NO_LINK, _NO_UNLINKED, _IS_FOLDER = 0x1000000, 0x2000000, 0x4000000, 0x40000000

_WANTED = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLY_FOLDERS | _NO_UNLINKED
_CAME, _WENT = _CREATE | _MOVED_TO, _DELETE | _MOVED_FROM
_TOP_GONE = _DELETE_SELF | _MOVE_SELF | _UNMOUNT
_GONE_MEANWHILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)


def watch(call: Call) -> Steps[dict[str, Any]]:
    """Pages of `[path below the folder, what happened, whether to a folder]`, until cancelled.

    The first entry says `watching`. Ends by itself when the folder is gone.
    """
    watcher = _Watcher(call, call.path(), call.flag("recursive"))
    try:
        yield from watcher.run()
    finally:
        call.loop.unwatch(watcher.descriptor)
        os.close(watcher.descriptor)
    return {}


class _Watcher:
    def __init__(self, call: Call, top: bytes, recursive: bool) -> None:
        self._call = call
        self._top = top
        self._recursive = recursive
        self._page = Page(call)
        self._last: list[Any] = []
        self._begun = False
        self._calls = _Inotify()
        self._folders: dict[int, bytes] = {}
        """Watched folders by the kernel's number for the watch; b"" is the top."""
        self._announced: set[bytes] = set()
        """What was found in a new folder, and may be told by the kernel a second time: it can be
        found a moment before that."""
        self._announced_until = 0.0
        self.descriptor = self._calls.begin()

    def run(self) -> Steps[None]:
        number = self._calls.add(self.descriptor, self._top, _WANTED | _TOP_GONE)
        self._folders[number] = b""
        if self._recursive:
            yield from self._add_below(b"", announce=False)
        self._begun = True
        yield from self._tell(b"", "watching", True)
        yield from self._page.flush()
        while (yield from self._pass_on()):
            yield from self._page.flush()
        yield from self._page.flush()

    def _pass_on(self) -> Steps[bool]:
        """Wait for the next events and pass them on; False after the last."""
        self._last = []
        try:
            data = os.read(self.descriptor, _BUFFER)
        except BlockingIOError:
            if time.monotonic() > self._announced_until:
                self._announced.clear()
            self._call.loop.watch(self.descriptor, READ, self._call.task)
            yield None
            return True
        for number, mask, name in _events(data):
            folder = self._folders.get(number)
            if mask & _OVERFLOW:
                yield from self._recover()
            elif folder == b"" and mask & _TOP_GONE:
                yield from self._tell(b"", "deleted", True)
                return False
            elif mask & _IGNORED:
                self._folders.pop(number, None)
            elif folder is not None:
                yield from self._pass_one_on(os.path.join(folder, name), mask)
        return True

    def _pass_one_on(self, path: bytes, mask: int) -> Steps[None]:
        is_folder = bool(mask & _IS_FOLDER)
        if mask & _WENT:
            self._announced.discard(path)
            if is_folder:
                self._forget_below(path)
            yield from self._tell(path, "deleted", is_folder)
        elif mask & _CREATE and path in self._announced:
            self._announced.discard(path)
        elif mask & _CAME:
            yield from self._tell(path, "created", is_folder)
            if is_folder and self._recursive:
                yield from self._add(path, announce=True)
        elif mask & _MODIFY:
            yield from self._tell(path, "modified", is_folder)

    def _tell(self, path: bytes, what: str, is_folder: bool) -> Steps[None]:
        entry = [path.decode("utf-8", "surrogateescape"), what, is_folder]
        if entry != self._last:  # a program that writes a byte at a time is one change
            self._last = entry
            yield from self._page.add(entry)

    def _recover(self) -> Steps[None]:
        """Say that events were lost, and watch the folders that may be new."""
        yield from self._tell(b"", "lost", True)
        if self._recursive:
            yield from self._add_below(b"", announce=False)

    # --- folders below ---

    def _add(self, folder: bytes, announce: bool) -> Steps[None]:
        """Watch a folder, and all in it."""
        if (yield from self._watch_one(folder)):
            yield from self._add_below(folder, announce)

    def _add_below(self, top: bytes, announce: bool) -> Steps[None]:
        """Watch the folders below one, and tell what is in them where that is new."""
        todo = [top]
        while todo:
            folder = todo.pop()
            try:
                names = os.listdir(os.path.join(self._top, folder))
            except OSError:
                continue  # closed to us, or gone meanwhile
            for name in names:
                path = os.path.join(folder, name)
                is_folder = self._is_folder(path)
                if announce:
                    self._announced.add(path)
                    self._announced_until = time.monotonic() + _TOLD_TWICE
                    yield from self._tell(path, "created", is_folder)
                if is_folder and (yield from self._watch_one(path)):
                    todo.append(path)
                yield 0

    def _watch_one(self, folder: bytes) -> Steps[bool]:
        """Watch one more folder; False where that cannot be.

        Raises OSError before the watch has begun; later it is said that something was lost.
        """
        path = os.path.join(self._top, folder)
        try:
            if len(self._folders) >= _MOST_FOLDERS:
                raise OSError(errno.ENOSPC, "too many folders to be watched")
            self._folders[self._calls.add(self.descriptor, path, _WANTED | _NO_LINK)] = folder
        except OSError as error:
            if error.errno in _GONE_MEANWHILE:
                return False
            if not self._begun:
                raise
            yield from self._tell(b"", "lost", True)
            return False
        return True

    def _forget_below(self, path: bytes) -> None:
        """A folder that was moved away is not watched where it is now."""
        below = path + b"/"
        for number, folder in list(self._folders.items()):
            if folder == path or folder.startswith(below):
                del self._folders[number]
                self._calls.remove(self.descriptor, number)

    def _is_folder(self, path: bytes) -> bool:
        try:
            return stat.S_ISDIR(os.lstat(os.path.join(self._top, path)).st_mode)
        except OSError:
            return False


def _events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    start = 0
    while start < len(data):
        number, mask, _cookie, length = _EVENT.unpack_from(data, start)
        start += _EVENT.size + length
        yield number, mask, data[start - length : start].rstrip(b"\0")


class _Inotify:
    """The system calls, which Python has none of its own for."""

    def __init__(self) -> None:
        try:
            import ctypes
        except ImportError:  # a Python that was built without
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
        self._ctypes = ctypes
        self._library = ctypes.CDLL(None, use_errno=True)

    def begin(self) -> int:
        return self._checked(self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, descriptor: int, path: bytes, mask: int) -> int:
        add = self._library.inotify_add_watch
        return self._checked(
            add(descriptor, self._ctypes.c_char_p(path), self._ctypes.c_uint32(mask))
        )

    def remove(self, descriptor: int, number: int) -> None:
        self._library.inotify_rm_watch(descriptor, number)  # or it has gone by itself

    def _checked(self, result: int) -> int:
        if result < 0:
            number = self._ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


OPERATIONS = {"watch": watch}
