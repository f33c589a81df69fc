from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest

from ms_enclave.spawner import reopening

if TYPE_CHECKING:
    from ms_enclave.spawner._shapes import FileRow

_OPENAT, _DUP3, _CHDIR = 257, 292, 80


class Orders:
    """Answers calls as a process would that has 4 as its first free number, and notes them."""

    def __init__(self, **failing: int) -> None:
        self.made: list[tuple[int, ...]] = []
        self.paths: list[bytes] = []
        self.failing = {int(number.lstrip("n")): error for number, error in failing.items()}

    def call(self, number: int, *arguments: int) -> int:
        self.made.append((number, *arguments))
        if number in self.failing:
            return -self.failing[number]
        return 4 if number == _OPENAT else 0

    def put(self, path: bytes) -> int:
        self.paths.append(path)
        return 0x1000

    def get(self, length: int) -> bytes:
        assert length == 8
        return struct.pack("=2i", 4, 5)

    def of(self, number: int) -> list[tuple[int, ...]]:
        return [order[1:] for order in self.made if order[0] == number]


def opened(*files: FileRow) -> reopening.Opened:
    return reopening.Opened(files, "/sandbox", 0o22)


def test_a_file_is_opened_where_nobody_can_hold_it_up_and_is_as_it_was() -> None:
    orders = Orders()
    flags = os.O_RDWR | os.O_APPEND
    row: FileRow = {"fd": 9, "path": "/tmp/a", "flags": flags, "offset": 5, "cloexec": False}
    reopening.reopen(opened(row), orders.call, orders.put, orders.get)
    assert orders.paths == [b"/sandbox\0", b"/tmp/a\0"]
    assert orders.of(_OPENAT) == [(-100, 0x1000, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0)]
    assert orders.made[-4:] == [(72, 4, 4, flags), (8, 4, 5, 0), (_DUP3, 4, 9, 0), (3, 4)]


def test_one_that_has_its_number_already_stays_there() -> None:
    orders = Orders()
    row: FileRow = {"fd": 4, "path": "/tmp/a", "flags": os.O_NONBLOCK, "offset": 0, "cloexec": True}
    reopening.reopen(opened(row), orders.call, orders.put, orders.get)
    assert orders.made[-1][0] == _OPENAT
    reopening.reopen(opened({**row, "cloexec": False}), orders.call, orders.put, orders.get)
    assert orders.made[-1] == (72, 4, 2, 0)


@pytest.mark.parametrize(("number", "path"), [(1, b"/dev/null\0"), (7, b"/\0")])
def test_what_is_dropped_has_its_number_still(number: int, path: bytes) -> None:
    orders = Orders()
    reopening.reopen(
        opened({"fd": number, "dropped": True, "cloexec": True}),
        orders.call,
        orders.put,
        orders.get,
    )
    assert orders.paths[-1] == path
    assert orders.of(_DUP3) == [(4, number, os.O_CLOEXEC)]
    has_path = orders.of(_OPENAT)[0][2] & os.O_PATH
    assert bool(has_path) is (number > 2)


def test_copies_and_closed_streams() -> None:
    orders = Orders()
    reopening.reopen(
        opened({"fd": 8, "same": 1, "cloexec": False}, {"fd": 0, "closed": True}),
        orders.call,
        orders.put,
        orders.get,
    )
    assert orders.made[-2:] == [(_DUP3, 1, 8, 0), (3, 0)]


@pytest.mark.parametrize("number", [_CHDIR, _OPENAT, _DUP3])
def test_what_cannot_be_done_is_said(number: int) -> None:
    orders = Orders(**{f"n{number}": errno.ENOENT})
    row: FileRow = {"fd": 9, "path": "/tmp/a", "flags": 0, "offset": 0, "cloexec": False}
    with pytest.raises(reopening.ReopenError, match="No such file"):
        reopening.reopen(opened(row), orders.call, orders.put, orders.get)
