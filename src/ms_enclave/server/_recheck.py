"""Whether whoever was let in may stay: a stream can go on for longer than its key is good."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ms_enclave.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from ms_enclave.server.access import Principal

__all__ = ["RECHECK_SECONDS", "asked_again"]

logger = logging.getLogger(__name__)

RECHECK_SECONDS = 30.0
"""Seconds between two looks at the key of a request that goes on."""


@contextmanager
def asked_again(
    who: Principal | None,
    start: Callable[[Callable[[], Coroutine[Any, Any, None]]], object],
    on_refused: Callable[[], object],
) -> Generator[None, None, None]:
    """While the block goes on, see now and then that the key is still good.

    A timer first and a task only where that comes to it: most requests are over long before.

    Args:
        who: who was let in; None for what everybody may ask.
        start: starts a look as a task, which is cancelled soon after the end of the block.
        on_refused: called once, when the key is not good any more.
    """
    if who is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def wait() -> asyncio.TimerHandle:
        return loop.call_later(RECHECK_SECONDS, lambda: start(look))

    async def look() -> None:
        nonlocal timer
        good = await _is_good(who)
        if over:
            return
        if good:
            timer = wait()
        else:
            on_refused()

    over = False
    timer = wait()
    try:
        yield
    finally:
        over = True
        timer.cancel()


async def _is_good(who: Principal) -> bool:
    """A store that does not answer revokes no key: nobody new is let in meanwhile, but what goes on
    is asked about again later."""
    try:
        return await who.is_good()
    except StoreUnavailableError:
        logger.warning("the store does not say whether key %s is still good", who.key)
    except Exception:
        logger.exception("it could not be seen whether key %s is still good", who.key)
    return True
