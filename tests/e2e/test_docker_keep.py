"""Containers that outlive their manager, and the next manager that finds them."""

from __future__ import annotations

import json
import os
import secrets
import sys
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes import DockerSandbox, _docker_kept
from ms_enclave.errors import CapabilityError, SandboxLostError
from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.support.owners import Owner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from ms_enclave.boxes.base import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

KEEPER = """
import asyncio, json, os, sys
from ms_enclave.manager.local_manager import LocalSandboxManager

async def main(_, marker, folder, kind, config):
    manager = LocalSandboxManager(state_dir=folder)
    await manager.start()
    config = {'on_owner_death': 'keep', **json.loads(config)}
    box = await manager.get_sandbox(await manager.create_sandbox(kind, config, marker))
    await box.files.write('mine', marker)
    await box.execute_command(f'setsid sleep 600.{int(marker, 16)} > /dev/null 2>&1 &')
    info = await manager.get_sandbox_info(box.id)
    print(json.dumps([info.created_at.isoformat(), box.container.id]), flush=True)
    word = (await asyncio.to_thread(sys.stdin.readline)).strip()
    if word == 'hand over':
        await manager.hand_over()
    elif word == 'run':
        await box.execute_command(['sleep', '1000'])
    elif word == 'pause':
        await box.pause()
        print(json.dumps('paused'), flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(*sys.argv[1:]))
"""


class Keeper(Owner):
    """A manager in a process of its own with a container that is to outlive it."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.name = secrets.token_hex(6)
        words = [self.name, str(folder), "docker", json.dumps(config)]
        super().__init__(command=[sys.executable, "-c", KEEPER], arguments=words)
        self.created_at, self.container = self.read(60)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncGenerator[Path]:
    """A state folder; what was left in it is gone with the test."""
    yield tmp_path / "state"
    with anyio.CancelScope(shield=True):
        if (tmp_path / "state").exists():
            async with LocalSandboxManager(state_dir=str(tmp_path / "state")):
                pass


async def taken_over(manager: LocalSandboxManager, name: str) -> Sandbox:
    box = await manager.get_sandbox(name)
    assert box is not None
    return box


async def is_gone(container: str) -> None:
    """Wait until no engine has a container any more."""
    with anyio.fail_after(15):
        while any(row.place == container for row in await DockerSandbox.find_all()):
            await anyio.sleep(0.05)


@pytest.mark.parametrize("how", ["killed", "hand over"])
async def test_the_next_manager_finds_what_the_last_one_left(folder: Path, how: str) -> None:
    with Keeper(folder, ttl=1000, env_vars={"WHO": "kept"}) as owner:
        if how == "killed":
            owner.kill()
        else:
            owner.tell(how)
            owner.close()
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            (info,) = await manager.list_sandboxes()
            assert (info.id, info.status) == (owner.name, "running")
            assert info.created_at.isoformat() == owner.created_at
            assert info.config["ttl"] == 1000
            box = await taken_over(manager, owner.name)
            look = "cat mine; cat /proc/[0-9]*/comm | grep -c sleep; echo $WHO"
            seen = await box.execute_command(look)
            assert seen.stdout == f"{owner.name}1\nkept\n"
            assert (await box.run_code("print(6 * 7)")).stdout == "42\n"
            kernel = await box.kernel()
            assert (await kernel.run("6 * 7")).result == {"text/plain": "42"}
            assert box.metadata["channel"] == "direct"
        await is_gone(owner.container)
        assert os.listdir(folder / "docker") == []


async def test_one_that_is_left_paused_goes_on_with_the_next_manager(folder: Path) -> None:
    with Keeper(folder) as owner:
        assert owner.ask("pause") == "paused"
        owner.kill()
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            box = await taken_over(manager, owner.name)
            assert not box.paused
            with anyio.fail_after(30):
                assert await box.files.read_text("mine") == owner.name
        await is_gone(owner.container)


async def test_it_goes_from_one_manager_to_the_next_again_and_again(folder: Path) -> None:
    with Keeper(folder) as owner:
        owner.tell("hand over")
        owner.close()
        for number in range(3):
            manager = LocalSandboxManager(state_dir=str(folder))
            await manager.start()
            box = await taken_over(manager, owner.name)
            await box.execute_command(f"echo {number} >> seen")
            await manager.hand_over()
            with pytest.raises(SandboxLostError, match="left to the next owner"):
                await box.execute_command("true")
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            box = await taken_over(manager, owner.name)
            assert await box.files.read_text("seen") == "0\n1\n2\n"


async def test_what_the_dead_one_waited_for_has_ended(folder: Path) -> None:
    with Keeper(folder) as owner:
        owner.tell("run")
        owner.kill()
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            box = await taken_over(manager, owner.name)
            seen = await box.execute_command("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
            assert "sleep 600." in seen.stdout
            assert "sleep 1000" not in seen.stdout


async def test_what_nobody_comes_for_ends_by_itself(folder: Path) -> None:
    with Keeper(folder, idle_timeout=1.5) as owner:
        owner.kill()
        await is_gone(owner.container)
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert await manager.list_sandboxes() == []
        assert os.listdir(folder / "docker") == []


async def test_a_renewal_goes_with_it(folder: Path) -> None:
    with Keeper(folder, ttl=1000) as owner:
        owner.kill()
        manager = LocalSandboxManager(state_dir=str(folder))
        await manager.start()
        await manager.renew(owner.name, 5000)
        await manager.hand_over()
        place = str(folder / "docker")
        (note,), _ = await anyio.to_thread.run_sync(_docker_kept.read_all, place)
        left = await anyio.to_thread.run_sync(_docker_kept.left, note)
        assert left is not None
        assert 4000 < left <= 5000


async def test_it_shows_as_kept_and_whose_it_is(folder: Path) -> None:
    async def owner_of(container: str) -> tuple[str, bool]:
        (row,) = [row for row in await DockerSandbox.find_all() if row.place == container]
        return row.owner, row.kept

    with Keeper(folder) as keeper:
        assert (await owner_of(keeper.container))[0] == "alive"
        keeper.kill()
        assert await owner_of(keeper.container) == ("gone", True)
        manager = LocalSandboxManager(state_dir=str(folder))
        await manager.start()
        assert await owner_of(keeper.container) == ("alive", True)
        await manager.stop()


async def test_a_note_that_cannot_be_read_keeps_nothing_from_being_found(folder: Path) -> None:
    with Keeper(folder) as owner:
        owner.kill()
        (folder / "docker" / "broken.json").write_text('{"id": "brok')
        (folder / "docker" / "other.json").write_text(
            (folder / "docker" / f"{owner.name}.json").read_text()
        )
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert [info.id for info in await manager.list_sandboxes()] == [owner.name]
        assert sorted(os.listdir(folder / "docker")) == ["broken.json", "other.json"]


async def test_one_that_has_ended_is_forgotten(folder: Path) -> None:
    with Keeper(folder) as owner:
        owner.kill()
        rows = [row for row in await DockerSandbox.find_all() if row.place == owner.container]
        await DockerSandbox.remove_found(rows)
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert await manager.list_sandboxes() == []
        assert os.listdir(folder / "docker") == []


async def test_it_is_made_by_a_manager_that_has_a_folder() -> None:
    box = DockerSandbox({"on_owner_death": "keep"})
    with pytest.raises(CapabilityError, match="state_dir"):
        await box.start()
