"""The host's end against guests that are silent, slow, or send what they must not."""

from __future__ import annotations

import asyncio
import errno
import json
import random
import socket
import struct
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_enclave.channel import ProtocolError, SpawnRequest
from ms_enclave.channel._connection import MAX_CALLS, MAX_LASTING, MAX_WIDE
from ms_enclave.errors import ConfigError, EnclaveError, PortRefusedError, SandboxLostError
from ms_enclave.guest import protocol
from ms_enclave.guest.protocol import Decoder, encode
from tests.support.guests import hostile_guest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from ms_enclave.channel.guest import GuestConnection

MIB = 1 << 20
GREETING = encode(protocol.HELLO, 0, protocol.dump({"version": protocol.VERSION}))


class Far:
    """The guest's end, by hand."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.decoder = Decoder()
        self.frames: list[protocol.Frame] = []

    async def send(self, *frames: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, b"".join(frames))

    async def next(self, kind: int) -> protocol.Frame:
        """The next frame of a kind; others are passed over."""
        while True:
            while self.frames:
                frame = self.frames.pop(0)
                if frame[0] == kind:
                    return frame
            data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
            assert data, "the host hung up"
            self.frames += self.decoder.feed(data)

    async def next_request(self) -> tuple[int, dict[str, Any]]:
        _, _, number, payload = await self.next(protocol.REQUEST)
        return number, json.loads(payload)


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[GuestConnection, Far]]:
    async with hostile_guest() as (connection, theirs):
        far = Far(theirs)
        await far.send(GREETING)
        await connection.connect()
        with anyio.fail_after(20):
            yield connection, far


def result(number: int, **body: Any) -> bytes:
    return encode(protocol.RESULT, number, protocol.dump(body))


def error(number: int, **body: Any) -> bytes:
    return encode(protocol.ERROR, number, protocol.dump(body))


async def read(connection: GuestConnection, path: str = "f") -> bytes:
    return b"".join([chunk async for chunk in connection.read(path)])


# --- the greeting ---


async def test_a_silent_guest_is_given_up_after_the_time_that_was_given() -> None:
    async with hostile_guest() as (connection, _):
        with pytest.raises(SandboxLostError, match=r"did not answer within 0\.05 s"):
            await connection.connect(0.05)
        with pytest.raises(SandboxLostError):
            await connection.exists("f")


async def test_a_guest_that_says_nothing_is_woken_while_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ms_enclave.channel._connection._PATIENCE", 0.01)
    woken = anyio.create_memory_object_stream[None](100)

    async def wake() -> None:
        woken[0].send_nowait(None)
        raise SandboxLostError("nobody there")  # what the calls learn anyway

    with anyio.fail_after(20):
        async with hostile_guest(wake=wake) as (connection, theirs):
            far = Far(theirs)
            async with anyio.create_task_group() as group:
                group.start_soon(connection.connect)
                await woken[1].receive()
                await far.send(GREETING)
            async with anyio.create_task_group() as group:
                group.start_soon(connection.exists, "f")
                number, _ = await far.next_request()
                await woken[1].receive()
                await woken[1].receive()
                await far.send(result(number, exists=True))
    woken[0].close()
    woken[1].close()


async def test_a_guest_whose_streams_are_idle_is_left_alone_until_it_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ms_enclave.channel._connection._PATIENCE", 0.01)
    woken = anyio.Event()

    async def wake() -> None:
        woken.set()

    with anyio.fail_after(20):
        async with hostile_guest(wake=wake) as (connection, theirs):
            far = Far(theirs)
            await far.send(GREETING)
            await connection.connect()
            async with anyio.create_task_group() as group:
                group.start_soon(connection.connect_port, 80)
                number, _ = await far.next_request()
                await far.send(encode(protocol.EVENT, number, protocol.dump({"connected": True})))
            woken = anyio.Event()
            with anyio.move_on_after(0.3):
                await woken.wait()
            assert not woken.is_set()
            async with anyio.create_task_group() as group:
                group.start_soon(connection.exists, "f")
                number, _ = await far.next_request()
                await woken.wait()
                await far.send(result(number, exists=True))


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        encode(protocol.HELLO, 0, b'{"version": 2}'),
        encode(protocol.HELLO, 0, b'{"version": "1"}'),
        encode(protocol.HELLO, 0, b"[]"),
        encode(protocol.HELLO, 0, b"{" * 1000),
        encode(protocol.RESULT, 1, b"{}"),
        GREETING + GREETING,
    ],
    ids=["http", "version", "version-text", "no-object", "no-json", "no-hello", "twice"],
)
async def test_a_greeting_that_is_none_is_refused(greeting: bytes) -> None:
    async with hostile_guest() as (connection, theirs):
        await asyncio.get_running_loop().sock_sendall(theirs, greeting)
        with pytest.raises(ProtocolError):
            await connection.connect()
            await connection.exists("f")


async def test_a_guest_that_hangs_up_is_lost() -> None:
    async with connected() as (connection, far):
        call = asyncio.create_task(connection.exists("f"))
        await far.next_request()
        far.socket.close()
        with pytest.raises(SandboxLostError):
            await call
        with pytest.raises(SandboxLostError):
            await connection.exists("f")


# --- errors ---


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EISDIR, IsADirectoryError),
        (errno.ENOTDIR, NotADirectoryError),
        (errno.EACCES, PermissionError),
        (errno.EEXIST, FileExistsError),
        (errno.ENOSPC, OSError),
    ],
)
async def test_an_errno_becomes_its_exception_with_the_callers_path(
    number: int, kind: type[OSError]
) -> None:
    async with connected() as (connection, far):
        call = asyncio.create_task(connection.stat("the path"))
        name, _ = await far.next_request()
        await far.send(error(name, errno=number, filename="/etc/passwd", text="guest's words"))
        with pytest.raises(kind) as failed:
            await call
        assert (failed.value.errno, failed.value.filename) == (number, "the path")
        assert "guest's words" not in str(failed.value)


@pytest.mark.parametrize(
    "number",
    [errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE, errno.EINTR, 0, -1, 10**30, "x", None],
)
async def test_an_errno_outside_of_the_table_is_an_input_output_error(number: Any) -> None:
    async with connected() as (connection, far):
        call = asyncio.create_task(connection.stat("f"))
        name, _ = await far.next_request()
        await far.send(error(name, errno=number))
        with pytest.raises(OSError) as failed:  # noqa: PT011
            await call
        assert type(failed.value) is OSError
        assert failed.value.errno == errno.EIO


async def test_a_refusal_is_the_callers_mistake_and_its_text_is_cut() -> None:
    async with connected() as (connection, far):
        call = asyncio.create_task(connection.stat("f"))
        name, _ = await far.next_request()
        await far.send(error(name, refused="why\ud800" + "x" * 50_000))
        with pytest.raises(ConfigError) as failed:
            await call
        assert len(str(failed.value)) < 1100
        assert str(failed.value).encode()


# --- garbage ---

BAD_STATS: list[dict[str, Any]] = [
    {},
    {"type": "file"},
    {"type": "door", "size": 1, "mode": 1, "modified": 1},
    {"type": "file", "size": -1, "mode": 1, "modified": 1},
    {"type": "file", "size": "1", "mode": 1, "modified": 1},
    {"type": "file", "size": 1, "mode": 1 << 70, "modified": 1},
    {"type": "file", "size": 1, "mode": 1, "modified": 1e300},
    {"type": "file", "size": True, "mode": 1, "modified": 1},
    {"type": ["file"], "size": 1, "mode": 1, "modified": 1},
]


@pytest.mark.parametrize("body", BAD_STATS)
async def test_a_file_that_is_described_wrongly_ends_the_connection(body: dict[str, Any]) -> None:
    async with connected() as (connection, far):
        call = asyncio.create_task(connection.stat("f"))
        number, _ = await far.next_request()
        await far.send(result(number, **body))
        with pytest.raises(ProtocolError):
            await call
        with pytest.raises(SandboxLostError):
            await connection.exists("f")


GOOD = {"type": "file", "size": 1, "mode": 1, "modified": 1}


@pytest.mark.parametrize(
    "page",
    [
        {},
        [1],
        [[]],
        [["a"]],
        [[1, GOOD]],
        [["../a", GOOD]],
        [["/a", GOOD]],
        [["a/../../b", GOOD]],
        [["a\0", GOOD]],
        [["", GOOD]],
        [["a//b", GOOD]],
        [["a", GOOD]] * 20,
    ],
)
async def test_a_listing_that_is_none_or_leads_out_ends_the_connection(page: Any) -> None:
    async with connected() as (connection, far):
        call = asyncio.create_task(connection.list("d", limit=10))
        number, _ = await far.next_request()
        await far.send(encode(protocol.DATA, number, protocol.dump(page)))
        with pytest.raises(ProtocolError):
            await call


@pytest.mark.parametrize(
    "frames",
    [
        [encode(protocol.RESULT, 99, b"{}")],
        [encode(protocol.DATA, 99, b"x")],
        [encode(protocol.REQUEST, 1, b"{}")],
        [encode(protocol.CANCEL, 1)],
        [encode(protocol.RESULT, 1, b"[")],
        [encode(protocol.ERROR, 1, b"7")],
        [encode(protocol.RESULT, 1, b"{}")] * 2,
        [encode(protocol.DATA, 1, bytes(65536))] * 5,
        [encode(protocol.END, 1), encode(protocol.DATA, 1, b"x")],
        [encode(protocol.END, 1)] * 2,
        [protocol.encode_credit(1, 1)],
        [protocol.encode_credit(1, 0)],
        [encode(protocol.EVENT, 1, b"{}")] * 50,
        [b"\x00" * 12],
        [encode(protocol.DATA, 1, b"x" * 100)[:50] + b"noise" * 30],
    ],
    ids=[
        "unknown-call", "data-unknown-call", "request", "cancel", "no-json", "no-object",
        "two-results", "more-than-the-window", "data-after-end", "two-ends", "credit-beyond",
        "credit-zero", "events", "zeros", "noise",
    ],
)  # fmt: skip
async def test_a_frame_that_breaks_the_rules_ends_every_call(frames: list[bytes]) -> None:
    async with connected() as (connection, far):
        calls = [asyncio.create_task(connection.exists("f"))]
        await far.next_request()
        calls.append(asyncio.create_task(read(connection)))
        calls.append(asyncio.create_task(connection.write("f", bytes(10 * MIB))))
        await far.next_request()
        await far.send(*frames, b"")
        for call in calls[1:]:
            with pytest.raises(ProtocolError):
                await call
        await asyncio.wait(calls)
        calls[0].exception()


@pytest.mark.parametrize(
    "events",
    [
        [{"pid": "1"}],
        [{"pid": -1}],
        [{}],
        [{"exit": 0}],
        [{"pid": 1}, {"exit": 256, "cpu_user": 0, "cpu_system": 0}],
        [{"pid": 1}, {"exit": 0, "signal": "9", "cpu_user": 0, "cpu_system": 0}],
        [{"pid": 1}, {"exit": 0, "signal": 9, "cpu_user": -1, "cpu_system": 0}],
        [{"pid": 1}, {"exit": 0, "signal": 9, "cpu_user": "1", "cpu_system": 0}],
        [{"pid": 1}, {"exit": 0, "cpu_user": 0, "cpu_system": 0, "peak_memory": -1}],
    ],
)
async def test_an_event_that_is_none_ends_the_connection(events: list[dict[str, Any]]) -> None:
    async with connected() as (connection, far):

        async def use() -> None:
            process = await connection.spawn(SpawnRequest(argv=("true",)))
            try:
                await process.wait()
            finally:
                await process.aclose()

        call = asyncio.create_task(use())
        number, _ = await far.next_request()
        await far.send(*[encode(protocol.EVENT, number, protocol.dump(event)) for event in events])
        with pytest.raises(ProtocolError):
            await call


async def test_a_program_that_ends_without_a_word_is_lost_and_not_fine() -> None:
    async with connected() as (connection, far):
        call = asyncio.create_task(connection.spawn(SpawnRequest(argv=("true",))))
        number, _ = await far.next_request()
        await far.send(encode(protocol.EVENT, number, b'{"pid": 7}'), result(number))
        process = await call
        with pytest.raises(SandboxLostError):
            await process.wait()
        await process.kill()
        await process.aclose()


# --- cancelling ---


async def test_a_cancelled_call_is_given_up_on_both_sides_and_its_number_freed() -> None:
    async with connected() as (connection, far):
        with anyio.move_on_after(0.05):
            await connection.exists("f")
        number, _ = await far.next_request()
        assert (await far.next(protocol.CANCEL))[2] == number
        assert list(connection._connection._calls) == [number]
        call = asyncio.create_task(connection.exists("g"))
        other, _ = await far.next_request()
        await far.send(error(number, cancelled=True), result(other, exists=True))
        assert await call is True
        assert connection._connection._calls == {}


async def test_what_comes_for_a_call_that_was_given_up_is_dropped() -> None:
    async with connected() as (connection, far):
        chunks = connection.read("f")
        task = asyncio.create_task(anext(chunks))
        number, _ = await far.next_request()
        await far.send(encode(protocol.DATA, number, b"x"))
        assert await task == b"x"
        await chunks.aclose()
        await far.send(encode(protocol.DATA, number, bytes(60_000)))
        call = asyncio.create_task(connection.exists("g"))
        other, _ = await far.next_request()
        await far.send(result(other, exists=False))
        assert await call is False
        [held] = connection._connection._calls.values()
        assert not any(inbox.chunks for inbox in held._inboxes)


async def test_a_write_that_is_cancelled_half_way_leaves_no_half_frame() -> None:
    async with connected() as (connection, far):
        with anyio.move_on_after(0.05):
            await connection.write("f", bytes(10 * MIB))
        number, _ = await far.next_request()
        assert (await far.next(protocol.CANCEL))[2] == number
        await far.send(error(number, cancelled=True))
        call = asyncio.create_task(connection.exists("g"))
        other, _ = await far.next_request()
        await far.send(result(other, exists=True))
        assert await call is True


async def test_a_source_that_fails_ends_the_call_with_its_own_error() -> None:
    async def broken() -> AsyncGenerator[bytes]:
        yield b"x"
        raise LookupError("source")

    async with connected() as (connection, far):
        with pytest.raises(LookupError, match="source"):
            await connection.write("f", broken())
        await far.next(protocol.CANCEL)


async def test_a_write_that_fails_early_does_not_ask_for_the_rest() -> None:
    asked = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal asked
        while True:
            asked += 1
            yield bytes(10_000)

    async with connected() as (connection, far):
        call = asyncio.create_task(connection.write("f", endless()))
        number, _ = await far.next_request()
        await far.send(error(number, errno=errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            await call
        assert asked < 100 + protocol.WIDE_WINDOW // 10_000


async def test_more_calls_than_there_are_numbers_for_wait_and_end_with_the_connection() -> None:
    async with connected() as (connection, far):
        calls = [asyncio.create_task(connection.exists("f")) for _ in range(600)]
        await asyncio.sleep(0.1)
        assert len(connection._connection._calls) == 500
        first, _ = await far.next_request()
        await far.send(result(first, exists=True))
        while not calls[0].done():
            await asyncio.sleep(0.001)
        far.socket.close()
        for call in calls[1:]:
            with pytest.raises(SandboxLostError):
                await call


async def test_closing_ends_calls_and_may_be_done_twice() -> None:
    async with connected() as (connection, far):
        call = asyncio.create_task(connection.exists("f"))
        await far.next_request()
        await connection.aclose()
        with pytest.raises(SandboxLostError):
            await call
        await connection.aclose()


# --- bounded memory ---


async def test_a_guest_that_never_reads_costs_no_more_than_a_window() -> None:
    async with connected() as (connection, _far):
        tracemalloc.start()
        data = bytes(50 * MIB)
        writes = [asyncio.create_task(connection.write("f", data)) for _ in range(8)]
        before = tracemalloc.get_traced_memory()[0]
        await asyncio.sleep(0.3)
        assert tracemalloc.get_traced_memory()[0] - before < 8 * MIB
        tracemalloc.stop()
        for write in writes:
            write.cancel()
        await asyncio.wait(writes)


async def test_who_reads_slowly_stops_the_guest_and_gets_everything() -> None:
    async with connected() as (connection, far):
        task = asyncio.create_task(read(connection))
        number, asked = await far.next_request()
        assert asked["wide"] is True
        window = credit = protocol.WIDE_WINDOW
        sent = 0
        while sent < 20 * MIB:
            if credit < 60_000:
                _, _, _, payload = await far.next(protocol.CREDIT)
                credit += protocol.load_credit(payload)
                assert credit <= window
                continue
            await far.send(encode(protocol.DATA, number, bytes(60_000)))
            credit -= 60_000
            sent += 60_000
        await far.send(result(number))
        assert len(await task) == sent


async def test_only_so_many_calls_have_wide_windows() -> None:
    async with connected() as (connection, far):
        tasks = [asyncio.create_task(read(connection)) for _ in range(MAX_WIDE + 1)]
        asked = [await far.next_request() for _ in tasks]
        assert [body.get("wide") for _, body in asked] == [True] * MAX_WIDE + [None]
        await far.send(result(asked[0][0]))  # its room is free again
        await tasks[0]
        tasks.append(asyncio.create_task(read(connection)))
        asked.append(await far.next_request())
        assert asked[-1][1]["wide"] is True
        for number, _ in asked[1:]:
            await far.send(result(number))
        await asyncio.gather(*tasks)


# --- a watch ---


@pytest.mark.parametrize(
    "entry",
    [
        ["a", "created"], ["a", "created", 1], ["a", "burnt", True], ["../a", "created", True],
        ["/a", "created", True], [1, "created", True], ["a", ["created"], True],
        ["a\0", "created", True],
    ],
    ids=repr,
)  # fmt: skip
async def test_a_change_that_is_none_ends_every_call(entry: list[Any]) -> None:
    async with connected() as (connection, far):
        watching = connection.watch("d")
        asking = asyncio.create_task(anext(watching))
        number, _ = await far.next_request()
        await far.send(encode(protocol.DATA, number, protocol.dump([entry])))
        with pytest.raises(ProtocolError):
            await asking


# --- ports ---


async def test_a_port_answers_for_itself() -> None:
    async with connected() as (connection, far):
        opening = asyncio.create_task(connection.connect_port(80))
        number, asked = await far.next_request()
        assert (asked["op"], asked["port"]) == ("connect", 80)
        await far.send(error(number, errno=errno.ECONNREFUSED))
        with pytest.raises(PortRefusedError, match="80"):
            await opening
        opening = asyncio.create_task(connection.connect_port(80))
        number, _ = await far.next_request()
        await far.send(error(number, errno=errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            await opening


@pytest.mark.parametrize(
    "frame",
    [
        lambda number: result(number),
        lambda number: encode(protocol.EVENT, number, protocol.dump({"connected": 1})),
        lambda number: encode(protocol.EVENT, number, protocol.dump({"pid": 1})),
    ],
    ids=["ended", "not-true", "another"],
)
async def test_a_connection_that_is_none_ends_every_call(frame: Callable[[int], bytes]) -> None:
    async with connected() as (connection, far):
        opening = asyncio.create_task(connection.connect_port(80))
        number, _ = await far.next_request()
        await far.send(frame(number))
        with pytest.raises(ProtocolError):
            await opening
        assert connection.is_lost


@pytest.mark.parametrize(
    "entry",
    [
        [80], [80, "a", 1, "x", 2], ["80", "a", 1, "x"], [True, "a", 1, "x"], [0, "a", 1, "x"],
        [65536, "a", 1, "x"], [80, 1, 1, "x"], [80, "a", "1", "x"], [80, "a", -1, "x"],
        [80, "a", 1 << 31, "x"], [80, "a", 1, 2],
    ],
    ids=repr,
)  # fmt: skip
async def test_a_port_that_is_none_ends_every_call(entry: list[Any]) -> None:
    async with connected() as (connection, far):
        asking = asyncio.create_task(connection.ports())
        number, _ = await far.next_request()
        await far.send(encode(protocol.DATA, number, protocol.dump([entry])))
        with pytest.raises(ProtocolError):
            await asking


async def test_what_a_guest_says_of_ports_is_cut() -> None:
    async with connected() as (connection, far):
        asking = asyncio.create_task(connection.ports())
        number, _ = await far.next_request()
        page = [[80, "a" * 9999, None, "\ud800" + "x" * 9999]]
        await far.send(encode(protocol.DATA, number, protocol.dump(page)), result(number))
        (found,) = await asking
        assert (len(found.address), len(found.process or "")) == (64, 64)
        found.model_dump_json()


async def test_more_ports_than_there_can_be_end_every_call() -> None:
    async with connected() as (connection, far):
        asking = asyncio.create_task(connection.ports())
        number, _ = await far.next_request()
        page = encode(protocol.DATA, number, protocol.dump([[80, "a", 1, "x"]] * 1000))
        with pytest.raises(ProtocolError):
            await asyncio.gather(asking, far.send(page * 9))


async def test_too_many_connections_are_refused_and_take_no_room_from_others() -> None:
    async with connected() as (connection, far):
        opening = [asyncio.create_task(connection.connect_port(80)) for _ in range(MAX_LASTING)]
        numbers = [(await far.next_request())[0] for _ in opening]
        with pytest.raises(OSError, match="are open") as caught:
            await connection.connect_port(80)
        assert caught.value.errno == errno.EMFILE
        others = [asyncio.create_task(connection.exists("f")) for _ in range(MAX_CALLS)]
        for _ in others:
            await far.send(result((await far.next_request())[0], exists=True))
        assert all(await asyncio.gather(*others))
        await far.send(*(error(number, errno=errno.ECONNREFUSED) for number in numbers))
        await asyncio.wait(opening)
        assert {type(task.exception()) for task in opening} == {PortRefusedError}
        again = asyncio.create_task(connection.connect_port(80))
        number, _ = await far.next_request()
        await far.send(encode(protocol.EVENT, number, protocol.dump({"connected": True})))
        (await again).close()


# --- fuzz ---


def _frame(kind: int, channel: int, call: int, payload: bytes) -> bytes:
    return struct.pack("!2sBBII", b"mE", kind, channel, call, len(payload)) + payload


BODIES = st.one_of(
    st.binary(max_size=30),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["pid", "exit", "errno", "size", "type", "exists", "stdin"]),
                inner,
                max_size=4,
            ),
        ),
        max_leaves=6,
    ).map(lambda body: protocol.dump(body)),
)
FRAMES = st.lists(
    st.builds(_frame, st.integers(0, 11), st.integers(0, 3), st.integers(0, 6), BODIES),
    max_size=10,
)


def _collect(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Examples to be used on a running loop, where hypothesis itself cannot run."""
    found: list[Any] = []

    @settings(max_examples=count, deadline=None, database=None)
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


