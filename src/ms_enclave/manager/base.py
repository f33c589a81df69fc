"""What every manager is, wherever its sandboxes run: one set of methods over handles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from ms_enclave.boxes._inputs import new_sandbox_id
from ms_enclave.errors import CapabilityError, ConfigError, SandboxNotFoundError
from ms_enclave.manager._languages import run_in
from ms_enclave.model import SandboxManagerConfig, SandboxManagerType
from ms_enclave.model.base import say_what_is_invalid
from ms_enclave.registry import MANAGERS, Registry

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        Callable,
        Mapping,
    )
    from contextlib import AbstractAsyncContextManager
    from os import PathLike
    from types import TracebackType

    from typing_extensions import Self

    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.model import (
        CommandResult,
        SandboxConfig,
        SandboxInfo,
        SandboxStatus,
        SnapshotInfo,
        ToolResult,
    )

__all__ = ["SandboxManager", "SandboxManagerFactory", "coerce_manager_config", "register_manager"]


class SandboxManager(ABC):
    """Makes sandboxes, gives handles to them and ends them; an async context manager.

    It may be used from any thread and any event loop, another one for each call if need be. It
    owns every sandbox that it made, until `delete_sandbox` or its own `stop`. Cancelling a call
    undoes what the call was making.
    """

    config: SandboxManagerConfig

    # --- life ---

    @abstractmethod
    async def start(self) -> None:
        """Make the manager ready. A second call does nothing; after a `stop` it starts anew."""

    @abstractmethod
    async def stop(self) -> None:
        """End every sandbox that the manager owns. Always finishes, and may be called again.

        Raises:
            EnclaveError: something could not be removed; everything else was.
        """

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    # --- sandboxes ---

    @abstractmethod
    async def create_sandbox(
        self,
        sandbox_type: str = "auto",
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> str:
        """Make and start a sandbox; gives its id. One that fails leaves nothing behind.

        Args:
            sandbox_type: a registered name; `auto` is the best type that works here.
            config: the type's config, or what it is made from; the manager's own where None.
            sandbox_id: 1 to 64 letters, digits, `_` or `-`; a new one where None.

        Raises:
            UnknownTypeError: nothing has that name.
            ConfigError: the config or the id is not valid, or the id is taken.
            IsolationUnavailableError: this machine cannot isolate; `remedy` says what to do.
            SandboxStartError: it cannot be made.
        """

    @abstractmethod
    async def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        """The handle of a sandbox; None where the manager has none of that id."""

    @abstractmethod
    async def get_sandbox_info(self, sandbox_id: str) -> SandboxInfo | None:
        """A description of a sandbox as of now; None where the manager has none of that id."""

    @abstractmethod
    async def list_sandboxes(
        self, status_filter: SandboxStatus | str | None = None
    ) -> list[SandboxInfo]:
        """Descriptions of all sandboxes, or of those in one state."""

    @abstractmethod
    async def stop_sandbox(self, sandbox_id: str) -> bool:
        """End a sandbox but go on listing it for a while; False where there is none of that id."""

    @abstractmethod
    async def delete_sandbox(self, sandbox_id: str) -> bool:
        """End and forget a sandbox; False where there is none of that id."""

    @abstractmethod
    async def renew(self, sandbox_id: str, ttl: float) -> None:
        """Let a sandbox live `ttl` seconds from now, whatever it was promised before.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
            ConfigError: `ttl` is not above 0.
        """

    @abstractmethod
    async def cleanup_all_sandboxes(self) -> None:
        """End and forget every sandbox. A pool stays, and fills again for its next borrower."""

    @abstractmethod
    async def get_stats(self) -> dict[str, Any]:
        """Counts of sandboxes by state and type, and the state of manager and pool."""

    @asynccontextmanager
    async def sandbox(
        self,
        sandbox_type: str = "auto",
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Sandbox, None]:
        """A sandbox for the length of a block: created, lent, deleted.

        Raises:
            As `create_sandbox`.
        """
        sandbox_id = new_sandbox_id()  # known before it exists, so that it is never lost
        try:
            await self.create_sandbox(sandbox_type, config, sandbox_id)
            yield await self._require_sandbox(sandbox_id)
        finally:
            with anyio.CancelScope(shield=True):
                await self.delete_sandbox(sandbox_id)

    async def _require_sandbox(self, sandbox_id: str) -> Sandbox:
        sandbox = await self.get_sandbox(sandbox_id)
        if sandbox is None:
            raise SandboxNotFoundError(sandbox_id)
        return sandbox

    # --- work ---

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
        """Run a program in a fresh sandbox of its own; nothing of it stays.

        Args:
            language: `python`, or one of `multi_code_executor`'s.
            files: further files beside the program, by relative name.
            timeout: seconds; the config's where None.

        Raises:
            ConfigError: an argument is none that a program could be given.
            Otherwise as `create_sandbox`.
        """
        async with self.sandbox(config=config) as sandbox:
            return await run_in(
                sandbox, code, language=language, stdin=stdin, files=files or {}, timeout=timeout
            )

    async def execute_tool(
        self, sandbox_id: str, tool_name: str, parameters: Mapping[str, Any] | None = None
    ) -> ToolResult:
        """Run a tool of a sandbox.

        Raises:
            SandboxNotFoundError, ToolNotFoundError: there is none of that name.
            SandboxStateError: the sandbox is not running.
        """
        sandbox = await self._require_sandbox(sandbox_id)
        return await sandbox.execute_tool(tool_name, {} if parameters is None else parameters)

    async def get_sandbox_tools(self, sandbox_id: str) -> dict[str, Any]:
        """The tools of a sandbox: name to schema, in OpenAI's function-calling shape.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
        """
        return (await self._require_sandbox(sandbox_id)).get_available_tools()

    async def put_archive(
        self, sandbox_id: str, target_dir: str, data: bytes | AsyncIterable[bytes]
    ) -> None:
        """Unpack an uncompressed tar below a folder of a sandbox.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
            OSError: the sandbox refuses, as its file system would.
        """
        await (await self._require_sandbox(sandbox_id)).put_archive(target_dir, data)

    async def put_dir(self, sandbox_id: str, source: str | PathLike[str], target: str) -> None:
        """Copy a folder of this machine into a sandbox.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
            ConfigError: the source is no folder.
        """
        await (await self._require_sandbox(sandbox_id)).put_dir(source, target)

    # --- snapshots ---

    async def list_snapshots(self) -> list[SnapshotInfo]:
        """The snapshots that sandboxes of this manager can begin with, by name.

        Raises:
            CapabilityError: this kind of manager has none.
            SnapshotStoreError: they cannot be read.
        """
        raise CapabilityError("snapshot", message="This manager has no snapshots")

    async def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot. Sandboxes that began with it, and exports under way, go on.

        Raises:
            SnapshotNotFoundError: there is none of that name.
            Otherwise as `list_snapshots`.
        """
        raise CapabilityError("snapshot", message="This manager has no snapshots")

    def export_snapshot(self, name: str) -> AsyncGenerator[bytes, None]:
        """A snapshot as an uncompressed tar, in pieces: what a sandbox has in its working folder
        below `work`, and what it has in /tmp below `tmp`.

        Raises:
            As `delete_snapshot`, with the first piece.
        """
        raise CapabilityError("snapshot", message="This manager has no snapshots")

    async def import_snapshot(self, name: str, tar: bytes | AsyncIterable[bytes]) -> SnapshotInfo:
        """Have an uncompressed tar of that form as a snapshot. It may come from anybody.

        Set-user-id bits are not taken over, and links are not followed. It is all or nothing.

        Args:
            name: as `Sandbox.snapshot` takes it.
            tar: its bytes, or an async iterable of pieces, which is read on the caller's own loop.

        Raises:
            ConfigError: the name or the tar is not valid, there is a snapshot of that name, or it
                is more than 1 GiB or 20,000 files.
            Otherwise as `list_snapshots`.
        """
        raise CapabilityError("snapshot", message="This manager has no snapshots")

    # --- the pool ---

    @abstractmethod
    async def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Make a pool of equal sandboxes; gives their ids. A second call finds it made.

        An id stays while the sandbox behind it is replaced, after each use that cannot be undone.

        Args:
            pool_size: how many, constantly; the manager config's where None.

        Raises:
            As `create_sandbox`; then nothing was made.
        """

    @abstractmethod
    def borrow(self, *, timeout: float | None = None) -> AbstractAsyncContextManager[Sandbox]:
        """A sandbox of the pool for the length of a block; first come, first served.

        A block that ends in an exception costs the sandbox its life, and the pool replaces it.

        Args:
            timeout: seconds that waiting may take.

        Raises:
            PoolEmptyError: there is no pool.
            PoolTimeoutError: no sandbox was free in time.
        """

    async def execute_tool_in_pool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> ToolResult:
        """Run a tool in a sandbox of the pool.

        Args:
            timeout: seconds that waiting for a sandbox may take; the tool has its own.

        Raises:
            As `borrow`, and ToolNotFoundError.
        """
        async with self.borrow(timeout=timeout) as sandbox:
            return await sandbox.execute_tool(tool_name, {} if parameters is None else parameters)


_registry: Registry[SandboxManager] = Registry(
    "Sandbox manager type", "ms_enclave.managers", MANAGERS
)

_ManagerClass = TypeVar("_ManagerClass", bound=type[SandboxManager])


class SandboxManagerFactory:
    """Makes managers by type: registered here, built in, or from an installed package."""

    @classmethod
    def register_manager(cls, manager_type: str, manager_class: type[SandboxManager]) -> None:
        """Make a manager class known under a type, in this process."""
        _registry.register(manager_type, manager_class)

    @classmethod
    def create_manager(
        cls,
        manager_type: str | None = None,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> SandboxManager:
        """A manager, not yet started.

        Args:
            manager_type: a registered name; where None, `http` if there is a `base_url`, else
                `local`.
            kwargs: what the manager's class takes; fields of its config among them.

        Raises:
            UnknownTypeError: nothing has that name.
            ConfigError: the config is not valid.
        """
        if manager_type is None:
            given = coerce_manager_config(config).base_url or kwargs.get("base_url")
            chosen = SandboxManagerType.HTTP if given else SandboxManagerType.LOCAL
            manager_type = chosen.value
        manager_class: Any = _registry.get(manager_type)
        return manager_class(config=config, **kwargs)

    @classmethod
    def get_registered_types(cls) -> list[str]:
        """The types that `create_manager` takes."""
        return list(_registry.names())


def register_manager(manager_type: str) -> Callable[[_ManagerClass], _ManagerClass]:
    """Decorate a `SandboxManager` class to make it known under a type."""

    def register(manager_class: _ManagerClass) -> _ManagerClass:
        SandboxManagerFactory.register_manager(manager_type, manager_class)
        return manager_class

    return register


def coerce_manager_config(
    config: SandboxManagerConfig | Mapping[str, Any] | None,
    config_class: type[SandboxManagerConfig] = SandboxManagerConfig,
    /,
    **fields: Any,
) -> SandboxManagerConfig:
    """A manager's config from whatever a caller has; `fields` go before what stands in it.

    Raises:
        ConfigError: a field is unknown or has a value it cannot have.
    """
    if isinstance(config, SandboxManagerConfig):
        if not fields and isinstance(config, config_class):
            return config
        given = {name: getattr(config, name) for name in config.model_fields_set}
    else:
        given = dict(config or {})
    try:
        return config_class.model_validate({**given, **fields})
    except ConfigError:
        raise
    except ValueError as error:  # pydantic's ValidationError is one
        raise ConfigError(f"Invalid manager config: {say_what_is_invalid(error)}") from None
