"""Tar in and out of a real guest, well made and hostile."""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.guests import Guest


def member(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


async def chunks_of(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def put(guest: Guest, data: bytes, size: int = 1000) -> None:
    await guest.connection.put_archive("into", chunks_of(data, size))


async def get(guest: Guest, path: str) -> tarfile.TarFile:
    data = b"".join([chunk async for chunk in guest.connection.get_archive(path)])
    return tarfile.open(fileobj=io.BytesIO(data))


# --- in ---


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
@pytest.mark.parametrize("size", [97, 512, 100_000])
async def test_an_archive_is_unpacked_whole(guest: Guest, form: int, size: int) -> None:
    data = bytes(range(256)) * 30
    long = "/".join(["folder" * 10] * 5) + "/é"
    archive = tar_of(
        member("bin/", type=tarfile.DIRTYPE, mode=0o500),
        member("bin/run", data, mode=0o4755, mtime=1000),
        member("./plain", b""),
        member(long, b"long"),
        member("link", type=tarfile.SYMTYPE, linkname="bin/" + "r" * 150),
        member("hard", type=tarfile.LNKTYPE, linkname="bin/run"),
        member("fifo", type=tarfile.FIFOTYPE),
        member("device", type=tarfile.CHRTYPE),
        form=form,
    )
    await put(guest, archive, size)
    top = guest.folder / "into"
    assert (top / "bin/run").read_bytes() == data
    assert (top / "bin/run").stat().st_mode & 0o7777 == 0o755
    assert (top / "bin/run").stat().st_mtime == 1000
    assert (top / "hard").samefile(top / "bin/run")
    assert (top / long).read_bytes() == b"long"
    assert os.readlink(top / "link") == "bin/" + "r" * 150
    assert sorted(path.name for path in top.iterdir()) == [
        "bin", "folder" * 10, "hard", "link", "plain",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "members",
    [
        [member("../outside", b"x")],
        [member("/outside", b"x")],
        [member("a/../../outside", b"x")],
        [member("out", type=tarfile.SYMTYPE, linkname=".."), member("out/outside", b"x")],
        [member("out", type=tarfile.SYMTYPE, linkname="../outside"), member("out", b"x")],
        [member("hard", type=tarfile.LNKTYPE, linkname="../victim"), member("hard", b"x")],
        [
            member("up", type=tarfile.SYMTYPE, linkname=".."),
            member("hard", type=tarfile.LNKTYPE, linkname="up/victim"),
            member("hard", b"x"),
        ],
        [member("out", type=tarfile.SYMTYPE, linkname=".."), member("out/", type=tarfile.DIRTYPE)],
    ],
    ids=[
        "dots", "absolute", "inner-dots", "link-folder", "link-file", "hard-link",
        "hard-link-through-link", "folder-over-link",
    ],
)  # fmt: skip
async def test_no_member_lands_outside(
    guest: Guest, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    victim = guest.folder / "victim"
    victim.write_text("kept")
    try:
        await put(guest, tar_of(*members))
    except (OSError, ConfigError):
        pass
    assert victim.read_text() == "kept"
    assert {path.name for path in guest.folder.iterdir()} <= {"victim", "into"}


async def test_a_planted_link_is_replaced_and_never_written_through(guest: Guest) -> None:
    (guest.folder / "into").mkdir()
    (guest.folder / "victim").write_text("kept")
    (guest.folder / "into" / "f").symlink_to("../victim")
    os.link(guest.folder / "victim", guest.folder / "into" / "g")
    await put(guest, tar_of(member("f", b"new"), member("g", b"new")))
    assert (guest.folder / "victim").read_text() == "kept"
    assert not (guest.folder / "into" / "f").is_symlink()
    assert (guest.folder / "into" / "g").read_text() == "new"


async def test_a_refusal_says_which_member(guest: Guest) -> None:
    with pytest.raises(ConfigError, match=r"outside of its folder: '\.\./outside'"):
        await put(guest, tar_of(member("../outside", b"x")))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a tar" * 100,
        b"\x1f\x8b" + b"\0" * 600,
        tar_of(member("f", b"x" * 5000))[:3000],
        tar_of(member("f", b"x"))[:100],
        tar_of(member("f", b"", pax_headers={"size": "-5"})),
        tar_of(member("f", b"", pax_headers={"size": "x"})),
        tar_of(member("f", b"", pax_headers={"GNU.sparse.major": "1"})),
        tar_of(member("f", b"", type=b"Z")),
    ],
    ids=[
        "empty", "text", "gzip", "cut-content", "cut-header", "negative", "word", "sparse", "kind",
    ],
)  # fmt: skip
async def test_what_is_no_tar_is_refused(guest: Guest, data: bytes) -> None:
    with pytest.raises(ConfigError):
        await put(guest, data)
    assert not await guest.connection.exists("into/f") or data.startswith(b"f")
    assert await guest.connection.exists(".")


async def test_a_file_is_no_folder_to_unpack_in(guest: Guest) -> None:
    (guest.folder / "into").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        await put(guest, tar_of(member("f", b"x")))


async def test_a_folder_in_the_way_of_a_file_stays(guest: Guest) -> None:
    (guest.folder / "into/f/below").mkdir(parents=True)
    with pytest.raises(OSError):  # noqa: PT011
        await put(guest, tar_of(member("f", b"x")))
    assert (guest.folder / "into/f/below").exists()


@pytest.mark.parametrize("python", ["this"], indirect=True)
async def test_changed_archives_are_unpacked_or_refused_and_nothing_else(guest: Guest) -> None:
    whole = tar_of(
        member("a/b", b"x" * 700),
        member("l", type=tarfile.SYMTYPE, linkname="a"),
        member("é" * 60, b"y", pax_headers={"comment": "z"}),
    )
    connection, seen = guest.connection, 0
    changes = _changes(whole)
    for number, changed in enumerate(changes):
        try:
            await connection.put_archive(f"t{number}", chunks_of(changed, 700))
        except (OSError, ConfigError):
            seen += 1
    assert seen > 0
    tops = {path.name for path in guest.folder.iterdir()}
    assert tops <= {f"t{number}" for number in range(len(changes))}


def _changes(whole: bytes) -> list[bytes]:
    found: list[bytes] = []

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4))
    def collect(edits: list[tuple[int, int]]) -> None:
        changed = bytearray(whole)
        blocks = set()
        for position, value in edits:
            changed[position] = value
            blocks.add(position // 512)
        for block in blocks:  # with a right check sum, or nothing else would ever be looked at
            header = changed[block * 512 : block * 512 + 512]
            if header[257:262] == b"ustar":
                total = sum(header[:148]) + 256 + sum(header[156:])
                changed[block * 512 + 148 : block * 512 + 156] = b"%06o\0 " % total
        found.append(bytes(changed))

    collect()
    return found


# --- out ---


async def test_a_folder_comes_out_whole(guest: Guest) -> None:
    top = guest.folder / "top"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "sub" / ("long" * 60)).write_bytes(b"x" * 3000)
    (top / "é b").write_bytes(bytes(range(256)))
    (top / "link").symlink_to("/etc/" + "p" * 150)
    os.mkfifo(top / "fifo")
    with await get(guest, "top") as archive:
        names = {info.name: info for info in archive.getmembers()}
        assert set(names) == {"sub", "sub/empty", "sub/" + "long" * 60, "é b", "link"}
        assert names["link"].linkname == "/etc/" + "p" * 150
        assert archive.extractfile("é b").read() == bytes(range(256))  # pyright: ignore[reportOptionalMemberAccess]
        assert archive.extractfile("sub/" + "long" * 60).read() == b"x" * 3000  # pyright: ignore[reportOptionalMemberAccess]


async def test_one_file_comes_out_under_its_name(guest: Guest) -> None:
    (guest.folder / "f").write_bytes(b"x" * 100_000)
    with await get(guest, "f") as archive:
        [info] = archive.getmembers()
        assert (info.name, info.size) == ("f", 100_000)


async def test_what_cannot_come_out_says_why(guest: Guest) -> None:
    os.mkfifo(guest.folder / "fifo")
    with pytest.raises(FileNotFoundError):
        await get(guest, "missing")
    with pytest.raises(OSError, match="not a plain file"):
        await get(guest, "fifo")


async def test_what_went_in_comes_out(guest: Guest) -> None:
    archive = tar_of(member("a/b", b"1" * 70_000), member("a/c/d", b""), member("e", b"e" * 511))
    await put(guest, archive)
    with await get(guest, "into") as found:
        files = {i.name: found.extractfile(i).read() for i in found if i.isfile()}  # pyright: ignore[reportOptionalMemberAccess]
    assert files == {"a/b": b"1" * 70_000, "a/c/d": b"", "e": b"e" * 511}
