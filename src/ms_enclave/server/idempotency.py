"""Doing once what may be asked for twice: who heard no answer asks again with the same key."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ms_enclave.errors import ConfigError

__all__ = ["Idempotent", "Once"]

REMEMBERED = 10_000
SECONDS = 24 * 3600.0


@dataclass
class _Done:
    body: bytes
    """A digest of what was asked for."""
    answer: "asyncio.Future[bytes]"
    at: float


class Once:
    """Answers by who asked and by key, for a day and the last ten thousand of each. In memory."""

    def __init__(self) -> None:
        self._done: dict[str, OrderedDict[str, _Done]] = {}

    async def do(
        self, who: str, key: str | None, body: bytes, make: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Make it, or give what was made for that key before. What failed is forgotten.

        Raises:
            ConfigError: the key was used for something else.
        """
        if key is None:
            return await make()
        done, digest = self._done.setdefault(who, OrderedDict()), hashlib.sha256(body).digest()
        _forget(done)
        while (known := done.get(key)) is not None:
            if known.body != digest:
                raise ConfigError("that idempotency key was used for another request")
            await asyncio.wait([known.answer])
            if not known.answer.cancelled():
                return known.answer.result()
        mine = done[key] = _Done(
            digest, asyncio.get_running_loop().create_future(), time.monotonic()
        )
        try:
            answer = await make()
        except BaseException:
            del done[key]
            mine.answer.cancel()
            raise
        mine.answer.set_result(answer)
        return answer


def _forget(done: OrderedDict[str, _Done]) -> None:
    """Forget what is old or too much, but nothing that is being made."""
    oldest, over = time.monotonic() - SECONDS, list[str]()
    for key, one in done.items():
        if len(done) - len(over) <= REMEMBERED and one.at >= oldest:
            break
        if one.answer.done():
            over.append(key)
    for key in over:
        del done[key]


async def find_once(request: Request) -> Once:
    """The one of this server."""
    return request.app.state.once


Idempotent = Annotated[Once, Depends(find_once)]
