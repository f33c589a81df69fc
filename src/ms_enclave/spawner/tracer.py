"""What the station does to a stopped process: see it stop, order one system call, save its state.

Every wait here has a deadline, and every surprise is a `TraceError`: the caller then kills the
process and refuses, it never tries again. The one rule that keeps untrusted memory harmless is in
`system_call`: a process whose memory somebody else maps is only ever resumed with PTRACE_SYSCALL,
and what it is about to do is compared with the order, register by register, before the kernel does
it. `run_page` resumes freely and is for memory that no untrusted task maps.

x86-64 only. ptrace(2); `user_regs_struct` is sys/user.h's, `ptrace_syscall_info` and
`ptrace_rseq_configuration` are linux/ptrace.h's.
"""

from __future__ import annotations

import ctypes
import os
import signal
from time import monotonic

from . import survey
from .blob import BLOB, ENTRY_SYSCALL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "InterferedError",
    "State",
    "TraceError",
    "detach",
    "end_made",
    "hold",
    "hold_thread",
    "kill",
    "load_state",
    "registers",
    "release",
    "run_page",
    "same_file",
    "save_state",
    "seize_parked",
    "shares_files",
    "shares_memory",
    "signals_taken",
    "system_call",
    "wait_for_stop",
]

WALL = 0x40000000
_BRIEFLY = 0.005  # s
STOP_SECONDS = 0.5  # a process that does not stop within this is not going to
# What runs nothing but our own code is waited for as long as the kernel holds it up: while a
# thousand network namespaces end, one more is begun after seconds.
PATIENCE = 10.0

_EXIT_KILL = 0x100000
_OPTIONS = 0x100000 | 0x1 | 0x2 | 0x4 | 0x8 | 0x80  # EXITKILL SYSGOOD FORK VFORK CLONE SECCOMP
_CONT, _GETREGS, _SETREGS, _DETACH, _SYSCALL = 7, 12, 13, 17, 24
_GETEVENTMSG, _GETREGSET, _SETREGSET = 0x4201, 0x4204, 0x4205
_SEIZE, _INTERRUPT, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
_GET_SYSCALL_INFO, _GET_RSEQ = 0x420E, 0x420F
_NT_X86_XSTATE = 0x202
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_NEW_PROCESS = (1, 2, 3)  # PTRACE_EVENT_FORK, VFORK, CLONE
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_ENTRY = 1
_X86_64 = 0xC000003E
_KCMP, _KCMP_FILE, _KCMP_VM, _KCMP_FILES, _KCMP_FS = 312, 0, 1, 2, 3
_GET_ROBUST_LIST = 274
_INTERRUPTED = (-512, -513, -514, -516, -4)  # ERESTARTSYS, NOINTR, NOHAND, RESTARTBLOCK; EINTR
_REGISTERS = (  # noqa: SIM905 - one a line reads worse
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss"
    " fs_base gs_base ds es fs gs"
).split()
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


_OWN_FAULTS = frozenset(
    {
        signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS,
        _SYSCALL_STOP,
    }
)  # fmt: skip
_DEADLY = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
)


class TraceError(Exception):
    """A traced process did something else than what it was told.

    `pid` and `status` say which one it was and what a wait for it gave, where that is known;
    `lingers` whether it is a program that could not be held and cannot be let go before it stops.
    """

    def __init__(self, text: str, pid: int = 0, status: int = 0) -> None:
        super().__init__(text)
        self.pid = pid
        self.status = status
        self.lingers = False


class InterferedError(Exception):
    """Somebody in the slot has ended or stopped a process that was just being made: what its
    program did to itself. `signal` is what it was sent, or SIGKILL, which we ended it with."""

    def __init__(self, number: int) -> None:
        super().__init__(f"a new process was sent signal {number} by another of its sandbox")
        self.signal = number


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulong) for name in _REGISTERS]


