"""A manager as those see it whom a policy holds: what it makes has been looked at before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from typing_extensions import override

from ms_enclave.boxes._inputs import coerce_config
from ms_enclave.boxes.factory import SandboxFactory
from ms_enclave.errors import EngineUnavailableError, IsolationUnavailableError, NotAllowedError
from ms_enclave.manager import SandboxManager
from ms_enclave.manager.local_manager import AUTO, BEST_FIRST, nothing_works
from ms_enclave.model import SandboxConfig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.model import (
        CommandResult,
        SandboxInfo,
        SandboxStatus,
        SnapshotInfo,
        ToolResult,
    )
    from ms_enclave.server.access import Access, Principal
    from ms_enclave.server.policy import Policy

__all__ = ["Governed", "GovernedAccess"]


class GovernedAccess:
    """Lets the same people in, and holds them to their own policy, or else to one for all."""

    def __init__(self, access: Access, policy: Policy) -> None:
        self._access = access
        self._policy = policy

    @property
    def needs_key(self) -> bool:
        """Whether nobody is let in without one."""
        return self._access.needs_key

    async def authenticate(self, key: str | None) -> Principal | None:
        """Whose key it is, with a manager that holds them to the policy."""
        found = await self._access.authenticate(key)
        if found is None:
            return None
        policy = self._policy if found.policy is None else found.policy
        return replace(found, manager=Governed(found.manager, policy))


class Governed(SandboxManager):
    """The same manager, of which nothing may be asked that its policy does not allow.

    What the manager's own config says is its owner's word, and is only hardened.
    """

    def __init__(self, manager: SandboxManager, policy: Policy) -> None:
        self._manager = manager
        self._policy = policy
        self.config = manager.config

    # --- what a policy has to say of ---

    @override
    async def create_sandbox(
        self,
        sandbox_type: str = AUTO,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> str:
        return await self._try(
            sandbox_type, config,
            lambda kind, given: self._manager.create_sandbox(kind, given, sandbox_id),
        )  # fmt: skip

    @override
    async def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        stdin: bytes | str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout: float | None = 30.0,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> CommandResult:
        return await self._try(
            AUTO, config,
            lambda _kind, given: self._manager.run_code(
                code, language=language, stdin=stdin, files=files, timeout=timeout, config=given
            ),
        )  # fmt: skip

    @override
    async def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> list[str]:
        return await self._try(
            sandbox_type or AUTO, config,
            lambda kind, given: self._manager.initialize_pool(pool_size, kind, given),
        )  # fmt: skip

    async def _try(
        self,
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None,
        make: Callable[[str, SandboxConfig], Awaitable[Any]],
    ) -> Any:
        """Make it of the type that was asked for, or of the best that is allowed and works. A
        config of another type's own class means that type, as it does to a manager."""
        if sandbox_type != AUTO:
            kind = await _load(sandbox_type)
            return await make(sandbox_type, self._admit(sandbox_type, kind, config))
        refusals: list[IsolationUnavailableError | EngineUnavailableError] = []
        own = self.config.sandbox_config if config is None else config
        for candidate in filter(self._policy.has_type, BEST_FIRST):
            kind = await _load(candidate)
            if not _is_general(own) and not isinstance(own, kind.config_class):
                continue
            try:
                return await make(candidate, self._admit(candidate, kind, config))
            except (IsolationUnavailableError, EngineUnavailableError) as error:
                refusals.append(error)
        if refusals:
            raise nothing_works(refusals)
        raise NotAllowedError(f"this server makes no sandbox of type {AUTO}")

    def _admit(
        self,
        sandbox_type: str,
        kind: type[Sandbox],
        config: SandboxConfig | Mapping[str, Any] | None,
    ) -> SandboxConfig:
        """The config as the type understands it, hardened. Raises NotAllowedError, ConfigError."""
        if not self._policy.has_type(sandbox_type):
            raise NotAllowedError(f"this server makes no sandbox of type {sandbox_type}")
        own = self.config.sandbox_config if config is None else config
        settled = self._policy.harden(coerce_config(kind.config_class, own))
        if config is not None:
            self._policy.check(settled)
        return settled

    # --- what it has not ---

    @override
    async def start(self) -> None:
        await self._manager.start()

    @override
    async def stop(self) -> None:
        await self._manager.stop()

    @override
    async def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        return await self._manager.get_sandbox(sandbox_id)

    @override
    async def get_sandbox_info(self, sandbox_id: str) -> SandboxInfo | None:
        return await self._manager.get_sandbox_info(sandbox_id)

    @override
    async def list_sandboxes(
        self, status_filter: SandboxStatus | str | None = None
    ) -> list[SandboxInfo]:
        return await self._manager.list_sandboxes(status_filter)

    @override
    async def stop_sandbox(self, sandbox_id: str) -> bool:
        return await self._manager.stop_sandbox(sandbox_id)

    @override
    async def delete_sandbox(self, sandbox_id: str) -> bool:
        return await self._manager.delete_sandbox(sandbox_id)

    @override
    async def renew(self, sandbox_id: str, ttl: float) -> None:
        await self._manager.renew(sandbox_id, ttl)

    @override
    async def cleanup_all_sandboxes(self) -> None:
        await self._manager.cleanup_all_sandboxes()

    @override
    async def get_stats(self) -> dict[str, Any]:
        return await self._manager.get_stats()

    @override
    async def list_snapshots(self) -> list[SnapshotInfo]:
        return await self._manager.list_snapshots()

    @override
    async def delete_snapshot(self, name: str) -> None:
        await self._manager.delete_snapshot(name)

    @override
    def export_snapshot(self, name: str) -> AsyncGenerator[bytes, None]:
        return self._manager.export_snapshot(name)

    @override
    async def import_snapshot(self, name: str, tar: bytes | AsyncIterable[bytes]) -> SnapshotInfo:
        return await self._manager.import_snapshot(name, tar)

    @override
    def borrow(self, *, timeout: float | None = None) -> AbstractAsyncContextManager[Sandbox]:
        return self._manager.borrow(timeout=timeout)

    @override
    async def execute_tool_in_pool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> ToolResult:
        return await self._manager.execute_tool_in_pool(tool_name, parameters, timeout)


def _is_general(config: SandboxConfig | Mapping[str, Any] | None) -> bool:
    """Whether any type may be made of it."""
    return not isinstance(config, SandboxConfig) or type(config) is SandboxConfig


_loaded: set[str] = set()
"""Types whose classes were imported once: finding them again waits for nobody."""


async def _load(sandbox_type: str) -> type[Sandbox]:
    """The class of a type, which may have to be imported: nothing for the loop. Raises
    UnknownTypeError."""
    if sandbox_type not in _loaded:
        await anyio.to_thread.run_sync(SandboxFactory.get_class, sandbox_type)
        _loaded.add(sandbox_type)
    return SandboxFactory.get_class(sandbox_type)
