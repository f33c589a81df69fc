"""Pipes, pairs of sockets and event queues that a process has for itself alone.

With every end in one process, and nothing under way in them, they can be made anew: a fork has its
own, and nobody notices. Pure but for `unread` and `pairs`, which look at what is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct

from . import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ._shapes import FileRow
    from .blockers import Descriptor

__all__ = ["Seen", "pairs", "plan", "unread"]

_FIONREAD = 0x541B
_DIRECT, _ASYNC = 0o40000, 0o20000  # a pipe of packets; a file that sends signals
_SOCK_DIAG, _BY_FAMILY, _ERROR, _DONE = 4, 20, 2, 3
_REQUEST, _DUMP = 1, 0x300
_ALL_STATES, _SHOW_NAME, _SHOW_PEER, _SHOW_QUEUE = 0xFFFFFFFF, 1, 4, 16
_NAME, _PEER, _QUEUE, _SHUTDOWN = 0, 2, 4, 6
_ESTABLISHED = 1
_NO_COOKIE = 0xFFFFFFFF
_MOST_COUNTED = 1 << 32
_MOST_WATCHES = 200
"""Of all queues together: each is a call that the station has a fork make."""


class Seen:
    """What was seen of a process: how many bytes wait in the pipe of each descriptor, and of each
    socket by its inode, if it is one of two that nothing is under way between, the other and the
    type."""

    __slots__ = ("pairs", "unread")

    def __init__(
        self, unread: Mapping[int, int] | None = None,
        pairs: Mapping[int, tuple[int, int]] | None = None,
    ) -> None:  # fmt: skip
        self.unread = unread or {}
        self.pairs = pairs or {}


def plan(descriptors: Sequence[Descriptor], seen: Seen) -> dict[int, FileRow]:
    """What a fork makes anew, by descriptor: of those that are nobody else's copies."""
    first = {found.number: found for found in descriptors if found.same is None}
    rows = {**_pipes(first, seen), **_pairs(first, seen)}
    for number, found in first.items():
        if found.target == "anon_inode:[eventfd]":
            rows.update(_counter(number, found))
    standing = {found.number: found for found in descriptors}
    watched = 0
    for number, found in first.items():
        if found.target == "anon_inode:[eventpoll]":
            watches = _watches(found, standing)
            watched += len(watches or ())
            if watches is not None and watched <= _MOST_WATCHES:
                rows[number] = {**_row(found), "watches": watches}
    return rows


def _by_inode(first: Mapping[int, Descriptor], kind: int) -> dict[int, list[Descriptor]]:
    found: dict[int, list[Descriptor]] = {}
    for one in first.values():
        inode = one.target.partition(":[")[2].rstrip("]")
        if stat.S_IFMT(one.mode) == kind and inode.isdigit():
            found.setdefault(int(inode), []).append(one)
    return found


def _pipes(first: Mapping[int, Descriptor], seen: Seen) -> dict[int, FileRow]:
    """Of those that are there with one file for each end; a standard stream's is somebody's."""
    rows: dict[int, FileRow] = {}
    for inode, ends in _by_inode(first, stat.S_IFIFO).items():
        modes = sorted(one.field("flags", 8) & os.O_ACCMODE for one in ends)
        odd = any(one.field("flags", 8) & (_DIRECT | _ASYNC) for one in ends)
        full = any(seen.unread.get(one.number, 1) for one in ends)
        if (
            modes != [os.O_RDONLY, os.O_WRONLY]
            or odd
            or full
            or any(one.number < 3 for one in ends)
        ):
            continue
        for one in ends:
            end = int(one.field("flags", 8) & os.O_ACCMODE == os.O_WRONLY)
            rows[one.number] = {**_row(one), "pipe": inode, "end": end}
    return rows


def _pairs(first: Mapping[int, Descriptor], seen: Seen) -> dict[int, FileRow]:
    rows: dict[int, FileRow] = {}
    by_inode = _by_inode(first, stat.S_IFSOCK)
    for inode, ends in by_inode.items():
        other, kind = seen.pairs.get(inode, (0, 0))
        if other not in by_inode or seen.pairs.get(other) != (inode, kind):
            continue
        both = [*ends, *by_inode[other]]
        if len(both) == 2 and not any(one.field("flags", 8) & _ASYNC for one in both):
            end = int(inode > other)
            rows[ends[0].number] = {
                **_row(ends[0]), "pair": min(inode, other), "kind": kind, "end": end,
            }  # fmt: skip
    return rows


