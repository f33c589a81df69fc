"""The filter is its policy: compared instruction by instruction with an interpreter of BPF, and
with what a real kernel does. What libseccomp says stands in `test_libseccomp.py`."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ms_enclave
from ms_enclave.spawner import seccomp
from tests.support.bpf import interpret

SETTINGS: tuple[seccomp.Setting, ...] = ("carrier", "namespaces", "host")
MACHINES = sorted(seccomp.ARCHITECTURES)
INTERESTING = [0, 1, 2, 8, 9, 10, 16, 17, 40, 0x5412, 0x541C, 1024, 1026, 0x40000, 0x10000000,
               0x7E020000, 0o060644, 0o100644, 0xFFFFFFFF]  # fmt: skip
arguments = st.tuples(
    *[
        st.one_of(
            st.sampled_from([*INTERESTING, *(value | 1 << 32 for value in INTERESTING)]),
            st.integers(0, 2**64 - 1),
        )
        for _ in range(6)
    ]
)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("machine", MACHINES)
@settings(max_examples=600, deadline=None)
@given(number=st.integers(0, 600) | st.integers(0, 2**32 - 1), values=arguments)
def test_the_program_does_what_the_policy_says(
    machine: str, setting: seccomp.Setting, number: int, values: tuple[int, ...]
) -> None:
    program = seccomp.compile_filter(machine, setting)
    audit, _ = seccomp.ARCHITECTURES[machine]
    expected = seccomp.action_of(machine, number, values, setting=setting)
    assert interpret(program, number, audit, values) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_does_what_the_policy_says(machine: str) -> None:
    program = seccomp.compile_filter(machine, "carrier")
    audit, _ = seccomp.ARCHITECTURES[machine]
    for number in range(1200):
        for values in ((0,) * 6, (2**64 - 1,) * 6):
            expected = seccomp.action_of(machine, number, values, setting="carrier")
            assert interpret(program, number, audit, values) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_ends_the_program(machine: str) -> None:
    program = seccomp.compile_filter(machine, "carrier")
    audit, _ = seccomp.ARCHITECTURES[machine]
    for other in (0x40000003, 0x40000028, audit ^ 1):
        assert interpret(program, 1, other, (0,) * 6) == seccomp.KILL


def test_the_lists_do_not_overlap_and_every_name_has_a_number() -> None:
    lists = [
        seccomp.ALLOWED, seccomp.DENIED, frozenset(seccomp.TRACED), frozenset(seccomp.CHECKED),
    ]  # fmt: skip
    assert sum(len(names) for names in lists) == len(frozenset[str]().union(*lists))
    known = {name for _, numbers in seccomp.ARCHITECTURES.values() for name in numbers}
    assert frozenset[str]().union(*lists) <= known


def test_it_is_small_enough_for_the_kernel() -> None:
    for machine in MACHINES:
        assert len(seccomp.compile_filter(machine, "carrier")) // 8 <= 4096


HIGH_BITS = [
    ("ioctl", (3, 0x100005412, 0, 0, 0, 0), seccomp.EPERM),
    ("ioctl", (3, 0x5401, 0, 0, 0, 0), seccomp.ALLOW),
    ("clone", (0x10000011, 0, 0, 0, 0, 0), seccomp.EPERM),
    ("clone", (0x00000011, 0, 0, 0, 0, 0), seccomp.ALLOW),
    ("socket", (16, 3, 6, 0, 0, 0), seccomp.EPERM),
    ("socket", (16, 3, 0, 0, 0, 0), seccomp.ALLOW),
    ("socket", (1 << 32 | 38, 5, 0, 0, 0, 0), seccomp.EPERM),
    ("socket", (2, 0x80801, 0, 0, 0, 0), seccomp.ALLOW),  # CLOEXEC, NONBLOCK
    ("socket", (10, 2, 17, 0, 0, 0), seccomp.ALLOW),
    ("socket", (2, 2, 1, 0, 0, 0), seccomp.ALLOW),  # an echo request of an ordinary user
    ("socket", (2, 1, 132, 0, 0, 0), seccomp.EPERM),  # SCTP
    ("socket", (2, 1, 256, 0, 0, 0), seccomp.EPERM),  # SMC by another name
    ("socket", (2, 1, 262, 0, 0, 0), seccomp.EPERM),  # MPTCP
    ("socket", (2, 1, 1 << 32 | 6, 0, 0, 0), seccomp.ALLOW),
    ("socket", (2, 6, 0, 0, 0, 0), seccomp.EPERM),  # DCCP
    ("socket", (2, 3, 255, 0, 0, 0), seccomp.EPERM),
    ("seccomp", (1, 8, 0, 0, 0, 0), seccomp.EPERM),
    ("seccomp", (1, 0, 0, 0, 0, 0), seccomp.ALLOW),
    ("personality", (0x0040000, 0, 0, 0, 0, 0), seccomp.ALLOW),
    ("personality", (0x0080000, 0, 0, 0, 0, 0), seccomp.EPERM),
]


@pytest.mark.parametrize(("name", "values", "expected"), HIGH_BITS)
def test_arguments_are_compared_as_the_kernel_takes_them(
    name: str, values: tuple[int, ...], expected: int
) -> None:
    audit, numbers = seccomp.ARCHITECTURES["x86_64"]
    program = seccomp.compile_filter("x86_64", "carrier")
    assert interpret(program, numbers[name], audit, values) == expected


HEAD = """
import sys; sys.path.insert(0, sys.argv[1])
import ctypes, errno, mmap, os, signal
from ms_enclave.spawner import _calls, seccomp
libc = ctypes.CDLL(None, use_errno=True)
def said(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_long(value) for value in arguments])
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "ok"
if sys.argv[2] == "filtered":
    _calls.set_seccomp(seccomp.filter_for("namespaces"))
