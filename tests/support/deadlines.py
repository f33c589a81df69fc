"""Lets programs with dozens of daemons run out of time, and looks who is left:
`python -m tests.support.deadlines [COUNT] [KIND…]` prints it as JSON, for so many processes that do
not want to end and for the kinds of sandbox in `KINDS`.

How long a tree was there beyond its time is measured up to the look that found nobody of it, and
from before the program was asked for: with the look, and with the start.
"""

from __future__ import annotations

import json
import math
import secrets
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ms_enclave.attack.outside import named
from ms_enclave.boxes import DockerSandbox
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from tests.security.boxes import LandlockSandbox, NoGroupsSandbox

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

__all__ = ["KINDS", "PROGRAM", "Findings", "run_out"]

EACH = 34
"""Processes of one program."""
TIMEOUT = 0.8
"""Seconds: enough to make them all on a busy machine."""
# On a busy machine those who have fled wait for a while to be seen off.
LIMITS: dict[str, Any] = {"pids_limit": 600, "memory_limit": "512m"}
KINDS: dict[str, type[Sandbox]] = {
    "process": ProcessSandbox,
    "no-groups": NoGroupsSandbox,
    "landlock": LandlockSandbox,
    "docker": DockerSandbox,
}

# Whoever nobody kills ends by himself, some seconds later. A third are daemons, a third children,
# and a third is never the same process for long.
PROGRAM = f"""
import ctypes, os, signal, sys, time
end = time.monotonic() + float(sys.argv[2])
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
def fork():
    while True:
        try:
            return os.fork()
        except OSError:
            time.sleep(.01)
def stay():
    while time.monotonic() < end:
        time.sleep(.05)
    os._exit(0)
def flee():
    while time.monotonic() < end:
        try:
            if os.fork():
                os._exit(0)
            os.setsid()
        except OSError:
            continue
        time.sleep(.005)
    os._exit(0)
for number in range({EACH} - 1):
    if number % 3 == 1:
        if fork() == 0:
            stay()
        continue
    child = fork()
    if child == 0:
        os.setsid()
        if fork() == 0:
            os.closerange(0, 64)
            stay() if number % 3 else flee()
        os._exit(0)
    os.waitpid(child, 0)
stay()
"""


@dataclass
class Findings:
    """What became of the processes of one kind of sandbox."""

    started: int = 0
    """Processes that were seen to be there before their time was up."""
    survivors: int = 0
    """Those that were there after the result was."""
    late: list[float] = field(default_factory=list[float])
    """Seconds that each tree was there beyond its time."""

    def figures(self) -> dict[str, Any]:
        """For people."""
        cuts = sorted(self.late)
        return {
            "started": self.started,
            "survivors": self.survivors,
            "gone_p50_ms": round(1000 * statistics.median(cuts), 1),
            "gone_p99_ms": round(1000 * cuts[math.ceil(0.99 * len(cuts)) - 1], 1),
        }


async def run_out(box: Sandbox, count: int) -> Findings:
    """Let programs with so many processes in all run out of time, one after the other."""
    findings = Findings()
    while findings.started < count:
        name = f"late-{secrets.token_hex(5)}"
        most = 0

        async def look(name: str = name) -> None:
            nonlocal most
            await anyio.sleep(TIMEOUT / 3)
            while True:
                most = max(most, len(await anyio.to_thread.run_sync(named, name)))
                await anyio.sleep(TIMEOUT / 10)

        async with anyio.create_task_group() as group:
            group.start_soon(look)
            due = time.monotonic() + TIMEOUT
            result = await box.run_code(PROGRAM, args=[name, "5"], timeout=TIMEOUT)
            left = await anyio.to_thread.run_sync(named, name)
            findings.late.append(time.monotonic() - due)
            group.cancel_scope.cancel()
        assert result.verdict == "wall_timeout", result
        assert most, "nobody was seen, so nobody can be missed"
        findings.started += min(most, EACH)
        findings.survivors += len(left)
    return findings


async def main(count: int, kinds: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in kinds:
        async with KINDS[kind](dict(LIMITS)) as box:
            found[kind] = (await run_out(box, count)).figures()
    return found


if __name__ == "__main__":
    words = sys.argv[1:] or ["10000"]
    print(json.dumps(anyio.run(main, int(words[0]), words[1:] or list(KINDS)), indent=2))
