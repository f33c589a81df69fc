"""The leak check sees what it is there to see; else every other test would pass for nothing."""

from __future__ import annotations

import gc
import glob
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import pytest

from ms_enclave.boxes._docker_owner import labels
from ms_enclave.boxes._docker_plan import LABEL
from tests import leaks
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


@pytest.mark.skipif(not HIERARCHIES, reason="there are no control groups here")
def test_a_control_group_that_another_run_has_just_made_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It locks it before it puts anybody in; what is left when it is killed is its own, too."""
    group = Path(os.path.realpath(HIERARCHIES[0])) / f"others-of-ms-enclave-{os.getpid()}"
    line = "import fcntl, os, sys; held = os.open(sys.argv[1], os.O_RDONLY);"
    line += "fcntl.flock(held, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", line, str(group)]
    before = Snapshot.take()
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert other.stdout.readline() == b"locked\n"
            assert f"cgroup {group}" in Snapshot.take().since(before)  # locked by one of ours
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr(leaks, "_is_under_us", os.getpid().__eq__)
                assert f"cgroup {group}" not in Snapshot.take().since(before)
            other.stdin.close()
            other.wait()
        assert _left(before) == []
    finally:
        group.rmdir()


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


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to make a network namespace")
def test_network_namespaces_that_a_living_child_heaps_up_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a station would: it lives on, and so do those that nobody is to have any more."""
    monkeypatch.setattr(leaks, "KEPT_NETWORKS", 2)
    line = "while read word; do unshare --net sleep 60 & echo made; done; kill $(jobs -p); wait"
    with subprocess.Popen(
        ["bash", "-c", line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as station:
        assert station.stdin is not None
        assert station.stdout is not None

        def make_one(count: int) -> None:
            assert station.stdin is not None
            assert station.stdout is not None
            station.stdin.write("one\n")
            assert station.stdout.readline() == "made\n"
            deadline = time.monotonic() + 10  # a shell's child is in its namespace when it likes
            while Snapshot.take().networks[str(station.pid)] < count:
                assert time.monotonic() < deadline
                time.sleep(0.005)

        make_one(1)
        before = Snapshot.take()
        make_one(2)
        assert _left(before) == []
        make_one(3)
        said = f"network namespaces below process {station.pid}: 3, and 2 may stay"
        assert _left(before) == [said]
        assert _left(Snapshot.take()) == []
        station.stdin.close()
        station.wait()


def test_who_turns_to_an_engine_is_noticed_with_or_without_a_mark(tmp_path: Path) -> None:
    leaks.engine_was_asked()
    subprocess.run(["true"], check=True)
    assert not leaks.engine_was_asked()
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    subprocess.run([str(program)], check=True)
    assert leaks.engine_was_asked()
    assert not leaks.engine_was_asked()
    with socket.socket(socket.AF_UNIX) as caller, pytest.raises(OSError):  # noqa: PT011 - any
        caller.connect("/nowhere/docker.sock")  # a longer path would be refused unseen
    assert leaks.engine_was_asked()


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
