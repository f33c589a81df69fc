"""Sandboxes by the hundred: nothing of them stays. `MS_ENCLAVE_TEST_SOAK=10000` makes it as many.

The whole of it runs in a process of its own, so that the tools of the tests do not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.security.boxes import members_of, namespaces, wait_for_processes
from tests.support.owners import new_marker

pytestmark = [pytest.mark.namespaces, pytest.mark.slow]

COUNT = int(os.environ.get("MS_ENCLAVE_TEST_SOAK", "200"))
ROOT = Path(__file__).parents[2]
GROWTH = 0.5
"""KiB a cycle that a part may grow by; and what a first use of something may take, in KiB."""
FIRST_USE = 2048


@pytest.mark.timeout(120 + COUNT)
def test_of_many_sandboxes_some_of_them_cancelled_nothing_stays() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.soak", str(COUNT), "86"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["cancelled"] > COUNT * 0.01
    assert found["left"] == {}
    assert found["listed"] == 0
    for part, grown in found["grown_kib"].items():
        assert grown < FIRST_USE + GROWTH * COUNT, part


TIMED_OUT = """
import os, signal, sys
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
for _ in range(8):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            while True:  # never the same process for long
                if os.fork():
                    os._exit(0)
                os.setsid()
        os._exit(0)
while True:
    signal.pause()
"""


@pytest.mark.anyio
async def test_no_daemon_survives_the_time_out_of_its_run() -> None:
    async with LocalSandboxManager() as manager:
        name = await manager.create_sandbox("process", {"pids_limit": 64})
        box = await manager.get_sandbox(name)
        assert box is not None
        marker = new_marker()
        await box.execute_command(f"setsid sleep {marker} > /dev/null 2>&1 &")
        (bystander,) = wait_for_processes(marker)
        space = namespaces(bystander)["pid"]
        alone = members_of(space)
        for _ in range(max(10, COUNT // 10)):
            result = await box.run_code(TIMED_OUT, timeout=0.15)
            assert result.verdict == "wall_timeout"
            assert members_of(space) == alone
