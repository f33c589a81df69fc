"""A watch through a real guest, on every Python that one must run on."""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.to_thread import run_sync

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ms_enclave.model import FileEvent
    from tests.support.guests import Guest


async def _until(pages: AsyncGenerator[list[FileEvent], None], kind: str, path: str) -> list[str]:
    """What is told up to an event, in short."""
    told: list[str] = []
    with anyio.fail_after(20):
        async for page in pages:
            told += [f"{event.type} {event.path}" for event in page]
            if f"{kind} {path}" in told:
                return told
    raise AssertionError(told)


async def test_changes_are_told_in_order(guest: Guest) -> None:
    (guest.folder / "d").mkdir()
    async with aclosing(guest.connection.watch("d", recursive=True)) as pages:
        assert await _until(pages, "watching", "d") == ["watching d"]
        (guest.folder / "d" / "sub").mkdir()
        await _until(pages, "created", "d/sub")
        (guest.folder / "d" / "sub" / "f").write_bytes(b"x")
        (guest.folder / "d" / "sub" / "f").unlink()
        assert await _until(pages, "deleted", "d/sub/f") == [
            "created d/sub/f", "modified d/sub/f", "deleted d/sub/f",
        ]  # fmt: skip


async def test_what_comes_with_new_folders_is_told_once(guest: Guest) -> None:
    made: list[str] = []

    def make() -> None:
        for number in range(150):
            path = f"{number}"
            for name in ("a", "b", "c", "f"):
                (guest.folder / path).mkdir()
                made.append(path)
                path += f"/{name}"
        (guest.folder / "last").touch()

    async with aclosing(guest.connection.watch(".", recursive=True)) as pages:
        await _until(pages, "watching", ".")
        async with anyio.create_task_group() as group:
            group.start_soon(run_sync, make)
            told = await _until(pages, "created", "last")
        # What is in the newest folders may be found after the last one was told.
        (guest.folder / "149" / "end").touch()
        told += await _until(pages, "created", "149/end")
    created = [line.removeprefix("created ") for line in told if line.startswith("created")]
    assert sorted(created) == sorted([*made, "last", "149/end"])


async def test_a_thousand_writes_at_once_are_few_changes(guest: Guest) -> None:
    async with aclosing(guest.connection.watch(".")) as pages:
        await _until(pages, "watching", ".")
        with (guest.folder / "log").open("wb", buffering=0) as file:
            for _ in range(1000):
                file.write(b"x")
        (guest.folder / "last").touch()
        told = await _until(pages, "created", "last")
    assert told[0] == "created log"
    assert 1 <= told.count("modified log") < 500


async def test_a_folder_that_is_moved_out_is_watched_no_more(guest: Guest) -> None:
    (guest.folder / "d" / "sub" / "below").mkdir(parents=True)
    async with aclosing(guest.connection.watch("d", recursive=True)) as pages:
        await _until(pages, "watching", "d")
        (guest.folder / "d" / "sub").rename(guest.folder / "gone")
        await _until(pages, "deleted", "d/sub")
        (guest.folder / "gone" / "below" / "f").touch()
        (guest.folder / "d" / "last").touch()
        assert await _until(pages, "created", "d/last") == ["created d/last"]


async def test_more_folders_than_may_be_watched_are_refused(guest: Guest) -> None:
    for number in range(8200):
        (guest.folder / "d" / str(number % 100)).mkdir(parents=True, exist_ok=True)
        (guest.folder / "d" / str(number % 100) / str(number)).mkdir()
    with pytest.raises(OSError, match="No space left") as caught:
        await anext(guest.connection.watch("d", recursive=True))
    assert caught.value.errno is not None


async def test_a_watch_that_is_given_up_leaves_no_descriptor(guest: Guest) -> None:
    def watches() -> list[str]:
        folder = f"/proc/{guest.child.pid}/fd"
        found = [os.readlink(f"{folder}/{number}") for number in os.listdir(folder)]
        return [target for target in found if "inotify" in target]

    async with aclosing(guest.connection.watch(".")) as pages:
        await _until(pages, "watching", ".")
        assert len(watches()) == 1
    with anyio.fail_after(10):
        while watches():
            await anyio.sleep(0.02)


async def test_what_nobody_takes_is_lost_and_the_guest_stays_small(guest: Guest) -> None:
    async with aclosing(guest.connection.watch(".")) as pages:
        await _until(pages, "watching", ".")
        before = guest.memory
        for number in range(15_000):
            path = guest.folder / f"a name that takes some room {number}"
            path.touch()
            path.unlink()
        assert await guest.connection.exists(".")
        assert guest.memory - before < 12 << 20
        await _until(pages, "lost", ".")
