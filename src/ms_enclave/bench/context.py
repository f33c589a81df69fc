"""What measurements work with: a manager that runs, the baselines, and how much of everything."""

from __future__ import annotations

import os
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ms_enclave.bench import floor, programs
from ms_enclave.manager.local_manager import LocalSandboxManager

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from ms_enclave.bench.containers import Engine
    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.model import CommandResult

__all__ = ["DEFAULT", "QUICK", "WARM_UP", "Context", "Round", "Scale", "open_context", "printed"]


@dataclass(frozen=True)
class Scale:
    """How much is measured: samples and runs of one round, and the sizes of crowds."""

    rounds: int
    samples: int
    cold: int
    runs: int
    """For each processor."""
    slow_runs: int
    """The same, of programs that take a tenth of a second."""
    counted: int
    """Runs whose processor time is taken together."""
    trees: int
    idle: int
    alive: int
    made: int
    streamed: int = 1024
    """MiB."""
    containers: int = 20
    """At once."""


DEFAULT = Scale(5, 20, 3, 60, 5, 120, 6, 500, 1000, 1000)
QUICK = Scale(2, 8, 1, 25, 2, 50, 3, 200, 400, 300, streamed=256)
WARM_UP = Scale(1, 2, 1, 4, 1, 5, 1, 5, 10, 20, streamed=16, containers=2)


@dataclass
class Round:
    """What one round of a row measures: samples by the name of a figure or baseline."""

    taken: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])

    def add(self, name: str, sample: float) -> None:
        """Note one sample."""
        self.taken.setdefault(name, []).append(sample)


@dataclass
class Context:
    """Everything that a measurement may use. Made by `open_context`, which also ends it."""

    environment: programs.Environment
    others: dict[str, programs.Other]
    manager: LocalSandboxManager
    sandbox: Sandbox
    """One that is running."""
    servers: dict[tuple[str, ...], programs.ForkServer]
    """By the modules that they have loaded."""
    floor: floor.Floor | None
    scale: Scale
    engine: Engine | None = None
    """Where containers are made, if rows of containers are measured."""
    cores: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))

    def plain(self, code: str) -> dict[str, list[str]]:
        """The command lines that run this code without us, each by its name."""
        lines = {
            programs.PYTHON: [self.environment.python, "-c", code],
            programs.BARE: [self.environment.python, "-I", "-S", "-c", code],
        }
        return {**lines, **{name: other.argv(code) for name, other in self.others.items()}}


class _Servers(dict[tuple[str, ...], programs.ForkServer]):
    """Fork servers by the modules that they have loaded, each started when it is first asked for
    (in the round that only warms up) and ended with the stack."""

    def __init__(self, python: str, stack: AsyncExitStack) -> None:
        super().__init__()
        self._python = python
        self._stack = stack

    def __missing__(self, modules: tuple[str, ...]) -> programs.ForkServer:
        server = self._stack.enter_context(programs.fork_server(self._python, modules))
        self[modules] = server
        return server


@asynccontextmanager
async def open_context(
    scale: Scale, note: Callable[[str], object], engine: Engine | None = None
) -> AsyncGenerator[Context, None]:
    """Start everything, for the length of a block; `note` hears of what is left out.

    Raises what the start of a sandbox raises.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="enclave-bench-")))
        environment = await anyio.to_thread.run_sync(programs.make_environment, folder)
        found = await anyio.to_thread.run_sync(programs.find_others, environment.python, note)
        manager = await stack.enter_async_context(LocalSandboxManager())
        sandbox = await stack.enter_async_context(manager.sandbox("process"))
        servers = _Servers(environment.full, stack)
        yield Context(
            environment=environment,
            others={other.name: other for other in found},
            manager=manager,
            sandbox=sandbox,
            servers=servers,
            floor=await _floor(sandbox, folder, note),
            scale=scale,
            engine=engine,
        )


async def _floor(
    sandbox: Sandbox, folder: Path, note: Callable[[str], object]
) -> floor.Floor | None:
    program = await anyio.to_thread.run_sync(floor.build_floor, folder)
    if program is None:
        note("the C program that makes the same namespaces: no cc that can compile it, left out")
        return None
    station = await anyio.to_thread.run_sync(floor.find_station)
    if station is None:
        note("the C program that makes the same namespaces: no station to join, left out")
        return None
    told = printed(await sandbox.run_code(floor.LOOK))
    return await anyio.to_thread.run_sync(floor.describe, program, station, told)


def printed(result: CommandResult) -> str:
    """What a program printed. Raises RuntimeError where it did not end well."""
    if result.exit_code != 0:
        raise RuntimeError(f"a sandboxed program ended so: {result}")
    return result.stdout
