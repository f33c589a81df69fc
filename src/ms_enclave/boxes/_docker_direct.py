"""A channel to a guest that does not pass its engine: quicker, and there while the engine is not.

The guest is asked for a descriptor of its own, by a secret (`guest.offer`). Where the engine
runs on this machine and this process may look into the guest's, that descriptor is taken out of it
and used once: to send the guest a socket whose other end was never inside. Nothing has a name that
a program inside could open, and a process that cannot show the secret is not talked to. Where
anything is missing, all goes through the engine as before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import select
import signal
import socket
import stat
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from typing_extensions import override

from ms_enclave.channel.guest_socket import HeardSocket, let_go
from ms_enclave.errors import SandboxLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import AsyncResource, ByteStream

__all__ = ["DirectLink", "Held", "Reached", "belongs_to", "new_secret", "reach", "take_socket"]

_DIGITS = 8
_MOST_CGROUPS = 1 << 16


def new_secret() -> bytes:
    """What a guest has to show; nobody can guess it."""
    return secrets.token_hex(16).encode()


@dataclass(frozen=True)
class Reached:
    """A guest's process on this machine, and a stream to it."""

    link: DirectLink
    process: Held


class Held:
    """A process of this machine, which no other one can be taken for. To be closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def kill(self) -> None:
        """Kill it; the first process of a container takes all others along."""
        with contextlib.suppress(OSError):  # it has ended, or is not ours to kill
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return bool(select.select([self._descriptor], [], [], 0)[0])

    async def ends_within(self, seconds: float) -> bool:
        """Wait for its end, so long at most."""
        with anyio.move_on_after(seconds):
            await anyio.wait_readable(self._descriptor)
        return self.has_ended

    def close(self) -> None:
        """Let go of it. May be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class DirectLink(HeardSocket):
    """A socket to a guest, and what is beside it."""

    beside: AsyncResource | None = None
    """What is closed with it."""

    @override
    async def aclose(self) -> None:
        await super().aclose()
        if self.beside is not None:
            await self.beside.aclose()


async def reach(
    attached: ByteStream, secret: bytes, find_pid: Callable[[], Awaitable[int]], container: str
) -> Reached | None:
    """Take a guest that has just been asked for over from its engine's stream.

    Args:
        attached: that stream; a guest that knows the secret answers there.
        find_pid: gives the number that the engine knows the guest's process by.
        container: the full id of the container that it is in.

    Returns:
        None where that cannot be done here: the guest then listens on the stream.

    Raises:
        SandboxLostError: what answers is no guest.
        anyio.EndOfStream, anyio.BrokenResourceError: it has ended.
    """
    asked = [asyncio.create_task(_read_number(attached)), asyncio.create_task(_ask(find_pid))]
    try:
        await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
        for task in asked:
            if task.done():
                task.result()  # or what kept one of them from having any
        number, pid = [task.result() for task in asked]
    finally:
        with anyio.CancelScope(shield=True):
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
    if pid <= 0:
        return None
    # Shielded, for what is taken must be known to somebody.
    with anyio.CancelScope(shield=True):
        return await anyio.to_thread.run_sync(_take, pid, container, number, secret)


async def _ask(find_pid: Callable[[], Awaitable[int]]) -> int:
    try:
        return await find_pid()
    except SandboxLostError:
        return 0  # what it has said itself is worth more


async def _read_number(attached: ByteStream) -> int:
    words = b""
    while len(words) < _DIGITS:
        words += await attached.receive(_DIGITS - len(words))
    if not words.isdigit():
        raise SandboxLostError(f"It answered {words!r}, which is none of a guest's")
    return int(words)


def belongs_to(groups: str, container: str) -> bool:
    """Whether a process is in a container, by its `/proc/PID/cgroup`: both versions of control
    groups and every driver have the full id in the path of at least one."""
    return len(container) >= 32 and any(container in line for line in groups.splitlines())


def _take(pid: int, container: str, number: int, secret: bytes) -> Reached | None:
    if sys.platform != "linux":
        return None
    try:
        held = os.pidfd_open(pid)
    except OSError:
        return None
    process = Held(held)
    link = None
    try:
        # The number may be one of other processes than ours, as for an engine in a virtual machine.
        with open(f"/proc/{pid}/cgroup") as file:
            groups = file.read(_MOST_CGROUPS)
        if belongs_to(groups, container) and not process.has_ended:
            link = take_socket(held, number, secret)
    except OSError:
        pass
    if link is None:
        process.close()
        return None
    return Reached(link, process)


def take_socket(held: int, number: int, secret: bytes) -> DirectLink | None:
    """A socket to the process that holds, under a number, one that the secret comes out of."""
    from ms_enclave.spawner import _calls as calls  # of Linux only

    taken = calls.pidfd_getfd(held, number)
    try:
        if not stat.S_ISSOCK(os.fstat(taken).st_mode):
            return None
        with socket.socket(fileno=os.dup(taken)) as theirs:
            if (theirs.family, theirs.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
                return None
            # Only looked at: it might be anybody's. Nor is it made non-blocking: that would be so
            # for its owner too, who could undo it.
            if theirs.recv(len(secret), socket.MSG_PEEK | socket.MSG_DONTWAIT) != secret:
                return None
            ours, others = socket.socketpair()
            with others:
                try:
                    socket.send_fds(theirs, [b"\0"], [others.fileno()], socket.MSG_DONTWAIT)
                except OSError:
                    ours.close()
                    raise
            return DirectLink(ours)
    finally:
        let_go([taken])
