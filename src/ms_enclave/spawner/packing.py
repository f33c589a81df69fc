"""Packs the memory of a process that is to be copied often: into large pages of the kernel's.

To copy a process and to end the copy costs the kernel most for the pages that are mapped, each by
itself, and most copies write to few of them. Where many lie in one large page the kernel counts
them together, and what programs only read (the interpreter's own code) is one entry of the page
tables. Nothing else changes: every address holds what it held, and what a copy writes to is copied
for it page by page. Where the kernel gives no large pages, ordinary ones are as good as before.
"""

from __future__ import annotations

import os
import struct

from . import tracer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .carrier import Carrier

__all__ = ["pack"]

_MMAP, _MPROTECT, _MUNMAP, _MREMAP, _MADVISE = 9, 10, 11, 25, 28
_PAGE = 4096
_LARGE = 2 << 20
_READ, _WRITE, _EXECUTE = 1, 2, 4
_PRIVATE_ANONYMOUS = 0x22
_HUGEPAGE, _NOHUGEPAGE = 14, 15
_MOST = 1 << 30
"""Bytes, rather more than are moved: others wait for that, a second for some gigabytes."""
_MOVE = 3  # MREMAP_MAYMOVE | MREMAP_FIXED
_ORDINARY = frozenset("rd wr ex mr mw me ac sd nr hg nh".split())  # noqa: SIM905
"""VmFlags (proc(5)) that are kept when what has them is moved, or say nothing of what it holds."""
_PRESENT, _OF_FILE = 1 << 63, 1 << 61


class _Area:
    __slots__ = ("name", "rights", "start", "stop")

    def __init__(self, start: int, stop: int, rights: int, name: str) -> None:
        self.start = start
        self.stop = stop
        self.rights = rights
        self.name = name

    @property
    def length(self) -> int:
        return self.stop - self.start


def pack(carrier: Carrier) -> bool:
    """Move what a carrier has into large pages; False where it cannot be, and nothing has changed.

    Raises OSError or tracer.TraceError, and then it is to be killed: part of it may be missing.
    """
    areas = [area for area in _areas(carrier.pid) if area.start not in (carrier.page, carrier.data)]
    read = _read_only(areas)
    written = [area for area in areas if _is_own(carrier.pid, area)]
    length = sum(area.length + _LARGE for area in (*read, *written)) + _LARGE
    if length > _MOST:
        return False
    try:
        place = _call(carrier, _MMAP, 0, length, _READ | _WRITE, _PRIVATE_ANONYMOUS, -1, 0)
    except OSError:
        return False
    try:
        _call(carrier, _MADVISE, place, length, _HUGEPAGE)
        moves = _lay_out(read, written, place)
        with open(f"/proc/{carrier.pid}/mem", "r+b", buffering=0) as memory:
            for area, source in moves:
                _copy(memory.fileno(), area, source)
        # What a program uses later beside it is to come page by page.
        _call(carrier, _MADVISE, place, length, _NOHUGEPAGE)
    except OSError:
        _call(carrier, _MUNMAP, place, length)
        return False
    for area, source in moves:
        if area.rights != _READ | _WRITE:
            _call(carrier, _MPROTECT, source, area.length, area.rights)
        _call(carrier, _MREMAP, source, area.length, area.length, _MOVE, area.start)
    _call(carrier, _MUNMAP, place, length)
    return True


def _lay_out(read: list[_Area], written: list[_Area], place: int) -> list[tuple[_Area, int]]:
    """Where each area is to come from, from `place` on.

    What is only read keeps its place in the large pages, and so is one entry of the page tables.
    What is written to must not, or each copy would have to take that entry apart first.
    """
    at = _up(place)
    moves: list[tuple[_Area, int]] = []
    for area in read:
        moves.append((area, at))
        at = _up(at + area.length)
    for area in written:
        if (at - area.start) % _LARGE == 0:
            at += _PAGE
        moves.append((area, at))
        at += area.length
    return moves


def _up(address: int) -> int:
    return -(-address // _LARGE) * _LARGE


def _call(carrier: Carrier, number: int, *arguments: int) -> int:
    result, _ = tracer.system_call(carrier.pid, carrier.orders, carrier.page, number, *arguments)
    if result < 0:
        raise OSError(-result, f"call {number} to pack {carrier.pid}: {os.strerror(-result)}")
    return result


def _areas(pid: int) -> list[_Area]:
    """What is mapped, private and ordinary: not what is the kernel's own, and not what the kernel
    treats in a way of its own. The state of random generators is wiped in a copy, for one, and from
    ordinary memory all copies would draw the same."""
    found: list[_Area] = []
    with open(f"/proc/{pid}/smaps") as file:
        head = ""
        for line in file:
            first, *rest = line.split()
            if first == "VmFlags:":
                area = _area(head)
                if area is not None and {*rest} <= _ORDINARY:
                    found.append(area)
            elif not first.endswith(":"):
                head = line
    return found


def _area(line: str) -> _Area | None:
    """One of /proc/PID/maps, but for those that are no program's to move."""
    span, rights, _, _, _, *name = line.split(maxsplit=5)
    label = name[0].strip() if name else ""
    if rights[3] != "p" or (label.startswith("[") and label != "[heap]"):
        return None
    start, stop = (int(word, 16) for word in span.split("-"))
    bits = sum(bit for bit, letter in zip((1, 2, 4), rights, strict=False) if letter != "-")
    return _Area(start, stop, bits, label) if bits else None


def _is_own(pid: int, area: _Area) -> bool:
    """Whether it has pages that are of no file, and has half of all that it could: the others
    would be there then, too."""
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        entries = os.pread(file.fileno(), area.length // _PAGE * 8, area.start // _PAGE * 8)
    words = struct.unpack(f"={len(entries) // 8}Q", entries)
    own = sum(word >= _PRESENT and not word & _OF_FILE for word in words)
    return own > 0 and 2 * own >= len(words)


def _read_only(areas: list[_Area]) -> list[_Area]:
    """Whole large pages of code and constants, of files that have so much of it in a row."""
    found: list[_Area] = []
    for area in areas:
        last = found[-1] if found else None
        if area.rights & _WRITE or not area.name:
            continue
        if last is not None and last.name == area.name and last.stop == area.start:
            last.stop, last.rights = area.stop, last.rights | area.rights
        else:
            found.append(_Area(area.start, area.stop, area.rights, area.name))
    for area in found:
        area.start, area.stop = _up(area.start), area.stop // _LARGE * _LARGE
    return [area for area in found if area.stop > area.start and area.rights & _EXECUTE]


def _copy(memory: int, area: _Area, target: int) -> None:
    for offset in range(0, area.length, _LARGE):
        length = min(_LARGE, area.length - offset)
        content = os.pread(memory, length, area.start + offset)
        if len(content) != length or os.pwrite(memory, content, target + offset) != length:
            raise OSError(5, f"{length} bytes at {area.start + offset:#x} could not be moved")
