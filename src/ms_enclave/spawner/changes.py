"""What differs between two layers of files.

Nobody writes to a layer, and no link in one is followed. Times are no difference: who only looks at
a file changes one.
"""

from __future__ import annotations

import os
import stat

from . import layer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find"]

_PIECE = 1 << 20


def find(before: int, after: int, name: str, shown: str) -> Iterator[tuple[str, str, str]]:
    """Path, what became of it and what it is or was, of each thing that is not the same in two
    layers, by their descriptors. `name` is the folder's in both, and `shown` the sandbox's."""
    there = [os.stat(name, dir_fd=one, follow_symlinks=False) for one in (before, after)]
    yield from _compare(before, after, name, shown, there[0], there[1])


def _compare(
    before: int, after: int, path: str, shown: str,
    old: os.stat_result | None, new: os.stat_result | None,
) -> Iterator[tuple[str, str, str]]:  # fmt: skip
    last = old if new is None else new
    if last is None:
        return  # which is nowhere
    if old is None or new is None:
        yield shown, "removed" if new is None else "added", _kind(last)
    elif not _is_same(before, after, path, old, new):
        yield shown, "changed", _kind(new)
    olds, news = _entries(before, path, old), _entries(after, path, new)
    for name in sorted(olds.keys() | news.keys()):
        yield from _compare(
            before, after, f"{path}/{name}", f"{shown}/{name}", olds.get(name), news.get(name)
        )


def _kind(found: os.stat_result) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    return kinds.get(stat.S_IFMT(found.st_mode), "other")


def _entries(place: int, path: str, found: os.stat_result | None) -> dict[str, os.stat_result]:
    if found is None or not stat.S_ISDIR(found.st_mode):
        return {}
    folder = _open(place, path, os.O_DIRECTORY)
    try:
        return {
            name: os.stat(name, dir_fd=folder, follow_symlinks=False) for name in os.listdir(folder)
        }
    finally:
        os.close(folder)


def _open(place: int, path: str, flags: int = 0) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=place)


def _is_same(
    before: int, after: int, path: str, old: os.stat_result, new: os.stat_result
) -> bool:  # fmt: skip
    if (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid):
        return False
    if stat.S_ISLNK(new.st_mode):
        return os.readlink(path, dir_fd=before) == os.readlink(path, dir_fd=after)
    if not stat.S_ISREG(new.st_mode):
        return True
    return old.st_size == new.st_size and _has_same(before, after, path, new.st_size)


def _has_same(before: int, after: int, path: str, size: int) -> bool:
    """Whether two files of one size have the same in them, and the same attributes."""
    old = _open(before, path)
    try:
        new = _open(after, path)
        try:
            if _attributes(old) != _attributes(new):
                return False
            pieces = {*layer.pieces(old, size), *layer.pieces(new, size)}
            return all(_is_piece_same(old, new, start, end) for start, end in sorted(pieces))
        finally:
            os.close(new)
    finally:
        os.close(old)


def _attributes(file: int) -> dict[str, bytes]:
    return {name: os.getxattr(file, name) for name in layer.attributes(file)}


def _is_piece_same(old: int, new: int, start: int, end: int) -> bool:
    """A hole reads as the zeros that it stands for."""
    for place in range(start, end, _PIECE):
        count = min(_PIECE, end - place)
        if os.pread(old, count, place) != os.pread(new, count, place):
            return False
    return True
