"""A series of system calls as data: one description, made by Python or by the code page.

The set-up of a slot's init is the same calls every time. `perform` makes them one by one;
`compiled` lays them out in memory for the script of `blob.S`, which makes them in a process that
has nothing else, in a tenth of the time and without an interpreter in the slot.
"""

from __future__ import annotations

import struct

from . import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EARLIER", "STEP_BYTES", "Program", "Step", "StepError", "compiled", "perform"]

_WORDS = 8
STEP_BYTES = 8 * _WORDS
_END = struct.pack("=q", -1).ljust(STEP_BYTES, b"\0")


class StepError(Exception):
    """A step failed. `step` names what was being done, `number` is the errno."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step, number)
        self.step = step
        self.number = number


class _Earlier:
    """Stands for what the step before gave: a descriptor, used once and left to be closed."""


EARLIER = _Earlier()


class Program:
    """A seccomp program (an array of struct sock_filter), which a call takes by its header."""

    __slots__ = ("code",)

    def __init__(self, code: bytes) -> None:
        self.code = code


class Step:
    """One call: what it is for, its name, and its arguments (numbers, bytes to point to, `EARLIER`,
    `Program`)."""

    __slots__ = ("arguments", "call", "may_fail", "title")

    def __init__(
        self,
        title: str,
        call: str,
        *arguments: int | bytes | _Earlier | Program | None,
        may_fail: bool = False,
    ) -> None:
        self.title = title
        self.call = call
        self.arguments = arguments
        self.may_fail = may_fail


def perform(steps: Sequence[Step]) -> None:
    """Make the calls in this process. Raises StepError at the first that fails."""
    result = -1
    for step in steps:
        values: list[int | bytes | None] = []
        for value in step.arguments:
            if isinstance(value, _Earlier):
                values.append(result)
            elif isinstance(value, Program):
                values.append(calls.program_header(value.code))
            else:
                values.append(value)
        try:
            result = calls.call(step.call, *values)
        except OSError as error:
            if not step.may_fail:
                raise StepError(step.title, error.errno or 0) from None


def compiled(steps: Sequence[Step], address: int) -> bytes:
    """The steps as the script reads them from memory at `address`."""
    heap = _Heap(address + STEP_BYTES * (len(steps) + 1))
    rows: list[list[int]] = []
    for step in steps:
        words = [calls.number(step.call)]
        for value in step.arguments:
            if isinstance(value, _Earlier):
                # The script writes the result of the step before over this word.
                rows[-1][-1] |= address + STEP_BYTES * len(rows) + 8 * len(words)
                words.append(0)
            elif isinstance(value, Program):
                code = heap.put(value.code)
                words.append(heap.put(struct.pack("=HxxxxxxQ", len(value.code) // 8, code)))
            elif isinstance(value, bytes):
                words.append(heap.put(value + b"\0"))
            else:
                words.append(value or 0)
        words += [0] * (_WORDS - 1 - len(words)) + [int(step.may_fail)]
        rows.append(words)
    table = b"".join(struct.pack("=8Q", *(word % 2**64 for word in row)) for row in rows)
    return table + _END + heap.content


class _Heap:
    """What arguments point to, eight bytes aligned."""

    def __init__(self, address: int) -> None:
        self._address = address
        self.content = b""

    def put(self, data: bytes) -> int:
        """Add data; returns its address."""
        place = self._address + len(self.content)
        self.content += data + bytes(-len(data) % 8)
        return place
