"""The leak check sees what it is there to see; else every other test would pass for nothing."""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from tests.leaks import Snapshot, wait_until_gone


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


def test_a_control_group_is_seen(before: Snapshot) -> None:
    for place in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        group = Path(place) / f"test-of-ms-enclave-{os.getpid()}"  # swept by nobody
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            assert _left(before) == [f"cgroup {group}"]
        finally:
            group.rmdir()
        return
    pytest.skip("no control group can be made here")
