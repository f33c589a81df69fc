"""Somebody hostile owns what is in a sandbox when it becomes a snapshot, and what is imported."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.errors import ConfigError, ForkRefusedError
from ms_enclave.manager import LocalSandboxManager
from ms_enclave.testing._suite import (  # pyright: ignore[reportPrivateUsage]
    wait_for_file,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ms_enclave.boxes import Sandbox

pytestmark = pytest.mark.namespaces


@pytest.fixture
async def manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LocalSandboxManager]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    async with LocalSandboxManager() as running:
        yield running


async def run(box: Sandbox, line: str) -> str:
    done = await box.execute_command(line)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def incoming(folder: Path) -> list[str]:
    return os.listdir(folder / "ms-enclave" / "snapshots" / "incoming")


@pytest.mark.parametrize(
    "line",
    [
        "for n in 1 2 3 4 5; do truncate -s 250M hole-$n; done",
        "python3 -c \"import os\nfor _ in range(300): os.mkdir('d'); os.chdir('d')\"",
    ],
    ids=["holes", "depth"],
)
async def test_too_much_is_refused_and_nothing_is_left(
    manager: LocalSandboxManager, tmp_path: Path, line: str
) -> None:
    async with manager.sandbox("process") as box:
        await run(box, line)
        with pytest.raises(ForkRefusedError):
            await box.snapshot("one")
        assert await manager.list_snapshots() == []
        assert not (tmp_path / "ms-enclave").exists() or incoming(tmp_path) == []
        assert await run(box, "echo goes on") == "goes on\n"


async def test_a_race_over_names_brings_nothing_of_the_host_and_hangs_nothing(
    manager: LocalSandboxManager, tmp_path: Path
) -> None:
    async with manager.sandbox("process") as box:
        await run(box, "mkdir real && echo mine > real/shadow && mkfifo pipe && ln -s /etc etc")
        await box.start_command(
            "while :; do mv real x; ln -s /etc real; rm real; mv x real; mv pipe p; mv p pipe; done"
        )
        for number in range(4):
            with contextlib.suppress(ForkRefusedError):
                await box.snapshot(f"s{number}")
        assert incoming(tmp_path) == []
    for info in await manager.list_snapshots():
        data = b"".join([piece async for piece in manager.export_snapshot(info.name)])
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.isreg():
                    content = tar.extractfile(member)
                    assert content is not None
                    assert content.read() == b"mine\n", member.name


COUNT = """
import os
files = [os.open(f"f{n:03}", os.O_RDWR | os.O_CREAT) for n in range(400)]
number = 0
while True:
    number += 1
    for file in files:
        os.pwrite(file, b"%08d" % number, 0)
    if number == 3:
        open("counting", "w").write("x")
"""


async def test_what_runs_stands_still_while_it_is_copied(manager: LocalSandboxManager) -> None:
    async with manager.sandbox("process") as box:
        if "pause" not in box.capabilities:
            pytest.skip("no control groups of version 2")
        await box.files.write("count.py", COUNT)
        await box.start_command(["python3", "count.py"])
        await wait_for_file(box, "counting")
        await box.snapshot("one")
        before = await box.files.read("f000")
        while await box.files.read("f000") == before:  # it goes on
            await anyio.sleep(0.01)
    async with manager.sandbox("process", {"snapshot": "one"}) as box:
        numbers = [int(text) for text in (await run(box, "cat f* | fold -w 8")).split()]
    assert len(numbers) == 400
    assert max(numbers) - min(numbers) <= 1
    assert numbers == sorted(numbers, reverse=True)


async def test_what_was_removed_above_a_snapshot_is_in_no_later_one(
    manager: LocalSandboxManager,
) -> None:
    async with manager.sandbox("process") as box:
        await run(box, "mkdir d && echo secret > d/f && echo kept > kept")
        await box.snapshot("one")
    async with manager.sandbox("process", {"snapshot": "one"}) as box:
        await run(box, "rm -r d && mkdir d")
        await box.snapshot("two")
    async with manager.sandbox("process", {"snapshot": "two"}) as box:
        assert await run(box, "ls -A . d; cat kept") == ".:\nd\nkept\n\nd:\nkept\n"


async def test_an_imported_program_gives_nobody_more_rights(manager: LocalSandboxManager) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("work/tool")
        content = b"#!/bin/sh\nid -u\n"
        member.size, member.mode, member.uid, member.gid = len(content), 0o6755, 0, 0
        tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("work/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/" + "../" * 20 + "proc/1/root/etc/shadow"
        tar.addfile(link)
    await manager.import_snapshot("one", buffer.getvalue())
    async with manager.sandbox("process", {"snapshot": "one"}) as box:
        assert await run(box, "./tool; stat -c %a tool") == "1000\n755\n"
        assert not (await box.execute_command("cat link")).success
        assert not (await box.execute_command("echo x >> tool")).success or (
            "own_ids" not in box.isolation.guards or box.isolation.guards["own_ids"] == "off"
        )


async def test_a_paused_one_can_be_kept_and_stays_paused(manager: LocalSandboxManager) -> None:
    async with manager.sandbox("process") as box:
        if "pause" not in box.capabilities:
            pytest.skip("no control groups of version 2")
        await run(box, "echo text > file")
        await box.pause()
        await box.snapshot("one")
        assert box.paused
        await box.resume()
        assert await run(box, "cat file") == "text\n"


async def test_a_work_folder_that_is_tmp_takes_no_other(manager: LocalSandboxManager) -> None:
    async with manager.sandbox("process") as box:
        await run(box, "echo text > file")
        await box.snapshot("one")
    with pytest.raises(ConfigError, match="work folder"):
        await manager.create_sandbox("process", {"snapshot": "one", "working_dir": "/tmp"})
