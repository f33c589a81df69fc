"""Tenants: let in by the keys of a store, each with a manager, and so with sandboxes, a pool and
zygotes, of their own."""

from __future__ import annotations

import functools
import hmac
import logging
import os
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread

from ms_enclave.errors import ConfigError, SandboxStateError, StoreUnavailableError
from ms_enclave.loop import on_loop, to_the_end
from ms_enclave.manager._policy import make_clock
from ms_enclave.manager._state import State
from ms_enclave.manager.base import coerce_manager_config
from ms_enclave.model.base import StrictModel
from ms_enclave.server.access import Principal
from ms_enclave.server.audit import Audit
from ms_enclave.server.fair import FairQueue
from ms_enclave.server.policy import Policy
from ms_enclave.server.quotas import Quotas, Rate
from ms_enclave.server.store import Store, read_key, settle_url
from ms_enclave.server.store.boxes import Place
from ms_enclave.server.store.keys import digest_key
from ms_enclave.server.store.people import find_key
from ms_enclave.server.tenant import TenantManager
from ms_enclave.utils.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from ms_enclave.model import SandboxManagerConfig
    from ms_enclave.server.store.people import KnownKey

__all__ = ["Tenants"]

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=StrictModel)

_NOBODYS = bytes(32)
CALLS_AT_ONCE = 1000
"""Calls that are answered at a time, streams among them."""
CALLS_WAITING = 256
"""Calls of one tenant that wait for their turn."""
CREATIONS_AT_ONCE = 2 * (os.cpu_count() or 1)
CREATIONS_WAITING = 1000


