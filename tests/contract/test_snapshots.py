"""Snapshots keep their promises with a manager of this machine and with one over HTTP."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    SandboxStateError,
    SnapshotNotFoundError,
)
from ms_enclave.manager import LocalSandboxManager
from tests.support.served import InProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ms_enclave.boxes import Sandbox
    from ms_enclave.manager import SandboxManager

pytestmark = pytest.mark.namespaces

MAKE = (
    "mkdir -p a/b && echo deep > a/b/file && chmod 640 a/b/file && ln a/b/file second"
    " && ln -s a/b/file link && echo of-tmp > /tmp/there && truncate -s 3M holes && mkfifo pipe"
    " && printf x > secret && chmod 000 secret && printf '#!/bin/sh\\necho ran\\n' > tool"
    " && chmod 4755 tool"
)
LOOK = (
    "cat link /tmp/there && ./tool && stat -c '%a %h' second tool secret . /tmp a"
    " && stat -c %U second && stat -c '%s' holes && test ! -e pipe && echo no pipe"
)
SEEN = "deep\nof-tmp\nran\n640 2\n755 1\n0 1\n755 1\n1777 1\n755 3\nsandbox\n"


@pytest.fixture(params=[LocalSandboxManager, InProcess], ids=["local", "http"])
async def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SandboxManager]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    async with request.param() as running:
        yield running


async def run(box: Sandbox, line: str) -> str:
    done = await box.execute_command(line)
    assert done.exit_code == 0, done.stderr
    return done.stdout


async def stored(manager: SandboxManager, name: str, line: str) -> None:
    async with manager.sandbox("process") as box:
        await run(box, line)
        await box.snapshot(name)


async def test_new_sandboxes_begin_with_the_files_and_apart(manager: SandboxManager) -> None:
    async with manager.sandbox("process") as box:
        if "snapshot" not in box.capabilities:
            pytest.skip("this kernel shares no layers of files")
        await run(box, MAKE)
        info = await box.snapshot("one")
        await run(box, "echo later > later")
    assert (info.name, info.size) == (
        "one",
        3 * 1024**2 + len("deep\nof-tmp\nx#!/bin/sh\necho ran\n"),
    )
    assert await manager.list_snapshots() == [info]
    for _ in range(2):  # what one does to them is nothing to the next
        async with manager.sandbox("process", {"snapshot": "one"}) as box:
            found = await run(box, LOOK)
            assert found.startswith(SEEN)
            assert found.endswith(f"{3 * 1024**2}\nno pipe\n")
            assert not await box.files.exists("later")
            await run(box, "rm -r a && echo mine > second && rm /tmp/there")


async def test_one_travels_as_a_tar_and_is_the_same_there(manager: SandboxManager) -> None:
    await stored(manager, "one", MAKE)
    tar = b"".join([piece async for piece in manager.export_snapshot("one")])
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert {"work/a/b/file", "tmp/there"} <= {*archive.getnames()}

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(tar), 100_000):
            yield tar[start : start + 100_000]

    (known,) = await manager.list_snapshots()
    again = await manager.import_snapshot("two", pieces())
    assert (again.id, again.size, again.files) == (known.id, known.size, known.files)
    async with manager.sandbox("process", {"snapshot": "two"}) as box:
        assert (await run(box, LOOK)).startswith(SEEN)


async def test_one_that_is_deleted_stays_with_those_that_began_with_it(
    manager: SandboxManager,
) -> None:
    await stored(manager, "one", "echo text > file")
    async with manager.sandbox("process", {"snapshot": "one"}) as box:
        await manager.delete_snapshot("one")
        assert await manager.list_snapshots() == []
        assert await run(box, "cat file") == "text\n"
        with pytest.raises(SnapshotNotFoundError):
            await manager.create_sandbox("process", {"snapshot": "one"})
    with pytest.raises(SnapshotNotFoundError):
        await manager.delete_snapshot("one")
    with pytest.raises(SnapshotNotFoundError):
        _ = [piece async for piece in manager.export_snapshot("one")]


async def test_a_name_is_given_once_and_none_is_a_path(manager: SandboxManager) -> None:
    async with manager.sandbox("process") as box:
        await box.snapshot("one")
        with pytest.raises(ConfigError, match="already"):
            await box.snapshot("one")
        for name in ("", "..", "a/b", "/etc", ".hidden", "x" * 129, "a\0b"):
            with pytest.raises(ConfigError):
                await box.snapshot(name)
            with pytest.raises(ConfigError):
                await manager.import_snapshot(name, b"")
            with pytest.raises(ConfigError):
                await manager.delete_snapshot(name)
            with pytest.raises(ConfigError):
                await manager.create_sandbox("process", {"snapshot": name})
    with pytest.raises(SandboxStateError):
        await box.snapshot("two")


@pytest.mark.parametrize("tier", ["landlock", "gvisor"])
async def test_a_tier_without_them_says_so(manager: SandboxManager, tier: str) -> None:
    with pytest.raises(CapabilityError) as caught:
        await manager.create_sandbox("process", {"snapshot": "one", "isolation": tier})
    assert caught.value.capability == "snapshot"
