"""The guest is as hostile as the code beside it: what it does costs a call, never the host."""

from __future__ import annotations

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from tests.security.boxes import find_processes, namespaces

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

FIND_GUEST = """
import os
def command(pid):
    return open(f'/proc/{pid}/cmdline').read()
pids = [int(n) for n in os.listdir('/proc') if n.isdigit() and int(n) not in (1, os.getpid())]
assert pids, 'no guest to be seen'
"""


async def test_a_program_that_kills_the_guest_loses_nothing_but_a_call() -> None:
    async with ProcessSandbox() as box:
        for _ in range(3):
            await box.files.write("kept", "content")
            await box.run_code("import os; os.kill(-1, 9)")
            try:
                assert await box.files.read("kept") == b"content"
            except ConnectionResetError:
                assert await box.files.read("kept") == b"content"
            assert box.status == "running"


async def test_a_program_that_stops_the_guest_makes_a_call_no_more_than_late() -> None:
    async with ProcessSandbox() as box:
        await box.files.write("kept", "content")
        await box.run_code("import os, signal; os.kill(-1, signal.SIGSTOP)")
        with anyio.fail_after(30):
            assert await box.files.read("kept") == b"content"
        await box.files.write("long", b"x" * 20_000_000)
        chunks = box.files.read_stream("long")
        got = len(await anext(chunks))
        await box.run_code("import os, signal; os.kill(-1, signal.SIGSTOP)")
        with anyio.fail_after(30):
            async for chunk in chunks:
                got += len(chunk)
        assert got == 20_000_000


async def test_a_program_that_writes_into_the_guests_memory_gets_nothing_out_of_it() -> None:
    """The guest is made to answer with rubbish, or dies: an error of one call, and no hang."""
    scribble = (
        FIND_GUEST
        + """
for pid in pids:
    for line in open(f'/proc/{pid}/maps'):
        if ' rw-p ' in line and ('[heap]' in line or line.rstrip().endswith(' 0')):
            first, last = (int(word, 16) for word in line.split()[0].split('-'))
            with open(f'/proc/{pid}/mem', 'r+b', buffering=0) as memory:
                for at in range(first, last, 4096):
                    try:
                        memory.seek(at)
                        memory.write(b'\\xa5' * 512)
                    except OSError:
                        pass
print('done')
"""
    )
    async with ProcessSandbox() as box:
        await box.files.write("kept", "content")
        result = await box.run_code(scribble, timeout=30)
        assert result.exit_code is not None
        for _ in range(2):
            try:
                await box.files.read("kept")
            except OSError:
                continue
        assert await box.files.read("kept") == b"content"
        assert (await box.run_code("print(1)")).stdout == "1\n"


async def test_a_sandbox_full_of_processes_says_so_and_recovers() -> None:
    async with ProcessSandbox({"pids_limit": 12}) as box:
        await box.execute_command(
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do setsid sleep 600.25 & done; true"
        )
        result = await box.execute_command("true")
        assert result.verdict in ("ok", "process_limit")
        try:
            await box.files.write("x", "y")
        except BlockingIOError:
            pass
        assert box.status == "running"
        space = {namespaces(pid)["pid"] for pid in find_processes("600.25")}
        assert len(space) <= 1


LINGERING = """
import array, os, socket, struct, threading
listening = socket.create_server(("127.0.0.1", 0))
held = []

def lingering():
    client = socket.create_connection(listening.getsockname())
    held.append(listening.accept()[0])
    client.setblocking(False)
    try:
        while True:
            client.send(bytes(1 << 20))
    except BlockingIOError:
        pass
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 15))
    return client.detach()

def attach(other):
    number = lingering()
    attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [number]))]
    try:
        other.sendmsg([b"x"], attached)
    except OSError:
        pass
    os.close(number)  # at once: whoever lets go last is the one who waits

# All are found before a thread opens one: here a copy of a lingering one would be let go of last.
others = []
for number in range(3, 64):
    try:
        others.append(socket.socket(fileno=os.dup(number)))
    except OSError:
        continue
for other in others:
    if other.family == socket.AF_UNIX:
        threading.Thread(target=attach, args=[other], daemon=True).start()
import time
time.sleep(0.5)
open("tried", "w").write("x")
"""


async def test_a_descriptor_that_is_slow_to_close_stops_nobody() -> None:
    """A cell has its kernel's channel to the host, and can attach what it likes to it."""
    async with ProcessSandbox() as box, ProcessSandbox() as other:
        kernel = await box.kernel()
        await other.files.exists(".")
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: kernel.run(LINGERING, timeout=10))
            with anyio.fail_after(8):
                while not await box.files.exists("tried"):
                    await anyio.sleep(0.05)
                for _ in range(20):
                    await other.files.exists(".")
                    await anyio.sleep(0.05)
            group.cancel_scope.cancel()
