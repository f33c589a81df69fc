"""The same as `faults`, by ptrace(2): for programs that set a listener of their own.

There is one listener of seccomp for a process and all that it becomes, so the calls of a sandbox
whose tier needs it cannot be watched by another. A tracer can: each call stops at its entry, and
the one that is to fail is left out. What is slow about it does not matter here.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from tests.support.faults import KILL, NUMBERS, Call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Tracing", "start_traced"]

_SYSCALL, _GETREGS, _SETREGS = 24, 12, 13
_SEIZE, _INTERRUPT, _LISTEN, _GET_SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
_OPTIONS = 0x100000 | 0x1 | 0x2 | 0x4 | 0x8 | 0x10  # EXITKILL SYSGOOD FORK VFORK CLONE EXEC
_EVENT_STOP, _SYSCALL_STOP = 128, signal.SIGTRAP | 0x80
_WALL, _OWN_THREADS = 0x40000000, 0x20000000
_GROUP_STOPS = frozenset({signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_INFO = struct.Struct("=B3xIQQQ6Q")  # op, architecture, place, stack, number, arguments
_ENTRY = 1
_RAX, _ORIG_RAX = 10, 15
_HARMLESS = NUMBERS["getpid"]
"""What is made in the place of a call: a filter ends whoever makes none."""

_BOOTSTRAP = "import os, sys; os.read(0, 1); os.execv(sys.argv[1], sys.argv[1:])"

_libc = ctypes.CDLL(None, use_errno=True)
_raw = _libc.ptrace
_raw.restype = ctypes.c_long
_raw.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request: int, task: int, address: int = 0, data: object = None) -> None:
    """Raises OSError; ProcessLookupError where the task has been killed meanwhile."""
    if _raw(request, task, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x} of {task}: {os.strerror(number)}")


class Tracing:
    """Sees the calls of a program and of all that it starts, in a thread of its own: a tracer is a
    thread. `decide` and `trouble` are as those of `faults.Watch`."""

    def __init__(
        self, words: list[str], names: Iterable[str], decide: Callable[[Call], int]
    ) -> None:
        self._words = words
        self._names = {NUMBERS[name]: name for name in names if name in NUMBERS}
        self._decide = decide
        self._faults: dict[int, int] = {}
        self._status: int | None = None
        self._begun = threading.Event()
        self._ended = threading.Event()
        self.trouble: list[BaseException] = []
        self.process: subprocess.Popen[bytes]
        self._thread = threading.Thread(target=self._run, name="tracer of system calls")
        self._thread.start()
        assert self._begun.wait(20)
        if self.trouble:
            self._thread.join()
            raise self.trouble[0]

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits for it
            self.trouble.append(error)
            return
        finally:
            self._begun.set()
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - the same; all that it traced ends with it
            self.trouble.append(error)
        finally:
            self._ended.set()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        try:
            _ptrace(_SEIZE, self.process.pid, 0, _OPTIONS)
            _ptrace(_INTERRUPT, self.process.pid)
            assert self.process.stdin is not None
            self.process.stdin.write(b"x")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _serve(self) -> None:
        while True:
            try:
                task, status = os.waitpid(-1, _WALL | _OWN_THREADS)
            except ChildProcessError:
                return
            if not os.WIFSTOPPED(status):
                self._faults.pop(task, None)
                if task == self.process.pid:
                    self._status = os.waitstatus_to_exitcode(status)
                    self._ended.set()
                continue
            # Whoever is killed while it is stopped is gone before it can be told to go on.
            with contextlib.suppress(ProcessLookupError):
                self._go_on(task, os.WSTOPSIG(status), status >> 16)

    def _go_on(self, task: int, number: int, event: int) -> None:
        if event == _EVENT_STOP and number in _GROUP_STOPS:
            _ptrace(_LISTEN, task)
            return
        if event or number == _SYSCALL_STOP:
            if number == _SYSCALL_STOP and not self._see(task):
                return
            number = 0
        _ptrace(_SYSCALL, task, 0, number)

    def _see(self, task: int) -> bool:
        """At the entry of a call, or at its exit. False where its maker was killed."""
        room = ctypes.create_string_buffer(_INFO.size)
        _ptrace(_GET_SYSCALL_INFO, task, _INFO.size, ctypes.addressof(room))
        op, _, place, _, number, *arguments = _INFO.unpack(room.raw)
        if op != _ENTRY:
            fault = self._faults.pop(task, 0)
            if fault:
                self._set_register(task, _RAX, 2**64 - fault)
            return True
        if number not in self._names:
            return True
        try:
            fault = self._decide(Call(task, self._names[number], tuple(arguments), place))
        except BaseException as error:  # noqa: BLE001 - the process must not hang for our mistake
            self.trouble.append(error)
            fault = 0
        if fault == KILL:
            os.kill(task, signal.SIGKILL)
            return False
        if fault:
            self._faults[task] = fault
            self._set_register(task, _ORIG_RAX, _HARMLESS)
        return True

    def _set_register(self, task: int, which: int, value: int) -> None:
        registers = (ctypes.c_ulonglong * 27)()
        _ptrace(_GETREGS, task, 0, ctypes.addressof(registers))
        registers[which] = value
        _ptrace(_SETREGS, task, 0, ctypes.addressof(registers))

    def wait(self, seconds: float) -> int:
        """Wait for the end of the program; gives its exit code. Only here: the tracer is the first
        that hears of it."""
        if not self._ended.wait(seconds) or self._status is None:
            raise subprocess.TimeoutExpired(self._words, seconds)
        self.process.returncode = self._status
        return self._status

    def close(self) -> None:
        """Stop watching: what still runs under it has been ended before."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "something is still traced"


def start_traced(
    words: list[str], names: Iterable[str], decide: Callable[[Call], int]
) -> tuple[subprocess.Popen[bytes], Tracing]:
    """Start a program of which the named calls are watched. It reads and writes pipes of ours."""
    tracing = Tracing(words, names, decide)
    return tracing.process, tracing
