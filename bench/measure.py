"""What is measured, in turns: a machine that becomes slower meanwhile is as slow for all of it."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from ms_enclave import LocalSandboxManager

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.environment import Environment
    from ms_enclave import Sandbox

__all__ = ["PLAIN", "Figures", "measure"]

PLAIN = "python -c"
_PROGRAM = "print(1)"
_WARM_PER_ROUND = 5
_PER_CORE = 25


@dataclass
class Figures:
    """Milliseconds of each single measurement by name, and whole runs a second by name."""

    milliseconds: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    per_second: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])

    def add(self, name: str, seconds: float) -> None:
        """Note one measurement."""
        self.milliseconds.setdefault(name, []).append(seconds * 1000)

    def median(self, name: str) -> float:
        """Milliseconds."""
        return statistics.median(self.milliseconds[name])

    def rate(self, name: str) -> float:
        """Runs a second, the median of the rounds."""
        return statistics.median(self.per_second[name])


async def measure(rounds: int, environment: Environment, told: Callable[[], object]) -> Figures:
    """Measure everything once a round; the first round only warms up and is thrown away.

    Raises RuntimeError where a program does not do what it should.
    """
    figures = Figures()
    async with LocalSandboxManager() as manager, manager.sandbox("process") as sandbox:
        for number in range(rounds + 1):
            taken = Figures() if number == 0 else figures
            _cold(taken, environment)
            await _warm(taken, manager, sandbox)
            if number % 3 == 0:
                await _throughput(taken, manager, environment)
            told()
    return figures


# --- from nothing -------------------------------------------------------------------------------


def _cold(figures: Figures, environment: Environment) -> None:
    python = environment.python
    for name, argv in {
        "python -I -S -c": [python, "-I", "-S", "-c", _PROGRAM],
        PLAIN: [python, "-c", _PROGRAM],
        "import ms_enclave": [python, "-c", f"import ms_enclave; {_PROGRAM}"],
        "import ms_enclave.model": [python, "-c", f"import ms_enclave.model; {_PROGRAM}"],
        "ms-enclave run -c": [*environment.command, "run", "-c", _PROGRAM],
    }.items():
        figures.add(name, _start(argv))


def _start(argv: list[str]) -> float:
    """Seconds from the start of a program to its end."""
    # What a shell that a person works in would have; and nothing that changes how Python starts.
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    begun = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=clean)
    taken = time.perf_counter() - begun
    if (done.returncode, done.stdout) != (0, "1\n"):
        raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return taken


# --- with a manager that runs -------------------------------------------------------------------


async def _warm(figures: Figures, manager: LocalSandboxManager, sandbox: Sandbox) -> None:
    async def fresh() -> str:
        result = await manager.run_code(_PROGRAM)
        return result.stdout

    async def again() -> str:
        result = await sandbox.run_code(_PROGRAM)
        return result.stdout

    async def command() -> str:
        result = await sandbox.execute_command(["true"])
        return result.stdout + "1\n" if result.exit_code == 0 else "failed"

    for name, action in {
        "fresh sandbox, print(1)": fresh,
        "running sandbox, print(1)": again,
        "running sandbox, true": command,
    }.items():
        for _ in range(_WARM_PER_ROUND):
            figures.add(name, await _time(action))


async def _time(action: Callable[[], Awaitable[str]]) -> float:
    begun = time.perf_counter()
    printed = await action()
    taken = time.perf_counter() - begun
    if printed != "1\n":
        raise RuntimeError(f"a sandboxed program printed {printed!r}")
    return taken


async def _throughput(
    figures: Figures, manager: LocalSandboxManager, environment: Environment
) -> None:
    cores = len(os.sched_getaffinity(0))
    runs = cores * _PER_CORE
    plain = [environment.python, "-c", _PROGRAM]

    def all_plain() -> float:
        begun = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(_start, [plain] * runs))
        return runs / (time.perf_counter() - begun)

    figures.per_second.setdefault(PLAIN, []).append(await anyio.to_thread.run_sync(all_plain))
    begun = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(2 * cores):
            group.start_soon(_run_many, manager, runs // (2 * cores))
    done = runs // (2 * cores) * 2 * cores
    rate = done / (time.perf_counter() - begun)
    figures.per_second.setdefault("stateless manager.run_code", []).append(rate)


async def _run_many(manager: LocalSandboxManager, count: int) -> None:
    for _ in range(count):
        result = await manager.run_code(_PROGRAM)
        if result.stdout != "1\n":
            raise RuntimeError(f"a sandboxed program ended so: {result}")
