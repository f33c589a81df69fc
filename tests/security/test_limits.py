"""Every limit, with every kind of control group: another number is another outcome.

One table of limits and one of kinds. A row is a program that needs a certain amount of something;
with a limit below that it must end as the verdict says, with one above it must end well. A new
limit is a row, a new kind of machine an entry in `KINDS`; what kind a machine's own is depends on
who runs this and where (`tests/e2e/test_rootless.py`, `tests/e2e/test_cgroup_v2.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.model import Limits
from tests.security.boxes import ColdSandbox, NoGroupsSandbox

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
    "output": Row(
        "output_limit", 10_000, 1_000_000, "output_limit",
        "print('x' * 100_000)\nimport time\ntime.sleep(.3)\nprint('done')",
        (("output_action", "kill"),),
    ),
}  # fmt: skip

KINDS = [ProcessSandbox, ColdSandbox, NoGroupsSandbox]
"""With what control groups the machine has, once without ptrace; and without any."""


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
            check(row, await box.run_code(row.code), tight=value == row.tight)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("kind", KINDS)
async def test_another_number_is_another_outcome_for_a_call(
    kind: type[ProcessSandbox], name: str
) -> None:
    row = ROWS[name]
    async with kind() as box:
        for value in (row.tight, row.roomy):
            result = await box.run_code(row.code, limits=Limits(**row.values(value)))
            check(row, result, tight=value == row.tight)
            await box.execute_command("rm -rf /sandbox/*")
