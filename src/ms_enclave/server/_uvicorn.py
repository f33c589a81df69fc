"""Runs the application by uvicorn, on our own loop: a call goes from the socket to the sandbox
without a hop."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import uvicorn
from typing_extensions import override

from ms_enclave import wire
from ms_enclave.server._patience import Patience
from ms_enclave.server._patient_socket import PatientSocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Generator
    from types import FrameType

__all__ = ["DRAIN_SECONDS", "serve"]

DRAIN_SECONDS = 20
"""Seconds that calls under way have to end by themselves when the server stops."""

_KEEP_ALIVE = 75
_MOST_CONNECTIONS = 8192


class _Server(uvicorn.Server):
    """One that says when it serves, and leaves signals to whoever has the main thread."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @override
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(
    app: Any,
    listening: socket.socket,
    on_ready: Callable[[str], object] | None,
    *,
    signals: bool,
) -> None:
    """Serve on a socket, which is closed at the end, until a signal or a cancellation."""
    host, port = listening.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody here asks for the caller's address, or how it came
        date_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        http=Patience,
        limit_concurrency=_MOST_CONNECTIONS,
        ws=PatientSocket,
        ws_max_size=wire.CHUNK_LIMIT,
        ws_per_message_deflate=False,  # wsproto inflates first, and looks at the size after that
    )
    server = _Server(config, lambda: None if on_ready is None else on_ready(address))
    try:
        if signals:
            SIGNALS.serve(server)
        await _see_through(server, listening)
    finally:
        SIGNALS.done(server)
        listening.close()


async def _see_through(server: _Server, listening: socket.socket) -> None:
    async with anyio.create_task_group() as group:
        ended = anyio.Event()

        async def main() -> None:
            with anyio.CancelScope(shield=True):  # told to end, it ends in order
                await server.serve(sockets=[listening])
            ended.set()

        group.start_soon(main)
        try:
            await ended.wait()
        finally:
            server.should_exit = True


class _Signals:
    """Which server is to end when a signal comes."""

    def __init__(self) -> None:
        self._server: uvicorn.Server | None = None

    def serve(self, server: uvicorn.Server) -> None:
        self._server = server

    def done(self, server: uvicorn.Server) -> None:
        if self._server is server:
            self._server = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._server is not None:
            self._server.should_exit = True


SIGNALS = _Signals()


@contextmanager
def taking_signals() -> Generator[None, None, None]:
    """Have SIGINT and SIGTERM end the server that runs, in order; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, SIGNALS.handle)
              for number in (signal.SIGINT, signal.SIGTERM)}  # fmt: skip
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
