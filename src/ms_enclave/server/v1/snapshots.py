"""Snapshots: files of sandboxes for others to begin with."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from ms_enclave import wire
from ms_enclave.model import SnapshotInfo
from ms_enclave.server.answers import document, pieces
from ms_enclave.server.finding import Box, Manager
from ms_enclave.server.v1.bodies import Body
from ms_enclave.server.v1.said import BYTES, Nothing

__all__ = ["router"]

router = APIRouter(tags=["snapshots"])

Name = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="A snapshot's name.")
]

_CONTENT = {
    "requestBody": {
        "required": True,
        "content": {wire.STREAM: {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Storing(Body):
    """What a snapshot is to be called."""

    name: str


@router.post("/sandboxes/{sandbox_id}/snapshots", response_model=SnapshotInfo)
async def snapshot(body: Storing, sandbox: Box) -> Response:
    """Keep a sandbox's files for new sandboxes to begin with."""
    return document(await sandbox.snapshot(body.name))


@router.get("/snapshots", response_model=list[SnapshotInfo])
async def list_snapshots(manager: Manager) -> Response:
    """The snapshots that there are, by name."""
    return document(await manager.list_snapshots())


@router.delete("/snapshots/{name}", response_model=Nothing)
async def delete_snapshot(name: Name, manager: Manager) -> Response:
    """Delete a snapshot. Sandboxes that began with it go on."""
    await manager.delete_snapshot(name)
    return document({})


@router.get("/snapshots/{name}/archive", **BYTES)
async def export_snapshot(name: Name, manager: Manager) -> Response:
    """A snapshot as a stream of tar."""
    return await pieces(manager.export_snapshot(name))


@router.put("/snapshots/{name}/archive", openapi_extra=_CONTENT, response_model=SnapshotInfo)
async def import_snapshot(name: Name, request: Request, manager: Manager) -> Response:
    """Have the tar of the body as a snapshot."""
    return document(await manager.import_snapshot(name, request.stream()))
