"""Reaching a guest that an engine has started: past the engine where that can be, or through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from ms_enclave.boxes import _docker_direct as direct
from ms_enclave.channel import guest_loader as loader
from ms_enclave.channel.guest import GuestConnection
from ms_enclave.errors import SandboxLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ms_enclave.boxes._docker_engine import Attached

__all__ = ["Served", "find", "make", "serve"]


@dataclass(frozen=True)
class Served:
    """A connected guest."""

    connection: GuestConnection
    process: direct.Held | None
    """Its process, where the connection does not pass the engine. To be closed."""


def make(attached: Attached, *, is_here: bool) -> bytes:
    """Send what makes a guest of an interpreter, which need not have started yet.

    Args:
        is_here: whether its engine runs on this machine.

    Returns:
        The secret that it is asked for; none where that would be of no use.
    """
    secret = direct.new_secret() if is_here else b""
    attached.put(loader.payload(secret))
    return secret


def find(attached: Attached) -> bytes:
    """Ask for a guest that its last host has left. Returns the secret that it is asked for."""
    secret = direct.new_secret()
    attached.put(loader.again(secret))
    return secret


async def serve(
    attached: Attached,
    container: str,
    secret: bytes,
    *,
    working_dir: str,
    on_end: Callable[[], Awaitable[object]] | None,
) -> Served:
    """Greet the guest that an interpreter, which has just been started, is made to be.

    The stream is taken over, and closed where that fails.

    Args:
        container: the full id of the container that it is in.
        secret: as `make` gave it.
        on_end: told when the guest has ended by itself.

    Raises:
        SandboxLostError: it has ended, or what answers is no guest.
    """
    try:
        if secret:
            reached = await direct.reach(attached, secret, attached.find_pid, container)
            served = None if reached is None else await _go_direct(reached, working_dir)
            if served is not None and reached is not None:
                attached.listen()
                reached.link.on_end, reached.link.beside = on_end, attached
                return served
        attached.on_end = on_end
        connection = GuestConnection(attached, working_dir=working_dir)
        await connection.connect()
    except (anyio.BrokenResourceError, anyio.EndOfStream, SandboxLostError) as error:
        await _close(attached)
        said = attached.said or getattr(error, "message", "") or "it said nothing"
        raise SandboxLostError(f"The first process of the container ended: {said}") from error
    except BaseException:
        await _close(attached)
        raise
    return Served(connection, None)


async def _go_direct(reached: direct.Reached, working_dir: str) -> Served | None:
    """Greet a guest that was sent a socket; None where that never got through to it."""
    connection = GuestConnection(reached.link, working_dir=working_dir)
    try:
        await connection.connect()
    except SandboxLostError:
        reached.process.close()
        return None
    except BaseException:
        reached.process.close()
        raise
    return Served(connection, reached.process)


async def _close(attached: Attached) -> None:
    with anyio.CancelScope(shield=True):
        await attached.aclose()
