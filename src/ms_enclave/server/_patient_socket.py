"""How long the server waits for whoever is at the other end of a WebSocket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

from ms_enclave.server._patience import Drain, Patience
from ms_enclave.server.middleware import GONE

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn._types import ASGISendEvent
    from uvicorn.server import ServerState

__all__ = ["PatientSocket"]


class PatientSocket(WSProtocol):
    """uvicorn's protocol with bounds: by itself it waits for ever for who reads nothing, and ends
    who cannot be heard because we read nothing."""

    stall_seconds: ClassVar[float] = Patience.stall_seconds
    """Without a byte being taken of what is sent."""
    ping_seconds: ClassVar[float] = 20.0
    """From a sign of life to the next ping, and from that to its answer."""

    _drain: Drain

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        self._gone = asyncio.Event()
        super().__init__(config, server_state, {**app_state, GONE: self._gone})
        self.ping_interval = self.ping_timeout = self.ping_seconds

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._drain = Drain(transport, self.stall_seconds)
        super().connection_made(transport)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._drain.end()
        self._gone.set()
        super().connection_lost(exc)

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._drain.begin()

    @override
    def resume_writing(self) -> None:
        self._drain.end()
        super().resume_writing()

    @override
    def keepalive_timeout(self) -> None:
        if self.read_paused or not self.writable.is_set():
            # Its answer may lie there unread, or the ping itself. Another one shows whether anybody
            # is there: where nobody is, writing fails.
            self.pong_timer = self.pending_ping_payload = None
            self.schedule_ping()
        else:
            super().keepalive_timeout()

    @override
    async def send(self, message: ASGISendEvent) -> None:
        await self.writable.wait()
        if self.close_sent and not self.response_started:
            raise ClientDisconnected  # we have ended it by ourselves
        await super().send(message)
