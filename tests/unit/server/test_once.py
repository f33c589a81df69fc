"""What is asked for twice is made once, however much others ask for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ms_enclave.server import idempotency
from ms_enclave.server.idempotency import Once

if TYPE_CHECKING:
    import pytest


async def test_what_one_asks_for_has_nobody_elses_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency, "REMEMBERED", 2)
    once, made = Once(), list[str]()

    async def ask(who: str, key: str) -> bytes:
        async def make() -> bytes:
            made.append(f"{who} {key}")
            return b"%d" % len(made)

        return await once.do(who, key, b"", make)

    first = await ask("mine", "one")
    for number in range(10):
        await ask("theirs", str(number))
    assert await ask("mine", "one") == first
    before = len(made)
    await ask("theirs", "9")
    assert len(made) == before
    await ask("theirs", "0")  # which was long ago
    assert len(made) == before + 1


async def test_what_is_being_made_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "REMEMBERED", 2)
    once, made, may_end = Once(), list[str](), asyncio.Event()

    async def slow() -> bytes:
        made.append("slow")
        await may_end.wait()
        return b"slow"

    async def quick() -> bytes:
        return b"quick"

    asking = asyncio.ensure_future(once.do("mine", "slow", b"", slow))
    while not made:
        await asyncio.sleep(0)
    for number in range(10):
        await once.do("mine", str(number), b"", quick)
    again = asyncio.ensure_future(once.do("mine", "slow", b"", slow))
    await asyncio.sleep(0)
    may_end.set()
    assert await asking == await again == b"slow"
    assert made == ["slow"]
