"""The files of a sandbox, opened inside it, with the rights of its user and by its own names.

Every operation is a generator that does a little at a time. What programs planted is met like this:
links are followed as any program would, except where a tree is walked; nothing but a plain file is
read or written, and opening anything else waits for nobody.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat

from .call import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .call import Call
    from .loop import Steps

__all__ = [
    "OPERATIONS",
    "NotPlain",
    "Page",
    "copy_tree",
    "describe",
    "open_folder",
    "open_plain",
    "remove_tree",
]

_CHUNK = 1 << 16
_PAGE = 200
_PAGE_BYTES = 48 << 10
_REPLACE_LIMIT = 64 << 20
_OPEN_DEPTH = 40
_numbers = itertools.count()
_CAREFUL = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotPlain(OSError):
    """There is something at the path, but no plain file."""


def open_plain(path: bytes, flags: int, mode: int = 0o666) -> int:
    """Open a plain file; never waits for the other end of a FIFO, never becomes a terminal's."""
    descriptor = os.open(path, flags | _CAREFUL, mode)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise NotPlain(errno.EINVAL, "not a plain file")


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# --- one file ---


def read(call: Call) -> Steps[dict[str, Any]]:
    offset = call.number_of("offset", 0) or 0
    left = call.number_of("limit")
    if offset < 0 or (left is not None and left < 0):
        raise Refused("a negative offset or limit")
    descriptor = open_plain(call.path(), os.O_RDONLY)
    try:
        if offset:
            os.lseek(descriptor, offset, os.SEEK_SET)
        while left is None or left > 0:
            size = yield from call.room()
            data = os.read(descriptor, size if left is None else min(size, left))
            if not data:
                break
            call.send(data)
            if left is not None:
                left -= len(data)
            yield 0
    finally:
        os.close(descriptor)
    return {}


def write(call: Call) -> Steps[dict[str, Any]]:
    path = call.path()
    mode = call.number_of("mode")
    append = call.flag("append")
    flags = os.O_WRONLY | os.O_CREAT
    flags |= os.O_EXCL if call.flag("exclusive") else 0
    flags |= os.O_APPEND if append else 0
    try:
        descriptor = open_plain(path, flags, 0o666 if mode is None else mode & 0o777)
    except FileNotFoundError:
        if not call.flag("parents", True):
            raise
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = open_plain(path, flags, 0o666 if mode is None else mode & 0o777)
    written = 0
    try:
        if not append:
            os.ftruncate(descriptor, 0)
        while True:
            data = yield from call.receive()
            if not data:
                break
            write_all(descriptor, data)
            written += len(data)
            yield 0
        if mode is not None:
            os.fchmod(descriptor, mode & 0o7777)
    finally:
        os.close(descriptor)
    return {"written": written}


def replace(call: Call) -> Steps[dict[str, Any]]:
    path = os.path.realpath(call.path())
    old = call.text("old").encode("utf-8", "surrogateescape")
    new = call.text("new").encode("utf-8", "surrogateescape")
    count = call.number_of("count")
    if not old:
        raise Refused("nothing to replace")
    descriptor = open_plain(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        content = yield from _read_whole(descriptor)
    finally:
        os.close(descriptor)
    found = content.count(old)
    if count is not None:
        found = min(found, count)
    if found:
        yield from _store(path, content.replace(old, new, found), status)
    return {"count": found}


def _read_whole(descriptor: int) -> Steps[bytes]:
    content = bytearray()
    while True:
        data = os.read(descriptor, 16 * _CHUNK)
        if not data:
            return bytes(content)
        content += data
        if len(content) > _REPLACE_LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        yield 0


def _store(path: bytes, content: bytes, status: os.stat_result) -> Steps[None]:
    """Put new content in a file's place: all of it or, on a full disk, nothing."""
    temporary = os.path.join(os.path.dirname(path), b".ms-enclave-%d" % os.getpid())
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFUL, 0o600)
    except PermissionError:
        # The file may be ours to write in a folder that is not.
        descriptor = open_plain(path, os.O_WRONLY | os.O_TRUNC)
        temporary = b""
    try:
        try:
            for start in range(0, len(content), 16 * _CHUNK):
                write_all(descriptor, content[start : start + 16 * _CHUNK])
                yield 0
            if temporary:
                _take_over(descriptor, status)
        finally:
            os.close(descriptor)
        if temporary:
            os.replace(temporary, path)
    except BaseException:
        if temporary:
            _unlink_quietly(temporary)
        raise


