"""Forks of the embedded sandbox: their walls, their limits, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    ForkRefusedError,
    QuotaExceededError,
    SandboxStartError,
    SandboxStateError,
)
from ms_enclave.manager import LocalSandboxManager
from ms_enclave.model import SandboxStatus, Verdict
from ms_enclave.server import Policy, Quotas
from ms_enclave.testing._suite import wait_for_file
from tests.support.interpreters import bare_python
from tests.unit.server.test_tenants import served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ms_enclave.boxes import Sandbox

pytestmark = pytest.mark.namespaces

CONFIG: dict[str, Any] = {"python": bare_python(), "memory_limit": "256m"}
NUMPY: dict[str, Any] = {"python": sys.prefix, "preload": ["numpy"]}


class FewSlots(ProcessSandbox):
    """One on a station that has room for this sandbox and two more."""

    def _station_plan(self) -> dict[str, Any]:
        return {**super()._station_plan(), "slots": 4, "spare_slots": 0}


@pytest.fixture
async def manager() -> AsyncIterator[LocalSandboxManager]:
    async with LocalSandboxManager() as running:
        yield running


async def opened(manager: LocalSandboxManager, **config: Any) -> Sandbox:
    name = await manager.create_sandbox("process", {**CONFIG, **config})
    box = await manager.get_sandbox(name)
    assert box is not None
    return box


async def run(box: Sandbox, code: str) -> str:
    done = await (await box.kernel()).run(code)
    assert done.success, done.error
    return "" if done.result is None else done.result["text/plain"]


async def names(manager: LocalSandboxManager) -> set[str]:
    return {info.id for info in await manager.list_sandboxes()}


def below_launcher(box: Sandbox) -> list[int]:
    """The processes of a sandbox's station, itself among them."""
    assert isinstance(box, ProcessSandbox)
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
    found: list[int] = []
    todo = [box._station.launcher[0]]
    while todo:
        top = todo.pop()
        below = [pid for pid, parent in parents.items() if parent == top]
        todo += below
        found += below
    return found


def interpreters_of(box: Sandbox) -> int:
    """How many of them have an interpreter's memory: kernels, and what they are copied from and
    by."""
    found = 0
    for pid in below_launcher(box):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline") as file:
            found += "boot.py" in file.read()
    return found


async def settled(box: Sandbox, most: int) -> None:
    """Wait until no more processes than that are left."""
    with anyio.fail_after(10):
        while await anyio.to_thread.run_sync(interpreters_of, box) > most:
            await anyio.sleep(0.02)


# --- walls ---


