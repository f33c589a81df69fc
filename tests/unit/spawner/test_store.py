"""What a run has stored, looked at without following it anywhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ms_enclave.spawner import store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 4096
BEFORE = 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def test_a_file_as_large_as_one_may_be_is_found_wherever_it_is(folder: int, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not store.has_file_of(folder, (tmp_path / "a").stat().st_size, BEFORE)
    assert not store.has_file_of(folder, SIZE, BEFORE)
    (tmp_path / "a" / "b" / "large").write_bytes(bytes(SIZE))
    assert store.has_file_of(folder, SIZE, BEFORE)
    assert not store.has_file_of(folder, SIZE + 1, BEFORE)


def test_one_that_was_there_before_is_not_meant(folder: int, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(SIZE))
    os.utime(tmp_path / "old", (5, 5))
    assert not store.has_file_of(folder, SIZE, 6.0)
    assert store.has_file_of(folder, SIZE, 5.0)


def test_no_link_is_followed(folder: int, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "large").write_bytes(bytes(SIZE))
    (inside / "link").symlink_to(outside)
    (inside / "file").symlink_to(outside / "large")
    opened = os.open(inside, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert not store.has_file_of(opened, SIZE, BEFORE)
    finally:
        os.close(opened)


def test_looking_ends_however_much_there_is(
    folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path.joinpath(*"abcdefghijklmnop")
    deep.mkdir(parents=True)
    (deep / "large").write_bytes(bytes(SIZE))
    assert store.has_file_of(folder, SIZE, BEFORE)
    monkeypatch.setattr(store, "_MOST_LOOKED_AT", 10)
    assert not store.has_file_of(folder, SIZE, BEFORE)
