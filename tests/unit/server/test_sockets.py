"""Terminals and ports over WebSocket, by a client that is not ours."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import pytest

from ms_enclave import wire
from ms_enclave.loop import on_loop
from ms_enclave.testing._ports import served
from tests.support.served import KEY, OnLoopback
from tests.support.subprocess_box import install

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ms_enclave.boxes import Sandbox

install()

Socket = aiohttp.ClientWebSocketResponse


class Kind(OnLoopback):
    kept_open = 0


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[Sandbox, str], None]:
    """A sandbox on a server, and the address of its sockets."""
    async with Kind() as manager, manager.sandbox("subprocess") as box:
        yield box, f"{manager.config.base_url}/v1/sandboxes/{box.id}"


@asynccontextmanager
async def connected(url: str, key: str = KEY, **headers: str) -> AsyncGenerator[Socket, None]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers={wire.KEY_HEADER: key, **headers}) as socket,
    ):
        yield socket


async def next_of(socket: Socket) -> Any:
    """The next message: bytes, the data of a text, or the code of the close."""
    with anyio.fail_after(20):
        message = await socket.receive()
    if message.type is aiohttp.WSMsgType.TEXT:
        return json.loads(message.data)
    return message.data


async def until(socket: Socket, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        piece = await next_of(socket)
        assert isinstance(piece, bytes), (piece, seen)
        seen += piece
    return seen


@on_loop
async def talk_to_a_port() -> None:
    async with (
        serving() as (box, url),
        served(box) as port,
        connected(f"{url}/ports/{port}/socket") as socket,
    ):
        await socket.send_bytes(b"count\n")
        await socket.send_bytes(b"x" * 200_000)
        await socket.send_str('{"eof": true}')
        assert await until(socket, b"200000") == b"200000"
        assert await next_of(socket) == {"eof": True}
        assert await next_of(socket) == aiohttp.WSCloseCode.OK


async def test_each_way_of_a_port_ends_by_itself() -> None:
    await talk_to_a_port()


@on_loop
async def type_into_a_terminal() -> None:
    async with serving() as (box, url):
        command = await box.start_command(
            "stty -echo; echo ready; read line; stty size; echo got $line; exit 3", pty=(24, 80)
        )
        async with connected(f"{url}/commands/{command.id}/socket") as socket:
            await until(socket, b"ready\r\n")
            await socket.send_str('{"rows": 50, "cols": 132}')
            await socket.send_bytes(b"hello\r")
            assert await until(socket, b"got hello\r\n") == b"50 132\r\ngot hello\r\n"
            last = await next_of(socket)
            assert (last["result"]["exit_code"], last["result"]["stdout"][:5]) == (3, "ready")
            assert await next_of(socket) == aiohttp.WSCloseCode.OK


async def test_a_terminal_is_typed_into_and_ends_with_its_result() -> None:
    await type_into_a_terminal()


@on_loop
async def leave_a_terminal() -> None:
    async with serving() as (box, url):
        command = await box.start_command("echo one; read line; echo two", pty=(24, 80))
        place = f"{url}/commands/{command.id}/socket"
        async with connected(place) as socket:
            await until(socket, b"one\r\n")
        async with connected(f"{place}?after=5") as socket:
            await socket.send_bytes(b"\r")
            assert b"one" not in await until(socket, b"two\r\n")


async def test_a_command_outlives_its_socket_and_is_found_again() -> None:
    await leave_a_terminal()


@on_loop
async def be_refused() -> None:
    async with serving() as (_, url):
        wrong = [
            (f"{url}/ports/1/socket", "port_refused", 409),
            (f"{url}x/ports/1/socket", "sandbox_not_found", 404),
            (f"{url}/commands/none/socket", "command_not_found", 404),
            (f"{url}/ports/0/socket", "config", 400),
        ]
        for place, code, status in wrong:
            async with connected(place) as socket:
                said = await next_of(socket)
                assert (said["error"]["code"], await next_of(socket)) == (code, 4000 + status)
        for key, headers in (("wrong", {}), (KEY, {"Origin": "http://elsewhere.example"})):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                async with connected(f"{url}/ports/1/socket", key, **headers):
                    pass
            assert caught.value.status == 403


async def test_what_is_refused_says_why_and_who_is_nobody_gets_no_socket() -> None:
    await be_refused()


@on_loop
async def talk_nonsense() -> None:
    async with serving() as (box, url):
        command = await box.start_command(["cat"], stdin=True)
        for nonsense in ("{", '{"rows": "many", "x": 1}', "[]"):
            async with connected(f"{url}/commands/{command.id}/socket") as socket:
                await socket.send_str(nonsense)
                assert (await next_of(socket))["error"]["code"] == "config"
                assert await next_of(socket) == 4400
        async with connected(f"{url}/commands/{command.id}/socket") as socket:
            await socket.send_bytes(b"x" * (wire.CHUNK_LIMIT + 1))
            assert await next_of(socket) == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
        assert command.returncode is None


async def test_a_message_that_makes_no_sense_ends_the_socket_and_not_the_command() -> None:
    await talk_nonsense()
