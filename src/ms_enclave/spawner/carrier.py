"""A stopped process whose memory is copied into slots, and the one primitive: `instantiate`.

A carrier lives in the station's namespaces with the station's capabilities and never runs: it only
makes, under ptrace, the calls it is told to. A child of it enters a slot, gives up everything it
held, and becomes a process of the sandbox that goes on where the carrier was parked: in a read of
descriptor 3. See `blob.S` for the calls and their order.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import select
import socket
import struct

from . import _calls as calls
from . import reopening, tracer
from .blob import BLOB, ENTRY_CARRIER, KERNEL_DONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import ResourceLimits, User
    from .cgroups import Group
    from .slot import Slot

__all__ = [
    "Birth",
    "Carrier",
    "Line",
    "check_walls",
    "instantiate",
    "instantiate_with_shadow",
    "within",
]

_CLONE, _MMAP, _RSEQ = 56, 9, 334
_PIDFD_OPEN, _SETNS, _CLOSE_RANGE = 434, 308, 436
_RECVMSG, _DUP2, _DONT_WAIT = 47, 33, 0x40
_SET_ROBUST_LIST, _ROBUST_LENGTH = 273, 24
_THREAD = 0x01250F00 | 0x80000  # VM FS FILES SIGHAND THREAD SYSVSEM CLEARTID SETTID, and SETTLS
_STREAMS = 3
_FIRST_FREE = 4  # descriptor of a new process, which has its channel as 3
_CLONE_PARENT_CHILD = 0x8000 | 17
_CLONE_VM = 0x100
_BIRTH = 0x01008000  # CLONE_CHILD_SETTID, CLONE_PARENT
_CLONE_SHARED = 0x900  # CLONE_VM, CLONE_SIGHAND
_ENTERED = calls.EVERY_NAMESPACE & ~calls.CLONE_NEWPID  # in that one it is born
_FIRST = 2  # the number of the first process beside init
_CLONE_INTO_CGROUP = 0x200000000
_PAGE = 4096
_READ_EXECUTE, _READ_WRITE, _NEW, _IN_PLACE = (
    5,
    3,
    0x22,
    0x32,
)  # PROT_*; MAP_PRIVATE|ANONYMOUS|FIXED
_MOST_DESCRIPTORS = 32
_MOST_STATUS = 1 << 16
_CLONE_ARGUMENTS = 96  # bytes from one to the next
_MESSAGE, _VECTOR, _BYTE, _NUMBER, _CONTROL, _CONTROL_LENGTH = 576, 640, 656, 664, 672, 256
_PATHS = 1024  # what is from here on in the page of data is free
_SHARED, _SHARED_NUMBERED = 2, 5  # ways to be born
_JOINED = 6  # the descriptor in which blob.S has the group that a child is born in
_WALLED = b"\nCapInh:\t%s\nCapPrm:\t%s\nCapEff:\t%s\nCapBnd:\t%s\nCapAmb:\t%s\n" % (
    (b"0" * 16,) * 5
) + b"NoNewPrivs:\t1\nSeccomp:\t2\n"  # fmt: skip
_THREAD_ID_OFFSET = 0x2D0  # glibc's struct pthread.tid, x86-64; checked, never trusted
_THREAD_AREA = 0x800


class Carrier:
    """A stopped, seized process with the code page in it.

    `state` is where its copies go on, and may be what a program of a user's had in its registers;
    `orders` is what those begin from that we have it or its copies do. `page` has the code and
    `data` what its calls point to; `thread_id` is the address at which libc keeps the thread's id,
    which the kernel rewrites in each copy.
    """

    __slots__ = (
        "away", "data", "opened", "orders", "packed", "page", "pid", "state", "thread_id",
        "threads",
    )  # fmt: skip

    def __init__(
        self,
        pid: int,
        state: tracer.State,
        page: int,
        data: int,
        thread_id: int,
        orders: tracer.State | None = None,
    ) -> None:
        self.pid = pid
        self.state = state
        self.orders = state if orders is None else orders
        self.threads: list[tracer.State] = []
        """Further threads that its copies have."""

        self.opened: reopening.Opened | None = None
        """What they have open beside their streams and their channel."""

        self.page = page
        self.data = data
        self.thread_id = thread_id
        self.packed = False
        self.away = False
        """Whether its children would be born in a slot, where the last one was."""

    @classmethod
    def of_parked(cls, pid: int) -> Carrier:
        """Make a carrier of a child of the station that is parked in a blocking system call.

        Raises tracer.TraceError where ptrace or the C library does not allow it.
        """
        state = tracer.seize_parked(pid)
        here = state.registers.rip
        if _read(pid, here, 2) != b"\x0f\x05":
            raise tracer.TraceError(f"{pid} entered its system call in a way not known")
        if state.rseq_pointer:
            # A carrier with rseq would clear the critical section of a process that shares it.
            _expect(
                pid, state, here, _RSEQ, state.rseq_pointer, state.rseq_length, 1,
                state.rseq_signature,
            )  # fmt: skip
        page = _expect(pid, state, here, _MMAP, 0, _PAGE, _READ_EXECUTE, _NEW, -1, 0)
        data = _expect(pid, state, here, _MMAP, 0, _PAGE, _READ_WRITE, _NEW, -1, 0)
        thread_id = _find_thread_id(pid, state.registers.fs_base, pid)
        return cls(pid, state, page, data, thread_id)._filled()

    @classmethod
    def of_copy(
        cls, pid: int, origin: Carrier, state: tracer.State, *, shares_nothing: bool = False
    ) -> Carrier:
        """Make a carrier of a stopped copy of memory that somebody hostile may have written.

        Its pages are made anew: what ran there may have changed them, or may share them. `origin`
        is the carrier that the memory began as, `state` where the copies go on.
        Raises tracer.TraceError if anything in it is memory that its copies would share, which
        would lead from one sandbox into another; with `shares_nothing` somebody has looked already.
        """
        if not shares_nothing:
            _refuse_shared_memory(pid)
        orders, page, data = origin.orders, origin.page, origin.data
        for place, rights in ((data, _READ_WRITE), (page, _READ_EXECUTE)):
            _expect(pid, orders, page, _MMAP, place, _PAGE, rights, _IN_PLACE, -1, 0)
        return cls(pid, state, page, data, origin.thread_id, orders)._filled()

    def shadow_of(self, pid: int) -> Carrier:
        """The carrier that `pid` is, a copy of this one that shares a kernel's memory."""
        return Carrier(pid, self.orders, self.page, self.data, self.thread_id, self.orders)

    def _filled(self) -> Carrier:
        _write(self.pid, self.page, BLOB)
        _write(self.pid, self.data, _call_data(self.data, self.thread_id))
        return self

    def copy(self) -> int:
        """A stopped copy with the same memory contents, a child of the station."""
        return self._clone(_CLONE_PARENT_CHILD)

    def twin(self) -> Carrier:
        """One more that shares the memory, and is the caller's to kill as this one is."""
        return self.shadow_of(self._clone(_CLONE_PARENT_CHILD | _CLONE_VM))

    def _clone(self, flags: int) -> int:
        if self.away:
            _come_back(self.pid, self)
            self.away = False
        result, made = tracer.system_call(self.pid, self.orders, self.page, _CLONE, flags)
        if result < 0 or made is None:
            raise OSError(-result, f"copying a carrier: {os.strerror(-result)}")
        return made


