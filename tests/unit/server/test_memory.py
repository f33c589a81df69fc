"""What a server with a store says of its sandboxes after a restart: no one is lost in silence."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio
import pytest
from sqlalchemy import select, update

from ms_enclave.errors import (
    SandboxLostError,
    SandboxNotFoundError,
    SandboxStateError,
    StoreUnavailableError,
)
from ms_enclave.server import create_server
from ms_enclave.server.store.schema import sandboxes
from ms_enclave.server.tenants import Tenants
from tests.support.subprocess_box import install
from tests.unit.server.test_gate import ask
from tests.unit.server.test_tenants import POLICY, served

if TYPE_CHECKING:
    from pathlib import Path

    from ms_enclave.server.store import Store

install()

AWAY = "ALTER TABLE sandboxes RENAME TO elsewhere"
BACK = "ALTER TABLE elsewhere RENAME TO sandboxes"


async def rows(store: Store) -> list[tuple[str, bool, str | None]]:
    """Of each sandbox its id, whether it has ended, and why where it was lost."""
    query = select(sandboxes.c.id, sandboxes.c.ended_at, sandboxes.c.lost)
    query = query.order_by(sandboxes.c.number)
    found = await store.reading(lambda c: list(c.execute(query)))
    return [(name, ended is not None, lost) for name, ended, lost in found]


async def test_what_cannot_be_kept_is_told_as_lost_by_its_id(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as manager:
        made = await one.make("mine", name="box")
        before = await manager.get_sandbox_info(made)
    assert before is not None
    for _ in range(2):  # and not only once
        async with served(tmp_path) as one, one.client("mine") as manager:
            (info,) = await manager.list_sandboxes()
            assert (info.id, info.status, info.type) == (made, "error", "subprocess")
            assert info.created_at == before.created_at
            assert "is lost" in info.metadata["error"]
            box = await manager.get_sandbox(made)
            assert box is not None
            with pytest.raises(SandboxLostError, match="when the server had started again"):
                await box.execute_command("true")
    async with served(tmp_path) as one, one.client("mine") as manager:
        assert await manager.delete_sandbox(made)
        assert await manager.get_sandbox(made) is None
        assert await one.make("mine", name=made) == made
        assert await manager.delete_sandbox(made)
    async with served(tmp_path) as one, one.client("mine") as manager:
        assert await manager.list_sandboxes() == []
        assert await rows(one.store) == [("box", True, None)] * 2


@pytest.mark.parametrize("end", ["delete", "stop", "all", "expire"])
async def test_what_ended_by_a_wish_is_not_lost(tmp_path: Path, end: str) -> None:
    async with served(tmp_path) as one, one.client("mine") as manager:
        made = await one.make("mine", {"ttl": 3600.0})
        if end == "delete":
            await manager.delete_sandbox(made)
        elif end == "stop":
            await manager.stop_sandbox(made)
        elif end == "all":
            await manager.cleanup_all_sandboxes()
        else:
            row = update(sandboxes).values(expires_at=time.time() - 1)
            await one.store.writing(lambda c: c.execute(row))
    async with served(tmp_path) as one, one.client("mine") as manager:
        assert await manager.list_sandboxes() == []
        assert await rows(one.store) == [(made, True, None)]


async def test_what_a_call_would_put_off_is_not_remembered_as_an_end(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.make("mine", {"ttl": 10_000.0, "idle_timeout": 5.0})
        (until,) = await one.store.reading(lambda c: c.scalars(select(sandboxes.c.expires_at)))
        assert until > time.time() + 5_000


async def test_what_cannot_be_had_of_one_tenant_keeps_no_other_out(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("bad") as manager:
        assert await manager.list_sandboxes() == []
    folder = tmp_path / "store.db.sandboxes" / "tenants" / "bad"
    await anyio.Path(folder / "no-type-of-ours").mkdir()
    async with served(tmp_path) as one:
        async with one.client("mine") as manager:
            assert await manager.list_sandboxes() == []
        key = (await one.key("bad")).text
        said = await ask(one.server, "GET", "/v1/sandboxes", X_API_Key=key)
        assert said.status >= 400
        assert "no-type-of-ours" in said.body.decode()


async def test_neither_the_pool_nor_a_program_is_promised_to_anybody(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as manager:
        await manager.initialize_pool(1, "subprocess")
        await one.make("mine", {"on_owner_death": "kill"})
        assert await rows(one.store) == []
    async with served(tmp_path) as one, one.client("mine") as manager:
        assert await manager.list_sandboxes() == []


async def test_a_sandbox_that_cannot_be_remembered_is_not_made(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as manager:
        assert await manager.list_sandboxes() == []
        await one.store.writing(lambda c: c.exec_driver_sql(AWAY))
        with pytest.raises(StoreUnavailableError):
            await manager.create_sandbox("subprocess")
        assert await manager.list_sandboxes() == []
        await one.store.writing(lambda c: c.exec_driver_sql(BACK))
        assert await manager.create_sandbox("subprocess")


async def test_what_ends_while_the_store_is_away_is_told_later(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as manager:
        made = await manager.create_sandbox("subprocess")
        assert isinstance(one.server.access, Tenants)
        (own,) = one.server.access.managers
        await one.store.writing(lambda c: c.exec_driver_sql(AWAY))
        assert await manager.delete_sandbox(made)
        await one.store.writing(lambda c: c.exec_driver_sql(BACK))
        await own.cleanup_expired()
        assert await rows(one.store) == [(made, True, None)]


async def test_one_server_at_a_time_has_what_is_kept(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as manager:
        assert await manager.list_sandboxes() == []
        other = create_server(store=str(one.store.path), policy=POLICY)
        with pytest.raises(SandboxStateError, match="in use"):
            await other.start()
        assert await manager.list_sandboxes() == []


async def test_two_servers_of_one_store_know_their_own(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as manager:
        made = await manager.create_sandbox("subprocess")
        folder = str(tmp_path / "other")
        async with served(tmp_path, state_dir=folder) as two, two.client("mine") as second:
            with pytest.raises(SandboxNotFoundError):
                await second.renew(made, 5.0)
            assert await second.list_sandboxes() == []
        assert await manager.get_sandbox_info(made) is not None
