"""What is wholly inside of a process: decided from what was seen, and seen of real ones."""

from __future__ import annotations

import os
import select
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from ms_enclave.spawner import inner
from ms_enclave.spawner.blockers import Descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ms_enclave.spawner._shapes import FileRow


def seen(number: int, same: int | None = None) -> Descriptor:
    """A descriptor of this process."""
    with open(f"/proc/self/fdinfo/{number}") as file:
        text = file.read()
    found = os.fstat(number)
    target = os.readlink(f"/proc/self/fd/{number}")
    return Descriptor(number, target, text, found.st_mode, False, same, found.st_ino)


def planned(numbers: Sequence[int], waiting: int = 0) -> dict[int, FileRow]:
    descriptors = [seen(number) for number in numbers]
    inodes = [one.inode for one in descriptors if stat.S_ISSOCK(one.mode)]
    pairs: dict[int, tuple[int, int]] = {}
    if len(inodes) == 2:
        pairs = {inodes[0]: (inodes[1], 1), inodes[1]: (inodes[0], 1)}
    return inner.plan(descriptors, inner.Seen(dict.fromkeys(numbers, waiting), pairs))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_pipe_with_both_of_its_ends(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[0], False)
    os.set_inheritable(pipe[1], True)
    inode = os.fstat(pipe[0]).st_ino
    assert planned(pipe) == {
        pipe[0]: {
            "fd": pipe[0], "flags": os.O_NONBLOCK, "cloexec": True, "pipe": inode, "end": 0,
        },
        pipe[1]: {"fd": pipe[1], "flags": 0, "cloexec": False, "pipe": inode, "end": 1},
    }  # fmt: skip


def test_one_with_something_in_it_or_with_one_end_is_none(pipe: tuple[int, int]) -> None:
    assert planned(pipe, waiting=1) == {}
    assert planned(pipe[:1]) == {}
    other = os.open(f"/proc/self/fd/{pipe[0]}", os.O_RDONLY)
    assert planned([*pipe, other]) == {}  # a second file for one end
    os.close(other)
    assert inner.plan([seen(end) for end in pipe], inner.Seen()) == {}


def test_a_pipe_of_packets_is_none() -> None:
    ends = os.pipe2(os.O_DIRECT)
    assert planned(ends) == {}
    for end in ends:
        os.close(end)


def test_a_pair_of_sockets_is_one_only_where_both_say_so() -> None:
    one, other = socket.socketpair()
    with one, other:
        numbers = [one.fileno(), other.fileno()]
        rows = planned(numbers)
        assert sorted(row.get("end", -1) for row in rows.values()) == [0, 1]
        assert len({row.get("pair") for row in rows.values()}) == 1
        descriptors = [seen(number) for number in numbers]
        first, second = (found.inode for found in descriptors)
        for pairs in ({}, {first: (second, 1)}, {first: (second, 1), second: (first, 2)}):
            assert inner.plan(descriptors, inner.Seen({}, pairs)) == {}
        assert planned(numbers[:1]) == {}


def test_the_kernel_says_which_sockets_are_pairs_that_are_idle() -> None:
    if os.geteuid() != 0:
        pytest.skip("takes the right to enter a network namespace")
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    idle, busy, half = socket.socketpair(), socket.socketpair(), socket.socketpair()
    busy[0].send(b"x")
    half[0].shutdown(socket.SHUT_WR)
    said = inner.pairs(os.getpid(), home)
    os.close(home)
    inodes = [os.fstat(end.fileno()).st_ino for end in (*idle, *busy, *half)]
    assert said[inodes[0]] == (inodes[1], socket.SOCK_STREAM)
    assert said[inodes[1]] == (inodes[0], socket.SOCK_STREAM)
    assert said.get(inodes[2]) is None or said.get(inodes[3]) is None
    assert said.get(inodes[4]) is None
    for end in (*idle, *busy, *half):
        end.close()


def test_a_counter_is_as_it_was() -> None:
    number = os.eventfd(7, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    assert planned([number]) == {
        number: {
            "fd": number, "flags": os.O_NONBLOCK, "cloexec": True, "count": 7, "counts_down": True,
        }
    }  # fmt: skip
    os.close(number)


def test_a_queue_watches_what_it_watched(pipe: tuple[int, int]) -> None:
    queue = select.epoll()
    queue.register(pipe[0], select.EPOLLIN | select.EPOLLET)
    rows = planned([*pipe, queue.fileno()])
    (watch,) = rows[queue.fileno()].get("watches", [])
    assert watch[0] == watch[2] & 0xFFFFFFFF == pipe[0]
    assert watch[1] & 0xFFFFFFFF & ~0x18 == (select.EPOLLIN | select.EPOLLET) & 0xFFFFFFFF
    moved = os.dup(pipe[0])  # the file is watched still; its number may be another file's
    os.close(pipe[0])
    assert queue.fileno() not in planned([pipe[1], moved, queue.fileno()])
    os.dup2(moved, pipe[0])
    os.close(moved)
    queue.close()


def test_a_queue_of_queues_is_none() -> None:
    outer, within = select.epoll(), select.epoll()
    outer.register(within, select.EPOLLIN)
    assert list(planned([outer.fileno(), within.fileno()])) == [within.fileno()]
    outer.close()
    within.close()


def test_queues_that_watch_more_than_a_few_files_are_none(pipe: tuple[int, int]) -> None:
    queues = [select.epoll() for _ in range(201)]
    for queue in queues:
        queue.register(pipe[0], select.EPOLLIN)
    numbers = [queue.fileno() for queue in queues]
    assert len(planned([*pipe, *numbers])) == 2 + 200
    for queue in queues:
        queue.close()