class Birth:
    """What a process is to be: where, and held by what.

    `channel` becomes its descriptor 3; `user` is its uid and gid inside, (0, 0) for a one-id map;
    `group` its control group, which it joins before it owns a page of its own; `limits` maps
    RLIMIT_* to (soft, hard); `processors` is the set of CPUs it may use; `single` whether nobody
    else is ever to be made in the slot as long as it lives, so that it needs to share less with it;
    `taken` are processors on which it would have to wait; `number` is its pid inside, None for the
    next one; with `streams` the first byte in its channel has three descriptors with it, which it
    has as its standard streams when it goes on.
    """

    __slots__ = (
        "channel", "group", "limits", "number", "processors", "single", "slot", "streams", "taken",
        "user",
    )  # fmt: skip

    def __init__(
        self,
        slot: Slot,
        channel: int,
        user: User,
        group: Group,
        limits: ResourceLimits,
        processors: set[int],
        *,
        single: bool = False,
        taken: set[int] | frozenset[int] = frozenset(),
        number: int | None = None,
        streams: bool = False,
    ) -> None:
        self.slot = slot
        self.channel = channel
        self.user = user
        self.group = group
        self.limits = limits
        self.processors = processors
        self.single = single
        self.taken = taken
        self.number = number
        self.streams = streams


