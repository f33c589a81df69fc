"""Files through a real guest, with everything that a hostile program may have planted."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.errors import ConfigError
from ms_enclave.guest import files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.guests import Guest

MIB = 1 << 20
SECONDS = 10


async def read(guest: Guest, path: str, **options: int) -> bytes:
    return b"".join([chunk async for chunk in guest.connection.read(path, **options)])


# --- one file ---


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 3000], ids=["empty", "x", "big"])
async def test_bytes_come_back_exactly(guest: Guest, data: bytes) -> None:
    assert await guest.connection.write("f", data) == len(data)
    assert (guest.folder / "f").read_bytes() == data
    assert await read(guest, "f") == data


async def test_a_source_of_any_length_is_written(guest: Guest) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(30):
            await asyncio.sleep(0)
            yield bytes([number]) * 200_000

    assert await guest.connection.write("f", pieces()) == 6_000_000
    assert len((guest.folder / "f").read_bytes()) == 6_000_000


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [(0, None, b"0123456789"), (3, 4, b"3456"), (8, 9, b"89"), (50, None, b""), (0, 0, b"")],
)
async def test_a_part_of_a_file(
    guest: Guest, offset: int, limit: int | None, expected: bytes
) -> None:
    (guest.folder / "f").write_bytes(b"0123456789")
    chunks = guest.connection.read("f", offset=offset, limit=limit)
    assert b"".join([chunk async for chunk in chunks]) == expected


async def test_a_file_without_a_size_is_read_to_its_end(guest: Guest) -> None:
    assert b"Name:" in await read(guest, "/proc/self/status")


async def test_writing_keeps_the_file_that_is_there(guest: Guest) -> None:
    path = guest.folder / "f"
    path.write_text("a longer text")
    path.chmod(0o640)
    os.link(path, guest.folder / "other")
    await guest.connection.write("f", b"short")
    assert (guest.folder / "other").read_bytes() == b"short"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


async def test_append_exclusive_mode_and_parents(guest: Guest) -> None:
    connection = guest.connection
    await connection.write("a/b/c", b"1", mode=0o700)
    await connection.write("a/b/c", b"2", append=True)
    assert (guest.folder / "a/b/c").read_bytes() == b"12"
    assert stat.S_IMODE((guest.folder / "a/b/c").stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        await connection.write("a/b/c", b"3", exclusive=True)
    with pytest.raises(FileNotFoundError):
        await connection.write("x/y", b"3", parents=False)
    assert not (guest.folder / "x").exists()


async def test_a_relative_path_starts_where_the_greeting_says(guest: Guest) -> None:
    # However the guest's own current folder fares.
    moved = guest.folder / "elsewhere"
    moved.mkdir()
    await guest.connection.write("f", b"x")
    assert (guest.folder / "f").exists()


@pytest.mark.parametrize("name", ["a b", "é€", "-rf", "a\nb", "*", "$HOME", "'\"", "...", "\u202e"])
async def test_names_are_only_names(guest: Guest, name: str) -> None:
    await guest.connection.write(f"d/{name}", b"x")
    [entry] = await guest.connection.list("d")
    assert (entry.name, entry.path) == (name, f"d/{name}")
    assert await read(guest, entry.path) == b"x"
    await guest.connection.remove(entry.path)
    assert await guest.connection.list("d") == []


async def test_a_name_that_is_no_text_is_shown_and_can_be_used(guest: Guest) -> None:
    raw = os.path.join(os.fsencode(guest.folder), b"\xff")
    with open(raw, "wb") as file:
        file.write(b"x")
    [entry] = await guest.connection.list(".")
    assert entry.name == "\ufffd"
    assert entry.model_dump_json()
    assert await read(guest, "\udcff") == b"x"


@pytest.mark.parametrize("path", ["", "a\0b"])
async def test_a_path_that_is_none_is_the_callers_mistake(guest: Guest, path: str) -> None:
    for call in (guest.connection.stat, guest.connection.mkdir, guest.connection.remove):
        with pytest.raises(ConfigError):
            await call(path)
    with pytest.raises(ConfigError):
        await read(guest, path)


# --- what was planted ---


@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
async def test_what_is_no_plain_file_is_refused_at_once(guest: Guest, kind: str) -> None:
    path = guest.folder / "f"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as planted:
            planted.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    with anyio.fail_after(SECONDS):
        with pytest.raises(OSError) as failed:  # noqa: PT011
            await read(guest, "f")
        assert failed.value.errno in (errno.EINVAL, errno.ENXIO)
        with pytest.raises(OSError):  # noqa: PT011
            await guest.connection.write("f", b"x")
        with pytest.raises(OSError):  # noqa: PT011
            await guest.connection.replace("f", "a", "b")
        assert await guest.connection.search("x", ".") == []


async def test_a_fifo_with_a_reader_is_not_written_to(guest: Guest) -> None:
    path = guest.folder / "f"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError):  # noqa: PT011
            await guest.connection.write("f", b"secret")
        assert os.read(reader, 10) == b""
    finally:
        os.close(reader)


async def test_links_are_followed_like_by_any_program(guest: Guest) -> None:
    (guest.folder / "real").write_text("kept")
    (guest.folder / "link").symlink_to("real")
    (guest.folder / "dangling").symlink_to("nowhere")
    (guest.folder / "loop").symlink_to("loop")
    connection = guest.connection
    assert await read(guest, "link") == b"kept"
    assert (await connection.stat("link")).type == "file"
    assert (await connection.stat("link", follow=False)).type == "symlink"
    await connection.write("link", b"new")
    assert (guest.folder / "link").is_symlink()
    assert (guest.folder / "real").read_bytes() == b"new"
    assert await connection.replace("link", "new", "newer") == 1
    assert (guest.folder / "link").is_symlink()
    assert (guest.folder / "real").read_bytes() == b"newer"
    assert await connection.exists("dangling")
    with pytest.raises(FileNotFoundError):
        await connection.stat("dangling")
    with pytest.raises(OSError) as failed:  # noqa: PT011
        await read(guest, "loop")
    assert failed.value.errno == errno.ELOOP
    await connection.remove("link")
    assert (guest.folder / "real").exists()


async def test_removing_a_tree_follows_no_link(guest: Guest) -> None:
    (guest.folder / "kept").mkdir()
    (guest.folder / "kept" / "file").touch()
    tree = guest.folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "out").symlink_to("../kept")
    (tree / "sub" / "out").symlink_to("/etc")
    os.mkfifo(tree / "sub" / "fifo")
    await guest.connection.remove("tree", recursive=True)
    assert not tree.exists()
    assert (guest.folder / "kept" / "file").exists()


def test_a_link_that_took_a_folders_place_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    parent = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(NotADirectoryError):
            files.open_folder(b"link", parent)
    finally:
        os.close(parent)


async def test_a_tree_deeper_than_any_path_is_removed(guest: Guest) -> None:
    here = os.open(guest.folder, os.O_RDONLY)
    top = here
    for _ in range(1500):
        os.mkdir("deep" * 10, dir_fd=here)
        below = os.open("deep" * 10, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert top
    await guest.connection.remove("deep" * 10, recursive=True)
    assert list(guest.folder.iterdir()) == []


async def test_ten_thousand_entries_are_listed_while_others_have_their_turn(guest: Guest) -> None:
    many = guest.folder / "many"
    many.mkdir()
    for number in range(10_000):
        (many / str(number)).touch()
    connection = guest.connection
    listing = asyncio.create_task(connection.list("many"))
    turns = 0
    while not listing.done():
        assert await connection.exists("many")
        turns += 1
    entries = listing.result()
    assert len(entries) == 10_000
    assert [entry.path for entry in entries] == sorted(f"many/{n}" for n in range(10_000))
    assert turns > 2
    assert len(await connection.list("many", limit=7)) == 7
    await connection.remove("many", recursive=True)
    assert not many.exists()


async def test_a_listing_goes_as_deep_as_asked_and_not_through_links(guest: Guest) -> None:
    (guest.folder / "a/b/c").mkdir(parents=True)
    (guest.folder / "a/b/f").write_text("12")
    (guest.folder / "a/up").symlink_to("..")
    names = [(entry.path, entry.type) for entry in await guest.connection.list(".", depth=2)]
    assert names == [("a", "directory"), ("a/b", "directory"), ("a/up", "symlink")]
    paths = [entry.path for entry in await guest.connection.list("a/", depth=50)]
    assert paths == ["a/b", "a/b/c", "a/b/f", "a/up"]
    absolute = [entry.path for entry in await guest.connection.list(str(guest.folder))]
    assert absolute == [f"{guest.folder}/a"]
    with pytest.raises(NotADirectoryError):
        await guest.connection.list("a/b/f")


# --- search and replace ---


async def test_search_gives_lines_with_their_numbers(guest: Guest) -> None:
    (guest.folder / "a.txt").write_text("one\ntwo two\nthree\n")
    (guest.folder / "sub").mkdir()
    (guest.folder / "sub" / "b.txt").write_bytes(b"\xff two\r\n" + b"x" * 5000 + b"two\n")
    (guest.folder / "binary").write_bytes(b"two\0")
    (guest.folder / "link").symlink_to("a.txt")
    found = await guest.connection.search("two", ".")
    assert [(m.path, m.line) for m in found] == [("a.txt", 2), ("sub/b.txt", 1), ("sub/b.txt", 2)]
    assert found[1].text == "\ufffd two"
    assert len(found[2].text) == 1000
    assert [m.path for m in await guest.connection.search("^one", "a.txt")] == ["a.txt"]
    assert len(await guest.connection.search("t", ".", limit=2)) == 2
    assert await guest.connection.search("nothing", ".") == []
    with pytest.raises(FileNotFoundError):
        await guest.connection.search("x", "missing")
    with pytest.raises(ConfigError):
        await guest.connection.search("(", ".")


async def test_many_matches_come_in_pages(guest: Guest) -> None:
    (guest.folder / "f").write_text("match \U0001f600\x01 \n" * 20_000)
    found = await guest.connection.search("match", "f", limit=15_000)
    assert [match.line for match in found] == list(range(1, 15_001))


async def test_a_pattern_that_never_ends_holds_up_nobody_and_can_be_given_up(guest: Guest) -> None:
    (guest.folder / "f").write_text("a" * 60 + "!")
    task = asyncio.create_task(guest.connection.search("(a+)+$", "f"))
    for _ in range(20):
        assert await guest.connection.exists("f")
        await asyncio.sleep(0.01)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(200):
        if not _children_of(guest.child.pid):
            break
        await asyncio.sleep(0.02)
    assert not _children_of(guest.child.pid)
    assert await guest.connection.exists("f")


def _children_of(pid: int) -> str:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read()


async def test_replace_is_exact_in_binary_files_and_keeps_the_mode(guest: Guest) -> None:
    path = guest.folder / "f"
    path.write_bytes(b"\xff\0name name\r\nname")
    path.chmod(0o751)
    connection = guest.connection
    assert await connection.replace("f", "name", "é", count=2) == 2
    assert path.read_bytes() == b"\xff\0\xc3\xa9 \xc3\xa9\r\nname"
    assert stat.S_IMODE(path.stat().st_mode) == 0o751
    assert await connection.replace("f", "missing", "x") == 0
    assert [entry.name for entry in await connection.list(".")] == ["f"]
    with pytest.raises(ConfigError):
        await connection.replace("f", "", "x")


async def test_a_file_that_is_too_big_to_replace_in_is_left_alone(guest: Guest) -> None:
    with open(guest.folder / "f", "wb") as file:
        file.truncate(65 * MIB)
    with pytest.raises(OSError) as failed:  # noqa: PT011
        await guest.connection.replace("f", "a", "b")
    assert failed.value.errno == errno.EFBIG


# --- folders ---


async def test_folders_are_made_and_moved(guest: Guest) -> None:
    connection = guest.connection
    await connection.mkdir("a/b")
    await connection.mkdir("a/b")
    with pytest.raises(FileExistsError):
        await connection.mkdir("a/b", parents=False)
    await connection.write("a/b/f", b"x")
    await connection.move("a", "c")
    assert await read(guest, "c/b/f") == b"x"
    with pytest.raises(OSError) as failed:  # noqa: PT011
        await connection.remove("c")
    assert failed.value.errno == errno.ENOTEMPTY
    with pytest.raises(FileNotFoundError):
        await connection.move("missing", "x")


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no second file system to move to")
async def test_a_tree_is_moved_to_another_file_system(guest: Guest) -> None:
    if os.stat("/dev/shm").st_dev == guest.folder.stat().st_dev:
        pytest.skip("the second file system is the first")
    target = f"/dev/shm/{guest.folder.name}"
    closed = 0o500 if os.getuid() == 0 else 0o700  # its owner alone could not empty it
    tree = guest.folder / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "f").write_bytes(b"x" * 300_000)
    (tree / "sub" / "f").chmod(0o700)
    (tree / "sub").chmod(closed)
    (tree / "link").symlink_to("sub/f")
    os.utime(tree / "sub" / "f", (1000, 1000))
    connection = guest.connection
    try:
        await connection.move("tree", target)
        assert not tree.exists()
        assert (await connection.stat(f"{target}/sub/f")).mode == 0o700
        assert (await connection.stat(f"{target}/sub/f")).modified == 1000
        assert (await connection.stat(f"{target}/sub")).mode == closed
        assert os.readlink(f"{target}/link") == "sub/f"
        assert await read(guest, f"{target}/sub/f") == b"x" * 300_000
    finally:
        await connection.remove(target, recursive=True)


async def test_what_is_missing_or_of_the_wrong_kind(guest: Guest) -> None:
    (guest.folder / "file").touch()
    (guest.folder / "folder").mkdir()
    connection = guest.connection
    for call in (connection.stat, connection.list, connection.remove):
        with pytest.raises(FileNotFoundError) as failed:
            await call("missing")
        assert failed.value.filename == "missing"
    for path in ("missing", "missing/below"):
        assert not await connection.exists(path)
    assert not await connection.exists("file/below")
    with pytest.raises(IsADirectoryError):
        await read(guest, "folder")
    with pytest.raises(IsADirectoryError):
        await connection.write("folder", b"")
    with pytest.raises(NotADirectoryError):
        await connection.write("file/below", b"")


async def test_a_cancelled_read_is_given_up_by_the_guest(guest: Guest) -> None:
    with open(guest.folder / "endless", "wb") as file:
        file.truncate(1 << 40)
    chunks = guest.connection.read("endless")
    assert await anext(chunks)
    before = len(os.listdir(f"/proc/{guest.child.pid}/fd"))
    await chunks.aclose()
    for _ in range(100):
        await guest.connection.exists("x")
        if len(os.listdir(f"/proc/{guest.child.pid}/fd")) < before:
            break
        await asyncio.sleep(0.01)
    assert len(os.listdir(f"/proc/{guest.child.pid}/fd")) < before
