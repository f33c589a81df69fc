"""Ports of a sandbox: what listens, and connections to it."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import anyio
from anyio.abc import ByteStream
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from ms_enclave import wire
from ms_enclave.boxes.base import Sandbox
from ms_enclave.errors import EnclaveError, SandboxStateError
from ms_enclave.model import PortInfo
from ms_enclave.server.answers import HEADERS, document
from ms_enclave.server.finding import Box
from ms_enclave.server.v1.bodies import Body
from ms_enclave.server.v1.said import BYTES, Nothing

__all__ = ["CONNECTION_HEADER", "Connections", "router"]

router = APIRouter(tags=["ports"])

CONNECTION_HEADER = "enclave-connection"
_PIECE = 1 << 16


class Connecting(Body):
    """How a connection is made."""

    timeout: float | None = 30.0
    """Seconds that whoever listens has to take it."""


@dataclass(frozen=True)
class Connection:
    """One connection, and of which sandbox."""

    sandbox: Sandbox
    stream: ByteStream


class Connections:
    """Connections that are open, by id. Each lives as long as the answer that has its bytes."""

    def __init__(self) -> None:
        self._open: dict[str, Connection] = {}

    def add(self, connection: Connection) -> str:
        """Give it an id that nobody can guess."""
        name = secrets.token_hex(16)
        self._open[name] = connection
        return name

    def get(self, sandbox: Sandbox, name: str) -> ByteStream:
        """The stream of a connection. Raises BrokenPipeError where it has ended."""
        found = self._open.get(name)
        if found is None or found.sandbox is not sandbox:
            raise BrokenPipeError(32, "the connection has ended")
        return found.stream

    def forget(self, name: str) -> None:
        """It has ended."""
        self._open.pop(name, None)


@router.get("/sandboxes/{sandbox_id}/ports", response_model=list[PortInfo])
async def list_ports(sandbox: Box) -> Response:
    """What takes connections."""
    return document(await sandbox.list_ports())


@router.post("/sandboxes/{sandbox_id}/ports/{port}/connect", **BYTES)
async def connect(port: int, body: Connecting, sandbox: Box, request: Request) -> Response:
    """A connection. The answer has its bytes, in frames, for as long as it is read; what is sent
    goes to `…/connections/{id}`, whose id is in the header."""
    stream = await sandbox.connect(port, timeout=body.timeout)
    connections: Connections = request.app.state.connections
    name = connections.add(Connection(sandbox, stream))

    async def received() -> AsyncIterator[bytes]:
        try:
            yield wire.encode_frame(await stream.receive(_PIECE))
            while True:
                yield wire.encode_frame(await stream.receive(_PIECE))
        except anyio.EndOfStream:
            yield wire.encode_frame(None)
            await anyio.sleep_forever()  # the other way may go on; who reads this ends both
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            yield wire.encode_frame(None, BrokenPipeError(32, "the connection broke"))
        except (EnclaveError, OSError) as error:
            yield wire.encode_frame(None, error)

    return _Lasting(received(), connections, name, stream)


class _Lasting(StreamingResponse):
    """An answer with which a connection ends, however it does."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        connections: Connections,
        name: str,
        stream: ByteStream,
    ) -> None:
        super().__init__(content, 200, {**HEADERS, CONNECTION_HEADER: name}, wire.STREAM)
        self._end = (connections, name, stream)

    async def __call__(self, *args: object) -> None:
        connections, name, stream = self._end
        try:
            await super().__call__(*args)  # type: ignore[arg-type]
        finally:
            connections.forget(name)
            with anyio.CancelScope(shield=True):
                await stream.aclose()


@router.post("/sandboxes/{sandbox_id}/connections/{connection_id}", response_model=Nothing)
async def send(connection_id: str, sandbox: Box, request: Request) -> Response:
    """Send the bytes of the body; answered when they are on their way."""
    stream = request.app.state.connections.get(sandbox, connection_id)
    try:
        async for piece in request.stream():
            if piece:
                await stream.send(piece)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        raise BrokenPipeError(32, "the connection broke") from None
    except anyio.BusyResourceError:
        raise SandboxStateError("something else is being sent there at this moment") from None
    return document({})


@router.delete("/sandboxes/{sandbox_id}/connections/{connection_id}", response_model=Nothing)
async def end(connection_id: str, sandbox: Box, request: Request) -> Response:
    """End the way there; what comes from there still comes."""
    stream = request.app.state.connections.get(sandbox, connection_id)
    try:
        await stream.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        raise BrokenPipeError(32, "the connection broke") from None
    return document({})
