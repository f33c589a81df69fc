"""What a result says was used is what was used, and nobody escapes being counted."""

from __future__ import annotations

import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.model import Verdict
from tests.security.boxes import ColdSandbox, NoGroupsSandbox

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

KINDS = [ProcessSandbox, ColdSandbox, NoGroupsSandbox]

BUSY = """
import os, time
while time.process_time() < .6: pass
os.write(1, b'%f' % time.process_time())
os._exit(0)
"""

CHILDREN = """
import os, time
read, write = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        while time.process_time() < .25: pass
        os.write(write, b'%f\\n' % time.process_time())
        os._exit(0)
for _ in range(3):
    os.wait()
shares = [float(line) for line in os.read(read, 1000).split()]
os.write(1, b'%f' % (sum(shares) + time.process_time()))
os._exit(0)
"""

DAEMON = """
import os, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while time.process_time() < .6: pass
        os.write(write, b'%f' % time.process_time())
    os._exit(0)
os.wait()
used = float(os.read(read, 100))
os.write(1, b'%f' % (used + time.process_time()))
os._exit(0)
"""

# The same, but it is still there when the run ends.
STAYS = DAEMON.replace(
    "    os._exit(0)\nos.wait()", "        time.sleep(600)\n    os._exit(0)\nos.wait()"
)

MEMORY = """
import os
held = bytearray(b'x') * (300 << 20)
(line,) = [line for line in open('/proc/self/status') if line.startswith('VmHWM')]
import time
time.sleep(.1)
os.write(1, b'%d' % (int(line.split()[1]) << 10))
os._exit(0)
"""

SEVERAL = """
import os, time
said, say = os.pipe()
go, gone = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        os.close(gone)
        held = bytearray(b'x') * (80 << 20)
        os.write(say, b'x')
        os.read(go, 1)
        os._exit(0)
for _ in range(4):
    os.read(said, 1)
time.sleep(.1)
os.write(1, b'%d' % (4 * (80 << 20)))
os._exit(0)
"""


@pytest.mark.parametrize("code", [BUSY, CHILDREN], ids=["itself", "children"])
@pytest.mark.parametrize("kind", KINDS)
async def test_processor_time_is_what_the_program_used(
    kind: type[ProcessSandbox], code: str
) -> None:
    async with kind() as box:
        result = await box.run_code(code)
        used = float(result.stdout)
        assert result.usage is not None
        said = result.usage.cpu_user + result.usage.cpu_system
        assert said == pytest.approx(used, rel=0.02, abs=0.01), result.usage


@pytest.mark.parametrize("code", [DAEMON, STAYS], ids=["that ended", "that is left"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_daemons_processor_time_is_charged_to_whoever_started_it(
    kind: type[ProcessSandbox], code: str
) -> None:
    async with kind() as box:
        result = await box.run_code(code)
        used = float(result.stdout)
        assert result.usage is not None
        said = result.usage.cpu_user + result.usage.cpu_system
        if box.isolation.guards["cgroup_cpu"] == "on":
            assert said == pytest.approx(used, rel=0.02, abs=0.01), result.usage
        else:  # it is seen every 20 ms, and the kernel's clock ticks every 10
            assert used - 0.1 < said < used * 1.02 + 0.03, result.usage


@pytest.mark.parametrize("code", [MEMORY, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("kind", KINDS)
async def test_peak_memory_is_that_of_all_processes(kind: type[ProcessSandbox], code: str) -> None:
    async with kind() as box:
        result = await box.run_code(code)
        assert result.usage is not None
        assert result.usage.peak_memory is not None, result.usage
        tolerance = 0.05 if code == MEMORY else 0.15  # four interpreters are something, too
        assert result.usage.peak_memory == pytest.approx(float(result.stdout), rel=tolerance)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_more_processes_are_started_than_a_sandbox_may_have(
    kind: type[ProcessSandbox],
) -> None:
    async with kind(config={"pids_limit": 4}) as box:
        started = [await box.start_command("exec sleep 60") for _ in range(6)]
        one_more = await box.execute_command("true")
        assert one_more.verdict is Verdict.PROCESS_LIMIT
        assert (await started[-1].wait()).verdict is Verdict.PROCESS_LIMIT
        await started[0].kill()
        assert (await box.execute_command("true")).verdict is Verdict.OK
