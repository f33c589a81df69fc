"""`kill -9` of managers, containers and guests at random moments, while others work."""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes import DockerSandbox
from ms_enclave.errors import SandboxLostError, SandboxStartError
from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.e2e.test_docker import containers, docker
from tests.support.owners import Owner

if TYPE_CHECKING:
    from ms_enclave.boxes.base import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

DEATHS = int(os.environ.get("MS_ENCLAVE_TEST_DEATHS", "40")) // 4
SEED = int(os.environ.get("MS_ENCLAVE_TEST_SEED", secrets.randbelow(10**6)))

BUSY = """
import asyncio, json, sys
from ms_enclave.manager.local_manager import LocalSandboxManager

async def work(manager):
    while True:
        name = await manager.create_sandbox('docker')
        box = await manager.get_sandbox(name)
        await box.execute_command('setsid sleep 600 > /dev/null 2>&1 &')
        await box.files.write('data', b'x' * 300000)
        await box.run_code('print(1)')
        await manager.delete_sandbox(name)

async def main():
    async with LocalSandboxManager() as manager:
        idle = await manager.get_sandbox(await manager.create_sandbox('docker'))
        await idle.execute_command('setsid sleep 600 > /dev/null 2>&1 &')
        print(json.dumps('ready'), flush=True)
        await asyncio.gather(work(manager), work(manager))

asyncio.run(main())
"""


class Neighbour:
    """Works in a container of its own until it is told to stop; anything that fails is raised."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.calls = 0
        self.done = False

    async def go_on(self) -> None:
        while not self.done:
            self.calls += 1
            await self.box.files.write("count", str(self.calls))
            seen = await self.box.execute_command("cat count")
            assert seen.stdout == str(self.calls)
            await anyio.sleep(0.02)


async def test_containers_and_guests_die_and_callers_learn_it() -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    async with LocalSandboxManager() as manager, DockerSandbox() as theirs:
        neighbour = Neighbour(theirs)
        async with anyio.create_task_group() as around:
            around.start_soon(neighbour.go_on)
            for _ in range(DEATHS):
                await live_and_die(manager, chance)
            neighbour.done = True
        assert neighbour.calls > 10
    assert containers() == []


async def live_and_die(manager: LocalSandboxManager, chance: random.Random) -> None:
    name = await manager.create_sandbox("docker")
    box = await manager.get_sandbox(name)
    assert isinstance(box, DockerSandbox)
    container = box.container.id
    acknowledged: list[str] = []
    errors: list[Exception] = []

    async def work() -> None:
        try:
            while True:
                text = secrets.token_hex(8)
                await box.files.write("ledger", text)
                acknowledged.append(text)
                done = await box.run_code("print(open('ledger').read())")
                assert done.stdout == f"{text}\n"
        except (SandboxLostError, SandboxStartError) as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await anyio.sleep(chance.uniform(0, 0.3))
        if chance.random() < 0.5:
            await anyio.to_thread.run_sync(docker, "kill", container)
        else:
            pid = int(
                await anyio.to_thread.run_sync(docker, "inspect", "-f", "{{.State.Pid}}", container)
            )
            os.kill(pid, signal.SIGKILL)
    (error,) = errors
    assert isinstance(error, SandboxLostError), error
    with pytest.raises(SandboxLostError):
        await box.execute_command("true")
    await manager.delete_sandbox(name)
    assert not await anyio.to_thread.run_sync(docker, "ps", "-aq", "--filter", f"id={container}")


async def test_managers_die_and_nothing_of_them_goes_on() -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    async with DockerSandbox() as theirs:
        neighbour = Neighbour(theirs)
        async with anyio.create_task_group() as around:
            around.start_soon(neighbour.go_on)
            for _ in range(max(2, DEATHS // 2)):
                await anyio.to_thread.run_sync(lose_a_manager, chance.uniform(0, 1))
            neighbour.done = True
        assert neighbour.calls > 10


def lose_a_manager(after: float) -> None:
    """Kill one that works; what ran has ended within 5 s, and the next one removes the rest."""
    with Owner(program=BUSY, arguments=[]) as owner:
        assert owner.read(60) == "ready"
        time.sleep(after)
        owner.kill()
        pid = owner.process.pid
    until = time.monotonic() + 5
    while (left := running(pid)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []
    with Owner(program=BUSY, arguments=[]) as owner:  # the first thing that it does is to look
        assert owner.read(60) == "ready"
        assert containers(pid) == []
        owner.kill()
        pid = owner.process.pid
    until = time.monotonic() + 5
    while containers(pid) and time.monotonic() < until:
        time.sleep(0.05)
    for row in containers(pid):  # one that never ran, which a later manager would remove
        assert docker("inspect", "-f", "{{.State.Status}}", row) == "created"
        docker("rm", "-f", row)


def running(pid: int) -> list[str]:
    """The containers that a process has made, and that run."""
    alive = set(docker("ps", "-q").split())
    return [row for row in containers(pid) if row in alive]
