"""A guest that comes through standard input, in an interpreter that has no file of ours."""

from __future__ import annotations

import functools
import importlib.util
import io
import marshal
import os
import socket
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest
from anyio.abc import ByteStream
from typing_extensions import override

from ms_enclave.boxes import _docker_direct as direct
from ms_enclave.channel import guest_loader
from ms_enclave.channel.guest import GuestConnection
from ms_enclave.channel.process import SpawnRequest
from ms_enclave.guest import kills, loader, protocol
from ms_enclave.spawner import _calls as calls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


PAYLOAD = guest_loader.payload()


class Pipes(ByteStream):
    """A child's standard input and output."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        self.source, self.target = child.stdout, child.stdin
        for file in (self.source, self.target):
            os.set_blocking(file.fileno(), False)

    @override
    async def receive(self, max_bytes: int = 65536) -> bytes:
        await anyio.wait_readable(self.source)
        data = os.read(self.source.fileno(), max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    @override
    async def send(self, item: bytes) -> None:
        while item:
            await anyio.wait_writable(self.target)
            item = item[os.write(self.target.fileno(), item) :]

    @override
    async def send_eof(self) -> None:
        self.target.close()

    @override
    async def aclose(self) -> None:
        for file in (self.source, self.target):
            if not file.closed:
                anyio.notify_closing(file)
                file.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(
        guest_loader.argv(sys.executable),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=tempfile.gettempdir(), env={"PATH": os.defpath},
    )  # fmt: skip
    yield started
    for file in (started.stdin, started.stdout, started.stderr):
        assert file is not None
        file.close()
    started.wait(10)


async def test_it_serves_and_ends_with_its_channel(child: subprocess.Popen[bytes]) -> None:
    stream = Pipes(child)
    await stream.send(PAYLOAD)
    guest = GuestConnection(stream)
    await guest.connect()
    request = SpawnRequest(
        argv=("sh", "-c", "echo out; echo err >&2; exit 3"), cwd="/",
        env={"PATH": os.defpath},
    )  # fmt: skip
    process = await guest.spawn(request)
    assert await process.stdout.receive() == b"out\n"
    assert await process.stderr.receive() == b"err\n"
    assert (await process.wait()).exit_code == 3
    await process.aclose()
    await guest.aclose()
    assert await anyio.to_thread.run_sync(child.wait, 10) == 0


async def test_programs_have_nothing_of_its_channel(child: subprocess.Popen[bytes]) -> None:
    stream = Pipes(child)
    await stream.send(PAYLOAD)
    guest = GuestConnection(stream)
    await guest.connect()
    request = SpawnRequest(
        argv=("ls", "/proc/self/fd"), cwd="/", env={"PATH": os.defpath}
    )  # fmt: skip
    process = await guest.spawn(request)
    assert (await process.stdout.receive()).split() == [b"0", b"1", b"2", b"3"]
    await process.wait()
    await process.aclose()
    await guest.aclose()


SECRET = direct.new_secret()


async def offered(stream: Pipes) -> int:
    """The number of the descriptor that a guest offers to whoever has told it a secret."""
    await stream.send(guest_loader.payload(SECRET))
    words = b""
    while len(words) < 8:
        words += await stream.receive(8 - len(words))
    return int(words)


async def test_it_can_be_reached_by_a_socket_of_the_hosts(child: subprocess.Popen[bytes]) -> None:
    stream = Pipes(child)
    number = await offered(stream)
    take = functools.partial(anyio.to_thread.run_sync, direct.take_socket)
    held = os.pidfd_open(child.pid)
    try:
        assert await take(held, 0, SECRET) is None, "a pipe"
        assert await take(held, number, b"?" * len(SECRET)) is None
        link = await take(held, number, SECRET)
    finally:
        os.close(held)
    assert link is not None
    guest = GuestConnection(link)
    await guest.connect()
    await stream.aclose()  # it is not needed any more
    assert await guest.exists("/")
    request = SpawnRequest(
        argv=("sh", "-c", "echo /proc/self/fd/*"), cwd="/", env={"PATH": os.defpath}
    )
    process = await guest.spawn(request)
    seen = (await process.stdout.receive()).split()
    assert [os.path.basename(name) for name in seen][:3] == [b"0", b"1", b"2"]
    assert len(seen) <= 4
    await process.wait()
    await process.aclose()
    await guest.aclose()
    assert await anyio.to_thread.run_sync(child.wait, 10) == 0


async def test_it_serves_as_before_where_the_host_cannot(child: subprocess.Popen[bytes]) -> None:
    stream = Pipes(child)
    await offered(stream)
    guest = GuestConnection(stream)
    await guest.connect()
    assert await guest.exists("/")
    await guest.aclose()
    assert await anyio.to_thread.run_sync(child.wait, 10) == 0


async def test_it_serves_as_before_where_no_socket_comes(child: subprocess.Popen[bytes]) -> None:
    """As where a security module lets a message through, and not what is attached to it."""
    stream = Pipes(child)
    number = await offered(stream)
    held = os.pidfd_open(child.pid)
    taken = calls.pidfd_getfd(held, number)
    os.close(held)
    with socket.socket(fileno=taken) as theirs:
        theirs.send(b"\0")
        guest = GuestConnection(stream)
        await guest.connect()
        assert await guest.exists("/")
        await guest.aclose()
    assert await anyio.to_thread.run_sync(child.wait, 10) == 0


async def test_it_ends_where_the_host_ends_before_it_says_which(
    child: subprocess.Popen[bytes],
) -> None:
    stream = Pipes(child)
    await offered(stream)
    await stream.aclose()
    assert await anyio.to_thread.run_sync(child.wait, 10) == 0


def test_an_interpreter_that_reads_other_code_compiles_the_sources() -> None:
    parts = io.BytesIO(PAYLOAD)
    for _ in range(2):
        size = int(parts.read(8))
        part = parts.read(size)
    sources, made_for, compiled = marshal.loads(part)
    assert made_for == loader.reads()
    assert sorted(sources) == sorted(compiled)
    for known in (compiled, None):
        finder = loader.Finder(sources, known)
        spec = finder.find_spec("guest.protocol")
        module = importlib.util.module_from_spec(spec)
        finder.exec_module(module)
        assert module.VERSION == protocol.VERSION
        assert module.encode.__code__.co_filename == "<guest.protocol>"


def test_it_ends_where_nobody_sends_it(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.write(PAYLOAD[:1000])
    child.stdin.close()
    assert child.wait(10) == 0


def test_what_came_through_memory_is_all_of_the_guest() -> None:
    assert b"container" in PAYLOAD
    assert PAYLOAD[:8].isdigit()


def test_limits_that_were_reached_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    (tmp_path / "pids").mkdir()
    (tmp_path / "pids" / "pids.events").write_text("max 5\n")
    monkeypatch.setattr(kills, "_GROUPS", str(tmp_path))
    monkeypatch.setattr(kills, "_open", {})
    assert kills.counts() == {}
    kills.start()
    before = kills.counts()
    assert before == {"oom": 1, "processes": 5}
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 2\n")
    assert kills.risen(before) == ["oom"]
    assert kills.risen({}) == []
    for descriptor, _ in kills._open.values():
        os.close(descriptor)
