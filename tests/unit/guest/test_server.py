"""The guest's end against hosts that make no sense: it stays bounded, and ends when it must."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ms_enclave.guest import protocol
from ms_enclave.guest.protocol import Decoder, encode
from tests.support.guests import end_guest, start_guest

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

HELLO = encode(protocol.HELLO, 0, protocol.dump({"version": protocol.VERSION}))
MIB = 1 << 20


class Raw:
    """A guest and a plain socket to it."""

    def __init__(self, child: subprocess.Popen[bytes], connected: socket.socket) -> None:
        self.child = child
        self.socket = connected
        self.socket.settimeout(20)
        self.decoder = Decoder()
        self.frames: list[protocol.Frame] = []

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def request(self, number: int, **body: Any) -> None:
        self.send(*protocol.encode_request(number, body))

    def next(self) -> protocol.Frame | None:
        """The next frame; None where the guest has hung up."""
        while not self.frames:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.frames += self.decoder.feed(data)
        return self.frames.pop(0)

    def end_of(self, number: int) -> protocol.Frame:
        while True:
            frame = self.next()
            assert frame is not None, "the guest hung up"
            if frame[2] == number and frame[0] in (protocol.RESULT, protocol.ERROR):
                return frame


@contextmanager
def raw_guest(python: str = sys.executable) -> Iterator[Raw]:
    with tempfile.TemporaryDirectory(prefix="guest-") as folder:
        child, ours = start_guest(python, folder)
        try:
            with ours:
                yield Raw(child, ours)
        finally:
            end_guest(child)
        assert os.listdir(folder) == []


def test_it_answers_a_greeting_and_ends_when_the_host_hangs_up(python: str) -> None:
    with raw_guest(python) as guest:
        guest.send(HELLO)
        frame = guest.next()
        assert frame is not None
        body = protocol.load_body(frame[3])
        assert body["version"] == protocol.VERSION
        assert body["pid"] == guest.child.pid


def test_an_operation_that_it_does_not_know_is_an_error_of_that_call_only(python: str) -> None:
    with raw_guest(python) as guest:
        guest.send(HELLO)
        guest.request(1, op="fly")
        guest.request(2)
        guest.request(3, op="exists", path="x")
        assert guest.end_of(1)[0] == protocol.ERROR
        assert guest.end_of(2)[0] == protocol.ERROR
        assert guest.end_of(3)[0] == protocol.RESULT


@pytest.mark.parametrize(
    "body",
    [
        {"op": "read"},
        {"op": "read", "path": 5},
        {"op": "read", "path": "\0"},
        {"op": "read", "path": "x", "offset": "1"},
        {"op": "read", "path": "/proc/self/status", "offset": -1},
        {"op": "read", "path": "/proc/self/status", "offset": 1 << 80},
        {"op": "list", "path": [], "limit": {}},
        {"op": "list", "path": ".", "limit": "x"},
        {"op": "search", "path": ".", "pattern": "(" * 500, "limit": 1},
        {"op": "search", "path": ".", "pattern": "a{99999999999}", "limit": 1},
        {"op": "write", "path": "x/" * 3000},
        {"op": "replace", "path": "x", "old": None, "new": ""},
        {"op": "spawn"},
        {"op": "spawn", "argv": [], "env": {}, "limits": {}, "cwd": "."},
        {"op": "spawn", "argv": ["a", 1], "env": {}, "limits": {}, "cwd": "."},
        {"op": "spawn", "argv": ["a"], "env": [], "limits": {}, "cwd": "."},
        {"op": "spawn", "argv": ["a"], "env": {}, "limits": {"cpu": "x"}, "cwd": "."},
        {"op": "spawn", "argv": ["a"], "env": {"a": None}, "limits": {}, "cwd": "."},
        {"op": "get_archive", "path": "\ud800"},
    ],
)
def test_a_request_without_sense_is_an_error_of_that_call_only(body: dict[str, Any]) -> None:
    with raw_guest() as guest:
        guest.send(HELLO)
        guest.request(1, **body)
        assert guest.end_of(1)[0] == protocol.ERROR
        guest.request(2, op="exists", path=".")
        assert guest.end_of(2)[0] == protocol.RESULT


@pytest.mark.parametrize("body", [{"op": "signal", "call": 9}, {"op": "kill", "call": 1}])
def test_a_signal_to_nobody_changes_nothing(body: dict[str, Any]) -> None:
    with raw_guest() as guest:
        guest.send(HELLO)
        guest.request(1, **body)
        assert guest.end_of(1)[0] == protocol.RESULT


@pytest.mark.parametrize(
    "frames",
    [
        [b"GET / HTTP/1.1\r\n\r\n"],
        [encode(protocol.REQUEST, 1, b"{}")],
        [encode(protocol.HELLO, 0, b'{"version": 99}')],
        [HELLO, encode(protocol.DATA, 5, b"x")],
        [HELLO, encode(protocol.REQUEST, 2, b"[")],
        [HELLO, encode(protocol.REQUEST, 2, b"{}"), encode(protocol.REQUEST, 2, b"{}")],
        [HELLO, encode(protocol.REQUEST, 2, b"{}"), encode(protocol.REQUEST, 1, b"{}")],
        [HELLO, encode(protocol.REQUEST, 1, b'{"op":"write","path":"/dev/full/x"}', 0)]
        + [encode(protocol.DATA, 1, bytes(65536))] * 20
        + [encode(protocol.RESULT, 1, b"{}"), encode(protocol.DATA, 9, b"")],
        [HELLO] + [encode(protocol.REQUEST, 1, bytes(65536), 1)] * 130,
    ],
    ids=[
        "http", "no-hello", "version", "unknown-call", "no-json", "twice", "backwards", "flood",
        "endless-request",
    ],
)  # fmt: skip
def test_a_host_that_breaks_the_protocol_is_hung_up_on(frames: list[bytes]) -> None:
    with raw_guest() as guest:
        try:
            guest.send(*frames)
        except (BrokenPipeError, ConnectionResetError):
            pass
        while guest.next() is not None:
            pass
        guest.child.wait(10)


def test_more_data_than_was_asked_for_breaks_the_protocol() -> None:
    with raw_guest() as guest:
        guest.send(HELLO)
        guest.request(1, op="spawn", argv=["sleep", "100"], env={}, limits={}, cwd=".", stdin=True)
        try:
            guest.send(*[encode(protocol.DATA, 1, bytes(65536))] * 30)
        except (BrokenPipeError, ConnectionResetError):
            pass
        while guest.next() is not None:
            pass


def test_more_calls_than_it_takes_are_refused_one_by_one() -> None:
    with raw_guest() as guest:
        guest.send(HELLO)
        for number in range(1, 1100):
            guest.request(number, op="read", path="/dev/zero" if number % 2 else "/proc/self/mem")
        ends = [guest.end_of(number)[0] for number in range(1, 1100)]
        assert set(ends) == {protocol.ERROR}
        guest.request(2000, op="exists", path=".")
        assert guest.end_of(2000)[0] == protocol.RESULT


def test_a_host_that_never_reads_stops_the_guest_in_bounded_memory() -> None:
    with raw_guest() as guest:
        guest.send(HELLO)
        guest.next()
        before = _memory(guest.child.pid)
        for number in range(1, 200):
            path = "/proc/self/status" if number % 2 else "/proc/kallsyms"
            guest.request(number, op="read", path=path)
        time.sleep(0.3)
        assert _memory(guest.child.pid) - before < 12 * MIB
        assert _ticks(guest.child.pid, 0.2) < 5  # it waits, it does not spin


def test_everything_that_was_started_ends_with_the_host() -> None:
    with raw_guest() as guest:
        guest.send(HELLO)
        code = "trap '' TERM HUP; sleep 1000 & setsid sleep 1000 & sleep 1000"
        guest.request(
            1, op="spawn", argv=["sh", "-c", code], env={"PATH": os.defpath}, limits={}, cwd="."
        )
        frame = guest.next()
        while frame is not None and frame[0] != protocol.EVENT:
            frame = guest.next()
    # The leak check of this test sees what stays.


def _memory(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _ticks(pid: int, seconds: float) -> int:
    def used() -> int:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used()
    time.sleep(seconds)
    return used() - before


# --- fuzz ---

OPERATIONS = st.sampled_from(
    ["read", "list", "stat", "exists", "search", "get_archive", "signal", "kill", "none"]
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 1 << 40), st.sampled_from([".", "x", "\0", "", "/"])
)
KEYS = st.sampled_from(["path", "limit", "offset", "depth", "pattern", "call", "signal"])
REQUESTS = st.builds(
    lambda op, body: protocol.dump({**body, "op": op}),
    OPERATIONS,
    st.dictionaries(KEYS, VALUES, max_size=4),
)
FRAMES = st.lists(
    st.tuples(
        st.integers(1, 9), st.integers(0, 2), st.integers(0, 4), st.one_of(st.binary(), REQUESTS)
    ),
    max_size=12,
)


def _encode(kind: int, channel: int, call: int, payload: bytes) -> bytes:
    if kind == protocol.HELLO:
        return HELLO
    if kind == protocol.CREDIT:
        return protocol.encode_credit(call or 1, len(payload))
    if kind in (protocol.END, protocol.CANCEL):
        payload = b""
    return encode(kind, call or 1, payload, channel)


@settings(max_examples=40, deadline=None)
@given(FRAMES)
def test_whatever_frames_come_it_serves_or_hangs_up(frames: list[Any]) -> None:
    _attack([HELLO, *[_encode(*frame) for frame in frames]])


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_end_it(noise: bytes, greeted: bool) -> None:
    _attack([HELLO * greeted, noise])


def test_requests_cut_and_changed_anywhere_do_no_harm() -> None:
    rng = random.Random(11)
    whole = HELLO + b"".join(
        [
            *protocol.encode_request(1, {"op": "list", "path": ".", "limit": 10}),
            *protocol.encode_request(2, {"op": "search", "path": ".", "pattern": "x", "limit": 3}),
            encode(protocol.CANCEL, 2),
            *protocol.encode_request(3, {"op": "read", "path": "/proc/self/status"}),
            protocol.encode_credit(3, 1000),
            *protocol.encode_request(4, {"op": "stat", "path": "."}),
        ]
    )
    for _ in range(25):
        changed = bytearray(whole)
        for _ in range(rng.randint(0, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        _attack([bytes(changed[: rng.randrange(len(changed) + 1)])])


def _attack(pieces: list[bytes]) -> None:
    """Send, hang up: the guest must end by itself, soon, with nothing left behind."""
    with raw_guest() as guest:
        try:
            for piece in pieces:
                guest.send(piece)
            guest.socket.shutdown(socket.SHUT_WR)
            while guest.next() is not None:
                pass
        except (BrokenPipeError, ConnectionResetError, OSError):
            pass
        guest.child.wait(10)
        assert guest.child.returncode in (0, None)


@pytest.mark.parametrize("leaves", [False, True], ids=["nothing", "something"])
def test_a_call_ends_with_its_program_or_with_what_that_left_running(leaves: bool) -> None:
    """In one piece: a host that heard of the program's end first would give the call up."""
    line = "sleep 1000 >/dev/null 2>&1 & echo $!" if leaves else "(exit 0 & wait); exit 3"
    with raw_guest() as guest:
        guest.send(HELLO)
        env = {"PATH": os.defpath}
        guest.request(1, op="spawn", argv=["sh", "-c", line], env=env, limits={}, cwd=".")
        printed, said = b"", {}
        while "exit" not in said:
            kind, _, _, payload = guest.next() or pytest.fail("the guest hung up")
            printed += payload if kind == protocol.DATA else b""
            said = protocol.load_body(payload) if kind == protocol.EVENT else said
        assert said["exit"] == (0 if leaves else 3)
        assert [frame[0] for frame in guest.frames] == ([] if leaves else [protocol.RESULT])
        if leaves:
            os.kill(int(printed), signal.SIGKILL)
            assert guest.end_of(1)[0] == protocol.RESULT


