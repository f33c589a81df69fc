"""The manager of one tenant: it remembers what it has, and has it again after a restart."""

from __future__ import annotations

import hashlib
import logging
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import anyio
from typing_extensions import override

from ms_enclave.boxes._inputs import coerce_config
from ms_enclave.errors import (
    CapabilityError,
    QuotaExceededError,
    StoreUnavailableError,
    UnknownTypeError,
)
from ms_enclave.loop import on_loop, to_the_end
from ms_enclave.manager._policy import seconds_left
from ms_enclave.manager.local_manager import BEST_FIRST, LocalSandboxManager
from ms_enclave.model import SandboxConfig, SandboxStatus
from ms_enclave.server.quotas import Quotas, share_of
from ms_enclave.server.store.boxes import add_box, end_boxes, list_boxes, renew_box

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping

    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.model import CommandResult
    from ms_enclave.server.fair import FairQueue
    from ms_enclave.server.quotas import Share
    from ms_enclave.server.store import Store
    from ms_enclave.server.store.boxes import BoxRow, Place

__all__ = ["TenantManager"]

logger = logging.getLogger(__name__)

_ENDED = frozenset({SandboxStatus.STOPPED, SandboxStatus.ERROR})
_GONE = "it was not there any more when the server had started again"


class TenantManager(LocalSandboxManager):
    """A local manager whose sandboxes are kept when the server ends, however it ends, where their
    type can be; which there are stands in the store, so that one that is not there is told as lost.

    The pool, and programs of `run_code`, end with the server.

    Args:
        store: where it remembers; outlives it.
        place: whose it is, on which server.
        creations: where creations wait for their turn.
        options: what a local manager takes; `state_dir` among them.
    """

    def __init__(
        self,
        store: Store,
        place: Place,
        config: Any = None,
        *,
        creations: FairQueue,
        **options: Any,
    ) -> None:
        super().__init__(config, **options)
        self.quotas = Quotas()
        self._creations = creations
        self._held: list[Share] = []
        self._shares: dict[str, Share] = {}
        self._store = store
        self._place = place
        whose = f"{place.node}/{place.tenant}".encode()
        self._apart = f"-{hashlib.sha256(whose).hexdigest()[:12]}"
        self._remembered: dict[str, int] = {}
        self._told: dict[str, str] = {}
        """Why those are lost of which the store knows it."""

    # --- from one life of the server to the next ---

    @override
    async def _take_over(self) -> None:
        await super()._take_over()
        try:
            await self._recall()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._end_everything(leave=True)
            raise

    async def _recall(self) -> None:
        """See that all is there that should be, and say of the rest that it is lost."""
        now = self._clock().timestamp()
        since = now - min(self._lifetimes.retention, now)
        found = await self._store.reading(lambda c: list_boxes(c, self._place, since))
        rows = list({row.id: row for row in found}.values())  # an id may be taken again
        self._remembered = {row.id: row.number for row in rows}
        self._told = {row.id: row.lost for row in rows if row.lost is not None}
        here = list(self._sandboxes.items())
        for row in rows:
            over = row.lost is None and row.expires_at is not None and row.expires_at <= now
            if row.id not in self._sandboxes and not over:
                await self._report(row)
        for name, sandbox in here:
            self._shares[name] = share_of(sandbox.config)
            told = self._told.pop(name, None)  # as lost, while its engine was away
            if told is not None or name not in self._remembered:  # or killed before that
                await self._remember(sandbox)
        await self._settle()

    async def _report(self, row: BoxRow) -> None:
        with suppress(UnknownTypeError):
            kind = await self._load(row.type)
            sandbox = kind(None, row.id)
            sandbox.created_at = datetime.fromtimestamp(row.made_at, timezone.utc)
            reason = row.lost or f"Sandbox {row.id} is lost: {_GONE}"
            sandbox._lost_already(reason)  # pyright: ignore[reportPrivateUsage]
            self._register(sandbox, None)
            if row.lost is None:
                logger.warning("tenant %s: %s", self._place.tenant, reason)

    @override
    async def _stop(self, *, leave: bool) -> None:
        await self._settle()
        await super()._stop(leave=leave)

    # --- snapshots ---

    @override
    def _most_snapshots(self) -> int | None:
        return self.quotas.snapshots

    # --- what is remembered ---

    @override
    def _register(
        self, sandbox: Sandbox, ttl: float | None, *, age: timedelta = timedelta()
    ) -> None:
        # Two tenants may choose one id, and neither may notice: an engine has each name once.
        sandbox._apart = self._apart  # pyright: ignore[reportPrivateUsage]
        super()._register(sandbox, ttl, age=age)

    @override
    async def _create_one(
        self,
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None,
        sandbox_id: str | None,
    ) -> Sandbox:
        kind = await self._load(sandbox_type)
        settled = self.quotas.settle(coerce_config(kind.config_class, config))
        with self._holding(settled) as share:
            async with self._creations.turn(self._place.tenant):
                made = await self._make(sandbox_type, settled, sandbox_id)
            self._shares[made.id] = share
        return made

    @override
    @asynccontextmanager
    async def _adopting(self, fork: Sandbox) -> AsyncGenerator[None, None]:
        """Have a sandbox listed that one of these has made, if there may be one more.

        Raises:
            QuotaExceededError: there may not.
        """
        with self._holding(fork.config) as share:
            async with super()._adopting(fork):
                yield
            self._shares[fork.id] = share
        if fork.config.on_owner_death == "keep":
            try:
                await self._remember(fork)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._destroy(fork)
                raise

    @contextmanager
    def _holding(self, config: SandboxConfig) -> Generator[Share, None, None]:
        """Have a share of the tenant's, if there is as much left. Raises QuotaExceededError."""
        share = share_of(config)
        self.quotas.check([*self._held, *self._taken()], share)  # no await from here
        self._held.append(share)
        try:
            yield share
        finally:
            self._held.remove(share)

    def _taken(self) -> list[Share]:
        """What the sandboxes take that have not ended."""
        taken: dict[str, Share] = {}
        for name, sandbox in self._sandboxes.items():
            if sandbox.status not in _ENDED and name in self._shares:
                taken[name] = self._shares[name]
        self._shares = taken
        return list(taken.values())

    async def _make(
        self, sandbox_type: str, settled: SandboxConfig, sandbox_id: str | None
    ) -> Sandbox:
        if settled.on_owner_death == "kill" and "on_owner_death" in settled.model_fields_set:
            return await super()._create_one(sandbox_type, settled, sandbox_id)
        try:
            made = await super()._create_one(sandbox_type, _which(settled, "keep"), sandbox_id)
        except CapabilityError as error:
            if error.capability != "keep" or "on_owner_death" in settled.model_fields_set:
                raise
            made = await super()._create_one(sandbox_type, _which(settled, "kill"), sandbox_id)
        try:
            await self._remember(made)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._destroy(made)
            raise
        return made

    async def _remember(self, sandbox: Sandbox) -> None:
        made_at = sandbox.created_at.timestamp()
        # What a call puts off would be wrong with the next call.
        facts = replace(self._facts(sandbox), idle_timeout=None)
        left = seconds_left(facts, self._lifetimes, self._clock())
        until = self._clock() + timedelta(seconds=left) if left < 1e9 else None
        self._remembered[sandbox.id] = await self._store.writing(
            lambda c: add_box(
                c, self._place, sandbox.id, sandbox.sandbox_type, made_at=made_at,
                expires_at=None if until is None else until.timestamp(),
            )
        )  # fmt: skip

    async def _settle(self) -> None:
        """Have the store know what is no more. What it cannot be told now, it is told later."""
        over = self._over()
        if not over:
            return
        numbers = {self._remembered[name]: why for name, why in over.items()}
        now = self._clock().timestamp()
        try:
            await self._store.writing(lambda c: end_boxes(c, numbers, now))
        except StoreUnavailableError:
            logger.warning("the store is told later what is no more: %s", ", ".join(over))
            return
        for name, why in over.items():
            if why is not None:
                self._told[name] = why
            elif self._remembered.get(name) in numbers:  # and not one made since
                del self._remembered[name]
                self._told.pop(name, None)

    def _over(self) -> dict[str, str | None]:
        """Those of which the store does not know yet that they are no more, and why where lost."""
        over: dict[str, str | None] = {}
        for name in self._remembered:
            sandbox = self._sandboxes.get(name)
            if sandbox is None or sandbox.status is SandboxStatus.STOPPED:
                over[name] = None
            elif sandbox.status is SandboxStatus.ERROR and name not in self._told:
                over[name] = str(sandbox.metadata.get("error") or "it is lost")
        return over

    @override
    @to_the_end
    async def delete_sandbox(self, sandbox_id: str) -> bool:
        """End and forget a sandbox; False where there is none of that id."""
        done = await super().delete_sandbox(sandbox_id)
        await self._settle()
        return done

    @override
    @to_the_end
    async def stop_sandbox(self, sandbox_id: str) -> bool:
        """End a sandbox but go on listing it for a while; False where there is none of that id."""
        done = await super().stop_sandbox(sandbox_id)
        await self._settle()
        return done

    @override
    @to_the_end
    async def cleanup_all_sandboxes(self) -> None:
        """End and forget every sandbox."""
        try:
            await super().cleanup_all_sandboxes()
        finally:
            await self._settle()

    @override
    @on_loop
    async def cleanup_expired(self) -> list[str]:
        """Delete the sandboxes whose time is over, now; gives their ids."""
        over = await super().cleanup_expired()
        await self._settle()
        return over

    @override
    @on_loop
    async def renew(self, sandbox_id: str, ttl: float) -> None:
        """Let a sandbox live `ttl` seconds from now.

        Raises:
            QuotaExceededError: it may not live so long; otherwise as `SandboxManager.renew`.
        """
        self.quotas.check_ttl(ttl)
        await super().renew(sandbox_id, ttl)
        number = self._remembered.get(sandbox_id)
        if number is not None:
            until = self._clock().timestamp() + ttl
            await self._store.writing(lambda c: renew_box(c, number, until))

    @override
    @on_loop
    async def get_stats(self) -> dict[str, Any]:
        """The manager's, and under `quotas` what the tenant has of what it may have."""
        told = self.quotas.tell([*self._held, *self._taken()])
        return {**await super().get_stats(), "quotas": told}

    # --- what is not ---

    @override
    async def _run_fresh(
        self,
        code: str,
        stdin: bytes | str | None,
        timeout: float | None,
        config: SandboxConfig | Mapping[str, Any] | None,
    ) -> CommandResult | None:
        config = await self._begin_with(config)
        if not await self._suits(BEST_FIRST[0], config):
            return None
        kind = await self._load(BEST_FIRST[0])
        settled = self.quotas.settle(coerce_config(kind.config_class, config))
        most = self.quotas.ttl
        if most is not None and settled.resolve_limits(None, timeout).timeout > most:
            timeout = most
        with self._holding(settled):
            return await super()._run_fresh(code, stdin, timeout, settled)

    @override
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
        return await super().run_code(
            code, language=language, stdin=stdin, files=files, timeout=timeout,
            config=self._ending(config),
        )  # fmt: skip

    @override
    @on_loop
    async def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Make a pool of equal sandboxes; gives their ids. See `SandboxManager.initialize_pool`."""
        size = self.config.pool_size if pool_size is None else pool_size
        most = self.quotas.sandboxes
        if self._pool is None and most is not None and size > most:
            raise QuotaExceededError(f"a pool of {size} is more than this tenant may have ({most})")
        return await super().initialize_pool(pool_size, sandbox_type, self._ending(config))

    def _ending(
        self, config: SandboxConfig | Mapping[str, Any] | None
    ) -> SandboxConfig | dict[str, Any]:
        """The same config, of what ends with the server."""
        given = self.config.sandbox_config if config is None else config
        if isinstance(given, SandboxConfig):
            return _which(given, "kill")
        return {**(given or {}), "on_owner_death": "kill"}


def _which(config: SandboxConfig, what: str) -> SandboxConfig:
    return config.model_copy(update={"on_owner_death": what})