async def test_a_fork_stands_behind_the_same_walls_as_another_user(
    manager: LocalSandboxManager,
) -> None:
    box = await opened(manager)
    look = "print(open('/proc/self/status').read())"
    before = (await (await box.kernel()).run(look)).stdout
    forks = await box.fork(2)
    maps: set[str] = {await run(box, "open('/proc/self/uid_map').read()")}
    for fork in forks:
        seen = (await (await fork.kernel()).run(look)).stdout
        for wall in ("Cap", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups", "NSpid"):
            rows = [[line for line in text.splitlines() if line.startswith(wall)]
                    for text in (before, seen)]  # fmt: skip
            assert rows[0] == rows[1]
        assert "CapBnd:\t0000000000000000" in seen
        assert fork.isolation.guards == box.isolation.guards
        maps.add(await run(fork, "open('/proc/self/uid_map').read()"))
    if box.isolation.guards["own_ids"] == "on":
        assert len(maps) == 3


async def test_a_fork_sees_and_signals_nobody(manager: LocalSandboxManager) -> None:
    box = await opened(manager)
    await run(box, "import os, signal\nx = 1")
    one, other = await box.fork(2)
    seen = "[name for name in os.listdir('/proc') if name.isdigit() and name != str(os.getpid())]"
    assert await run(one, seen) == "[]"
    attack = (
        "sent = 0\n"
        "for pid in (-1, *range(1, 400)):\n"
        "    if pid != os.getpid():\n"
        "        try:\n            os.kill(pid, signal.SIGKILL); sent += 1\n"
        "        except OSError: pass\n"
        "len(os.listdir('/dev/shm'))"
    )
    assert await run(one, attack) == "0"
    assert [await run(each, "x") for each in (box, one, other)] == ["1"] * 3


async def test_a_fork_has_limits_of_its_own(manager: LocalSandboxManager) -> None:
    box = await opened(manager)
    await run(box, "held = bytearray(100 << 20)")
    one, other = await box.fork(2)
    done = await (await one.kernel()).run("more = bytearray(400 << 20)")
    assert done.verdict is Verdict.OOM
    assert (await one.kernel()).death is Verdict.OOM
    assert await run(other, "len(held)") == await run(box, "len(held)") == str(100 << 20)


async def test_arrays_are_shared_until_they_are_written_to(manager: LocalSandboxManager) -> None:
    box = await opened(manager, **NUMPY, memory_limit="1g")
    await run(box, "import numpy\na = numpy.ones(1 << 22); numpy.random.randn()")
    forks = await box.fork(3)
    for number, fork in enumerate(forks):
        await run(fork, f"a[5] = {number + 7}")
    assert [await run(fork, "float(a[5] + a.sum() - (1 << 22))") for fork in forks] == [
        "13.0", "15.0", "17.0",
    ]  # fmt: skip
    assert await run(box, "float(a.sum())") == str(float(1 << 22))
    drawn = {await run(each, "numpy.random.randn(), numpy.random.rand()") for each in forks}
    assert len(drawn) == 3


async def test_the_threads_of_numeric_libraries_are_carried(
    manager: LocalSandboxManager,
) -> None:
    """One that was imported in a cell has as many threads as there are processors."""
    box = await opened(manager, python=sys.prefix, memory_limit="1g")
    await run(
        box,
        "import os\nos.environ['OPENBLAS_NUM_THREADS'] = '3'\nimport numpy, threading\n"
        "a = numpy.arange(250000.0).reshape(500, 500)\nwanted = float((a @ a).sum())",
    )
    assert int(await run(box, "len(os.listdir('/proc/self/task'))")) > 1
    forks = await box.fork(2)
    for each in (*forks, box):
        assert await run(each, "float((a @ a).sum()) == wanted") == "True"
        assert await run(each, "len(os.listdir('/proc/self/task'))") == await run(
            box, "len(os.listdir('/proc/self/task'))"
        )
    kept = await box.checkpoint()
    await (await box.kernel()).run("os._exit(1)")
    await box.rollback(kept)
    assert await run(box, "float((a @ a).sum()) == wanted") == "True"


async def test_the_c_library_knows_the_threads_of_a_fork(manager: LocalSandboxManager) -> None:
    """Also where they have other numbers than in the original."""
    box = await opened(manager)
    await run(
        box,
        "import os, signal, threading\nwoken, ready = [], threading.Semaphore(0)\n"
        "def wait(name):\n    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
        "    ready.release(); woken.append((name, signal.sigwait({signal.SIGUSR1}).name))\n"
        "threads = []\n"
        "for name in 'abc':\n    os.system('true'); os.system('true')\n"
        "    threads.append(threading.Thread(target=wait, args=(name,), daemon=True))\n"
        "    threads[-1].start(); ready.acquire()",
    )
    forks = await box.fork(2)
    wake = (
        "signal.pthread_kill(threads[1].ident, signal.SIGUSR1); threads[1].join(10)\n"
        "woken, sorted(t.is_alive() for t in threads)"
    )
    for each in (*forks, box):
        assert await run(each, wake) == "([('b', 'SIGUSR1')], [False, True, True])"


async def test_every_thread_of_a_fork_is_behind_every_wall(manager: LocalSandboxManager) -> None:
    box = await opened(manager)
    await run(
        box,
        "import os, threading\nfor _ in range(3):\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()",
    )
    (fork,) = await box.fork()
    look = (
        "rows = set()\nfor task in os.listdir('/proc/self/task'):\n"
        "    text = open(f'/proc/self/task/{task}/status').read()\n"
        "    rows.add(tuple(line for line in text.splitlines()\n"
        "        if line.startswith(('Cap', 'NoNew', 'Seccomp', 'Uid', 'Gid', 'Groups'))))\n"
        "print(len(os.listdir('/proc/self/task')), sorted(rows))"
    )
    seen = [(await (await each.kernel()).run(look)).stdout for each in (box, fork)]
    assert seen[0] == seen[1]
    assert seen[0].startswith("4 [(")
    assert "CapBnd:\\t0000000000000000" in seen[0]


async def test_a_thread_that_is_no_part_of_the_program_is_refused(
    manager: LocalSandboxManager,
) -> None:
    """One with a filter of its own: its forks would have more rights than it."""
    box = await opened(manager)
    await run(
        box,
        "import ctypes, struct, threading\nallow = struct.pack('=HBBI', 6, 0, 0, 0x7fff0000)\n"
        "held = ctypes.create_string_buffer(allow, 8)\n"
        "header = struct.pack('=HxxxxxxQ', 1, ctypes.addressof(held))\n"
        "ready = threading.Event()\n"
        "def filtered():\n    assert ctypes.CDLL(None).prctl(22, 2, header, 0, 0) == 0\n"
        "    ready.set(); threading.Event().wait()\n"
        "threading.Thread(target=filtered, daemon=True).start(); ready.wait()",
    )
    with pytest.raises(ForkRefusedError, match="thread"):
        await box.fork()


# --- what a program may try ---

FIND_PAGE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def pages(rights):
    for line in open('/proc/self/maps'):
        span, found, _, _, inode, *name = line.split()
        start, stop = (int(word, 16) for word in span.split('-'))
        if found == rights and inode == '0' and not name and stop - start == 4096:
            yield start
code = next(page for page in pages('r-xp') if ctypes.string_at(page, 3) == b'\\x0f\\x05\\xcc')
def change(content):
    assert libc.mprotect(ctypes.c_void_p(code), 4096, 7) == 0
    ctypes.memmove(code, content, len(content))
"""
MAKE_FOLDER = """
path = b'/run/pwned\\0'
body = (b'\\x48\\x8d\\x3d' + (19).to_bytes(4, 'little') + b'\\xbe\\xed\\x01\\x00\\x00'
        + b'\\xb8\\x53\\x00\\x00\\x00' + b'\\x0f\\x05\\xcc').ljust(26, b'\\x90') + path
"""


@pytest.mark.parametrize(
    "attack",
    [
        f"{MAKE_FOLDER}change(body)",
        "change(b'\\xeb\\xfe')",  # for ever
        "change(b'\\xcd\\x80\\xcc')",  # the other table of calls
        "change(b'\\x0f\\x0b')",
        "assert libc.munmap(ctypes.c_void_p(code), 4096) == 0",
    ],
)
async def test_a_program_that_owns_its_memory_gets_no_call_of_its_own(
    manager: LocalSandboxManager, attack: str
) -> None:
    box, neighbour = await opened(manager), await opened(manager)
    await run(neighbour, "y = 1")
    await run(box, f"x = 1\n{FIND_PAGE}\n{attack}")
    for _ in range(2):  # what was tampered with once is not trusted again
        with pytest.raises(ForkRefusedError) as refused:
            await box.fork(2)
        assert len(refused.value.blockers) == 1
    assert await names(manager) == {box.id, neighbour.id}
    assert await run(box, "x, os.path.exists('/run/pwned')") == "(1, False)"
    assert await run(neighbour, "import os; y, os.path.exists('/run/pwned')") == "(1, False)"
    (fork,) = await neighbour.fork()
    assert await run(fork, "y") == "1"


async def test_what_a_program_put_into_its_pages_is_not_in_its_forks(
    manager: LocalSandboxManager,
) -> None:
    """All but the call that is checked: what runs freely in a copy is written anew there."""
    box = await opened(manager)
    await run(box, f"{FIND_PAGE}\n{MAKE_FOLDER}change(b'\\x0f\\x05\\xcc' + b'\\x90' * 13 + body)")
    for data in ("change(ctypes.string_at(code, 3) + b'\\xcc' * 4000)",):
        await run(box, data)
    (fork,) = await box.fork()
    assert await run(fork, "os.path.exists('/run/pwned')") == "False"


async def test_a_program_under_more_filters_of_its_own_is_refused(
    manager: LocalSandboxManager,
) -> None:
    box = await opened(manager)
    await run(
        box,
        "import ctypes, struct\nallow = struct.pack('=HBBI', 6, 0, 0, 0x7fff0000)\n"
        "held = ctypes.create_string_buffer(allow, 8)\n"
        "header = struct.pack('=HxxxxxxQ', 1, ctypes.addressof(held))\n"
        "assert ctypes.CDLL(None).prctl(22, 2, header, 0, 0) == 0",
    )
    with pytest.raises(ForkRefusedError, match="1 more seccomp filter"):
        await box.fork()


async def test_a_kernel_that_runs_something_without_a_cell_is_refused_and_goes_on(
    manager: LocalSandboxManager,
) -> None:
    box = await opened(manager)
    await run(
        box,
        "import os, signal\nx = 1\n"
        "def spin(*_):\n    open('busy', 'w').write('1')\n"
        "    while not os.path.exists('end'): pass\n"
        "signal.signal(signal.SIGALRM, spin); signal.setitimer(signal.ITIMER_REAL, 0.05)",
    )
    await wait_for_file(box, "busy")
    with pytest.raises(ForkRefusedError, match="does not wait for a cell"):
        await box.fork()
    await box.files.write("end", "1")
    assert await run(box, "x") == "1"
    (fork,) = await box.fork()
    assert await run(fork, "x") == "1"


async def test_memory_that_would_be_a_channel_is_refused(manager: LocalSandboxManager) -> None:
    """A file that is mapped only to be read, but can be written to otherwise."""
    box = await opened(manager)
    await run(
        box,
        "import mmap, os\nfile = os.memfd_create('x'); os.write(file, b'1' * 4096)\n"
        "reader = os.open(f'/proc/self/fd/{file}', os.O_RDONLY)\n"
        "seen = mmap.mmap(reader, 4096, mmap.MAP_SHARED, mmap.PROT_READ)\n"
        "os.close(file); os.close(reader)",
    )
    with pytest.raises(ForkRefusedError, match="shared memory is mapped"):
        await box.fork()
    other = await opened(manager)
    await run(
        other,
        "import mmap\nopen('data', 'wb').write(b'1' * 4096)\nfile = open('data', 'rb')\n"
        "seen = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)\nfile.close()",
    )
    with pytest.raises(ForkRefusedError, match="a file that can change is mapped"):
        await other.fork()


async def test_what_is_not_there_to_be_opened_again_is_named(
    manager: LocalSandboxManager, tmp_path: Path
) -> None:
    (tmp_path / "shared").write_text("12")
    tmp_path.chmod(0o755)
    box = await opened(manager, volumes={str(tmp_path): {"bind": "/data", "mode": "ro"}})
    await run(box, "file = open('/data/shared'); file.read(1)")
    kept = await box.checkpoint()
    (fork,) = await box.fork(at=kept)
    assert await run(fork, "file.read()") == "'2'"
    (tmp_path / "shared").unlink()
    with pytest.raises(ForkRefusedError, match="what the kernel has open: /data/shared: No such"):
        await box.fork(at=kept)
    os.mkfifo(tmp_path / "shared")
    with pytest.raises(ForkRefusedError, match="/data/shared: Illegal seek"):
        await box.fork(at=kept)  # and whoever has put a pipe there holds up nobody
    assert await run(box, "1 + 1") == "2"


async def test_names_that_are_as_long_as_can_be_do_no_harm(manager: LocalSandboxManager) -> None:
    box, neighbour = await opened(manager), await opened(manager)
    await run(
        box,
        "import os\nname = b'\\xff' * 250\nfor _ in range(15):\n"
        "    os.mkdir(name); os.chdir(name)\n"
        "held = [os.open(b'file', os.O_CREAT | os.O_RDWR) for _ in range(100)]",
    )
    with pytest.raises(ForkRefusedError, match="too long"):
        await box.fork()
    await run(box, "os.remove(b'file')")
    with pytest.raises(ForkRefusedError) as refused:
        await box.fork()
    assert max(map(len, refused.value.blockers)) <= 300
    assert await run(neighbour, "1 + 1") == "2"


# --- all or none ---


async def test_where_one_fork_cannot_be_made_there_are_none() -> None:
    async with FewSlots(CONFIG) as box:
        await run(box, "x = 1; open('text', 'w').write('here')")
        before = interpreters_of(box)
        with pytest.raises(SandboxStartError, match="every slot"):
            await box.fork(5)
        await settled(box, before)
        assert await run(box, "x") == "1"
        forks = await box.fork(2)
        assert [await run(fork, "x") for fork in forks] == ["1", "1"]
        for fork in forks:
            await fork.stop()
        await settled(box, before)


async def test_a_fork_whose_caller_is_gone_is_none(manager: LocalSandboxManager) -> None:
    box = await opened(manager)
    await run(box, "x = 1")
    before = interpreters_of(box)
    for number in range(1, 6):
        with anyio.move_on_after(0.004 * number):
            await box.fork(20)
    assert await names(manager) == {box.id}
    await settled(box, before)
    assert await run(box, "x") == "1"


async def test_a_sandbox_that_is_stopped_is_not_forked(manager: LocalSandboxManager) -> None:
    box = await opened(manager)
    await run(box, "x = 1")
    forking = asyncio.ensure_future(box.fork(50))
    await asyncio.sleep(0.02)
    await box.stop()
    with pytest.raises(SandboxStateError):
        await forking
    assert [info.status for info in await manager.list_sandboxes()] == [SandboxStatus.STOPPED]


async def test_a_paused_sandbox_is_forked_when_it_goes_on(manager: LocalSandboxManager) -> None:
    box = await opened(manager)
    if "pause" not in box.capabilities:
        pytest.skip("nothing here can have a sandbox stand still")
    await run(box, "x = 1")
    await box.pause()
    with pytest.raises(SandboxStateError, match="paused"):
        await box.fork()
    await box.resume()
    (fork,) = await box.fork()
    await fork.pause()
    await box.stop()
    await fork.resume()
    assert await run(fork, "x") == "1"


async def test_a_fork_that_takes_a_name_that_is_taken_is_none(
    manager: LocalSandboxManager,
) -> None:
    box = await opened(manager)
    await run(box, "x = 1")
    with pytest.raises(ConfigError, match="taken"):
        await box.fork(2, sandbox_ids=["one", box.id])
    for wrong in (["one"], ["one", "one"], ["one", "a/b"]):
        with pytest.raises(ConfigError):
            await box.fork(2, sandbox_ids=wrong)
    assert await names(manager) == {box.id}
    forks = await box.fork(2, sandbox_ids=["one", "two"])
    assert [fork.id for fork in forks] == ["one", "two"]
    assert await names(manager) == {box.id, "one", "two"}


# --- their life ---


async def test_forks_are_the_managers_and_live_as_long_as_any(
    manager: LocalSandboxManager,
) -> None:
    box = await opened(manager, ttl=1000.0)
    await run(box, "x = 1")
    one, other = await box.fork(2)
    assert await names(manager) == {box.id, one.id, other.id}
    assert await manager.get_sandbox(one.id) is one
    await manager.renew(one.id, 0.05)
    with anyio.fail_after(10):
        while one.id in await names(manager):
            await anyio.sleep(0.02)
    assert one.status is SandboxStatus.STOPPED
    assert await manager.delete_sandbox(other.id)
    assert await names(manager) == {box.id}


async def test_forks_are_a_tenants_own_and_count_for_what_it_may_have(tmp_path: Path) -> None:
    quotas, policy = Quotas(sandboxes=3), Policy.everything()
    async with served(tmp_path, quotas=quotas, policy=policy) as one, one.client("mine") as mine:
        name = await mine.create_sandbox("process", CONFIG)
        box = await mine.get_sandbox(name)
        assert box is not None
        await run(box, "x = 1")
        with pytest.raises(QuotaExceededError):
            await box.fork(3)
        assert {info.id for info in await mine.list_sandboxes()} == {name}
        forks = await box.fork(2)
        assert [await run(fork, "x") for fork in forks] == ["1", "1"]
        with pytest.raises(QuotaExceededError):
            await box.fork()
        async with one.client("theirs") as theirs:
            assert await theirs.list_sandboxes() == []
            assert await theirs.get_sandbox(forks[0].id) is None
        assert await mine.delete_sandbox(forks[0].id)
        assert len(await box.fork()) == 1


async def test_nothing_of_kernels_and_forks_is_left_while_their_station_lives(
    manager: LocalSandboxManager,
) -> None:
    box, other = await opened(manager), await opened(manager)
    kernel = await box.kernel()
    await other.kernel()
    (fork,) = await box.fork()
    await fork.stop()
    await anyio.sleep(0.1)
    before = interpreters_of(box)
    for _ in range(3):
        await kernel.restart()
        for one in await box.fork(3):
            await one.stop()
    await settled(box, before)
    await box.stop()
    await settled(other, before - 2)  # a kernel and what it is copied by


async def test_a_tier_without_forks_says_so() -> None:
    async with ProcessSandbox({**CONFIG, "isolation": "landlock"}) as box:
        assert "fork" not in box.capabilities
        with pytest.raises(CapabilityError, match="fork"):
            await box.fork()
