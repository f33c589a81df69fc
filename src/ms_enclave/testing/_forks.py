"""What a fork of a sandbox promises, whoever made the handle."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ms_enclave.errors import CapabilityError, ConfigError, ForkRefusedError
from ms_enclave.testing._suite import SandboxSuite, lacks, needs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ms_enclave.boxes import Sandbox

__all__ = ["ForkContract"]


class ForkContract(SandboxSuite):
    """Forks of a sandbox with a kernel: each test has a sandbox of its own."""

    @pytest.fixture
    async def family(self, fresh: Sandbox) -> AsyncIterator[list[Sandbox]]:
        """The sandbox, and whatever forks a test puts after it, which end with it."""
        needs(fresh, "fork")
        everybody = [fresh]
        try:
            yield everybody
        finally:
            for box in everybody[1:]:
                await box.stop()

    # --- what a fork has ---

    async def test_a_fork_goes_on_with_variables_imports_and_generators(
        self, family: list[Sandbox]
    ) -> None:
        kernel = await family[0].kernel()
        await kernel.run(
            "import colorsys\nx = [1, 2]\n"
            "def count():\n    for number in range(9):\n        yield number\n"
            "numbers = count(); next(numbers), next(numbers)"
        )
        family += await family[0].fork(2)
        for box in family:
            own = await box.kernel()
            done = await own.run("colorsys.__name__, x, next(numbers)")
            assert done.result == {"text/plain": "('colorsys', [1, 2], 2)"}
            assert done.execution_count == 2
        assert len({box.id for box in family}) == 3

    async def test_nobody_sees_what_another_one_does_from_then_on(
        self, family: list[Sandbox]
    ) -> None:
        await (await family[0].kernel()).run("x = []; open('kept', 'w').write('old')")
        family += await family[0].fork(2)
        for number, box in enumerate(family):
            await (await box.kernel()).run(
                f"x.append({number}); open('kept', 'w').write('{number}')\n"
                f"open('/tmp/own', 'w').write('{number}')"
            )
        for number, box in enumerate(family):
            seen = "x, open('kept').read(), open('/tmp/own').read()"
            done = await (await box.kernel()).run(seen)
            assert done.result == {"text/plain": f"([{number}], '{number}', '{number}')"}
            assert await box.files.read("kept") == str(number).encode()

    async def test_a_fork_has_the_files_as_they_were(self, family: list[Sandbox]) -> None:
        box = family[0]
        done = await (await box.kernel()).run(
            "import os\nos.makedirs('a/b'); open('a/b/text', 'w').write('1' * 5000)\n"
            "os.chmod('a/b/text', 0o640); os.symlink('a/b/text', 'link')\n"
            "os.link('a/b/text', 'other name'); os.utime('a/b', (1000, 1000))\n"
            "with open('holes', 'wb') as f: f.truncate(1 << 26)\n"
            "os.mkfifo('fifo'); os.setxattr('link', 'user.colour', b'red')\n"
            "open('/tmp/there', 'w').write('t'); os.chmod('.', 0o700)"
        )
        assert done.success, done.error
        family += await box.fork()
        done = await (await family[1].kernel()).run(
            "found = os.stat('link')\n"
            "print(oct(found.st_mode), found.st_size, found.st_uid == os.getuid(), found.st_nlink,"
            " os.readlink('link'), os.stat('a/b').st_mtime, os.stat('holes').st_size,"
            " os.stat('holes').st_blocks, open('/tmp/there').read(), oct(os.stat('.').st_mode),"
            " os.getxattr('link', 'user.colour'), os.path.samefile('link', 'other name'))"
        )
        expected = "0o100640 5000 True 2 a/b/text 1000.0 67108864 0 t 0o40700 b'red' True\n"
        assert done.stdout == expected, done.error
        done = await (await family[1].kernel()).run("os.remove('link'); sorted(os.listdir('.'))")
        assert done.result == {"text/plain": "['a', 'fifo', 'holes', 'other name']"}
        assert await box.files.exists("link")

    async def test_a_fork_has_open_files_of_its_own_at_the_same_places(
        self, family: list[Sandbox]
    ) -> None:
        kernel = await family[0].kernel()
        await kernel.run(
            "import os\nopen('text', 'w').write('0123456789')\n"
            "reader = os.open('text', os.O_RDONLY); os.read(reader, 3)\n"
            "twin = os.dup(reader)\n"
            "log = open('log', 'ab', buffering=0); log.write(b'one ')"
        )
        family += await family[0].fork(2)
        for number, box in enumerate(family):
            own = await box.kernel()
            done = await own.run(
                f"os.read(reader, 2), os.read(twin, 2), log.write(b'{number}'),\\\n"
                "open('log').read()"
            )
            assert done.result == {"text/plain": f"(b'34', b'56', 1, 'one {number}')"}

    async def test_a_fork_keeps_folder_umask_signals_and_environment(
        self, family: list[Sandbox]
    ) -> None:
        await family[0].execute_command("true")  # so that the kernel's number is not the first
        kernel = await family[0].kernel(env={"COLOUR": "red"})
        await kernel.run(
            "import os, signal\nos.mkdir('sub'); os.chdir('sub'); mask = os.umask(0o27)\n"
            "heard = []\nsignal.signal(signal.SIGUSR1, lambda *_: heard.append(1))\n"
            "os.environ['SIZE'] = 'big'; before = os.getpid()"
        )
        family += await family[0].fork()
        done = await (await family[1].kernel()).run(
            "os.kill(os.getpid(), signal.SIGUSR1)\n"
            "(os.getcwd().endswith('/sub'), os.umask(0o27) == 0o27, heard, os.getpid() == before,"
            " os.environ['COLOUR'], os.environ['SIZE'])"
        )
        assert done.result == {"text/plain": "(True, True, [1], True, 'red', 'big')"}

    @pytest.mark.parametrize("reseed", [True, False])
    async def test_random_numbers_differ_unless_they_are_to_be_the_same(
        self, family: list[Sandbox], reseed: bool
    ) -> None:
        await (await family[0].kernel()).run("import random; random.random()")
        family += await family[0].fork(2, reseed=reseed)
        code = "[random.random(), random.gauss(0, 1)]"
        drawn = [(await (await box.kernel()).run(code)).result for box in family]
        assert len({str(one) for one in drawn}) == (3 if reseed else 1)

    async def test_threads_go_on_in_each(self, family: list[Sandbox]) -> None:
        await (await family[0].kernel()).run(
            "import threading, time\nticks, woken, wanted = [0], [], threading.Event()\n"
            "lock = threading.RLock()\n"
            "def tick():\n    while True:\n        ticks[0] += 1; time.sleep(0.001)\n"
            "def wait():\n    wanted.wait(); woken.append(threading.current_thread().name)\n"
            "def add():\n    with lock: pass\n    return 7\n"
            "for one in (tick, wait):\n"
            "    threading.Thread(target=one, name=one.__name__, daemon=True).start()"
        )
        family += await family[0].fork(2)
        seen = (
            "before = ticks[0]\n"
            "while ticks[0] < before + 5: time.sleep(0.001)\n"
            "is_new = wanted.is_set(); wanted.set()\n"
            "while not woken: time.sleep(0.001)\n"
            "others = [t.name for t in threading.enumerate() if t.name == 'tick']\n"
            "new = threading.Thread(target=add); new.start(); new.join()\n"
            "is_new, woken, others, add()"
        )
        for box in family:
            done = await (await box.kernel()).run(seen, timeout=20)
            assert done.result == {"text/plain": "(False, ['wait'], ['tick'], 7)"}

    async def test_threads_never_find_what_they_had_open_closed(
        self, family: list[Sandbox]
    ) -> None:
        code = """
