"""The server's store in PostgreSQL: a real one, which goes away and comes back."""

from __future__ import annotations

import gc
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from ms_enclave.errors import ConfigError, StoreUnavailableError
from ms_enclave.server import create_server
from ms_enclave.server.store import Store, make_key
from ms_enclave.server.store import store as module
from ms_enclave.server.store._postgres import Impatient
from ms_enclave.server.store.migrations import upgrade
from ms_enclave.server.store.people import add_key, find_key, list_keys, revoke_key
from ms_enclave.server.store.schema import metadata
from tests.support.postgres import Cluster, why_no_postgres
from tests.support.subprocess_box import install
from tests.unit.server.test_gate import ask
from tests.unit.server.test_tenants import POLICY, Served, command

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

install()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if (why_not := why_no_postgres()) is not None:
        pytest.skip(why_not)
    with Cluster() as started:
        yield started


@pytest.fixture
def url(cluster: Cluster) -> str:
    return cluster.new_database()


@asynccontextmanager
async def served(url: str, folder: Path, **options: Any) -> AsyncGenerator[Served, None]:
    server = create_server(store=url, state_dir=str(folder), policy=POLICY, **options)
    store = await anyio.to_thread.run_sync(Store, url)
    try:
        await server.start()
        yield Served(server, store)
    finally:
        await server.stop()
        await anyio.to_thread.run_sync(store.close)


def test_the_tables_are_those_that_the_code_knows_whoever_comes_first(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:  # all of them bring it up to date
        stores = list(pool.map(Store, [url] * 4))
    try:
        differences = stores[0].read(
            lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
        )
        assert differences == []
    finally:
        for store in stores:
            store.close()


def test_keys_are_as_they_are_in_a_file(url: str) -> None:
    store, key = Store(url), make_key()
    try:
        store.write(lambda c: add_key(c, key, "mine", now=5.0, note="for tests", seconds=2.5))
        (row,) = store.read(list_keys)
        assert (row.id, row.tenant, row.made_at, row.expires_at) == (key.id, "mine", 5.0, 7.5)
        assert store.write(lambda c: revoke_key(c, key.id, 6.0))
        found = store.read(lambda c: find_key(c, key.id))
        assert found is not None
        assert (found.digest, found.revoked_at, found.policy) == (key.digest, 6.0, None)
    finally:
        store.close()


async def test_a_server_remembers_its_tenants_there(url: str, tmp_path: Path) -> None:
    async with served(url, tmp_path) as one, one.client("mine") as manager:
        made = await one.make("mine", name="box")
        async with one.client("theirs") as other:
            assert await other.get_sandbox(made) is None
        assert await manager.get_sandbox(made) is not None
    async with served(url, tmp_path) as one, one.client("mine") as manager:
        (info,) = await manager.list_sandboxes()
        assert (info.id, info.status) == (made, "error")
        assert "is lost" in info.metadata["error"]
        assert await manager.delete_sandbox(made)


async def test_two_servers_of_one_database_know_their_own(url: str, tmp_path: Path) -> None:
    async with served(url, tmp_path / "1") as one, served(url, tmp_path / "2") as two:
        made, key = await one.make("mine"), await one.key("mine")
        path = f"/v1/sandboxes/{made}"
        for server, status in ((one.server, 200), (two.server, 404)):
            assert (await ask(server, "GET", path, X_API_Key=key.text)).status == status
        await two.store.writing(lambda c: revoke_key(c, key.id, time.time()))
        for server in (one.server, two.server):
            assert (await ask(server, "GET", path, X_API_Key=key.text)).status == 401


async def test_a_database_that_was_away_serves_again(
    cluster: Cluster, url: str, tmp_path: Path
) -> None:
    async with served(url, tmp_path) as one, one.client("mine") as manager:
        made = await manager.create_sandbox("subprocess")
        await anyio.to_thread.run_sync(lambda: cluster.take_away(url))
        with anyio.fail_after(30), pytest.raises(StoreUnavailableError):
            await manager.get_sandbox_info(made)
        assert (await ask(one.server, "GET", "/health/ready")).status == 503
        await anyio.to_thread.run_sync(lambda: cluster.bring_back(url))
        assert (await ask(one.server, "GET", "/health/ready")).status == 200
        assert await manager.get_sandbox_info(made) is not None
        box = await manager.get_sandbox(made)
        assert box is not None
        assert (await box.execute_command("echo there")).stdout == "there\n"
        async with one.client("new") as other:
            assert await other.create_sandbox("subprocess")


def test_a_connection_on_which_nothing_comes_is_given_up(
    cluster: Cluster, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Impatient, "hang_seconds", 1.0)
    store = Store(url)
    saved = threading.Timer(60, cluster.go_on)
    try:
        assert store.read(lambda c: find_key(c, "none")) is None
        cluster.hang()
        saved.start()
        with pytest.raises(StoreUnavailableError):
            store.read(lambda c: find_key(c, "none"))
    finally:
        saved.cancel()
        cluster.go_on()
        store.close()
    gc.collect()  # psycopg leaves sockets of attempts that took too long in cycles


async def test_a_database_that_hangs_holds_no_call(
    cluster: Cluster, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Impatient, "hang_seconds", 1.0)
    monkeypatch.setattr(module, "_QUEUE_SECONDS", 3)
    async with served(url, tmp_path) as one, one.client("mine") as manager:
        made = await manager.create_sandbox("subprocess")
        refused: list[str] = []

        async def call() -> None:
            with pytest.raises(StoreUnavailableError) as error:
                await manager.get_sandbox_info(made)
            refused.append(error.value.code)

        cluster.hang()
        try:
            # More than there are threads, each of which waits for as long as it takes to connect.
            with anyio.fail_after(40):
                async with anyio.create_task_group() as tasks:
                    for _ in range(100):
                        tasks.start_soon(call)
                assert (await ask(one.server, "GET", "/health/ready")).status == 503
        finally:
            cluster.go_on()
        assert len(refused) == 100
        with anyio.fail_after(40):
            assert await manager.get_sandbox_info(made) is not None
        assert (await ask(one.server, "GET", "/health/ready")).status == 200
    gc.collect()  # psycopg leaves sockets of attempts that took too long in cycles


def test_no_question_waits_for_ever(url: str) -> None:
    store = Store(url)
    try:
        for name in ("statement_timeout", "lock_timeout"):
            assert store.read(lambda c, name=name: c.scalar(text(f"SHOW {name}"))) == "5s"
        with store._writes.begin() as connection:
            upgrade(connection)
            assert connection.scalar(text("SHOW lock_timeout")) == "0"
        assert store.read(lambda c: c.scalar(text("SHOW lock_timeout"))) == "5s"
    finally:
        store.close()


def test_keys_are_made_there_by_commands(url: str) -> None:
    assert command("keys", "make", "mine", "--store", url)[0] == 0
    (row,) = json.loads(command("keys", "list", "--json", "--store", url)[1])
    assert row["tenant"] == "mine"


def test_it_has_to_be_said_where_sandboxes_are_kept(url: str) -> None:
    with pytest.raises(ConfigError, match="--state-dir"):
        create_server(store=url)
