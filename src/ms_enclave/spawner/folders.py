"""How much a folder holds, and removing it: of trees that a hostile program has made or is making.

Everything is reached from a descriptor of the folder above, one name at a time and through no link,
so that nothing outside can be counted or removed. Trees may be deeper than a path can be long.
"""

from __future__ import annotations

import contextlib
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["empty", "usage"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEP = 128
"""Folders that are held open on the way down."""


def usage(folder: str, most: int, owner: int | None = None) -> tuple[int, int]:
    """Bytes on the disk and files below a folder.

    With `owner` only what belongs to that user counts. A file with several names counts once.
    What is deeper than can be looked at counts as `most` files, and so does more than that.
    """
    used = files = 0
    seen: set[int] = set()
    for status in _statuses(folder):
        if status is None or files >= most:
            return used, most
        if owner is not None and status.st_uid != owner:
            continue
        files += 1
        if status.st_nlink == 1 or status.st_ino not in seen:
            used += status.st_blocks * 512
        if status.st_nlink > 1:
            seen.add(status.st_ino)
    return used, files


def _statuses(folder: str) -> Iterator[os.stat_result | None]:
    """The status of everything below a folder, None for what is too deep. What goes away meanwhile
    or cannot be entered is left out."""
    try:
        levels = [_Level(os.open(folder, _FOLDER))]
    except OSError:
        return
    try:
        while levels:
            status, below = levels[-1].step()
            if status is None:
                levels.pop().close()
                continue
            yield status
            if below >= 0:
                levels.append(_Level(below))
            if len(levels) > _DEEP:
                yield None
                return
    finally:
        for level in levels:
            level.close()


class _Level:
    """A folder that is being looked through."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._entries = os.scandir(descriptor)

    def step(self) -> tuple[os.stat_result | None, int]:
        """The next entry, and a descriptor of it if it is a folder; None after the last."""
        for entry in self._entries:
            below = -1
            try:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    below = os.open(entry.name, _FOLDER, dir_fd=self._descriptor)
            except OSError:
                continue
            return status, below
        return None, -1

    def close(self) -> None:
        self._entries.close()
        os.close(self._descriptor)


def empty(folder: str, owner: int | None = None) -> None:
    """Remove everything in a folder; with `owner`, what that user has put there.

    Nobody may be writing there any more. What cannot be removed stays.
    """
    try:
        top = os.open(folder, _FOLDER)
    except OSError:
        return
    try:
        while _remove_below(top, top, owner, 0):
            pass
    finally:
        os.close(top)


def _remove_below(top: int, current: int, owner: int | None, depth: int) -> bool:
    """Remove what is in a folder; True if something deep was moved to `top` instead."""
    moved = False
    for name in os.listdir(current):
        try:
            status = os.stat(name, dir_fd=current, follow_symlinks=False)
            if owner is not None and status.st_uid != owner:
                continue
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=current)
            elif depth >= _DEEP:
                os.rename(name, f".deep-{os.urandom(8).hex()}", src_dir_fd=current, dst_dir_fd=top)
                moved = True
            else:
                moved = _remove_folder(top, current, name, owner, depth) or moved
        except OSError:
            continue
    return moved


def _remove_folder(top: int, parent: int, name: str, owner: int | None, depth: int) -> bool:
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=parent)
        return False
    os.chmod(name, 0o700, dir_fd=parent)  # its owner may have closed it even for himself
    inside = os.open(name, _FOLDER, dir_fd=parent)
    try:
        moved = _remove_below(top, inside, owner, depth + 1)
    finally:
        os.close(inside)
    with contextlib.suppress(OSError):  # it, or something in it, cannot be removed: so it stays
        os.rmdir(name, dir_fd=parent)
    return moved
