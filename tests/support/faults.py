"""System calls of other processes that are made to fail, one at a time, from outside.

A program is started under a seccomp filter that hands the calls of a list to us before they are
made (seccomp_unotify(2)), with all of its descendants, whatever namespaces, filters and tracers
they get later. We count them, let them go on, and answer the one that is asked for with an error
that the kernel did not give, or kill who makes it. Nothing in the program takes part.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ms_enclave.spawner import _call_numbers as numbers
from ms_enclave.spawner import _calls as calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Self

__all__ = ["KILL", "Call", "Watch", "start_watched"]

KILL = -1
"""In place of an error number: kill who makes the call."""

NUMBERS = numbers.X86_64 if os.uname().machine == "x86_64" else numbers.AARCH64
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_GO_ON = 1
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, number, machine, place, arguments
_ANSWER = struct.Struct("=QqiI")

_BOOTSTRAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer(bytes.fromhex(sys.argv[1]))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(len(code) // 8, ctypes.addressof(code))
if os.geteuid():
    libc.prctl(38, 1, 0, 0, 0)
listener = libc.syscall(int(sys.argv[2]), 1, 8, ctypes.byref(program))
assert listener >= 0, os.strerror(ctypes.get_errno())
os.read(0, 1)
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True)
class Call:
    """A system call that is about to be made, as the kernel tells it."""

    pid: int
    name: str
    arguments: tuple[int, ...]
    place: int
    """Where in its memory the process is."""


class Watch:
    """Sees the calls of a program and decides what becomes of them, in a thread of its own.

    `decide` gets each and returns 0 to let it go on, an error number, or KILL. What it raises is
    kept in `trouble`, and the call goes on.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], listener: int, decide: Callable[[Call], int]
    ) -> None:
        self._process = process
        self._listener = listener
        self._decide = decide
        self._names = {number: name for name, number in NUMBERS.items()}
        self._stop_read, self._stop_write = os.pipe()
        self.trouble: list[BaseException] = []
        self._thread = threading.Thread(target=self._serve, name="watch of system calls")
        self._thread.start()

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._stop_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop_read in ready or ready.get(self._listener, 0) & ~select.POLLIN:
                return
            self._take_one()

    def _take_one(self) -> None:
        room = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, room)
        except OSError:
            return  # interrupted or killed in between
        key, pid, _, number, _, place, *arguments = _NOTIFICATION.unpack(room)
        call = Call(pid, self._names.get(number, str(number)), tuple(arguments), place)
        try:
            fault = self._decide(call)
        except BaseException as error:  # noqa: BLE001 - the process must not hang for our mistake
            self.trouble.append(error)
            fault = 0
        if fault == KILL:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            fault = 5
        answer = _ANSWER.pack(key, 0, -fault, 0 if fault else _GO_ON)
        try:
            fcntl.ioctl(self._listener, _SEND, answer)
        except OSError:
            return  # whoever asked was interrupted, and will ask again, or is dead

    def wait(self, seconds: float) -> int:
        """Wait for the end of the program; gives its exit code."""
        return self._process.wait(seconds)

    def close(self) -> None:
        """Stop watching. What still runs under it has its calls refused: end it before."""
        os.write(self._stop_write, b"x")
        self._thread.join()
        for descriptor in (self._listener, self._stop_read, self._stop_write):
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start_watched(
    words: list[str], names: Iterable[str], decide: Callable[[Call], int]
) -> tuple[subprocess.Popen[bytes], Watch]:
    """Start a program of which the named calls are watched. It reads and writes pipes of ours."""
    own = [sys.executable, "-I", "-S", "-c", _BOOTSTRAP]
    process = subprocess.Popen(
        [*own, _filter(names).hex(), str(NUMBERS["seccomp"]), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        listener = _listener_of(process)
    except BaseException:
        process.kill()
        process.wait()
        raise
    assert process.stdin is not None
    watch = Watch(process, listener, decide)
    process.stdin.write(b"x")
    return process, watch


def _listener_of(process: subprocess.Popen[bytes]) -> int:
    """Our descriptor for its listener: it need not make a call to hand it over."""
    deadline = time.monotonic() + 10
    handle = os.pidfd_open(process.pid)
    try:
        while time.monotonic() < deadline:
            assert process.poll() is None, "the filter could not be set"
            for entry in Path(f"/proc/{process.pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                    if os.readlink(entry) == "anon_inode:seccomp notify":
                        return calls.pidfd_getfd(handle, int(entry.name))
            time.sleep(0.002)
    finally:
        os.close(handle)
    raise AssertionError("the program has set no filter")


def _filter(names: Iterable[str]) -> bytes:
    """A program for seccomp that reports those calls and lets the others go on."""
    found = sorted({NUMBERS[name] for name in names if name in NUMBERS})
    rows = [(0x20, 0, 0, 0)]  # load the number
    for place, number in enumerate(found):
        rows.append((0x15, len(found) - place, 0, number))
    rows += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)]
    return b"".join(struct.pack("=HBBI", *row) for row in rows)
