"""What is seen of a bomb from outside of its sandbox, and what that means."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ms_enclave.errors import CapabilityError, EnclaveError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.attack.cases import Case
    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.model import CommandResult
    from ms_enclave.model.limits import ResolvedLimits

    Rows = dict[str, list[str]]

__all__ = ["Seen", "check_bound", "named", "rows_of", "watch"]

_SLACK_SECONDS = 5.0
"""What a busy machine may take longer; a tree that is not killed lives far longer."""
_SLACK_MEMORY = 16 << 20
"""Bytes that the kernel may be ahead of a group's limit by."""
_SLACK_CPU = 0.15
_PAUSE = 0.02
_NOTE = 200
"""Bytes that a result may say itself about what it left out."""


@dataclass(frozen=True)
class Seen:
    """What whoever is outside knows of one run."""

    verdict: str
    wall: float
    """Seconds until the result was there."""
    cpu: float | None
    """Seconds of processor time."""
    peak_memory: int | None
    """Bytes."""
    kept: int
    """Bytes of the longer output stream."""
    lost: int
    """Bytes of both that were not kept."""
    visible: bool
    """Whether any process of it was found while it ran."""
    survivors: int
    """Processes of it that are still there when the result is."""
    serves: str
    """What a program after it came to; empty if it was served as ever."""


def check_bound(sandbox: Sandbox) -> None:
    """Refuse what nothing outside holds before anything is set off in it.

    Raises:
        CapabilityError: its memory or its processes have no limit, or nobody who holds it, or it
            ends with the first bomb that is held.
    """
    limits = sandbox.config.resolve_limits()
    guards = sandbox.isolation.guards
    if guards.get("outlives_bombs") == "off":
        raise CapabilityError(
            "exhaust",
            message=f"What is too much for this {sandbox.isolation.tier} sandbox ends all of it, so"
            " there is nothing to be seen of a bomb",
            remedy="use another tier to see bombs held one by one",
        )
    # The station of a `process` sandbox looks at it, and rlimits stand behind that.
    watched = sandbox.isolation.tier in ("namespace", "landlock") and guards.get("rlimits") == "on"
    for name, guard, limit in (
        ("memory", "cgroup_memory", limits.memory),
        ("processes", "cgroup_pids", limits.pids),
    ):
        if limit is None or not (watched or guards.get(guard) == "on"):
            raise CapabilityError(
                "exhaust",
                message=f"Nothing outside of this {sandbox.sandbox_type} sandbox bounds its {name}"
                ": no bomb is set off in it",
                remedy="give the config a memory_limit and a pids_limit, on a machine whose"
                " control groups hold them (ms-enclave doctor)",
            )


async def watch(
    sandbox: Sandbox, case: Case, program: str, name: str
) -> tuple[CommandResult, Seen]:
    """Run the program of a bomb, whose processes are called `name`, and see what becomes of it.

    Raises:
        EnclaveError: it could not be run, or the sandbox did not outlive it.
    """
    found = False

    async def look() -> None:
        nonlocal found
        while not found:
            found = bool(await anyio.to_thread.run_sync(named, name))
            await anyio.sleep(_PAUSE)

    ran: list[tuple[CommandResult, float, list[int]]] = []
    failed: list[EnclaveError] = []
    async with anyio.create_task_group() as group:
        group.start_soon(look)
        begun = time.monotonic()
        try:
            result = await sandbox.run_code(program)
            wall = time.monotonic() - begun
            ran.append((result, wall, await anyio.to_thread.run_sync(named, name)))
        except EnclaveError as error:
            failed.append(error)  # by itself, and not as one of a group
        group.cancel_scope.cancel()
    for error in failed:
        raise error
    [(result, wall, left)] = ran
    usage = result.usage
    seen = Seen(
        verdict=result.verdict.value,
        wall=wall,
        cpu=None if usage is None else usage.cpu_user + usage.cpu_system,
        peak_memory=None if usage is None else usage.peak_memory,
        kept=max(len(text.encode()) for text in (result.stdout, result.stderr)),
        lost=sum(result.truncated.values()),
        visible=found,
        survivors=len(left),
        serves=await _serves(sandbox, case),
    )
    return result, seen


async def _serves(sandbox: Sandbox, case: Case) -> str:
    try:
        after = await sandbox.run_code("print(6 * 7)")
    except EnclaveError as error:
        return f"{type(error).__name__}: {error}"
    # What was stored is still there, and where that is only looked at it ends the next one, too.
    is_full = after.verdict == "disk_limit" and "disk_limit" in case.ends
    return (
        "" if after.stdout == "42\n" or is_full else f"{after.verdict.value}: {after.stderr[-200:]}"
    )


def named(name: str) -> list[int]:
    """The processes of this machine that are called so, as far as they can be seen. Those that have
    ended and wait for their parent are none."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue
        called, _, rest = text.partition("(")[2].rpartition(")")
        if called == name and rest.split()[0] not in "ZX":
            found.append(int(entry.name))
    return found


def rows_of(case: Case, limits: ResolvedLimits, seen: Seen) -> Rows:
    """What was seen, as tries and their ends, like those that the bomb tells itself. Pure."""
    cores = limits.cpu
    memory = limits.memory
    most = None if memory is None else memory * 1.05 + _SLACK_MEMORY
    rows: Rows = {}
    if seen.verdict in case.ends:
        rows["go on"] = [seen.verdict, ""]
    _breach(rows, "take longer", seen.wall > limits.timeout + _SLACK_SECONDS, f"{seen.wall:.1f} s")
    left = seen.survivors if seen.verdict == "wall_timeout" else 0  # else they may stay
    _breach(rows, "be there after the time is up", left > 0, str(left))
    _breach(rows, "hinder who comes after", seen.serves != "", seen.serves)
    # A byte that is no text is shown as a mark of three.
    over = seen.kept > 3 * limits.output + _NOTE
    _breach(rows, "have more kept of its output", over, str(seen.kept))
    if "truncated" in case.ends:
        rows["have all kept"] = [f"{seen.lost} bytes lost" if seen.lost else "ok: all", ""]
    if most is not None and seen.peak_memory is not None:
        over = seen.peak_memory > most
        _breach(rows, "have more memory", over, f"{seen.peak_memory >> 20} MiB", "cgroup_memory")
    if cores is not None and seen.cpu is not None:
        over = seen.cpu > (cores * seen.wall) * (1 + _SLACK_CPU) + _SLACK_CPU
        _breach(rows, "use more of the processors", over, f"{seen.cpu:.1f} s", "cgroup_cpu")
    return rows


def _breach(rows: Rows, what: str, over: bool, said: str, guard: str = "") -> None:
    if over:
        rows[what] = [f"ok: {said}", guard]


def read(output: str, mark: str) -> Mapping[str, list[str]]:
    """What a program said of its tries, on its last line of that kind."""
    lines = [line for line in output.splitlines() if line.startswith(mark)]
    return json.loads(lines[-1][len(mark) :]) if lines else {}
