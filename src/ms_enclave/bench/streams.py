"""The measurement of streams: a gigabyte out of a sandbox, how fast and with how much memory."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ms_enclave.bench.context import printed
from ms_enclave.errors import PortRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import ByteStream

    from ms_enclave.bench.context import Context, Round
    from ms_enclave.boxes.base import Sandbox

__all__ = ["CONNECT", "GUEST_MEMORY", "LOOPBACK", "MEMORY", "READ_STREAM", "streams"]

READ_STREAM, CONNECT = "files.read_stream", "sandbox.connect"
MEMORY, GUEST_MEMORY = "memory of ours while streaming", "memory of the guest meanwhile"
LOOPBACK = "socket to socket, one process"

_MIB = 1 << 20
_LOOK_EVERY = 16 * _MIB
_PORT = 8000
_SERVER = """
import socket, sys
piece = bytes(1 << 20)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listening:
    while True:
        with listening.accept()[0] as connection:
            for _ in range(int(sys.argv[2])):
                connection.sendall(piece)
"""
_GUEST = """
import os
found = []
for name in os.listdir("/proc"):
    if name.isdigit() and int(name) != os.getpid():
        with open(f"/proc/{name}/status") as file:
            status = file.read()
        found += [int(line.split()[1]) for line in status.splitlines() if line[:6] == "VmHWM:"]
print(max(found))
"""


class _Memory:
    """How much more memory this process has than when it was first looked at, at most: MiB."""

    def __init__(self) -> None:
        self._first = self._now()
        self.most = 0.0

    def look(self) -> None:
        self.most = max(self.most, self._now() - self._first)

    @staticmethod
    def _now() -> float:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


async def streams(context: Context, into: Round) -> None:
    """A file, and what a server in the sandbox sends; and the same between two plain sockets."""
    size = context.scale.streamed
    config = {"disk_limit": "4g", "file_size_limit": "4g", "timeout": 600}
    async with context.manager.sandbox("process", config) as sandbox:
        # Sparse: what is measured is the way out, and not the disk.
        printed(await sandbox.execute_command(["truncate", "-s", f"{size}M", "big"]))
        await sandbox.files.read("big", limit=_MIB)  # now the guest is there
        before = await _most_in_guest(sandbox)
        memory = _Memory()
        into.add(READ_STREAM, await _rate(sandbox.files.read_stream("big"), size, memory))
        into.add(GUEST_MEMORY, await _most_in_guest(sandbox) - before)
        await sandbox.start_command(["python3", "-c", _SERVER, str(_PORT), str(size)])
        async with await _connected(sandbox) as stream:
            into.add(CONNECT, await _rate(stream, size, memory))
        into.add(MEMORY, memory.most)
    into.add(LOOPBACK, await anyio.to_thread.run_sync(_loopback, size))


async def _connected(sandbox: Sandbox) -> ByteStream:
    with anyio.fail_after(20):
        while True:
            try:
                return await sandbox.connect(_PORT)
            except PortRefusedError:
                await anyio.sleep(0.01)


async def _rate(pieces: AsyncIterator[bytes], size: int, memory: _Memory) -> float:
    """MiB a second. Raises RuntimeError where it was not all of it."""
    received, look_at = 0, 0
    begun = time.perf_counter()
    async for piece in pieces:
        received += len(piece)
        if received >= look_at:
            look_at += _LOOK_EVERY
            memory.look()
    taken = time.perf_counter() - begun
    if received != size * _MIB:
        raise RuntimeError(f"a stream of {size} MiB had {received} bytes")
    return size / taken


async def _most_in_guest(sandbox: Sandbox) -> float:
    """MiB that the largest process of the sandbox has had."""
    return int(printed(await sandbox.run_code(_GUEST))) / 1024


def _loopback(size: int) -> float:
    """MiB a second from a socket to another."""

    def serve() -> None:
        piece = bytes(_MIB)
        with closing(listening.accept()[0]) as connection:
            for _ in range(size):
                connection.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        begun = time.perf_counter()
        with socket.create_connection(listening.getsockname()) as connection:
            while connection.recv(65536):
                pass
        taken = time.perf_counter() - begun
        thread.join()
    return size / taken
