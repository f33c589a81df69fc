"""An interpreter of the classic BPF that a filter of system calls may hold."""

from __future__ import annotations

import operator
import struct
from functools import lru_cache

__all__ = ["interpret"]

_JUMPS = {0x15: operator.eq, 0x25: operator.gt, 0x35: operator.ge}


@lru_cache(maxsize=8)
def _decode(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("<HBBI", program))


def interpret(program: bytes, number: int, audit: int, values: tuple[int, ...]) -> int:
    """What the kernel returns for a call with six arguments, of the architecture `audit`."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *values)
    code = _decode(program)
    at = accumulator = 0
    while True:
        operation, yes, no, constant = code[at]
        at += 1
        if operation == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif operation == 0x54:
            accumulator &= constant
        elif operation in _JUMPS:
            at += yes if _JUMPS[operation](accumulator, constant) else no
        elif operation == 0x05:
            at += constant
        else:
            assert operation == 0x06, f"an operation that is not known here: {operation:#x}"
            return constant
