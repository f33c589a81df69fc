"""Tenants: who is let in by the keys of a store, and what one has to do with another: nothing."""

from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest
from typer.testing import CliRunner

from ms_enclave import wire
from ms_enclave.cli.main import app
from ms_enclave.errors import (
    AuthenticationError,
    ConfigError,
    NotAllowedError,
    QuotaExceededError,
    SandboxStateError,
    SnapshotNotFoundError,
    StoreUnavailableError,
)
from ms_enclave.loop import on_loop
from ms_enclave.manager import HttpSandboxManager, LocalSandboxManager
from ms_enclave.server import Quotas, _recheck, create_server
from ms_enclave.server.store import NewKey, Store, make_key
from ms_enclave.server.store.people import add_key, revoke_key
from ms_enclave.server.tenants import Tenants
from tests.support.subprocess_box import install
from tests.unit.server.test_gate import KEY, OF_A_SANDBOX, ask, filled

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from ms_enclave.server import SandboxServer

install()

POLICY = {"sandbox_types": ["subprocess"]}


@dataclass
class Served:
    """A server with a store, and what is done with that from outside."""

    server: SandboxServer
    store: Store

    async def key(self, tenant: str, **options: Any) -> NewKey:
        made = make_key()
        now = options.pop("now", time.time())
        await self.store.writing(lambda c: add_key(c, made, tenant, now=now, **options))
        return made

    async def make(self, tenant: str, config: Any = None, name: str | None = None) -> str:
        """A sandbox that outlives whoever asked for it."""
        body = {"sandbox_type": "subprocess", "config": config, "sandbox_id": name}
        key = (await self.key(tenant)).text
        said = await ask(self.server, "POST", "/v1/sandboxes", wire.dump(body), X_API_Key=key)
        assert said.status == 200, said
        return said.data["sandbox_id"]

    @asynccontextmanager
    async def client(self, tenant: str) -> AsyncGenerator[HttpSandboxManager, None]:
        key = (await self.key(tenant)).text
        async with HttpSandboxManager(app=self.server.app, api_key=key) as manager:
            yield manager


@asynccontextmanager
async def served(folder: Path, **options: Any) -> AsyncGenerator[Served, None]:
    file = str(folder / "store.db")
    server = create_server(**{"store": file, "policy": POLICY, **options})
    store = await anyio.to_thread.run_sync(Store, file)
    try:
        await server.start()
        yield Served(server, store)
    finally:
        await server.stop()
        await anyio.to_thread.run_sync(store.close)


async def test_a_key_that_the_store_knows_is_let_in_until_it_is_revoked(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        key = await one.key("mine")
        async with HttpSandboxManager(app=one.server.app, api_key=key.text) as manager:
            assert await manager.list_sandboxes() == []
            await one.store.writing(lambda connection: revoke_key(connection, key.id, time.time()))
            with pytest.raises(AuthenticationError):
                await manager.list_sandboxes()


@pytest.mark.parametrize("change", ["other secret", "other id", "none", "longer", "other form"])
async def test_any_other_key_is_refused_in_the_same_words(tmp_path: Path, change: str) -> None:
    async with served(tmp_path) as one:
        key, other = await one.key("mine"), make_key()
        wrong = {
            "other secret": f"mse_{key.id}_{other.text[-43:]}",
            "other id": f"mse_{other.id}_{key.text[-43:]}",
            "none": "", "longer": key.text + "x", "other form": "k" * 60,
        }[change]  # fmt: skip
        said = await ask(one.server, "GET", "/v1/sandboxes", X_API_Key=wrong)
        none = await ask(one.server, "GET", "/v1/sandboxes")
        assert (said.status, said.body) == (401, none.body)
        right = await ask(one.server, "GET", "/v1/sandboxes", X_API_Key=key.text)
        assert right.status == 200


async def test_a_key_whose_time_is_over_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        over = await one.key("mine", now=time.time() - 100, seconds=99)
        good = await one.key("mine", now=time.time() - 100, seconds=1000)
        assert (await ask(one.server, "GET", "/v1/stats", X_API_Key=over.text)).status == 401
        assert (await ask(one.server, "GET", "/v1/stats", X_API_Key=good.text)).status == 200


async def test_a_clock_that_is_put_back_brings_no_key_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as one:
        over = await one.key("mine", now=time.time() - 100, seconds=99)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 3600)
        assert (await ask(one.server, "GET", "/v1/stats", X_API_Key=over.text)).status == 401