import os, threading
log, errors = open("log", "wb", buffering=0), []
def write():
    while True:
        try:
            log.write(b"x")
            with open("other", "wb") as other:
                other.write(b"y")
            os.stat("log")
        except OSError as error:
            errors.append(str(error))
for _ in range(2):
    threading.Thread(target=write, daemon=True).start()
"""
        assert (await (await family[0].kernel()).run(code)).success
        for _ in range(3):
            family += await family[-1].fork()
            seen = await (await family[-1].kernel()).run(
                "import os; print(errors, os.path.getsize('log') > 0, set(open('log').read()))"
            )
            assert seen.stdout == "[] True {'x'}\n", seen

    async def test_forks_of_forks(self, family: list[Sandbox]) -> None:
        await (await family[0].kernel()).run("x = [0]; open('depth', 'w').write('0')")
        for depth in range(1, 5):
            family += await family[-1].fork()
            await (await family[-1].kernel()).run(
                f"x.append({depth}); open('depth', 'a').write('{depth}')"
            )
        done = await (await family[-1].kernel()).run("x, open('depth').read()")
        assert done.result == {"text/plain": "([0, 1, 2, 3, 4], '01234')"}
        assert (await (await family[0].kernel()).run("x")).result == {"text/plain": "[0]"}

    # --- its life ---

    async def test_a_fork_outlives_its_original(self, family: list[Sandbox]) -> None:
        await (await family[0].kernel()).run("x = 1; open('text', 'w').write('here')")
        family += await family[0].fork()
        await family[0].stop()
        done = await (await family[1].kernel()).run("x, open('text').read()")
        assert done.result == {"text/plain": "(1, 'here')"}
        assert (await family[1].execute_command("cat text")).stdout == "here"

    async def test_the_kernel_of_a_fork_ends_alone_and_can_be_restarted(
        self, family: list[Sandbox]
    ) -> None:
        await (await family[0].kernel()).run("x = 1")
        family += await family[0].fork()
        own = await family[1].kernel()
        await own.run("import os; os._exit(3)")
        assert own.status == "dead"
        await own.restart()
        assert (await own.run("'x' in globals()")).result == {"text/plain": "False"}
        assert (await (await family[0].kernel()).run("x")).result == {"text/plain": "1"}

    # --- what is refused ---

    @pytest.mark.parametrize(
        ("code", "blocker"),
        [
            ("import subprocess; p = subprocess.Popen(['sleep', '100'])", "process"),
            (
                "import threading\nfor _ in range(70):\n"
                "    threading.Thread(target=threading.Event().wait, daemon=True).start()",
                "more than 64 threads",
            ),
            ("import os; ends = os.pipe(); os.write(ends[1], b'x')", "a pipe"),
            ("import os; ends = os.pipe(); os.close(ends[1])", "a pipe"),
            ("import socket; pair = socket.socketpair(); pair[0].send(b'x')", "a socket"),
            ("import socket; pair = socket.socketpair(); pair[0].shutdown(1)", "a socket"),
            ("import socket; alone = socket.socket()", "a socket"),
            ("import os; inner = os.open(f'/proc/self/fd/{os.pipe()[0]}', os.O_RDWR)", "a pipe"),
            ("import mmap; shared = mmap.mmap(-1, 4096)", "shared memory"),
            ("f = open('gone', 'w'); import os; os.remove('gone')", "no name any more"),
            ("import fcntl; f = open('l', 'w'); fcntl.flock(f, fcntl.LOCK_EX)", "a locked file"),
            ("f = open('/proc/self/status')", "/proc/"),
            ("import os; os.mkdir('d'); os.chdir('d'); os.rmdir('../d')", "its folder"),
            ("import os; file = os.memfd_create('secret')", "in memory"),
        ],
    )
    async def test_what_cannot_be_carried_is_refused_by_name(
        self, family: list[Sandbox], code: str, blocker: str
    ) -> None:
        kernel = await family[0].kernel()
        assert (await kernel.run(f"x = 1\n{code}")).success
        with pytest.raises(ForkRefusedError) as refused:
            await family[0].fork()
        assert blocker in "; ".join(refused.value.blockers)
        assert (await kernel.run("x")).result == {"text/plain": "1"}

    async def test_what_cannot_be_carried_is_left_out_on_request(
        self, family: list[Sandbox]
    ) -> None:
        kernel = await family[0].kernel()
        code = """