def _counter(number: int, found: Descriptor) -> dict[int, FileRow]:
    count = found.field("eventfd-count", 16)
    if count >= _MOST_COUNTED or "eventfd-semaphore:" not in found.text:
        return {}
    return {
        number: {
            **_row(found),
            "count": count,
            "counts_down": bool(found.field("eventfd-semaphore", 10)),
        }
    }


def _watches(
    found: Descriptor, standing: Mapping[int, Descriptor]
) -> list[tuple[int, int, int]] | None:
    """What a queue watches: descriptor, events, and what it says of them. None where it is not by
    descriptors that are these files' still."""
    watches: list[tuple[int, int, int]] = []
    for line in found.text.split("\n"):
        if not line.startswith("tfd:"):
            continue
        words = line.replace(":", ": ").split()
        row = dict(zip(words[::2], words[1::2], strict=False))
        try:
            watched, events, data, inode = (
                int(row["tfd:"]), int(row["events:"], 16), int(row["data:"], 16),
                int(row["ino:"], 16),
            )  # fmt: skip
        except (KeyError, ValueError):
            return None
        there = standing.get(watched)
        if there is None or there.inode != inode or there.target == found.target:
            return None  # it watches a file that has another number now, or none, or a queue
        watches.append((watched, events, data))
    return watches


def _row(found: Descriptor) -> FileRow:
    flags = found.field("flags", 8)
    return {
        "fd": found.number, "flags": flags & os.O_NONBLOCK, "cloexec": bool(flags & os.O_CLOEXEC),
    }  # fmt: skip


# --- looking ------------------------------------------------------------------------------------


def unread(pid: int, descriptors: Sequence[Descriptor]) -> dict[int, int]:
    """How many bytes wait in each pipe. Raises OSError."""
    pipes = [one.number for one in descriptors if one.target.startswith("pipe:")]
    if not pipes:
        return {}
    held = calls.pidfd_open(pid)
    try:
        return {number: _waiting(held, number) for number in pipes}
    finally:
        os.close(held)


def _waiting(process: int, number: int) -> int:
    copy = calls.pidfd_getfd(process, number)
    try:
        answer = fcntl.ioctl(copy, _FIONREAD, struct.pack("i", 0))
    finally:
        os.close(copy)
    return int(struct.unpack("i", answer)[0])


def pairs(pid: int, home: int) -> dict[int, tuple[int, int]]:
    """Sockets of the network namespace of a process, by inode, that have no name and another one
    at the other end, with nothing under way: that one, and the type. `home` is our own namespace.

    Nothing where the kernel cannot say it (CONFIG_UNIX_DIAG). Raises OSError for our own faults.
    """
    inside = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.setns(inside, calls.CLONE_NEWNET)
        try:
            asking = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG
            )
        finally:
            calls.come_back(home, calls.CLONE_NEWNET)
    finally:
        os.close(inside)
    with asking, contextlib.suppress(_NotSaidError):
        asking.settimeout(1)
        return {inode: found for inode, found in _said(asking) if found is not None}
    return {}


class _NotSaidError(Exception):
    """The kernel has no such thing."""


def _said(asking: socket.socket) -> Iterator[tuple[int, tuple[int, int] | None]]:
    show = _SHOW_NAME | _SHOW_PEER | _SHOW_QUEUE
    wanted = struct.pack(
        "=BBHIIIII", socket.AF_UNIX, 0, 0, _ALL_STATES, 0, show, _NO_COOKIE, _NO_COOKIE
    )
    head = struct.pack("=IHHII", 16 + len(wanted), _BY_FAMILY, _REQUEST | _DUMP, 1, 0)
    asking.send(head + wanted)
    while True:
        data = asking.recv(1 << 17)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise _NotSaidError
            yield _pair(data[16:length])
            data = data[(length + 3) & ~3 :]


def _pair(message: bytes) -> tuple[int, tuple[int, int] | None]:
    """A struct unix_diag_msg with its attributes (linux/unix_diag.h)."""
    _, kind, state, inode = struct.unpack_from("=BBBxI", message)
    rest = message[16:]
    found: dict[int, bytes] = {}
    while len(rest) >= 4:
        length, name = struct.unpack_from("=HH", rest)
        found[name] = rest[4:length]
        rest = rest[(length + 3) & ~3 :]
    idle = (
        state == _ESTABLISHED
        and _NAME not in found
        and found.get(_QUEUE) == bytes(8)
        and found.get(_SHUTDOWN) == b"\0"
        and _PEER in found
    )
    return inode, (struct.unpack("=I", found[_PEER])[0], kind) if idle else None
