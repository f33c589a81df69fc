"""The measurements: each takes one round of one row of the table, next to its baselines.

Baselines block the event loop that waits for them: nothing else is on it, since a manager has a
loop of its own, and so nothing else runs while a baseline does.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ms_enclave.bench import programs
from ms_enclave.bench.context import printed
from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from ms_enclave.bench.context import Context, Round
    from ms_enclave.model import CommandResult

__all__ = [
    "FIRST",
    "FLOOR",
    "IMPORT",
    "IMPORT_MODEL",
    "LAST",
    "ONE_MORE",
    "ONE_MORE_BASE",
    "STARTED",
    "SURVIVORS",
    "TIMEOUT",
    "available",
    "cold",
    "crowd",
    "fresh",
    "imports",
    "numpy",
    "processor_time",
    "rate",
    "running",
    "shell",
    "timeouts",
    "turnover",
]

PROGRAM = "print(1)"
FLOOR = "C program, same namespaces"
IMPORT, IMPORT_MODEL = "import ms_enclave", "import ms_enclave.model"
FIRST, LAST = "the first 100", "made and stopped, last 100"
STARTED = "daemons started"
ONE_MORE, ONE_MORE_BASE = "one more beside many", "one more beside 10"
_WORKER = str(Path(__file__).with_name("_worker.py"))


async def _time(action: Callable[[], Awaitable[CommandResult]], expected: str = "1\n") -> float:
    """Milliseconds. Raises RuntimeError where the program does not print what it should."""
    begun = time.perf_counter()
    result = await action()
    taken = time.perf_counter() - begun
    if printed(result) != expected:
        raise RuntimeError(f"a sandboxed program printed {result.stdout!r}")
    return taken * 1000


# --- one program --------------------------------------------------------------------------------


async def cold(context: Context, into: Round) -> None:
    """The whole command, from nothing."""
    command = [*context.environment.command, "run", "-c", PROGRAM]
    for _ in range(context.scale.cold):
        into.add("ms-enclave run -c", programs.start(command))
        for name, argv in context.plain(PROGRAM).items():
            into.add(name, programs.start(argv))


async def fresh(context: Context, into: Round) -> None:
    """A sandbox made, used and removed, by a manager that runs."""
    plain = context.plain(PROGRAM)
    for number in range(context.scale.samples):
        into.add(
            "print(1) in a fresh sandbox", await _time(lambda: context.manager.run_code(PROGRAM))
        )
        into.add(programs.SERVER, context.servers[()].run(PROGRAM))
        for name, argv in plain.items():
            if name != programs.DOCKER or number % 5 == 0:  # it takes as long as all the others
                into.add(name, programs.start(argv))


async def running(context: Context, into: Round) -> None:
    """One more program in a sandbox that is there."""
    plain = context.plain(PROGRAM)[programs.PYTHON]
    for _ in range(context.scale.samples):
        into.add(
            "print(1) in a running sandbox", await _time(lambda: context.sandbox.run_code(PROGRAM))
        )
        into.add(programs.PYTHON, programs.start(plain))


async def shell(context: Context, into: Round) -> None:
    """The smallest command, by the shell of a sandbox that is there."""
    for _ in range(context.scale.samples):
        taken = await _time(lambda: context.sandbox.execute_command("true"), "")
        into.add("true in a running sandbox", taken)
        into.add("sh -c true", programs.start(["sh", "-c", "true"], ""))


async def imports(context: Context, into: Round) -> None:
    """What our packages add to the start of a Python."""
    plain = [context.environment.full, "-c", PROGRAM]
    taken: dict[str, list[float]] = {}
    for _ in range(max(2, context.scale.cold)):
        for module in ("", "ms_enclave", "ms_enclave.model"):
            argv = [*plain[:-1], f"import {module}; {PROGRAM}"] if module else plain
            taken.setdefault(module, []).append(programs.start(argv))
    middle = {name: statistics.median(samples) for name, samples in taken.items()}
    into.add(IMPORT, middle["ms_enclave"] - middle[""])
    into.add(IMPORT_MODEL, middle["ms_enclave.model"] - middle[""])
    into.add(programs.PYTHON, middle[""])


# --- many programs ------------------------------------------------------------------------------


async def rate(context: Context, into: Round) -> None:
    """Stateless runs a second, on all processors at once."""
    runs = context.cores * context.scale.runs
    into.add("stateless runs", await _our_rate(context, PROGRAM, runs, None))
    plain = context.plain(PROGRAM)
    for name in (programs.PYTHON, programs.BARE, programs.BWRAP, programs.SANDLOCK):
        if name in plain:
            into.add(name, _rate(context, lambda n=name: programs.start(plain[n]), runs))
    into.add(programs.SERVER, _rate(context, lambda: context.servers[()].run(PROGRAM), runs))


async def numpy(context: Context, into: Round) -> None:
    """The same for a program that imports numpy, which a zygote has loaded."""
    program = f"import numpy; {PROGRAM}"
    runs = context.cores * context.scale.runs
    config = {"preload": ["numpy"]}
    printed(await context.manager.run_code(program, config=config))  # now the zygote is there
    into.add("stateless runs with numpy", await _our_rate(context, program, runs, config))
    plain = [context.environment.full, "-c", program]
    few = context.cores * context.scale.slow_runs
    into.add("python -c, import numpy", _rate(context, lambda: programs.start(plain), few))
    server = context.servers["numpy",]
    into.add(programs.SERVER, _rate(context, lambda: server.run(program), runs))


async def _our_rate(
    context: Context, program: str, runs: int, config: Mapping[str, Any] | None
) -> float:
    async def some() -> None:
        for _ in range(each):
            if printed(await context.manager.run_code(program, config=config)) != "1\n":
                raise RuntimeError("a sandboxed program did not print what it should")

    workers = 2 * context.cores
    each = max(1, runs // workers)
    begun = time.perf_counter()
    async with anyio.create_task_group() as group:
        for _ in range(workers):
            group.start_soon(some)
    return each * workers / (time.perf_counter() - begun)


def _rate(context: Context, action: Callable[[], object], runs: int) -> float:
    begun = time.perf_counter()
    with ThreadPoolExecutor(context.cores) as pool:
        for each in [pool.submit(action) for _ in range(runs)]:
            each.result()
    return runs / (time.perf_counter() - begun)


async def processor_time(context: Context, into: Round) -> None:
    """What a run costs all processes together: manager, launcher, station, sandbox, and the kernel.

    From two numbers of runs, so that what start and end cost falls out.
    """
    few, many = 5, 5 + context.scale.counted

    def ours(count: int) -> float:
        return programs.processor_time([context.environment.full, _WORKER, str(count)])[0]

    into.add("processor time of a run", (ours(many) - ours(few)) / (many - few))
    least = context.floor
    if least is not None:
        into.add(FLOOR, (least.run(many) - least.run(few)) / (many - few))


# --- a tree of daemons --------------------------------------------------------------------------

TIMEOUT, SURVIVORS = "34 daemons, deadline to end", "daemons that survive"
_DEADLINE = 0.4
_TREE = """
import os, signal, time

