"""Ports inside: what listens is told, and can be connected to from outside, and nothing else is."""

# ruff: noqa: ASYNC110, PT012, S101 - these are tests

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    PortRefusedError,
    PortTimeoutError,
    SandboxLostError,
    SandboxStateError,
)
from ms_enclave.testing._suite import SandboxSuite, lacks, needs, wait_for_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from ms_enclave.boxes import Sandbox

__all__ = ["PortsContract"]

MIB = 1 << 20

_SERVER = """
import os, socket, struct, sys, threading, time

def serve(connection):
    wanted = connection.makefile("rb", buffering=0).readline().split()
    if wanted[0] == b"count":       # until the other side has ended its way
        count = 0
        while data := connection.recv(65536):
            count += len(data)
        connection.sendall(b"%d" % count)
    elif wanted[0] == b"flood":
        piece, left = bytes(range(256)) * 256, int(wanted[1])
        while left > 0:
            connection.sendall(piece[:left])
            left -= len(piece)
    elif wanted[0] == b"echo":
        while data := connection.recv(65536):
            connection.sendall(data)
    elif wanted[0] == b"reset":
        connection.sendall(b"last words")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif wanted[0] == b"deaf":      # takes nothing, and is there
        time.sleep(60)
    elif wanted[0] == b"note":
        data = b""
        while piece := connection.recv(65536):
            data += piece
        with open(wanted[1] + b".part", "wb") as file:
            file.write(data)
        os.rename(wanted[1] + b".part", wanted[1])
    connection.close()

family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.create_server((sys.argv[1], 0), family=family) as listening:
    with open("port.part", "w") as file:
        file.write(str(listening.getsockname()[1]))
    os.rename("port.part", "port")
    while True:
        threading.Thread(target=serve, args=[listening.accept()[0]], daemon=True).start()
"""


_FULL = """
import socket, time

listening = socket.socket()
listening.bind(("127.0.0.1", 0))
listening.listen(0)
held = []
for _ in range(4):  # until the queue of who was not taken yet is full
    one = socket.socket()
    one.settimeout(0.2)
    try:
        one.connect(listening.getsockname())
    except socket.timeout:
        break
    held.append(one)
with open("port", "w") as file:
    file.write(str(listening.getsockname()[1]))
time.sleep(600)
"""


@asynccontextmanager
async def served(
    box: Sandbox, address: str = "127.0.0.1", code: str = _SERVER
) -> AsyncGenerator[int, None]:
    """A server in the sandbox for the length of the block; gives its port."""

    async def serve() -> None:
        # The sandbox may be stopped or lost under it: that is what some tests are about.
        try:
            await box.run_code(code, args=[address], timeout=100)
        except (SandboxStateError, SandboxLostError):
            return

    needs(box, "ports")
    needs(box, "python")
    if await box.files.exists("port"):
        await box.files.remove("port")
    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        try:
            await wait_for_file(box, "port", 20)
            yield int(await box.files.read("port"))
        finally:
            group.cancel_scope.cancel()


async def _all(stream: anyio.abc.ByteReceiveStream) -> bytes:
    return b"".join([piece async for piece in stream])


