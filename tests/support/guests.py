"""Guests as plain child processes of the test, started as sandboxes start them.

Nothing but the folder of the guest itself is on their path: no site packages, nothing else of ours.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

import ms_enclave
from ms_enclave.channel.guest import GuestConnection
from ms_enclave.channel.guest_socket import GuestSocket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["AHEAD", "PROGRAM", "Guest", "hostile_guest", "local_guest", "start_guest"]

_PACKAGES = str(Path(ms_enclave.__file__).parent)

PROGRAM = f"""
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, {_PACKAGES!r})
from guest import server
sys.path.pop(0)
server.serve(int(sys.argv[1]))
"""

AHEAD = PROGRAM.replace("argv[1])", "argv[1]), ahead=True")
"""One that makes the processes of a program before it is asked for, as in containers."""


def start_guest(
    python: str, folder: str, program: str = PROGRAM
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A guest's process and our end of its channel."""
    ours, theirs = socket.socketpair()
    with theirs:
        child = subprocess.Popen(
            [python, "-I", "-S", "-c", program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=folder,
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return child, ours


def end_guest(child: subprocess.Popen[bytes]) -> None:
    """Wait for its end, which comes by itself once the channel is closed."""
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise


class Guest:
    """A guest with a working folder, a process and a connection."""

    def __init__(
        self, connection: GuestConnection, folder: Path, child: subprocess.Popen[bytes]
    ) -> None:
        self.connection = connection
        self.folder = folder
        self.child = child

    @property
    def memory(self) -> int:
        """Bytes that it has in memory now."""
        with open(f"/proc/{self.child.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@asynccontextmanager
async def local_guest(
    python: str = sys.executable, program: str = PROGRAM
) -> AsyncGenerator[Guest]:
    """A connected guest in a folder of its own."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="guest-"))
    child, ours = start_guest(python, folder, program)
    connection = GuestConnection(GuestSocket(ours))
    try:
        await connection.connect()
        yield Guest(connection, Path(folder), child)
    finally:
        with anyio.CancelScope(shield=True):
            await connection.aclose()
            await anyio.to_thread.run_sync(end_guest, child)
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


@asynccontextmanager
async def hostile_guest(**settings: Any) -> AsyncGenerator[tuple[GuestConnection, socket.socket]]:
    """A connection that is not greeted yet, and the guest's end of it, to send anything through."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    connection = GuestConnection(GuestSocket(ours), **settings)
    try:
        yield connection, theirs
    finally:
        theirs.close()
        with anyio.CancelScope(shield=True):
            await connection.aclose()