def daemons(levels):
    for _ in range(levels[0]):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        os.setsid()
        if os.fork():
            os._exit(0)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if levels[1:]:
            daemons(levels[1:])
        os.write(1, b"x")
        time.sleep(600)

daemons((2, 4, 3))
time.sleep(600)
"""
_COUNT = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"


async def timeouts(context: Context, into: Round) -> None:
    """Programs that leave many sessions behind and run out of time: ms from the deadline to the
    result, and who of them is still there then."""
    async with context.manager.sandbox("process") as sandbox:
        before = int(printed(await sandbox.run_code(_COUNT)))
        for _ in range(context.scale.trees):
            begun = time.perf_counter()
            result = await sandbox.run_code(_TREE, timeout=_DEADLINE)
            taken = time.perf_counter() - begun
            if result.verdict is not Verdict.WALL_TIMEOUT or "x" not in result.stdout:
                raise RuntimeError(f"no tree that ran out of time, but {result}")
            into.add(TIMEOUT, (taken - _DEADLINE) * 1000)
            into.add(STARTED, result.stdout.count("x"))
            into.add(SURVIVORS, int(printed(await sandbox.run_code(_COUNT))) - before)


# --- crowds -------------------------------------------------------------------------------------


async def crowd(context: Context, into: Round) -> None:
    """Many sandboxes at once that do nothing: the memory they take, and the time of one more."""
    scale = context.scale
    few = max(2, scale.idle // 4)
    into.add("idle python", await anyio.to_thread.run_sync(_idle_pythons, context, few))
    async with LocalSandboxManager() as manager:

        async def make(count: int) -> None:
            for _ in range(count):
                await manager.create_sandbox("process")

        async def time_one_more(name: str) -> None:
            for _ in range(scale.samples):
                begun = time.perf_counter()
                made = await manager.create_sandbox("process")
                into.add(name, (time.perf_counter() - begun) * 1000)
                await manager.delete_sandbox(made)

        await make(10)
        await time_one_more(ONE_MORE_BASE)
        before = await anyio.to_thread.run_sync(available)
        await make(scale.idle)
        taken = before - await anyio.to_thread.run_sync(available)
        into.add("idle sandbox", taken / scale.idle)
        await make(max(0, scale.alive - scale.idle - 10))
        await time_one_more(ONE_MORE)


def available() -> float:
    """MiB of memory that could be had without swapping, when it has settled."""
    gc.collect()
    time.sleep(0.3)  # the kernel counts by processor and adds up late
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    return int(text.partition("MemAvailable:")[2].split()[0]) / 1024


def _idle_pythons(context: Context, count: int) -> float:
    """MiB that each of so many waiting interpreters takes."""
    argv = [context.environment.python, "-c", "print(1, flush=True); input()"]
    before = available()
    with ExitStack() as stack:
        for _ in range(count):
            each = stack.enter_context(
                subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            stack.callback(each.kill)
            if each.stdout is None or each.stdout.readline() != b"1\n":
                raise RuntimeError("a plain Python did not start")
        return (before - available()) / count


async def turnover(context: Context, into: Round) -> None:
    """Sandboxes made and stopped one after the other: are the last as quick as the first?"""
    taken: list[float] = []
    for _ in range(context.scale.made):
        begun = time.perf_counter()
        made = await context.manager.create_sandbox("process")
        await context.manager.delete_sandbox(made)
        taken.append((time.perf_counter() - begun) * 1000)
    part = min(100, len(taken) // 3)
    for first, last in zip(taken[:part], taken[-part:], strict=True):
        into.add(FIRST, first)
        into.add(LAST, last)
