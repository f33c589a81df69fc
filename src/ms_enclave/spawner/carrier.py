"""A stopped process whose memory is copied into slots, and the one primitive: `instantiate`.

A carrier lives in the station's namespaces with the station's capabilities and never runs: it only
makes, under ptrace, the calls it is told to. A child of it enters a slot, gives up everything it
held, and becomes a process of the sandbox that goes on where the carrier was parked: in a read of
descriptor 3. See `blob.S` for the calls and their order.
"""

from __future__ import annotations

import functools
import os
import resource

from . import _calls as calls
from . import tracer
from .blob import BLOB, ENTRY_CARRIER, KERNEL_DONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._shapes import ResourceLimits, User
    from .cgroups import Group
    from .slot import Slot

__all__ = ["Birth", "Carrier", "check_walls", "instantiate", "instantiate_with_shadow", "within"]

_CLONE, _MMAP, _RSEQ = 56, 9, 334
_PIDFD_OPEN, _SETNS, _CLOSE_RANGE = 434, 308, 436
_CLONE_PARENT_CHILD = 0x8000 | 17
_BIRTH = 0x01008000 | 17  # CLONE_CHILD_SETTID, CLONE_PARENT
_CLONE_SHARED = 0x900  # CLONE_VM, CLONE_SIGHAND
_PAGE = 4096
_THREAD_ID_OFFSET = 0x2D0  # glibc's struct pthread.tid, x86-64; checked, never trusted
_THREAD_AREA = 0x800


class Carrier:
    """A stopped, seized process with the code page in it.

    `state` is where its copies go on; `thread_id` is the address at which libc keeps the thread's
    id, which the kernel rewrites in each copy.
    """

    __slots__ = ("page", "pid", "state", "thread_id")

    def __init__(self, pid: int, state: tracer.State, page: int, thread_id: int) -> None:
        self.pid = pid
        self.state = state
        self.page = page
        self.thread_id = thread_id

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
        page = _expect(pid, state, here, _MMAP, 0, _PAGE, 5, 0x22, -1, 0)
        _write_blob(pid, page)
        return cls(pid, state, page, _find_thread_id(pid, state.registers.fs_base, pid))

    @classmethod
    def of_copy(cls, pid: int, bare: Carrier, state: tracer.State) -> Carrier:
        """Make a carrier of a stopped copy of memory that somebody hostile may have written.

        Its code page is made anew: what ran there may have changed it, or may share it. `bare` is
        the carrier that the memory began as, `state` where the copies go on.
        Raises tracer.TraceError if anything in it is memory that its copies would share, which
        would lead from one sandbox into another.
        """
        with open(f"/proc/{pid}/smaps", "rb", buffering=-1) as file:
            for line in file:
                if line.startswith(b"VmFlags:") and {b"sh", b"mw"} <= {*line.split()}:
                    raise tracer.TraceError("it shares memory, which every sandbox would then do")
        _expect(pid, bare.state, bare.page, _MMAP, bare.page, _PAGE, 5, 0x32, -1, 0)  # MAP_FIXED
        _write_blob(pid, bare.page)
        return cls(pid, state, bare.page, bare.thread_id)

    def copy(self) -> int:
        """A stopped copy with the same memory contents, a child of the station."""
        result, made = tracer.system_call(
            self.pid, self.state, self.page, _CLONE, _CLONE_PARENT_CHILD
        )
        if result < 0 or made is None:
            raise OSError(-result, f"copying a carrier: {os.strerror(-result)}")
        return made


class Birth:
    """What a process is to be: where, and held by what.

    `channel` becomes its descriptor 3; `user` is its uid and gid inside, (0, 0) for a one-id map;
    `group` its control group, which it joins before it owns a page of its own; `limits` maps
    RLIMIT_* to (soft, hard); `processors` is the set of CPUs it may use.
    """

    __slots__ = ("channel", "group", "limits", "processors", "slot", "user")

    def __init__(
        self,
        slot: Slot,
        channel: int,
        user: User,
        group: Group,
        limits: ResourceLimits,
        processors: set[int],
    ) -> None:
        self.slot = slot
        self.channel = channel
        self.user = user
        self.group = group
        self.limits = limits
        self.processors = processors


