"""Programs started by the guest: from `fork` to the last descendant.

Each program has a supervisor, a fork of the guest that does nothing but collect what ends below it:
descendants that were daemonised stay below their own supervisor, so that they are found, and one
program's are not mistaken for another's. It reports the end of the program itself at once. When
nothing is left it ends, or is there for another program, where it was made to wait for some. Time
and memory are the kernel's figures for the program and the descendants it waited for.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import marshal
import os
import resource
import signal
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn, Sequence

__all__ = [
    "NOT_EXECUTABLE",
    "NOT_FOUND",
    "Child",
    "Program",
    "Waiting",
    "become_subreaper",
    "can_wait",
    "close_from",
    "exit_code",
    "fork",
    "hide",
    "interrupt",
    "resize",
    "start",
    "start_worker",
    "wait",
]

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""What a shell answers for a program that is not there, and for one that cannot be run."""

_signal: Any = sys.modules["_signal"]
"""What `signal` dresses up: each number that it makes an enumeration's costs a new process time."""

_INHERITED = (int(signal.SIGCHLD), int(signal.SIGINT), int(signal.SIGTERM))

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_TIOCSCTTY, _TIOCSWINSZ, _TIOCSIG = 0x540E, 0x5414, 0x40045436
_RECORD = struct.Struct("!qqdd?")
_LENGTH = struct.Struct("!I")
_ATTACHED = struct.Struct("4i")
"""Descriptors: of the report and of the standard streams."""
_MOST_AT_ONCE = 1 << 14
_CODE_IN_ARGV = 1 << 16  # one argument may have 128 KiB
_CODE_FROM_DESCRIPTOR = (
    "exec(compile(__import__('os').fdopen(%d, encoding='utf-8').read(), '<string>', 'exec'))"
)
_RLIMITS = {
    "cpu": resource.RLIMIT_CPU,
    "file_size": resource.RLIMIT_FSIZE,
    "nofile": resource.RLIMIT_NOFILE,
    "data": resource.RLIMIT_DATA,
}
_WOULD_HINDER = frozenset({"cpu", "data"})
"""Limits that a supervisor cannot have, too."""
_OWN_FILES = 64
"""Descriptors that it has room for."""
_MOST_SIGNALS = 4096
"""That wait, timers included."""
_MOST_QUEUED = 256 << 10
"""Bytes of message queues."""


