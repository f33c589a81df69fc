"""Bombs: each takes one thing until it is refused it, or has as much as the figures below say.

So each ends by itself where nothing stops it, with no more than some hundred processes, some
thousand files, half a GiB of memory and a few seconds. Who was refused anything fails: a sandbox
without control groups knows by that alone that a limit was reached.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import tempfile
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .prelude import call, note, tried

PROCESSES = 300
ORPHANS = 100
THINGS = 1000
"""Descriptors, signals, queues: above what a sandbox may have, below what a machine has."""
FILES = 4000
BYTES = 320 << 20
STEP = 4 << 20
STORED = 80 << 20
FLOOD = 2 << 20
SECONDS = 3.0
"""How long those wait who hold what they have got."""
LINGER = 0.7
"""The same for who has been refused nothing: a guard that looks is to have looked by then."""
RANGES = 20000
"""Some MiB of the kernel's."""
BUSY = 1.0
SPARSE = 24000
"""Pages that are touched far from each other; each has a table of its own."""


def spend(
    name: str, take: Callable[[], Any], most: int, guard: str = "",
    drop: Callable[[Any], object] | None = None, linger: float = 0,
) -> list[Any]:  # fmt: skip
    """Take something again and again, and note whether `most` could be had."""
    held: list[Any] = []
    try:
        while len(held) < most:
            held.append(take())
    except (OSError, MemoryError, RuntimeError) as error:
        number = getattr(error, "errno", None) or 0
        said = errno.errorcode.get(number, type(error).__name__)
        note(name, f"{said} after {len(held)}", guard)
    else:
        note(name, f"ok: {most}", guard)
        time.sleep(linger)
    if drop is not None:
        for thing in held:
            drop(thing)
    return held


