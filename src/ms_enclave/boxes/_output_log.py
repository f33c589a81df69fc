"""What a command prints, in bounded memory: the newest here, the older in the sandbox's own files.

A cursor is a number of bytes: how many the command had printed, on all its streams together. The
files are hostile like everything inside: one that is not what was put there counts as lost.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio

from ms_enclave.boxes._execution import Capture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import Protocol

    class Shelf(Protocol):
        """Where older output is put. No method raises; what cannot be done counts as lost."""

        async def put(self, number: int, block: bytes) -> bool: ...
        async def get(self, number: int, size: int) -> bytes | None: ...
        async def drop(self, number: int) -> None: ...


__all__ = ["OutputLog", "Piece", "Stream", "Tail"]

Stream = Literal["stdout", "stderr", "pty"]

MEMORY = 256 << 10
"""Bytes of one command's output, and of the book-keeping of it, that the host holds at most."""

_BLOCK = MEMORY // 2
_PIECE = 64  # bytes that a piece costs beyond its data
_JOINED = 4096  # a shorter piece takes up what comes after it on the same stream
_CHARACTER = 4  # bytes at most
_HEAD = struct.Struct("!BI")
_STREAMS: tuple[Stream, ...] = ("stdout", "stderr", "pty")


@dataclass(frozen=True)
class Piece:
    """Bytes that were printed on one stream one after another."""

    start: int
    stream: Stream
    data: bytes

    @property
    def end(self) -> int:
        """The cursor after it."""
        return self.start + len(self.data)


@dataclass(frozen=True)
class _Block:
    """Older output that was put away."""

    number: int
    start: int
    end: int
    size: int
    cost: int
    digest: bytes
    """Of what was put there: what is inside may change it."""


class OutputLog:
    """All that is still known of what a command printed.

    One `append` at a time has the log; it waits while older output is put away, and with it
    whoever reads the program's pipes, so that what waits in memory stays bounded.

    Args:
        keep: bytes of output that are kept in all, in memory and outside; fewer, where they came in
            so small pieces that the book-keeping counts.
    """

    def __init__(self, shelf: Shelf, keep: int) -> None:
        self._shelf = shelf
        self._keep = keep
        self._pieces: deque[Piece] = deque()
        self._cost = 0
        self._blocks: deque[_Block] = deque()
        self._put_cost = 0
        self._numbers = 0
        self._lock = anyio.Lock()
        self._news: anyio.Event | None = None
        self.end = 0
        """Bytes that were printed."""
        self.totals: dict[Stream, int] = dict.fromkeys(_STREAMS, 0)
        self.finished = False
        """Nothing more will come."""

    @property
    def busy(self) -> bool:
        """Whether output is being put away or read."""
        return self._lock.locked()

    async def append(self, stream: Stream, data: bytes) -> None:
        """Take what was printed next."""
        async with self._lock:
            self._take(stream, data)
            self._tell()
            if self._cost > MEMORY:
                await self._put_away()

    def finish(self) -> None:
        """There will be no more."""
        self.finished = True
        self._tell()

    async def read(self, after: int, most: int) -> list[Piece]:
        """Pieces from a cursor on, at most so many bytes. The first may begin later: what is
        between is lost."""
        async with self._lock:
            found: list[Piece] = []
            async for piece in self._pieces_from(after):
                part = _part(piece, max(after, piece.start), most)
                found.append(part)
                most -= len(part.data)
                if not most:
                    break
            return found

    async def wait_beyond(self, cursor: int) -> None:
        """Wait until there is something after a cursor, or nothing more to come."""
        while self.end <= cursor and not self.finished:
            if self._news is None:
                self._news = anyio.Event()
            await self._news.wait()

    async def drop(self) -> None:
        """Forget everything."""
        async with self._lock:
            blocks, self._blocks = self._blocks, deque()
            self._pieces.clear()
            self._cost = self._put_cost = 0
            for block in blocks:
                await self._shelf.drop(block.number)

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    def _take(self, stream: Stream, data: bytes) -> None:
        last = self._pieces[-1] if self._pieces else None
        if last is not None and last.stream == stream and len(last.data) < _JOINED:
            self._pieces[-1] = Piece(last.start, stream, last.data + data)
            self._cost += len(data)
        else:
            self._pieces.append(Piece(self.end, stream, data))
            self._cost += len(data) + _PIECE
        self.end += len(data)
        self.totals[stream] += len(data)

    async def _put_away(self) -> None:
        """Move the older half to the shelf, and let go of what is too old."""
        moved: list[Piece] = []
        before = self._cost
        while self._cost > _BLOCK and self._pieces:
            piece = self._pieces.popleft()
            self._cost -= len(piece.data) + _PIECE
            moved.append(piece)
        content = b"".join(_packed(moved))
        self._numbers += 1
        block = _Block(
            self._numbers, moved[0].start, moved[-1].end, len(content), before - self._cost,
            _digest(content),
        )  # fmt: skip
        if await self._shelf.put(block.number, content):
            self._blocks.append(block)
            self._put_cost += block.cost
        while self._blocks and self._put_cost - self._blocks[0].cost + self._cost >= self._keep:
            oldest = self._blocks.popleft()
            self._put_cost -= oldest.cost
            await self._shelf.drop(oldest.number)

    async def _pieces_from(self, after: int) -> AsyncIterator[Piece]:
        for block in list(self._blocks):
            if block.end > after:
                content = await self._shelf.get(block.number, block.size)
                if content is None or _digest(content) != block.digest:
                    continue
                for piece in _unpacked(content, block.start):
                    if piece.end > after:
                        yield piece
        for piece in list(self._pieces):
            if piece.end > after:
                yield piece


class Tail(Capture):
    """The last `limit` bytes of one output stream and a count of what came before them."""

    _kept: bytearray
    _dropped: int

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the stream."""
        self._kept.extend(data)
        excess = max(0, len(self._kept) - self._limit)
        del self._kept[:excess]
        self._dropped += excess
        return data

    def miss(self, count: int) -> None:
        """So many bytes of it were lost before they came here."""
        self._dropped += count

    def text(self) -> tuple[str, int]:
        """The text kept (UTF-8, invalid bytes replaced) and the bytes lost before it."""
        kept, lost = bytes(self._kept), self._dropped
        if lost:  # then it may begin with the rest of a character
            none = len(kept) if len(kept) < _CHARACTER else 0
            rest = next(
                (n for n, byte in enumerate(kept[:_CHARACTER]) if byte & 0xC0 != 0x80), none
            )
            kept, lost = kept[rest:], lost + rest
        return kept.decode("utf-8", "replace"), lost


def _part(piece: Piece, start: int, most: int) -> Piece:
    begin = start - piece.start
    return Piece(start, piece.stream, piece.data[begin : begin + most])


def _packed(pieces: list[Piece]) -> Iterator[bytes]:
    for piece in pieces:
        yield _HEAD.pack(_STREAMS.index(piece.stream), len(piece.data))
        yield piece.data


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _unpacked(content: bytes, start: int) -> Iterator[Piece]:
    """The pieces of a block that is what was put away."""
    place = 0
    while place < len(content):
        kind, length = (int(value) for value in _HEAD.unpack_from(content, place))
        place += _HEAD.size
        yield Piece(start, _STREAMS[kind], content[place : place + length])
        place += length
        start += length
