"""The server: an application over a manager, and how it is run."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ms_enclave import loop
from ms_enclave.errors import ConfigError
from ms_enclave.manager import SandboxManager, SandboxManagerFactory
from ms_enclave.manager.base import coerce_manager_config
from ms_enclave.model.base import StrictModel, say_what_is_invalid
from ms_enclave.server._pages import OfThisMachine, is_loopback
from ms_enclave.server.access import OneKey
from ms_enclave.server.policy import Policy
from ms_enclave.server.quotas import Quotas
from ms_enclave.server.webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
    from typing import TypeAlias

    from fastapi import FastAPI
    from prometheus_client import CollectorRegistry

    from ms_enclave.model import SandboxManagerConfig
    from ms_enclave.server.access import Access
    from ms_enclave.server.audit import Audit
    from ms_enclave.server.webhooks import Webhook

    _Call: TypeAlias = Callable[[], Awaitable[object]]

__all__ = ["SandboxServer", "create_server"]


T = TypeVar("T", bound=StrictModel)

_BACKLOG = 2048
NEEDED = frozenset(
    {"fastapi", "starlette", "uvicorn", "wsproto", "prometheus_client", "sqlalchemy", "alembic"}
)
"""Modules of the extra `server` that may be missing."""


class SandboxServer:
    """An HTTP server over one manager, or over one for each tenant.

    It starts what it serves when it starts, and stops that when it ends, with every sandbox. `app`
    is an ASGI application that any such server can run; `run` runs it here.

    Args:
        manager: whose sandboxes it serves; or the config of a manager that it makes.
        api_key: without which nobody is let in; the config's where None.
        access: who is let in, in place of one key.
        store: a file, or the address of a PostgreSQL database, with tenants and their keys
            (`ms-enclave keys`); each tenant gets a manager of that config.
        quotas: what a tenant of the store may have that has none of its own.
        policy: what they may ask for; by default nothing of the machine, and no privilege.
        webhooks: who is told what happens to sandboxes; see `Webhook`.
        settings: what the manager is made with; see `SandboxManagerFactory.create_manager`.

    Raises:
        ConfigError: the key is shorter than 20 characters, or the config is not valid.
        ModuleNotFoundError: the extra `server` is not installed.
    """

    def __init__(
        self,
        manager: SandboxManager | SandboxManagerConfig | Mapping[str, Any] | None = None,
        *,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        api_key: str | None = None,
        access: Access | None = None,
        store: str | None = None,
        quotas: Quotas | Mapping[str, Any] | None = None,
        policy: Policy | Mapping[str, Any] | None = None,
        webhooks: Iterable[Webhook | Mapping[str, Any]] = (),
        **settings: Any,
    ) -> None:
        given = None
        if not isinstance(manager, SandboxManager):
            given = coerce_manager_config(manager if config is None else config)
            api_key = given.api_key if api_key is None else api_key
        elif config is not None or settings or store is not None:
            raise ConfigError("a manager that is there takes no settings any more, and no store")
        if sum(each is not None for each in (api_key, access, store)) > 1:
            raise ConfigError(
                "who is let in is said by a key, a store or an access: by one of them"
            )
        self._manager: SandboxManager | None = None
        self._audit: Audit | None = None
        self._begin: _Call
        self._end: _Call
        self._is_ready: Callable[[], Awaitable[bool]]
        if store is None:
            if quotas is not None:
                raise ConfigError("quotas are for tenants: they take a store")
            self.access: Access = self._serve_one(manager, given, settings, api_key, access)
        else:
            settings["quotas"] = settled(Quotas, quotas)
            self.access = self._serve_tenants(store, given, settings)
        self.policy = settled(Policy, policy)
        self.webhooks = Webhooks(webhooks)
        self.app: FastAPI = _make_app(self)
        """The ASGI application."""

    def _serve_one(
        self,
        manager: Any,
        config: SandboxManagerConfig | None,
        settings: dict[str, Any],
        api_key: str | None,
        access: Access | None,
    ) -> Access:
        made = (
            manager
            if isinstance(manager, SandboxManager)
            else SandboxManagerFactory.create_manager(None, config, **settings)
        )

        async def is_ready() -> bool:
            return bool((await made.get_stats()).get("running"))

        self._manager = made
        self._begin, self._end, self._is_ready = made.start, made.stop, is_ready
        return OneKey(made, api_key) if access is None else access

    def _serve_tenants(
        self, store: str, config: SandboxManagerConfig | None, settings: dict[str, Any]
    ) -> Access:
        with _saying_what_to_install():
            from ms_enclave.server.tenants import Tenants
        tenants = Tenants(store, config, **settings)
        self._begin, self._end, self._is_ready = tenants.start, tenants.stop, tenants.is_ready
        self._audit = tenants.audit
        return tenants

    @property
    def manager(self) -> SandboxManager:
        """The manager that it serves.

        Raises:
            ConfigError: it has a store, and so serves one for each tenant.
        """
        if self._manager is None:
            raise ConfigError("with a store each tenant has a manager of their own")
        return self._manager

    async def start(self) -> None:
        """Start what it serves, where `app` runs without its lifespan. Again does nothing.

        Raises:
            StoreUnavailableError: its store cannot be reached.
        """
        await self._begin()

    async def stop(self) -> None:
        """End what it serves, with every sandbox. May be called again."""
        await self._end()

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of all tenants, for who has the machine: `prometheus_client` serves them."""
        return self.app.state.metrics.registry

    def run(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        insecure: bool = False,
        on_ready: Callable[[str], object] | None = None,
    ) -> None:
        """Serve until SIGINT or SIGTERM, then let calls under way end and stop the manager. Blocks.

        Args:
            host: where to listen; other machines can reach it only where that is no loopback
                address.
            port: 0 for one that is free.
            insecure: whether to listen elsewhere without a key.
            on_ready: called with the address, once it is served.

        Raises:
            ConfigError: it is to be reached by others and nobody needs a key.
            OSError: the address cannot be had.
        """
        from ms_enclave.server._uvicorn import taking_signals

        with taking_signals():
            loop.call(self._serve, host, port, insecure, on_ready)

    @loop.on_loop
    async def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        insecure: bool = False,
        on_ready: Callable[[str], object] | None = None,
    ) -> None:
        """The same for async code: serves until it is cancelled. Takes no signals."""
        await self._serve(host, port, insecure, on_ready, signals=False)

    async def _serve(
        self,
        host: str,
        port: int,
        insecure: bool,
        on_ready: Callable[[str], object] | None,
        *,
        signals: bool = True,
    ) -> None:
        from ms_enclave.server._uvicorn import serve

        if not (insecure or self.access.needs_key or is_loopback(host)):
            raise ConfigError(
                f"{host} can be reached from other machines, and this server lets everybody in",
                remedy="give it an api_key (--api-key), or listen on 127.0.0.1; insecure=True "
                "(--insecure) is for machines that nobody else can reach",
            )
        app = self.app if insecure or self.access.needs_key else OfThisMachine(self.app)
        await serve(app, listen(host, port), on_ready, signals=signals)


