"""The audit log: who did what, when, to what, and no secrets."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import insert

from ms_enclave import wire
from ms_enclave.errors import StoreUnavailableError
from ms_enclave.server import audit as module
from ms_enclave.server.audit import KEPT_DAYS, Audit, Ending, Entry, Refusal, describe_call
from ms_enclave.server.store.entries import list_entries
from ms_enclave.server.store.schema import audit
from ms_enclave.server.tenants import Tenants
from tests.support.subprocess_box import install
from tests.unit.server.test_gate import ask, serving
from tests.unit.server.test_tenants import Served, command, served

if TYPE_CHECKING:
    from pathlib import Path

    from ms_enclave.server.store import Store

install()


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("curl -H 'Authorization: secret' x", "curl"),
        ("TOKEN=secret OTHER=secret /usr/bin/env sh", "env"),
        (["/bin/sh", "-c", "secret"], "sh"),
        ("'secret'", "?"), ("$(secret)", "?"), (["a secret"], "?"), (7, "?"), ("A=secret", "?"),
        (["A=secret", "ls"], "?"), ("/", "?"),
    ],
)  # fmt: skip
def test_of_a_command_there_is_its_program_only(command: Any, program: str) -> None:
    told = describe_call({"command": command, "env": {"A": "secret"}, "stdin": "secret"})
    assert told == {"command": program}


def test_of_a_call_there_is_what_it_names() -> None:
    assert describe_call({}) is None
    assert describe_call({"path": "note", "old": "secret", "new": "secret"}) == {"path": "note"}
    parameters = {
        "operation": "write", "file_path": "note", "content": "secret", "command": "rm secret",
    }  # fmt: skip
    tool = {"tool_name": "file_operation", "parameters": parameters}
    assert describe_call(tool) == {
        "tool_name": "file_operation", "operation": "write", "file_path": "note", "command": "rm",
    }  # fmt: skip
    made = {"sandbox_type": "docker", "config": {"image": "one", "env_vars": {"A": "secret"}}}
    assert describe_call(made) == {"sandbox_type": "docker", "image": "one"}
    assert describe_call({"path": "x" * 500}) == {"path": "x" * 200}


async def entries(store: Store, **options: Any) -> list[dict[str, Any]]:
    return await store.reading(lambda connection: list_entries(connection, **options))


async def flushed(one: Served) -> list[dict[str, Any]]:
    assert isinstance(one.server.access, Tenants)
    await one.server.access.audit.flush()
    return [entry for entry in await entries(one.store) if entry["key"] is not None]


async def test_it_says_who_did_what_to_what_and_what_came_of_it(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        key = await one.key("mine")
        made = await one.make("mine", {"env_vars": {"A": "secret"}})
        box = f"/v1/sandboxes/{made}"
        calls: list[tuple[str, str, Any, str, dict[str, Any] | None, str]] = [
            ("POST", f"{box}/commands/run", {"command": "echo secret", "env": {"A": "secret"}},
             "execute_command", {"command": "echo"}, "ok"),
            ("PUT", f"{box}/files/content?path=note", b"secret", "write", {"path": "note"}, "ok"),
            ("POST", f"{box}/tools/execute",
             {"tool_name": "none", "parameters": {"code": "secret"}}, "execute_tool",
             {"tool_name": "none"}, "tool_not_found"),
            ("POST", "/sandbox/tool/execute",
             {"sandbox_id": made, "tool_name": "shell_executor",
              "parameters": {"command": "cat secret"}},
             "execute_tool", {"tool_name": "shell_executor", "command": "cat"}, "tool_not_found"),
            ("POST", f"{box}/renew", {"ttl": "soon"}, "renew", {"ttl": "soon"}, "config"),
            ("DELETE", f"/sandbox/{made}", None, "delete_sandbox", None, "ok"),
        ]  # fmt: skip
        for method, path, body, *_ in calls:
            content = body if body is None or isinstance(body, bytes) else wire.dump(body)
            kind = {"Content_Type": wire.STREAM} if isinstance(body, bytes) else {}
            named = {"X_API_Key": key.text, "X_Request_Id": "call-1", **kind}
            await ask(one.server, method, path, content, **named)
        for path in (box, "/v1/stats", f"{box}/files/list"):  # looking is nothing
            await ask(one.server, "GET", path, X_API_Key=key.text)
        found = await flushed(one)
        assert [entry["action"] for entry in found] == ["create_sandbox", *(c[3] for c in calls)]
        assert {entry["sandbox"] for entry in found} == {made}
        for entry, call in zip(found[1:], calls, strict=True):
            assert (entry["tenant"], entry["key"]) == ("mine", key.id)
            assert (entry["detail"], entry["outcome"]) == (call[4], call[5]), entry
            assert entry["request"] == "call-1"
            assert 0 <= entry["seconds"] < 600
            assert abs(entry["at"] - time.time()) < 600
        assert "secret" not in json.dumps(found)


async def test_what_cannot_be_written_down_is_not_done(tmp_path: Path) -> None:
    async with served(tmp_path) as one, one.client("mine") as manager:
        made = await manager.create_sandbox("subprocess")
        box = await manager.get_sandbox(made)
        assert box is not None
        await flushed(one)
        away = "ALTER TABLE audit RENAME TO elsewhere"
        back = "ALTER TABLE elsewhere RENAME TO audit"
        await one.store.writing(lambda c: c.exec_driver_sql(away))
        with pytest.raises(StoreUnavailableError):
            await box.execute_command("touch done")
        await one.store.writing(lambda c: c.exec_driver_sql(back))
        assert not await box.files.exists("done")
        await box.execute_command("touch done")
        assert await box.files.exists("done")


async def test_what_came_of_a_call_is_written_when_the_store_is_back(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        log = Audit(lambda: one.store, time.time)
        number = await log.begin(Entry(1.0, "mine", "k", "some"))
        await one.store.writing(lambda c: c.exec_driver_sql("ALTER TABLE audit RENAME TO other"))
        await log.end(Ending(number, "ok", 0.5))
        await log.flush()
        await one.store.writing(lambda c: c.exec_driver_sql("ALTER TABLE other RENAME TO audit"))
        await log.begin(Entry(2.0, "mine", "k", "other"))
        await log.flush()
        assert [(e["action"], e["outcome"]) for e in await entries(one.store)] == [
            ("some", "ok"), ("other", None),
        ]  # fmt: skip


async def test_many_calls_are_written_together_and_each_once(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        log, numbers = Audit(lambda: one.store, time.time), list[int]()

        async def call(number: int) -> None:
            with anyio.move_on_after(0.0 if number % 7 == 0 else None):
                numbers.append(await log.begin(Entry(1.0, "mine", "k", str(number))))

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(call, number)
        await log.flush()
        assert len(set(numbers)) == len(numbers) >= 171
        actions = [entry["action"] for entry in await entries(one.store)]
        assert len(set(actions)) == len(actions)


async def test_what_cannot_be_written_down_is_nothing_to_the_others(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        log, done = Audit(lambda: one.store, time.time), list[str]()

        async def call(sandbox: str) -> None:
            try:
                await log.begin(Entry(1.0, "mine", "k", "some", sandbox))
            except UnicodeError:
                sandbox = "refused"
            done.append(sandbox)

        async with anyio.create_task_group() as tasks:
            for sandbox in ("before", "\ud800", "after"):
                tasks.start_soon(call, sandbox)
        await log.flush()
        assert sorted(done) == ["after", "before", "refused"]
        assert [entry["sandbox"] for entry in await entries(one.store)] == ["before", "after"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/run", rb'{"code": "1", "sandbox_id": "\ud800"}'),
        ("/v1/run?sandbox_id=victim&path=forged", b'{"code": "1", "sandbox_id": "victim"}'),
        ("/v1/sandboxes", rb'{"sandbox_type": "\ud800\u0000", "sandbox_id": "\ud800"}'),
        ("/v1/pool", b'{"pool_size": NaN}'),
        ("/v1/pool", b'{"pool_size": ' + b"9" * 4000 + b"}"),
        ("/v1/pool", b"[" * 100_000),
        ("/sandbox/create?sandbox_type=none&path=forged", b'{"sandbox_id": "victim"}'),
    ],
)  # fmt: skip
async def test_whatever_stands_in_a_call_its_entry_is_one(
    tmp_path: Path, path: str, body: bytes
) -> None:
    async with served(tmp_path) as one:
        key = await one.key("mine")
        said = await ask(one.server, "POST", path, body, X_API_Key=key.text)
        assert 400 <= said.status < 500, said
        (entry,) = await flushed(one)
        assert entry["sandbox"] is None
        assert "forged" not in json.dumps(entry)
        json.dumps(entry, allow_nan=False, ensure_ascii=False).encode()
        assert "\\u0000" not in json.dumps(entry)


@pytest.mark.parametrize("kind", ["Application/JSON", "application/x+json; charset=utf-8"])
async def test_what_a_route_reads_is_read_for_the_log_too(tmp_path: Path, kind: str) -> None:
    async with served(tmp_path) as one:
        key, made = await one.key("mine"), await one.make("mine")
        body = wire.dump({"sandbox_id": made, "tool_name": "none", "parameters": {}})
        named = {"X_API_Key": key.text, "Content_Type": kind}
        await ask(one.server, "POST", "/sandbox/tool/execute", body, **named)
        entry = (await flushed(one))[-1]
        assert (entry["sandbox"], entry["detail"]) == (made, {"tool_name": "none"})


async def test_a_stream_is_not_read_for_the_log(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        key, made = await one.key("mine"), await one.make("mine")
        path = f"/v1/sandboxes/{made}/files/content?path=note&sandbox_id=victim"
        body = b'{"language": "read"}'
        said = await ask(one.server, "PUT", path, body, X_API_Key=key.text)
        assert said.status == 200, said
        entry = (await flushed(one))[-1]
        assert (entry["sandbox"], entry["detail"]) == (made, {"path": "note"})


async def test_what_is_old_is_forgotten(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        now = time.time()
        for age in (KEPT_DAYS + 1, KEPT_DAYS - 1):
            row = insert(audit).values(at=now - age * 86400, tenant="mine", action=str(age))
            await one.store.writing(lambda c, row=row: c.execute(row))
        await one.make("mine")
        left = [entry["action"] for entry in await entries(one.store)]
        assert left == [str(KEPT_DAYS - 1), "create_sandbox"]


async def test_commands_print_it_and_are_in_it_themselves(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        store = ("--store", str(one.store.path))

        def play() -> list[dict[str, Any]]:
            key = command("keys", "make", "mine", *store)[1].strip()
            assert command("keys", "revoke", key.split("_")[1], *store)[0] == 0
            assert command("keys", "tenant", "mine", *store)[0] == 0
            told = command("keys", "audit", "--tenant", "mine", *store)[1]
            return [json.loads(line) for line in told.splitlines()]

        found = await anyio.to_thread.run_sync(play)
        assert [(entry["action"], entry["key"]) for entry in found] == [
            ("make_key", None), ("revoke_key", None), ("set_tenant", None),
        ]  # fmt: skip


async def read(one: Served, key: str, **which: Any) -> Any:
    query = "&".join(f"{name}={value}" for name, value in which.items())
    return await ask(one.server, "GET", f"/v1/audit?{query}", X_API_Key=key)


async def test_a_tenant_reads_its_own_entries_and_an_admin_all(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        mine, theirs = (await one.key("mine")).text, (await one.key("theirs")).text
        admin = (await one.key("ours", is_admin=True)).text
        made = [await one.make(tenant) for tenant in ("mine", "theirs", "mine")]
        await flushed(one)
        for key, tenants in ((mine, ["mine", "mine"]), (theirs, ["theirs"])):
            assert [entry["tenant"] for entry in (await read(one, key)).data] == tenants
        said = (await read(one, admin)).data
        assert [entry["sandbox"] for entry in said] == made
        assert [entry["action"] for entry in said] == ["create_sandbox"] * 3
        about = await read(one, admin, sandbox=made[1], tenant="theirs")
        assert [entry["sandbox"] for entry in about.data] == [made[1]]
        assert (await read(one, mine, sandbox=made[1])).data == []
        last = await read(one, mine, limit=1)
        assert [entry["sandbox"] for entry in last.data] == made[2:]
        first = await read(one, mine, limit=5, before=last.data[0]["number"])
        assert [entry["sandbox"] for entry in first.data] == made[:1]
        assert (await read(one, mine, tenant="theirs")).status == 403
        assert (await read(one, mine, tenant="mine")).status == 200


async def test_without_a_store_there_is_none() -> None:
    async with serving() as server:
        said = await ask(server, "GET", "/v1/audit")
    assert (said.status, said.data["error"]["code"]) == (403, "not_allowed")


async def test_who_is_refused_stands_in_it_and_fills_no_store(tmp_path: Path) -> None:
    quotas = {"calls_per_second": 0.001}
    async with served(tmp_path, quotas=quotas) as one:
        key = await one.key("mine")
        for _ in range(5):
            assert (await ask(one.server, "GET", "/v1/stats", X_API_Key="secret")).status == 401
        assert (await ask(one.server, "GET", "/v1/stats?api_key=secret")).status == 401
        statuses = [
            (await ask(one.server, "GET", "/v1/stats", X_API_Key=key.text)).status for _ in range(4)
        ]
        assert statuses == [200, 429, 429, 429]
        assert isinstance(one.server.access, Tenants)
        await one.server.access.audit.flush()
        found = await entries(one.store)
    told = [(e["tenant"], e["key"], e["outcome"], e["detail"].get("more")) for e in found]
    nobody, limited = ("", None, "authentication"), ("mine", key.id, "quota_exceeded")
    assert told == [(*nobody, None), (*limited, None), (*nobody, 5), (*limited, 2)]
    assert {(entry["action"], entry["detail"]["method"]) for entry in found} == {("refused", "GET")}
    assert "secret" not in json.dumps(found)


async def test_what_is_counted_of_refusals_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_REFUSED", 2)
    async with served(tmp_path) as one:
        log = Audit(lambda: one.store, time.time)
        for number in range(9):
            detail = {"from": f"10.0.0.{number}"}
            await log.refuse(Refusal(Entry(1.0, "", None, "refused", detail=detail), "some"))
        await log.flush()
        found = await entries(one.store)
    assert [entry["detail"].get("more") for entry in found] == [None, None, None, 6]