class Line:
    """How descriptors come to carriers and their copies: all have its other end as descriptor 3."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self.counter = _open_counter()
        """Of process numbers, for who writes to it in a slot; None where the kernel has none."""

    def send(self, descriptors: list[int]) -> None:
        """One byte and descriptors for the next who reads."""
        socket.send_fds(self.ours, [b"0"], descriptors)

    def clear(self) -> None:
        """Take back what nobody has read, and what came back: neither is for the next one."""
        while select.select([self.ours], [], [], 0)[0]:
            self.ours.recv(1)
        if not select.select([self.theirs], [], [], 0)[0]:
            return
        for descriptor in socket.recv_fds(self.theirs, 1, _MOST_DESCRIPTORS)[1]:
            os.close(descriptor)

    def close(self) -> None:
        """What waits at the other end ends."""
        self.ours.close()
        self.theirs.close()
        os.close(self.home)
        if self.counter is not None:
            os.close(self.counter)


def _open_counter() -> int | None:
    try:
        return os.open("/proc/sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None


def instantiate(carrier: Carrier, birth: Birth, line: Line) -> int:
    """A process in a slot, at the point where the carrier is parked.

    Raises tracer.TraceError or OSError, tracer.InterferedError if somebody in the slot killed it
    before it was made, and then nothing of it is left running.
    """
    folder, files = birth.group.entrance()
    way = 1 if folder is None else 0
    if birth.single and line.counter is not None:
        os.lseek(line.counter, 0, os.SEEK_SET)  # the kernel takes no number from further on
        way, files = way + 3, [*files, line.counter]
    carrier.away = True
    kernel = _bear(carrier.pid, carrier, birth, line, way, [folder or line.home, line.home, *files])
    try:
        _let_go(kernel, carrier, birth, entered=True)
    except BaseException as error:
        tracer.end_made(kernel, 0, error)
        raise
    return kernel


def instantiate_with_shadow(carrier: Carrier, birth: Birth, line: Line) -> tuple[int, Carrier]:
    """The same, and a carrier of it: a stopped process outside that shares its memory, from which
    copies of it can be made, and which is the caller's to kill."""
    shadow = carrier.copy()
    kernel = None
    way = _SHARED
    try:
        birth.group.admit(shadow, stays=True)
        if birth.number is not None:
            way = _SHARED_NUMBERED
            _write(shadow, carrier.data + _NUMBER, struct.pack("=I", birth.number))
        kernel = _bear(shadow, carrier, birth, line, way, [line.home, line.home])
        _let_go(kernel, carrier, birth, entered=False)
    except BaseException as error:
        tracer.end_made(kernel or 0, shadow, error)
        raise
    return kernel, carrier.shadow_of(shadow)


def _call_data(address: int, thread_id: int) -> bytes:
    """What the calls of blob.S point to, for a page at `address`: six ways to be born (into a
    control group, where the carrier is, there and sharing its memory, the first two with a number
    and an IPC namespace of its own, and the third with a number), and where descriptors come.
    """
    number = address + _NUMBER
    ways = (
        (_BIRTH | _CLONE_INTO_CGROUP, 0, _JOINED),
        (_BIRTH, 0, 0),
        (_BIRTH | _CLONE_SHARED, 0, 0),
        (_BIRTH | _CLONE_INTO_CGROUP | calls.CLONE_NEWIPC, number, _JOINED),
        (_BIRTH | calls.CLONE_NEWIPC, number, 0),
        (_BIRTH | _CLONE_SHARED, number, 0),
    )
    born = [
        struct.pack("=3Q5Q3Q8x", way, 0, thread_id, *[0] * 5, chosen, chosen and 1, group)
        for way, chosen, group in ways
    ]
    message = _message(address)
    return b"".join(born) + message + struct.pack("=QQQI", address + _BYTE, 1, 0, _FIRST)


def _message(address: int) -> bytes:
    """A struct msghdr in the page at `address` for one byte and what comes with it."""
    return struct.pack(
        "=6QI12x", 0, 0, address + _VECTOR, 1, address + _CONTROL, _CONTROL_LENGTH, 0
    )