class Program:
    """What to start; the guest's side of a spawn request."""

    def __init__(
        self,
        argv: Sequence[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        user: object,
        limits: dict[str, int],
    ) -> None:
        self.argv = argv
        self.env = env
        self.cwd = cwd
        self.user = user
        self.limits = limits
        self.pty: tuple[int, int] | None = None
        """Rows and columns of a controlling terminal."""
        self.behind = False
        """Whether that is not the standard streams."""
        self.code: bytes | None = None
        """Source for the interpreter we run in; `argv` then holds its arguments."""
        self.kernel: dict[str, Any] | None = None
        """What kernel to be instead, in this interpreter; its `stdin` is then its channel."""


class Child:
    """A started program: its supervisor and our ends of its pipes, all non-blocking.

    Owned by the operation that started it, which closes them one by one. Nothing here waits.
    """

    def __init__(
        self,
        supervisor: int,
        report: int,
        stdin: int,
        stdout: int,
        stderr: int,
        terminal: int = -1,
        kept: int = -1,
        said: int = -1,
    ) -> None:
        self.supervisor = supervisor
        self.report = report
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal
        """The end that masters its terminal; where that is its streams, they are copies of it."""
        self.said = said
        """What a kernel says on its channel; -1 for other programs."""
        self.kept = kept
        """The other end of a terminal that is behind its streams."""
        self.pid = 0
        self.exit: tuple[int, float, float, int] | None = None
        """Wait status, seconds of CPU in the program and in the kernel, peak memory in bytes."""
        self.reported = False
        """All that the supervisor has to say was read."""
        self.gone = False
        """Everything below the supervisor has ended, and so has that, or is about to."""

    def read_report(self) -> None:
        """Take what the supervisor has said so far."""
        while self.report >= 0 and not self.reported:
            try:
                record = os.read(self.report, _RECORD.size)
            except BlockingIOError:
                return
            if len(record) < _RECORD.size:
                self.reported = True
                if self.exit is None:  # killed, like what it looked after
                    self.exit = (signal.SIGKILL, 0.0, 0.0, 0)
            elif self.pid == 0:
                self.pid = _RECORD.unpack(record)[0]
            else:
                status, peak, user, system, is_last = _RECORD.unpack(record)
                self.exit = (status, user, system, peak)
                self.gone = self.gone or is_last

    def close_one(self, name: str) -> None:
        descriptor = getattr(self, name)
        if descriptor >= 0:
            setattr(self, name, -1)
            os.close(descriptor)


def start(program: Program, stdin: bool) -> Child:
    """Fork a supervisor and have it start a program. Fails only where a fork, a pipe or a terminal
    does."""
    become_subreaper()
    opened: list[int] = []
    try:
        report = _remember(opened, os.pipe2(os.O_CLOEXEC))
        master, slave = _terminal(program.pty, opened)
        said = -1
        if slave >= 0 and not program.behind:
            theirs = [slave, slave, slave]
            ours = [_remember(opened, (os.dup(master),))[0] for _ in range(2)] + [-1]
        else:
            theirs, ours = _pipes(stdin, opened)
        if program.kernel is not None:
            theirs, said = _channel(theirs, opened)
        supervisor = fork()
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    if supervisor == 0:
        _supervise(program, report[1], theirs, slave)
    kept = slave if program.behind else -1  # what nobody has at the moment cannot be read
    for descriptor in {*theirs, report[1], slave} - {-1, kept}:
        os.close(descriptor)
    for descriptor in {report[0], *ours, master, said} - {-1}:
        os.set_blocking(descriptor, False)
    return Child(supervisor, report[0], ours[0], ours[1], ours[2], master, kept, said)


class Waiting:
    """A supervisor that has nothing to look after, and our end of what tells it of programs.

    It takes one after another: when a program has ended, and nothing is below it, it waits again.
    Its owner lets go of it by `close`; then it ends when nothing is below it.
    """

    def __init__(self, supervisor: int, orders: _socket.socket) -> None:
        self.supervisor = supervisor
        self.on_gone: Callable[[int], None] | None = None
        """Told its wait status by its owner."""
        self.has_ended = False
        """As its owner knows."""
        self._orders: _socket.socket | None = orders
        self._limits: dict[str, int] | None = None
        """Those that it has made its own, once it has."""

    @property
    def is_open(self) -> bool:
        """Whether it can be told anything more, as far as is known."""
        return self._orders is not None and not self.has_ended

    def fits(self, program: Program) -> bool:
        """Whether it can give a program its limits: what it has lowered for one stays so."""
        return self._limits is None or self._limits == _own_limits(program)

    def start(self, program: Program, stdin: bool) -> Child | None:
        """Have it start a program that it fits; None where it no longer can, or the program is too
        long to tell without waiting. Then it is to be closed."""
        opened: list[int] = []
        try:
            report = _remember(opened, os.pipe2(os.O_CLOEXEC))
            theirs, ours = _pipes(stdin, opened)
            self._tell(program, [report[1], *theirs])
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            return None
        if _can_spawn(program):
            self._limits = _own_limits(program)
        for descriptor in (report[1], *theirs):
            os.close(descriptor)
        for descriptor in {report[0], *ours} - {-1}:
            os.set_blocking(descriptor, False)
        return Child(self.supervisor, report[0], ours[0], ours[1], ours[2])

    def _tell(self, program: Program, theirs: Sequence[int]) -> None:
        """Send an order with the descriptors that it needs; OSError where that cannot be done."""
        what: Any = (
            list(program.argv), program.env, program.cwd, program.user, program.limits,
            program.code,
        )  # fmt: skip
        order = marshal.dumps(what)
        ended = os.waitid(os.P_PID, self.supervisor, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if self._orders is None or ended:
            raise BrokenPipeError
        attached = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, _ATTACHED.pack(*theirs))
        told = self._orders.sendmsg([_LENGTH.pack(len(order)), order], [attached])
        if told < _LENGTH.size + len(order):
            raise BlockingIOError
        with contextlib.suppress(OSError):
            os.kill(self.supervisor, signal.SIGCONT)  # any program may have stopped it

    def close(self) -> None:
        """Tell it nothing more. May be called twice."""
        orders, self._orders = self._orders, None
        if orders is not None:
            orders.close()


def can_wait(program: Program) -> bool:
    """Whether what waits can start this program: not one with a terminal or a channel."""
    return program.pty is None and program.kernel is None


def wait() -> Waiting:
    """Fork what can be told later what to start. Fails only where a fork or a socket does."""
    become_subreaper()
    ours, theirs = _socket.socketpair()
    try:
        supervisor = fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if supervisor == 0:
        _stand_by(theirs.fileno())
    theirs.close()
    ours.setblocking(False)
    return Waiting(supervisor, ours)


def _own_limits(program: Program) -> dict[str, int]:
    """What a supervisor makes its own in order to give it to a program."""
    return {name: program.limits[name] for name in program.limits if name not in _WOULD_HINDER}


def _channel(streams: list[int], opened: list[int]) -> tuple[list[int], int]:
    """The descriptors of a kernel from 0 on, and our end of what it says: it reads nothing from 0,
    but from 3 what others have there, and says what it says on 4."""
    nothing = _remember(opened, (_open_nothing(),))[0]
    said = _remember(opened, os.pipe2(os.O_CLOEXEC))
    return [nothing, *streams[1:], streams[0], said[1]], said[0]


def _remember(opened: list[int], descriptors: Sequence[int]) -> Sequence[int]:
    opened += descriptors
    return descriptors


def _pipes(stdin: bool, opened: list[int]) -> tuple[list[int], list[int]]:
    """Standard streams of a program, and our ends of them; -1 for none."""
    if stdin:
        inputs = _remember(opened, os.pipe2(os.O_CLOEXEC))
    else:
        inputs = (_remember(opened, (_open_nothing(),))[0], -1)
    out = _remember(opened, os.pipe2(os.O_CLOEXEC))
    err = _remember(opened, os.pipe2(os.O_CLOEXEC))
    return [inputs[0], out[1], err[1]], [inputs[1], out[0], err[0]]


def _open_nothing() -> int:
    """A descriptor that nothing is read from, also where a program has removed the device."""
    try:
        return os.open(os.devnull, os.O_RDONLY)
    except OSError:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.close(writing)
        return reading


def _terminal(size: tuple[int, int] | None, opened: list[int]) -> Sequence[int]:
    """Both ends of a new terminal, the one that masters it first; -1 for none."""
    if size is None:
        return (-1, -1)
    ends = _remember(opened, os.openpty())
    resize(ends[0], *size)
    return ends


def resize(terminal: int, rows: int, cols: int) -> None:
    """Give a terminal another size; what runs there in the foreground gets SIGWINCH."""
    import fcntl

    fcntl.ioctl(terminal, _TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def interrupt(terminal: int) -> None:
    """Send SIGINT to what has a terminal in the foreground."""
    import fcntl

    fcntl.ioctl(terminal, _TIOCSIG, int(signal.SIGINT))


def fork() -> int:
    """`os.fork` of a process without threads, whose child forgets the guest's signal handling."""
    sys.stdout and sys.stdout.flush()  # pyright: ignore[reportUnusedExpression]
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        for number in _INHERITED:
            _signal.signal(number, _signal.SIG_DFL)
    return pid


def start_worker(work: Callable[[int], None]) -> tuple[int, int]:
    """Do work in a fork, which writes its results to the descriptor it is given.

    Returns its process id and the end to read from.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        pid = fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        raise
    if pid == 0:
        status = 1
        try:
            os.setsid()
            os.dup2(theirs, 3)
            close_from(4)
            work(3)
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    os.set_blocking(ours, False)
    return pid, ours


# --- in the supervisor ---


def _supervise(program: Program, report: int, streams: list[int], terminal: int) -> NoReturn:
    try:
        os.setsid()  # signals to the program's group are not for us
        become_subreaper()
        pid = os.fork()
        if pid == 0:
            _become(program, streams, terminal)
        try:
            for number in (0, 1, 2, 3):
                os.dup2(report, number)  # nobody reads or writes the first three
            close_from(4)
            _tell_start(pid, 3)
        except BaseException:  # noqa: BLE001 - or it would run on without anybody
            os.kill(pid, signal.SIGKILL)
        _collect(pid, 3)
    finally:
        os._exit(0)


def _stand_by(orders: int) -> NoReturn:
    """Supervise what the guest says, one program after another, until it says no more."""
    try:
        os.setsid()
        become_subreaper()
        _place_streams([orders] * 4)  # nobody reads or writes the first three
        os.set_inheritable(3, False)
        desk = _socket.socket(fileno=3)
        while _look_after(*_ordered(desk)):
            pass
    finally:
        os._exit(0)


def _look_after(program: Program, report: int, streams: list[int]) -> bool:
    """Start a program and see it to its end; whether another one may come."""
    pid = _spawn(program, streams)
    if pid == 0:
        pid = os.fork()
        if pid == 0:
            _become(program, streams, -1)
    try:
        # The streams and what only the program has: few numbers are in use here, and the lowest.
        os.closerange(report + 1, _OWN_FILES)
        _tell_start(pid, report)
    except BaseException:  # noqa: BLE001 - or it would run on without anybody
        os.kill(pid, signal.SIGKILL)
    was_last = _collect(pid, report)
    os.close(report)
    return was_last


def _tell_start(pid: int, report: int) -> None:
    with contextlib.suppress(OSError):
        os.chdir("/")
    os.write(report, _RECORD.pack(pid, 0, 0, 0, False))


def _can_spawn(program: Program) -> bool:
    """Whether a supervisor can be what the program is to be."""
    return (
        program.user is None
        and program.limits.keys().isdisjoint(_WOULD_HINDER)
        and program.limits.get("nofile", _OWN_FILES) >= _OWN_FILES
    )


def _spawn(program: Program, streams: list[int]) -> int:
    """Start a program without a copy of this process, which becomes as the program is to be; 0
    where that cannot be done, or failed: whoever tries again finds out what to say of it."""
    if not _can_spawn(program):
        return 0
    ignored = [n for n in range(1, _signal.NSIG) if _signal.getsignal(n) == _signal.SIG_IGN]
    os.umask(0o022)
    try:
        argv = _source_argv(program) if program.code is not None else list(program.argv)
        _set_limits(program)
        os.chdir(program.cwd)
        path = next(filter(os.path.exists, _candidates(argv[0], program.env)))
        placed = [(os.POSIX_SPAWN_DUP2, stream, number) for number, stream in enumerate(streams)]
        return os.posix_spawn(
            path, argv, program.env,
            file_actions=placed, setsid=True, setsigmask=(), setsigdef=ignored,
        )  # fmt: skip
    except (OSError, ValueError, StopIteration, NotImplementedError):
        return 0


def _collect(pid: int, report: int) -> bool:
    """Wait until nothing is below; whether the program was the last that was there."""
    was_last = False
    while True:
        try:
            ended, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return was_last
        if ended == pid:
            peak = usage.ru_maxrss * 1024
            was_last = _is_alone()
            figures = (status, peak, usage.ru_utime, usage.ru_stime, was_last)
            # Whether anybody listens or not, what is left has to be collected.
            with contextlib.suppress(OSError):
                os.write(report, _RECORD.pack(*figures))


def _is_alone() -> bool:
    """Whether nothing is below this process any more; what has ended is collected."""
    try:
        while os.wait4(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


# --- in the program ---


def _become(program: Program, streams: list[int], terminal: int) -> NoReturn:
    try:
        os.setsid()
        if terminal >= 0:
            import fcntl

            fcntl.ioctl(terminal, _TIOCSCTTY, 0)
        _place_streams(streams)
        argv = _source_argv(program) if program.code is not None else list(program.argv)
        os.umask(0o022)
        status = _enter(program)
        if status is None and program.kernel is not None:
            _be_kernel(program.kernel, program.env)
        if status is None:
            _restore_signals()
            status = _execute(argv, program.env)
        os._exit(status)
    except BaseException as error:  # noqa: BLE001 - a fork of the guest must not go on as a guest
        _complain(f"{type(error).__name__}: {error}")
    finally:
        os._exit(NOT_EXECUTABLE)


def _ordered(desk: _socket.socket) -> tuple[Program, int, list[int]]:
    """What the guest says to start, where that is to be reported and the program's streams; it ends
    here where the guest has changed its mind."""
    data, attached, _, _ = desk.recvmsg(
        _MOST_AT_ONCE, _socket.CMSG_SPACE(_ATTACHED.size), _socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        os._exit(0)
    report, *streams = _ATTACHED.unpack(attached[0][2])
    size = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    while len(data) < size:
        piece = desk.recv(size - len(data))
        if not piece:
            os._exit(0)
        data += piece
    argv, env, cwd, user, limits, code = marshal.loads(data[_LENGTH.size :])  # noqa: S302 - our own
    program = Program(argv, env, cwd, user, limits)
    program.code = code
    return program, report, streams


def _place_streams(streams: list[int]) -> None:
    import fcntl

    # Out of the way first: some may be 0 to 2 already.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in streams]
    for number, descriptor in enumerate(moved):
        os.dup2(descriptor, number)
    close_from(len(streams))


_prctl: Any = None


def hide() -> None:
    """Keep what programs of the same user start from reading or writing this process, which would
    let them answer in its place. As root only: another user's own `/proc/self` would close too."""
    global _prctl
    if os.geteuid() != 0:
        return
    try:
        import ctypes

        _prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return  # an interpreter without it; what it says counts no more than what programs do
    _prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _show() -> None:
    """Be an ordinary process again, in a fork that is to be a program."""
    if _prctl is not None:
        _prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _be_kernel(request: dict[str, Any], environment: dict[bytes, bytes]) -> None:
    """Go on as a kernel: this interpreter is as good as a new one."""
    from . import instance

    _show()
    names = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
    instance.be_kernel(dict(request, env=names), 3, 4)


def _source_argv(program: Program) -> list[bytes]:
    code = program.code or b""
    interpreter = os.fsencode(sys.executable or "python3")
    if len(code) <= _CODE_IN_ARGV:
        return [interpreter, b"-c", code, *program.argv]
    source = _anonymous_file(code)
    text = (_CODE_FROM_DESCRIPTOR % source).encode("ascii")
    return [interpreter, b"-c", text, *program.argv]


def _anonymous_file(content: bytes) -> int:
    """A descriptor from which a program that is executed reads the content."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("code", 0)
    else:
        import tempfile

        descriptor, name = tempfile.mkstemp()
        os.unlink(name)
        os.set_inheritable(descriptor, True)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _set_limits(program: Program) -> None:
    for name, value in program.limits.items():
        _limit(_RLIMITS[name], value)
    _limit(resource.RLIMIT_CORE, 1)  # not 0: a core pattern that is a pipe ignores 0
    # Counted for a user of the whole machine: in a container that may be the host's root.
    # Linux always lets them be lowered; gVisor, whose own they are, never.
    with contextlib.suppress(ValueError):
        _limit(resource.RLIMIT_SIGPENDING, _MOST_SIGNALS)
    with contextlib.suppress(ValueError):
        _limit(resource.RLIMIT_MSGQUEUE, _MOST_QUEUED)


def _enter(program: Program) -> int | None:
    """Limits, identity and folder; an exit status where one of them cannot be had."""
    _set_limits(program)
    try:
        if program.user is not None:
            _change_user(program.user)
    except (OSError, LookupError) as error:
        _complain(f"cannot run as user {program.user}: {_reason(error)}")
        return NOT_EXECUTABLE
    try:
        os.chdir(program.cwd)
    except OSError as error:
        _complain(f"cannot enter {_text(program.cwd)}: {_reason(error)}")
        return NOT_EXECUTABLE
    return None


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    # For CPU the soft limit warns with a signal that says what happened; the hard one kills.
    ceiling = value + 2 if which == resource.RLIMIT_CPU else value
    if hard != resource.RLIM_INFINITY:
        ceiling = min(ceiling, hard)
    resource.setrlimit(which, (value, ceiling))


def _change_user(user: object) -> None:
    import pwd

    if isinstance(user, int) or (isinstance(user, str) and user.isdigit()):
        uid = int(user)
        try:
            entry = pwd.getpwuid(uid)
            name, gid = entry.pw_name, entry.pw_gid
        except KeyError:
            name, gid = None, uid
    else:
        entry = pwd.getpwnam(str(user))
        name, uid, gid = entry.pw_name, entry.pw_uid, entry.pw_gid
    if uid == os.getuid() == os.geteuid():
        return
    if name is None:
        os.setgroups([])
    else:
        os.initgroups(name, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _restore_signals() -> None:
    """What Python ignores, or whoever started us, a program expects untouched."""
    for number in range(1, _signal.NSIG):
        if _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _execute(argv: list[bytes], env: dict[bytes, bytes]) -> int:
    """Become the program, or say why not and give the exit status that a shell would."""
    name = argv[0]
    found: OSError | None = None
    for path in _candidates(name, env):
        try:
            os.execve(path, argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                _execute_script(path, argv, env)
            found = found or error
    if found is None:
        _complain(f"{_text(name)}: not found")
        return NOT_FOUND
    _complain(f"{_text(name)}: {_reason(found)}")
    return NOT_EXECUTABLE


def _candidates(name: bytes, env: dict[bytes, bytes]) -> list[bytes]:
    if b"/" in name:
        return [name]
    path = env.get(b"PATH", os.fsencode(os.defpath))
    return [os.path.join(folder or b".", name) for folder in path.split(b":")] if name else []


def _execute_script(path: bytes, argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """A file without an interpreter line is a shell script, as every shell has it."""
    try:
        os.execve(b"/bin/sh", [b"/bin/sh", path, *argv[1:]], env)
    except OSError:
        return


def _complain(text: str) -> None:
    os.write(2, (f"ms-enclave: {text}\n").encode("utf-8", "replace"))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return "there is none" if isinstance(error, LookupError) else str(error)


# --- everywhere ---


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        os.closerange(first, min(limit, 1 << 16) if limit > 0 else 1 << 16)
        return
    if numbers:
        os.closerange(first, max(numbers) + 1)


_subreaper: Any = None


def become_subreaper() -> bool:
    """Let orphans below this process become its children; False where that cannot be had."""
    global _subreaper
    if _subreaper is None:
        try:
            import ctypes

            _subreaper = ctypes.CDLL(None).prctl
        except (ImportError, OSError, AttributeError):
            _subreaper = False
    return bool(_subreaper) and _subreaper(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def exit_code(status: int) -> tuple[int, int | None]:
    """The exit code and the signal of a wait status; 128 + N for signal N."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return 128 + number, number
    return os.WEXITSTATUS(status), None
