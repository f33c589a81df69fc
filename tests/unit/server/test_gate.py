"""What every request passes: the key, the size, the deadline, and who may see which sandbox."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave import wire
from ms_enclave.errors import (
    AuthenticationError,
    ConfigError,
    EnclaveError,
    SandboxStateError,
    ServerUnreachableError,
)
from ms_enclave.http_client import HttpClient, Place
from ms_enclave.loop import on_loop
from ms_enclave.manager import HttpSandboxManager, LocalSandboxManager, SandboxManagerFactory
from ms_enclave.server import Principal, SandboxServer, create_server
from ms_enclave.server._pages import OfThisMachine, is_loopback
from tests.support.subprocess_box import install

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

install()

KEY = "k" * 20


@dataclass
class Said:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def data(self) -> Any:
        return wire.load(self.body)


@on_loop
async def ask(
    server: SandboxServer,
    method: str,
    path: str,
    content: bytes | None = None,
    *,
    app: Any = None,
    **headers: str,
) -> Said:
    client = await HttpClient.open(Place("http://test", app=server.app if app is None else app))
    try:
        named = {} if content is None else {"content-type": wire.JSON}
        named |= {name.replace("_", "-").lower(): value for name, value in headers.items()}
        answer = await client.send(method, path, content=content, headers=named, most=1 << 26)
        return Said(answer.status, answer.body, dict(answer.headers))
    finally:
        await client.aclose()


@asynccontextmanager
async def serving(**options: Any) -> AsyncGenerator[SandboxServer, None]:
    server = create_server(LocalSandboxManager(), **options)
    async with server.manager:
        yield server


def routes() -> list[tuple[str, str]]:
    """Every method and path there is."""
    paths = create_server(LocalSandboxManager()).app.openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


ROUTES = routes()


def filled(path: str, sandbox_id: str = "unknown1") -> str:
    for name, value in (("sandbox_id", sandbox_id), ("port", "80")):
        path = path.replace(f"{{{name}}}", value)
    while "{" in path:
        path = path[: path.index("{")] + "x" + path[path.index("}") + 1 :]
    return path


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1"])
async def test_a_time_that_is_none_stops_no_clock(number: str) -> None:
    async with serving(policy={"sandbox_types": ["subprocess"]}) as server:
        await server.manager.initialize_pool(1, "subprocess")
        for path, body in (
            ("/v1/pool/loans", f'{{"timeout": {number}}}'),
            (f"/v1/pool/execute?waiting={number}", '{"tool_name": "none"}'),
            (f"/pool/execute?tool_name=none&timeout={number}", "{}"),
        ):
            said = await ask(server, "POST", path, body.encode())
            assert 400 <= said.status < 500, (path, said)
            assert b"timeout" in said.body or b"waiting" in said.body


# --- the key ---


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_the_key_nothing_is_to_be_had(method: str, path: str) -> None:
    server = create_server(LocalSandboxManager(), api_key=KEY)
    for headers in ({}, {"X_API_Key": "wrong"}, {"Authorization": KEY}, {"X_API_Key": KEY + "k"}):
        said = await ask(server, method, filled(path), b"{}", **headers)
        if path.startswith("/health"):
            assert said.status in (200, 503)
            assert not {"active_sandboxes", "config"} & {k for k, v in said.data.items() if v}
        else:
            assert said.status == 401
            assert b"X-API-Key" in said.body


async def test_a_key_in_an_address_is_refused_even_where_it_is_right() -> None:
    server = create_server(LocalSandboxManager(), api_key=KEY)
    said = await ask(server, "GET", f"/v1/stats?api_key={KEY}", X_API_Key=KEY)
    assert said.status == 401
    assert "log" in said.data["error"]["message"]
    assert (await ask(server, "GET", "/v1/stats", X_API_Key=KEY)).status == 200


@pytest.mark.parametrize("key", ["", "short", "k" * 19, "k" * 20 + "\n", " " + "k" * 20, "ü" * 20])
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="20"):
        create_server(LocalSandboxManager(), api_key=key)


async def test_a_wrong_key_is_said_so_to_the_client() -> None:
    server = create_server(LocalSandboxManager(), api_key=KEY)
    async with HttpSandboxManager(app=server.app, api_key="wrong") as manager:
        with pytest.raises(AuthenticationError, match="API key"):
            await manager.list_sandboxes()


class TwoTenants:
    """Two people, each with a manager of their own."""

    needs_key = True

    def __init__(self, **managers: LocalSandboxManager) -> None:
        self._principals = {name: Principal(name, one) for name, one in managers.items()}

    async def authenticate(self, key: str | None) -> Principal | None:
        return self._principals.get(key or "")


async def test_a_principal_sees_the_sandboxes_of_its_manager_only() -> None:
    async with LocalSandboxManager() as mine, LocalSandboxManager() as yours:
        server = create_server(mine, access=TwoTenants(mine=mine, yours=yours))
        made = await mine.create_sandbox("subprocess")
        found = await ask(server, "GET", f"/v1/sandboxes/{made}", X_API_Key="mine")
        assert found.status == 200
        other = await ask(server, "GET", f"/v1/sandboxes/{made}", X_API_Key="yours")
        none = await ask(server, "GET", "/v1/sandboxes/unknown1", X_API_Key="yours")
        assert (other.status, none.status) == (404, 404)
        assert other.body.replace(made.encode(), b"ID") == none.body.replace(b"unknown1", b"ID")


OF_A_SANDBOX = [row for row in ROUTES if "{sandbox_id}" in row[1]]


@pytest.mark.parametrize(("method", "path"), OF_A_SANDBOX)
async def test_every_route_of_a_sandbox_finds_it_the_same_way(method: str, path: str) -> None:
    server = create_server(LocalSandboxManager())
    said = await ask(server, method, filled(path), None if method == "GET" else b"{}")
    text = said.data["detail"] if "detail" in said.data else said.data["error"]["message"]
    assert (said.status, text) == (404, "Sandbox unknown1 not found")
    assert len(OF_A_SANDBOX) > 30


# --- size and time ---


async def test_a_body_that_is_too_large_is_refused_before_it_is_read() -> None:
    async with serving() as server:
        large = b'{"code": "' + b"x" * wire.JSON_LIMIT + b'"}'
        said = await ask(server, "POST", "/v1/run", large)
        assert said.status == 413
        assert "bytes" in said.data["error"]["message"]


async def test_what_takes_longer_than_its_caller_waits_is_cancelled() -> None:
    async with serving() as server:
        made = await server.manager.create_sandbox("subprocess")
        path = f"/v1/sandboxes/{made}/commands/run"
        sleeping = f"sleep 60.{os.getpid()}"  # nobody else's: this box has no walls
        body = wire.dump({"command": f"{sleeping}; touch after"})
        with anyio.fail_after(20):
            said = await ask(server, "POST", path, body, Enclave_Deadline="0.3")
        assert (said.status, said.data["error"]["code"]) == (408, "timeout")
        box = await server.manager.get_sandbox(made)
        assert box is not None
        left = await box.execute_command(f"ps ax | grep -c '[s]{sleeping[1:]}'")
        assert left.stdout == "0\n"


async def test_a_deadline_that_is_none_is_the_callers_mistake() -> None:
    server = create_server(LocalSandboxManager())
    said = await ask(server, "GET", "/v1/stats", Enclave_Deadline="soon")
    assert (said.status, said.data["error"]["code"]) == (400, "config")


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'{"nothing": 1}', b"\xff", b"[" * 100_000])
async def test_a_body_that_makes_no_sense_is_the_callers_mistake(body: bytes) -> None:
    server = create_server(LocalSandboxManager())
    said = await ask(server, "POST", "/v1/sandboxes", body, Content_Type="application/json")
    assert said.status in (400, 422)
    assert said.data["error"]["code"] == "config"


async def test_what_is_made_with_a_key_is_made_once() -> None:
    async with serving(policy={"sandbox_types": ["subprocess"]}) as server:
        body = wire.dump({"sandbox_type": "subprocess"})
        one, two = [
            await ask(server, "POST", "/v1/sandboxes", body, Idempotency_Key="k1") for _ in range(2)
        ]
        assert one.data == two.data
        assert len(await server.manager.list_sandboxes()) == 1
        other = await ask(server, "POST", "/v1/sandboxes", b"{}", Idempotency_Key="k1")
        assert (other.status, other.data["error"]["code"]) == (400, "config")


# --- where it listens ---


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.invalid"])
def test_it_listens_elsewhere_only_with_a_key(host: str) -> None:
    server = create_server(LocalSandboxManager())
    with pytest.raises(ConfigError, match="lets everybody in") as caught:
        server.run(host, 0)
    assert "--api-key" in str(caught.value)


def test_loopback_is_what_nobody_else_can_reach() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.0.1", "localhost.example"]))


NAMES = {
    "localhost": 200, "localhost:8000": 200, "127.0.0.1:8000": 200, "127.1.2.3": 200,
    "[::1]:8000": 200, "LOCALHOST.:80": 200, "mine.localhost": 200,
    "evil.example:8000": 403, "localhost.evil.example": 403, "10.0.0.1:8000": 403, "[::": 403,
    "127.0.0.1.evil.example": 403, "": 403,
}  # fmt: skip


@pytest.mark.parametrize(("name", "status"), NAMES.items())
async def test_without_a_key_it_is_called_by_no_name_of_elsewhere(name: str, status: int) -> None:
    """A page at such a name would be one of its own to a browser."""
    server = create_server(LocalSandboxManager())
    said = await ask(server, "GET", "/v1/stats", Host=name, app=OfThisMachine(server.app))
    assert said.status == status
    if status == 403:
        assert "--api-key" in said.data["error"]["remedy"]
    assert (await ask(server, "GET", "/v1/stats", Host=name)).status == 200  # by an app in process


@on_loop
async def called(name: str) -> bytes:
    """What a real server without a key says to who calls it by a name."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = create_server(LocalSandboxManager())
    serving = asyncio.ensure_future(server.serve(port=0, on_ready=ready.set_result))
    try:
        with anyio.fail_after(20):
            port = int((await ready).rpartition(":")[2])
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                head = f"GET /v1/stats HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n"
                await stream.send(head.encode())
                return await stream.receive()
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def test_a_server_on_loopback_looks_at_what_it_is_called() -> None:
    assert (await called("localhost")).startswith(b"HTTP/1.1 200 ")
    assert (await called("evil.example")).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:3000", "null"])
