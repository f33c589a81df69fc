"""The guests of one sandbox: a connection for each of its users that file calls are made for."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from ms_enclave.channel.guest import GuestConnection

    User = str | int | None

__all__ = ["Guests"]

OTHERS = 4
"""Guests of other users than the sandbox's own that stay when no call needs them: each is one of
the processes that the sandbox may have."""


@dataclass(eq=False)
class _Held:
    guest: GuestConnection
    uses: int = 0


class Guests:
    """Makes guests when they are first needed, and owns them until `aclose`.

    The user None is the sandbox's own, whose guest stays. A guest that ended stays too where it is
    all that the box is; elsewhere the next call gets a new one.

    Args:
        connect: makes the guest of one user.
        own: has something undone with the box; called before there is anything to be undone.
        is_the_box: whether the box is lost with the guest of that user.
    """

    def __init__(
        self,
        connect: Callable[[User], Awaitable[GuestConnection]],
        own: Callable[[Callable[[], Awaitable[object]]], None],
        is_the_box: Callable[[User], bool],
    ) -> None:
        self._connect = connect
        self._own = own
        self._is_the_box = is_the_box
        self._owned = False
        self._closed = False
        self._lock = anyio.Lock()
        self._held: dict[User, _Held] = {}  # in the order of their last use

    async def get(self) -> GuestConnection:
        """The guest of the sandbox's own user.

        Raises what making it raises.
        """
        return (await self._find(None)).guest

    @asynccontextmanager
    async def use(self, user: User) -> AsyncGenerator[GuestConnection, None]:
        """A user's guest, which stays at least as long as it is used.

        Raises what making it raises.
        """
        held = await self._find(user)
        held.uses += 1  # nothing was awaited since it was found
        try:
            yield held.guest
        finally:
            held.uses -= 1

    async def aclose(self) -> None:
        """End all of them. There will be no more."""
        self._closed = True
        for user in list(self._held):
            await self._drop(user)

    async def renew(self) -> None:
        """End all of them; the next call makes a new one."""
        async with self._lock:
            for user in list(self._held):
                await self._drop(user)

    async def _find(self, user: User) -> _Held:
        held = self._living(user)
        if held is not None:
            return held
        async with self._lock:
            held = self._living(user)
            if held is None:
                held = await self._make(user)
            return held

    def _living(self, user: User) -> _Held | None:
        held = self._held.get(user)
        if held is None or (held.guest.is_lost and not self._is_the_box(user)):
            return None
        self._held[user] = self._held.pop(user)
        return held

    async def _make(self, user: User) -> _Held:
        if not self._owned:
            self._own(self.aclose)
            self._owned = True
        await self._drop(user)
        idle = [other for other, held in self._held.items() if other is not None and not held.uses]
        for other in idle[: max(0, len(idle) + 1 - OTHERS)] if user is not None else ():
            await self._drop(other)
        guest = await self._connect(user)
        self._held[user] = held = _Held(guest)
        if self._closed:
            await self._drop(user)
        return held

    async def _drop(self, user: User) -> None:
        held = self._held.pop(user, None)
        if held is not None:
            with anyio.CancelScope(shield=True):
                await held.guest.aclose()
