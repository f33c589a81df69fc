"""A guest that attaches descriptors to what it sends cannot make the host wait for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.channel import guest_socket
from ms_enclave.channel.guest_socket import GuestSocket

if TYPE_CHECKING:
    from collections.abc import Generator

LINGER = 8
_ATTACK = f"""
import array, os, socket, struct, sys
ours = socket.socket(fileno=int(sys.argv[1]))
listening = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listening.getsockname())
held = listening.accept()[0]
client.setblocking(False)
try:
    while True:
        client.send(bytes(1 << 20))
except BlockingIOError:
    pass
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, {LINGER}))
attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))]
try:
    ours.sendmsg([b"x"], attached)
    print("sent", flush=True)
except PermissionError:
    print("refused", flush=True)
    ours.sendall(b"y")
os.close(client.detach())
sys.stdin.read()
"""


@contextmanager
def attacker(theirs: socket.socket) -> Generator[subprocess.Popen[bytes]]:
    with theirs, subprocess.Popen(
        [sys.executable, "-c", _ATTACK, str(theirs.fileno())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[theirs.fileno()],
    ) as child:  # fmt: skip
        theirs.close()
        try:
            yield child
        finally:
            child.kill()


def _said(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    return child.stdout.readline()


def _can_refuse() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, 83, 0)
        except OSError:
            return False
        return True


async def test_descriptors_are_refused_where_the_kernel_can() -> None:
    if not _can_refuse():
        pytest.skip("this kernel has no SO_PASSRIGHTS (Linux 6.16)")
    ours, theirs = socket.socketpair()
    async with GuestSocket(ours) as stream:
        with attacker(theirs) as child:
            assert _said(child) == b"refused\n"
            assert await stream.receive() == b"y"


@pytest.mark.parametrize("received", [True, False], ids=["received", "left in the socket"])
async def test_descriptors_that_come_hold_nobody_up(
    monkeypatch: pytest.MonkeyPatch, received: bool
) -> None:
    def cannot(_connected: socket.socket) -> bool:
        return False

    monkeypatch.setattr(guest_socket, "_refuse_descriptors", cannot)
    ours, theirs = socket.socketpair()
    stream = GuestSocket(ours)
    with attacker(theirs) as child:
        assert _said(child) == b"sent\n"
        began = time.monotonic()
        if received:
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()
        await stream.aclose()
        taken = time.monotonic() - began
    assert taken < LINGER / 2


async def test_it_is_a_stream_like_any_other() -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    async with GuestSocket(ours) as stream, GuestSocket(theirs) as other:
        data, received = os.urandom(1 << 20), b""
        async with anyio.create_task_group() as group:
            group.start_soon(stream.send, data)
            while len(received) < len(data):
                received += await other.receive()
        assert received == data
        await stream.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await other.receive()
        await other.aclose()
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")
        with pytest.raises(anyio.ClosedResourceError):
            await other.send(b"x")


async def test_a_close_ends_who_waits() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = GuestSocket(ours)
        async with anyio.create_task_group() as group:
            group.start_soon(_expect_the_end, stream)
            await anyio.sleep(0.05)
            await stream.aclose()


async def _expect_the_end(stream: GuestSocket) -> None:
    with pytest.raises(anyio.ClosedResourceError):
        await stream.receive()