def apart(name: str, action: Callable[[], Any]) -> None:
    """Do it in a child, with which all goes that it took, and note what it notes."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            tried.clear()
            action()
            os.write(writing, json.dumps(tried).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    if said:
        tried.update(json.loads(said))
    else:
        note(name, "it was killed")


# --- processes ----------------------------------------------------------------------------------


def fork_bomb() -> None:
    """Everybody forks, as long as there are tokens; whoever has none waits for the end."""
    tokens, filling = os.pipe()
    life, end = os.pipe()
    refused, refusing = os.pipe()
    os.write(filling, b"x" * PROCESSES)
    for descriptor in (tokens, refused):
        os.set_blocking(descriptor, False)
    main, owned = os.getpid(), [end]
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            os.read(tokens, 1)
        except BlockingIOError:
            break
        try:
            if os.fork() == 0 and owned:
                os.close(owned.pop())
        except OSError:
            os.write(refusing, b"x")
            time.sleep(0.005)
    if os.getpid() != main:
        os.read(life, 1)
        os._exit(0)
    os.close(end)
    try:
        note("fork without end", f"EAGAIN {len(os.read(refused, 1 << 16))} times")
    except BlockingIOError:
        note("fork without end", f"ok: {PROCESSES} processes")


def vfork_storm() -> None:
    """Have programs started that never begin: each stands before a gate that is shut, and whoever
    starts it by vfork waits with it, where nothing less than SIGKILL reaches him."""
    os.mkfifo("gate")
    refused, refusing = os.pipe()
    os.set_blocking(refused, False)
    before = [(os.POSIX_SPAWN_OPEN, 0, "gate", os.O_RDONLY, 0)]

    def start() -> int:
        pid = os.fork()
        if pid == 0:
            try:
                os.posix_spawn("/nowhere", ["nowhere"], {}, file_actions=before)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    os.write(refusing, b"x")
            finally:
                os._exit(0)
        return pid

    made = spend("start who starts", start, PROCESSES // 2)
    time.sleep(LINGER)
    gate = os.open("gate", os.O_RDWR)  # it opens, and there is no such program behind it
    for pid in made:
        os.waitpid(pid, 0)
    os.close(gate)
    said = f"ok: {len(made)}"
    with contextlib.suppress(BlockingIOError):
        said = f"EAGAIN {len(os.read(refused, 1 << 16))} times"
    if len(made) < PROCESSES // 2:
        said = f"EAGAIN after {len(made)}"  # what began first had taken all that there was
    note("start what does not begin", said)


def thread_storm() -> None:
    threading.stack_size(64 << 10)
    end = threading.Lock()
    end.acquire()
    spend("have threads", lambda: _thread.start_new_thread(end.acquire, (True, SECONDS)), PROCESSES)
    time.sleep(0.3)  # without groups whoever looks is to see how many there are


def zombies() -> None:
    def die() -> None:
        if os.fork() == 0:
            os._exit(0)

    apart("leave the dead", lambda: spend("leave the dead", die, PROCESSES))
    note("fill up with orphans", _orphans())


def _orphans() -> str:
    """Have so many one after the other that somebody has to see off those that nobody waits for."""
    made, last = 0, time.monotonic()
    while made < ORPHANS and time.monotonic() < last + SECONDS:
        try:
            pid = os.fork()
        except OSError:
            time.sleep(0.005)  # until some of them have been seen off
            continue
        if pid == 0:
            try:
                os.fork()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        made, last = made + 1, time.monotonic()
    return f"ok: no more after {made}" if made < ORPHANS else "all were seen off"


def spin() -> None:
    begun = time.monotonic()
    children: list[int] = []
    for _ in range(16):
        pid = os.fork()
        if pid == 0:
            while time.monotonic() < begun + BUSY:
                pass
            os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    times = os.times()
    share = (times.children_user + times.children_system) / (time.monotonic() - begun)
    took = f"{'ok: ' if share > 0.4 else ''}{share:.2f} processors"
    note("use every processor", took, "cgroup_cpu")


# --- memory -------------------------------------------------------------------------------------


def fill(name: str, take: Callable[[], Any], step: int = STEP) -> None:
    """Take memory and hold it."""
    spend(name, take, BYTES // step, "cgroup_memory", linger=LINGER)


def heap() -> None:
    fill("memory of its own", lambda: bytearray(b"x") * STEP)


def mapping() -> None:
    def take() -> mmap.mmap:
        memory = mmap.mmap(-1, STEP)
        memory.write(b"x" * STEP)
        return memory

    fill("memory that is shared", take)


def many_processes() -> None:
    """Each has little, and all together have much."""
    share, ready, life = BYTES // 32, os.pipe(), os.pipe()
    children: list[int] = []
    for _ in range(32):
        pid = os.fork()
        if pid == 0:
            os.close(life[1])
            held = bytearray(b"x") * share
            os.write(ready[1], b"x")
            os.read(life[0], 1)
            del held
            os._exit(0)
        children.append(pid)
    full = 0
    while full < 32 and select.select([ready[0]], [], [], BUSY)[0]:
        full += len(os.read(ready[0], 32))
    time.sleep(LINGER if full == 32 else 0)
    # Some may have been killed for it after they had it.
    alive = sum(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in children)
    held_at_once = min(full, alive)
    said = f"ok: {alive}" if held_at_once == 32 else f"only {held_at_once} of 32"
    note("memory of many", said, "cgroup_memory")


def files_in_memory() -> None:
    def take() -> int:
        file = os.memfd_create("bomb")
        os.write(file, b"x" * STEP)
        return file

    fill("files without a name", take)


def shared_memory() -> None:
    def take() -> str:
        descriptor, path = tempfile.mkstemp(dir="/dev/shm")
        with open(descriptor, "wb") as file:
            file.write(b"x" * STEP)
        return path

    spend("files in shared memory", take, BYTES // STEP, "cgroup_memory", os.unlink, LINGER)


def page_tables() -> None:
    none_reserved = 0x4000
    size = SPARSE << 21
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | none_reserved
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        note("tables of pages", errno.errorcode.get(error.errno or 0, "?"), "cgroup_memory")
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    call("madvise", address, size, 15)  # NOHUGEPAGE
    for place in range(0, size, 1 << 21):
        memory[place] = 1
    time.sleep(LINGER)
    note("tables of pages", f"ok: {SPARSE}", "cgroup_memory")


def buffers() -> None:
    """What is written and not read lies in the kernel."""

    def take() -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        for end in pair:
            end.setblocking(False)
            try:
                while True:
                    end.send(b"x" * 65536)
            except BlockingIOError:
                pass
        return pair

    fill("buffers of sockets", take, 400 << 10)


def messages() -> None:
    most = BYTES // (16 << 10)
    text = ctypes.create_string_buffer(b"\1" + b"x" * 8200)
    made: list[int] = []

    def take() -> None:
        made.append(call("msgget", 0, 0o600))
        for _ in range(2):
            call("msgsnd", made[-1], text, 8000, 0o4000)

    try:
        spend("queues of messages", take, most, "cgroup_memory", linger=LINGER)
    finally:
        for queue in made:
            call("msgctl", queue, 0, 0)


# --- disk ---------------------------------------------------------------------------------------


def storing() -> None:
    home = os.getcwd()
    size = 1 << 40

    def sparse() -> None:
        with open("sparse", "wb") as file:
            file.truncate(size)

    def allocated() -> None:
        with open("allocated", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, STORED)

    spend("a file with holes", sparse, 1, "disk_limit")
    spend("a file that is allocated", allocated, 1, "disk_limit")
    for name in ("sparse", "allocated"):
        if os.path.exists(name):
            os.unlink(name)
    for folder in dict.fromkeys((home, "/tmp", "/var/tmp", "/root", "/usr/local", "/run")):
        if os.access(folder, os.W_OK):
            guard = "disk_limit" if folder == home else "read_only_root"
            spend(f"files in {folder}", lambda folder=folder: _store(folder), STORED // STEP,
                  guard, os.unlink, LINGER if folder == home else 0)  # fmt: skip


def _store(folder: str) -> str:
    descriptor, path = tempfile.mkstemp(dir=folder)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            left = STEP
            while left:
                left -= file.write(b"x" * left)
    except OSError:
        os.unlink(path)
        raise
    return path


def names() -> None:
    for name, take in (
        ("many files", _files("{}")),
        ("long names", _files("{:0255}")),
        ("many links", _links()),
    ):
        spend(name, take, FILES, "disk_limit file_limit", os.unlink, LINGER / 2)
    apart("deep folders", _deep)


def _files(form: str) -> Callable[[], str]:
    numbers = iter(range(1 << 30))

    def take() -> str:
        name = form.format(next(numbers))
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        return name

    return take


def _links() -> Callable[[], str]:
    numbers = iter(range(1 << 30))

    def take() -> str:
        number = next(numbers)
        name = f"link{number}"
        if number == 0:
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
        else:
            os.link("link0", name)
        return name

    return take


def _deep() -> None:
    depth = iter(range(1 << 30))

    def down() -> int:
        os.mkdir("d")
        os.chdir("d")
        return next(depth)

    made = spend("deep folders", down, FILES, "disk_limit file_limit")
    for _ in made:
        os.chdir("..")
        os.rmdir("d")


# --- what the kernel holds ----------------------------------------------------------------------


def descriptors() -> None:
    rows: dict[str, Callable[[], Any]] = {
        "descriptors": lambda: os.dup(1),
        "epoll": lambda: call("epoll_create1", 0),
        "eventfd": lambda: call("eventfd2", 0, 0),
        "timerfd": lambda: call("timerfd_create", 1, 0),
        "inotify": lambda: call("inotify_init1", 0),
        "terminals": os.openpty,
        "sockets": socket.socketpair,
    }
    for name, take in rows.items():
        apart(name, lambda name=name, take=take: spend(name, take, THINGS))
    apart("descriptors on their way", _in_flight)


def _in_flight() -> None:
    pairs: list[tuple[socket.socket, socket.socket]] = []

    def take() -> None:
        if len(pairs) * 10 <= sent[0]:
            pairs.append(socket.socketpair())
        socket.send_fds(pairs[-1][0], [b"x"], [1] * 10)
        sent[0] += 10

    sent = [0]
    spend("descriptors on their way", take, THINGS // 10)


def locks() -> None:
    """Those of open files end with the files. Those of ranges have no limit of their own, and most
    kernels charge nobody for them."""
    apart("locks of files", lambda: spend("locks of files", _lock_a_file, THINGS))
    ranges = _ranges()
    apart("locks of ranges", lambda: spend("locks of ranges", ranges, RANGES, "lock_limit"))


def _lock_a_file() -> int:
    descriptor = os.open("locked", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _ranges() -> Callable[[], None]:
    """Each byte for itself, with one between, so that no two become one; some thousand of a file,
    for the kernel goes through all of them each time."""
    held: list[int] = []
    numbers = iter(range(1 << 30))

    def take() -> None:
        number = next(numbers)
        if number % THINGS == 0:
            held.append(os.open(f"ranges{len(held)}", os.O_CREAT | os.O_RDWR))
        fcntl.lockf(held[-1], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * (number % THINGS))

    return take


def queues() -> None:
    number = int(signal.SIGRTMIN) + 1
    signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    info = (ctypes.c_int * 32)(number, 0, -1)  # SI_QUEUE
    apart("signals", lambda: spend(
        "signals", lambda: call("rt_sigqueueinfo", os.getpid(), number, info), THINGS * 6
    ))  # fmt: skip
    apart("queues", lambda: spend("queues", _queues(), THINGS // 10))


def _queues() -> Callable[[], Any]:
    numbers = iter(range(1 << 30))
    shape = (ctypes.c_long * 8)(0, 10, 8192)  # ten messages of 8 KiB

    def take() -> int:
        name = f"bomb{next(numbers)}".encode()
        queue = call("mq_open", name, os.O_CREAT | os.O_RDWR, 0o600, shape)
        call("mq_unlink", name)
        return queue

    return take


# --- output -------------------------------------------------------------------------------------


def output_flood() -> None:
    kinds = (b"y\n", b"\0" * 4096, b"x" * 4096, b"\xff\xfe" * 2048, b"\x1b[31m" * 800)
    for kind in kinds:
        for descriptor in (1, 2):
            left = FLOOD // len(kind) * len(kind)
            text = kind * (65536 // len(kind))
            while left > 0:
                left -= os.write(descriptor, text[:left])
    note("print without end", f"{len(kinds)} times {FLOOD >> 20} MiB")