class PortsContract(SandboxSuite):
    """Ports of a sandbox that has some of its own; the others say that they have none."""

    async def test_a_sandbox_without_ports_says_so(self, box: Sandbox) -> None:
        lacks(box, "ports")
        with pytest.raises(CapabilityError, match="ports"):
            await box.list_ports()
        with pytest.raises(CapabilityError, match="ports"):
            await box.connect(8000)

    async def test_bytes_go_both_ways_and_each_way_ends_by_itself(self, box: Sandbox) -> None:
        async with served(box) as port, await box.connect(port) as stream:
            with anyio.fail_after(20):
                await stream.send(b"count\n" + bytes(3 * MIB))
                await stream.send_eof()
                assert await _all(stream) == b"%d" % (3 * MIB)
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()

    async def test_an_answer_comes_before_the_end_of_the_question(self, box: Sandbox) -> None:
        async with served(box) as port, await box.connect(port) as stream:
            with anyio.fail_after(20):
                await stream.send(b"echo\n")
                for word in (b"one", b"two"):
                    await stream.send(word)
                    assert await stream.receive() == word
                assert await _limited(stream, b"word", 2) == [b"wo", b"rd"]

    async def test_a_long_stream_comes_whole(self, box: Sandbox) -> None:
        async with served(box) as port, await box.connect(port) as stream:
            with anyio.fail_after(30):
                await stream.send(b"flood %d\n" % (8 * MIB + 7))
                data = await _all(stream)
        assert len(data) == 8 * MIB + 7
        assert data[:MIB] == bytes(range(256)) * 4096

    async def test_what_was_sent_before_a_close_arrives(self, box: Sandbox) -> None:
        async with served(box) as port:
            stream = await box.connect(port)
            await stream.send(b"note heard\n" + b"x" * MIB)
            await stream.aclose()
            await wait_for_file(box, "heard")
            assert (await box.files.stat("heard")).size == MIB
            await box.files.remove("heard")

    async def test_a_port_where_nobody_listens_is_refused(self, box: Sandbox) -> None:
        needs(box, "ports")
        with socket.socket() as probe:  # a port that is free on this machine, where that matters
            probe.bind(("127.0.0.1", 0))
            free: int = probe.getsockname()[1]
        with pytest.raises(PortRefusedError, match=str(free)) as caught:
            await box.connect(free)
        assert caught.value.port == free
        assert isinstance(caught.value, ConnectionRefusedError)

    async def test_one_that_takes_no_connection_is_waited_for_no_longer_than_asked(
        self, box: Sandbox
    ) -> None:
        async with served(box, code=_FULL) as port:
            with anyio.fail_after(20), pytest.raises(PortTimeoutError, match=str(port)) as caught:
                await box.connect(port, timeout=0.3)
            assert (caught.value.port, caught.value.timeout) == (port, 0.3)
            assert isinstance(caught.value, TimeoutError)
            assert port in [found.port for found in await box.list_ports()]
            with pytest.raises(ConfigError, match="timeout"):
                await box.connect(port, timeout=0)

    @pytest.mark.parametrize("port", [0, -1, 65536, True, "80"])
    async def test_what_is_no_port_is_not_asked_for(self, box: Sandbox, port: object) -> None:
        with pytest.raises(ConfigError, match="port"):
            await box.connect(port)  # pyright: ignore[reportArgumentType]

    async def test_a_port_of_the_host_is_none_of_the_sandbox_s(self, box: Sandbox) -> None:
        needs(box, "ports")
        if not self.isolated:
            pytest.skip(f"{box.sandbox_type} shares the host's ports")
        with socket.create_server(("127.0.0.1", 0)) as ours:
            port: int = ours.getsockname()[1]
            with pytest.raises(PortRefusedError):
                await box.connect(port)
            assert port not in [found.port for found in await box.list_ports()]

    @pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104 - inside
    async def test_what_listens_is_told_and_can_be_connected_to(
        self, box: Sandbox, address: str
    ) -> None:
        async with served(box, address) as port:
            (found,) = [found for found in await box.list_ports() if found.port == port]
            assert found.address == address
            assert found.process is not None
            assert "python" in found.process
            comm = await box.execute_command(["cat", f"/proc/{found.pid}/comm"])
            assert comm.stdout == f"{found.process}\n"
            async with await box.connect(port) as stream:
                await stream.send(b"flood 5\n")
                assert len(await _all(stream)) == 5
        with anyio.fail_after(10):
            while port in [found.port for found in await box.list_ports()]:
                await anyio.sleep(0.02)

    async def test_a_connection_that_is_reset_is_broken_after_its_last_bytes(
        self, box: Sandbox
    ) -> None:
        async with served(box) as port, await box.connect(port) as stream:
            await stream.send(b"reset\n")
            with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError):
                while True:
                    assert b"last words".startswith(await stream.receive())
            with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError):
                while True:
                    await stream.send(bytes(MIB))

    async def test_whoever_reads_nothing_holds_up_nobody_else(self, box: Sandbox) -> None:
        async with served(box) as port, await box.connect(port) as deaf:
            await deaf.send(b"deaf\n")
            with anyio.move_on_after(0.5) as full:
                while True:
                    await deaf.send(bytes(MIB))
            assert full.cancelled_caught
            async with await box.connect(port) as other:
                with anyio.fail_after(10):
                    await other.send(b"flood 1000000\n")
                    assert len(await _all(other)) == 1_000_000
            assert await box.files.exists(".")

    async def test_a_flood_that_nobody_takes_stays_inside(self, box: Sandbox) -> None:
        async with served(box) as port, await box.connect(port) as stream:
            await stream.send(b"flood 1000000000\n")
            await anyio.sleep(0.2)  # what comes now has to wait where it is
            assert await box.files.exists(".")
            with anyio.fail_after(10):
                assert len(await stream.receive(10)) == 10

    async def test_a_receive_that_is_cancelled_loses_nothing(self, box: Sandbox) -> None:
        async with served(box) as port, await box.connect(port) as stream:
            await stream.send(b"echo\n")
            sent, received = b"", b""
            with anyio.fail_after(30):
                for number in range(300):
                    piece = b"%d." % number
                    await stream.send(piece)
                    sent += piece
                    pause = 0.0
                    while len(received) < len(sent):  # until it comes, which may be any moment
                        pause += 0.00005
                        with anyio.move_on_after(pause):
                            received += await stream.receive()
            assert received == sent

    async def test_a_closed_stream_says_so(self, box: Sandbox) -> None:
        async with served(box) as port:
            stream = await box.connect(port)
            await stream.aclose()
            await stream.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send(b"x")
            with pytest.raises(anyio.ClosedResourceError):
                await stream.send_eof()

    async def test_a_close_ends_who_waits_for_the_stream(self, box: Sandbox) -> None:
        async with served(box) as port:
            stream = await box.connect(port)
            await stream.send(b"deaf\n")
            ended: list[BaseException] = []
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(_note_the_end, stream.receive, ended)
                    group.start_soon(_note_the_end, lambda: _send_for_ever(stream), ended)
                    await anyio.sleep(0.3)
                    await stream.aclose()
            assert [type(error) for error in ended] == [anyio.ClosedResourceError] * 2

    async def test_two_tasks_cannot_receive_from_one_stream(self, box: Sandbox) -> None:
        async with (
            served(box) as port,
            await box.connect(port) as stream,
            anyio.create_task_group() as group,
        ):
            group.start_soon(stream.receive)
            await anyio.sleep(0.05)
            with pytest.raises(anyio.BusyResourceError):
                await stream.receive()
            group.cancel_scope.cancel()

    async def test_many_connections_at_a_time(self, box: Sandbox) -> None:
        async def use(number: int) -> None:
            async with await box.connect(port) as stream:
                await stream.send(b"count\n" + bytes(number))
                await stream.send_eof()
                answers.append((number, await _all(stream)))

        answers: list[tuple[int, bytes]] = []
        async with served(box) as port:
            with anyio.fail_after(30):
                async with anyio.create_task_group() as group:
                    for number in range(60):
                        group.start_soon(use, number)
        assert sorted(answers) == [(number, b"%d" % number) for number in range(60)]

    async def test_a_stream_ends_with_its_sandbox(self, fresh: Sandbox) -> None:
        async with served(fresh) as port:
            stream = await fresh.connect(port)
            idle = await fresh.connect(port)
            ended: list[BaseException] = []
            async with anyio.create_task_group() as group:
                group.start_soon(_note_the_end, stream.receive, ended)
                await anyio.sleep(0.1)
                with anyio.fail_after(15):
                    await fresh.stop()
            assert [type(error) for error in ended] == [SandboxStateError]
            with pytest.raises(SandboxStateError):
                await idle.receive()
            for each in (stream, idle):
                await each.aclose()


async def _limited(stream: anyio.abc.ByteStream, data: bytes, size: int) -> list[bytes]:
    await stream.send(data)
    return [await stream.receive(size) for _ in range(0, len(data), size)]


async def _send_for_ever(stream: anyio.abc.ByteStream) -> None:
    while True:
        await stream.send(bytes(MIB))


async def _note_the_end(call: Callable[[], Awaitable[object]], ended: list[BaseException]) -> None:
    try:
        await call()
    except Exception as error:  # noqa: BLE001 - which one it is, is the question
        ended.append(error)
