"""What a hostile program can do to a process of its own sandbox that is just being made."""

from __future__ import annotations

import time

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from tests.security.boxes import ColdSandbox

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

KINDS = [ProcessSandbox, ColdSandbox]

STOPPER = """
import os, signal, sys, time
print('started', flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    try:
        os.kill(-1, signal.SIGSTOP)
    except OSError:
        pass
"""

SPY = """
import os, sys, time
print('started', flush=True)
seen, spied = set(), 0
end = time.monotonic() + 3
while time.monotonic() < end:
    for pid in range(os.getpid() + 1, os.getpid() + 30):
        try:
            descriptor = os.open('/proc/%d/mem' % pid, os.O_RDWR)
        except OSError:
            continue
        spied += 1
        try:
            words = open('/proc/%d/cmdline' % pid, 'rb').read()
            if b'spawner' in words:
                seen.add(words)
        except OSError:
            pass
        os.close(descriptor)
print(spied > 0, seen)
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_stopping_what_is_born_does_not_stop_the_neighbours(
    kind: type[ProcessSandbox],
) -> None:
    async with kind() as box, kind() as neighbour, anyio.create_task_group() as group:

        async def attack() -> None:
            await box.run_code(STOPPER)

        async def be_stopped() -> None:
            result = await box.run_code("print(1)", timeout=1)
            assert result.verdict in ("wall_timeout", "signal", "ok")

        group.start_soon(attack)
        await anyio.sleep(0.5)
        started = time.monotonic()
        for _ in range(5):
            group.start_soon(be_stopped)
            assert (await neighbour.run_code("print(2)")).stdout == "2\n"
        assert time.monotonic() - started < 6
        group.cancel_scope.cancel()


KILLER = STOPPER.replace("SIGSTOP", "SIGKILL")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_program_that_kills_what_is_born_gets_that_as_its_result(
    kind: type[ProcessSandbox],
) -> None:
    async with kind() as box, anyio.create_task_group() as group:
        group.start_soon(box.run_code, KILLER)
        await anyio.sleep(0.5)
        killed = 0
        for _ in range(20):
            result = await box.run_code("import time\ntime.sleep(.05)", timeout=20)
            assert result.verdict in ("signal", "ok"), result
            killed += (result.signal, result.exit_code) == (9, 137)
        assert killed > 0
        group.cancel_scope.cancel()


async def test_the_stations_memory_cannot_be_opened_from_a_sandbox() -> None:
    results: list[str] = []
    async with ColdSandbox() as box, anyio.create_task_group() as group:

        async def attack() -> None:
            results.append((await box.run_code(SPY)).stdout)

        group.start_soon(attack)
        await anyio.sleep(0.3)
        for _ in range(10):
            await box.run_code("import time; time.sleep(0.05)")
    assert results == ["started\nTrue set()\n"]
