"""What keeps a process from being forked, from the texts that the kernel gives."""

from __future__ import annotations

import os
import stat
from typing import Any

import pytest

from ms_enclave.spawner import blockers

MOUNTS = """\
21 20 0:30 / / ro,nosuid,nodev - tmpfs root rw
22 21 254:0 /usr /usr ro,nosuid,nodev - ext4 /dev/vda rw
23 21 0:31 / /proc rw,nosuid - proc proc rw
24 21 0:40 / /sandbox rw,nosuid - overlay overlay rw
25 21 0:41 / /tmp rw,nosuid - overlay overlay rw
26 21 0:42 / /dev/shm rw,nosuid - tmpfs tmpfs rw
27 24 254:0 /srv/data /sandbox/data rw,nosuid - ext4 /dev/vda rw
28 21 254:0 /srv/two\\040words /given\\040there ro,nosuid - ext4 /dev/vda rw
"""


def mounts() -> blockers.Mounts:
    return blockers.Mounts(MOUNTS, ["/tmp", "/sandbox"], ["/sandbox/data"])


@pytest.mark.parametrize(
    ("path", "carried"),
    [
        ("/sandbox/a", True),
        ("/sandbox", True),
        ("/sandboxed", True),  # of the root, which nobody writes to
        ("/tmp/a", True),
        ("/usr/lib/a", True),
        ("/sandbox/data/a", True),
        ("/given there/a", True),
        ("/dev/shm/a", False),
        ("/proc/2/status", False),
    ],
)
def test_a_fork_finds_what_is_carried_and_what_nobody_writes_to(path: str, carried: bool) -> None:
    assert mounts().carries(path) is carried


def line(rights: str, device: str, inode: int, name: str = "") -> str:
    return f"7f00-7f10 {rights} 00000000 {device} {inode}                {name}\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (line("rw-p", "00:00", 0), None),
        (line("rw-p", "00:00", 0, "[heap]"), None),
        (line("r-xp", "fe:00", 12, "/usr/lib/libc.so.6"), None),
        (line("r--s", "fe:00", 13, "/usr/lib/gconv/gconv-modules.cache"), None),
        (line("rw-s", "00:01", 4, "/dev/zero (deleted)"), "shared memory is mapped: /dev/zero"),
        (line("rw-s", "00:00", 0), "shared memory (anonymous)"),
        (line("r--s", "00:01", 9, "/memfd:x (deleted)"), "shared memory is mapped: /memfd:x"),
        (line("r--p", "00:01", 9, "/memfd:x (deleted)"), "a file that can change is mapped"),
        (line("r-xp", "00:28", 5, "/sandbox/lib.so"), "a file that can change is mapped"),
        (
            line("r--p", "00:28", 5, "/sandbox/a\x0cb\x85c\u2028d"),
            "a file that can change is mapped",
        ),
        (line("rw-s", "00:2a", 5, "/dev/shm/psm"), "shared memory is mapped: /dev/shm/psm"),
        (line("r--p", "fe:00", 6, "/sandbox/data/a"), "a file that can change is mapped"),
        (line("r--p", "fe:00", 6, "/usr/lib/a (deleted)"), "a file that can change is mapped"),
        (line("r--p", "00:63", 6, "/usr/lib/unknown"), "a file that can change is mapped"),
        (line("rw-s", "00:0f", 6, "/[aio] (deleted)"), "shared memory is mapped: /[aio]"),
    ],
)
def test_maps_that_would_be_shared_or_can_change(text: str, reason: str | None) -> None:
    found = blockers.maps(line("r-xp", "fe:00", 1, "/usr/bin/python") + text, mounts())
    assert len(found) == (reason is not None)
    assert all(one.startswith(reason or "") for one in found)


def test_many_reasons_are_a_few_and_a_number() -> None:
    text = "".join(line("rw-s", "00:01", number, f"/memfd:{number}") for number in range(1, 31))
    found = blockers.maps(text, mounts())
    assert len(found) == 9
    assert found[-1] == "22 more maps like these"


def one(number: int, target: str, **more: Any) -> blockers.Descriptor:
    flags, position = more.get("flags", os.O_RDWR | os.O_CLOEXEC), more.get("position", 0)
    text = f"pos:\t{position}\nflags:\t0{flags:o}\nmnt_id:\t24\n{more.get('lock', '')}"
    return blockers.Descriptor(
        number, target, text, more.get("mode", stat.S_IFREG | 0o644), more.get("leads", True),
        more.get("same"),
    )  # fmt: skip


PIPE, SOCKET, DEVICE, FOLDER = stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFDIR
STREAMS = [
    one(0, "/dev/null", mode=DEVICE), one(1, "pipe:[1]", mode=PIPE), one(2, "pipe:[2]", mode=PIPE),
    one(3, "socket:[3]", mode=SOCKET),
]  # fmt: skip


def test_streams_and_the_channel_are_renewed() -> None:
    assert blockers.files(STREAMS, mounts()) == ([], [])


