"""Managers over HTTP, each with a server of its own: in this process, or on a port of loopback."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from ms_enclave.loop import on_loop, to_the_end
from ms_enclave.manager import LocalSandboxManager
from ms_enclave.manager.http_manager import HttpSandboxManager
from ms_enclave.server import Policy, create_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from ms_enclave.boxes import Sandbox

__all__ = ["InProcess", "OnLoopback", "OverHttp", "OverLoopback"]

KEY = "a key of the tests, long enough"


class InProcess(HttpSandboxManager):
    """Its server is called by ASGI, on the same loop."""

    def __init__(self, **options: Any) -> None:
        self.server = create_server(
            LocalSandboxManager(**options), api_key=KEY, policy=Policy.everything()
        )
        super().__init__(app=self.server.app, api_key=KEY)

    async def start(self) -> None:
        await self.server.manager.start()
        await super().start()

    @to_the_end
    async def stop(self) -> None:
        try:
            await super().stop()
        finally:
            await self.server.manager.stop()


class OnLoopback(HttpSandboxManager):
    """Its server is a real one, behind a socket."""

    policy: ClassVar[Policy] = Policy.everything()

    def __init__(self, **options: Any) -> None:
        self.server = create_server(LocalSandboxManager(**options), api_key=KEY, policy=self.policy)
        self._serving: asyncio.Task[None] | None = None
        super().__init__(base_url="http://127.0.0.1:1", api_key=KEY)

    @on_loop
    async def start(self) -> None:
        if self._serving is None:
            ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            serving = self.server.serve(port=0, on_ready=ready.set_result)
            self._serving = asyncio.ensure_future(serving)
            await asyncio.wait([ready, self._serving], return_when=asyncio.FIRST_COMPLETED)
            super().__init__(base_url=ready.result(), api_key=KEY)
        await super().start()

    @to_the_end
    async def stop(self) -> None:
        serving, self._serving = self._serving, None
        try:
            if serving is not None:
                await super().stop()
        finally:
            if serving is not None:
                serving.cancel()
                await asyncio.wait([serving])


class OverHttp:
    """The handles of a suite over sandboxes are remote ones."""

    kind: type[HttpSandboxManager] = InProcess
    sandbox_type: str
    config: Any

    @classmethod
    def opened(cls, **config: Any) -> AbstractAsyncContextManager[Sandbox]:
        return cls._opened({**cls.config, **config})

    @classmethod
    @asynccontextmanager
    async def _opened(cls, config: dict[str, Any]) -> AsyncGenerator[Sandbox, None]:
        async with cls.kind() as manager, manager.sandbox(cls.sandbox_type, config) as box:
            yield box


class OverLoopback(OverHttp):
    """The same through a socket. No connection is kept for the next call, in which a test would
    seem to leave it."""

    class Kind(OnLoopback):
        kept_open: ClassVar[int] = 0

    kind = Kind
