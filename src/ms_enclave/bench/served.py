"""The measurement of a server on this machine: what it adds to a call, and how many it answers."""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.manager.http_manager import HttpSandboxManager

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence

    from ms_enclave.bench.context import Context, Round
    from ms_enclave.boxes.base import Sandbox

__all__ = ["ADDED", "CELLS", "EXISTS", "LISTED", "LOCAL", "PYTHON", "listed", "served"]

ADDED = "a tool call over HTTP, beyond a local one"
EXISTS, CELLS = "file_operation exists over HTTP", "cells over HTTP"
LISTED = "the list of 1,000 sandboxes over HTTP"
PYTHON, LOCAL = "python_executor over HTTP", "python_executor, local"

_CONFIG: Mapping[str, Any] = {"tools_config": {"file_operation": {}, "python_executor": {}}}
_EXISTS: Mapping[str, Any] = {"operation": "exists", "file_path": "/sandbox"}
_PRINT: Mapping[str, Any] = {"code": "print(1)"}
_FIRST_CALLS = 10


async def served(context: Context, into: Round) -> None:
    """A server as a process of its own, and its client in this one."""
    scale, workers = context.scale, 2 * context.cores
    with _server([*context.environment.command, "server"]) as (url, key):
        async with (
            HttpSandboxManager(base_url=url, api_key=key) as manager,
            manager.sandbox("process", _CONFIG) as there,
            context.manager.sandbox("process", _CONFIG) as here,
        ):
            await _added(there, here, 4 * scale.samples, into)
            runs = context.cores * scale.runs
            kernels = [await there.kernel(f"bench{number}") for number in range(workers)]
            cells = [lambda kernel=kernel: kernel.run("1+1") for kernel in kernels]
            into.add(CELLS, await _rate(cells, 4 * runs))
            into.add(EXISTS, await _rate([lambda: _exists(there)] * workers, 4 * runs))
            for sandbox in (there, here):  # what is made ahead of a run is there at the second
                await _rate([lambda sandbox=sandbox: _print(sandbox)] * workers, 4 * workers)
            into.add(PYTHON, await _rate([lambda: _print(there)] * workers, runs))
            into.add(LOCAL, await _rate([lambda: _print(here)] * workers, runs))


async def listed(context: Context, into: Round) -> None:
    """A server with very many, and how long its client waits for the list of them."""
    with _server([*context.environment.command, "server"]) as (url, key):
        async with HttpSandboxManager(base_url=url, api_key=key) as manager:
            make = lambda: manager.create_sandbox("process")  # noqa: E731
            await _rate([make] * (2 * context.cores), context.scale.alive)
            for number in range(_FIRST_CALLS + context.scale.samples):
                begun = time.perf_counter()
                found = len(await manager.list_sandboxes())
                if found < context.scale.alive // 2:
                    raise RuntimeError(f"of {context.scale.alive} sandboxes {found} are listed")
                if number >= _FIRST_CALLS:
                    into.add(LISTED, (time.perf_counter() - begun) * 1000)
            await manager.cleanup_all_sandboxes()


async def _added(there: Sandbox, here: Sandbox, count: int, into: Round) -> None:
    """Both in turns, so that a machine that becomes slower meanwhile does so for both. The first
    calls, for which each sandbox starts its guest and the server loads what it has not, are those
    of no row."""
    for sandbox in (here, there):
        await _rate([lambda sandbox=sandbox: _exists(sandbox)], _FIRST_CALLS)
    local: list[float] = []
    remote: list[float] = []
    for _ in range(count):
        for sandbox, taken in ((here, local), (there, remote)):
            begun = time.perf_counter()
            await _exists(sandbox)
            taken.append((time.perf_counter() - begun) * 1000)
    usual = statistics.median(local)
    for sample in remote:
        into.add(ADDED, sample - usual)


async def _exists(sandbox: Sandbox) -> None:
    _check(await sandbox.execute_tool("file_operation", _EXISTS))


async def _print(sandbox: Sandbox) -> None:
    _check(await sandbox.execute_tool("python_executor", _PRINT))


def _check(result: Any) -> None:
    if result.status != "success":
        raise RuntimeError(f"a tool ended so: {result}")


async def _rate(actions: Sequence[Callable[[], Awaitable[object]]], runs: int) -> float:
    """Calls a second, by as many tasks as there are actions."""
    each = max(1, runs // len(actions))

    async def some(action: Callable[[], Awaitable[object]]) -> None:
        for _ in range(each):
            await action()

    begun = time.perf_counter()
    async with anyio.create_task_group() as group:
        for action in actions:
            group.start_soon(some, action)
    return each * len(actions) / (time.perf_counter() - begun)


@contextmanager
def _server(command: list[str]) -> Generator[tuple[str, str], None, None]:
    """Start one; gives its address and its key."""
    key = secrets.token_urlsafe(24)
    with subprocess.Popen(
        [*command, "--port", "0", "--log", "none"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "MS_ENCLAVE_API_KEY": key},
    ) as child:  # fmt: skip
        try:
            said = "" if child.stderr is None else child.stderr.readline()
            if "serves at" not in said:
                raise RuntimeError(f"the server did not start: {said}")
            yield said.split()[-1], key
        finally:
            child.terminate()
            child.wait(40)