def _bear(
    source: int, carrier: Carrier, birth: Birth, line: Line, way: int, more: list[int]
) -> int:
    """A child of `source`, whose memory no untrusted task maps, in the slot's pid namespace."""
    shared = way in (_SHARED, _SHARED_NUMBERED)
    registers = tracer.Registers.from_buffer_copy(carrier.orders.registers)
    registers.rip = carrier.page + ENTRY_CARRIER
    registers.rax, registers.orig_rax = 0, 2**64 - 1
    registers.rdi = carrier.data + _MESSAGE
    registers.rsi = carrier.data + way * _CLONE_ARGUMENTS
    registers.r12 = int(not shared)  # a shadow has to come back while it can still be trusted
    registers.r13 = _ENTERED if shared or way < _SHARED else _ENTERED & ~calls.CLONE_NEWIPC
    registers.r14 = carrier.state.rseq_pointer
    registers.r15 = carrier.state.rseq_signature << 32 | carrier.state.rseq_length
    registers.rbx = birth.user[1] << 32 | birth.user[0]
    place = os.pidfd_open(birth.slot.init)
    try:
        line.send([place, birth.channel, *more])
    finally:
        os.close(place)
    try:
        return _run_carrier(source, carrier, registers)
    except BaseException:
        line.clear()
        raise


def _run_carrier(source: int, carrier: Carrier, registers: tracer.Registers) -> int:
    made: int | None = None
    try:
        result, made = tracer.run_page(source, carrier.page, registers)
        if made is None and result < 0:
            _come_back(source, carrier)
            raise OSError(-result, f"entering a slot: {os.strerror(-result)}")
        if made is None or result < 0:
            raise tracer.TraceError(f"entering a slot: {os.strerror(-result)}")
    except tracer.TraceError as error:
        if error.pid not in (0, source):  # what was born was killed at once
            tracer.run_page(source, carrier.page, None)
            tracer.end_made(error.pid, 0, error)
            raise
        if made is not None:
            tracer.kill(made)
        tracer.kill(source)  # nobody knows how far it came: it is made anew
        raise
    return made


def _come_back(source: int, carrier: Carrier) -> None:
    """Undo what a birth has done before it failed: the next children are to be born outside."""
    own = _expect(source, carrier.orders, carrier.page, _PIDFD_OPEN, 1, 0)
    _expect(source, carrier.orders, carrier.page, _SETNS, own, calls.CLONE_NEWPID)
    _expect(source, carrier.orders, carrier.page, _CLOSE_RANGE, 4, 2**32 - 1, 0)


def _let_go(kernel: int, carrier: Carrier, birth: Birth, *, entered: bool) -> None:
    """Have a new process give up all that a slot must not have, look at it, and let it run."""
    result, _ = tracer.run_page(kernel, carrier.page, None)
    if result != KERNEL_DONE:
        raise OSError(-result, f"giving up what a slot must not have: {os.strerror(-result)}")
    for kind, pair in birth.limits.items():
        resource.prlimit(kernel, kind, within(pair, _hard_limit(kind)))
    away = birth.processors - os.sched_getaffinity(0) - birth.taken
    os.sched_setaffinity(kernel, away or birth.processors)
    check_walls(kernel)
    birth.group.settle(kernel, birth.slot.outside(birth.user), entered=entered)
    if birth.streams:
        _take_streams(kernel, carrier)
        _set_robust_list(kernel, carrier, carrier.state)
    if carrier.opened is not None:
        _reopen(kernel, carrier, carrier.opened)
    threads = [_add_thread(kernel, carrier, state) for state in carrier.threads]
    tracer.load_state(kernel, carrier.state)
    for thread in threads:
        os.sched_setaffinity(thread, birth.processors)
        tracer.detach(thread)
    tracer.detach(kernel)
    if away:
        # It runs by now: a refusal cannot be one of the whole any more, and leaves it with less.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(kernel, birth.processors)


def _add_thread(kernel: int, carrier: Carrier, state: tracer.State) -> int:
    """One more thread of a process that is about to run, stopped where another one was. It has no
    more rights than who makes it. Its own id stands where libc looks for it."""
    area = state.registers.fs_base
    own_id = area + carrier.thread_id - carrier.orders.registers.fs_base
    result, thread = tracer.system_call(
        kernel, carrier.orders, carrier.page, _CLONE, _THREAD, 0, 0, own_id, area
    )
    if result < 0 or thread is None:
        raise OSError(-result, f"making a thread: {os.strerror(-result)}")

    _set_robust_list(thread, carrier, state)
    if state.rseq_pointer:
        _expect(
            thread, carrier.orders, carrier.page, _RSEQ, state.rseq_pointer, state.rseq_length, 0,
            state.rseq_signature,
        )  # fmt: skip
    tracer.load_state(thread, state)
    return thread