class _SyscallInfo(ctypes.Structure):
    _fields_ = [
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction_pointer", ctypes.c_uint64),
        ("stack_pointer", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
        ("rest", ctypes.c_uint64 * 2),
    ]


class _Rseq(ctypes.Structure):
    _fields_ = [
        ("pointer", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    ]


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class State:
    """A stopped thread, as far as it is not memory: registers, vector state, signal mask, rseq, and
    where it lists the locks that its end is to release (0: nowhere)."""

    __slots__ = (
        "in_call",
        "mask",
        "registers",
        "robust",
        "rseq_length",
        "rseq_pointer",
        "rseq_signature",
        "vector",
    )

    def __init__(self) -> None:
        self.registers = Registers()
        self.vector = b""
        self.in_call = False
        self.mask = 0
        self.robust = 0
        self.rseq_pointer = 0
        self.rseq_length = 0
        self.rseq_signature = 0


_libc = ctypes.CDLL(None, use_errno=True)
_raw = _libc.ptrace
_raw.restype = ctypes.c_long
_raw.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long,) * 6
_CHILD = frozenset({signal.SIGCHLD})


def _ptrace(request: int, pid: int, address: object = None, data: object = None) -> int:
    result = _raw(request, pid, address, data)
    if result == -1:
        number = ctypes.get_errno()
        if number:
            raise TraceError(f"ptrace {request:#x} of {pid}: {os.strerror(number)}")
    return result


class _Taken:
    """Whether a SIGCHLD was taken here that may have told of somebody else's end."""

    taken = False


def signals_taken() -> bool:
    """Whether a wait has taken signals since the last call: who listens for them has to look."""
    taken, _Taken.taken = _Taken.taken, False
    return taken


def _next_signal(seconds: float) -> None:
    _Taken.taken = True
    signal.sigtimedwait(_CHILD, seconds)


def wait_for_stop(pid: int, seconds: float = STOP_SECONDS) -> int:
    """Wait until `pid` stops and return its wait status. SIGCHLD must be blocked in the caller.

    Raises TraceError when it ends instead, or does neither within `seconds`.
    """
    deadline = monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG | WALL)
        if found:
            if os.WIFSTOPPED(status):
                return status
            text = f"{pid} ended with wait status {status:#x} instead of stopping"
            raise TraceError(text, pid, status)
        left = deadline - monotonic()
        if left <= 0:
            raise TraceError(f"{pid} did not stop within {seconds} s")
        _next_signal(left)


def end_made(pid: int, helper: int, error: BaseException) -> None:
    """End a new process of a slot whose making failed with `error`, and who helped; 0 for none.

    Raises InterferedError if it failed for a signal that was not its own doing.
    """
    because = _interference(pid, error) if pid > 0 else None
    for started in (pid, helper):
        if started > 0:
            kill(started)
    if because is not None:
        raise because from error


