"""The manager whose sandboxes run on this machine, owned by this process."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, cast

import anyio
import anyio.to_thread

from ms_enclave import loop
from ms_enclave.boxes._inputs import new_sandbox_id
from ms_enclave.boxes.factory import SandboxFactory
from ms_enclave.errors import (
    ConfigError,
    EnclaveError,
    EngineUnavailableError,
    IsolationUnavailableError,
    PoolEmptyError,
    SandboxNotFoundError,
    SandboxStateError,
    UnknownTypeError,
)
from ms_enclave.loop import on_loop, to_the_end
from ms_enclave.manager._policy import (
    Facts,
    Lifetimes,
    aware,
    make_clock,
    moment_after,
    seconds_left,
)
from ms_enclave.manager._snapshots import LocalSnapshots
from ms_enclave.manager._state import State
from ms_enclave.manager.base import coerce_manager_config
from ms_enclave.model import (
    SandboxConfig,
    SandboxManagerConfig,
    SandboxManagerType,
    SandboxStatus,
)
from ms_enclave.model.constants import DEFAULT_POOL_EXECUTION_TIMEOUT
from ms_enclave.model.events import SandboxEvent
from ms_enclave.pool import Loan, Pool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
    from types import TracebackType

    from ms_enclave.boxes.base import Keeping, Sandbox
    from ms_enclave.manager._policy import Clock
    from ms_enclave.model import CommandResult, SandboxInfo

__all__ = ["LocalSandboxManager"]

logger = logging.getLogger(__name__)

AUTO = "auto"
_NOTHING = "no sandbox type works on this machine: "
BEST_FIRST = ("process", "docker")
"""What `auto` tries, in this order."""

MOST_IN_POOL = 10_000
"""Sandboxes of a pool. No machine has as many, and each that is begun costs the loop a moment."""
STOP_BOUND = 25.0
"""Seconds that the end of all sandboxes together may take."""
RELEASE_BOUND = 10.0
"""Seconds that giving back what a type's sandboxes shared may take."""

_EVENTS = {
    SandboxStatus.RUNNING: "started",
    SandboxStatus.STOPPED: "stopped",
    SandboxStatus.ERROR: "failed",
}
_ADOPTED_AT_ONCE = 8
_ENDED = frozenset({SandboxStatus.STOPPED, SandboxStatus.ERROR})


@dataclass
class _Record:
    """What the manager itself knows of a sandbox that it made."""

    born: datetime
    stamp: object
    """The sandbox's own `created_at` then: where it was changed since, it is believed instead."""
    expires_at: datetime | None = None


@dataclass
class _Borrower:
    """Holds a loan from the moment it is made, so that none is lost on its way to the caller."""

    loan: Loan[Sandbox] | None = field(default=None)


class _PoolCondition:
    """What existing code enters to look at the pool: nothing changes it half way, ever."""

    async def __aenter__(self) -> None:
        await loop.run(asyncio.sleep, 0)  # behind whatever was on its way

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


