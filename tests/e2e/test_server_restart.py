"""A server that ends, in order or by `kill -9`, and the next one that has all its sandboxes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import select, update

from ms_enclave.manager import HttpSandboxManager, LocalSandboxManager
from ms_enclave.server.store import Store, make_key
from ms_enclave.server.store.people import add_key
from ms_enclave.server.store.schema import sandboxes
from tests import leaks

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from typing_extensions import Self

    from ms_enclave.boxes.base import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

NAME = "box"
PROGRAM = "import sys; from ms_enclave.cli.cli import run_cmd; sys.exit(run_cmd())"
COUNTER = """
import os, socket
held = {"of": os.environ["WHO"], "asked": 0}
door = socket.socket(socket.AF_UNIX)
door.bind("door")
door.listen()
while True:
    guest, _ = door.accept()
    held["asked"] += 1
    guest.sendall(repr(held).encode())
    guest.close()
"""
"""A program with a variable that lives in its memory only."""
ASK = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('door'); print(s.recv(100))"


class Server:
    """`ms-enclave server` with a store, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        policy = folder / "policy.json"
        policy.write_text(json.dumps({"sandbox_types": None, "isolation": None}))
        words = ["server", "--port", "0", "--store", str(folder / "store.db")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *words, "--policy", str(policy)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if "serves at" in line:
                self.address = line.split()[-1]
                return
        raise AssertionError(f"it does not serve: {self.said}")

    def end(self, number: int) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        self.process.wait(30)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncGenerator[Path]:
    """Where the store is; what a failed test has left of its tenants is ended.

    What outlives a server becomes a child of the tests, which in the place of a machine's first
    process see to it that its end is seen.
    """
    before = leaks.Snapshot.take(containers=False)

    async def reap() -> None:
        while True:
            leaks.reap_zombies(before)
            await anyio.sleep(0.05)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reap)
        yield tmp_path
        tasks.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        for place in (tmp_path / "store.db.sandboxes" / "tenants").glob("*"):
            async with LocalSandboxManager(state_dir=str(place)):
                pass


async def key_of(folder: Path, tenant: str) -> str:
    key = make_key()

    def make() -> None:
        store = Store(str(folder / "store.db"))
        store.write(lambda connection: add_key(connection, key, tenant, now=time.time()))
        store.close()

    await anyio.to_thread.run_sync(make)
    return key.text


async def fill(manager: HttpSandboxManager, kind: str, who: str, name: str = NAME) -> str:
    """A sandbox, of an id that others choose, too, with a file and with a variable in a program's
    memory; when it was made. Who asked for it is gone at once, and so does not delete it."""
    config = {"env_vars": {"WHO": who}}
    body = {"sandbox_type": kind, "config": config, "sandbox_id": name}
    asked = urllib.request.Request(
        f"{manager.config.base_url}/v1/sandboxes", json.dumps(body).encode(),
        {"X-API-Key": str(manager.config.api_key), "Content-Type": "application/json"},
    )  # fmt: skip
    await anyio.to_thread.run_sync(lambda: urllib.request.urlopen(asked, timeout=60).close())
    box = await taken(manager, name)
    await box.files.write("mine", who)
    await box.files.write("counter.py", COUNTER)
    await box.execute_command("setsid python3 counter.py > /dev/null 2>&1 &")
    with anyio.fail_after(30):
        while (await box.execute_command("test -S door")).exit_code:
            await anyio.sleep(0.02)
    return box.created_at.isoformat()


async def taken(manager: HttpSandboxManager, name: str = NAME) -> Sandbox:
    box = await manager.get_sandbox(name)
    assert box is not None
    return box


async def has_all(
    manager: HttpSandboxManager, who: str, asked: int, made: str, name: str = NAME
) -> None:
    box = await taken(manager, name)
    assert box.status == "running"
    assert box.created_at.isoformat() == made
    assert await box.files.read_text("mine") == who
    seen = await box.run_code(ASK)
    held = repr({"of": who, "asked": asked})
    assert seen.stdout == f"{held.encode()}\n"


async def see_it_through(folder: Path, kind: str) -> None:
    keys = {tenant: await key_of(folder, tenant) for tenant in ("mine", "theirs")}
    made = {}
    with Server(folder) as server:
        for tenant, key in keys.items():
            async with HttpSandboxManager(base_url=server.address, api_key=key) as manager:
                made[tenant] = await fill(manager, kind, tenant)
        server.end(signal.SIGTERM)
    for asked, end in ((1, signal.SIGKILL), (2, signal.SIGTERM)):
        with Server(folder) as server:
            for tenant, key in keys.items():
                async with HttpSandboxManager(base_url=server.address, api_key=key) as manager:
                    assert [info.id for info in await manager.list_sandboxes()] == [NAME]
                    await has_all(manager, tenant, asked, made[tenant])
                    if end is signal.SIGTERM:
                        assert await manager.delete_sandbox(NAME)
            server.end(end)


async def test_process_sandboxes_are_there_again_with_all_that_they_had(folder: Path) -> None:
    await see_it_through(folder, "process")


async def test_what_was_told_as_lost_and_is_found_again_is_remembered_again(folder: Path) -> None:
    key = await key_of(folder, "mine")
    with Server(folder) as server:
        async with HttpSandboxManager(base_url=server.address, api_key=key) as manager:
            await fill(manager, "process", "mine")
        server.end(signal.SIGTERM)

    def told_as_lost() -> None:  # as when a container's engine was away
        store = Store(str(folder / "store.db"))
        row = update(sandboxes).values(lost="away", ended_at=time.time())
        store.write(lambda connection: connection.execute(row))
        store.close()

    def remembered() -> list[tuple[str | None, bool]]:
        store = Store(str(folder / "store.db"))
        query = select(sandboxes.c.lost, sandboxes.c.ended_at).order_by(sandboxes.c.number)
        rows = store.read(lambda connection: list(connection.execute(query)))
        store.close()
        return [(lost, ended is not None) for lost, ended in rows]

    await anyio.to_thread.run_sync(told_as_lost)
    for again in (True, False):  # the second time it is one of those that there should be
        with Server(folder) as server:
            async with HttpSandboxManager(base_url=server.address, api_key=key) as manager:
                assert (await taken(manager)).status == "running"
                found = await anyio.to_thread.run_sync(remembered)
                assert found == [("away", True), (None, False)]
                if not again:
                    assert await manager.delete_sandbox(NAME)
            server.end(signal.SIGTERM)
    assert await anyio.to_thread.run_sync(remembered) == [("away", True), (None, True)]


@pytest.mark.docker
async def test_containers_are_there_again_with_all_that_they_had(folder: Path) -> None:
    await see_it_through(folder, "docker")
