"""A sandbox in memory whose start, end and processes do what a test tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.boxes import Sandbox
from ms_enclave.model import IsolationReport
from tests.support.scripted import ScriptedProcess

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AsyncExitStack

    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import Process, SpawnRequest

__all__ = ["ScriptedSandbox"]


class ScriptedSandbox(Sandbox):
    """Keeps a diary (`did`) of what was made and undone."""

    sandbox_type = "scripted"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.did: list[str] = []
        self.while_opening: Callable[[], Awaitable[object]] | None = None
        self.while_closing: Callable[[], Awaitable[object]] | None = None
        self.requests: list[SpawnRequest] = []
        self.processes: list[ScriptedProcess] = []

    async def _open(self, stack: AsyncExitStack) -> None:
        for part in ("a", "b"):
            self.did.append(f"+{part}")
            stack.push_async_callback(self._undo_part, part)
        if self.while_opening is not None:
            await self.while_opening()
        if self.while_closing is not None:
            stack.push_async_callback(self.while_closing)
        self._isolation = IsolationReport(tier="none", guards={}, kernel="", versions={})
        self._capabilities = frozenset({"python"})

    async def _undo_part(self, part: str) -> None:
        await anyio.sleep(0.01)  # a cancelled scope would stop it here
        self.did.append(f"-{part}")

    async def _spawn(self, request: SpawnRequest) -> Process:
        self.requests.append(request)
        process = ScriptedProcess()
        self.processes.append(process)
        return process

    async def _connect_guest(self, user: str | int | None) -> GuestConnection:
        raise AssertionError("not for these tests")
