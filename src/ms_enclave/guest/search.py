"""Search for lines in files, in a process of its own.

A regular expression can take as long as it likes; so it takes it where nothing else waits, and can
be killed.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import struct

from . import execution, protocol
from .call import Refused
from .files import open_plain, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Iterator, Pattern

    from .call import Call
    from .loop import Steps

__all__ = ["OPERATIONS"]

_LENGTH = struct.Struct("!I")
_LINE = 1 << 16
_SHOWN = 1000
_PAGE = 20  # matches a page: at most 20 names of 4 KiB each would not fit, so names count as well
_PAGE_BYTES = 48 << 10
_BINARY_PROBE = 8192


def search(call: Call) -> Steps[dict[str, Any]]:
    """Pages of `[relative path, line number, line]`; files with NUL bytes are passed over."""
    path, limit = call.path(), call.number_of("limit") or 0
    try:
        pattern = re.compile(call.text("pattern"))
    except (re.error, OverflowError, RecursionError) as error:
        raise Refused(f"invalid search pattern: {error}") from None
    os.stat(path)  # a path that is not there is an error and no empty result

    def work(output: int) -> None:
        _write_pages(output, pattern, path, limit)

    pid, results = execution.start_worker(work)
    ended: list[int] = []
    call.loop.own_child(pid, lambda status, _usage: (ended.append(status), call.wake())[0])
    try:
        yield from _relay(call, results)
        while not ended:
            yield None
    except BaseException:
        if not ended:
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        call.loop.unwatch(results)
        os.close(results)
    if ended[0] != 0:
        raise OSError(f"the search ended with status {ended[0]}")
    return {}


def _relay(call: Call, results: int) -> Steps[None]:
    """Pass on what the searching process writes, page by page."""
    buffer = bytearray()
    while True:
        while len(buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            yield from call.room(end - _LENGTH.size)
            call.send(bytes(buffer[_LENGTH.size : end]))
            del buffer[:end]
        try:
            data = os.read(results, _LINE)
        except BlockingIOError:
            call.loop.watch(results, 1, call.task)
            yield None
            continue
        if not data:
            return
        buffer += data


# --- in the searching process ---


def _write_pages(output: int, pattern: Pattern[str], path: bytes, limit: int) -> None:
    page: list[Any] = []
    size = 0
    for match in _matches(pattern, path, limit):
        cost = 12 * (len(match[0]) + len(match[2])) + 50
        if page and (len(page) >= _PAGE or size + cost > _PAGE_BYTES):
            _write_page(output, page)
            page, size = [], 0
        page.append(match)
        size += cost
    if page:
        _write_page(output, page)


def _write_page(output: int, page: list[Any]) -> None:
    data = protocol.dump(page)
    write_all(output, _LENGTH.pack(len(data)) + data)


def _matches(pattern: Pattern[str], path: bytes, limit: int) -> Iterator[list[Any]]:
    if limit <= 0:
        return
    for name in _files(path):
        try:
            descriptor = open_plain(os.path.join(path, name) if name else path, os.O_RDONLY)
        except OSError:
            if not name:
                raise
            continue
        shown = name.decode("utf-8", "surrogateescape")
        with os.fdopen(descriptor, "rb") as file:
            for number, text in _lines(file, pattern):
                yield [shown, number, text[:_SHOWN]]
                limit -= 1
                if limit <= 0:
                    return


def _files(top: bytes) -> Iterator[bytes]:
    """Plain files below a folder, by name, without following links; b"" for a file itself."""
    if not stat.S_ISDIR(os.stat(top).st_mode):
        yield b""
        return
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                if stat.S_ISREG(os.lstat(path).st_mode):
                    yield os.path.relpath(path, top)
            except OSError:
                continue


def _lines(file: BinaryIO, pattern: Pattern[str]) -> Iterator[Any]:
    """Lines that match, each with its number; very long lines are looked at in pieces."""
    number, first = 1, True
    while True:
        line = file.readline(_LINE)
        if not line or (first and b"\0" in line[:_BINARY_PROBE]):
            return
        first = False
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if pattern.search(text):
            yield number, text
        if line.endswith(b"\n"):
            number += 1


OPERATIONS = {"search": search}
