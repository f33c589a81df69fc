"""Measurements of forks, checkpoints and atomic cells. A plain fork of the same process stands
beside."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ms_enclave.manager.local_manager import LocalSandboxManager

if TYPE_CHECKING:
    from ms_enclave.bench.context import Context, Round
    from ms_enclave.boxes import Kernel, Sandbox

__all__ = ["ATOMIC", "CHECKPOINT", "FORK", "PLAIN", "ROLLBACK", "forks"]

FORK = "a fork of a kernel with numpy and pandas, one of many"
CHECKPOINT, ROLLBACK = "a checkpoint of it", "a rollback of it"
ATOMIC = "what an atomic cell takes more"
PLAIN = "os.fork of the same process"
_PRELOAD = ["numpy", "pandas"]
_PLAIN_FORKS = """
import os, time
begun = time.perf_counter()
made = []
for _ in range({number}):
    pid = os.fork()
    if not pid:
        os._exit(0)
    made.append(pid)
taken = time.perf_counter() - begun
for pid in made:
    os.waitpid(pid, 0)
taken / {number}
"""


async def forks(context: Context, into: Round) -> None:
    """Many forks at once, for each; a checkpoint, a rollback, and an atomic cell less a plain one.

    Beside them so many plain forks, in the kernel itself, of children that end at once.
    """
    number = 2 * context.scale.samples
    async with LocalSandboxManager() as manager:
        config = {"python": sys.prefix, "preload": _PRELOAD, "memory_limit": "2g"}
        async with manager.sandbox("process", config) as sandbox:
            kernel = await sandbox.kernel(ipython=False)
            await _run(kernel, "state = [1]")
            for _ in range(3):
                into.add(FORK, await _time_forks(manager, sandbox, number))
                seconds = float(await _run(kernel, _PLAIN_FORKS.format(number=number)))
                into.add(PLAIN, seconds * 1000)
            for _ in range(context.scale.samples):
                await _time_the_rest(sandbox, kernel, into)


async def _time_forks(manager: LocalSandboxManager, sandbox: Sandbox, number: int) -> float:
    """Milliseconds for each, until all have said that they go on."""
    begun = time.perf_counter()
    made = await sandbox.fork(number)
    taken = time.perf_counter() - begun
    if await _run(await made[-1].kernel(), "state") != "[1]":
        raise RuntimeError("a fork is not as its original")
    for fork in made:
        await manager.delete_sandbox(fork.id)
    return taken * 1000 / number


async def _time_the_rest(sandbox: Sandbox, kernel: Kernel, into: Round) -> None:
    begun = time.perf_counter()
    kept = await sandbox.checkpoint()
    into.add(CHECKPOINT, (time.perf_counter() - begun) * 1000)
    await _run(kernel, "state.append(2)")
    begun = time.perf_counter()
    await sandbox.rollback(kept)
    into.add(ROLLBACK, (time.perf_counter() - begun) * 1000)
    if await _run(kernel, "state") != "[1]":
        raise RuntimeError("a rollback has left something")
    begun = time.perf_counter()
    await _run(kernel, "1 + 1")
    plain = time.perf_counter() - begun
    begun = time.perf_counter()
    await _run(kernel, "1 + 1", atomic=True)
    into.add(ATOMIC, (time.perf_counter() - begun - plain) * 1000)


async def _run(kernel: Kernel, code: str, *, atomic: bool = False) -> str:
    done = await kernel.run(code, atomic=atomic)
    if not done.success:
        raise RuntimeError(f"a cell gave {done}")
    return "" if done.result is None else done.result["text/plain"]
