"""Rulesets as the kernel holds them: each case enters a domain in a process of its own, and each
thing that is forbidden there is seen to work without one."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ms_enclave
from ms_enclave.spawner import landlock

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Landlock is part of Linux")

ABI = landlock.abi() if sys.platform == "linux" else 0

HEAD = """
import sys
sys.path.insert(0, sys.argv[1])
import errno, fcntl, json, os, socket, stat, subprocess, termios
from ms_enclave.spawner import _calls, landlock as ll

here, version = sys.argv[2], ll.abi()
def said(action, *arguments):
    try:
        done = action(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    if isinstance(done, int) and action is os.open:
        os.close(done)
    return "ok"
def enter(ruleset):
    if sys.argv[3] == "walled":
        _calls.prctl(38, 1)
        ll.restrict_self(ruleset)
    os.close(ruleset)
def folder(path):
    return os.open(path, os.O_PATH)
"""

SECOND_WALL = """
for name in ("a", "b", "dev"):
    os.mkdir(f"{here}/{name}")
open(f"{here}/a/file", "w").close()
root = here if sys.argv[4] == "elsewhere" else "/"
enter(ll.second_wall(version, [root]))
null = os.open("/dev/null", os.O_RDWR)
results = {
    "move": said(os.rename, f"{here}/a/file", f"{here}/b/file"),
    "link": said(os.link, f"{here}/b/file", f"{here}/a/file"),
    "write": said(os.open, f"{here}/a/new", os.O_WRONLY | os.O_CREAT),
    "fifo": said(os.mkfifo, f"{here}/a/fifo"),
    "whiteout": said(os.mknod, f"{here}/a/node", stat.S_IFCHR | 0o600, 0),
    "talk": said(fcntl.ioctl, null, termios.TCGETS, bytes(64)),
    "child": subprocess.run(["/bin/mknod", f"{here}/b/node", "c", "0", "0"],
                            capture_output=True).returncode,
    "signal": said(os.kill, os.getppid(), 0),
}
"""

FILES = """
for name in ("seen", "hidden"):
    os.mkdir(f"{here}/{name}")
    with open(f"{here}/{name}/file", "w") as file: file.write("x")
rights = ll.known_rights(version)
rules = [(folder(f"{here}/seen"), ll.READ_FILE | ll.READ_DIR),
         (folder(f"{here}/hidden/file"), ll.READ_FILE | ll.READ_DIR | ll.MAKE_DIR)]
enter(ll.create_ruleset(version, rights & ~ll.REFER, rules))
results = {
    "read": said(os.open, f"{here}/seen/file", os.O_RDONLY),
    "change": said(os.open, f"{here}/seen/file", os.O_WRONLY),
    "truncate": said(os.truncate, f"{here}/seen/file", 0),
    "make": said(os.mkdir, f"{here}/seen/new"),
    "one file": said(os.open, f"{here}/hidden/file", os.O_RDONLY),
    "its folder": said(os.listdir, f"{here}/hidden"),
    "system": said(os.open, "/etc/passwd", os.O_RDONLY),
}
"""

PORTS_AND_SCOPES = """
free, wanted, name = int(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
enter(ll.create_ruleset(
    version, 0, [], handled_ports=ll.BIND_TCP | ll.CONNECT_TCP, ports=((free, ll.CONNECT_TCP),),
    scopes=ll.SCOPE_SIGNALS | ll.SCOPE_ABSTRACT_SOCKETS))
def tcp(port): return socket.socket().connect(("127.0.0.1", port))
def bind(): return socket.socket().bind(("127.0.0.1", 0))
def abstract(): return socket.socket(socket.AF_UNIX).connect("\\0" + name)
results = {
    "allowed port": said(tcp, free), "other port": said(tcp, wanted), "bind": said(bind),
    "abstract": said(abstract), "signal": said(os.kill, os.getppid(), 0),
    "own signal": said(os.kill, os.getpid(), 0),
}
"""


def run(case: str, folder: Path, *more: object, walled: bool = True) -> dict[str, object]:
    sources = str(Path(ms_enclave.__file__).parent.parent)
    place = folder / ("walled" if walled else "open")
    place.mkdir()
    words = [sources, str(place), place.name, *map(str, more)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{HEAD}{case}\nprint(json.dumps(results))", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def needs(version: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(version > ABI, reason=f"Landlock ABI {version} is not to be had here")


@needs(landlock.OLDEST)
def test_the_second_wall_forbids_devices_and_nothing_else(tmp_path: Path) -> None:
    free = run(SECOND_WALL, tmp_path, "here", walled=False)
    assert free["whiteout"] == "ok"
    assert free["child"] == 0
    walled = run(SECOND_WALL, tmp_path, "here")
    assert walled == {**free, "whiteout": "EACCES", "child": 1}
    assert {walled[name] for name in ("move", "link", "write", "fifo", "signal")} == {"ok"}


@needs(5)
def test_device_files_answer_only_in_dev(tmp_path: Path) -> None:
    free = run(SECOND_WALL, tmp_path, "elsewhere", walled=False)
    walled = run(SECOND_WALL, tmp_path, "elsewhere")
    assert (free["talk"], walled["talk"]) == ("ENOTTY", "EACCES")


@needs(landlock.OLDEST)
def test_a_list_of_paths_is_all_there_is(tmp_path: Path) -> None:
    assert set(run(FILES, tmp_path, walled=False).values()) == {"ok"}
    assert run(FILES, tmp_path) == {
        "read": "ok",
        "change": "EACCES",
        "truncate": "EACCES",
        "make": "EACCES",
        "one file": "ok",
        "its folder": "EACCES",
        "system": "EACCES",
    }


@needs(6)
def test_ports_and_scopes(tmp_path: Path) -> None:
    name = f"ms-enclave-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as allowed,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind("\0" + name)
        abstract.listen()
        more = (allowed.getsockname()[1], other.getsockname()[1], name)
        free = run(PORTS_AND_SCOPES, tmp_path, *more, walled=False)
        walled = run(PORTS_AND_SCOPES, tmp_path, *more)
    assert set(free.values()) == {"ok"}
    forbidden = {"other port": "EACCES", "bind": "EACCES", "abstract": "EPERM", "signal": "EPERM"}
    assert walled == {**free, **forbidden}


def test_rights_grow_with_the_abi() -> None:
    rights = [landlock.known_rights(version) for version in range(landlock.NEWEST + 2)]
    assert rights[0] == 0
    assert rights[1] == 0x1FFF
    assert rights[landlock.OLDEST] == 0x7FFF
    assert rights[-1] == rights[5] == 0xFFFF
    assert all(before & after == before for before, after in itertools.pairwise(rights))


def test_where_it_cannot_grant_moving_there_is_no_ruleset() -> None:
    assert landlock.second_wall(0, ["/"]) == -1
    assert landlock.second_wall(landlock.OLDEST - 1, ["/"]) == -1


@needs(landlock.OLDEST)
def test_a_root_that_is_not_there_leaves_nothing_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        landlock.second_wall(ABI, [str(tmp_path)])
    assert len(os.listdir("/proc/self/fd")) == len(before)


@needs(landlock.OLDEST)
def test_a_descriptor_that_no_rule_can_name_is_refused() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="landlock_add_rule"):
            landlock.create_ruleset(ABI, landlock.READ_FILE, [(read, landlock.READ_FILE)])
    finally:
        os.close(read)
        os.close(write)
