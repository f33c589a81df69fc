"""Ports through a real guest, on every Python that one must run on, with peers of all kinds."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.to_thread import run_sync

from ms_enclave.errors import ConfigError, PortRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ms_enclave.channel.ports import GuestPort
    from tests.support.guests import Guest

MIB = 1 << 20


@pytest.fixture
async def listening() -> AsyncGenerator[socket.socket]:
    """A listening socket of the tests' own, on the loopback that the guest shares with us."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def _port(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


async def _connect(guest: Guest, listening: socket.socket) -> tuple[GuestPort, socket.socket]:
    """Both ends of a connection through the guest."""
    stream = await guest.connection.connect_port(_port(listening))
    theirs, _ = await run_sync(listening.accept)
    theirs.settimeout(20)
    return stream, theirs


async def _all(stream: GuestPort) -> bytes:
    data = b""
    while piece := await stream.receive(MIB):
        data += piece
    return data


def _read(connection: socket.socket, size: int = 1 << 40) -> bytes:
    """So many bytes, or all there are."""
    data = bytearray()
    while len(data) < size and (piece := connection.recv(65536)):
        data += piece
    return bytes(data)


async def test_bytes_go_both_ways(guest: Guest, listening: socket.socket) -> None:
    stream, theirs = await _connect(guest, listening)
    data = os.urandom(3 * MIB)
    with closing(theirs), anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(stream.send, data)
            assert await run_sync(_read, theirs, len(data)) == data
        stream.send_eof()
        assert await run_sync(theirs.recv, 1) == b""
        await run_sync(theirs.sendall, data[:MIB])
        theirs.shutdown(socket.SHUT_WR)
        assert await _all(stream) == data[:MIB]
        stream.close()


async def test_an_end_of_theirs_leaves_our_way_open(guest: Guest, listening: socket.socket) -> None:
    stream, theirs = await _connect(guest, listening)
    with closing(theirs), anyio.fail_after(20):
        theirs.shutdown(socket.SHUT_WR)
        assert await _all(stream) == b""
        await stream.send(b"still here")
        stream.send_eof()
        assert await run_sync(_read, theirs) == b"still here"
        stream.close()


async def test_a_reset_breaks_both_ways(guest: Guest, listening: socket.socket) -> None:
    stream, theirs = await _connect(guest, listening)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with anyio.fail_after(20):
        with pytest.raises(anyio.BrokenResourceError):
            await _all(stream)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x" * MIB)
    stream.close()


async def test_who_sends_learns_of_a_reset_also_while_nobody_receives(
    guest: Guest, listening: socket.socket
) -> None:
    stream, theirs = await _connect(guest, listening)
    theirs.setblocking(False)
    with anyio.move_on_after(0.5):
        while True:  # until all windows are full
            try:
                theirs.send(bytes(MIB))
            except BlockingIOError:
                await anyio.sleep(0.02)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with anyio.fail_after(10), pytest.raises(anyio.BrokenResourceError):
        while True:
            await stream.send(bytes(MIB))
    stream.close()


async def test_what_was_sent_arrives_after_a_close(guest: Guest, listening: socket.socket) -> None:
    stream, theirs = await _connect(guest, listening)
    with closing(theirs), anyio.fail_after(20):
        await stream.send(bytes(MIB))
        stream.close()
        assert len(await run_sync(_read, theirs)) == MIB


async def test_who_takes_nothing_is_waited_for_in_bounded_memory(
    guest: Guest, listening: socket.socket
) -> None:
    stream, theirs = await _connect(guest, listening)
    with closing(theirs):
        await guest.connection.exists(".")
        before = guest.memory
        with anyio.move_on_after(1):
            await stream.send(bytes(64 * MIB))
        theirs.setblocking(False)
        with anyio.move_on_after(1):
            while True:  # nor does the guest take more than a window of what nobody receives
                try:
                    theirs.send(bytes(MIB))
                except BlockingIOError:
                    await anyio.sleep(0.02)
        assert guest.memory - before < 12 * MIB
        with anyio.fail_after(10):
            assert await guest.connection.exists(".")
        stream.close()


async def test_a_port_that_only_ipv6_has_is_found(guest: Guest) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        stream, theirs = await _connect(guest, listening)
        theirs.close()
        stream.close()


async def test_nobody_listens(guest: Guest, listening: socket.socket) -> None:
    port = _port(listening)
    listening.close()
    with pytest.raises(PortRefusedError):
        await guest.connection.connect_port(port)


@pytest.mark.parametrize("port", [0, -1, 65536])
async def test_the_guest_itself_knows_what_a_port_is(guest: Guest, port: int) -> None:
    with pytest.raises(ConfigError, match="1 to 65535"):
        await guest.connection.connect_port(port)


async def test_a_full_backlog_is_waited_for_and_can_be_given_up(guest: Guest) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            with anyio.move_on_after(0.3) as scope:
                streams = [await guest.connection.connect_port(_port(full)) for _ in range(4)]
                assert not streams
            assert scope.cancelled_caught
            with anyio.fail_after(10):
                assert await guest.connection.exists(".")


async def test_what_listens_is_told_with_its_process(
    guest: Guest, listening: socket.socket
) -> None:
    found = {entry.port: entry for entry in await guest.connection.ports()}
    mine = found[_port(listening)]
    assert (mine.address, mine.pid) == ("127.0.0.1", os.getpid())
    with open("/proc/self/comm") as file:
        assert mine.process == file.read().strip()
    assert sorted(found) == list(found)


async def test_the_same_port_on_two_addresses_is_two_entries(guest: Guest) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.2", _port(one))),
    ):
        found = await guest.connection.ports()
        addresses = [entry.address for entry in found if entry.port == _port(one)]
    assert addresses == ["127.0.0.1", "127.0.0.2"]
