"""Whoever is slow, half gone or greedy costs a connection, and nobody else anything."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import tarfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
import uvicorn
from uvicorn.server import ServerState

from ms_enclave import wire
from ms_enclave.errors import EnclaveError
from ms_enclave.loop import on_loop
from ms_enclave.server import _uvicorn
from ms_enclave.server._patience import Patience
from ms_enclave.server._patient_socket import PatientSocket
from tests.support.served import KEY, OnLoopback
from tests.support.subprocess_box import install

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.abc import SocketStream

    from ms_enclave.boxes import Sandbox

install()

BOUND = 20.0
"""Seconds for what takes far less than one."""


class Kind(OnLoopback):
    kept_open = 0


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[Sandbox, Kind], None]:
    async with Kind() as manager, manager.sandbox("subprocess") as box:
        with anyio.fail_after(4 * BOUND):
            yield box, manager


@asynccontextmanager
async def connected(manager: Kind) -> AsyncGenerator[SocketStream, None]:
    """A connection of somebody who speaks HTTP by hand."""
    port = int(str(manager.config.base_url).rsplit(":", 1)[1])
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        yield stream


def head(method: str, path: str, *lines: str, key: str = KEY) -> bytes:
    first = (f"{method} {path} HTTP/1.1", "Host: test", f"X-API-Key: {key}", *lines, "", "")
    return "\r\n".join(first).encode()


def asking(method: str, path: str, body: Any) -> bytes:
    content = wire.dump(body)
    length = f"Content-Length: {len(content)}"
    return head(method, path, "Content-Type: application/json", length) + content


async def rest_of(stream: SocketStream) -> bytes:
    """All that comes until the other side ends it."""
    said = b""
    with anyio.fail_after(BOUND):
        try:
            while True:
                said += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return said


async def beating(box: Sandbox) -> None:
    """Wait until what writes a beat has begun."""
    with anyio.fail_after(BOUND):
        while not await box.files.exists("beat"):
            await anyio.sleep(0.02)


async def still(box: Sandbox) -> None:
    """Wait until it beats no more."""
    with anyio.fail_after(BOUND):
        while True:
            before = (await box.files.stat("beat")).size
            await anyio.sleep(0.3)  # ten beats
            if (await box.files.stat("beat")).size == before:
                return


HEARTBEAT = f"while [ -d /proc/{os.getpid()} ]; do echo x >> beat; sleep 0.03; done"


@pytest.mark.parametrize("how", ["closed", "half closed", "reset"])
async def test_a_call_whose_caller_has_gone_ends_on_the_server(how: str) -> None:
    @on_loop
    async def go() -> None:
        async with serving() as (box, manager):
            path = f"/v1/sandboxes/{box.id}/commands/run/events"
            async with connected(manager) as stream:
                await stream.send(asking("POST", path, {"command": f"echo begun; {HEARTBEAT}"}))
                await beating(box)
                if how == "half closed":
                    await stream.send_eof()
                    await rest_of(stream)
                    await still(box)
                elif how == "reset":
                    raw = stream.extra_attributes[anyio.abc.SocketAttribute.raw_socket]()
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await still(box)

    await go()


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /v1/stats HTT", head("GET", "/v1/stats")[:-2]],
    ids=["silence", "half a line", "half a head"],
)
async def test_a_head_that_does_not_come_is_not_waited_for(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "head_seconds", 0.2)

    @on_loop
    async def go() -> None:
        async with Kind() as manager, connected(manager) as stream:
            if begun:
                await stream.send(begun)
            assert await rest_of(stream) == b""

    await go()


async def test_a_body_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Patience, "stall_seconds", 0.2)

    @on_loop
    async def go() -> None:
        async with serving() as (box, manager):
            path = f"/v1/sandboxes/{box.id}/files/content?path=half"
            async with connected(manager) as stream:
                await stream.send(head("PUT", path, "Content-Length: 1000000") + b"x" * 5000)
                assert await rest_of(stream) == b""
            assert (await box.execute_command("echo served")).stdout == "served\n"

    await go()


async def test_who_does_not_read_an_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Patience, "stall_seconds", 0.3)

    @on_loop
    async def go() -> None:
        async with serving() as (box, manager):
            path = f"/v1/sandboxes/{box.id}/commands/run/events"
            flood = f"{HEARTBEAT.replace('sleep 0.03', 'head -c 300000 /dev/zero')}"
            limits = {"output_limit": 1 << 40}
            body = {"command": flood, "limits": limits, "timeout": 100}
            async with connected(manager) as stream:
                await stream.send(asking("POST", path, body))
                await beating(box)
                await still(box)  # it is held up, and then ended

    await go()


@pytest.mark.parametrize(
    ("lines", "later"), [((), b"\r\n"), (("Content-Length: 3",), b"xyz")], ids=["lines", "body"]
)
async def test_who_asks_nothing_more_is_not_waited_for(
    lines: tuple[str, ...], later: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_uvicorn, "_KEEP_ALIVE", 0.2)

    @on_loop
    async def go() -> None:
        async with Kind() as manager, connected(manager) as stream:
            await stream.send(head("GET", "/v1/stats", *lines, key="wrong"))
            assert b" 401 " in await stream.receive()
            await stream.send(later)
            await rest_of(stream)

    await go()


async def test_a_socket_that_begins_on_a_connection_that_was_used_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_uvicorn, "_KEEP_ALIVE", 0.2)
    monkeypatch.setattr(PatientSocket, "ping_seconds", 0.6)

    @on_loop
    async def go() -> None:
        async with serving() as (box, manager), connected(manager) as stream:
            command = await box.start_command(["cat"], stdin=True)
            await stream.send(head("GET", "/v1/stats"))
            assert b" 200 " in await stream.receive()
            await stream.send(
                head(
                    "GET", f"/v1/sandboxes/{box.id}/commands/{command.id}/socket",
                    "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
                )
            )  # fmt: skip
            assert b" 101 " in await stream.receive()
            assert (await stream.receive())[:1] == b"\x89"  # a ping

    await go()


class Taken(asyncio.Transport):
    """A connection whose other end takes some of what is sent, and then no more."""

    def __init__(self, left: list[int]) -> None:
        super().__init__()
        self.left = left
        self.aborted = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self.aborted.set()


@pytest.mark.parametrize("kind", [Patience, PatientSocket])
async def test_who_reads_slowly_is_waited_for_until_they_stand_still(
    kind: type[Patience | PatientSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "stall_seconds", 0.0)
    config = uvicorn.Config(Kind, ws=PatientSocket, log_config=None)
    connection, transport = kind(config, ServerState(), {}), Taken([500, 400, 300, 200, 100])
    connection.connection_made(transport)
    connection.pause_writing()
    with anyio.fail_after(BOUND):
        await transport.aborted.wait()
    assert transport.left == [100]
    connection.connection_lost(ConnectionAbortedError())


@pytest.mark.parametrize("line", [b"a: b\r\n", b"x" * 100], ids=["many", "one"])
async def test_fields_after_a_body_are_not_kept(line: bytes) -> None:
    @on_loop
    async def go() -> None:
        async with Kind() as manager, connected(manager) as stream:
            said = head("GET", "/v1/stats", "Transfer-Encoding: chunked", key="wrong")
            await stream.send(said + b"0\r\nx: ")
            piece, sent = line * 1000, 0
            with anyio.fail_after(BOUND):
                try:
                    while sent < 32 << 20:
                        await stream.send(piece)
                        sent += len(piece)
                except (anyio.BrokenResourceError, OSError):
                    pass
            assert sent < 32 << 20

    await go()


async def test_what_is_sent_ahead_hides_nobody_who_goes() -> None:
    """It is not answered either: whoever did that asks again, by another connection."""

    @on_loop
    async def go() -> None:
        async with serving() as (box, manager):
            path = f"/v1/sandboxes/{box.id}/commands/run/events"
            asked = asking("POST", path, {"command": f"echo begun; {HEARTBEAT}"})
            async with connected(manager) as stream:
                await stream.send(asked + head("GET", "/v1/stats"))
                await beating(box)
                await stream.send(head("GET", "/v1/stats") * 2)
            await still(box)

    await go()


async def test_what_is_sent_ahead_ends_nothing_that_goes_on() -> None:
    @on_loop
    async def go() -> None:
        async with serving() as (box, manager):
            path = f"/v1/sandboxes/{box.id}/commands/run"
            line = "touch begun; until [ -e enough ]; do sleep 0.01; done; echo do''ne"
            async with connected(manager) as stream:
                await stream.send(asking("POST", path, {"command": line}))
                with anyio.fail_after(BOUND):
                    while not await box.files.exists("begun"):
                        await anyio.sleep(0.02)
                await stream.send(asking("POST", path, {"command": "echo other"}) * 2)
                await box.files.write("enough", "")
                said = await rest_of(stream)
            assert said.startswith(b"HTTP/1.1 200 ")
            assert b"done" in said
            assert said.count(b"HTTP/1.1") == 1

    await go()


async def test_a_head_without_an_end_is_not_kept() -> None:
    @on_loop
    async def go() -> None:
        async with Kind() as manager, connected(manager) as stream:
            try:
                await stream.send(b"GET /v1/stats HTTP/1.1\r\nX-Long: " + b"x" * (1 << 20))
            except anyio.BrokenResourceError:
                return  # ended before it had all of it
            said = await rest_of(stream)
            assert said == b"" or b" 400 " in said.splitlines()[0]

    await go()


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: 99999999999999"], 413),
        (["Content-Length: -1"], 400),
        (["Content-Length: 1x"], 400),
        (["Content-Length: 3", "Content-Length: 5"], 400),
        (["Content-Length: 3", "Transfer-Encoding: chunked"], 400),
    ],
)
async def test_a_length_that_is_none_is_refused_at_once(lines: list[str], status: int) -> None:
    @on_loop
    async def go() -> None:
        async with Kind() as manager, connected(manager) as stream:
            await stream.send(head("POST", "/v1/run", *lines))
            assert (await rest_of(stream)).split(b" ")[1] == str(status).encode()

    await go()


async def test_a_body_without_a_length_is_read_no_further_than_it_may_be() -> None:
    @on_loop
    async def go() -> None:
        async with Kind() as manager, connected(manager) as stream:
            lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
            await stream.send(head("POST", "/v1/run", *lines))
            piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
            sent = 0
            with anyio.fail_after(BOUND):
                try:
                    while sent < 4 * wire.JSON_LIMIT:
                        await stream.send(piece)
                        sent += 1 << 20
                except (anyio.BrokenResourceError, OSError):
                    pass
            assert sent < 2 * wire.JSON_LIMIT

    await go()


async def test_nobody_sends_a_body_to_a_server_that_does_not_know_them() -> None:
    @on_loop
    async def go() -> None:
        async with Kind() as manager, connected(manager) as stream:
            await stream.send(head("POST", "/v1/run", "Content-Length: 1000000", key="wrong"))
            said = await rest_of(stream)  # the connection is ended, and the body never wanted
            assert said.split(b" ")[1] == b"401"

    await go()


def tar_of(*members: tuple[str, bytes, str]) -> bytes:
    """Of names, types and targets of links."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            content = b"written" if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../beside", tarfile.REGTYPE, "")],
        [("a/../../beside", tarfile.REGTYPE, "")],
        [("way", tarfile.SYMTYPE, ".."), ("way/beside", tarfile.REGTYPE, "")],
        [("way", tarfile.LNKTYPE, "../secret")],
    ],
    ids=["dots", "dots within", "through a link", "a hard link out"],
)
async def test_a_tar_that_leads_elsewhere_writes_nothing_there(
    members: list[tuple[str, bytes, str]],
) -> None:
    @on_loop
    async def go() -> None:
        async with serving() as (box, _):
            await box.files.write("secret", "theirs")
            await box.files.mkdir("target")
            with pytest.raises((EnclaveError, OSError)):
                await box.put_archive("target", tar_of(*members))
            assert not await box.files.exists("beside")
            assert await box.files.read_text("secret") == "theirs"

    await go()
