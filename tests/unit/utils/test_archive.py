"""Tar in and out. What is unpacked on the host is written by the enemy."""

from __future__ import annotations

import io
import os
import random
import socket
import stat
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ms_enclave.errors import ConfigError
from ms_enclave.utils.archive import extract_tar, tar_directory, tar_file

if TYPE_CHECKING:
    from pathlib import Path


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer


def contents(root: Path) -> dict[str, bytes | None]:
    """Everything below a folder: content of files, None for folders."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in root.rglob("*")
    }


# --- in ---


def test_a_folder_is_packed_sorted_relative_and_without_links(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("z")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "c").mkdir()
    (tmp_path / "b" / "out").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "fifo")
    data = tar_directory(tmp_path)
    assert names(data) == ["a.txt", "b", "b/z.txt", "c"]
    assert data == tar_directory(str(tmp_path))


def test_a_second_name_of_a_file_is_packed_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("same")
    os.link(tmp_path / "a", tmp_path / "b")
    with tarfile.open(fileobj=io.BytesIO(tar_directory(tmp_path))) as tar:
        assert [each.isreg() for each in tar.getmembers()] == [True, True]
        second = tar.extractfile("b")
        assert second is not None
        assert second.read() == b"same"


def test_a_socket_in_a_folder_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        assert names(tar_directory(tmp_path)) == []


def test_owners_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with tarfile.open(fileobj=io.BytesIO(tar_directory(tmp_path))) as tar:
        info = tar.getmembers()[0]
    assert (info.uid, info.gid, info.uname, info.gname) == (0, 0, "", "")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    for path in (tmp_path / "a", tmp_path / "nowhere"):
        with pytest.raises(NotADirectoryError):
            tar_directory(path)


def test_one_file_is_packed_from_bytes_or_text() -> None:
    assert names(tar_file("dir/x.bin", b"\0\xff")) == ["dir/x.bin"]
    with tarfile.open(fileobj=io.BytesIO(tar_file("x", "grün"))) as tar:
        file = tar.extractfile("x")
        assert file is not None
        assert file.read().decode() == "grün"


# --- out ---


def test_files_and_folders_come_out(tmp_path: Path) -> None:
    source = archive(
        member("./dir", type=tarfile.DIRTYPE, mode=0o755),
        member("dir/a.bin", b"\0\xff", mode=0o755, mtime=1_000_000_000),
        member("deep/er/b", b"b"),
        member("empty", type=tarfile.DIRTYPE),
    )
    target = tmp_path / "new" / "target"
    done = extract_tar(source, target)
    assert contents(target) == {
        "dir": None,
        "dir/a.bin": b"\0\xff",
        "deep": None,
        "deep/er": None,
        "deep/er/b": b"b",
        "empty": None,
    }
    assert (done.files, done.bytes, done.left_out) == (2, 3, [])
    assert (target / "dir/a.bin").stat().st_mtime == 1_000_000_000


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a/..", "..", "/", "a\n/../..", "./../x"]
)
def test_a_name_that_leads_out_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    target = tmp_path / "target"
    with pytest.raises(ConfigError, match="unsafe name"):
        extract_tar(archive(member("first", b"x"), member(name, b"x")), target)
    assert not target.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a" * 256, "/".join(["a"] * 3000)])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="too long"):
        extract_tar(archive(member(name, b"x")), tmp_path / "target")


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    source = archive(
        member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("inside", type=tarfile.SYMTYPE, linkname="file"),
        member("fifo", type=tarfile.FIFOTYPE),
        member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("disk", type=tarfile.BLKTYPE, devmajor=8),
        member("file", b"x"),
    )
    done = extract_tar(source, tmp_path)
    assert contents(tmp_path) == {"file": b"x"}
    assert done.left_out == ["link", "inside", "fifo", "null", "disk"]


def test_nothing_is_written_through_a_link_that_the_archive_plants(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    source = archive(
        member("way", type=tarfile.SYMTYPE, linkname=str(outside)), member("way/x", b"x")
    )
    extract_tar(source, tmp_path / "target")
    assert list(outside.iterdir()) == []
    assert (tmp_path / "target" / "way" / "x").read_bytes() == b"x"


def test_nothing_is_written_through_a_link_that_was_there(tmp_path: Path) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (outside / "x").write_bytes(b"mine")
    (target / "way").symlink_to(outside)
    (target / "x").symlink_to(outside / "x")
    with pytest.raises(ConfigError, match="not a folder"):
        extract_tar(archive(member("way/x", b"theirs")), target)
    extract_tar(archive(member("x", b"theirs")), target)
    assert (outside / "x").read_bytes() == b"mine"
    assert not (target / "x").is_symlink()


def test_a_second_name_becomes_a_copy(tmp_path: Path) -> None:
    source = archive(member("dir/a", b"same"), member("b", type=tarfile.LNKTYPE, linkname="dir/a"))
    assert extract_tar(source, tmp_path).files == 2
    (tmp_path / "b").write_bytes(b"other")
    assert (tmp_path / "dir" / "a").read_bytes() == b"same"


@pytest.mark.parametrize("linked", ["/etc/passwd", "../secret", "a/../../secret"])
def test_a_second_name_of_a_file_outside_is_refused(tmp_path: Path, linked: str) -> None:
    (tmp_path / "secret").write_text("hush")
    source = archive(member("b", type=tarfile.LNKTYPE, linkname=linked))
    with pytest.raises(ConfigError, match="unsafe name"):
        extract_tar(source, tmp_path / "target")


def test_a_second_name_through_a_link_is_left_out(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "secret").write_text("hush")
    (target / "way").symlink_to(tmp_path)
    (target / "link").symlink_to(tmp_path / "secret")
    source = archive(
        member("a", type=tarfile.LNKTYPE, linkname="way/secret"),
        member("b", type=tarfile.LNKTYPE, linkname="link"),
        member("c", type=tarfile.LNKTYPE, linkname="nowhere"),
        member("d", type=tarfile.LNKTYPE, linkname="d"),
    )
    assert extract_tar(source, target).left_out == ["a", "b", "c", "d"]


def test_special_bits_and_others_right_to_write_are_not_taken_over(tmp_path: Path) -> None:
    source = archive(member("a", b"x", mode=0o7777), member("b", b"x", mode=0))
    extract_tar(source, tmp_path)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o600


def test_more_than_the_bounds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    two = archive(member("a", b"x" * 600), member("b", b"x" * 600))
    for bounds in ({"max_bytes": 1000}, {"max_members": 1}):
        with pytest.raises(ConfigError, match="more than 1"):
            extract_tar(two, tmp_path / "target", **bounds)
    assert not (tmp_path / "target").exists()
    assert extract_tar(two, tmp_path, max_bytes=1200, max_members=2).files == 2


def test_copies_of_second_names_count(tmp_path: Path) -> None:
    links = [member(f"l{n}", type=tarfile.LNKTYPE, linkname="file") for n in range(20)]
    source = archive(member("file", bytes(100_000)), *links, member("last", bytes(100_000)))
    with pytest.raises(ConfigError, match="more than 500000 bytes"):
        extract_tar(source, tmp_path / "out", max_bytes=500_000)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 500_000
    few = archive(*[member("file", bytes(100_000)), *links[:4]], member("last", bytes(100_000)))
    with pytest.raises(ConfigError, match="more than 500000 bytes"):
        extract_tar(few, tmp_path / "few", max_bytes=500_000)


def test_a_header_that_promises_more_than_there_is_writes_nothing(tmp_path: Path) -> None:
    info, _ = member("a")
    info.size = 1 << 40
    with pytest.raises(ConfigError, match="more than"):
        extract_tar(io.BytesIO(info.tobuf()), tmp_path / "target")
    info.size = 1 << 20
    with pytest.raises(ConfigError, match="no valid tar"):
        extract_tar(io.BytesIO(info.tobuf() + b"x" * 512), tmp_path / "target")
    assert contents(tmp_path) in ({}, {"target": None})


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_an_enormous_extended_header_is_not_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    info, _ = member("a", type=kind)
    info.size = 1 << 33
    with pytest.raises(ConfigError, match="no valid tar"):
        extract_tar(io.BytesIO(info.tobuf() + b"x" * 4096), tmp_path)


@pytest.mark.parametrize("size", [-1, -512, -(1 << 40)])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE])
def test_a_negative_size_ends_the_reading(tmp_path: Path, size: int, kind: bytes) -> None:
    info, _ = member("a", type=kind)
    info.size = size
    with pytest.raises(ConfigError, match=r"no valid tar|damaged"):
        extract_tar(io.BytesIO(info.tobuf(format=tarfile.GNU_FORMAT) + b"\0" * 2048), tmp_path)


def test_headers_upon_headers_are_refused(tmp_path: Path) -> None:
    info, _ = member("a", type=tarfile.XHDTYPE)
    header = info.tobuf()
    with pytest.raises(ConfigError, match="no valid tar"):
        extract_tar(io.BytesIO(header * 5000), tmp_path)


def test_a_file_where_a_folder_should_be_is_refused(tmp_path: Path) -> None:
    both = (member("a", b"x"), member("a/b", b"y"))
    with pytest.raises(ConfigError, match="not a folder"):
        extract_tar(archive(*both), tmp_path / "one")
    with pytest.raises(ConfigError, match="in the place of a file"):
        extract_tar(archive(*reversed(both)), tmp_path / "two")
    with pytest.raises(ConfigError, match="without a name"):
        extract_tar(archive(member("./", b"x", type=tarfile.REGTYPE)), tmp_path / "three")


def test_times_that_no_clock_shows_do_not_matter(tmp_path: Path) -> None:
    extract_tar(archive(member("a", b"x", mtime=1 << 70)), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x"


def test_names_of_any_bytes_come_out(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe name \n")
    extract_tar(archive(member(name, b"x")), tmp_path)
    assert (tmp_path / name).read_bytes() == b"x"


def test_a_later_member_replaces_an_earlier_one(tmp_path: Path) -> None:
    extract_tar(archive(member("a", b"long text"), member("a", b"x")), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_packed_archive_is_not_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info, data = member("a", b"x")
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ConfigError, match="no valid tar"):
        extract_tar(buffer, tmp_path)


def test_an_empty_archive_gives_an_empty_folder(tmp_path: Path) -> None:
    assert extract_tar(archive(), tmp_path / "target").files == 0
    assert contents(tmp_path) == {"target": None}


def test_ten_thousand_files_come_out(tmp_path: Path) -> None:
    source = archive(*(member(f"d/{number}", b"x") for number in range(10_000)))
    assert extract_tar(source, tmp_path).files == 10_000


parts = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda part: part not in {".", ".."} and len(part.encode()) < 200)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree=st.dictionaries(parts, st.binary(max_size=600) | st.dictionaries(parts, st.binary())))
def test_what_is_packed_comes_out_the_same(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name, content in tree.items():
        if isinstance(content, bytes):
            (source / name).write_bytes(content)
        else:
            (source / name).mkdir()
            for inner, data in content.items():
                (source / name / inner).write_bytes(data)
    extract_tar(io.BytesIO(tar_directory(source)), target)
    assert contents(target) == contents(source)


odd = st.lists(st.sampled_from(["..", ".", "", "a", "b", "c"]), max_size=6).map("/".join)
kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(st.tuples(odd, kinds, odd | st.just("/etc/passwd")), max_size=8))
def test_nothing_ever_leaves_the_target(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bytes, str]]
) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / "a").write_text("mine")
    members = [
        member(name, b"x" if kind == tarfile.REGTYPE else b"", type=kind, linkname=link)
        for name, kind, link in rows
    ]
    target = home / "x" / "y"
    try:
        extract_tar(archive(*members), target)
    except ConfigError:
        pass
    assert (home / "a").read_text() == "mine"
    assert {path.name for path in home.iterdir()} <= {"a", "x"}
    for path in target.rglob("*"):
        assert not path.is_symlink()
        assert path.is_file() or path.is_dir()
        assert path.is_dir() or path.stat().st_nlink == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_damaged_archive_is_refused_or_read_and_never_anything_else(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    random_ = random.Random(seed)
    data = bytearray(
        archive(
            member("a" * 150, b"x" * 700), member("grün/b", b"y"), member("c", mtime=1.5)
        ).getvalue()
    )
    for _ in range(random_.randint(1, 12)):
        data[random_.randrange(min(len(data), 6000))] = random_.randrange(256)
    try:
        extract_tar(io.BytesIO(data), tmp_path_factory.mktemp("target"), max_bytes=1 << 20)
    except (ConfigError, OSError):
        pass
