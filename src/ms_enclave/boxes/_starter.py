"""A program of a few hundred bytes that starts another by a dynamic loader of its own choice.

The kernel starts a dynamic program by the loader that stands in it, which a root file system of
one's own need not have. What is made here needs no loader, stands in the program's place, and
becomes `LOADER --library-path FOLDERS --argv0 PLACE PROGRAM WORDS…`; so `sys.executable` can be
started by whoever wants to.
"""

from __future__ import annotations

import platform
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MACHINES", "starter"]

_BASE = 0x400000
_HEADERS = 64 + 2 * 56
_FAILED = 126


def starter(loader: str, words: Sequence[str], machine: str | None = None) -> bytes:
    """An ELF program that executes a loader with these words before those that it gets itself.

    The loader's own name goes before them, and the last one takes the place of the program's.

    Raises:
        KeyError: there is none for that machine (one of `MACHINES`).
    """
    number, assemble = MACHINES[machine or platform.machine()]
    strings = [loader, *words]
    size = len(assemble([0] * len(strings)))
    places: list[int] = []
    data = b""
    for string in strings:
        places.append(size + len(data))
        data += string.encode("utf-8", "surrogateescape") + b"\0"
    code = assemble(places) + data
    total = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    entry = _BASE + _HEADERS
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, number, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )  # fmt: skip
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, total, total, 0x10000)
    stack = struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)  # not executable
    return header + load + stack + code


def _x86_64(places: Sequence[int]) -> bytes:
    """`places` are the strings', from the beginning of the code. The new words lie on the stack
    from below the count of the old ones up to the first of those, which the last one replaces."""
    code = b"\x48\x8b\x0c\x24"  # mov rcx, [rsp]: how many words there are
    code += b"\x48\x8d\x54\xcc\x10"  # lea rdx, [rsp + rcx*8 + 16]: the environment
    first = 8 - 8 * (len(places) - 1)
    for number, place in enumerate(places):
        code += b"\x48\x8d\x3d" + struct.pack("<i", place - len(code) - 7)  # lea rdi, [rip + …]
        code += b"\x48\x89\x7c\x24" + struct.pack("b", first + 8 * number)  # mov [rsp + …], rdi
    code += b"\x48\x8b\x7c\x24" + struct.pack("b", first)  # mov rdi, [rsp + …]: the loader
    code += b"\x48\x8d\x74\x24" + struct.pack("b", first)  # lea rsi, [rsp + …]
    code += b"\xb8\x3b\0\0\0\x0f\x05"  # execve
    return code + b"\xbf" + struct.pack("<i", _FAILED) + b"\xb8\x3c\0\0\0\x0f\x05"  # exit


def _aarch64(places: Sequence[int]) -> bytes:
    code = [0xF94003E9, 0x8B296FE2, 0x91004042]  # ldr x9, [sp]; add x2, sp, x9, lsl 3; add x2, 16
    first = 8 - 8 * (len(places) - 1)
    for number, place in enumerate(places):
        ahead = place - 4 * len(code)
        code.append(0x10000003 | (ahead & 3) << 29 | (ahead >> 2 & 0x7FFFF) << 5)  # adr x3, …
        code.append(0xF80003E3 | (first + 8 * number & 0x1FF) << 12)  # stur x3, [sp + …]
    code.append(0xF84003E0 | (first & 0x1FF) << 12)  # ldur x0, [sp + …]: the loader
    code.append(0xD10003E1 | -first << 10)  # sub x1, sp, …
    code += [0xD2801BA8, 0xD4000001]  # mov x8, 221: execve; svc 0
    code += [0xD2800000 | _FAILED << 5, 0xD2800BA8, 0xD4000001]  # mov x8, 93: exit
    return struct.pack(f"<{len(code)}I", *code)


MACHINES = {"x86_64": (62, _x86_64), "aarch64": (183, _aarch64)}
"""Machine to its number in ELF and what makes its code."""