async def test_anothers_sandbox_is_as_one_that_is_not_there(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("theirs") as theirs:
        made = await theirs.create_sandbox("subprocess", sandbox_id="box-of-1")
        key = (await one.key("mine")).text
        for method, path in OF_A_SANDBOX:
            body = None if method == "GET" else b"{}"
            other = await ask(one.server, method, filled(path, made), body, X_API_Key=key)
            none = await ask(one.server, method, filled(path, "box-of-2"), body, X_API_Key=key)
            assert other.status == none.status == 404, path
            assert other.body.replace(b"box-of-1", b"") == none.body.replace(b"box-of-2", b"")
            for said in (other, none):
                assert len(said.headers.pop("x-request-id")) == 16  # of the call, and of it alone
            assert other.headers == none.headers, path
        assert [info.id for info in await theirs.list_sandboxes("running")] == [made]


async def test_two_tenants_have_nothing_in_common(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as mine, one.client("theirs") as theirs:
        for who, manager in (("mine", mine), ("theirs", theirs)):
            name = await manager.create_sandbox("subprocess", sandbox_id="same-name")
            box = await manager.get_sandbox(name)
            assert box is not None
            await box.files.write("note", who)
        box = await mine.get_sandbox("same-name")
        assert box is not None
        assert await box.files.read_text("note") == "mine"
        await mine.initialize_pool(1, "subprocess")
        assert (await mine.get_stats())["total_sandboxes"] == 2
        stats = await theirs.get_stats()
        assert (stats["total_sandboxes"], stats["pool_enabled"]) == (1, False)
        await mine.cleanup_all_sandboxes()
        assert [info.id for info in await theirs.list_sandboxes()] == ["same-name"]


async def test_anothers_snapshot_is_as_one_that_is_not_there(tmp_path: Path) -> None:
    async with (
        served(tmp_path, quotas=Quotas(snapshots=1)) as one,
        one.client("mine") as mine,
        one.client("theirs") as theirs,
    ):
        made = await theirs.import_snapshot("name", bytes(1024))
        assert await theirs.list_snapshots() == [made]
        assert await mine.list_snapshots() == []
        with pytest.raises(SnapshotNotFoundError):
            _ = [piece async for piece in mine.export_snapshot("name")]
        with pytest.raises(SnapshotNotFoundError):
            await mine.delete_snapshot("name")
        await mine.import_snapshot("name", bytes(1024))  # which is another one
        with pytest.raises(QuotaExceededError):
            await mine.import_snapshot("more", bytes(1024))
        await mine.delete_snapshot("name")
        assert await theirs.list_snapshots() == [made]


async def test_what_two_clients_of_one_tenant_make_is_one_tenants(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as first, one.client("mine") as second:
        made = await first.create_sandbox("subprocess")
        assert await second.get_sandbox_info(made) is not None


async def test_the_same_idempotency_key_of_two_tenants_means_two_things(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        body = wire.dump({"sandbox_type": "subprocess"})
        answers = [
            await ask(one.server, "POST", "/v1/sandboxes", body,
                      X_API_Key=(await one.key(tenant)).text, Idempotency_Key="same")
            for tenant in ("mine", "theirs")
        ]  # fmt: skip
        assert answers[0].data != answers[1].data


async def test_a_tenants_own_policy_goes_before_the_servers(tmp_path: Path) -> None:
    from sqlalchemy import update

    from ms_enclave.server.store.schema import tenants

    async with served(tmp_path) as one, one.client("strict") as strict, one.client("mine") as mine:
        row = tenants.c.name == "strict"
        for types in ([], ["subprocess"], ["process"]):
            change = update(tenants).where(row).values(policy={"sandbox_types": types})
            await one.store.writing(lambda c, change=change: c.execute(change))
            with nullcontext() if "subprocess" in types else pytest.raises(NotAllowedError):
                await strict.create_sandbox("subprocess")
        assert await mine.create_sandbox("subprocess")


async def test_while_the_store_does_not_answer_nobody_is_let_in(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    async with served(folder) as one, one.client("mine") as manager:
        made = await manager.create_sandbox("subprocess")
        assert (await ask(one.server, "GET", "/health/ready")).status == 200
        await anyio.to_thread.run_sync(one.store.close)
        assert isinstance(one.server.access, Tenants)
        await anyio.to_thread.run_sync(one.server.access.store.close)  # connections break
        folder.rename(tmp_path / "away")
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            await manager.get_sandbox_info(made)
        assert (await ask(one.server, "GET", "/health/ready")).status == 503
        assert (await ask(one.server, "GET", "/health")).status == 200
        (tmp_path / "away").rename(folder)
        assert await manager.get_sandbox_info(made) is not None


async def test_before_it_has_started_it_says_so(tmp_path: Path) -> None:
    server = create_server(store=str(tmp_path / "store.db"))
    async with HttpSandboxManager(app=server.app, api_key=make_key().text) as manager:
        with pytest.raises(SandboxStateError, match="not running"):
            await manager.list_sandboxes()
    with pytest.raises(ConfigError, match="manager of their own"):
        assert server.manager


@pytest.mark.parametrize("more", [{"api_key": KEY}, {"manager": LocalSandboxManager()}])
def test_a_store_is_the_only_word_on_who_is_let_in(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        create_server(store=str(tmp_path / "store.db"), **more)


# --- the command line ---


def command(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.stderr or str(done.exception or "")


def test_keys_are_made_listed_and_revoked_by_commands(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store.db"))
    status, made, told = command("keys", "make", "mine", "--note", "for\x1b[2J", *store)
    assert status == 0
    key = made.strip()
    assert key.split("_")[1] in told
    assert key.split("_", 2)[2] not in told
    assert command("keys", "make", "theirs", "--days", "1", *store)[0] == 0
    listed = json.loads(command("keys", "list", "--json", *store)[1])
    assert [row["tenant"] for row in listed] == ["mine", "theirs"]
    assert key not in json.dumps(listed)
    table = command("keys", "list", "--tenant", "mine", *store)[1]
    assert "good" in table
    assert "\x1b[2J" not in table
    assert command("keys", "revoke", key.split("_")[1], *store)[0] == 0
    assert "revoked" in command("keys", "list", *store)[1]
    status, _, told = command("keys", "revoke", "nothing", *store)
    assert status != 0
    assert "there is no key nothing" in told


def test_a_tenants_name_that_is_none_is_told(tmp_path: Path) -> None:
    status, _, told = command("keys", "make", "a b", "--store", str(tmp_path / "store.db"))
    assert status != 0
    assert "1 to 64 letters" in told


class Still:
    """Something that a caller has open while its key is revoked."""

    def __init__(self, one: Served, key: NewKey) -> None:
        self._app = one.server.app
        self._key = key
        self.is_open = False

    async def call(self, path: str, body: bytes | None) -> tuple[int | None, bool]:
        """The status of the answer, and whether there was an end to it."""
        sent: list[dict[str, Any]] = []
        given = [{"type": "http.request", "body": body or b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if given:
                self.is_open = body is not None
                return given.pop()
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            self.is_open = True

        with anyio.fail_after(30):
            await self._app(self._scope("http", path, "GET" if body is None else "POST"),
                            receive, send)  # fmt: skip
        status = next((one["status"] for one in sent if "status" in one), None)
        return status, bool(sent) and not sent[-1].get("more_body", False)

    async def connect(self, path: str) -> dict[str, Any]:
        """The last that a WebSocket is told."""
        sent: list[dict[str, Any]] = []
        given = [{"type": "websocket.connect"}]

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await anyio.sleep_forever()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            self.is_open = True

        with anyio.fail_after(30):
            await self._app(self._scope("websocket", path, ""), receive, send)
        return sent[-1]

    def _scope(self, kind: str, path: str, method: str) -> dict[str, Any]:
        return {
            "type": kind, "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
            "method": method, "scheme": "http" if kind == "http" else "ws", "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "subprotocols": [],
            "headers": [(b"host", b"test"), (b"content-type", b"application/json"),
                        (b"x-api-key", self._key.text.encode())],
            "server": ("test", 80), "client": ("127.0.0.1", 1), "state": {},
        }  # fmt: skip


@pytest.mark.parametrize("what", ["call", "stream", "socket"])
async def test_what_goes_on_ends_when_its_key_is_revoked(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_recheck, "RECHECK_SECONDS", 0.05)
    async with served(tmp_path) as one:
        box = await one.make("mine")
        key = await one.key("mine")
        still = Still(one, key)
        got: list[Any] = []

        async def hold() -> None:
            got.append(await go_on())

        @on_loop
        async def go_on() -> Any:
            if what == "call":
                body = wire.dump({"command": "sleep 600", "timeout": 600})
                return await still.call(f"/v1/sandboxes/{box}/commands/run", body)
            if what == "stream":
                return await still.call("/v1/events", None)
            async with one.client("mine") as manager:
                found = await manager.get_sandbox(box)
                assert found is not None
                command = await found.start_command("sleep 600", pty=(24, 80))
                return await still.connect(f"/v1/sandboxes/{box}/commands/{command.id}/socket")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            with anyio.fail_after(30):
                while not still.is_open:
                    await anyio.sleep(0.01)
            await one.store.writing(lambda connection: revoke_key(connection, key.id, time.time()))
        assert got == [
            {
                "call": (401, True),
                "stream": (200, False),
                "socket": {
                    "type": "websocket.close", "code": 4401,
                    "reason": "the API key is not good any more",
                },
            }[what]
        ]  # fmt: skip