def instantiate(carrier: Carrier, birth: Birth) -> int:
    """A process in a slot, at the point where the carrier is parked.

    Raises tracer.TraceError or OSError, tracer.InterferedError if somebody in the slot killed it
    before it was made, and then nothing of it is left running.
    """
    kernel = _bear(carrier.pid, carrier, birth, _BIRTH)
    try:
        birth.group.admit(kernel)
        _let_go(kernel, carrier, birth)
    except BaseException as error:
        tracer.end_made(kernel, 0, error)
        raise
    return kernel


def instantiate_with_shadow(carrier: Carrier, birth: Birth) -> tuple[int, int]:
    """The same, and a carrier of it: a stopped process outside that shares its memory, from which
    copies of it can be made, and which is the caller's to kill."""
    shadow = carrier.copy()
    kernel = None
    try:
        birth.group.admit(shadow, stays=True)
        kernel = _bear(shadow, carrier, birth, _BIRTH | _CLONE_SHARED)
        _let_go(kernel, carrier, birth)
    except BaseException as error:
        tracer.end_made(kernel or 0, shadow, error)
        raise
    return kernel, shadow


def _bear(source: int, carrier: Carrier, birth: Birth, flags: int) -> int:
    """A child of `source`, whose memory no untrusted task maps, in the slot's pid namespace."""
    registers = tracer.Registers.from_buffer_copy(carrier.state.registers)
    registers.rip = carrier.page + ENTRY_CARRIER
    registers.rax, registers.orig_rax = 0, 2**64 - 1
    registers.r12, registers.r13 = birth.slot.init, birth.channel
    registers.r14 = carrier.state.rseq_pointer
    registers.r15 = carrier.state.rseq_signature << 32 | carrier.state.rseq_length
    registers.rbx = birth.user[1] << 32 | birth.user[0]
    registers.rsi = carrier.thread_id
    registers.rdx = flags
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
    own = _expect(source, carrier.state, carrier.page, _PIDFD_OPEN, 1, 0)
    _expect(source, carrier.state, carrier.page, _SETNS, own, calls.CLONE_NEWPID)
    _expect(source, carrier.state, carrier.page, _CLOSE_RANGE, 4, 2**32 - 1, 0)


def _let_go(kernel: int, carrier: Carrier, birth: Birth) -> None:
    """Have a new process give up all that a slot must not have, look at it, and let it run."""
    result, _ = tracer.run_page(kernel, carrier.page, None)
    if result != KERNEL_DONE:
        raise OSError(-result, f"giving up what a slot must not have: {os.strerror(-result)}")
    for kind, pair in birth.limits.items():
        resource.prlimit(kernel, kind, within(pair, _hard_limit(kind)))
    os.sched_setaffinity(kernel, birth.processors)
    check_walls(kernel)
    birth.group.settle(kernel, birth.slot.outside(birth.user))
    tracer.load_state(kernel, carrier.state)
    tracer.detach(kernel)


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
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        rows = dict(line.split(b":\t", 1) for line in file.read().splitlines() if b":\t" in line)
    held = [
        name
        for name in (b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb")
        if int(rows[name], 16)
    ]
    if held or rows[b"NoNewPrivs"] != b"1" or rows[b"Seccomp"] != b"2":
        raise tracer.TraceError(f"{pid} would have run with {held}, {rows[b'Seccomp']!r}")


def _expect(pid: int, state: tracer.State, page: int, number: int, *arguments: int) -> int:
    result, _ = tracer.system_call(pid, state, page, number, *arguments)
    if result < 0:
        raise tracer.TraceError(f"call {number} in {pid}: {os.strerror(-result)}")
    return result


def _write_blob(pid: int, page: int) -> None:
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(page)
        memory.write(BLOB)


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