def test_files_are_opened_again_at_their_places_and_with_their_flags() -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_EXCL
    reasons, rows = blockers.files(
        [
            *STREAMS,
            one(7, "/sandbox/log", flags=flags, position=12),
            one(5, "/tmp/data", flags=os.O_RDONLY | os.O_CLOEXEC),
            one(6, "/tmp/data", same=5),
            one(9, "pipe:[1]", mode=PIPE, same=1),
            one(10, "/dev/urandom", mode=DEVICE),
            one(11, "/sandbox", mode=FOLDER, flags=os.O_DIRECTORY),
        ],
        mounts(),
    )
    assert reasons == []
    assert rows[0] == {
        "fd": 5, "path": "/tmp/data", "flags": os.O_CLOEXEC, "offset": 0, "cloexec": True,
    }  # fmt: skip
    assert rows[1] == {"fd": 6, "same": 5, "cloexec": True}
    assert rows[2] == {
        "fd": 7, "path": "/sandbox/log", "flags": os.O_WRONLY | os.O_APPEND, "offset": 12,
        "cloexec": False,
    }  # fmt: skip
    assert rows[3] == {"fd": 9, "same": 1, "cloexec": True}
    assert [row.get("path") for row in rows[4:]] == ["/dev/urandom", "/sandbox"]


def test_a_stream_that_is_a_file_or_closed_is_so_in_a_fork() -> None:
    streams = [one(1, "/sandbox/out"), *STREAMS[2:]]
    reasons, rows = blockers.files(streams, mounts())
    assert reasons == []
    assert [row["fd"] for row in rows] == [1, 0]
    assert rows[1] == {"fd": 0, "closed": True}


def test_what_is_dropped_keeps_its_number_and_is_named() -> None:
    dropped: list[str] = []
    found = [one(1, "socket:[7]", mode=SOCKET), *STREAMS[2:], one(5, "pipe:[9]", mode=PIPE)]
    reasons, rows = blockers.files(
        [*found, one(6, "pipe:[9]", mode=PIPE, same=5)], mounts(), dropped
    )
    assert reasons == []
    assert dropped == [
        f"descriptor {n} is a {what}" for n, what in ((1, "socket"), (5, "pipe"), (6, "pipe"))
    ]
    assert [row["fd"] for row in rows if row.get("dropped")] == [1, 5, 6]


def test_more_files_than_can_be_opened_are_not_dropped() -> None:
    many = [one(number, "pipe:[9]", mode=PIPE) for number in range(4, 400)]
    reasons, _ = blockers.files([*STREAMS, *many], mounts(), [])
    assert reasons == ["396 open files (200 can be opened again)"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (one(4, "pipe:[9]", mode=PIPE), "descriptor 4 is a pipe"),
        (one(4, "/sandbox/fifo", mode=PIPE), "descriptor 4 is /sandbox/fifo"),
        (one(4, "socket:[9]", mode=SOCKET), "descriptor 4 is a socket"),
        (one(4, "anon_inode:[eventpoll]", mode=0), "descriptor 4 is eventpoll (of the kernel's)"),
        (one(4, "/memfd:a (deleted)", leads=False), "descriptor 4 is a file in memory"),
        (one(4, "/dev/pts/0", mode=DEVICE), "descriptor 4 is /dev/pts/0"),
        (one(4, "/proc/2/maps"), "descriptor 4 is /proc/2/maps"),
        (one(4, "/dev/shm/a"), "descriptor 4 is /dev/shm/a"),
        (one(4, "/sandbox/a (deleted)", leads=False), "descriptor 4 is a file that has no name"),
        (one(4, "/sandbox/a", lock="lock:\t1: FLOCK"), "descriptor 4 is a locked file"),
        (one(4, "/sandbox", mode=FOLDER, position=3), "descriptor 4 is a folder that is being"),
        (one(4, "pipe:[1]", mode=PIPE, same=None), "descriptor 4 is a pipe"),
    ],
)
def test_what_cannot_be_opened_again_is_named(found: blockers.Descriptor, reason: str) -> None:
    reasons, rows = blockers.files([*STREAMS, found], mounts())
    assert len(reasons) == 1
    assert reasons[0].startswith(reason)
    assert rows == []


def test_more_open_files_than_can_be_told_are_refused() -> None:
    many = [one(number, f"/tmp/{number}") for number in range(4, 300)]
    reasons, _ = blockers.files([*STREAMS, *many], mounts())
    assert reasons == ["296 open files (200 can be opened again)"]


def test_filters_of_its_own_are_seen() -> None:
    text = "Name:\tpython\nSeccomp:\t2\nSeccomp_filters:\t{}\n"
    assert blockers.status(text.format(1), text.format(1)) == []
    assert blockers.status(text.format(3), text.format(1)) == [
        "it has put itself under 2 more seccomp filters"
    ]


def test_threads_and_processes_are_named() -> None:
    found = blockers.others(["5 (tick)"], ["7 (sleep)", "9 (bash)"])
    assert found == ["thread 5 (tick)", "process 7 (sleep)", "process 9 (bash)"]
