"""Who is still there of those that were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from ms_enclave.spawner import survey


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="takes Linux's /proc")
def test_whoever_was_killed_is_there_until_he_has_ended() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        seen = survey.stop_and_kill(lambda: {child.pid: []})
        assert list(seen) == [child.pid]
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # and nobody has reaped him
        assert child.pid not in survey.not_ended({child.pid: _row(child.pid)})
    with subprocess.Popen(["sleep", "600"]) as child:
        row = _row(child.pid)
        assert survey.not_ended({child.pid: row}) == {child.pid: row}
        another = [*row[:19], b"1", *row[20:]]
        assert survey.not_ended({child.pid: another}) == {}, "the number is somebody else's"
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert survey.not_ended({child.pid: row}) == {}


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="takes Linux's /proc")
def test_the_children_of_one_process_are_killed_but_some() -> None:
    line = "sleep 600 & echo $!; sleep 600 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        spared, other = (int(parent.stdout.readline()) for _ in range(2))
        assert survey.kill_children(parent.pid, {spared, other}) == 0
        assert survey.kill_children(parent.pid, {spared}) == 1
        deadline = time.monotonic() + 30
        while survey.kill_children(parent.pid, {spared}) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert survey.is_alive(spared)
        assert not survey.is_alive(other)
        assert survey.kill_children(spared, ()) == 0
        os.kill(spared, signal.SIGKILL)
    assert survey.kill_children(parent.pid, ()) == 0


def _row(pid: int) -> list[bytes]:
    """Its stat fields from the state on."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()
