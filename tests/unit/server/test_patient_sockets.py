"""A WebSocket to whoever reads nothing, is not heard or has gone is not kept for ever."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import pytest
import uvicorn
from uvicorn.server import ServerState

from ms_enclave import wire
from ms_enclave.loop import on_loop
from ms_enclave.server import Principal, _recheck, create_server, middleware
from ms_enclave.server._patient_socket import PatientSocket
from tests.support.served import KEY, OnLoopback
from tests.support.subprocess_box import install

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ms_enclave.boxes import Sandbox
    from ms_enclave.manager import SandboxManager

install()

BOUND = 20.0
"""Seconds for what takes far less than one."""
LARGE = 128 << 10
"""Bytes of which a pipe holds half."""


class Guests:
    """Lets everybody in, as long as they are good, and knows how many there are."""

    needs_key = True

    def __init__(self, manager: SandboxManager) -> None:
        self.manager = manager
        self.served = 0
        self.good = True

    async def authenticate(self, key: str | None) -> Principal | None:
        assert key == KEY
        return Principal("default", self.manager, turn=self._turn, is_good=self._is_good)

    async def _is_good(self) -> bool:
        return self.good

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None, None]:
        self.served += 1
        try:
            yield
        finally:
            self.served -= 1

    async def gone(self) -> None:
        """Wait until nobody is there."""
        with anyio.fail_after(BOUND):
            while self.served:
                await anyio.sleep(0.01)


class Kind(OnLoopback):
    kept_open = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.guests = Guests(self.server.manager)
        self.server = create_server(
            self.server.manager, access=self.guests, policy={"sandbox_types": ["subprocess"]}
        )


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> list[PatientSocket]:
    """Those of the server."""
    made: list[PatientSocket] = []
    connect = PatientSocket.connection_made

    def note(self: PatientSocket, transport: asyncio.Transport) -> None:
        made.append(self)
        connect(self, transport)

    monkeypatch.setattr(PatientSocket, "connection_made", note)
    return made


@asynccontextmanager
async def connected(
    line: str, **options: Any
) -> AsyncGenerator[tuple[Kind, Sandbox, aiohttp.ClientWebSocketResponse], None]:
    """To a command; nothing is read from it but what a test reads."""
    async with Kind() as manager, manager.sandbox("subprocess") as box:
        command = await box.start_command(line, stdin=True)
        url = f"{manager.config.base_url}/v1/sandboxes/{box.id}/commands/{command.id}/socket"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, headers={wire.KEY_HEADER: KEY}, **options) as socket,
        ):
            yield manager, box, socket


async def stuck(socket: PatientSocket) -> None:
    """Wait until nothing is taken of what is sent."""
    left, same = -1, 0
    with anyio.fail_after(BOUND):
        while same < 20:
            await anyio.sleep(0.01)
            before, left = left, socket.transport.get_write_buffer_size()
            same = same + 1 if left and left == before else 0


def leave(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Go without a word."""
    writer: Any = socket._writer  # pyright: ignore[reportPrivateUsage]
    writer.transport.abort()


async def test_who_reads_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PatientSocket, "stall_seconds", 0.3)

    @on_loop
    async def go() -> None:
        async with connected("exec yes") as (manager, _, socket):
            await manager.guests.gone()
            leave(socket)

    await go()


async def test_who_reads_nothing_keeps_no_turn_by_a_key_that_is_revoked(
    sockets: list[PatientSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_recheck, "RECHECK_SECONDS", 0.05)
    monkeypatch.setattr(middleware, "CLOSING_SECONDS", 0.05)

    @on_loop
    async def go() -> None:
        async with connected("exec yes") as (manager, _, socket):
            await stuck(sockets[0])
            manager.guests.good = False
            await manager.guests.gone()
            leave(socket)
            manager.guests.good = True

    await go()


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_who_goes_while_nobody_listens_has_gone(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientSocket, "ping_seconds", 0.05)
    monkeypatch.setattr(middleware, "CLOSING_SECONDS", 0.05)

    @on_loop
    async def go() -> None:
        async with connected(
            "exec sleep 1000", autoping=False, timeout=aiohttp.ClientWSTimeout(ws_close=0.1)
        ) as (manager, _, one):
            for _ in range(3):
                await one.send_bytes(b"x" * LARGE)
            if how == "reset":
                leave(one)
            else:
                await one.close()
            await manager.guests.gone()

    await go()


async def test_what_is_typed_before_somebody_goes_arrives() -> None:
    @on_loop
    async def go() -> None:
        async with connected("wc -c > counted; touch done") as (_, box, socket):
            await socket.send_bytes(b"x" * LARGE)
            await socket.send_bytes(b"x" * LARGE)
            await socket.send_str('{"eof": true}')
            await socket.close()
            with anyio.fail_after(BOUND):
                while not await box.files.exists("done"):
                    await anyio.sleep(0.01)
            assert int(await box.files.read_text("counted")) == 2 * LARGE

    await go()


async def test_who_waits_until_we_read_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PatientSocket, "ping_seconds", 0.05)
    late = PatientSocket.keepalive_timeout
    looks: list[PatientSocket] = []

    def note(self: PatientSocket) -> None:
        looks.append(self)
        if len(looks) == 3:  # enough has been seen
            self.ping_interval = self.ping_timeout = 2 * BOUND
        late(self)

    monkeypatch.setattr(PatientSocket, "keepalive_timeout", note)

    @on_loop
    async def go() -> None:
        line = "until [ -e enough ]; do sleep 0.01; done; exec wc -c"
        async with connected(line, autoping=False) as (_, box, socket):
            for _ in range(3):
                await socket.send_bytes(b"x" * LARGE)
            await socket.send_str('{"eof": true}')
            with anyio.fail_after(BOUND):
                while len(looks) < 3:
                    await anyio.sleep(0.01)
                await box.files.write("enough", "")
                while True:
                    message = await socket.receive()
                    if message.type is aiohttp.WSMsgType.TEXT:
                        break
                    assert message.type in {aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.PING}
            assert int(json.loads(message.data)["result"]["stdout"]) == 3 * LARGE

    await go()


async def test_no_message_is_deflated() -> None:
    """It would be inflated whole, before its size is looked at."""

    @on_loop
    async def go() -> None:
        async with connected("exec sleep 1000", compress=15) as (_, _, socket):
            assert socket.compress == 0

    await go()


class Kept(asyncio.Transport):
    """A connection that keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass


async def test_who_sends_after_the_server_has_closed_hears_that_it_is_closed() -> None:
    """By a message that is too large, while the one before is still worked on."""
    ended: list[Exception] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope
        await receive()
        await send({"type": "websocket.accept"})
        while not ended:
            await anyio.sleep(0)
            try:
                await send({"type": "websocket.send", "text": "more"})
            except Exception as error:  # noqa: BLE001 - looked at below
                ended.append(error)

    config = uvicorn.Config(app, ws=PatientSocket, ws_max_size=10, log_config=None, lifespan="off")
    config.load()
    state, transport = ServerState(), Kept()
    connection = PatientSocket(config, state, {})
    connection.connection_made(transport)
    connection.data_received(
        b"GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    with anyio.fail_after(BOUND):
        while b"more" not in transport.sent:
            await anyio.sleep(0)
        connection.data_received(b"\x82\x8b" + bytes(4 + 11))
        await asyncio.wait(state.tasks)
    connection.connection_lost(ConnectionAbortedError())
    assert isinstance(ended[0], OSError)