class LocalSandboxManager(LocalSnapshots):
    """Makes sandboxes on this machine.

    Owns every sandbox it made and what they share, until `stop`, or the end of the interpreter.
    `create_sandbox` starts a manager that was never started. A forked child cannot use its
    parent's manager.

    Args:
        config: the manager's config, or what it is made from.
        max_age: seconds after which a sandbox without a `ttl` is deleted.
        retention: seconds that a stopped or failed sandbox is still listed.
        clock: what time it is, for the two above and for `ttl`.
        settings: fields of the config; they go before what stands in `config`.
    """

    config_class: ClassVar[type[SandboxManagerConfig]] = SandboxManagerConfig
    """What its config is validated with."""

    def __init__(
        self,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        *,
        max_age: float = 48 * 3600.0,
        retention: float = 3600.0,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self.config = coerce_manager_config(config, self.config_class, **settings)
        self._lifetimes = Lifetimes(max_age, retention)
        if self.config.cleanup_interval is None:
            self._lifetimes = Lifetimes.unlimited()
        self._clock = make_clock() if clock is None else clock
        self._sandboxes: dict[str, Sandbox] = {}
        self._records: dict[str, _Record] = {}
        self._running = False
        self._stopped = False
        self._stopping: asyncio.Event | None = None
        self._pid = os.getpid()
        self._owner = ""
        self._starting = asyncio.Lock()
        self._state: State | None = None
        self._loaded: set[str] = set()
        self._used: set[type[Sandbox]] = set()
        self._pool: Pool[Sandbox] | None = None
        self._pool_ids: list[str] = []
        self._pool_lock = asyncio.Lock()
        self._pool_condition = _PoolCondition()
        self._cleaner: asyncio.Task[None] | None = None
        self._cleaner_scope: anyio.CancelScope | None = None
        self._look_again = asyncio.Event()
        self._next_look = math.inf
        self.listeners: list[Callable[[SandboxEvent], object]] = []
        """Told, on the private loop, what happens to sandboxes; they neither wait nor raise."""

    # --- life ---

    @on_loop
    async def start(self) -> None:
        """Make the manager ready. A second call does nothing; after a `stop` it starts anew."""
        self._require_own_process()
        if self._running:  # the usual case waits for nobody
            return
        async with self._starting:
            if not self._running:
                self._owner = secrets.token_hex(8)
                await self._take_over()
                self._begin()

    def _begin(self) -> None:
        self._running, self._stopped = True, False
        self._look_again = asyncio.Event()
        self._cleaner_scope = anyio.CancelScope()
        self._cleaner = asyncio.ensure_future(self._clean_for_ever(self._cleaner_scope))
        loop.add_closer(self, self.hand_over)

    async def _take_over(self) -> None:
        """Adopt what the last manager with the same `state_dir` left."""
        if self.config.state_dir is None:
            return
        self._state = await anyio.to_thread.run_sync(State, self.config.state_dir)
        try:
            for name in await anyio.to_thread.run_sync(self._state.types):
                kind = await self._load(name)
                self._used.add(kind)
                found = await kind.adopt(self._owner, self._keeping(name))
                await self._adopt_all(found)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._end_everything(leave=True)
            raise

    async def _adopt_all(self, found: Iterable[tuple[Sandbox, float | None]]) -> None:
        """Several at a time: most of it is to wait for engines and guests. Raises the first error
        that is none of a sandbox, when all have ended."""
        turns, errors = asyncio.Semaphore(_ADOPTED_AT_ONCE), list[Exception]()

        async def adopt(sandbox: Sandbox, left: float | None) -> None:
            async with turns:  # which come in order, and so the list of all is in order
                try:
                    await self._adopt(sandbox, left)
                except Exception as error:  # noqa: BLE001 - raised below
                    errors.append(error)

        async with anyio.create_task_group() as tasks:
            for sandbox, left in found:
                tasks.start_soon(adopt, sandbox, left)
        if errors:
            raise errors[0]

    async def _adopt(self, sandbox: Sandbox, left: float | None) -> None:
        age = datetime.now(timezone.utc) - sandbox.created_at
        self._register(sandbox, left, age=max(age, timedelta()))
        try:
            await sandbox.start()
        except EnclaveError as error:  # a tool, say, that this process does not know
            away = isinstance(error, EngineUnavailableError)
            what = "is left to the next one" if away else "is lost"
            logger.warning("sandbox %s of the last owner %s: %s", sandbox.id, what, error)
            self._forget(sandbox)

    def _keeping(self, sandbox_type: str) -> Keeping:
        from ms_enclave.boxes.base import Keeping

        most = self._lifetimes.max_age
        folder = cast("State", self._state).folder_of(sandbox_type)
        return Keeping(folder, None if math.isinf(most) else most)

    @to_the_end
    async def hand_over(self) -> None:
        """Stop, but leave the sandboxes with `on_owner_death="keep"` to the next manager.

        Commands that run in them are ended; what they left in the background goes on. It is what
        the end of the interpreter does, too.
        """
        await self._stop(leave=True)

    def _unlock(self) -> None:
        state, self._state = self._state, None
        if state is not None:
            state.close()

    @to_the_end
    async def stop(self) -> None:
        """End every sandbox that the manager owns. Always finishes, and may be called again.

        Raises:
            EnclaveError: something could not be removed; everything else was.
        """
        await self._stop(leave=False)

    async def _stop(self, *, leave: bool) -> None:
        self._require_own_process()
        if self._stopping is not None:
            await self._stopping.wait()
            return
        self._stopping = stopping = asyncio.Event()
        self._running, self._stopped = False, True
        errors: list[Exception] = []
        try:
            with anyio.CancelScope(shield=True):
                async with self._starting:
                    self._running, self._stopped = False, True
                    errors = await self._end_everything(leave=leave)
        finally:
            self._stopping = None
            stopping.set()
        if errors:
            raise errors[0]

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.stop()
        except Exception as error:
            if exc is None:
                raise
            # What the block failed with is the news.
            logger.warning("stopping the manager failed: %s", error)

    async def _end_everything(self, *, leave: bool) -> list[Exception]:
        pool, self._pool, self._pool_ids = self._pool, None, []
        sandboxes, self._sandboxes = list(self._sandboxes.values()), {}
        if leave:
            sandboxes = [box for box in sandboxes if not await box._leave()]  # pyright: ignore[reportPrivateUsage]
        self._records.clear()
        calls: list[Callable[[], Awaitable[object]]] = [self._end_cleaner]
        if pool is not None:
            calls.append(pool.close)
        calls += [sandbox.stop for sandbox in sandboxes]
        errors = await _together(calls, STOP_BOUND)
        used, self._used = self._used, set()
        owner = self._owner
        if leave:
            for kind in used:
                await kind.leave_owner(owner)
        errors += await _together(
            [lambda kind=kind: kind.release_owner(owner) for kind in used], RELEASE_BOUND
        )
        self._unlock()
        loop.remove_closer(self)
        for error in errors:
            logger.warning("stopping the manager: %s", error)
        return errors

    async def _end_cleaner(self) -> None:
        if self._cleaner is not None and self._cleaner_scope is not None:
            self._cleaner_scope.cancel()
            await asyncio.wait([self._cleaner])
        self._cleaner = self._cleaner_scope = None

    def _require_own_process(self) -> None:
        if self._pid != os.getpid():
            raise SandboxStateError(
                f"the manager belongs to process {self._pid}: make a new one after a fork"
            )

    def _require_running(self) -> None:
        if not self._running:
            raise SandboxStateError("the manager has been stopped")

    # --- sandboxes ---

    async def create_sandbox(
        self,
        sandbox_type: str = AUTO,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> str:
        """Make and start a sandbox; gives its id. See `SandboxManager.create_sandbox`."""
        made: list[Sandbox] = []
        try:
            return await self._create_into(made, sandbox_type, config, sandbox_id)
        except anyio.get_cancelled_exc_class():
            # It may have been done in the moment in which its caller was cancelled.
            with anyio.CancelScope(shield=True):
                await self._take_back(made)
            raise

    @on_loop
    async def _take_back(self, made: list[Sandbox]) -> None:
        for sandbox in made:
            await self._destroy(sandbox)

    async def _be_running(self) -> None:
        self._require_own_process()
        if not self._stopped:
            await self.start()
        self._require_running()

    async def _begin_with(
        self, config: SandboxConfig | Mapping[str, Any] | None
    ) -> SandboxConfig | Mapping[str, Any] | None:
        """Be running, and say which config holds."""
        await self._be_running()
        return self.config.sandbox_config if config is None else config

    @on_loop
    async def _create_into(
        self,
        made: list[Sandbox],
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None,
        sandbox_id: str | None,
    ) -> str:
        config = await self._begin_with(config)
        made.append(await self._create(_name(sandbox_type), config, sandbox_id))
        return made[0].id

    async def _create(
        self,
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None,
        sandbox_id: str | None,
    ) -> Sandbox:
        if sandbox_type != AUTO:
            return await self._create_one(sandbox_type, config, sandbox_id)
        refusals: list[IsolationUnavailableError | EngineUnavailableError] = []
        for candidate in BEST_FIRST:
            if not await self._suits(candidate, config):
                continue
            try:
                return await self._create_one(candidate, config, sandbox_id)
            except (IsolationUnavailableError, EngineUnavailableError) as error:
                refusals.append(error)
        raise nothing_works(refusals)

    async def _suits(
        self, sandbox_type: str, config: SandboxConfig | Mapping[str, Any] | None
    ) -> bool:
        """Whether `auto` may take a type: a config of another type's own class means that type."""
        try:
            kind = await self._load(sandbox_type)
        except UnknownTypeError:
            return False
        general = not isinstance(config, SandboxConfig) or type(config) is SandboxConfig
        return general or isinstance(config, kind.config_class)

    async def _load(self, sandbox_type: str) -> type[Sandbox]:
        if sandbox_type not in self._loaded:  # it may have to be imported
            await anyio.to_thread.run_sync(SandboxFactory.get_class, sandbox_type)
            self._loaded.add(sandbox_type)
        return SandboxFactory.get_class(sandbox_type)

    async def _create_one(
        self,
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None,
        sandbox_id: str | None,
    ) -> Sandbox:
        kind = await self._load(sandbox_type)
        sandbox = kind(config, sandbox_id)
        if sandbox.id in self._sandboxes:
            raise ConfigError(f"sandbox_id is taken: {sandbox.id}")
        self._require_running()  # no await from here to where stop() knows the sandbox
        sandbox._owner = self._owner  # pyright: ignore[reportPrivateUsage]
        if self._state is not None and sandbox.config.on_owner_death == "keep":
            sandbox._keeping = self._keeping(sandbox_type)  # pyright: ignore[reportPrivateUsage]
        self._used.add(kind)
        self._register(sandbox, sandbox.config.ttl)
        try:
            await sandbox.start()
        except BaseException:
            self._forget(sandbox)
            raise
        return sandbox

    def _register(
        self, sandbox: Sandbox, ttl: float | None, *, age: timedelta = timedelta()
    ) -> None:
        from ms_enclave.boxes._fork_methods import Family

        now = self._clock()
        idle = sandbox.config.idle_timeout
        self._sandboxes[sandbox.id] = sandbox
        self._records[sandbox.id] = _Record(
            born=now - age,
            stamp=sandbox.created_at,
            expires_at=None if ttl is None else moment_after(now, ttl),
        )
        sandbox._snapshots = self._snapshot_store()  # pyright: ignore[reportPrivateUsage]
        sandbox._on_status = self._tell_status  # pyright: ignore[reportPrivateUsage]
        family = Family(self._adopting, self._disown)
        sandbox._family = family  # pyright: ignore[reportPrivateUsage]
        self._look_within(min(ttl or math.inf, idle or math.inf))

    # --- forks of what is listed: see `boxes._fork_methods.Family` ---

    @asynccontextmanager
    async def _adopting(self, fork: Sandbox) -> AsyncGenerator[None, None]:
        """Have a sandbox listed that one of these has made, and that is started in the block."""
        if fork.id in self._sandboxes:
            raise ConfigError(f"sandbox_id is taken: {fork.id}")
        self._require_running()
        self._register(fork, fork.config.ttl)
        try:
            yield
        except BaseException:
            self._forget(fork)
            raise

    async def _disown(self, fork: Sandbox) -> None:
        """End and forget a sandbox that one of these has made."""
        await self._destroy(fork)

    def _tell_status(self, sandbox: Sandbox, status: SandboxStatus) -> None:
        self._tell(sandbox, _EVENTS.get(status))

    def _tell(self, sandbox: Sandbox, event: Any) -> None:
        if event is None or not self.listeners:
            return
        reason = sandbox.metadata.get("error") if event == "failed" else None
        told = SandboxEvent(
            event=event, sandbox_id=sandbox.id, sandbox_type=_name(sandbox.sandbox_type),
            at=datetime.now(timezone.utc), reason=reason,
        )  # fmt: skip
        for listener in self.listeners:
            listener(told)

    def _forget(self, sandbox: Sandbox) -> None:
        if self._sandboxes.get(sandbox.id) is sandbox:
            del self._sandboxes[sandbox.id]
            self._records.pop(sandbox.id, None)
            self._tell(sandbox, "deleted")

    async def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        """The handle of a sandbox; None where the manager has none of that id."""
        return self._sandboxes.get(sandbox_id)

    async def get_sandbox_info(self, sandbox_id: str) -> SandboxInfo | None:
        """A description of a sandbox as of now; None where the manager has none of that id.

        One that was lost is here with its state `error` and the reason in `metadata["error"]`;
        one whose creation failed is not, since its creator was told.
        """
        sandbox = self._sandboxes.get(sandbox_id)
        return None if sandbox is None else sandbox.get_info()

    async def list_sandboxes(
        self, status_filter: SandboxStatus | str | None = None
    ) -> list[SandboxInfo]:
        """Descriptions of all sandboxes, or of those in one state.

        Raises:
            ConfigError: there is no such state.
        """
        if status_filter is not None:
            try:
                status_filter = SandboxStatus(status_filter)
            except ValueError:
                raise ConfigError(f"there is no sandbox state {status_filter!r}") from None
        return [
            sandbox.get_info()
            for sandbox in list(self._sandboxes.values())
            if status_filter is None or sandbox.status is status_filter
        ]

    @to_the_end
    async def stop_sandbox(self, sandbox_id: str) -> bool:
        """End a sandbox but go on listing it for a while; False where there is none of that id."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return False
        await sandbox.stop()
        self._sweep_pool()
        return True

    @to_the_end
    async def delete_sandbox(self, sandbox_id: str) -> bool:
        """End and forget a sandbox; False where there is none of that id."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            return False
        await self._destroy(sandbox)
        self._sweep_pool()
        return True

    async def _destroy(self, sandbox: Sandbox) -> None:
        """Afterwards its id is free. One that cannot be stopped stays listed, in ERROR."""
        await sandbox.stop()
        self._forget(sandbox)

    @to_the_end
    async def cleanup_all_sandboxes(self) -> None:
        """End and forget every sandbox. A pool stays, and fills again for its next borrower.

        Raises:
            EnclaveError: something could not be removed; everything else was.
        """
        calls: list[Callable[[], Awaitable[object]]] = []
        if self._pool is not None:
            calls.append(self._pool.drain)
        calls += [
            lambda sandbox=sandbox: self._destroy(sandbox) for sandbox in self._sandboxes.values()
        ]
        errors = await _together(calls, STOP_BOUND)
        if errors:
            raise errors[0]

    @on_loop
    async def renew(self, sandbox_id: str, ttl: float) -> None:
        """Let a sandbox live `ttl` seconds from now, whatever it was promised before.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
            ConfigError: `ttl` is not above 0.
        """
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None:
            raise SandboxNotFoundError(sandbox_id)
        if not (math.isfinite(ttl) and ttl > 0):
            raise ConfigError(f"ttl must be a finite number of seconds above 0, not {ttl}")
        await sandbox._renewed(ttl)  # pyright: ignore[reportPrivateUsage]
        self._record(sandbox_id, sandbox).expires_at = moment_after(self._clock(), ttl)
        self._look_within(ttl)

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
        config = _ending_with_owner(self.config.sandbox_config if config is None else config)
        if language == "python" and not files:
            result = await self._run_fresh(code, stdin, timeout, config)
            if result is not None:
                return result
        return await super().run_code(
            code, language=language, stdin=stdin, files=files, timeout=timeout, config=config
        )

    async def _run_fresh(
        self,
        code: str,
        stdin: bytes | str | None,
        timeout: float | None,
        config: SandboxConfig | Mapping[str, Any] | None,
    ) -> CommandResult | None:
        """The shorter way that the best type here may have; None where it has none."""
        config = await self._begin_with(config)
        if not await self._suits(BEST_FIRST[0], config):
            return None
        kind = await self._load(BEST_FIRST[0])
        self._used.add(kind)
        try:
            return await kind._run_fresh(  # pyright: ignore[reportPrivateUsage]
                self._owner, config, code, stdin=stdin, timeout=timeout
            )
        except IsolationUnavailableError:
            return None  # another type may do, and the refusal will be its own

    async def get_stats(self) -> dict[str, Any]:
        """Counts of sandboxes by state and type, and the state of manager and pool."""
        sandboxes = list(self._sandboxes.values())
        size = self.config.pool_size if self._pool is None else self._pool.size
        return {
            "manager_type": SandboxManagerType.LOCAL.value,
            "total_sandboxes": len(sandboxes),
            "status_counts": dict(Counter(_name(sandbox.status) for sandbox in sandboxes)),
            "sandbox_types": dict(Counter(_name(sandbox.sandbox_type) for sandbox in sandboxes)),
            "running": self._running,
            "cleanup_interval": self.config.cleanup_interval,
            "pool_size": size,
            "pool_enabled": size > 0,
            "pool_initialized": self._pool_initialized,
            "pool_waiting": 0 if self._pool is None else self._pool.waiting,
        }

    # --- the pool ---

    @property
    def _pool_initialized(self) -> bool:
        return self._pool is not None

    @property
    def _sandbox_pool(self) -> list[str]:
        """Ids of the sandboxes that are not lent, the next to be lent first."""
        return [] if self._pool is None else self._pool.keys()

    @on_loop
    async def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Make a pool of equal sandboxes; gives their ids. See `SandboxManager.initialize_pool`."""
        self._require_own_process()
        size = self.config.pool_size if pool_size is None else pool_size
        if size < 0:
            raise ConfigError("Pool size must be non-negative")
        if size > MOST_IN_POOL:
            raise ConfigError(f"a pool has {MOST_IN_POOL} sandboxes at most, not {size}")
        async with self._pool_lock:
            if self._pool is None and size:
                if not self._stopped:
                    await self.start()
                self._require_running()
                await self._open_pool(size, _name(sandbox_type or AUTO), config)
            return list(self._pool_ids)

    async def _open_pool(
        self,
        size: int,
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None,
    ) -> None:
        if config is None:
            config = self.config.sandbox_config
        config = _ending_with_owner(config)
        if isinstance(config, SandboxConfig):
            config = config.model_copy(deep=True)  # the caller may change it; the pool stays equal
        ids = [new_sandbox_id() for _ in range(size)]
        pool = Pool(
            ids,
            create=lambda sandbox_id: self._create(sandbox_type, config, sandbox_id),
            destroy=self._destroy,
            check=self._is_alive,
            reset=_reset,
        )
        await pool.open()
        self._pool, self._pool_ids = pool, ids

    def _is_alive(self, sandbox: Sandbox) -> bool:
        mine = self._sandboxes.get(sandbox.id) is sandbox
        return mine and sandbox.status is SandboxStatus.RUNNING

    def _sweep_pool(self) -> None:
        if self._pool is not None:
            self._pool.sweep()

    @asynccontextmanager
    async def borrow(self, *, timeout: float | None = None) -> AsyncGenerator[Sandbox, None]:
        """A sandbox of the pool for the length of a block. See `SandboxManager.borrow`."""
        borrower = _Borrower()
        failed = True
        try:
            yield await self._lend(borrower, timeout)
            failed = False
        finally:
            with anyio.CancelScope(shield=True):
                await self._give_back(borrower, failed=failed)

    @on_loop
    async def _lend(self, borrower: _Borrower, timeout: float | None) -> Sandbox:
        self._require_own_process()
        if self._pool is None:
            raise PoolEmptyError
        seconds = DEFAULT_POOL_EXECUTION_TIMEOUT if timeout is None else timeout
        if not 0 <= seconds < math.inf:
            raise ConfigError(f"timeout must be a finite number of seconds, not {timeout}")
        borrower.loan = await self._pool.lend(seconds)
        return borrower.loan.member

    @on_loop
    async def _give_back(self, borrower: _Borrower, *, failed: bool) -> None:
        if borrower.loan is not None and self._pool is not None:
            self._pool.give_back(borrower.loan, failed=failed)

    # --- clean-up ---

    @on_loop
    async def cleanup_expired(self) -> list[str]:
        """Delete the sandboxes whose time is over, now; gives their ids. Also done by itself."""
        over = [
            sandbox
            for sandbox in list(self._sandboxes.values())
            if self._seconds_left(sandbox) <= 0
        ]
        for sandbox in over:
            logger.info("sandbox %s has reached the end of its time", sandbox.id)
        errors = await _together(
            [lambda sandbox=sandbox: self._destroy(sandbox) for sandbox in over], STOP_BOUND
        )
        for error in errors:
            logger.warning("cleaning up: %s", error)
        self._sweep_pool()
        return [sandbox.id for sandbox in over]

    async def _clean_for_ever(self, scope: anyio.CancelScope) -> None:
        with scope:
            while True:
                pause = self._pause()
                self._next_look = asyncio.get_running_loop().time() + pause
                self._look_again.clear()
                with anyio.move_on_after(None if math.isinf(pause) else pause):
                    await self._look_again.wait()
                    continue
                await self.cleanup_expired()

    def _pause(self) -> float:
        """Seconds until the first sandbox's time is over, or the interval has passed."""
        sandboxes = list(self._sandboxes.values())
        left = min((self._seconds_left(sandbox) for sandbox in sandboxes), default=math.inf)
        interval = self.config.cleanup_interval
        return max(0.01, min(left, math.inf if interval is None else interval))

    def _look_within(self, seconds: float) -> None:
        """Have the clean-up look earlier than it planned, where something ends before that."""
        if self._running and asyncio.get_running_loop().time() + seconds < self._next_look:
            self._look_again.set()

    def _record(self, sandbox_id: str, sandbox: Sandbox) -> _Record:
        """A stand-in that was put into the table gets one when it is first asked for."""
        record = self._records.get(sandbox_id)
        if record is None:
            record = self._records[sandbox_id] = _Record(self._clock(), stamp=None)
        return record

    def _seconds_left(self, sandbox: Sandbox) -> float:
        return seconds_left(self._facts(sandbox), self._lifetimes, self._clock())

    def _facts(self, sandbox: Sandbox) -> Facts:
        record = self._record(sandbox.id, sandbox)
        created_at = cast("object", sandbox.created_at)
        born = record.born
        if isinstance(created_at, datetime) and created_at != record.stamp:
            born = aware(created_at)
        return Facts(
            ended=sandbox.status in _ENDED,
            created_at=born,
            updated_at=aware(sandbox.updated_at),
            expires_at=record.expires_at,
            idle_seconds=sandbox.idle_seconds,
            idle_timeout=sandbox.config.idle_timeout,
        )


def _name(value: str | Enum) -> str:
    return str(value.value) if isinstance(value, Enum) else value


def _ending_with_owner(
    config: SandboxConfig | Mapping[str, Any] | None,
) -> SandboxConfig | Mapping[str, Any] | None:
    """The same config for a sandbox that nobody could ask the next manager for."""
    if isinstance(config, SandboxConfig):
        keeps = config.on_owner_death == "keep"
        return config.model_copy(update={"on_owner_death": "kill"}) if keeps else config
    if config is not None and "on_owner_death" in config:
        return {**config, "on_owner_death": "kill"}
    return config


async def _reset(sandbox: Sandbox) -> bool:
    return await sandbox._reset()  # pyright: ignore[reportPrivateUsage]


def nothing_works(
    refusals: list[IsolationUnavailableError | EngineUnavailableError],
) -> IsolationUnavailableError:
    """What `auto` is refused with: why each of its types was. One may be such a refusal itself."""
    each = [refusal.message.removeprefix(_NOTHING) for refusal in refusals]
    said = "; ".join(each) or "no sandbox type is installed"
    remedies = [refusal.remedy for refusal in refusals if refusal.remedy]
    return IsolationUnavailableError(f"{_NOTHING}{said}", remedy="; or: ".join(remedies))


async def _together(calls: list[Callable[[], Awaitable[object]]], bound: float) -> list[Exception]:
    """Make all calls at once, within `bound` seconds; gives what went wrong."""
    errors: list[Exception] = []

    async def one(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - collected: one must not keep the others back
            errors.append(error)

    with anyio.move_on_after(bound) as scope:
        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(one, call)
    if scope.cancelled_caught:
        errors.append(TimeoutError(f"not everything ended within {bound:g} seconds"))
    return errors