class Tenants:
    """Lets people in by the keys that a store knows. What one tenant has is nothing to another.

    Owns the store and every manager, from `start` to `stop`. A key is looked up with every request,
    so one that is revoked is refused from then on.

    Args:
        url: where the store is; see `Store`.
        quotas: what a tenant may have that has none of its own.
        config: the config of every tenant's manager. Its `state_dir` is the folder below which what
            is kept of sandboxes lies; where None, one beside the store's file.
        options: what else a local manager takes.

    Raises:
        ConfigError: no store can be there, or there is no folder.
    """

    def __init__(
        self,
        url: str,
        config: SandboxManagerConfig | None = None,
        *,
        quotas: Quotas | None = None,
        **options: Any,
    ) -> None:
        self._url = url
        self._config = config
        self._quotas = quotas or Quotas()
        self._options = options
        self._folder = _folder_of(url, config, options.pop("state_dir", None))
        self._node = ""
        self._store: Store | None = None
        self._state: State | None = None
        self._managers: dict[str, TenantManager] = {}
        self._read: dict[tuple[str, type[StrictModel]], tuple[dict[str, Any], Any]] = {}
        self._rates: dict[str, Rate] = {}
        self._calls = FairQueue(CALLS_AT_ONCE, waiting=CALLS_WAITING)
        self._creations = FairQueue(
            CREATIONS_AT_ONCE, waiting=CREATIONS_WAITING, each=max(1, CREATIONS_AT_ONCE // 2)
        )  # one that takes long, as an image that is fetched, is nothing to other tenants
        self._clock = make_clock()  # a clock that is put back brings no key back
        self.audit = Audit(lambda: self.store, lambda: self._clock().timestamp())
        """Who did what."""

    @property
    def needs_key(self) -> bool:
        """Whether nobody is let in without a key: they are not."""
        return True

    @property
    def store(self) -> Store:
        """The store. Raises SandboxStateError before `start` and after `stop`."""
        if self._store is None:
            raise SandboxStateError("the server is not running")
        return self._store

    @property
    def managers(self) -> list[TenantManager]:
        """The managers of the tenants who have been here, or of whom something was left."""
        return list(self._managers.values())

    @on_loop
    async def start(self) -> None:
        """Open the store, brought up to date where an older version made it, and take over what
        the last server with the same folder left.

        Raises:
            ConfigError, StoreUnavailableError: as `Store`.
            SandboxStateError: another server has the folder.
        """
        if self._store is not None:
            return
        self._store = await anyio.to_thread.run_sync(Store, self._url)
        try:
            self._state = await anyio.to_thread.run_sync(State, self._folder)
            self._node, left = await anyio.to_thread.run_sync(_settle_folder, self._folder)
            await _each([functools.partial(self._take_over, tenant) for tenant in left])
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stop()
            raise

    @to_the_end
    async def stop(self) -> None:
        """End every tenant's manager, with what is not kept for the next server, and let go of the
        store."""
        await self.audit.flush()
        store, self._store = self._store, None
        managers, self._managers = self._managers, {}
        try:
            await _each([manager.hand_over for manager in managers.values()])
        finally:
            state, self._state = self._state, None
            if state is not None:
                state.close()
            if store is not None:
                await anyio.to_thread.run_sync(store.close)

    @on_loop
    async def is_ready(self) -> bool:
        """Whether it has started and its store answers."""
        try:
            await self.store.reading(lambda connection: find_key(connection, ""))
        except (SandboxStateError, StoreUnavailableError):
            return False
        return True

    @on_loop
    async def authenticate(self, key: str | None) -> Principal | None:
        """The tenant whose key it is, unless that was revoked or its time is over.

        Raises:
            StoreUnavailableError: nobody can say; so nobody is let in.
        """
        name = None if key is None else read_key(key)
        if key is None or name is None:
            return None
        known = await self.store.reading(lambda connection: find_key(connection, name))
        right = hmac.compare_digest(digest_key(key), _NOBODYS if known is None else known.digest)
        if known is None or not right or not self._is_good(known):
            return None
        quotas = self._own(known.tenant, Quotas, known.quotas) or self._quotas
        manager = await self._manager_of(known.tenant)
        manager.quotas = quotas
        return Principal(
            known.tenant, manager, self._own(known.tenant, Policy, known.policy),
            key=name, is_admin=known.is_admin,
            largest_body=None if quotas.body is None else parse_size(quotas.body),
            turn=functools.partial(self._turn, known.tenant, quotas),
            is_good=functools.partial(self._is_good_still, name),
        )  # fmt: skip

    @asynccontextmanager
    async def _turn(self, tenant: str, quotas: Quotas) -> AsyncGenerator[None]:
        """A call's turn. Raises QuotaExceededError: they come too often, or too many wait."""
        await self._take(tenant, quotas)
        async with self._calls.turn(tenant, quotas.calls_at_once):
            yield

    @on_loop
    async def _take(self, tenant: str, quotas: Quotas) -> None:
        self._rates.setdefault(tenant, Rate()).take(quotas.calls_per_second)

    @on_loop
    async def _is_good_still(self, name: str) -> bool:
        known = await self.store.reading(lambda connection: find_key(connection, name))
        return known is not None and self._is_good(known)

    def _is_good(self, known: KnownKey) -> bool:
        if known.revoked_at is not None:
            return False
        return known.expires_at is None or self._clock().timestamp() < known.expires_at

    async def _take_over(self, tenant: str) -> None:
        """Have what is left of a tenant, if it can be had; else it is tried again when it asks."""
        try:
            await self._manager_of(tenant)
        except StoreUnavailableError:
            raise
        except Exception:  # what is wrong with one keeps no other out
            logger.exception("what is left of the tenant %s cannot be taken over", tenant)

    async def _manager_of(self, tenant: str) -> TenantManager:
        manager = self._managers.get(tenant)
        if manager is None:
            manager = self._managers[tenant] = TenantManager(
                self.store, Place(self._node, tenant),
                coerce_manager_config(self._config, state_dir=f"{self._folder}/tenants/{tenant}"),
                creations=self._creations, **self._options,
            )  # fmt: skip
        await manager.start()  # which only the first one has to wait for
        return manager

    def _own(self, tenant: str, kind: type[T], said: dict[str, Any] | None) -> T | None:
        """What the store says of a tenant, read once for as long as it says the same."""
        if said is None:
            return None
        raw, known = self._read.get((tenant, kind), (None, None))
        if known is None or raw != said:
            known = kind.model_validate(said)
            self._read[tenant, kind] = (said, known)
        return known


def _folder_of(url: str, config: SandboxManagerConfig | None, given: str | None) -> str:
    given = given or (None if config is None else config.state_dir)
    if given is not None:
        return os.path.abspath(os.path.expanduser(given))
    found = settle_url(url)
    if found.drivername != "sqlite":
        raise ConfigError(
            "a store that is no file says nothing of where sandboxes are kept",
            remedy="give a folder of this machine by state_dir (--state-dir)",
        )
    return f"{found.database}.sandboxes"


def _settle_folder(folder: str) -> tuple[str, list[str]]:
    """Have the folder; gives the name that this server has in the store, and the tenants of whom
    something may be left. Blocks."""
    os.makedirs(f"{folder}/tenants", 0o700, exist_ok=True)
    file = f"{folder}/node"
    if not os.path.exists(file):
        with open(f"{file}.new", "w", encoding="ascii") as new:
            new.write(secrets.token_hex(16))
        os.replace(f"{file}.new", file)
    with open(file, encoding="ascii") as known, os.scandir(f"{folder}/tenants") as entries:
        return known.read(), sorted(entry.name for entry in entries if entry.is_dir())


async def _each(calls: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Make all calls at once; raises what the first that failed did, after all have ended."""
    errors: list[Exception] = []

    async def one(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except Exception as error:  # noqa: BLE001 - raised below: one must not keep others back
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(one, call)
    if errors:
        raise errors[0]
