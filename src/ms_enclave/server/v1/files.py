"""Files of a sandbox: as streams, and what is done with them."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ms_enclave import wire
from ms_enclave.model import FileInfo, SearchMatch
from ms_enclave.server.answers import document, events, pieces
from ms_enclave.server.finding import Box, User
from ms_enclave.server.v1.bodies import Body
from ms_enclave.server.v1.said import BYTES, EVENTS, Exists, Nothing, Replaced, Written

__all__ = ["router"]

router = APIRouter(tags=["files"])

_CONTENT = {
    "requestBody": {
        "required": True,
        "content": {wire.STREAM: {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Target(Body):
    """A path, and as whom."""

    path: str
    user: str | int | None = None


class Listing(Target):
    """A folder to list."""

    path: str = "."
    depth: int = 1
    limit: int | None = None


class Looking(Target):
    """A path to look at."""

    follow: bool = True


class Making(Target):
    """A folder to make."""

    parents: bool = True


class Moving(Body):
    """From where to where."""

    source: str
    target: str
    user: str | int | None = None


class Removing(Target):
    """What to remove."""

    recursive: bool = False


class Searching(Target):
    """What to look for, and where."""

    path: str = "."
    pattern: str
    limit: int | None = None


class Replacing(Target):
    """What to replace by what."""

    old: str
    new: str
    count: int | None = None


Path = Annotated[str, Query(description="A path in the sandbox.")]


@router.get("/sandboxes/{sandbox_id}/files/content", **BYTES)
async def read(
    path: Path,
    sandbox: Box,
    user: User,
    offset: Annotated[int, Query()] = 0,
    limit: Annotated[int | None, Query()] = None,
) -> Response:
    """The bytes of a file."""
    return await pieces(sandbox.files.as_user(user).read_stream(path, offset=offset, limit=limit))


@router.put("/sandboxes/{sandbox_id}/files/content", openapi_extra=_CONTENT, response_model=Written)
async def write(
    path: Path,
    request: Request,
    sandbox: Box,
    user: User,
    mode: Annotated[int | None, Query()] = None,
    append: Annotated[bool, Query()] = False,
    exclusive: Annotated[bool, Query()] = False,
    parents: Annotated[bool, Query()] = True,
) -> Response:
    """Write a file with the bytes of the body."""
    written = await sandbox.files.as_user(user).write(
        path, request.stream(), mode=mode, append=append, exclusive=exclusive, parents=parents
    )
    return document({"written": written})


@router.post("/sandboxes/{sandbox_id}/files/list", response_model=list[FileInfo])
async def list_folder(body: Listing, sandbox: Box) -> Response:
    """What is in a folder."""
    more: dict[str, Any] = {} if body.limit is None else {"limit": body.limit}
    files = sandbox.files.as_user(body.user)
    return document(await files.list(body.path, body.depth, **more))


@router.post("/sandboxes/{sandbox_id}/files/stat", response_model=FileInfo)
async def stat(body: Looking, sandbox: Box) -> Response:
    """What a path is."""
    return document(await sandbox.files.as_user(body.user).stat(body.path, follow=body.follow))


@router.post("/sandboxes/{sandbox_id}/files/exists", response_model=Exists)
async def exists(body: Target, sandbox: Box) -> Response:
    """Whether there is anything at a path."""
    return document({"exists": await sandbox.files.as_user(body.user).exists(body.path)})


@router.post("/sandboxes/{sandbox_id}/files/mkdir", response_model=Nothing)
async def mkdir(body: Making, sandbox: Box) -> Response:
    """Make a folder."""
    await sandbox.files.as_user(body.user).mkdir(body.path, parents=body.parents)
    return document({})


@router.post("/sandboxes/{sandbox_id}/files/move", response_model=Nothing)
async def move(body: Moving, sandbox: Box) -> Response:
    """Rename a file or folder."""
    await sandbox.files.as_user(body.user).move(body.source, body.target)
    return document({})


@router.post("/sandboxes/{sandbox_id}/files/remove", response_model=Nothing)
async def remove(body: Removing, sandbox: Box) -> Response:
    """Remove a file, a link or a folder."""
    await sandbox.files.as_user(body.user).remove(body.path, body.recursive)
    return document({})


@router.post("/sandboxes/{sandbox_id}/files/search", response_model=list[SearchMatch])
async def search(body: Searching, sandbox: Box) -> Response:
    """Lines that match a regular expression."""
    more: dict[str, Any] = {} if body.limit is None else {"limit": body.limit}
    files = sandbox.files.as_user(body.user)
    return document(await files.search(body.pattern, body.path, **more))


@router.post("/sandboxes/{sandbox_id}/files/replace", response_model=Replaced)
async def replace(body: Replacing, sandbox: Box) -> Response:
    """Replace a string in a text file."""
    files = sandbox.files.as_user(body.user)
    return document({"count": await files.replace(body.path, body.old, body.new, count=body.count)})


@router.get("/sandboxes/{sandbox_id}/files/watch", **EVENTS)
async def watch(
    sandbox: Box, user: User, path: Path = ".", recursive: Annotated[bool, Query()] = False
) -> Response:
    """What changes in a folder from now on."""
    return await events(sandbox.files.as_user(user).watch(path, recursive=recursive))


@router.get("/sandboxes/{sandbox_id}/archive", **BYTES)
async def get_archive(path: Path, sandbox: Box, user: User) -> Response:
    """A file or folder as a stream of tar."""
    return await pieces(sandbox.get_archive(path, user=user))


@router.put("/sandboxes/{sandbox_id}/archive", openapi_extra=_CONTENT, response_model=Nothing)
async def put_archive(path: Path, request: Request, sandbox: Box, user: User) -> Response:
    """Unpack the tar of the body below a folder."""
    await sandbox.put_archive(path, request.stream(), user=user)
    return document({})
