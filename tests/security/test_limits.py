"""Every limit, with every kind of control group: another number is another outcome.

One table of limits and one of kinds. A row is a program that needs a certain amount of something;
with a limit below that it must end as the verdict says, with one above it must end well. A new
limit is a row, a new kind of machine an entry in `KINDS`; what kind a machine's own is depends on
who runs this and where (`tests/e2e/test_rootless.py`, `tests/e2e/test_cgroup_v2.py`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.model import Limits
from tests.security.boxes import (
    ColdSandbox,
    LandlockSandbox,
    NoGroupsLandlockSandbox,
    NoGroupsSandbox,
)

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]


@dataclass(frozen=True)
class Row:
    """A program, and the two values of a limit between which its need lies."""

    limit: str
    tight: Any
    roomy: Any
    verdict: str
    """How it ends with the tight one; `ok` where the program itself sees it and says `refused`."""
    code: str
    fixed: tuple[tuple[str, Any], ...] = ()
    """Other limits, the same both times."""
    guards: tuple[tuple[str, str], ...] = ()
    """States of guards under which it holds in this way."""

    def values(self, value: Any) -> dict[str, Any]:
        return {**dict(self.fixed), self.limit: value}


ROWS = {
    "memory": Row(
        "memory_limit", "64m", "400m", "oom",
        "held = bytearray(b'x') * (160 << 20)\nprint('done')",
    ),
    "memory of several processes": Row(
        "memory_limit", "128m", "600m", "oom",
        """
import os, time
ends = [os.pipe() for _ in range(4)]
for number, (read, write) in enumerate(ends):
    if os.fork() == 0:
        held = bytearray(b'x') * (60 << 20)
        os.write(write, b'x')
        time.sleep(60)
for read, write in ends:
    os.close(write)
    assert os.read(read, 1)
print('done')
time.sleep(.2)
""",
    ),
    "processor time": Row(
        "cpu_time_limit", 0.5, 30, "cpu_timeout",
        "import time\nwhile time.process_time() < 1.2: pass\nprint('done')",
    ),
    "processor time of descendants": Row(
        "cpu_time_limit", 0.5, 30, "cpu_timeout",
        """
import os, time
if os.fork() == 0:
    while time.process_time() < 1.2: pass
    os._exit(0)
os._exit(os.wait()[1] or print('done', flush=True) or 0)
""",
    ),
    "time by the clock": Row(
        "timeout", 0.7, 30, "wall_timeout",
        "import time\ntime.sleep(1.5)\nprint('done')",
    ),
    "processes": Row(
        "pids_limit", 12, 60, "process_limit",
        """
import os, time
for _ in range(30):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
print('done')
""",
    ),
    "threads": Row(
        "pids_limit", 12, 60, "process_limit",
        """
import threading, time
stop = threading.Event()
try:
    for _ in range(30):
        threading.Thread(target=stop.wait, daemon=True).start()
except RuntimeError:
    time.sleep(.3)  # without groups it is only seen by whoever looks, every 20 ms
    raise
print('done')
stop.set()
""",
    ),
    "processor": Row(
        "cpu_limit", 0.02, 1, "wall_timeout",
        "import time\nwhile time.process_time() < .5: pass\nprint('done')",
        (("timeout", 6),), (("cgroup_cpu", "on"),),
    ),
    "whole processors": Row(
        "cpu_limit", 0.7, 2, "ok",
        "import os\nprint('done' if len(os.sched_getaffinity(0)) == 2 else 'refused')",
        (), (("cgroup_cpu", "off"),),
    ),
    "open files": Row(
        "nofile_limit", 32, 128, "ok",
        """
import errno, os
try:
    held = [os.dup(1) for _ in range(64)]
except OSError as error:
    assert error.errno == errno.EMFILE
    print('refused')
else:
    print('done')
""",
    ),
    "size of a file": Row(
        "file_size_limit", "1m", "16m", "disk_limit",
        "open('large', 'wb').write(bytes(4 << 20))\nprint('done')",
    ),
    "disk": Row(
        "disk_limit", "4m", "64m", "disk_limit",
        "for n in range(8):\n    open(f'part{n}', 'wb').write(bytes(2 << 20))\nprint('done')",
        (), (("disk_limit", "on"),),
    ),
    "disk that is looked at": Row(
        "disk_limit", "4m", "64m", "disk_limit",
        """
import time
for n in range(8):
    open(f'part{n}', 'wb').write(bytes(2 << 20))
