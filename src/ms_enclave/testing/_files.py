"""Files in and out, on paths that mean what they mean inside and nothing on the host."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tarfile
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from anyio.to_thread import run_sync

from ms_enclave.errors import CapabilityError, ConfigError
from ms_enclave.testing._suite import SandboxSuite

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from ms_enclave.boxes import Sandbox

__all__ = ["FilesContract"]

MIB = 1 << 20


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An uncompressed tar with exactly these members, harmless or not."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    """All of a stream."""
    return b"".join([chunk async for chunk in chunks])


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member that is a link."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _make_tree(folder: Path) -> Path:
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "é b").write_bytes(bytes(range(256)))
    (folder / "top").write_text("x")
    (folder / "link").symlink_to("/etc/passwd")
    return folder


def _read_tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


async def _refusal(call: Awaitable[object]) -> str | None:
    """What a call is refused with for want of a capability."""
    try:
        await call
    except CapabilityError as error:
        return str(error)
    return None


SOMEBODY = 2345
"""A user of the sandbox that is not its own."""


class FilesContract(SandboxSuite):
    """`files`, `put_*` and `get_*`, over any handle."""

    # --- whose ---

    @pytest.fixture
    async def somebody(self, fresh: Sandbox) -> int:
        """Another user, where the sandbox can be one; elsewhere that is what the test shows."""
        refused = await _refusal(fresh.execute_command(["true"], user=SOMEBODY))
        if refused is not None:
            assert await _refusal(fresh.files.as_user(SOMEBODY).exists("/")) == refused
            pytest.skip(refused)
        result = await fresh.execute_command(["true"], user=SOMEBODY)
        if not result.success:
            with pytest.raises(PermissionError):
                await fresh.files.as_user(SOMEBODY).exists("/")
            pytest.skip("the sandbox cannot be another user here")
        return SOMEBODY

    async def test_the_own_user_by_number_is_the_own_user(self, box: Sandbox) -> None:
        own = int((await box.execute_command(["id", "-u"])).stdout)
        for user in (None, own, str(own)):
            await box.files.as_user(user).write("own", f"{user}")
            assert await box.files.read_text("own") == f"{user}"
        shown = await box.execute_command(["stat", "-c", "%u", "own"])
        assert shown.stdout == f"{own}\n"

    async def test_what_a_user_makes_is_that_users(self, fresh: Sandbox, somebody: int) -> None:
        own = (await fresh.execute_command(["id", "-u"])).stdout.strip()
        folder = (await fresh.execute_command(["mktemp", "-d"])).stdout.strip()
        await fresh.execute_command(["chmod", "777", folder])
        files = fresh.files.as_user(somebody)
        await files.write(f"{folder}/a", "1")
        await files.mkdir(f"{folder}/b")
        await fresh.put_file(f"{folder}/c", "1", user=somebody)
        await fresh.put_archive(f"{folder}/d", tar_of((tarfile.TarInfo("in"), b"1")), user=somebody)
        await fresh.files.write(f"{folder}/e", "1")
        names = [f"{folder}/{name}" for name in ("a", "b", "c", "d", "d/in", "e")]
        shown = await fresh.execute_command(["stat", "-c", "%u", *names])
        assert shown.stdout.split() == [str(somebody)] * 5 + [own]
        await files.remove(f"{folder}/d", recursive=True)
        await fresh.files.remove(folder, recursive=True)

    async def test_a_users_rights_decide(self, fresh: Sandbox, somebody: int) -> None:
        folder = (await fresh.execute_command(["mktemp", "-d"])).stdout.strip()
        path = f"{folder}/secret"
        await fresh.files.write(path, "x", mode=0o600)
        files = fresh.files.as_user(somebody)
        with pytest.raises(PermissionError):
            await files.write(f"{folder}/new", "x")
        await fresh.execute_command(["chmod", "755", folder])
        assert (await files.stat(path)).size == 1
        for attempt in (
            lambda: files.read(path),
            lambda: files.remove(path),
            lambda: files.replace(path, "x", "y"),
            lambda: fresh.get_file(path, user=somebody),
            lambda: collect(files.read_stream(path)),
            lambda: collect(fresh.get_archive(path, user=somebody)),
            lambda: fresh.put_file(f"{folder}/new", "x", user=somebody),
        ):
            with pytest.raises(PermissionError):
                await attempt()
        await fresh.execute_command(["chmod", "644", path])
        assert await files.read(path) == b"x"
        assert await collect(files.read_stream(path)) == b"x"
        await fresh.files.remove(folder, recursive=True)

    async def test_a_folder_that_is_closed_to_a_user_is_no_more_than_that(
        self, fresh: Sandbox, somebody: int
    ) -> None:
        await fresh.execute_command(["chmod", "700", "."])
        files = fresh.files.as_user(somebody)
        assert await files.exists("/")
        with pytest.raises(PermissionError):
            await files.list(".")
        with pytest.raises(PermissionError):
            await files.write("x", "x")

    async def test_many_users_leave_room_for_programs(self, somebody: int) -> None:
        async with self.opened(pids_limit=16) as box:
            for number in range(20):
                assert await box.files.as_user(somebody + number).exists("/")
            assert (await box.execute_command("echo room | cat")).stdout == "room\n"

    @pytest.mark.parametrize("user", [-1, "", True, 1 << 32, "a\0b"])
    async def test_what_is_no_user_is_refused(self, box: Sandbox, user: Any) -> None:
        with pytest.raises(ConfigError):
            box.files.as_user(user)
        with pytest.raises(ConfigError):
            await box.put_file("/tmp/x", "x", user=user)  # noqa: S108 - the sandbox's

    # --- one file ---

    @pytest.mark.parametrize("data", [b"", b"text\n", bytes(range(256)) * 5000])
    async def test_what_was_written_is_read(self, box: Sandbox, data: bytes) -> None:
        assert await box.files.write("one", data) == len(data)
        assert await box.files.read("one") == data
        assert (await box.files.stat("one")).size == len(data)

    async def test_text_is_utf8_unless_told_otherwise(self, box: Sandbox) -> None:
        await box.files.write("text", "é€\r\n")
        assert await box.files.read("text") == "é€\r\n".encode()
        assert await box.files.read_text("text") == "é€\r\n"
        await box.files.write("latin", "é", encoding="latin-1")
        assert await box.files.read_text("latin", "latin-1") == "é"

    async def test_bytes_that_are_no_text_do_not_stop_a_reader(self, box: Sandbox) -> None:
        await box.files.write("binary", b"a\xffb")
        assert await box.files.read_text("binary") == "a\ufffdb"

    async def test_programs_and_files_see_the_same(self, box: Sandbox) -> None:
        await box.files.write("shared", "from outside")
        assert (await box.execute_command(["cat", "shared"])).stdout == "from outside"
        await box.execute_command("printf 'from inside' > shared")
        assert await box.files.read("shared") == b"from inside"

    async def test_a_relative_path_starts_at_the_working_folder(self, box: Sandbox) -> None:
        await box.files.write("here", "x")
        assert await box.files.read(f"{box.config.working_dir}/here") == b"x"

    async def test_the_folders_above_are_made(self, box: Sandbox) -> None:
        await box.files.write("deep/er/est", "x")
        assert await box.files.read("deep/er/est") == b"x"
        with pytest.raises(FileNotFoundError):
            await box.files.write("no/folder/here", "x", parents=False)

    async def test_a_file_is_replaced_extended_or_refused(self, box: Sandbox) -> None:
        await box.files.write("same", "a longer text")
        await box.files.write("same", "short")
        await box.files.write("same", "er", append=True)
        assert await box.files.read("same") == b"shorter"
        with pytest.raises(FileExistsError):
            await box.files.write("same", "x", exclusive=True)
        assert await box.files.read("same") == b"shorter"

    async def test_a_mode_can_be_given(self, box: Sandbox) -> None:
        await box.files.write("tool", "#!/bin/sh\necho ran\n", mode=0o755)
        assert (await box.files.stat("tool")).mode & 0o777 == 0o755
        assert (await box.execute_command(["./tool"])).stdout == "ran\n"

    async def test_a_part_can_be_read(self, box: Sandbox) -> None:
        await box.files.write("digits", "0123456789")
        assert await box.files.read("digits", offset=3, limit=4) == b"3456"
        assert await box.files.read("digits", offset=8) == b"89"
        assert await box.files.read("digits", offset=50) == b""

    async def test_large_files_go_in_and_out_as_streams(self, box: Sandbox) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for number in range(80):
                await asyncio.sleep(0)
                yield bytes([number]) * (MIB // 8)

        assert await box.files.write("large", pieces()) == 10 * MIB
        size = 0
        first: list[int] = []
        async for chunk in box.files.read_stream("large"):
            first.append(chunk[0])
            size += len(chunk)
        assert size == 10 * MIB
        assert first == sorted(first)

    async def test_a_stream_can_be_left_half_read(self, box: Sandbox) -> None:
        await box.files.write("half", b"x" * 5 * MIB)
        stream = box.files.read_stream("half")
        assert await anext(stream)
        await stream.aclose()
        assert await box.files.read("half", limit=3) == b"xxx"

    async def test_a_source_that_fails_fails_the_write(self, box: Sandbox) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"start"
            raise LookupError("source")

        with pytest.raises(LookupError, match="source"):
            await box.files.write("broken", broken())
        assert await box.files.write("broken", "whole") == 5
        assert await box.files.read("broken") == b"whole"

    @pytest.mark.parametrize(
        "name", ["a b", "é€", "-rf", "a\nb", "*", "$HOME", "'\"", "a\\b", "..."]
    )
    async def test_names_are_only_names(self, clean: Sandbox, name: str) -> None:
        await clean.files.write(f"names/{name}", name)
        [entry] = await clean.files.list("names")
        assert entry.name == name
        assert await clean.files.read_text(entry.path) == name
        await clean.files.remove(entry.path)
        assert await clean.files.list("names") == []

    # --- folders ---

    async def test_a_folder_is_listed_as_deep_as_asked(self, clean: Sandbox) -> None:
        await clean.files.write("tree/a", "1")
        await clean.files.write("tree/b/c", "22")
        await clean.files.write("tree/b/d/e", "333")
        top = {entry.name: entry for entry in await clean.files.list("tree")}
        assert set(top) == {"a", "b"}
        assert (top["a"].type, top["a"].size, top["b"].type) == ("file", 1, "directory")
        names = [entry.name for entry in await clean.files.list("tree", depth=3)]
        assert sorted(names) == ["a", "b", "c", "d", "e"]

    async def test_ten_thousand_entries_are_listed(self, clean: Sandbox) -> None:
        await clean.execute_command(
            "mkdir many && cd many && i=0; while [ $i -lt 10000 ]; do : > $i; i=$((i+1)); done",
            timeout=100,
        )
        assert len(await clean.files.list("many")) == 10_000
        assert len(await clean.files.list("many", limit=7)) == 7
        await clean.files.remove("many", recursive=True)
        assert not await clean.files.exists("many")

    async def test_folders_are_made_moved_and_removed(self, clean: Sandbox) -> None:
        await clean.files.mkdir("one/two")
        await clean.files.mkdir("one/two")
        with pytest.raises(FileExistsError):
            await clean.files.mkdir("one/two", parents=False)
        await clean.files.write("one/two/file", "x")
        await clean.files.move("one/two", "three")
        assert await clean.files.read("three/file") == b"x"
        with pytest.raises(OSError, match=r"(?i)not empty|directory"):
            await clean.files.remove("three")
        await clean.files.remove("three", recursive=True)
        assert not await clean.files.exists("three")
        await clean.files.remove("one")

    async def test_lines_are_found_and_texts_replaced(self, clean: Sandbox) -> None:
        await clean.files.write("src/a.py", "import os\nname = 'x'\nprint(name)\n")
        await clean.files.write("src/b/c.py", "name = 2\n")
        await clean.files.write("src/binary", b"\xff\0name")
        found = await clean.files.search(r"^name = ", "src")
        assert sorted((m.path.rpartition("/")[2], m.line) for m in found) == [
            ("a.py", 2),
            ("c.py", 1),
        ]
        assert found[0].text.startswith("name = ")
        assert len(await clean.files.search("name", "src", limit=1)) == 1
        assert await clean.files.replace("src/a.py", "name", "title") == 2
        assert await clean.files.read_text("src/a.py") == "import os\ntitle = 'x'\nprint(title)\n"
        assert await clean.files.replace("src/a.py", "title", "t", count=1) == 1
        assert await clean.files.replace("src/a.py", "not there", "x") == 0

    # --- what goes wrong ---

    async def test_a_missing_file_is_file_not_found(self, box: Sandbox) -> None:
        assert not await box.files.exists("missing")
        for call in (
            box.files.read("missing"),
            box.files.stat("missing"),
            box.files.list("missing"),
            box.files.remove("missing"),
            box.files.move("missing", "x"),
            box.files.replace("missing", "a", "b"),
            box.get_file("missing"),
        ):
            with pytest.raises(FileNotFoundError):
                await call

    async def test_a_folder_is_no_file_and_a_file_no_folder(self, box: Sandbox) -> None:
        await box.files.mkdir("folder")
        await box.files.write("file", "x")
        with pytest.raises(IsADirectoryError):
            await box.files.read("folder")
        with pytest.raises(IsADirectoryError):
            await box.files.write("folder", "x")
        with pytest.raises(NotADirectoryError):
            await box.files.list("file")
        with pytest.raises((NotADirectoryError, FileExistsError)):
            await box.files.write("file/below", "x")

    @pytest.mark.parametrize("path", ["", "a\0b", "a" * 256, "x/" * 2100, 5, None])
    async def test_a_path_that_is_none_is_the_callers_mistake(
        self, box: Sandbox, path: Any
    ) -> None:
        for call in (box.files.read, box.files.stat, box.files.exists, box.files.remove):
            with pytest.raises(ConfigError):
                await call(path)
        with pytest.raises(ConfigError):
            await box.files.write(path, "x")

    async def test_arguments_that_are_none_are_the_callers_mistake(self, box: Sandbox) -> None:
        await box.files.write("there", "x")
        for call in (
            lambda: box.files.read("there", offset=-1),
            lambda: box.files.list(".", depth=0),
            lambda: box.files.search("(", "."),
            lambda: box.files.replace("there", "", "x"),
            lambda: box.files.write("there", 5),  # pyright: ignore[reportArgumentType]
            lambda: box.put_file("relative", "x"),
        ):
            with pytest.raises(ConfigError):
                await call()

    # --- links ---

    async def test_links_are_seen_and_removed_as_links(self, clean: Sandbox) -> None:
        await clean.files.write("target", "kept")
        await clean.execute_command("ln -s target link; ln -s nowhere dangling; ln -s . loop")
        assert (await clean.files.stat("link", follow=False)).type == "symlink"
        assert (await clean.files.stat("link")).type == "file"
        assert await clean.files.read("link") == b"kept"
        await clean.files.remove("link")
        assert await clean.files.read("target") == b"kept"
        assert len(await clean.files.list(".", depth=50)) < 100

    async def test_removing_a_folder_does_not_follow_links_out_of_it(self, clean: Sandbox) -> None:
        await clean.files.write("outside/kept", "x")
        await clean.execute_command("mkdir gone && ln -s ../outside gone/out")
        await clean.files.remove("gone", recursive=True)
        assert await clean.files.read("outside/kept") == b"x"

    async def test_nothing_of_the_host_is_reached_by_a_path_or_a_planted_link(
        self, clean: Sandbox, tmp_path: Path
    ) -> None:
        if not self.isolated:
            pytest.skip("this sandbox shares the host's files")
        canary = await run_sync(_write, tmp_path / "canary", "host")
        await clean.execute_command(
            [
                "sh",
                "-c",
                'ln -s "$1" link; ln -s / root; ln -s "$2" folder',
                "-",
                str(canary),
                str(tmp_path),
            ]
        )
        up = "../" * 40
        for path in (str(canary), "link", f"root{canary}", "folder/canary", f"{up}{canary}"):
            with pytest.raises(OSError):  # noqa: PT011 - which one is the box's affair
                await clean.files.read(path)
            with pytest.raises(OSError):  # noqa: PT011
                await clean.files.write(path, "taken", parents=False)
        assert await run_sync(canary.read_text) == "host"
        assert await run_sync(os.listdir, tmp_path) == ["canary"]

    async def test_proc_and_fds_lead_nowhere(self, box: Sandbox, tmp_path: Path) -> None:
        if not self.isolated:
            pytest.skip("this sandbox shares the host's files")
        canary = await run_sync(_write, tmp_path / "canary", "host")
        for path in (f"/proc/1/root{canary}", f"/proc/self/root{canary}", f"/proc/1/cwd{canary}"):
            with pytest.raises(OSError):  # noqa: PT011
                await box.files.read(path)

    # --- archives ---

    async def test_files_and_folders_go_in_and_out_whole(
        self, clean: Sandbox, tmp_path: Path
    ) -> None:
        source = await run_sync(_make_tree, tmp_path / "source")
        await clean.put_dir(source, "copied")
        assert await clean.files.read("copied/sub/é b") == bytes(range(256))
        assert not await clean.files.exists("copied/link")
        target = tmp_path / "target"
        await clean.get_dir("copied", target)
        assert await run_sync(_read_tree, target) == {
            "sub": None,
            "sub/empty": None,
            "sub/é b": bytes(range(256)),
            "top": b"x",
        }

    async def test_put_dir_wants_a_folder(self, box: Sandbox, tmp_path: Path) -> None:
        plain = await run_sync(_write, tmp_path / "plain", "x")
        for source in (plain, tmp_path / "missing"):
            with pytest.raises(ConfigError, match="put_dir source is not a directory"):
                await box.put_dir(source, "x")

    async def test_put_file_takes_text_and_bytes(self, box: Sandbox) -> None:
        path = f"{box.config.working_dir}/put"
        await box.put_file(path, "é", "latin-1")
        assert await box.get_file(path) == b"\xe9"
        await box.put_file(path, b"\xff\0")
        assert await box.get_file(path) == b"\xff\0"

    async def test_an_archive_is_unpacked_inside(self, clean: Sandbox) -> None:
        script = tarfile.TarInfo("bin/run")
        script.mode = 0o755
        data = tar_of((script, b"#!/bin/sh\necho ran\n"), (tarfile.TarInfo("data"), b"d" * MIB))
        await clean.put_archive("into/here", data)
        assert (await clean.execute_command(["into/here/bin/run"])).stdout == "ran\n"
        assert (await clean.files.stat("into/here/data")).size == MIB

        async def stream() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 1000):
                yield data[start : start + 1000]

        await clean.put_archive("streamed", stream())
        assert (await clean.files.stat("streamed/data")).size == MIB

    @pytest.mark.parametrize(
        "members",
        [
            [(tarfile.TarInfo("../outside"), b"x")],
            [(tarfile.TarInfo("a/../../outside"), b"x")],
            [link("out", ".."), (tarfile.TarInfo("out/outside"), b"x")],
            [link("out", "../outside"), (tarfile.TarInfo("out"), b"x")],
            [link("hard", "../victim", tarfile.LNKTYPE), (tarfile.TarInfo("hard"), b"x")],
        ],
        ids=["dots", "inner-dots", "link-folder", "link-file", "hard-link"],
    )
    async def test_no_member_lands_outside_of_its_folder(
        self, clean: Sandbox, members: list[tuple[tarfile.TarInfo, bytes]]
    ) -> None:
        await clean.files.write("victim", "kept")
        await clean.files.mkdir("into")
        # Refused is right; left out, or kept inside, is right too.
        with contextlib.suppress(OSError, ValueError):
            await clean.put_archive("into", tar_of(*members))
        assert not await clean.files.exists("outside")
        assert await clean.files.read("victim") == b"kept"

    @pytest.mark.parametrize("data", [b"not a tar" * 100, b"\x1f\x8b" + b"\0" * 600])
    async def test_what_is_no_tar_is_refused(self, box: Sandbox, data: bytes) -> None:
        with pytest.raises((ValueError, OSError)):
            await box.put_archive("garbage", data)
        assert (await box.execute_command("echo alive")).stdout == "alive\n"

    async def test_what_comes_out_stays_below_its_target(
        self, clean: Sandbox, tmp_path: Path
    ) -> None:
        await clean.execute_command(
            "mkdir out && cd out && ln -s /etc/passwd link && ln -s .. up && mkfifo fifo"
            " && echo x > plain"
        )
        await clean.get_dir("out", tmp_path / "target")
        assert await run_sync(_read_tree, tmp_path) == {"target": None, "target/plain": b"x\n"}

    async def test_a_folder_is_not_taken_beyond_what_the_caller_allows(
        self, clean: Sandbox, tmp_path: Path
    ) -> None:
        await clean.execute_command("mkdir much; truncate -s 100M much/hole; echo x > much/small")
        with pytest.raises(ConfigError, match="more than"):
            await clean.get_dir("much", tmp_path / "out", max_bytes=MIB)
        assert await run_sync(_read_tree, tmp_path) == {}
        await clean.execute_command("rm much/hole")
        await clean.get_dir("much", tmp_path / "out", max_bytes=MIB)
        assert await run_sync(_read_tree, tmp_path / "out") == {"small": b"x\n"}

    async def test_a_folder_larger_than_what_is_held_goes_in_and_out(
        self, clean: Sandbox, tmp_path: Path
    ) -> None:
        content = b"0123456789abcdef" * (20 * MIB // 16)
        await run_sync((tmp_path / "in").mkdir)
        await run_sync((tmp_path / "in" / "big").write_bytes, content)
        await clean.put_dir(tmp_path / "in", "big")
        await clean.get_dir("big", tmp_path / "out")
        assert await run_sync(_read_tree, tmp_path / "out") == {"big": content}

    async def test_an_archive_comes_out_as_tar(self, clean: Sandbox) -> None:
        await clean.files.write("packed/a", b"1")
        data = b"".join([chunk async for chunk in clean.get_archive("packed")])
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            [member] = [item for item in archive.getmembers() if item.isfile()]
            assert member.name.rpartition("/")[2] == "a"

    # --- any thread, any loop ---

    def test_a_source_bound_to_the_callers_loop_can_be_written(self) -> None:
        async def use() -> bytes:
            queue: asyncio.Queue[bytes | None] = asyncio.Queue(1)

            async def produce() -> None:
                for item in (b"a", b"b", None):
                    await queue.put(item)

            async def source() -> AsyncIterator[bytes]:
                while (item := await queue.get()) is not None:
                    yield item

            async with AsyncExitStack() as stack:
                box = await stack.enter_async_context(self.opened())
                producer = asyncio.create_task(produce())
                await box.files.write("joined", source())
                await producer
                return await box.files.read("joined")

        assert asyncio.run(use()) == b"ab"
