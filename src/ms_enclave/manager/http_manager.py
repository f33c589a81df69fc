"""The manager whose sandboxes are on a server."""

from __future__ import annotations

import logging
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import anyio

from ms_enclave import wire
from ms_enclave.boxes._inputs import new_sandbox_id, validate_sandbox_id
from ms_enclave.boxes._snapshot_plan import validate_snapshot_name
from ms_enclave.boxes.files import across_loops
from ms_enclave.errors import (
    ConfigError,
    EnclaveError,
    SandboxLostError,
    SandboxNotFoundError,
)
from ms_enclave.http_client import Place
from ms_enclave.loop import iterate_on_loop, on_loop, to_the_end
from ms_enclave.manager._remote_files import upload
from ms_enclave.manager._remote_link import Link, path_of
from ms_enclave.manager._remote_sandbox import RemoteSandbox, run_tool
from ms_enclave.manager.base import SandboxManager, coerce_manager_config
from ms_enclave.model import (
    CommandResult,
    SandboxConfig,
    SandboxInfo,
    SandboxManagerConfig,
    SandboxManagerType,
    SandboxStatus,
    SnapshotInfo,
    ToolResult,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Mapping
    from enum import Enum

    from ms_enclave.boxes.base import Sandbox

__all__ = ["HttpSandboxManager"]

logger = logging.getLogger(__name__)

CREATION_SECONDS = 120.0
"""Seconds that a sandbox may take to be made, beyond what a request may take."""


class HttpSandboxManager(SandboxManager):
    """Makes sandboxes on a server; see `SandboxManager` and `docs/server.md`.

    It owns the sandboxes that it made, until `delete_sandbox` or its own `stop`, which deletes
    them. A pool belongs to the server: it is found by whoever has the same key, and stays. What
    goes wrong there is raised here with its class and its words; a server that does not answer is
    a `ServerUnreachableError`, whatever the call.

    Args:
        config: the manager's config, or what it is made from; of it count `base_url`, `api_key`,
            `timeout` and `sandbox_config`.
        app: an ASGI application in this process that is spoken to in place of a server.
        settings: fields of the config; they go before what stands in `config`.

    Raises:
        ConfigError: there is no `base_url`, or something else is not valid.
    """

    kept_open: ClassVar[int] = 64
    """Connections that are kept for the next calls."""

    def __init__(
        self,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        *,
        app: Any = None,
        **settings: Any,
    ) -> None:
        self.config = coerce_manager_config(config, **settings)
        base_url = self.config.base_url or ("http://in-process" if app is not None else None)
        if not base_url:
            raise ConfigError("base_url must be provided for HttpSandboxManager")
        key = self.config.api_key
        headers = () if key is None else ((wire.KEY_HEADER, key),)
        place = Place(base_url.rstrip("/"), headers, max_concurrency=self.kept_open, app=app)
        self._link = Link(place, self.config.timeout)
        self._base_url = place.shown
        self._mine: dict[str, None] = {}
        self._link.on_made = self._own
        self._running = False

    # --- life ---

    @on_loop
    async def start(self) -> None:
        """Make the manager ready. It is no use of the server: the first call is."""
        self._link.begin()
        await self._link.open()
        self._running = True

    @to_the_end
    async def stop(self) -> None:
        """Delete the sandboxes that this manager made, and close the connections.

        Raises:
            EnclaveError: something could not be removed; everything else was.
        """
        self._running = False
        errors: list[EnclaveError] = []
        async with anyio.create_task_group() as tasks:
            for sandbox_id in list(self._mine):
                tasks.start_soon(self._delete_mine, sandbox_id, errors)
        await self._link.end()
        if errors:
            raise errors[0]

    async def _delete_mine(self, sandbox_id: str, errors: list[EnclaveError]) -> None:
        try:
            await self._delete(sandbox_id)
        except EnclaveError as error:
            errors.append(error)

    def _own(self, sandbox_id: str) -> None:
        self._mine[sandbox_id] = None

    # --- sandboxes ---

    @on_loop
    async def create_sandbox(
        self,
        sandbox_type: str = "auto",
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> str:
        """Make and start a sandbox; gives its id. See `SandboxManager.create_sandbox`."""
        # Known before it exists, so that it is never lost on the way here.
        made = new_sandbox_id() if sandbox_id is None else validate_sandbox_id(sandbox_id)
        given = self.config.sandbox_config if config is None else config
        body = {"sandbox_type": _name(sandbox_type), "config": _said(given), "sandbox_id": made}
        try:
            await self._link.post(path_of("sandboxes"), body, extra=CREATION_SECONDS, once=False)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._take_back(made, given_by_caller=sandbox_id is not None)
            raise
        self._own(made)
        return made

    async def _take_back(self, sandbox_id: str, *, given_by_caller: bool) -> None:
        """The server undoes what it was making; it may have been done a moment before. Where the
        id is the caller's, what has it may be another sandbox, that was there before."""
        if given_by_caller:
            return
        try:
            await self._delete(sandbox_id)
        except EnclaveError as error:
            logger.warning("sandbox %s may be left on the server: %s", sandbox_id, error)

    @on_loop
    async def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        """The handle of a sandbox; None where the server has none of that id."""
        try:
            return RemoteSandbox(self._link, await self._link.get(_path(sandbox_id)))
        except SandboxNotFoundError:
            return None

    @on_loop
    async def get_sandbox_info(self, sandbox_id: str) -> SandboxInfo | None:
        """A description of a sandbox as of now; None where the server has none of that id."""
        try:
            return SandboxInfo.model_validate(await self._link.get(_path(sandbox_id, "info")))
        except SandboxNotFoundError:
            return None

    @on_loop
    async def list_sandboxes(
        self, status_filter: SandboxStatus | str | None = None
    ) -> list[SandboxInfo]:
        """Descriptions of all sandboxes, or of those in one state.

        Raises:
            ConfigError: there is no such state.
        """
        status = None if status_filter is None else _name(status_filter)
        found = await self._link.get(path_of("sandboxes", status=status))
        return [SandboxInfo.model_validate(one) for one in found]

    @to_the_end
    async def stop_sandbox(self, sandbox_id: str) -> bool:
        """End a sandbox but go on listing it for a while; False where there is none of that id."""
        try:
            done = await self._link.post(_path(sandbox_id, "stop"), extra=10.0)
            self._link.tell_end(sandbox_id)
            return bool(done["stopped"])
        except SandboxNotFoundError:
            return False

    @to_the_end
    async def delete_sandbox(self, sandbox_id: str) -> bool:
        """End and forget a sandbox; False where there is none of that id."""
        return await self._delete(sandbox_id)

    async def _delete(self, sandbox_id: str) -> bool:
        try:
            done = await self._link.delete(_path(sandbox_id), extra=10.0)
        except SandboxNotFoundError:
            self._mine.pop(sandbox_id, None)
            return False
        self._mine.pop(sandbox_id, None)
        self._link.tell_end(sandbox_id)
        return bool(done["deleted"])

    @to_the_end
    async def cleanup_all_sandboxes(self) -> None:
        """End and forget every sandbox on the server that this key has. A pool stays, and fills
        again for its next borrower."""
        await self._link.delete(path_of("sandboxes"), extra=30.0)
        self._mine.clear()

    @on_loop
    async def renew(self, sandbox_id: str, ttl: float) -> None:
        """Let a sandbox live `ttl` seconds from now, whatever it was promised before.

        Raises:
            SandboxNotFoundError: the server has none of that id.
            ConfigError: `ttl` is not above 0.
        """
        await self._link.post(_path(sandbox_id, "renew"), {"ttl": ttl})

    @on_loop
    async def get_stats(self) -> dict[str, Any]:
        """Counts of sandboxes by state and type, the state of the server's manager and pool, and
        which server it is."""
        found = await self._link.get(path_of("stats"))
        return {
            **found,
            "manager_type": SandboxManagerType.HTTP.value,
            "base_url": self._base_url,
            "tracked_sandboxes": len(self._mine),
        }

    # --- snapshots ---

    @on_loop
    async def list_snapshots(self) -> list[SnapshotInfo]:
        """The snapshots on the server that this key has. See `SandboxManager.list_snapshots`."""
        found = await self._link.get(path_of("snapshots"))
        return [SnapshotInfo.model_validate(one) for one in found]

    @on_loop
    async def delete_snapshot(self, name: str) -> None:
        """Delete one. See `SandboxManager.delete_snapshot`."""
        await self._link.delete(path_of("snapshots", validate_snapshot_name(name)), extra=30.0)

    @iterate_on_loop
    async def export_snapshot(self, name: str) -> AsyncGenerator[bytes, None]:
        """One as a tar, in pieces. See `SandboxManager.export_snapshot`."""
        path = path_of("snapshots", validate_snapshot_name(name), "archive")
        async with self._link.answering("GET", path) as answering:
            async for piece in answering.pieces():
                yield piece

    async def import_snapshot(self, name: str, tar: bytes | AsyncIterable[bytes]) -> SnapshotInfo:
        """Have a tar as one. See `SandboxManager.import_snapshot`."""
        return await self._import_snapshot(validate_snapshot_name(name), across_loops(tar))

    @on_loop
    async def _import_snapshot(self, name: str, tar: bytes | AsyncIterable[bytes]) -> SnapshotInfo:
        said = await upload(self._link, path_of("snapshots", name, "archive"), tar)
        return SnapshotInfo.model_validate(said)

    # --- work ---

    @on_loop
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
        """Run a program in a fresh sandbox of its own. See `SandboxManager.run_code`."""
        given = self.config.sandbox_config if config is None else config
        body = {
            "code": code,
            "language": language,
            "stdin": wire.encode_bytes(_bytes(stdin)),
            "files": {
                name: wire.encode_bytes(_bytes(data)) for name, data in (files or {}).items()
            },
            "timeout": timeout,
            "config": _said(given),
        }
        extra = CREATION_SECONDS + (timeout or 0.0)
        return CommandResult.model_validate(
            await self._link.post(path_of("run"), body, extra=extra)
        )

    @on_loop
    async def execute_tool(
        self, sandbox_id: str, tool_name: str, parameters: Mapping[str, Any] | None = None
    ) -> ToolResult:
        """Run a tool of a sandbox. See `SandboxManager.execute_tool`."""

        async def call(method: str, *parts: str, body: Any, extra: float) -> Any:
            del method
            return await self._link.post(_path(sandbox_id, *parts), body, extra=extra)

        return await run_tool(call, tool_name, parameters, None, CREATION_SECONDS)

    @on_loop
    async def put_archive(
        self, sandbox_id: str, target_dir: str, data: bytes | AsyncIterable[bytes]
    ) -> None:
        """Unpack an uncompressed tar below a folder of a sandbox."""
        await (await self._require_sandbox(sandbox_id)).put_archive(target_dir, data)

    # --- the pool ---

    @on_loop
    async def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Make a pool of equal sandboxes; gives their ids. See `SandboxManager.initialize_pool`."""
        body = {
            "pool_size": (self.config.pool_size or None) if pool_size is None else pool_size,
            "sandbox_type": None if sandbox_type is None else _name(sandbox_type),
            "config": _said(self.config.sandbox_config if config is None else config),
        }
        return list((await self._link.post(path_of("pool"), body, extra=None))["sandbox_ids"])

    @asynccontextmanager
    async def borrow(self, *, timeout: float | None = None) -> AsyncGenerator[Sandbox, None]:
        """A sandbox of the pool for the length of a block. See `SandboxManager.borrow`.

        The loan lasts as long as its connection: one whose borrower is gone costs the sandbox its
        life, and the pool replaces it.
        """
        loan = _Loan(self._link, timeout)
        failed = True
        try:
            yield await loan.begin()
            failed = False
        finally:
            await loan.end(failed=failed)

    @on_loop
    async def execute_tool_in_pool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> ToolResult:
        """Run a tool in a sandbox of the pool. See `SandboxManager.execute_tool_in_pool`."""
        body = {"tool_name": tool_name, "parameters": parameters}
        path = path_of("pool", "execute", waiting=timeout)
        return ToolResult.model_validate(await self._link.post(path, body, extra=None))


class _Loan:
    """One loan, from before it is asked for until after it is over."""

    def __init__(self, link: Link, timeout: float | None) -> None:
        self._link = link
        self._timeout = timeout
        self._name: str | None = None
        self._events: AsyncGenerator[Any, None] | None = None

    @on_loop
    async def begin(self) -> Sandbox:
        body = {"timeout": self._timeout}
        self._events = self._link.events("POST", path_of("pool", "loans"), body)
        first = await anext(self._events, None)
        if first is None:
            raise SandboxLostError("the server lent nothing")
        self._name = str(first["loan"])
        return RemoteSandbox(self._link, first["sandbox"])

    @to_the_end
    async def end(self, *, failed: bool) -> None:
        """Return it. Where the server cannot be told, the end of the connection tells it."""
        if self._events is None:
            return
        async with aclosing(self._events):
            if self._name is not None:
                try:
                    await self._link.delete(path_of("pool", "loans", self._name, failed=failed))
                except EnclaveError as error:
                    logger.warning("a loan could not be returned: %s", error)


def _path(sandbox_id: str, *parts: str) -> str:
    """Of a sandbox; an id that is none is one that nothing has."""
    try:
        return path_of("sandboxes", validate_sandbox_id(sandbox_id), *parts)
    except ConfigError:
        raise SandboxNotFoundError(str(sandbox_id)) from None


def _name(value: str | Enum) -> str:
    return str(getattr(value, "value", value))


def _said(config: SandboxConfig | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What somebody said of a config; the server knows its own defaults."""
    if config is None:
        return None
    if isinstance(config, SandboxConfig):
        return {
            name: value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value
            for name, value in config.said().items()
        }
    return {name: _plain(value) for name, value in config.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_unset=True)
    return value


def _bytes(data: bytes | str | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data
