"""Where inits come from: a process that waits for its id map and then sets its slot up.

`Seed` is a stopped process that has nothing but the code page and the steps: copying it costs no
page tables, and its copies touch none of the station's memory. Its copies have homes, each in a
network namespace of its own, and an init is born in one of them: to make such a namespace and to
take it down again costs as much as all others together, so one that looks as if nobody had been
there is given to the next slot, when every process of the last one is gone. Where ptrace cannot be
had, `Forks` makes each init a copy of the station itself, and the same steps are made by Python.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct

from . import _calls as calls
from . import steps as series
from . import tracer
from .blob import BLOB, ENTRY_SCRIPT, ENTRY_SYSCALL, KERNEL_DONE
from .steps import Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["Forks", "Home", "Seed"]

_PATIENCE = 10.0
_HOME = calls.CLONE_NEWNET | calls.CLONE_PARENT | signal.SIGCHLD
_INIT = calls.EVERY_NAMESPACE & ~calls.CLONE_NEWNET | calls.CLONE_PARENT | signal.SIGCHLD
_MOST_SPARE = 16  # homes
_LOOKS = (
    ("sockstat", len("sockets: used 0\n")),  # the rest of it is the whole machine's
    *(
        (name, 1 << 16)
        for name in ("dev", "snmp", "snmp6", "netstat", "sockstat6", "ip6_flowlabel")
    ),
)
"""Files below /proc/PID/net, and how much of each."""
_MMAP, _MUNMAP, _CLOSE_RANGE, _RSEQ = 9, 11, 436, 334
_PAGE = 4096
_CHILD_SIGNAL = struct.pack("=Q", 1 << (signal.SIGCHLD - 1))


class Forks:
    """Inits that are copies of the station, with an interpreter that reaps."""

    pid = 0  # the station
    descriptors = 4
    """An init keeps those below this number."""

    def __init__(self, steps: list[Step], network: list[Step]) -> None:
        self._steps = [*network, *steps]
        self._pipes: dict[int, tuple[int, int]] = {}

    def bear(self) -> tuple[int, None]:
        """A process in namespaces of its own that waits for its id map."""
        ready_read, ready_write = os.pipe()
        try:
            go_read, go_write = os.pipe()
        except BaseException:
            os.close(ready_read)
            os.close(ready_write)
            raise
        try:
            pid = calls.clone(calls.EVERY_NAMESPACE)
            if pid == 0:
                self._become_init(go_read, ready_write)
        except BaseException:
            os.close(ready_read)
            os.close(go_write)
            raise
        finally:
            os.close(ready_write)
            os.close(go_read)
        self._pipes[pid] = ready_read, go_write
        return pid, None

    def finish(self, pid: int) -> None:
        """Have it set its slot up. Raises steps.StepError."""
        ready, go = self._pipes.pop(pid)
        answer = b"init|110"  # ETIMEDOUT
        try:
            os.write(go, b"g")
            if select.select([ready], [], [], _PATIENCE)[0]:
                answer = os.read(ready, 4096)
        finally:
            os.close(ready)
            os.close(go)
        if answer != b"ready":
            step, _, number = answer.decode().partition("|")
            raise series.StepError(step or "init", int(number or 0))

    def ended(self, _pid: int) -> bool:
        """Whether a process that has ended is what inits come from."""
        return False

    def _become_init(self, go: int, ready: int) -> NoReturn:
        """The child's side; never returns."""
        try:
            if os.read(go, 1) != b"g":
                os._exit(125)
            os.dup2(ready, 3)
            calls.close_range(4)
            series.perform(self._steps)
            os.write(3, b"ready")
            os.close(3)
            _reap_for_ever()
        except series.StepError as error:
            os.write(3, f"{error.step}|{error.number}".encode())
        finally:
            os._exit(125)


def _reap_for_ever() -> NoReturn:
    children = frozenset({signal.SIGCHLD})
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        signal.sigwaitinfo(children)


class Home:
    """A network namespace, held by a copy of the seed that inits are born from."""

    __slots__ = ("_looks", "_source", "pid", "spoiled")

    def __init__(self, source: Seed, pid: int) -> None:
        self.pid = pid
        self.spoiled = False
        """Whether something of ours was put into it."""

        self._source = source
        self._looks: list[tuple[int, int]] = []

    def look(self) -> list[bytes]:
        """What can be seen of those who have used it: packets, sockets, and what else they leave
        behind, as the kernel counts it."""
        if not self._looks:
            for name, most in _LOOKS:
                try:
                    path = f"/proc/{self.pid}/net/{name}"
                    self._looks.append((os.open(path, os.O_RDONLY | os.O_CLOEXEC), most))
                except FileNotFoundError:
                    continue  # of a protocol that this kernel does not have
        return [os.pread(entry, most, 0) for entry, most in self._looks]

    def is_untouched(self) -> bool:
        """Whether nobody can tell it from a new one."""
        return not self.spoiled and self.look() == self._source.untouched

    def leave(self) -> None:
        """Every process of the slot is gone: give it to the next one, or end it."""
        self._source.take_back(self)

    def end(self) -> None:
        """Nobody is to have it after this."""
        for entry, _ in self._looks:
            os.close(entry)
        self._looks = []
        if self.pid > 0:
            tracer.kill(self.pid)
        self.pid = -1


