"""A thousand processes that do not want to end, and nobody of them outlives his time.

`python -m tests.support.deadlines` does it with ten thousand of each kind of sandbox.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from ms_enclave.attack.outside import named
from tests.support.deadlines import KINDS, LIMITS, PROGRAM, run_out

EACH = 250


@pytest.mark.namespaces
@pytest.mark.parametrize("kind", ["process", "no-groups", "landlock"])
async def test_nobody_outlives_his_time(kind: str) -> None:
    async with KINDS[kind](dict(LIMITS)) as box:
        found = await run_out(box, EACH)
    assert found.survivors == 0
    assert found.started >= EACH


@pytest.mark.docker
async def test_nobody_outlives_his_time_in_a_container() -> None:
    async with KINDS["docker"](dict(LIMITS)) as box:
        found = await run_out(box, EACH)
    assert found.survivors == 0
    assert found.started >= EACH


def test_control_of_a_program_that_is_only_killed_the_daemons_stay() -> None:
    name = "late-control"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, name, "2.5"], stdout=subprocess.DEVNULL
    ) as program:
        deadline = time.monotonic() + 20
        while len(named(name)) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        program.kill()
    assert named(name)
    while named(name):  # they end by themselves
        assert time.monotonic() < deadline
        time.sleep(0.05)
