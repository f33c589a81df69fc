"""Measurements of kernels: a cell, a fresh kernel, many that are idle. ipykernel stands beside."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from ms_enclave.bench.measures import available
from ms_enclave.manager.local_manager import LocalSandboxManager

if TYPE_CHECKING:
    from collections.abc import Generator

    from ms_enclave.bench.context import Context, Round
    from ms_enclave.boxes import Kernel, Sandbox

__all__ = [
    "CELL",
    "CELL_PLAIN",
    "FRESH",
    "FRESH_PLAIN",
    "IDLE",
    "IDLE_IPYTHON",
    "IDLE_USED",
    "IPYKERNEL_CELL",
    "IPYKERNEL_START",
    "ONE_MORE",
    "ONE_MORE_BASE",
    "cells",
    "crowd",
    "fresh",
]

CELL, CELL_PLAIN = "a cell, with IPython", "a cell, without IPython"
FRESH_PLAIN = "a fresh kernel, to its first answer"
FRESH = "the same with IPython"
IDLE, IDLE_USED = "idle kernel with numpy", "the same after a cell"
IDLE_IPYTHON = "the same after a cell, with IPython"
ONE_MORE, ONE_MORE_BASE = "one more kernel beside many", "one more kernel beside 10"
IPYKERNEL_CELL, IPYKERNEL_START = "ipykernel, a cell", "ipykernel, start to answer"
_CODE, _ANSWER = "1 + 1", "2"
_PRELOAD = ["numpy", "pandas"]


async def cells(context: Context, into: Round) -> None:
    """`1 + 1` in a kernel that lives, from the call to the result."""
    async with LocalSandboxManager() as manager:
        plain, own = await _kernel(manager, ipython=False), await _kernel(manager)
        with _ipykernel() as other:
            for _ in range(5 * context.scale.samples):
                into.add(CELL_PLAIN, await _time_cell(plain))
                if own.get_info().implementation == "ipython":
                    into.add(CELL, await _time_cell(own))
                if other is not None:
                    into.add(IPYKERNEL_CELL, other.time_cell())


async def fresh(context: Context, into: Round) -> None:
    """A kernel that did not exist, with numpy and pandas imported, to its first answer."""
    async with LocalSandboxManager() as manager:
        config = {"python": sys.prefix, "preload": _PRELOAD}
        async with manager.sandbox("process", config) as sandbox:
            for ipython in (False, True):
                await sandbox.kernel(f"first {ipython}", ipython=ipython)  # the zygote is there now
            for number in range(context.scale.samples):
                into.add(FRESH_PLAIN, await _time_kernel(sandbox, f"p{number}", ipython=False))
                into.add(FRESH, await _time_kernel(sandbox, f"k{number}"))
    for _ in range(max(1, context.scale.cold)):
        begun = time.perf_counter()
        with _ipykernel(f"import numpy, pandas\n{_CODE}") as other:
            if other is not None:
                into.add(IPYKERNEL_START, (time.perf_counter() - begun) * 1000)


async def crowd(context: Context, into: Round) -> None:
    """Many sandboxes with a kernel each that has numpy: the memory they take, before and after
    their first cell; and the time of one more kernel, in a sandbox that is there."""
    scale = context.scale
    async with LocalSandboxManager() as manager:
        await _some(manager, 10)
        async with manager.sandbox("process", _config("numpy")) as sandbox:
            await sandbox.kernel(ipython=False)
            for number in range(scale.samples):
                name = f"k{number}"
                into.add(ONE_MORE_BASE, await _time_kernel(sandbox, name, ipython=False))
            before = await anyio.to_thread.run_sync(available)
            made = await _some(manager, scale.idle)
            into.add(IDLE, await _taken_since(before) / scale.idle)
            for kernel in made:
                await kernel.run(_CODE)
            into.add(IDLE_USED, await _taken_since(before) / scale.idle)
            await _some(manager, max(0, scale.alive - scale.idle - 10))
            for number in range(scale.samples):
                name = f"m{number}"
                into.add(ONE_MORE, await _time_kernel(sandbox, name, ipython=False))
    few = max(1, scale.idle // 5)
    async with LocalSandboxManager() as manager:
        await _some(manager, 1, ipython=True)
        before = await anyio.to_thread.run_sync(available)
        for kernel in await _some(manager, few, ipython=True):
            await kernel.run(_CODE)
        into.add(IDLE_IPYTHON, await _taken_since(before) / few)


async def _some(manager: LocalSandboxManager, count: int, *, ipython: bool = False) -> list[Kernel]:
    """Sandboxes with a kernel each that has numpy."""
    return [await _kernel(manager, "numpy", ipython=ipython) for _ in range(count)]


async def _taken_since(before: float) -> float:
    """MiB."""
    return before - await anyio.to_thread.run_sync(available)


def _config(*preload: str) -> dict[str, Any]:
    return {"python": sys.prefix, "preload": list(preload)}


async def _kernel(manager: LocalSandboxManager, *preload: str, ipython: bool = True) -> Kernel:
    name = await manager.create_sandbox("process", _config(*preload))
    sandbox = await manager.get_sandbox(name)
    if sandbox is None:
        raise RuntimeError("a sandbox ended by itself")
    return await sandbox.kernel(ipython=ipython)


async def _time_cell(kernel: Kernel) -> float:
    """Milliseconds. Raises RuntimeError where the cell does not give what it should."""
    begun = time.perf_counter()
    done = await kernel.run(_CODE)
    taken = time.perf_counter() - begun
    if done.result is None or done.result["text/plain"] != _ANSWER:
        raise RuntimeError(f"a cell gave {done}")
    return taken * 1000


async def _time_kernel(sandbox: Sandbox, name: str, *, ipython: bool = True) -> float:
    begun = time.perf_counter()
    kernel = await sandbox.kernel(name, ipython=ipython)
    await _time_cell(kernel)
    taken = time.perf_counter() - begun
    await kernel.delete()
    return taken * 1000


# --- ipykernel ----------------------------------------------------------------------------------


class _Client:
    """ipykernel through jupyter_client, as a program would use it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def time_cell(self, code: str = _CODE) -> float:
        begun = time.perf_counter()
        self.run(code)
        return (time.perf_counter() - begun) * 1000

    def run(self, code: str) -> None:
        shown: list[str] = []

        def take(message: dict[str, Any]) -> None:
            if message["msg_type"] == "execute_result":
                shown.append(message["content"]["data"]["text/plain"])

        self._client.execute_interactive(code, output_hook=take, timeout=60)
        if shown != [_ANSWER]:
            raise RuntimeError(f"ipykernel gave {shown}")


@contextmanager
def _ipykernel(code: str = _CODE) -> Generator[_Client | None, None, None]:
    """One that has given its first answer; None where it or its client is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("ipykernel", "jupyter_client")):
        yield None
        return
    from jupyter_client.manager import KernelManager

    manager: Any = KernelManager(kernel_name="python3")
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        found = _Client(client)
        found.run(code)
        yield found
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