def _set_robust_list(thread: int, carrier: Carrier, state: tracer.State) -> None:
    if state.robust:
        _expect(
            thread, carrier.orders, carrier.page, _SET_ROBUST_LIST, state.robust, _ROBUST_LENGTH
        )


def _take_streams(kernel: int, carrier: Carrier) -> None:
    """Have a process whose memory nobody else uses yet take what is first in its channel: a byte,
    and descriptors that become 0, 1 and 2. It has no rights by now but those it is to have."""
    _write(kernel, carrier.data + _MESSAGE, _message(carrier.data))

    def call(number: int, *arguments: int) -> int:
        return _expect(kernel, carrier.orders, carrier.page, number, *arguments)

    call(_RECVMSG, 3, carrier.data + _MESSAGE, _DONT_WAIT)
    came = [_FIRST_FREE + place for place in range(_STREAMS)]
    head = struct.pack("=QII", 16 + 4 * _STREAMS, socket.SOL_SOCKET, socket.SCM_RIGHTS)
    expected = head + struct.pack(f"={_STREAMS}i", *came)
    if _read(kernel, carrier.data + _CONTROL, len(expected)) != expected:
        raise tracer.TraceError(f"{kernel} was not given its streams")
    for number, descriptor in enumerate(came):
        call(_DUP2, descriptor, number)
    call(_CLOSE_RANGE, _FIRST_FREE, 2**32 - 1, 0)


def _reopen(kernel: int, carrier: Carrier, opened: reopening.Opened) -> None:
    """Have a process whose memory nobody else uses yet open what it is to have. It has no rights by
    now but those it is to have."""

    def call(number: int, *arguments: int) -> int:
        return tracer.system_call(kernel, carrier.orders, carrier.page, number, *arguments)[0]

    def put(path: bytes) -> int:
        if len(path) > _PAGE - _PATHS:
            raise reopening.ReopenError("its name is too long")
        _write(kernel, carrier.data + _PATHS, path)
        return carrier.data + _PATHS

    def get(length: int) -> bytes:
        return _read(kernel, carrier.data + _PATHS, length)

    reopening.reopen(opened, call, put, get)


@functools.cache
def _hard_limit(kind: int) -> int:
    """What the station has, and every copy of a carrier with it."""
    return resource.getrlimit(kind)[1]


def within(pair: tuple[int, int], most: int) -> tuple[int, int]:
    """A limit as far as it can be set: never above the hard one that the machine already has."""
    if most == resource.RLIM_INFINITY:
        return pair
    return min(pair[0], most), min(pair[1], most)


def check_walls(pid: int) -> None:
    """Read from outside what a process that is about to run still has; raise if it is anything."""
    file = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(file, _MOST_STATUS)
    finally:
        os.close(file)
    if _WALLED in text:
        return
    rows = dict(line.split(b":\t", 1) for line in text.splitlines() if b":\t" in line)
    held = [
        name
        for name in (b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb")
        if int(rows[name], 16)
    ]
    if held or rows[b"NoNewPrivs"] != b"1" or rows[b"Seccomp"] != b"2":
        raise tracer.TraceError(f"{pid} would have run with {held}, {rows[b'Seccomp']!r}")


def _refuse_shared_memory(pid: int) -> None:
    with open(f"/proc/{pid}/smaps", "rb", buffering=-1) as file:
        for line in file:
            if line.startswith(b"VmFlags:") and {b"sh", b"mw"} <= {*line.split()}:
                raise tracer.TraceError("it shares memory, which every sandbox would then do")


def _expect(pid: int, state: tracer.State, page: int, number: int, *arguments: int) -> int:
    result, _ = tracer.system_call(pid, state, page, number, *arguments)
    if result < 0:
        raise tracer.TraceError(f"call {number} in {pid}: {os.strerror(-result)}")
    return result


def _write(pid: int, address: int, content: bytes) -> None:
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(content)


def _read(pid: int, address: int, length: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length)


def _find_thread_id(pid: int, thread_area: int, wanted: int) -> int:
    """Where libc keeps the main thread's id. Raises TraceError if that is not certain."""
    area = _read(pid, thread_area, _THREAD_AREA)
    words = memoryview(area).cast("i")
    if words[_THREAD_ID_OFFSET // 4] == wanted:
        return thread_area + _THREAD_ID_OFFSET
    found = [index for index, word in enumerate(words) if word == wanted]
    if len(found) != 1:
        raise tracer.TraceError("this C library keeps the thread's id in a place not known")
    return thread_area + 4 * found[0]