def _make_app(server: SandboxServer) -> FastAPI:
    with _saying_what_to_install():
        from ms_enclave.server.app import make_app
    return make_app(
        server.access, server.policy,
        begin=server._begin, end=server._end, is_ready=server._is_ready,  # pyright: ignore[reportPrivateUsage]
        webhooks=server.webhooks, audit=server._audit,  # pyright: ignore[reportPrivateUsage]
    )  # fmt: skip


@contextmanager
def _saying_what_to_install() -> Generator[None, None, None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        raise ModuleNotFoundError(
            f"the server needs {error.name}; what to do: pip install 'ms-enclave[server]'",
            name=error.name,
        ) from None


def settled(kind: type[T], given: T | Mapping[str, Any] | None) -> T:
    """What somebody gave, as a model of a kind. Raises ConfigError."""
    if isinstance(given, kind):
        return given
    try:
        return kind.model_validate(dict(cast("Mapping[str, Any]", given or {})))
    except ValueError as error:  # pydantic's ValidationError is one
        raise ConfigError(f"Invalid {kind.what}: {say_what_is_invalid(error)}") from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Said to be TCP, or asyncio would leave small answers to wait for the last one's receipt.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(_BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def create_server(
    manager: SandboxManager | SandboxManagerConfig | Mapping[str, Any] | None = None,
    *,
    config: SandboxManagerConfig | Mapping[str, Any] | None = None,
    api_key: str | None = None,
    access: Access | None = None,
    store: str | None = None,
    quotas: Quotas | Mapping[str, Any] | None = None,
    policy: Policy | Mapping[str, Any] | None = None,
    webhooks: Iterable[Webhook | Mapping[str, Any]] = (),
    **settings: Any,
) -> SandboxServer:
    """A server; see `SandboxServer`."""
    return SandboxServer(
        manager, config=config, api_key=api_key, access=access, store=store, quotas=quotas,
        policy=policy, webhooks=webhooks, **settings,
    )  # fmt: skip
