"""Output in bounded memory: what is kept where, what is lost, and that the order stays."""

from __future__ import annotations

import random

import anyio
import pytest

from ms_enclave.boxes import _output_log
from ms_enclave.boxes._output_log import MEMORY, OutputLog, Stream, Tail

KEEP = 4 * MEMORY


class MemoryShelf:
    """Holds blocks as a sandbox's files would; a test spoils or refuses them."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        self.full = False

    async def put(self, number: int, block: bytes) -> bool:
        await anyio.lowlevel.checkpoint()
        if not self.full:
            self.blocks[number] = block
        return not self.full

    async def get(self, number: int, size: int) -> bytes | None:
        await anyio.lowlevel.checkpoint()
        block = self.blocks.get(number)
        return None if block is None else block[:size]

    async def drop(self, number: int) -> None:
        self.blocks.pop(number, None)


def held(log: OutputLog) -> int:
    """What the log costs in memory, by its own account and by ours."""
    pieces = log._pieces  # pyright: ignore[reportPrivateUsage]
    cost = sum(len(piece.data) + _output_log._PIECE for piece in pieces)  # pyright: ignore[reportPrivateUsage]
    assert cost == log._cost  # pyright: ignore[reportPrivateUsage]
    return cost


async def test_everything_is_read_back_in_order_wherever_it_is() -> None:
    chosen = random.Random(7)
    shelf = MemoryShelf()
    log = OutputLog(shelf, KEEP)
    printed: list[tuple[Stream, bytes]] = []
    while log.end < 3 * MEMORY:
        stream: Stream = chosen.choice(("stdout", "stderr"))
        data = chosen.randbytes(chosen.choice((1, 3, 100, 5000, 65536)))
        printed.append((stream, data))
        await log.append(stream, data)
        assert held(log) <= MEMORY
    assert shelf.blocks
    for after in (0, 1, 12345, MEMORY, log.end - 1):
        pieces = await log.read(after, log.end)
        assert pieces[0].start == after
        assert b"".join(piece.data for piece in pieces) == b"".join(d for _, d in printed)[after:]
    for name in ("stdout", "stderr"):
        own = b"".join(piece.data for piece in await log.read(0, log.end) if piece.stream == name)
        assert own == b"".join(data for stream, data in printed if stream == name)


async def test_bytes_one_by_one_cost_no_more_memory_than_many_at_once() -> None:
    shelf = MemoryShelf()
    log = OutputLog(shelf, KEEP)
    for number in range(30_000):
        await log.append("stdout" if number % 2 else "stderr", b"x")
        assert number % 500 or held(log) <= MEMORY
    pieces = await log.read(0, 1 << 20)
    assert pieces[-1].end == 30_000
    assert 1 << 13 < len(pieces) < (KEEP + MEMORY) // 65


async def test_no_more_is_kept_than_was_said() -> None:
    shelf = MemoryShelf()
    log = OutputLog(shelf, KEEP)
    for _ in range(100):
        await log.append("stdout", bytes(65536))
    assert sum(map(len, shelf.blocks.values())) <= KEEP + 2 * MEMORY
    (first, *_) = await log.read(0, 1)
    assert log.end - KEEP - MEMORY < first.start <= log.end - KEEP + MEMORY // 10


async def test_a_read_gives_no_more_than_was_asked_for() -> None:
    log = OutputLog(MemoryShelf(), KEEP)
    await log.append("stdout", b"0123456789")
    await log.append("stderr", b"abcdef")
    pieces = await log.read(7, 5)
    assert [(piece.stream, piece.data, piece.end) for piece in pieces] == [
        ("stdout", b"789", 10), ("stderr", b"ab", 12),
    ]  # fmt: skip
    assert await log.read(16, 5) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: b"",
        lambda block: block[:-1],
        lambda block: block + b"x",
        lambda block: b"\xff" + block[1:],
        lambda block: block[:1] + b"\xff\xff\xff\xff" + block[5:],
        lambda block: bytes(len(block)),
        lambda block: block[:-1] + b"n",
        lambda block: None,
    ],
    ids=["empty", "short", "long", "stream", "length", "zeros", "byte", "gone"],
)
async def test_a_block_that_is_not_what_was_put_there_is_lost(spoil) -> None:
    shelf = MemoryShelf()
    log = OutputLog(shelf, KEEP)
    for _ in range(10):
        await log.append("stdout", b"y" * 65536)
    first = min(shelf.blocks)
    whole = await log.read(0, log.end)
    spoilt = spoil(shelf.blocks.pop(first))
    if spoilt is not None:
        shelf.blocks[first] = spoilt
    pieces = await log.read(0, log.end)
    if spoil(b"12345678") == b"12345678x":  # what is beyond what was put there is not even read
        assert pieces == whole
    else:
        assert pieces[0].start > 0
        assert all(set(piece.data) == {ord("y")} for piece in pieces)


async def test_output_that_cannot_be_put_away_is_lost_and_the_rest_goes_on() -> None:
    shelf = MemoryShelf()
    shelf.full = True
    log = OutputLog(shelf, KEEP)
    for _ in range(50):
        await log.append("stdout", b"z" * 65536)
        assert held(log) <= MEMORY
    (first, *_) = await log.read(0, log.end)
    assert log.end - MEMORY <= first.start < log.end


async def test_whoever_waits_is_woken_by_output_and_by_the_end() -> None:
    log = OutputLog(MemoryShelf(), KEEP)
    told: list[int] = []

    async def wait(cursor: int) -> None:
        await log.wait_beyond(cursor)
        told.append(cursor)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 0)
        group.start_soon(wait, 5)
        await anyio.wait_all_tasks_blocked()
        await log.append("stdout", b"abc")
        await anyio.wait_all_tasks_blocked()
        assert told == [0]
        log.finish()
    assert told == [0, 5]


async def test_dropped_it_leaves_no_block() -> None:
    shelf = MemoryShelf()
    log = OutputLog(shelf, KEEP)
    for _ in range(10):
        await log.append("stdout", bytes(65536))
    await log.drop()
    assert shelf.blocks == {}


@pytest.mark.parametrize(
    ("chunks", "limit", "text", "lost"),
    [
        ([b"abc"], 10, "abc", 0),
        ([b"abc", b"def"], 4, "cdef", 2),
        ([b"a" * 10], 3, "aaa", 7),
        (["aé".encode()], 1, "", 3),
        (["é€x".encode()], 3, "x", 5),
        ([b"\xff\xfe"], 10, "\ufffd\ufffd", 0),
        ([b"abc"], 0, "", 3),
    ],
)
def test_a_tail_is_the_end_of_what_came(
    chunks: list[bytes], limit: int, text: str, lost: int
) -> None:
    tail = Tail(limit)
    for chunk in chunks:
        tail.feed(chunk)
    assert tail.text() == (text, lost)
    assert tail.total == sum(map(len, chunks))


def test_a_tail_counts_what_never_reached_it() -> None:
    tail = Tail(10)
    tail.miss(100)
    tail.feed(b"abc")
    assert (tail.text(), tail.total) == (("abc", 100), 103)
