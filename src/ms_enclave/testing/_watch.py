"""A watch of a folder tells what changes in it, and says so when it cannot."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.errors import CapabilityError, SandboxStateError
from ms_enclave.testing._suite import SandboxSuite, lacks, needs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ms_enclave.boxes import Sandbox
    from ms_enclave.model import FileEvent

__all__ = ["WatchContract"]

_BOUND = 20.0
_STORM = """
import os
for number in range(40_000):
    name = f"storm/{number}"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    os.unlink(name)
"""


@asynccontextmanager
async def watched(
    box: Sandbox, path: str, *, recursive: bool = False
) -> AsyncGenerator[AsyncGenerator[FileEvent, None], None]:
    """A watch that has begun, of a new folder."""
    needs(box, "watch")
    await box.files.mkdir(path)
    with anyio.fail_after(60):
        async with aclosing(box.files.watch(path, recursive=recursive)) as events:
            first = await anext(events)
            assert (first.type, first.path, first.directory) == ("watching", path, True)
            yield events


async def until(events: AsyncGenerator[FileEvent, None], path: str, kind: str) -> list[FileEvent]:
    """The events up to one that must come."""
    found: list[FileEvent] = []
    with anyio.fail_after(_BOUND):
        async for event in events:
            found.append(event)
            if (event.path, event.type) == (path, kind):
                return found
    raise AssertionError(f"the watch ended without {kind} of {path}: {found}")


def _told(events: list[FileEvent]) -> list[tuple[str, str]]:
    return [(event.type, event.path) for event in events]


class WatchContract(SandboxSuite):
    """Watching folders of a sandbox that can; the others say that they cannot."""

    async def test_a_sandbox_that_cannot_watch_says_so(self, box: Sandbox) -> None:
        lacks(box, "watch")
        with pytest.raises(CapabilityError, match="watch"):
            await anext(box.files.watch("."))

    async def test_what_programs_and_file_calls_do_is_told(self, box: Sandbox) -> None:
        async with watched(box, "w1") as events:
            await box.execute_command("echo one > w1/a; mkdir w1/d; echo two >> w1/a; rm w1/a")
            await box.files.write("w1/b", b"x")
            found = await until(events, "w1/b", "modified")
        assert _told(found) == [
            ("created", "w1/a"), ("modified", "w1/a"), ("created", "w1/d"), ("modified", "w1/a"),
            ("deleted", "w1/a"), ("created", "w1/b"), ("modified", "w1/b"),
        ]  # fmt: skip
        assert [event.directory for event in found][:3] == [False, False, True]

    async def test_what_is_moved_in_came_and_what_is_moved_out_went(self, box: Sandbox) -> None:
        await box.files.write("outside2", b"")
        async with watched(box, "w2") as events:
            await box.files.move("outside2", "w2/in")
            await box.files.move("w2/in", "w2/renamed")
            await box.files.move("w2/renamed", "outside2")
            found = await until(events, "w2/renamed", "deleted")
        assert _told(found) == [
            ("created", "w2/in"), ("deleted", "w2/in"), ("created", "w2/renamed"),
            ("deleted", "w2/renamed"),
        ]  # fmt: skip

    async def test_a_folder_below_is_told_of_only_where_asked_for(self, box: Sandbox) -> None:
        await box.files.mkdir("w3/sub")
        async with watched(box, "w3") as events:
            await box.files.write("w3/sub/f", b"x")
            await box.files.write("w3/last", b"")
            assert _told(await until(events, "w3/last", "created")) == [("created", "w3/last")]
        async with watched(box, "w3", recursive=True) as events:
            await box.files.write("w3/sub/g", b"")
            found = await until(events, "w3/sub/g", "created")
        assert _told(found) == [("created", "w3/sub/g")]

    async def test_folders_that_come_are_watched_with_what_is_in_them(self, box: Sandbox) -> None:
        async with watched(box, "w4", recursive=True) as events:
            await box.execute_command("mkdir -p w4/a/b/c; echo > w4/a/b/c/f; echo > w4/a/b/g")
            paths = {"w4/a", "w4/a/b", "w4/a/b/c", "w4/a/b/c/f", "w4/a/b/g"}
            created: list[str] = []
            while paths - set(created):
                event = await anext(events)
                if event.type == "created":
                    created.append(event.path)
            assert sorted(created) == sorted(paths)
            await box.execute_command("mv w4/a w4/z; echo > w4/z/b/new")
            found = await until(events, "w4/z/b/new", "created")
            assert ("deleted", "w4/a") in _told(found)
            created = [path for kind, path in _told(found) if kind == "created"]
            assert set(created) >= {"w4/z", "w4/z/b", "w4/z/b/new"}
            assert not [path for path in created if path.startswith("w4/a")]

    async def test_links_are_not_followed(self, box: Sandbox) -> None:
        await box.files.mkdir("elsewhere5")
        async with watched(box, "w5", recursive=True) as events:
            await box.execute_command("ln -s ../elsewhere5 w5/link")
            await until(events, "w5/link", "created")
            await box.files.write("elsewhere5/f", b"x")
            await box.files.write("w5/last", b"")
            assert _told(await until(events, "w5/last", "created")) == [("created", "w5/last")]

    async def test_the_end_of_the_folder_is_the_end_of_the_watch(self, box: Sandbox) -> None:
        async with watched(box, "w6") as events:
            await box.files.remove("w6", recursive=True)
            assert [event.type async for event in events] == ["deleted"]

    async def test_names_are_told_as_they_are_listed(self, box: Sandbox) -> None:
        async with watched(box, "w7") as events:
            await box.run_code(
                "import os\nfor n in (b'\\xff', 'é\\n'.encode()): os.mkdir(b'w7/' + n)"
            )
            told = [(await anext(events)).path, (await anext(events)).path]
        assert sorted(told) == sorted(entry.path for entry in await box.files.list("w7"))

    async def test_more_than_can_be_told_is_lost_and_said_to_be(self, box: Sandbox) -> None:
        await box.files.mkdir("storm")
        async with watched(box, "storm", recursive=True) as events:
            result = await box.run_code(_STORM, timeout=60)
            assert result.exit_code == 0, result
            told = _told(await until(events, "storm", "lost"))
            assert len(told) < 79_999
            await box.files.write("storm/after", b"")
            await until(events, "storm/after", "created")

    async def test_what_is_no_folder_cannot_be_watched(self, box: Sandbox) -> None:
        needs(box, "watch")
        await box.files.write("plain8", b"")
        with pytest.raises(NotADirectoryError):
            await anext(box.files.watch("plain8"))
        with pytest.raises(FileNotFoundError):
            await anext(box.files.watch("absent8"))

    async def test_a_watch_that_is_closed_leaves_nothing(self, box: Sandbox) -> None:
        for _ in range(200):  # more than the machine lets a user have at a time
            async with watched(box, "w9"):
                pass

    async def test_a_watch_ends_with_its_sandbox(self, fresh: Sandbox) -> None:
        async with watched(fresh, "w") as events, anyio.create_task_group() as group:
            group.start_soon(_stop_soon, fresh)
            with pytest.raises(SandboxStateError):
                await anext(events)


async def _stop_soon(box: Sandbox) -> None:
    await anyio.sleep(0.1)
    await box.stop()
