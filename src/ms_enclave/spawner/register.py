"""What this process has running, for whoever looks from outside: a file in memory, a row a sandbox.

It is found among the process's open files, so that it is there exactly as long as the process, and
who may read it are those who may do anything to the process. A row is written at once and at its
own place; what is not a whole row is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = ["add", "notes_of", "read"]

_NAME = "ms-enclave-sandboxes"
_ROW = 512
_MOST_ROWS = 100_000


class _Open:
    """The file of this process, there while it has a row in it."""

    file = -1
    rows = 0
    free: list[int] = []  # noqa: RUF012 - there is one


def _close() -> None:
    if _Open.file >= 0:
        os.close(_Open.file)
    _Open.file, _Open.rows, _Open.free = -1, 0, []


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close)  # what is its parent's is not its own


def add(row: Mapping[str, Any]) -> Callable[[], None]:
    """Show a row until what is returned is called. Precondition: on one thread."""
    data = json.dumps({**row, "pid": os.getpid()}).encode()
    if len(data) > _ROW:
        raise ValueError(f"a row of {len(data)} bytes, and {_ROW} is the most")
    if _Open.file < 0:
        _Open.file = os.memfd_create(_NAME)
    owner = os.getpid()
    if _Open.free:
        place = _Open.free.pop()
    else:
        place, _Open.rows = _Open.rows, _Open.rows + 1

    def remove() -> None:
        if os.getpid() != owner:
            return  # a fork lies between
        with contextlib.suppress(OSError):  # the memory is there; and what has ended has ended
            os.pwrite(_Open.file, bytes(_ROW), place * _ROW)
        _Open.free.append(place)
        if len(_Open.free) == _Open.rows:
            _close()

    try:
        os.pwrite(_Open.file, data.ljust(_ROW), place * _ROW)
    except BaseException:
        remove()
        raise
    return remove


def read(pid: int) -> list[dict[str, Any]]:
    """The rows of a process; none where it has none, or is not for us to look into."""
    rows: list[dict[str, Any]] = []
    for file in _open_files(pid, _NAME):
        with contextlib.suppress(OSError), open(file, "rb") as opened:
            for _ in range(_MOST_ROWS):
                data = opened.read(_ROW)
                if not data:
                    break
                with contextlib.suppress(ValueError):
                    match json.loads(data.strip(b" \0") or b"null"):
                        case {"pid": number, **row} if number == pid:  # not one of its parent's
                            rows.append(row)
                        case _:
                            pass
    return rows


def notes_of(pid: int) -> list[dict[str, Any]]:
    """What a station holds for its next owner: a note for each sandbox that it keeps."""
    notes: dict[int, dict[str, Any]] = {}
    for file in _open_files(pid, "note"):
        with contextlib.suppress(OSError, ValueError), open(file, "rb") as opened:
            match json.loads(opened.read(1 << 20)):
                case {**note}:
                    notes[os.fstat(opened.fileno()).st_ino] = note
                case _:
                    pass
    return list(notes.values())


def _open_files(pid: int, name: str) -> list[str]:
    """Paths of the files in memory of that name that a process has open."""
    found: list[str] = []
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{entry}").partition(" ")[0] == f"/memfd:{name}":
                    found.append(f"{folder}/{entry}")
    return found