import os, select, socket, subprocess
child = subprocess.Popen(["sleep", "100"])
ends, pair, poll = os.pipe(), socket.socketpair(), select.epoll()
os.write(ends[1], b"p"); pair[0].send(b"s"); outer = socket.socket()
poll.register(ends[0], select.EPOLLIN); poll.register(pair[1], select.EPOLLIN)
gone = open("gone", "w+"); os.remove("gone")
kept = open("kept", "w+"); kept.write("12"); kept.flush()
numbers = [*ends, pair[0].fileno(), pair[1].fileno(), outer.fileno(), gone.fileno()]
"""
        assert (await kernel.run(code)).success
        family += await family[0].fork(2, unforkable="drop")
        look = """
def errors(number):
    found = []
    for use in (lambda: os.read(number, 1), lambda: os.write(number, b"x")):
        try:
            use()
        except OSError as error:
            found.append(error.errno)
    return found
print([errors(number) for number in numbers] == [[9, 9]] * len(numbers))
with open("new", "w") as new:
    print(new.fileno() in numbers)
try:
    os.kill(child.pid, 0)
except ProcessLookupError:
    print("alone")
new = os.pipe(); poll.register(new[0], select.EPOLLIN); os.write(new[1], b"n")
print(poll.poll(1) == [(new[0], 1)], kept.read(),
      os.lseek(kept.fileno(), 0, os.SEEK_CUR), os.path.exists("gone"))
