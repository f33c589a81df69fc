"""Where a sandbox's files are: one bounded file system, and whether a run has met its bounds."""

from __future__ import annotations

import errno
import os
import stat

from . import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Store", "has_file_of"]

_MOST_LOOKED_AT = 1000
_DEEPEST = 32
_TRIES = 5


class Store:
    """A sandbox's bounded layer store: one file system, mounted nowhere.

    `layered` says whether the work folder and /tmp are overlays above it (so that a checkpoint can
    take layers away) or plain bounded file systems; `disk` and `inodes` are its bounds.
    """

    __slots__ = ("_held", "descriptor", "disk", "inodes", "layered")

    def __init__(self, descriptor: int, layered: bool, disk: int, inodes: int) -> None:
        self.descriptor = descriptor
        self.layered = layered
        self.disk = disk
        self.inodes = inodes
        self._held = (disk, inodes)

    def full(self) -> bool:
        """True if no byte or no inode is left; False once it is closed."""
        if self.descriptor < 0:
            return False
        free = os.fstatvfs(self.descriptor)
        return free.f_bfree == 0 or free.f_ffree == 0

    def bound(self, disk: int, inodes: int) -> None:
        """Hold it to so many bytes and inodes for now, and never to more than its own.

        What is stored already stays, also where that is more: then nothing can be added.
        Raises OSError.
        """
        wanted = (min(disk, self.disk), min(inodes, self.inodes))
        if self.descriptor < 0 or wanted == self._held:
            return
        for tries in range(_TRIES):
            now = os.fstatvfs(self.descriptor)
            used = (now.f_blocks - now.f_bfree) * now.f_frsize
            files = now.f_files - now.f_ffree + bool(tries)  # one is counted by halves
            options = {"size": str(max(wanted[0], used)), "nr_inodes": str(max(wanted[1], files))}
            try:
                calls.reconfigure(self.descriptor, options)
            except OSError as error:
                # Somebody inside has just stored more than was seen.
                if error.errno != errno.EINVAL or tries == _TRIES - 1:
                    raise
            else:
                self._held = wanted
                return

    def has_file_of(self, size: int, since: float) -> bool:
        """Whether a file has grown to exactly `size` bytes since then: see below."""
        return self.descriptor >= 0 and has_file_of(self.descriptor, size, since)

    def close(self) -> None:
        """Idempotent. The last to let go of a file system waits for the kernel: not the station, if
        this is called while the slot still has it."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def has_file_of(folder: int, size: int, since: float) -> bool:
    """Whether below a folder some file of exactly `size` bytes was written after `since` (s since
    the epoch): what a program leaves that was not allowed to write more into one.

    A bounded look: somebody hostile may have made a million files.
    """
    for count, found in enumerate(_files(folder, ".", _DEEPEST)):
        if count >= _MOST_LOOKED_AT:
            return False
        if stat.S_ISREG(found.st_mode) and found.st_size == size and found.st_mtime >= since:
            return True
    return False


def _files(parent: int, name: str, deepest: int) -> Iterator[os.stat_result]:
    """Everything in a folder and below, no link followed."""
    try:
        folder = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
        )
    except OSError:
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    yield entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # it has just gone
                if deepest and entry.is_dir(follow_symlinks=False):
                    yield from _files(folder, entry.name, deepest - 1)
    finally:
        os.close(folder)
