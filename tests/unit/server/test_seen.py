"""What is seen of a server: figures, lines in the log, and what happens to sandboxes."""

from __future__ import annotations

import logging
from contextlib import aclosing
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import anyio
from prometheus_client.parser import text_string_to_metric_families

from ms_enclave import wire
from ms_enclave.http_client import HttpClient, Place
from ms_enclave.loop import on_loop
from ms_enclave.manager import LocalSandboxManager
from ms_enclave.model.events import SandboxEvent
from ms_enclave.server import create_server
from ms_enclave.server.events import EventLog
from ms_enclave.server.observer import REQUEST_ID
from tests.unit.server.test_gate import KEY, TwoTenants, ask, serving

if TYPE_CHECKING:
    import pytest

POLICY = {"sandbox_types": ["subprocess"]}


def figures(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def figure(text: bytes, name: str, **labels: str) -> float:
    """The sum over what has these labels."""
    wanted = set(labels.items())
    return sum(
        value for (named, of), value in figures(text).items() if named == name and wanted <= of
    )


async def made(server: Any, **headers: str) -> str:
    body = b'{"sandbox_type": "subprocess", "config": {"memory_limit": "64m"}}'
    said = await ask(server, "POST", "/v1/sandboxes", body, **headers)
    return said.data["sandbox_id"]


async def test_calls_and_failures_and_sandboxes_are_counted() -> None:
    async with serving(policy=POLICY) as server:
        await made(server)
        await ask(server, "GET", "/v1/sandboxes/unknown1")
        await ask(server, "GET", "/nowhere")
        text = (await ask(server, "GET", "/metrics")).body
    calls = "ms_enclave_calls_total"
    assert figure(text, calls, route="/v1/sandboxes", status="200", tenant="default") == 1
    assert figure(text, calls, route="/v1/sandboxes/{sandbox_id}", status="404") == 1
    assert figure(text, calls, route="none", status="404") == 1
    assert figure(text, "ms_enclave_failures_total", code="sandbox_not_found") == 1
    assert figure(text, "ms_enclave_call_seconds_count", route="/v1/sandboxes") == 1
    assert figure(text, "ms_enclave_sandboxes", type="subprocess", state="running") == 1
    assert figure(text, "ms_enclave_sandbox_memory_limit_bytes") == 64 << 20
    assert figure(text, "ms_enclave_sandbox_events_total", event="started") == 1


async def test_figures_of_others_are_nobodys_business() -> None:
    async with LocalSandboxManager() as mine, LocalSandboxManager() as yours:
        tenants = TwoTenants(mine=mine, yours=yours)
        server = create_server(mine, access=tenants, policy=POLICY)
        await made(server, X_API_Key="mine")
        text = (await ask(server, "GET", "/metrics", X_API_Key="yours")).body
        assert b"mine" not in text
        own = (await ask(server, "GET", "/metrics", X_API_Key="mine")).body
        assert figure(own, "ms_enclave_sandboxes", tenant="mine") == 1
    assert figure(server.app.state.metrics.text(), "ms_enclave_calls_total") == 3


async def test_who_was_not_let_in_is_counted_as_nobody() -> None:
    server = create_server(LocalSandboxManager(), api_key=KEY)
    assert (await ask(server, "GET", "/metrics")).status == 401
    text = server.app.state.metrics.text()
    assert figure(text, "ms_enclave_failures_total", tenant="", code="authentication") == 1


async def test_a_call_has_an_id_in_its_answer_and_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = create_server(LocalSandboxManager())
    with caplog.at_level(logging.INFO, "ms_enclave.server.calls"):
        own = await ask(server, "GET", "/v1/stats", X_Request_Id="of-the-caller.1")
        other = await ask(server, "GET", "/v1/sandboxes/unknown1", X_Request_Id="no id")
        await ask(server, "GET", "/health")
    assert own.headers["x-request-id"] == "of-the-caller.1"
    assert len(other.headers["x-request-id"]) == 16
    first, second = caplog.records
    assert first.__dict__["request_id"] == "of-the-caller.1"
    assert (first.__dict__["tenant"], first.__dict__["status"]) == ("default", 200)
    assert second.__dict__["request_id"] == other.headers["x-request-id"]
    assert second.__dict__["code"] == "sandbox_not_found"
    assert second.__dict__["sandbox_id"] == "unknown1"


async def test_a_fault_is_seen_as_one(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(LocalSandboxManager):
        async def get_stats(self) -> dict[str, Any]:
            raise KeyError("odd")

    server = create_server(Broken())
    with caplog.at_level(logging.INFO, "ms_enclave.server.calls"):
        said = await ask(server, "GET", "/v1/stats", X_Request_Id="one")
    assert (said.status, said.data["error"]["code"]) == (500, "internal")
    assert said.headers["x-request-id"] == "one"
    assert [one.__dict__["status"] for one in caplog.records if "status" in one.__dict__] == [500]
    assert figure(server.app.state.metrics.text(), "ms_enclave_calls_total", status="500") == 1


async def test_what_is_logged_during_a_call_can_have_its_id() -> None:
    seen: list[str | None] = []

    class Noting(LocalSandboxManager):
        async def get_stats(self) -> dict[str, Any]:
            seen.append(REQUEST_ID.get())
            return await super().get_stats()

    await ask(create_server(Noting()), "GET", "/v1/stats", X_Request_Id="one")
    assert seen == ["one"]
    assert REQUEST_ID.get() is None


@on_loop
async def listened(server: Any, count: int, act: Any, **query: Any) -> list[dict[str, Any]]:
    """The next events, of which the first come while something is done."""
    client = await HttpClient.open(Place("http://test", app=server.app))
    reader, found = wire.EventReader(), list[dict[str, Any]]()
    path = "/v1/events" + "".join(f"?{name}={value}" for name, value in query.items())
    try:
        with anyio.fail_after(20):
            async with client.stream("GET", path) as answering, anyio.create_task_group() as group:
                group.start_soon(act)
                async for piece in answering.pieces():
                    found += [wire.load(data) for _, data in reader.feed(piece)]
                    if len(found) >= count:
                        break
        return found
    finally:
        await client.aclose()


async def test_what_happens_to_a_sandbox_is_told_and_can_be_heard_again() -> None:
    async with serving(policy=POLICY) as server:

        async def act() -> None:
            sandbox_id = await made(server)
            await ask(server, "DELETE", f"/v1/sandboxes/{sandbox_id}")

        async def nothing() -> None:
            return

        heard = await listened(server, 3, act)
        assert [event["event"] for event in heard] == ["started", "stopped", "deleted"]
        assert {event["sandbox_type"] for event in heard} == {"subprocess"}
        assert len({event["sandbox_id"] for event in heard}) == 1
        again = await listened(server, 2, nothing, after=heard[0]["number"])
        assert again == heard[1:]


async def test_what_happens_to_others_is_not_heard() -> None:
    async with LocalSandboxManager() as mine, LocalSandboxManager() as yours:
        server = create_server(mine, access=TwoTenants(mine=mine, yours=yours), policy=POLICY)
        await made(server, X_API_Key="mine")
        await made(server, X_API_Key="yours")
        events = server.app.state.events
        async for event in events.listen("yours", 0):
            assert event["event"] == "started"
            break


async def test_numbers_of_events_go_on_after_a_restart_and_count_nobody_elses() -> None:
    happened = SandboxEvent(
        event="started", sandbox_id="one", sandbox_type="process", at=datetime.now(timezone.utc)
    )

    @on_loop
    async def heard(log: EventLog, after: int) -> list[int]:
        for tenant in ("mine", *["yours"] * 10, "mine"):
            log.add(tenant, happened)
        async with aclosing(log.listen("mine", after)) as events:
            return [(await anext(events))["number"] for _ in range(2)]

    with anyio.fail_after(20):
        first = await heard(EventLog(), 0)
        second = await heard(EventLog(), first[-1])  # a server that was started again
    assert first[1] == first[0] + 1
    assert second[1] == second[0] + 1
    assert second[0] > first[1]


async def test_one_that_fails_says_why() -> None:
    heard: list[Any] = []
    async with serving(policy=POLICY) as server:
        assert isinstance(server.manager, LocalSandboxManager)
        server.manager.listeners.append(heard.append)
        box = await server.manager.get_sandbox(await made(server))
        assert box is not None

        @on_loop
        async def lose() -> None:
            box._lost("it fell over")

        await lose()
    assert [(event.event, event.reason) for event in heard][:2] == [
        ("started", None),
        ("failed", "it fell over"),
    ]