async def test_without_a_key_no_page_of_elsewhere_is_answered(origin: str) -> None:
    server = create_server(LocalSandboxManager())
    own = await ask(server, "GET", "/v1/stats", Origin="http://test", Host="test")
    other = await ask(server, "POST", "/v1/pool", b"{}", Origin=origin, Host="test")
    assert (own.status, other.status) == (200, 403)
    keyed = create_server(LocalSandboxManager(), api_key=KEY)
    said = await ask(keyed, "GET", "/v1/stats", Origin=origin, X_API_Key=KEY)
    assert said.status == 200  # no other page has the key


# --- the client ---


async def test_a_server_that_is_not_there_is_told_apart_from_a_missing_sandbox() -> None:
    async with HttpSandboxManager(base_url="http://127.0.0.1:1") as manager:
        with pytest.raises(ServerUnreachableError, match=r"127\.0\.0\.1:1"):
            await manager.get_sandbox("unknown1")
        with pytest.raises(ConnectionError):
            await manager.create_sandbox("process")


def test_the_factory_makes_one_where_there_is_an_address() -> None:
    made = SandboxManagerFactory.create_manager(base_url="http://127.0.0.1:1")
    assert type(made) is HttpSandboxManager
    with pytest.raises(ValueError, match="base_url must be provided for HttpSandboxManager"):
        SandboxManagerFactory.create_manager("http")


async def test_a_manager_that_was_stopped_says_so() -> None:
    server = create_server(LocalSandboxManager())
    manager = HttpSandboxManager(app=server.app)
    await manager.start()
    await manager.stop()
    with pytest.raises(SandboxStateError, match="stopped"):
        await manager.list_sandboxes()


async def test_a_fault_of_the_server_tells_nothing_of_itself() -> None:
    class Broken(LocalSandboxManager):
        async def get_stats(self) -> dict[str, Any]:
            raise KeyError("/home/secret")

    server = create_server(Broken())
    async with HttpSandboxManager(app=server.app) as manager:
        with pytest.raises(EnclaveError) as caught:
            await manager.get_stats()
    assert "secret" not in str(caught.value)
