"""Where inits come from: a process that waits for its id map and then sets its slot up.

`Seed` is a stopped process that has nothing but the code page and the steps: copying it costs no
page tables, and its copies touch none of the station's memory. Where ptrace cannot be had,
`Forks` makes each init a copy of the station itself, and the same steps are made by Python.
"""

from __future__ import annotations

import os
import select
import signal
import struct

from . import _calls as calls
from . import steps as series
from . import tracer
from .blob import BLOB, ENTRY_SCRIPT, ENTRY_SYSCALL, KERNEL_DONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from .steps import Step

__all__ = ["Forks", "Seed"]

_PATIENCE = 10.0
_FLAGS = calls.EVERY_NAMESPACE | signal.SIGCHLD
_MMAP, _MUNMAP, _CLOSE_RANGE, _RSEQ = 9, 11, 436, 334
_PAGE = 4096
_CHILD_SIGNAL = struct.pack("=Q", 1 << (signal.SIGCHLD - 1))


class Forks:
    """Inits that are copies of the station, with an interpreter that reaps."""

    pid = 0  # the station
    descriptors = 4
    """An init keeps those below this number."""

    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps
        self._pipes: dict[int, tuple[int, int]] = {}

    def bear(self) -> int:
        """A process in namespaces of its own that waits for its id map."""
        ready_read, ready_write = os.pipe()
        go_read, go_write = os.pipe()
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
        return pid

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


class Seed:
    """Inits that are copies of a process without memory: nothing of an interpreter is in a slot.

    Raises tracer.TraceError or OSError where ptrace does not allow it, and then nothing is left.
    """

    descriptors = 0

    def __init__(self, steps: list[Step]) -> None:
        self._titles = [step.title for step in steps]
        read, write = os.pipe()
        self.pid = calls.clone(0)
        if self.pid == 0:
            try:
                os.read(read, 1)
            finally:
                os._exit(125)
        try:
            self._empty(steps)
        except BaseException:
            tracer.kill(self.pid)
            raise
        finally:
            os.close(read)
            os.close(write)

    def _empty(self, steps: list[Step]) -> None:
        """Put the page and the steps into the process, and take everything else away."""
        self._state = state = tracer.seize_parked(self.pid)
        if state.rseq_pointer:  # the kernel would write there
            self._call(
                state.registers.rip, _RSEQ, state.rseq_pointer, state.rseq_length, 1,
                state.rseq_signature,
            )  # fmt: skip
        place = state.registers.rip
        page = self._call(place, _MMAP, 0, _PAGE, 5, 0x22, -1, 0)
        room = len(series.compiled(steps, 0)) + len(_CHILD_SIGNAL)
        self._data = self._call(place, _MMAP, 0, room, 3, 0x22, -1, 0)
        self._first = self._data + len(_CHILD_SIGNAL)
        content = _CHILD_SIGNAL + series.compiled(steps, self._first)
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(page)
            memory.write(BLOB)
            memory.seek(self._data)
            memory.write(content)
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

    def bear(self) -> int:
        """A process in namespaces of its own that waits for its id map, stopped."""
        registers = self._registers(ENTRY_SYSCALL)
        registers.rax = calls.number("clone")
        registers.rdi = _FLAGS | calls.CLONE_PARENT
        registers.rsi = registers.rdx = registers.r10 = registers.r8 = 0
        result, made = tracer.run_page(self.pid, self._page, registers, _PATIENCE)
        if result < 0 or made is None:
            raise OSError(-result, f"clone: {os.strerror(-result)}")
        return made

    def finish(self, pid: int) -> None:
        """Have it set its slot up. Raises steps.StepError."""
        registers = self._registers(ENTRY_SCRIPT)
        registers.r14, registers.r15 = self._data, self._first
        result, _ = tracer.run_page(pid, self._page, registers, _PATIENCE)
        if result != KERNEL_DONE:
            step = int(tracer.registers(pid).r15) - self._first
            raise series.StepError(self._titles[step // series.STEP_BYTES], -result)
        tracer.detach(pid)
