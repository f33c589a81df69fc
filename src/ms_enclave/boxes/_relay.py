"""Passes input and output of a running program on to its caller, without holding the program up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import BinaryIO

import anyio
from anyio.to_thread import run_sync

__all__ = ["Relay", "Sink", "read_chunks"]

Sink = Callable[[str, bytes], object]
"""Takes the next bytes of a stream ("stdout" or "stderr"); called in a worker thread, may block."""


class Relay:
    """Output on its way to the caller's function, in the order in which it came.

    What waits is held in memory: whoever feeds it stops at the output limit. `run` ends after
    `end` was called and everything was handed over, or with what the function raises; cancelling
    it abandons a call that is under way.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._thread = anyio.CapacityLimiter(1)  # of its own: a slow sink is nothing to others
        self._waiting: list[tuple[str, bytes]] = []
        self._ended = False
        self._news = anyio.Event()

    def put(self, stream: str, data: bytes) -> None:
        """Have the next bytes of a stream handed over; never waits."""
        if data:
            self._waiting.append((stream, data))
            self._news.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._news.set()

    async def run(self) -> None:
        """Hand over what comes, until the end."""
        while self._waiting or not self._ended:
            if not self._waiting:
                self._news = anyio.Event()
                await self._news.wait()
            batch, self._waiting = self._waiting, []
            for stream, data in _joined(batch):
                await run_sync(
                    self._sink, stream, data, abandon_on_cancel=True, limiter=self._thread
                )


def _joined(batch: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The same with fewer, longer pieces: every call costs a change of threads."""
    pieces: list[tuple[str, list[bytes]]] = []
    for stream, data in batch:
        if pieces and pieces[-1][0] == stream:
            pieces[-1][1].append(data)
        else:
            pieces.append((stream, [data]))
    return [(stream, b"".join(parts)) for stream, parts in pieces]


async def read_chunks(source: bytes | BinaryIO, size: int) -> AsyncIterator[bytes]:
    """Bytes as they are, or a binary file as its content comes, in pieces of at most `size`."""
    if isinstance(source, bytes):
        for start in range(0, len(source), size):
            yield source[start : start + size]
        return
    # `read` of a buffered file would wait for `size` bytes; a person at a terminal types fewer.
    read = getattr(source, "read1", source.read)
    while chunk := await run_sync(read, size, abandon_on_cancel=True):
        yield chunk
