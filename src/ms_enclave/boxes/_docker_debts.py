"""What is still to be removed from an engine that did not answer: asked for again until it does."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import anyio

from ms_enclave.errors import EnclaveError, EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Debts"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two tries."""


class Debts:
    """Tasks of the loop, which last as long as it does or until they are done.

    Args:
        take: keeps the engine's client, once for each.
        give_back: lets go of it.
    """

    def __init__(
        self, take: Callable[[], object], give_back: Callable[[], Awaitable[object]]
    ) -> None:
        self._take = take
        self._give_back = give_back
        self._tasks: set[asyncio.Task[None]] = set()

    def owe(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        """Have something done as soon as the engine answers.

        Args:
            what: for the log, where the engine answers that it cannot.
        """
        self._take()
        task = asyncio.create_task(self._pay(what, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pay(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        pause = _FIRST_PAUSE
        try:
            while True:
                try:
                    await work()
                except EngineUnavailableError:
                    await anyio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                except EnclaveError as error:
                    logger.warning("%s is left: %s", what, error)
                    return
                else:
                    return
        finally:
            await self._give_back()