"""
        for fork in family[1:]:
            seen = await (await fork.kernel()).run(look)
            assert seen.stdout == "True\nFalse\nalone\nTrue  2 False\n", seen
        still = """
gone.write("g")
print(os.read(ends[0], 1), pair[1].recv(1), child.poll())
"""
        assert (await kernel.run(still)).stdout == "b'p' b's' None\n"

    async def test_what_is_wholly_inside_is_made_anew(self, family: list[Sandbox]) -> None:
        code = """
import os, select, socket
ends, blocking = os.pipe(), os.pipe()
os.set_blocking(ends[0], False)
pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
again = os.dup(ends[1])
poll = select.epoll()
poll.register(ends[0], select.EPOLLIN)
poll.register(pair[1], select.EPOLLIN | select.EPOLLET)
"""
        use = """
os.write({0}, b"{1}"); pair[0].send(b"{1}{1}")
found = sorted(poll.poll(1)) == sorted([(ends[0], 1), (pair[1].fileno(), 1)])
print(found, os.read(ends[0], 9), pair[1].recv(9), os.get_blocking(ends[0]),
      os.get_blocking(blocking[0]), os.get_inheritable(ends[0]))
"""
        told = "True b'{0}' b'{0}{0}' False True False\n"
        assert (await (await family[0].kernel()).run(code)).success
        family += await family[0].fork(2)
        family += await family[1].fork()
        for number, one in enumerate(family):
            name = ("ends[1]", "again")[number % 2]
            seen = await (await one.kernel()).run(use.format(name, number))
            assert seen.stdout == told.format(number), seen

    async def test_a_loop_of_asyncio_goes_on(self, family: list[Sandbox]) -> None:
        kernel = await family[0].kernel()
        code = "import asyncio\nawait asyncio.sleep(0.01)\nlater = asyncio.Event()"
        assert (await kernel.run(code)).success
        family += await family[0].fork()
        family += await family[1].fork()
        use = """
async def tell():
    await asyncio.to_thread(int)
    later.set()
task = asyncio.ensure_future(tell())
await asyncio.wait_for(later.wait(), 30)
process = await asyncio.create_subprocess_exec("echo", "on", stdout=-1)
(await process.communicate())[0]
"""
        for one in family:
            seen = await (await one.kernel()).run(use)
            assert seen.result == {"text/plain": "b'on\\n'"}, seen

    async def test_what_can_only_be_shared_is_refused_all_the_same(
        self, family: list[Sandbox]
    ) -> None:
        kernel = await family[0].kernel()
        assert (await kernel.run("import mmap, os; m = mmap.mmap(-1, 9); p = os.pipe()")).success
        with pytest.raises(ForkRefusedError) as refused:
            await family[0].fork(unforkable="drop")
        assert refused.value.blockers == ["shared memory is mapped: /dev/zero (deleted)"]
        with pytest.raises(ConfigError, match="unforkable"):
            await family[0].fork(unforkable="ignore")  # type: ignore[arg-type]

    async def test_a_running_cell_more_kernels_and_none_are_refused(
        self, family: list[Sandbox]
    ) -> None:
        with pytest.raises(ForkRefusedError, match="no kernel"):
            await family[0].fork()
        await family[0].kernel()
        other = await family[0].kernel("other")
        with pytest.raises(ForkRefusedError) as refused:
            await family[0].fork()
        assert refused.value.blockers == ["kernel default", "kernel other"]
        await other.delete()
        cell = "import time; print('begun', flush=True); time.sleep(60)"
        events = (await family[0].kernel()).run_stream(cell)
        async for event in events:
            if event.type == "stream":
                break
        with pytest.raises(ForkRefusedError, match="running a cell"):
            await family[0].fork()
        await events.aclose()
        family += await family[0].fork()

    @pytest.mark.parametrize("n", [0, -1, True, 1.5, "2", 10**9])
    async def test_a_number_that_is_none_is_refused(self, family: list[Sandbox], n: int) -> None:
        await family[0].kernel()
        with pytest.raises(ConfigError):
            await family[0].fork(n)

    async def test_who_cannot_fork_says_so(self, box: Sandbox) -> None:
        lacks(box, "fork")
        with pytest.raises(CapabilityError) as refused:
            await box.fork()
        assert refused.value.capability == "fork"