def test_what_a_brief_program_did_is_told_along_with_its_end(python: str) -> None:
    with raw_guest(python) as guest:
        guest.send(HELLO)
        assert guest.next() is not None
        body: dict[str, Any] = {"argv": ["true"], "env": {}, "limits": {}, "cwd": "."}
        for number in range(1, 101):  # on a busy machine some take longer than it waits
            guest.request(number, op="spawn", brief=True, **body)
            heard = guest.decoder.feed(guest.socket.recv(65536))
            kinds = [frame[0] for frame in heard]
            if kinds.count(protocol.EVENT) == 2 and kinds.count(protocol.END) == 2:
                break
            guest.frames += heard
            guest.end_of(number)
        else:
            pytest.fail("its start is always told alone")


@pytest.mark.parametrize("line", ["exec sleep 600", "exec sleep 600 >&- 2>&-"])
def test_that_a_program_runs_is_told_though_it_was_to_be_brief(python: str, line: str) -> None:
    with raw_guest(python) as guest:
        guest.send(HELLO)
        assert guest.next() is not None
        words = ["/bin/sh", "-c", line]
        body: dict[str, Any] = {"argv": words, "env": {}, "limits": {}, "cwd": "."}
        guest.request(1, op="spawn", brief=True, **body)
        frame = guest.next()
        assert frame is not None
        assert protocol.load_body(frame[3])["pid"] > 0
        for _ in range(line.count(">&-")):
            frame = guest.next()
            assert frame is not None
            assert frame[0] == protocol.END
        guest.request(2, op="kill", call=1)
        assert guest.end_of(1)[0] == protocol.RESULT
