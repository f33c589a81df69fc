"""What nobody wants of a pipe is let go of, counted, and not sooner than need be."""

from __future__ import annotations

import os
import subprocess
import sys

import anyio
import pytest

from ms_enclave.boxes._execution import Capture
from ms_enclave.spawner.pipes import PipeReader
from ms_enclave.spawner.terminal import TerminalReader

MIB = 1 << 20


async def test_what_is_passed_over_is_counted_to_the_end() -> None:
    reading, writing = os.pipe()
    reader = PipeReader(reading)
    os.write(writing, b"x" * 1000)
    assert await reader.pass_over() == 1000
    assert reader.drop() is None
    os.set_blocking(writing, False)
    count = os.write(writing, b"y" * 3 * MIB)
    assert count == MIB, "it has become that wide"
    assert await reader.pass_over() == count
    os.write(writing, b"z")
    os.close(writing)
    assert reader.drop() == 1
    assert reader.drop() == 0
    with pytest.raises(anyio.EndOfStream):
        await reader.pass_over()
    reader.close()
    with pytest.raises(anyio.ClosedResourceError):
        await reader.pass_over()


def test_who_has_kept_enough_only_counts() -> None:
    capture = Capture(4)
    capture.feed(b"abcdef")
    assert capture.exceeded
    capture.skip(10)
    assert (capture.total, capture.text()) == (16, ("abcd", 12))


CROWDED = """
import fcntl, os, sys
from ms_enclave.spawner.pipes import PipeReader
if os.geteuid() == 0:
    os.setresuid(54321, 54321, 54321)
pipes = []
try:
    while True:
        pipes.append(os.pipe())
        fcntl.fcntl(pipes[-1][0], 1031, 1 << 20)
except PermissionError:
    pass
except OSError:
    sys.exit("no such limit")
reader = PipeReader(pipes.pop()[0])
wide = reader.pause
reader.drop()
print(fcntl.fcntl(reader.fileno(), 1032) // 1024, wide / reader.pause)
"""


def test_where_a_user_has_little_room_in_pipes_less_is_let_go_of_more_often() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CROWDED], capture_output=True, text=True, check=False
    )
    if "no such limit" in done.stderr:
        pytest.skip("a user may have any room in pipes here")
    kib, times = done.stdout.split()
    assert 4 <= int(kib) < 1024, done.stderr
    assert float(times) * int(kib) == 1024


def test_nothing_is_let_go_of_from_a_terminal() -> None:
    assert PipeReader.drops
    assert not TerminalReader.drops
