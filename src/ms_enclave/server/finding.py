"""How routes find who asks and what is asked for: the one way, for all of them."""

from typing import Annotated

from fastapi import Depends, Path, Query, Request
from fastapi.requests import HTTPConnection

from ms_enclave.boxes.base import Sandbox
from ms_enclave.errors import SandboxNotFoundError
from ms_enclave.manager import SandboxManager
from ms_enclave.server.access import Principal

__all__ = [
    "Box",
    "Manager",
    "SandboxId",
    "User",
    "Who",
    "find_by_id",
    "find_sandbox",
    "find_user",
    "find_who",
]

SandboxId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="A sandbox's id.")]


async def find_who(connection: HTTPConnection) -> Principal:
    """Who was let in."""
    return connection.state.principal


async def find_manager(connection: HTTPConnection) -> SandboxManager:
    """What they see."""
    return connection.state.principal.manager


async def find_sandbox(connection: HTTPConnection, sandbox_id: SandboxId) -> Sandbox:
    """The sandbox of the path, if whoever asks may see it: every route of one has it from here.

    Raises:
        SandboxNotFoundError: there is none, or it is somebody else's; nobody can tell which.
    """
    return await find_by_id(connection.state.principal.manager, sandbox_id)


async def find_by_id(manager: SandboxManager, sandbox_id: str) -> Sandbox:
    """The same for an id that does not stand in a path. Raises as `find_sandbox`."""
    sandbox = await manager.get_sandbox(sandbox_id)
    if sandbox is None:
        raise SandboxNotFoundError(sandbox_id)
    return sandbox


async def find_user(
    request: Request,
    user: Annotated[str | None, Query(max_length=200, description="A user inside.")] = None,
    uid: Annotated[int | None, Query(description="The same by number.")] = None,
) -> str | int | None:
    """Who inside the sandbox does it."""
    del request
    return user if uid is None else uid


Who = Annotated[Principal, Depends(find_who)]
Manager = Annotated[SandboxManager, Depends(find_manager)]
Box = Annotated[Sandbox, Depends(find_sandbox)]
User = Annotated[str | int | None, Depends(find_user)]
