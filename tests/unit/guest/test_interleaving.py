"""Many calls of all kinds at the same time, given up at any moment: each gets its own answer."""

from __future__ import annotations

import asyncio
import io
import os
import random
import tarfile
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.channel import SpawnRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.guests import Guest

ENV = {"PATH": os.defpath}


class Mix:
    """Calls whose results tell whether anything was mixed up."""

    def __init__(self, guest: Guest, rng: random.Random) -> None:
        self.guest = guest
        self.connection = guest.connection
        self.rng = rng
        self.done = 0

    async def write_and_read(self, name: str, data: bytes) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 40_000):
                await asyncio.sleep(0)
                yield data[start : start + 40_000]

        assert await self.connection.write(name, pieces()) == len(data)
        read = b"".join([chunk async for chunk in self.connection.read(name)])
        assert read == data

    async def run(self, name: str, data: bytes) -> None:
        process = await self.connection.spawn(
            SpawnRequest(argv=("sh", "-c", f"cat; echo {name} >&2"), cwd=".", env=ENV, stdin=True)
        )
        try:
            assert process.stdin is not None
            async with anyio.create_task_group() as group:
                group.start_soon(self._feed, process.stdin, data)
                out = await _all(process.stdout)
            assert out == data
            assert await _all(process.stderr) == name.encode() + b"\n"
            assert (await process.wait()).exit_code == 0
        finally:
            with anyio.CancelScope(shield=True):
                await process.aclose()

    @staticmethod
    async def _feed(stream: anyio.abc.ByteSendStream, data: bytes) -> None:
        await stream.send(data)
        await stream.aclose()

    async def archive(self, name: str, data: bytes) -> None:
        async def source() -> AsyncIterator[bytes]:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                info = tarfile.TarInfo("inner")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            yield buffer.getvalue()

        await self.connection.put_archive(name, source())
        found = b"".join([chunk async for chunk in self.connection.get_archive(name)])
        with tarfile.open(fileobj=io.BytesIO(found)) as tar:
            assert tar.extractfile("inner").read() == data  # pyright: ignore[reportOptionalMemberAccess]
        assert [match.line for match in await self.connection.search("^needle", name)] == []
        await self.connection.remove(name, recursive=True)

    async def one(self, number: int) -> None:
        kind = self.rng.choice([self.write_and_read, self.run, self.archive])
        data = self.rng.randbytes(self.rng.choice([0, 10, 70_000, 600_000]))
        given_up = self.rng.random() < 0.4
        pause = self.rng.random() * 0.1 if given_up else None
        with anyio.move_on_after(pause):
            await kind(f"n{number}", data)
            self.done += 1


async def _all(stream: anyio.abc.ByteReceiveStream) -> bytes:
    data = bytearray()
    try:
        while True:
            data += await stream.receive()
    except anyio.EndOfStream:
        return bytes(data)


@pytest.mark.parametrize("seed", range(3))
async def test_calls_of_all_kinds_at_once_are_never_mixed_up(guest: Guest, seed: int) -> None:
    mix = Mix(guest, random.Random(seed))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(mix.one, number)
        assert mix.done > 20
        # Every number was freed, and so was everything that the guest held for it.
        while guest.connection._connection._calls:
            await asyncio.sleep(0.01)
        assert await guest.connection.exists(".")
        while len(os.listdir(f"/proc/{guest.child.pid}/fd")) > 10:
            await asyncio.sleep(0.01)