"""

ORDINARY = """
import asyncio, multiprocessing, socket, sqlite3, subprocess, tempfile, threading, time
def child(queue): queue.put(os.getpid() != os.getppid())
async def both():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    assert await reader.read() == b""
    writer.close(); server.close()
    process = await asyncio.create_subprocess_exec("/bin/echo", "x", stdout=subprocess.PIPE)
    return (await process.communicate())[0]
assert asyncio.run(both()) == b"x\\n"
queue = multiprocessing.get_context("fork").SimpleQueue()
worker = multiprocessing.get_context("fork").Process(target=child, args=(queue,))
worker.start(); assert queue.get(); worker.join()
done = []
threads = [threading.Thread(target=done.append, args=(number,)) for number in range(8)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
assert len(done) == 8
with tempfile.TemporaryDirectory() as folder:
    sqlite3.connect(folder + "/d").execute("create table t (x)").connection.close()
    os.mkfifo(folder + "/fifo"); os.symlink("fifo", folder + "/link")
    with open(folder + "/f", "wb") as file: file.truncate(4096); os.fsync(file.fileno())
    mmap.mmap(os.open(folder + "/f", os.O_RDWR), 4096)[:2] = b"xy"
    os.sendfile(1, os.open(folder + "/f", os.O_RDONLY), 0, 0)
socket.socketpair()[0].close(); socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
assert subprocess.check_output("sort -u < /etc/passwd | wc -l", shell=True) > b"1"
import pty; pty.openpty(); os.memfd_create("m"); os.eventfd(1); time.sleep(0.001)
print("fine")
"""

EVERY = """
import json
table = seccomp.ARCHITECTURES["x86_64"][1]
wanted = {name: number for name, number in table.items()
          if name in seccomp.DENIED or name in seccomp.TRACED}
known = set(table.values())
unknown = {str(number): number for number in range(600)
           if number not in known | {335, 336}}  # kernels let uretprobe and uprobe by every filter
print(json.dumps({name: said(number, 0, 0, 0, 0, 0, 0)
                  for name, number in (wanted | unknown).items()}))
"""

SAMPLES = """
import json
me = os.getpid()
def clone(flags):
    answer = said(56, flags | signal.SIGCHLD, 0, 0, 0, 0)
    if os.getpid() != me or answer == "ok" and not os.waitpid(-1, 0):
        os._exit(0)
    return answer
pty = os.open("/dev/ptmx", os.O_RDWR)
print(json.dumps({
    "sctp": said(41, 2, 1, 132), "smc": said(41, 2, 1, 256), "vsock": said(41, 40, 1, 0),
    "alg": said(41, 38, 5, 0), "packet": said(41, 17, 3, 0), "netfilter": said(41, 16, 3, 12),
    "route": said(41, 16, 3, 0), "high family": said(41, 38 | 1 << 32, 5, 0),
    "user namespace": clone(0x10000000),
    "clone3": said(435, 0, 0), "clone3 right": said(435, 0, 64),
    "listener": said(317, 1, 8, 0), "personality": said(135, 0x0080000),
    "ask personality": said(135, 0xffffffff),
    "inject": said(16, pty, 0x5412, 0), "inject high": said(16, pty, 0x100005412, 0),
    "console": said(16, pty, 0x541c, 0), "size": said(16, pty, 0x5413, 0),
    "device": said(133, 0, 0o20600, 259), "notify": said(72, 0, 1026, 1),
    "lease": said(72, 0, 1024, 1), "trace me": said(101, 0, 0, 0, 0), "keys": said(250, 0, -3, 0),
    "join": said(308, -1, 0), "ring": said(425, 0, 0),
}))
"""

OTHER_NUMBERS = """
def ends(action):
    pid = os.fork()
    if pid == 0:
        action(); os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
def old_abi():
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
    ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print(ends(old_abi), ends(lambda: said(0x40000027)), ends(lambda: said(600)))
"""

on_x86_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="numbers of x86-64 Linux"
)


def run(case: str, how: str = "filtered") -> str:
    sources = str(Path(ms_enclave.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", HEAD + case, sources, how],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.defpath},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux")
def test_ordinary_programs_do_not_notice() -> None:
    assert run(ORDINARY) == "fine\n"


@on_x86_linux
def test_the_kernel_refuses_every_call_that_the_table_denies_or_does_not_know() -> None:
    answers = json.loads(run(EVERY))
    assert len(answers) > 250
    for name, answer in answers.items():
        unknown = name.isdigit() or name == "clone3"
        assert answer == ("ENOSYS" if unknown else "EPERM"), name


@on_x86_linux
def test_the_kernel_compares_arguments_and_without_the_filter_it_would_not() -> None:
    answers = json.loads(run(SAMPLES))
    allowed = {name: answers.pop(name) for name in ("route", "ask personality", "size")}
    assert allowed == {"route": "ok", "ask personality": "ok", "size": "EFAULT"}
    assert (answers.pop("clone3"), answers.pop("clone3 right")) == ("ENOSYS", "ENOSYS")
    assert set(answers.values()) == {"EPERM"}
    free = json.loads(run(SAMPLES, "free"))
    same = {name for name in answers if free[name] == "EPERM"}
    # An ordinary user is refused some of these anyway, and a kernel has not all of it built in.
    assert len(answers) - len(same) >= 12, free


@on_x86_linux
def test_numbers_of_another_abi_end_the_program() -> None:
    killed, killed_too, unknown = (int(word) for word in run(OTHER_NUMBERS).split())
    assert (killed, killed_too, unknown) == (signal.SIGSYS, signal.SIGSYS, 0)
