from __future__ import annotations

import errno
import json
import os
import socket
import subprocess

import pytest

from ms_enclave.errors import SandboxLostError
from ms_enclave.spawner.client import StationClient
from ms_enclave.spawner.launch import Launched

pytestmark = pytest.mark.anyio


class Failing(socket.socket):
    """Fails to receive as often as it has errors."""

    errors: tuple[int, ...] = ()

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if self.errors:
            number, *rest = self.errors
            self.errors = tuple(rest)
            raise OSError(number, os.strerror(number))
        return super().recv(bufsize, flags)


async def connected() -> tuple[StationClient, Failing, socket.socket]:
    """A client, its socket, and what takes the place of a station."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = Failing(fileno=ours.detach())
    control.setblocking(False)
    launcher = subprocess.Popen(["cat"], stdin=theirs, stdout=subprocess.DEVNULL)
    notes = os.memfd_create("notes")
    client = StationClient({}, Launched(control, launcher, notes, "none"))
    theirs.send(json.dumps({"event": "ready"}).encode())
    await client.start()
    return client, control, theirs


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.ENOBUFS, errno.EINTR, errno.EAGAIN])
async def test_what_cannot_be_received_for_a_moment_is_received_then(number: int) -> None:
    client, control, theirs = await connected()
    with theirs:
        control.errors = (number, number)
        theirs.send(json.dumps({"q": 1, "ok": {"it": "is"}}).encode())
        assert await client.ask("look") == {"it": "is"}
        assert client.alive
    await client.close()


async def test_a_station_that_cannot_be_heard_has_ended() -> None:
    client, control, theirs = await connected()
    with theirs:
        control.errors = (errno.EIO,)
        theirs.send(json.dumps({"q": 1, "ok": {}}).encode())
        with pytest.raises(SandboxLostError, match="has ended"):
            await client.ask("look")
        assert not client.alive
    await client.close()
