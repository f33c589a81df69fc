"""A run gets the slot and the folders of an earlier one only if nothing of that one can be seen."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.spawner.launch import _SPARE_SLOTS  # pyright: ignore[reportPrivateUsage]
from tests.security.boxes import namespaces
from tests.support.parts import descendants_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(
        os.geteuid() != 0, reason="with one id only, no slot is used for a second run"
    ),
]

RUNS = 12

# To the nanosecond when a room was made: no other one has it.
WHICH = "import os; print(os.stat('.').st_mtime_ns)\n"

UNTRACED = {
    "nothing": "",
    "a look around": "os.listdir('.'), os.listdir('/proc'), os.stat('/dev/shm')",
    "an open file of another": "open('/etc/passwd').read()",
    "a file without a name": "os.open('.', os.O_TMPFILE | os.O_RDWR)",
    "a terminal": "os.openpty()",
}

TRACES = {
    "a file": "open('left', 'w').write('x')",
    "a file that is gone again": "open('gone', 'w'), os.unlink('gone')",
    "a folder in /tmp that is gone again": "os.mkdir('/tmp/gone'), os.rmdir('/tmp/gone')",
    "shared memory that is gone again": "open('/dev/shm/gone', 'w'), os.unlink('/dev/shm/gone')",
    "another mode": "os.chmod('.', 0o700)",
    "a mode that is put back": "os.chmod('.', 0o700), os.chmod('.', 0o755)",
    "an attribute": "os.setxattr('.', 'user.left', b'x')",
    "other times": "os.utime('.', (1, 1))",
    "times that are put back": "os.utime('.', ns=(os.stat('.').st_mtime_ns,) * 2)",
    "a child": "os.fork() or os._exit(0)",
    "a child that goes on": "os.fork() or __import__('time').sleep(600)",
    "a thread": "import threading; threading.Thread(target=print, args=('',)).start()",
    "a socket with a packet": ("import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 9))"),
}


@pytest.fixture
async def manager() -> AsyncIterator[LocalSandboxManager]:
    async with LocalSandboxManager() as manager:
        # What is begun from a zygote with less in it is let go of when the one with more is ready.
        seen = set[str]()
        for _ in range(50):
            room = await first_line(manager, WHICH)
            if room in seen:
                break
            seen.add(room)
        else:
            raise AssertionError("no room is ever used again")
        yield manager


async def first_line(manager: LocalSandboxManager, code: str) -> str:
    result = await manager.run_code(code)
    assert result.verdict == "ok", result
    return result.stdout.splitlines()[0]


async def later(manager: LocalSandboxManager) -> list[str]:
    return [await first_line(manager, WHICH) for _ in range(RUNS)]


@pytest.mark.parametrize("deed", UNTRACED)
async def test_who_leaves_nothing_leaves_the_room(manager: LocalSandboxManager, deed: str) -> None:
    room = await first_line(manager, WHICH + UNTRACED[deed])
    assert room in await later(manager)


@pytest.mark.parametrize("trace", TRACES)
async def test_who_leaves_a_trace_is_the_last(manager: LocalSandboxManager, trace: str) -> None:
    room = await first_line(manager, WHICH + TRACES[trace])
    assert room not in await later(manager)


async def test_one_that_was_killed_is_the_last(manager: LocalSandboxManager) -> None:
    result = await manager.run_code(f"{WHICH}while True: pass", timeout=0.5)
    assert result.verdict == "wall_timeout"
    assert result.stdout.strip() not in await later(manager)


# --- what would not be seen ---------------------------------------------------------------------

SEGMENT = "import ctypes; print(ctypes.CDLL(None).shmget(0, 4096, 0o1600))\n"


async def test_shared_memory_of_an_earlier_run_is_not_there(manager: LocalSandboxManager) -> None:
    rooms, segments = set[str](), set[str]()
    for _ in range(RUNS):
        result = await manager.run_code(WHICH + SEGMENT)
        room, segment = result.stdout.split()
        rooms.add(room)
        segments.add(segment)
    assert len(rooms) < RUNS
    assert len(segments) == 1


NUMBERS = """
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
print(os.getpid(), child)
"""

# A process that is refused for want of a descriptor has been given a number by then.
REFUSED = """
import ctypes, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
made = ctypes.CDLL(None, use_errno=True).syscall(56, 0x1000 | 17, 0, ctypes.byref(ctypes.c_int()))
print(made, ctypes.get_errno())
"""


async def test_numbers_of_processes_do_not_tell_of_an_earlier_run(
    manager: LocalSandboxManager,
) -> None:
    result = await manager.run_code(WHICH + REFUSED)
    room, made, error = result.stdout.split()
    assert (made, error) == ("-1", "24")  # EMFILE
    assert room in await later(manager)
    async with manager.sandbox("process") as sandbox:  # the next in its slot would be told
        seen = (await sandbox.run_code("import os\n" + NUMBERS)).stdout.split()
        assert (await sandbox.run_code(REFUSED)).stdout.split()[:1] == ["-1"]
        after = (await sandbox.run_code("import os\n" + NUMBERS)).stdout.split()
        assert int(after[1]) - int(after[0]) >= 1
        assert int(after[0]) - int(seen[1]) > 1
    for _ in range(RUNS):
        result = await manager.run_code(WHICH + NUMBERS)
        assert result.stdout.split()[1:] == ["2", "3"]


# --- rooms that end -----------------------------------------------------------------------------


def inits() -> set[int]:
    """Of every slot that our station has."""
    found = set[int]()
    for station in descendants_of(os.getpid()):
        if "station.py" in Path(f"/proc/{station}/cmdline").read_text():
            children = Path(f"/proc/{station}/task/{station}/children").read_text().split()
            own = namespaces(station)["pid"]
            for pid in map(int, children):
                with suppress(FileNotFoundError):  # it has just ended
                    if namespaces(pid)["pid"] != own:
                        found.add(pid)
    return found


async def test_one_whose_init_was_killed_is_not_entered(manager: LocalSandboxManager) -> None:
    room = await first_line(manager, WHICH)
    killed = inits()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    with anyio.fail_after(30):
        while any(Path(f"/proc/{pid}").exists() for pid in killed):  # until its station knows
            await anyio.sleep(0.01)
    assert room not in await later(manager)


async def test_empty_ones_are_let_go(manager: LocalSandboxManager) -> None:
    before = {*await later(manager)}
    with anyio.fail_after(30):
        while len(inits()) > _SPARE_SLOTS:  # which are kept, and nobody's
            await anyio.sleep(0.1)
    assert before.isdisjoint(await later(manager))