async def _use(connection: GuestConnection) -> None:
    """Six calls, whose ends are all of the kinds that are allowed."""

    async def spawn() -> None:
        process = await connection.spawn(SpawnRequest(argv=("true",), stdin=True))
        try:
            await process.wait()
        finally:
            await process.aclose()

    uses: list[Callable[[], Awaitable[Any]]] = [
        lambda: connection.stat("f"),
        lambda: connection.list("d"),
        lambda: read(connection),
        lambda: connection.write("f", bytes(1000)),
        spawn,
        lambda: connection.search("x", "."),
    ]

    async def guarded(use: Callable[[], Awaitable[Any]]) -> None:
        try:
            await use()
        except (EnclaveError, OSError):
            return

    async with anyio.create_task_group() as group:
        for use in uses:
            group.start_soon(guarded, use)


async def _attack(noise: list[bytes]) -> None:
    async with connected() as (connection, far):
        task = asyncio.create_task(_use(connection))
        for _ in range(6):
            await far.next_request()
        try:
            for piece in noise:
                await far.send(piece)
                await asyncio.sleep(0)
            far.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # refused already
        await task


async def test_whatever_a_guest_sends_calls_end_with_a_typed_error() -> None:
    for frames in _collect(FRAMES, 150):
        await _attack(frames)


async def test_random_bytes_do_no_more() -> None:
    for noise in _collect(st.binary(max_size=300), 50):
        await _attack([noise])


async def test_frames_cut_and_changed_anywhere_do_no_more() -> None:
    rng = random.Random(7)
    whole = b"".join(
        [
            result(1, **GOOD),
            encode(protocol.DATA, 2, protocol.dump([["a", GOOD]])),
            result(2),
            encode(protocol.DATA, 3, b"x" * 50),
            result(3),
            protocol.encode_credit(4, 1000),
            result(4, written=1000),
            encode(protocol.EVENT, 5, b'{"pid": 3}'),
            encode(protocol.DATA, 5, b"out", 1),
            encode(protocol.EVENT, 5, b'{"exit": 0, "cpu_user": 0, "cpu_system": 0.5}'),
            result(5),
            result(6),
        ]
    )
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(rng.randint(0, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        cut = rng.randrange(len(changed) + 1)
        await _attack([bytes(changed[:cut]), bytes(changed[cut:])])
