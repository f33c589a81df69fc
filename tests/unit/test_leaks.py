"""The leak check sees what it is there to see; else every other test would pass for nothing."""

from __future__ import annotations

import gc
import glob
import os
import socket
import subprocess
import tempfile
import threading
from datetime import datetime, timezone
from pathlib import Path

import pytest

from ms_enclave.boxes._docker_owner import labels
from ms_enclave.boxes._docker_plan import LABEL
from tests.leaks import Snapshot, wait_until_gone
from tests.support.engine import IMAGE

OWNER = f"{LABEL}owner"


def _is_v2(place: str) -> bool:
    return os.path.exists(f"{place}/cgroup.controllers")


@pytest.fixture
def before() -> Snapshot:
    gc.collect()  # what earlier tests dropped must not end while we count
    return Snapshot.take()


def _left(before: Snapshot) -> list[str]:
    return wait_until_gone(before, grace=0.1)


def test_a_child_that_runs_on_is_seen(before: Snapshot) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert _left(before) == [f"process {child.pid}: sleep"]
        child.kill()
    assert _left(before) == []


def test_a_child_that_made_itself_a_daemon_is_seen(before: Snapshot) -> None:
    line = "sleep 60 >/dev/null 2>&1 & echo $!"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert _left(before) == [f"process {int(done.stdout)}: sleep"]
    os.kill(int(done.stdout), 9)
    assert wait_until_gone(before) == []


def test_a_descriptor_is_seen(before: Snapshot) -> None:
    ends = os.pipe()
    assert _left(before) == ["descriptor pipe: 2 more"]
    for end in ends:
        os.close(end)


def test_a_thread_is_seen(before: Snapshot) -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="left-running")
    thread.start()
    assert _left(before) == ["thread left-running"]
    go.set()
    thread.join()


def test_a_temporary_folder_is_seen(before: Snapshot) -> None:
    folder = tempfile.mkdtemp()
    assert _left(before) == [f"folder or socket {folder}"]
    Path(folder).rmdir()


def test_what_ends_in_time_is_waited_for(before: Snapshot) -> None:
    subprocess.run(["sh", "-c", "sleep 0.2 >/dev/null 2>&1 &"], check=True)
    assert wait_until_gone(before) == []


HIERARCHIES = sorted({os.path.dirname(place) for place in glob.glob("/sys/fs/cgroup/*/tasks")})
HIERARCHIES += [place for place in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if _is_v2(place)]


@pytest.mark.parametrize("place", HIERARCHIES)
def test_a_control_group_is_seen_in_every_hierarchy(before: Snapshot, place: str) -> None:
    group = Path(os.path.realpath(place)) / f"test-of-ms-enclave-{os.getpid()}"  # swept by nobody
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        left = _left(before)
        assert left
        assert {os.path.realpath(line.partition(" ")[2]) for line in left} == {str(group)}
    finally:
        group.rmdir()
    assert _left(before) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to mount")
def test_a_mount_is_seen() -> None:
    place = tempfile.mkdtemp(prefix="ms-enclave-")
    before = Snapshot.take()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    try:
        assert f"mount {place}" in _left(before)
    finally:
        subprocess.run(["umount", place], check=True)
    assert _left(before) == []
    os.rmdir(place)


@pytest.mark.parametrize("place", ["/run", "/dev/shm"])
def test_a_socket_is_seen_where_sockets_are(before: Snapshot, place: str) -> None:
    path = f"{place}/ms-enclave-{os.getpid()}.sock"
    if not os.access(place, os.W_OK):
        pytest.skip(f"nothing can be made in {place}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        try:
            assert f"folder or socket {path}" in _left(before)
        finally:
            os.unlink(path)
    assert _left(before) == []


@pytest.mark.docker
@pytest.mark.parametrize("runs", [False, True])
def test_a_container_of_this_run_is_seen_and_no_other(runs: bool) -> None:
    before = Snapshot.take(containers=True)
    somebodys = labels("x", "", datetime.now(timezone.utc))
    owner = somebodys[OWNER]
    place, pid, start = owner.split(":")
    other = {**somebodys, OWNER: f"{place}:1:{start}"}
    assert pid == str(os.getpid())
    made: list[str] = []
    try:
        for given in (somebodys, other):
            words = [f"--label={name}={value}" for name, value in given.items()]
            verb = ["run", "-d"] if runs else ["create"]
            command = ["docker", *verb, "--network=none", *words, IMAGE, "sleep", "60"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            made.append(done.stdout.strip())
        ask = ["docker", "inspect", "--format={{.Name}}", made[0]]
        name = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        assert _left(before) == [f"container {name}"]
    finally:
        subprocess.run(["docker", "rm", "-f", *made], capture_output=True, check=True)
    assert _left(before) == []
