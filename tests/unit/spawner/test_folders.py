"""What a sandbox has stored is counted and removed, whatever shape a program gave it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ms_enclave.spawner import folders


def test_bytes_and_files_are_counted_and_second_names_only_as_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(bytes(100_000))
    os.link(tmp_path / "a" / "b" / "file", tmp_path / "second")
    os.symlink("/usr", tmp_path / "link")
    used, files = folders.usage(str(tmp_path), 1000)
    assert files == 5
    assert 100_000 <= used < 150_000


def test_more_than_may_be_is_that_many(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / str(number)).touch()
    assert folders.usage(str(tmp_path), 20)[1] == 20


def test_what_is_too_deep_to_be_looked_at_counts_as_too_much(tmp_path: Path) -> None:
    make_deep(tmp_path, 400)
    assert folders.usage(str(tmp_path), 10_000)[1] == 10_000


def test_only_what_belongs_to_somebody_counts(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(bytes(5000))
    assert folders.usage(str(tmp_path), 100, os.getuid())[1] == 1
    assert folders.usage(str(tmp_path), 100, os.getuid() + 1) == (0, 0)


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert folders.usage(str(tmp_path / "no"), 100) == (0, 0)
    folders.empty(str(tmp_path / "no"))


@pytest.mark.parametrize("depth", [3, 400, 3000])
def test_everything_is_removed_and_nothing_behind_links(tmp_path: Path, depth: int) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    inside = tmp_path / "inside"
    inside.mkdir()
    make_deep(inside, depth)
    os.symlink(outside, inside / "link")
    os.mkfifo(inside / "pipe")
    (inside / "closed").mkdir()
    (inside / "closed" / "file").touch()
    (inside / "closed").chmod(0)
    folders.empty(str(inside))
    assert list(inside.iterdir()) == []
    assert (outside / "kept").read_text() == "x"


def test_a_folder_behind_a_link_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "kept").touch()
    os.symlink("real", tmp_path / "link")
    folders.empty(str(tmp_path / "link"))
    assert (tmp_path / "real" / "kept").exists()


def make_deep(folder: Path, depth: int) -> None:
    """Folders in folders, with names too long for one path to lead there."""
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(depth):
            os.mkdir("d" * 60)
            os.chdir("d" * 60)
        Path("file").touch()
    finally:
        os.fchdir(back)
        os.close(back)