def _take_over(descriptor: int, status: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):  # else it is a file of ours from now on
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


def _unlink_quietly(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        return


# --- what is where ---


def describe(status: os.stat_result) -> dict[str, Any]:
    """A stat result as it goes to the host."""
    kind = "other"
    if stat.S_ISREG(status.st_mode):
        kind = "file"
    elif stat.S_ISDIR(status.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(status.st_mode):
        kind = "symlink"
    return {
        "type": kind,
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "modified": status.st_mtime,
    }


def stat_path(call: Call) -> Steps[dict[str, Any]]:
    yield 0
    return describe(os.stat(call.path(), follow_symlinks=call.flag("follow", True)))


def exists(call: Call) -> Steps[dict[str, Any]]:
    yield 0
    try:
        os.lstat(call.path())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return {"exists": False}
        raise
    return {"exists": True}


def list_folder(call: Call) -> Steps[dict[str, Any]]:
    """Pages of `[relative path, description]`, folder by folder; links are not followed.

    Where there are more than the limit, which ones come is left open: sorting them all would take
    as much memory as a program inside likes.
    """
    top = call.path()
    left = call.number_of("limit") or 0
    depth = call.number_of("depth", 1) or 1
    page = Page(call)
    todo = [(b"", depth)]
    while todo and left > 0:
        folder, levels = todo.pop()
        try:
            names = yield from _names(os.path.join(top, folder) if folder else top, left)
        except OSError:
            if not folder:
                raise
            continue  # closed to us, or gone meanwhile
        deeper: list[tuple[bytes, int]] = []
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.lstat(os.path.join(top, path))
            except OSError:
                continue
            left -= 1
            yield from page.add([path.decode("utf-8", "surrogateescape"), describe(status)])
            if levels > 1 and stat.S_ISDIR(status.st_mode):
                deeper.append((path, levels - 1))
        todo.extend(reversed(deeper))
    yield from page.flush()
    return {}


def _names(folder: bytes, limit: int) -> Steps[list[bytes]]:
    names: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) >= limit:
                break
            if len(names) % 1000 == 0:
                yield 0
    names.sort()
    return names


class Page:
    """Entries on their way to the host, many a frame."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._entries: list[Any] = []
        self._size = 0

    def add(self, entry: list[Any]) -> Steps[None]:
        size = 12 * len(entry[0]) + 200  # at most: JSON writes a character in twelve bytes
        if len(self._entries) >= _PAGE or self._size + size > _PAGE_BYTES:
            yield from self.flush()
        self._entries.append(entry)
        self._size += size

    def flush(self) -> Steps[None]:
        entries, self._entries, self._size = self._entries, [], 0
        if entries:
            yield from self._call.send_page(entries)
        yield 0


# --- changing what is where ---


def mkdir(call: Call) -> Steps[dict[str, Any]]:
    yield 0
    if call.flag("parents", True):
        os.makedirs(call.path(), exist_ok=True)
    else:
        os.mkdir(call.path())
    return {}


def move(call: Call) -> Steps[dict[str, Any]]:
    source, target = call.path("source"), call.path("target")
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        yield from _move_across(source, target)
    return {}


def _move_across(source: bytes, target: bytes) -> Steps[None]:
    """To another file system: a copy beside the target that then takes its place."""
    source, target = source.rstrip(b"/"), target.rstrip(b"/")
    parent = os.path.dirname(target) or b"/"
    temporary = os.path.join(parent, b".ms-enclave-%d" % os.getpid())
    try:
        yield from copy_tree(source, temporary)
        os.rename(temporary, target)
    except BaseException:
        yield from _discard(temporary)
        raise
    yield from remove_tree(source)


def _discard(path: bytes) -> Steps[None]:
    try:
        yield from remove_tree(path)
    except OSError:
        return  # the failure that led here says more


def copy_tree(source: bytes, target: bytes) -> Steps[None]:
    """Copy a file, link or folder with modes and times; devices and the like are left out."""
    todo = [(source, target)]
    folders: list[tuple[bytes, os.stat_result]] = []
    while todo:
        old, new = todo.pop()
        status = os.lstat(old)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(old), new)
        elif stat.S_ISDIR(status.st_mode):
            os.mkdir(new, 0o700)
            folders.append((new, status))
            names = os.listdir(old)
            todo.extend((os.path.join(old, name), os.path.join(new, name)) for name in names)
        elif stat.S_ISREG(status.st_mode):
            yield from _copy_file(old, new)
            _copy_status(new, status)
        yield 0
    for path, status in reversed(folders):
        _copy_status(path, status)


def _copy_file(source: bytes, target: bytes) -> Steps[None]:
    old = open_plain(source, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        new = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _CAREFUL, 0o600)
        try:
            while True:
                data = os.read(old, 4 * _CHUNK)
                if not data:
                    return
                write_all(new, data)
                yield 0
        finally:
            os.close(new)
    finally:
        os.close(old)


def _copy_status(path: bytes, status: os.stat_result) -> None:
    os.chmod(path, stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(call: Call) -> Steps[dict[str, Any]]:
    path = call.path()
    if stat.S_ISDIR(os.lstat(path).st_mode):
        if call.flag("recursive"):
            yield from remove_tree(path)
        else:
            os.rmdir(path)
    else:
        os.unlink(path)
    return {}


def remove_tree(path: bytes) -> Steps[None]:
    """Remove a file, link or folder with everything below, following no link.

    Folders are held open and emptied by name within them, so that swapping one for a link meanwhile
    leads nowhere. What is nested deeper than a few dozen levels is first moved up: neither names
    that are too long nor the number of open files can stop it.
    """
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    top = open_folder(path, None)
    try:
        while True:
            moved = yield from _empty(top)
            if not moved:
                break
    finally:
        os.close(top)
    os.rmdir(path)


def open_folder(name: bytes, parent: int | None) -> int:
    """Open a folder that is no link. Raises OSError.

    A kernel (gVisor's) may follow a link in spite of O_NOFOLLOW where a folder is asked for, so
    what was opened has to be what the name itself stands for.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | _CAREFUL
    opened = os.open(name, flags, dir_fd=parent)
    try:
        named = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not os.path.samestat(named, os.fstat(opened)):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except BaseException:
        os.close(opened)
        raise
    return opened


def _empty(top: int) -> Steps[int]:
    """Remove what is below an open folder; gives how many deep folders were moved up instead."""
    moved = 0
    stack = [(os.dup(top), b"", _list_open(top))]
    try:
        while stack:
            folder, own_name, names = stack[-1]
            if not names:
                os.close(folder)
                stack.pop()
                if stack:
                    os.rmdir(own_name, dir_fd=stack[-1][0])
                continue
            name = names.pop()
            if _remove_plain(name, folder):
                continue
            if len(stack) < _OPEN_DEPTH:
                below = open_folder(name, folder)
                stack.append((below, name, _list_open(below)))
            else:
                moved += 1
                new = b".ms-enclave-%d-%d" % (os.getpid(), next(_numbers))
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=top)
            yield 0
    finally:
        for folder, _, _ in stack:
            os.close(folder)
    return moved


def _list_open(folder: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(folder)]


def _remove_plain(name: bytes, folder: int) -> bool:
    """Remove anything but a folder."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise
        return False
    return True


OPERATIONS = {
    "read": read,
    "write": write,
    "replace": replace,
    "stat": stat_path,
    "exists": exists,
    "list": list_folder,
    "mkdir": mkdir,
    "move": move,
    "remove": remove,
}
