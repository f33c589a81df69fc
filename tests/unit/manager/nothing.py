"""Sandboxes with no box at all, whose start and stop do what a test says."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import anyio

from ms_enclave.boxes import Sandbox, SandboxFactory
from ms_enclave.errors import IsolationUnavailableError
from ms_enclave.model import (
    DockerSandboxConfig,
    IsolationReport,
    ProcessSandboxConfig,
    SandboxConfig,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AsyncExitStack

    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import Process, SpawnRequest

__all__ = ["Broken", "Nothing", "Script", "installed"]


@dataclass
class Script:
    """What happens to boxes, and what has happened."""

    opening_takes: float = 0.0
    opening_fails: Exception | None = None
    closing_fails: Exception | None = None
    opened: int = 0
    open_now: set[str] = field(default_factory=set)
    owners: set[str] = field(default_factory=set)
    released: list[str] = field(default_factory=list)


class Nothing(Sandbox):
    """It can be made and destroyed."""

    sandbox_type = "nothing"
    config_class: ClassVar[type[SandboxConfig]] = ProcessSandboxConfig
    script: ClassVar[Script]
    as_new: ClassVar[bool] = False

    async def _open(self, stack: AsyncExitStack) -> None:
        await anyio.sleep(self.script.opening_takes)
        if self.script.opening_fails is not None:
            raise self.script.opening_fails
        self.script.opened += 1
        self.script.open_now.add(self.id)
        self.script.owners.add(self._owner)
        stack.push_async_callback(self._undo_open)
        self._capabilities = frozenset()
        self._isolation = IsolationReport(tier="none", guards={}, kernel="none")

    async def _undo_open(self) -> None:
        await anyio.sleep(0)
        self.script.open_now.discard(self.id)
        if self.script.closing_fails is not None:
            raise self.script.closing_fails

    async def _spawn(self, request: SpawnRequest) -> Process:
        raise AssertionError("not for these tests")

    async def _connect_guest(self, user: str | int | None) -> GuestConnection:
        raise AssertionError("not for these tests")

    async def _reset(self) -> bool:
        return self.as_new

    @classmethod
    async def release_owner(cls, owner: str) -> None:
        cls.script.released.append(owner)


class Broken(Nothing):
    """It never works here, and says what to do."""

    sandbox_type = "broken"
    config_class: ClassVar[type[SandboxConfig]] = DockerSandboxConfig

    async def _open(self, stack: AsyncExitStack) -> None:
        raise IsolationUnavailableError("no walls here", remedy="sysctl walls=1")


@contextlib.contextmanager
def installed() -> Iterator[Script]:
    """The two types, registered, with a new script."""
    Nothing.script = Script()
    Nothing.as_new = False
    SandboxFactory.register_sandbox("nothing", Nothing)
    SandboxFactory.register_sandbox("broken", Broken)
    yield Nothing.script
    assert not Nothing.script.open_now