class Seed:
    """Inits that are copies of a process without memory: nothing of an interpreter is in a slot.

    Raises tracer.TraceError or OSError where ptrace does not allow it, and then nothing is left.
    """

    descriptors = 0

    def __init__(self, steps: list[Step], network: list[Step]) -> None:
        """`steps` are an init's, `network` those of a new network namespace."""
        self._steps = steps
        self._home_steps = [*network, Step("close_range", "close_range", 0, 2**32 - 1, 0)]
        self._spare: list[Home] = []
        self.untouched: list[bytes] = []
        """What a new home looks like."""

        read, write = os.pipe()
        self.pid = calls.clone(0)
        if self.pid == 0:
            try:
                os.read(read, 1)
            finally:
                os._exit(125)
        try:
            self._empty()
        except BaseException:
            tracer.kill(self.pid)
            raise
        finally:
            os.close(read)
            os.close(write)

    def _empty(self) -> None:
        """Put the page and the steps into the process, and take everything else away."""
        self._state = state = tracer.seize_parked(self.pid)
        if state.rseq_pointer:  # the kernel would write there
            self._call(
                state.registers.rip, _RSEQ, state.rseq_pointer, state.rseq_length, 1,
                state.rseq_signature,
            )  # fmt: skip
        place = state.registers.rip
        page = self._call(place, _MMAP, 0, _PAGE, 5, 0x22, -1, 0)
        room = sum(len(series.compiled(each, 0)) for each in (self._steps, self._home_steps))
        self._data = self._call(place, _MMAP, 0, room + len(_CHILD_SIGNAL), 3, 0x22, -1, 0)
        self._first = self._data + len(_CHILD_SIGNAL)
        of_init = series.compiled(self._steps, self._first)
        self._first_of_home = self._first + len(of_init)
        of_home = series.compiled(self._home_steps, self._first_of_home)
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(page)
            memory.write(BLOB)
            memory.seek(self._data)
            memory.write(_CHILD_SIGNAL + of_init + of_home)
        with open(f"/proc/{self.pid}/maps", "rb") as file:
            areas = [[int(x, 16) for x in line.split()[0].split(b"-")] for line in file]
        for start, stop in areas:
            if start not in (page, self._data):
                # The kernel's own pages may be sealed: they hold nothing.
                tracer.system_call(self.pid, state, page, _MUNMAP, start, stop - start)
        self._page = page
        self._call(page, _CLOSE_RANGE, 0, 2**32 - 1, 0)

    def _call(self, place: int, number: int, *arguments: int) -> int:
        result, _ = tracer.system_call(self.pid, self._state, place, number, *arguments)
        if result < 0:
            raise OSError(-result, f"call {number} in the seed: {os.strerror(-result)}")
        return result

    def _registers(self, entry: int) -> tracer.Registers:
        registers = tracer.Registers.from_buffer_copy(self._state.registers)
        registers.rip = self._page + entry
        registers.orig_rax = 2**64 - 1
        return registers

    def _clone(self, pid: int, flags: int) -> int:
        """A stopped copy of the seed or of a copy."""
        registers = self._registers(ENTRY_SYSCALL)
        registers.rax = calls.number("clone")
        registers.rdi = flags
        registers.rsi = registers.rdx = registers.r10 = registers.r8 = 0
        try:
            result, made = tracer.run_page(pid, self._page, registers)
        except tracer.TraceError:
            # Nobody knows how far it came. The loop hears of its end, and has another one made.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise
        if result < 0 or made is None:
            raise OSError(-result, f"clone: {os.strerror(-result)}")
        return made

    def _perform(self, pid: int, steps: list[Step], first: int) -> None:
        """Have a copy make steps that it has at `first`. Raises steps.StepError."""
        registers = self._registers(ENTRY_SCRIPT)
        registers.r14, registers.r15 = self._data, first
        result, _ = tracer.run_page(pid, self._page, registers)
        if result != KERNEL_DONE:
            step = (int(tracer.registers(pid).r15) - first) // series.STEP_BYTES
            raise series.StepError(steps[step].title, -result)

    def bear(self) -> tuple[int, Home]:
        """A process that waits for its id map, stopped, in namespaces of its own, and whose home
        its network namespace is.

        Raises OSError, tracer.TraceError or steps.StepError.
        """
        home = self._spare.pop() if self._spare else self._make_home()
        try:
            return self._clone(home.pid, _INIT), home
        except BaseException:
            home.end()
            raise

    def finish(self, pid: int) -> None:
        """Have it set its slot up. Raises steps.StepError."""
        self._perform(pid, self._steps, self._first)
        tracer.detach(pid)

    def _make_home(self) -> Home:
        home = Home(self, self._clone(self.pid, _HOME))
        try:
            self._perform(home.pid, self._home_steps, self._first_of_home)
            self.untouched = self.untouched or home.look()
        except BaseException:
            home.end()
            raise
        return home

    def take_back(self, home: Home) -> None:
        """Keep a home for the next slot if nobody can tell it from a new one, else end it."""
        same = False
        with contextlib.suppress(OSError):  # no descriptor is to be had to look, say
            same = len(self._spare) < _MOST_SPARE and home.is_untouched()
        if same:
            self._spare.append(home)
        else:
            home.end()

    def ended(self, pid: int) -> bool:
        """A process was reaped: whether it was the seed, of which no more inits can come then."""
        self._spare = [home for home in self._spare if home.pid != pid]
        if pid != self.pid:
            return False
        while self._spare:
            self._spare.pop().end()
        return True
