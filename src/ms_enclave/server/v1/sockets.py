"""Terminals and ports over WebSocket: one connection with both ways in it, as a browser has them.

Binary messages are the bytes themselves. Text messages are JSON that says something of them: `eof`
ends one way, and what goes wrong is an `error` as in any answer, before a close whose code is 4000
and the status.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import ByteStream
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from ms_enclave import wire
from ms_enclave.boxes.commands import Command
from ms_enclave.errors import ConfigError, EnclaveError
from ms_enclave.model.base import say_what_is_invalid
from ms_enclave.server.finding import find_sandbox
from ms_enclave.server.v1.bodies import Body

__all__ = ["router"]

router = APIRouter(tags=["sockets"])

_PIECE = 1 << 16
_OF_OURS = 4000
"""Beyond it are the codes of closes that are an application's own."""


class Control(Body):
    """What a text message says; nothing of it has to be there."""

    eof: bool = False
    rows: int | None = None
    cols: int | None = None
    signal: int | str | None = None


@router.websocket("/sandboxes/{sandbox_id}/ports/{port}/socket")
async def port_socket(
    websocket: WebSocket, sandbox_id: str, port: int, timeout: float | None = 30.0
) -> None:
    """A connection to a port; it is closed when both ways have ended."""

    async def work() -> None:
        sandbox = await find_sandbox(websocket, sandbox_id)
        async with await sandbox.connect(port, timeout=timeout) as stream:
            await _both(
                websocket,
                lambda: _port_out(websocket, stream),
                lambda message: _port_in(stream, message),
                until_eof=True,
            )

    await _see_through(websocket, work)


async def _port_out(websocket: WebSocket, stream: ByteStream) -> None:
    try:
        while True:
            await websocket.send_bytes(await stream.receive(_PIECE))
    except anyio.EndOfStream:
        await _say(websocket, {"eof": True})


async def _port_in(stream: ByteStream, message: "bytes | Control") -> None:
    if isinstance(message, bytes):
        await stream.send(message)
    elif message.eof:
        await stream.send_eof()


@router.websocket("/sandboxes/{sandbox_id}/commands/{command_id}/socket")
async def command_socket(
    websocket: WebSocket, sandbox_id: str, command_id: str, after: int = 0
) -> None:
    """What a command prints from a cursor on, and what is typed to it; `rows` and `cols` give its
    terminal another size. The last text has its `result`. It runs on where this ends before it."""

    async def work() -> None:
        sandbox = await find_sandbox(websocket, sandbox_id)
        command = await sandbox.get_command(command_id)
        await _both(
            websocket,
            lambda: _command_out(websocket, command, after),
            lambda message: _command_in(command, message),
            until_eof=False,
        )

    await _see_through(websocket, work)


async def _command_out(websocket: WebSocket, command: Command, after: int) -> None:
    async for event in command.events(after=after):
        await websocket.send_bytes(event.data)
    await _say(websocket, {"result": await command.wait()})


async def _command_in(command: Command, message: "bytes | Control") -> None:
    if isinstance(message, bytes):
        try:
            await command.write(message)
        except BrokenPipeError:
            if command.returncode is None:  # else what is typed to the dead is nobody's mistake
                raise
        return
    if message.rows is not None and message.cols is not None:
        await command.resize(message.rows, message.cols)
    if message.signal is not None:
        await command.send_signal(message.signal)
    if message.eof:
        await command.close_stdin()


# --- what both have in common ---


async def _see_through(websocket: WebSocket, work: Callable[[], Awaitable[None]]) -> None:
    """Accept, work, and close in the way in which it ended."""
    await websocket.accept()
    with suppress(WebSocketDisconnect):  # whoever is to be told has gone
        try:
            await work()
        except (EnclaveError, OSError) as error:
            await _say(websocket, {"error": wire.encode_error(error)})
            await websocket.close(_OF_OURS + wire.status_of(error))
        else:
            await websocket.close()


async def _both(
    websocket: WebSocket,
    outward: Callable[[], Awaitable[None]],
    inward: Callable[["bytes | Control"], Awaitable[None]],
    *,
    until_eof: bool,
) -> None:
    """Both ways at once, until the way out has ended, or whoever is there has gone.

    Args:
        until_eof: whether the way in must have ended, too.
    """
    failed: list[Exception] = []
    ended = anyio.Event()

    async def out() -> None:
        with _noting(failed, group):
            await outward()
            if until_eof:
                await ended.wait()
            group.cancel_scope.cancel()

    async def into() -> None:
        with _noting(failed, group):
            while True:
                message = await _heard(websocket)
                await inward(message)
                if isinstance(message, Control) and message.eof:
                    ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(out)
        group.start_soon(into)
    if failed:
        raise failed[0]


class _noting:
    """Keeps the first failure, which ends both ways; a group would wrap it up."""

    def __init__(self, failed: list[Exception], group: Any) -> None:
        self._failed = failed
        self._group = group

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        if isinstance(error, (anyio.BrokenResourceError, anyio.ClosedResourceError)):
            error = BrokenPipeError(32, "the connection broke")
        self._failed.append(error)
        self._group.cancel_scope.cancel()
        return True


async def _heard(websocket: WebSocket) -> "bytes | Control":
    """The next message. Raises WebSocketDisconnect, ConfigError."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    data = message.get("bytes")
    if data is not None:
        return data
    try:
        return Control.model_validate_json(message.get("text") or "")
    except ValidationError as error:
        raise ConfigError(f"no such message: {say_what_is_invalid(error)}") from None


async def _say(websocket: WebSocket, data: dict[str, Any]) -> None:
    await websocket.send_text(wire.dump(data).decode())