time.sleep(1.5)  # at most a second passes between two looks
print('done')
""",
        (), (("disk_limit", "off"),),
    ),
    "files": Row(
        "disk_limit", "8m", "64m", "disk_limit",
        "for n in range(2000):\n    open(f'file{n}', 'wb').close()\nprint('done')",
        (), (("disk_limit", "on"),),
    ),
    "files that are looked at": Row(
        "disk_limit", "8m", "64m", "disk_limit",
        """
import time
for n in range(2000):
    open(f'file{n}', 'wb').close()
time.sleep(1.5)
print('done')
""",
        (), (("disk_limit", "off"),),
    ),
    "output": Row(
        "output_limit", 10_000, 1_000_000, "output_limit",
        "print('x' * 100_000)\nimport time\ntime.sleep(.3)\nprint('done')",
        (("output_action", "kill"),),
    ),
}  # fmt: skip

KINDS = [ProcessSandbox, ColdSandbox, NoGroupsSandbox, LandlockSandbox, NoGroupsLandlockSandbox]
"""With what control groups the machine has, once without ptrace; and without any. Of both tiers."""


def need_guards(row: Row, box: ProcessSandbox) -> None:
    """Skip what this kind of machine holds in another way, in another row."""
    for name, state in row.guards:
        if box.isolation.guards[name] != state:
            pytest.skip(f"{name} is {box.isolation.guards[name]} here")


def check(row: Row, result: Any, *, tight: bool) -> None:
    """Compare a result with what its limit should have made of it."""
    shown = (result.verdict, result.exit_code, result.error, result.stderr[-500:])
    if not tight:
        assert result.verdict == "ok", shown
        assert result.stdout.endswith("done\n"), shown
        return
    assert result.verdict == row.verdict, shown
    if row.verdict == "ok":
        assert result.stdout == "refused\n"
    else:
        assert "done" not in result.stdout


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", KINDS)
async def test_another_number_is_another_outcome_for_a_sandbox(
    kind: type[ProcessSandbox], name: str
) -> None:
    row = ROWS[name]
    for value in (row.tight, row.roomy):
        async with kind(row.values(value)) as box:
            need_guards(row, box)
            check(row, await box.run_code(row.code), tight=value == row.tight)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", KINDS)
async def test_another_number_is_another_outcome_for_a_call(
    kind: type[ProcessSandbox], name: str
) -> None:
    row = ROWS[name]
    async with kind() as box:
        need_guards(row, box)
        for value in (row.tight, row.roomy):
            result = await box.run_code(row.code, limits=Limits(**row.values(value)))
            check(row, result, tight=value == row.tight)
            await box.execute_command("rm -rf /sandbox/*")


async def test_a_call_with_less_disk_than_is_used_can_store_nothing_more() -> None:
    async with ProcessSandbox({"disk_limit": "64m"}) as box:
        assert (await box.run_code("open('a', 'wb').write(bytes(8 << 20))")).verdict == "ok"
        strict = Limits(disk_limit="4m")
        more = (
            "import os\nprint(os.path.getsize('a'), flush=True)\nopen('b', 'wb').write(b'x' * 9999)"
        )
        result = await box.run_code(more, limits=strict)
        assert (result.stdout, result.verdict) == (f"{8 << 20}\n", "disk_limit")
        assert (await box.run_code("open('b', 'wb').write(bytes(8 << 20))")).verdict == "ok"
        assert (await box.run_code("print(1)", limits=strict)).verdict == "ok"


async def test_a_file_of_an_earlier_call_is_not_held_against_a_later_one() -> None:
    async with ProcessSandbox({"file_size_limit": "1m"}) as box:
        assert (await box.run_code("open('a', 'wb').write(bytes(1 << 20))")).verdict == "ok"
        await box.run_code("import time; time.sleep(.05)")
        assert (await box.run_code("raise SystemExit(3)")).verdict == "error"
        result = await box.run_code("open('b', 'wb').write(bytes(2 << 20))")
        assert result.verdict == "disk_limit"
        assert "File too large" in result.stderr


WIDEN = """
import os, threading, time
allowed = os.sched_getaffinity(0)
os.sched_setaffinity(0, range(os.cpu_count()))
assert os.sched_getaffinity(0) > allowed
deadline = time.monotonic() + 10
while os.sched_getaffinity(0) > allowed and time.monotonic() < deadline:
    time.sleep(.005)
print(os.sched_getaffinity(0) == allowed)
"""


async def test_a_program_without_groups_is_put_back_on_its_processors() -> None:
    async with NoGroupsSandbox({"cpu_limit": 1}) as box:
        if len(os.sched_getaffinity(0)) < 2:
            pytest.skip("one processor")
        result = await box.run_code(WIDEN)
        assert result.stdout == "True\n", result.stderr