def _interference(pid: int, error: BaseException) -> InterferedError | None:
    status = error.status if isinstance(error, TraceError) and error.pid == pid else 0
    if os.WIFSTOPPED(status):
        number = os.WSTOPSIG(status)
        if status >> 16 or number in _OWN_FAULTS:
            return None
        return InterferedError(number if number in _DEADLY else signal.SIGKILL)
    if status:
        return InterferedError(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else None
    deadline = monotonic() + STOP_SECONDS
    while not survey.is_alive(pid) or survey.is_killed(pid):
        try:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
        except ChildProcessError:
            return None
        if ended is not None:
            killed = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
            return InterferedError(ended.si_status) if killed else None
        if monotonic() > deadline:
            return None
        signal.sigtimedwait(_CHILD, _BRIEFLY)
    return None


def seize(pid: int, options: int = _OPTIONS, seconds: float = STOP_SECONDS) -> None:
    """Attach to `pid`, stop it within `seconds`, and arrange that it dies with the station."""
    _ptrace(_SEIZE, pid, None, options)
    _ptrace(_INTERRUPT, pid)
    wait_for_stop(pid, seconds)


def seize_parked(pid: int, *, trusted: bool = True) -> State:
    """Attach to a process that is about to wait in a system call, and stop it there.

    One that is not trusted is only looked at: with the options of a carrier its filter would let
    the calls through that wait for a tracer's word, and its new threads would be ours to reap; and
    it gets STOP_SECONDS only, where one that is trusted gets PATIENCE.
    Raises TraceError if it does not come to wait in time.
    """
    seconds = PATIENCE if trusted else STOP_SECONDS
    seize(pid, _OPTIONS if trusted else _EXIT_KILL, seconds)
    deadline = monotonic() + seconds
    while True:
        state = save_state(pid)
        if state.in_call:
            return state
        if monotonic() > deadline:
            raise TraceError(f"{pid} does not wait in a system call")
        _ptrace(_CONT, pid)
        _next_signal(0.0002)
        _ptrace(_INTERRUPT, pid)
        wait_for_stop(pid, seconds)


def hold(pid: int) -> State:
    """Stop a process that runs a user's program, where it waits in a system call, and say how it
    stands. It is changed in nothing, and `release` lets it go on.

    Raises TraceError if it does not come to wait within STOP_SECONDS, or to stop within as many.
    It goes on then, or is to be released when it stops, if the error's `lingers` says so.
    """
    return _seized(pid, _until_it_waits)


def hold_thread(thread: int) -> State:
    """The same for another thread of a process that is held, wherever it is."""
    return _seized(thread, _until_it_stops)


def _seized(pid: int, look: Callable[[int], State]) -> State:
    _ptrace(_SEIZE, pid, None, _EXIT_KILL)
    try:
        return look(pid)
    except TraceError as error:
        error.lingers = not release(pid, error.status)
        raise


def _until_it_stops(pid: int) -> State:
    """Its state as soon as it is stopped by us and not by a signal, which is its own."""
    deadline = monotonic() + STOP_SECONDS
    while True:
        _ptrace(_INTERRUPT, pid)
        status = wait_for_stop(pid)
        if status >> 16 == _EVENT_STOP:
            if os.WSTOPSIG(status) != signal.SIGTRAP:
                raise TraceError(f"{pid} is stopped by a signal", pid)
            return save_state(pid)
        if monotonic() > deadline:
            raise TraceError(f"{pid} does not stop", pid, status)
        _ptrace(_CONT, pid, None, os.WSTOPSIG(status))


def _until_it_waits(pid: int) -> State:
    deadline = monotonic() + STOP_SECONDS
    while True:
        state = _until_it_stops(pid)
        if state.in_call:
            return state
        if monotonic() > deadline:
            raise TraceError(f"{pid} does not wait in a system call", pid)
        _ptrace(_CONT, pid)
        _next_signal(0.0002)


def release(pid: int, status: int = 0) -> bool:
    """Let a process that was held go on; False where it has not stopped yet, so that it can be let
    go only then: `status` is what a wait for that gave."""
    number = os.WSTOPSIG(status) if os.WIFSTOPPED(status) and not status >> 16 else 0
    try:
        _ptrace(_DETACH, pid, None, number)
    except TraceError:
        return not survey.is_alive(pid)
    return True


def shares_memory(one: int, other: int) -> bool:
    """Whether two processes have one memory. Raises TraceError where that cannot be known."""
    return _compare(one, other, _KCMP_VM, 0, 0)


def shares_files(one: int, other: int) -> bool:
    """Whether two threads have one table of descriptors, and one folder, root and umask."""
    return _compare(one, other, _KCMP_FILES, 0, 0) and _compare(one, other, _KCMP_FS, 0, 0)


def same_file(pid: int, one: int, other: int) -> bool:
    """Whether two descriptors of a process are one open file, with one offset."""
    return _compare(pid, pid, _KCMP_FILE, one, other)


def _compare(one: int, other: int, kind: int, first: int, second: int) -> bool:
    result = _syscall(_KCMP, one, other, kind, first, second)
    if result < 0:
        text = os.strerror(ctypes.get_errno())
        raise TraceError(f"{one} and {other} cannot be compared: {text}")
    return result == 0


def detach(pid: int) -> None:
    _ptrace(_DETACH, pid)


def kill(pid: int) -> bool:
    """End a child of the station and reap it; nothing happens if it is gone.

    One that does not end at once, because others that only the station's loop reaps have to end
    before it, is left to that loop: waiting for it here would be waiting for oneself.
    Returns whether it is reaped. SIGCHLD must be blocked in the caller.
    """
    deadline = monotonic() + STOP_SECONDS
    try:
        os.kill(pid, signal.SIGKILL)
        while (left := deadline - monotonic()) > 0:
            found, status = os.waitpid(pid, os.WNOHANG | WALL)
            if found and not os.WIFSTOPPED(status):
                return True
            if not found:
                _next_signal(left)
    except (ProcessLookupError, ChildProcessError):
        return True
    return False


def save_state(pid: int) -> State:
    """The state of a stopped thread; an interrupted system call is set to start again."""
    state = State()
    registers = state.registers
    _ptrace(_GETREGS, pid, None, ctypes.byref(registers))
    space = ctypes.create_string_buffer(16384)
    vector = _Vector(ctypes.addressof(space), len(space))
    _ptrace(_GETREGSET, pid, _NT_X86_XSTATE, ctypes.byref(vector))
    state.vector = space.raw[: vector.length]
    mask = ctypes.c_uint64()
    _ptrace(_GETSIGMASK, pid, 8, ctypes.byref(mask))
    state.mask = mask.value
    head, length = ctypes.c_ulong(), ctypes.c_size_t()
    found = _syscall(_GET_ROBUST_LIST, pid, ctypes.addressof(head), ctypes.addressof(length), 0, 0)
    state.robust = head.value if found == 0 else 0
    rseq = _Rseq()
    ctypes.set_errno(0)
    if _raw(_GET_RSEQ, pid, ctypes.sizeof(rseq), ctypes.byref(rseq)) > 0:
        state.rseq_pointer, state.rseq_length = rseq.pointer, rseq.size
        state.rseq_signature = rseq.signature
    if ctypes.c_long(registers.orig_rax).value >= 0 and _signed(registers.rax) in _INTERRUPTED:
        registers.rax = registers.orig_rax
        registers.rip -= 2
        state.in_call = True
    registers.orig_rax = 2**64 - 1
    return state


def load_state(pid: int, state: State) -> None:
    """Give a stopped thread the state saved by `save_state` (all but rseq, which it registers)."""
    space = ctypes.create_string_buffer(state.vector, len(state.vector))
    vector = _Vector(ctypes.addressof(space), len(space))
    _ptrace(_SETREGSET, pid, _NT_X86_XSTATE, ctypes.byref(vector))
    _ptrace(_SETREGS, pid, None, ctypes.byref(state.registers))
    mask = ctypes.c_uint64(state.mask)
    _ptrace(_SETSIGMASK, pid, 8, ctypes.byref(mask))


def system_call(
    pid: int, state: State, page: int, number: int, *arguments: int
) -> tuple[int, int | None]:
    """Let a stopped process make one system call; returns its result and a process it made.

    `page` is where the process has `BLOB`. Its memory may be mapped by somebody hostile: between
    the two stops it can execute any instruction, so the order is compared at the entry stop, and
    what differs is refused there, before the kernel has done anything.
    Raises TraceError for every other course than the ordered one.
    """
    order = [value % 2**64 for value in arguments] + [0] * (6 - len(arguments))
    registers = Registers.from_buffer_copy(state.registers)
    registers.rip = page + ENTRY_SYSCALL
    registers.rax = number
    registers.orig_rax = 2**64 - 1
    for name, value in zip(_ARGUMENTS, order, strict=True):
        setattr(registers, name, value)
    _ptrace(_SETREGS, pid, None, ctypes.byref(registers))
    _resume_to_syscall_stop(pid, STOP_SECONDS)
    info = _SyscallInfo()
    _ptrace(_GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.byref(info))
    seen = (info.op, info.arch, info.nr, *info.args)
    if seen != (_ENTRY, _X86_64, number, *order):
        raise TraceError(f"{pid} was ordered call {number}{tuple(order)} and went for {seen[2:]}")
    made = _resume_to_syscall_stop(pid, PATIENCE)  # it is in the kernel and executes nothing else
    _ptrace(_GETREGS, pid, None, ctypes.byref(registers))
    return _signed(registers.rax), made


def _resume_to_syscall_stop(pid: int, seconds: float) -> int | None:
    """Resume until the next entry or exit of a system call; a process made on the way is returned.

    The one place that resumes a process whose memory is shared.
    """
    made: int | None = None
    try:
        while True:
            _ptrace(_SYSCALL, pid)
            status = wait_for_stop(pid, seconds)
            event = status >> 16
            if event in _NEW_PROCESS:
                made = _new_process(pid)
            elif event != _EVENT_SECCOMP:
                if os.WSTOPSIG(status) != _SYSCALL_STOP:
                    raise TraceError(f"{pid} stopped with {status:#x} instead of at a system call")
                return made
    except TraceError:
        if made is not None:  # it was killed in between, for memory say: nobody knows of this one
            kill(made)
        raise


def registers(pid: int) -> Registers:
    """The registers of a stopped process."""
    found = Registers()
    _ptrace(_GETREGS, pid, None, ctypes.byref(found))
    return found


def run_page(
    pid: int, page: int, now: Registers | None, seconds: float = PATIENCE
) -> tuple[int, int | None]:
    """Run code of the page freely until its `int3`; returns rax and a process made on the way.

    Only for memory that no untrusted task maps: nothing is compared here. `now` is what it starts
    with, None for what it has; `seconds` is how long it may take.
    """
    if now is not None:
        _ptrace(_SETREGS, pid, None, ctypes.byref(now))
    made: int | None = None
    while True:
        _ptrace(_CONT, pid)
        status = wait_for_stop(pid, seconds)
        event = status >> 16
        if event in _NEW_PROCESS:
            made = _new_process(pid)
        elif event != _EVENT_SECCOMP:
            break
    now = registers(pid)
    if event or os.WSTOPSIG(status) != signal.SIGTRAP or not page < now.rip <= page + len(BLOB):
        text = f"{pid} left its page: wait status {status:#x} at {now.rip:#x}"
        raise TraceError(text, pid, status)
    return _signed(now.rax), made


def _new_process(pid: int) -> int:
    """The process that `pid` has just made, attached and stopped before its first instruction."""
    message = ctypes.c_ulong()
    _ptrace(_GETEVENTMSG, pid, None, ctypes.byref(message))
    status = wait_for_stop(message.value, PATIENCE)
    if status >> 16 != _EVENT_STOP:
        raise TraceError(f"{message.value} was not born stopped: {status:#x}")
    return message.value


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
