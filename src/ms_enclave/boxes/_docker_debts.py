"""What is still to be removed from an engine that did not answer: asked for again until it does."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import anyio

from ms_enclave.errors import EnclaveError, EngineUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Debts"]

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two tries."""

_PATIENCE = 3600.0
"""Seconds after which an engine is held to be gone for good."""


class Debts:
    """Tasks of the loop, which end when they are done, or with it, or when that takes too long."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._afterwards: Callable[[], Awaitable[object]] | None = None

    def owe(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        """Have something done as soon as the engine answers.

        Args:
            what: for the log, where the engine answers that it cannot.
        """
        task = asyncio.create_task(self._pay(what, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def when_paid(self, afterwards: Callable[[], Awaitable[object]]) -> None:
        """Do something last: now, or when all is done that is owed now."""
        if self._tasks:
            self._afterwards = afterwards
        else:
            await afterwards()

    async def _pay(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        pause = _FIRST_PAUSE
        patience = time.monotonic() + _PATIENCE
        try:
            while True:
                try:
                    await work()
                except EngineUnavailableError as error:
                    if time.monotonic() > patience:
                        logger.warning("%s may be left: %s", what, error)
                        return
                    await anyio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                except EnclaveError as error:
                    logger.warning("%s is left: %s", what, error)
                    return
                else:
                    return
        finally:
            if self._afterwards is not None and len(self._tasks) == 1:
                await self._afterwards()
