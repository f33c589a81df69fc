"""What a sandbox has stored at one moment, copied aside: the lower layer of its forks.

A copy, so that the sandbox itself goes on with the files, folders and maps that it has open, and so
that no number of forks of forks makes a stack of layers. The folders are seen as its programs see
them and are somebody hostile's: no link is followed, no other file system entered, and everything
is counted.
"""

from __future__ import annotations

import errno
import os
import stat

from . import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Layer", "TooMuchError", "attributes", "pieces"]

_IDS = 65536
_NOBODY = 65534
_MOST_ENTRIES = 20_000
_MOST_BYTES = 1 << 30
_DEEPEST = 200
_BENEATH = 0x01 | 0x02 | 0x04 | 0x08  # RESOLVE_NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_ATTRIBUTES = calls.MOUNT_NOSUID | calls.MOUNT_NODEV
_ROOM = 64
"""Inodes beside those of the sandbox: its folders' own."""


class TooMuchError(Exception):
    """There is more of it than is copied while others wait."""


class Layer:
    """A file system, mounted nowhere, with a folder for each that was copied. Ids in it are those
    inside of the sandbox, so that a mount of it can show them as anybody's.

    Raises OSError or TooMuchError, and then nothing is left.
    """

    def __init__(self, disk: int, inodes: int, first_id: int | None) -> None:
        options = {"size": str(disk), "nr_inodes": str(inodes + _ROOM), "mode": "0700"}
        self.descriptor = calls.make_filesystem("tmpfs", options, _ATTRIBUTES)
        self._first = first_id or 0
        self._left = _MOST_ENTRIES
        self._bytes = min(disk, _MOST_BYTES)
        self._seen: dict[tuple[int, int], str] = {}

    @classmethod
    def of(cls, descriptor: int) -> Layer:
        """One that was made before, and filled by the station's owner. The descriptor is its."""
        made = cls.__new__(cls)
        made.descriptor = descriptor
        return made

    def take(self, name: str, source: str) -> None:
        """Copy what is in a folder into one of that name."""
        os.mkdir(name, 0o700, dir_fd=self.descriptor)
        folder = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self._seen.clear()
            self._take_folder(folder, name, _DEEPEST)
        finally:
            os.close(folder)

    def owner(self, name: str) -> tuple[int, tuple[int, int]]:
        """Mode and owner, inside, of a folder that was copied."""
        found = os.stat(name, dir_fd=self.descriptor)
        return stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)

    def show(self, first_id: int | None, users: int) -> int:
        """A descriptor of it as it is for a sandbox whose ids begin at `first_id`, the caller's;
        `users` is one of its user namespace. With a one-id map they are nobody else's anyhow."""
        tree = calls.copy_of(self.descriptor)
        try:
            calls.mount_setattr(
                tree, calls.MOUNT_READ_ONLY, id_map=None if first_id is None else users
            )
        except BaseException:
            os.close(tree)
            raise
        return tree

    def close(self) -> None:
        """Idempotent. Whoever has it below its own files goes on having it."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    # --- copying --------------------------------------------------------------------------------

    def _take_folder(self, source: int, path: str, deepest: int) -> None:
        if not deepest:
            raise TooMuchError(f"folders that are more than {_DEEPEST} deep")
        with os.scandir(source) as entries:
            for entry in entries:
                self._left -= 1
                if self._left < 0:
                    raise TooMuchError(f"more than {_MOST_ENTRIES} files and folders")
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it has just gone
                self._take_entry(source, entry.name, f"{path}/{entry.name}", found, deepest)
        self._finish(path, os.fstat(source))

    def _take_entry(
        self, source: int, name: str, path: str, found: os.stat_result, deepest: int
    ) -> None:
        if stat.S_ISDIR(found.st_mode):
            folder = _open(source, name, os.O_DIRECTORY)
            if folder is None:
                return
            try:
                os.mkdir(path, 0o700, dir_fd=self.descriptor)
                self._take_folder(folder, path, deepest - 1)
            finally:
                os.close(folder)
        elif stat.S_ISREG(found.st_mode):
            self._take_file(source, name, path)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), path, dir_fd=self.descriptor)
            self._finish(path, found)
        elif stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode):
            kind = stat.S_IFMT(found.st_mode)
            os.mknod(path, 0o600 | kind, dir_fd=self.descriptor)
            self._finish(path, found)

    def _take_file(self, source: int, name: str, path: str) -> None:
        file = _open(source, name, os.O_NONBLOCK)
        if file is None:
            return
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                return  # it was another one when it was looked at
            key = found.st_dev, found.st_ino
            if found.st_nlink > 1 and key in self._seen:
                here = self.descriptor
                os.link(self._seen[key], path, src_dir_fd=here, dst_dir_fd=here)
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            copy = os.open(path, flags, 0o600, dir_fd=self.descriptor)
            try:
                self._copy(file, copy, found.st_size)
                for attribute in attributes(file):
                    os.setxattr(copy, attribute, os.getxattr(file, attribute))
            finally:
                os.close(copy)
            self._seen[key] = path
            self._finish(path, found)
        finally:
            os.close(file)

    def _copy(self, file: int, copy: int, size: int) -> None:
        """What is in a file, and the holes as holes."""
        for start, end in pieces(file, size):
            self._bytes -= end - start
            if self._bytes < 0:
                raise TooMuchError("more bytes than can be copied at once")
            os.lseek(copy, start, os.SEEK_SET)
            while start < end:
                count = os.sendfile(copy, file, start, end - start)
                if not count:
                    break  # it has just been cut
                start += count
        os.ftruncate(copy, size)

    def _finish(self, path: str, found: os.stat_result) -> None:
        """Owner, mode and times, in this order: a change of the owner takes bits of the mode."""
        here = self.descriptor
        uid, gid = self._inside(found.st_uid), self._inside(found.st_gid)
        os.chown(path, uid, gid, dir_fd=here, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(path, stat.S_IMODE(found.st_mode), dir_fd=here)
        times = found.st_atime_ns, found.st_mtime_ns
        os.utime(path, ns=times, dir_fd=here, follow_symlinks=False)

    def _inside(self, number: int) -> int:
        inside = number - self._first
        return inside if 0 <= inside < _IDS else _NOBODY


def _open(folder: int, name: str, flags: int) -> int | None:
    """A file or folder directly in a folder; None for what has gone, is a link by now, or is of
    another file system."""
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return calls.openat2(folder, os.fsencode(name), flags, _BENEATH)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.ENXIO):
            return None
        raise


def pieces(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data: from, to."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
            end = min(size, os.lseek(file, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if start < end:
            yield start, end


def attributes(file: int) -> list[str]:
    """Names of those that a user can give."""
    return [name for name in os.listxattr(file) if name.startswith("user.")]
