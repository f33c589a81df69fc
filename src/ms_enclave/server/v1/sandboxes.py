"""Sandboxes: made, found, listed, renewed, ended; their tools."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response

from ms_enclave import wire
from ms_enclave.boxes.base import Sandbox
from ms_enclave.errors import SandboxNotFoundError, SandboxStateError
from ms_enclave.model import Checkpoint, CommandResult, FileChange, SandboxInfo, ToolResult
from ms_enclave.server.answers import document
from ms_enclave.server.finding import Box, Manager, SandboxId, Who
from ms_enclave.server.idempotency import Idempotent
from ms_enclave.server.v1.bodies import Body
from ms_enclave.server.v1.said import Created, Deleted, Nothing, SandboxSaid, Stopped

__all__ = ["describe", "router"]

router = APIRouter(tags=["sandboxes"])


class Creation(Body):
    """What is to be made."""

    sandbox_type: str = "auto"
    config: dict[str, Any] | None = None
    sandbox_id: str | None = None


class Renewal(Body):
    """How long it is to live from now."""

    ttl: float
    """Seconds."""


class Forking(Body):
    """How many forks, whether their random numbers are to differ, and whether they are to be
    without what cannot be forked."""

    n: int = 1
    reseed: bool = True
    sandbox_ids: list[str] | None = None
    at: str | None = None
    unforkable: Literal["refuse", "drop"] = "refuse"


class Keeping(Body):
    """What a checkpoint is to be called by, beside its id."""

    name: str | None = None


class GoingBack(Body):
    """Where to."""

    checkpoint: str


class ToolCall(Body):
    """A tool and what it is called with."""

    tool_name: str
    parameters: dict[str, Any] | None = None
    timeout: float | None = None


class CodeRun(Body):
    """A program for a sandbox of its own."""

    code: str
    language: str = "python"
    stdin: str | None = None
    files: dict[str, str] | None = None
    timeout: float | None = 30.0
    config: dict[str, Any] | None = None


Key = Annotated[str | None, Header(alias=wire.IDEMPOTENCY_HEADER, max_length=200)]


@router.post("/sandboxes", response_model=Created)
async def create_sandbox(
    body: Creation, who: Who, once: Idempotent, idempotency_key: Key = None
) -> Response:
    """Make and start a sandbox. The same key again is answered with the same sandbox."""

    async def create() -> bytes:
        made = await who.manager.create_sandbox(body.sandbox_type, body.config, body.sandbox_id)
        return wire.dump({"sandbox_id": made})

    done = await once.do(who.name, idempotency_key, wire.dump(body.model_dump()), create)
    return Response(done, media_type=wire.JSON)


@router.get("/sandboxes", response_model=list[SandboxInfo])
async def list_sandboxes(
    manager: Manager, status: Annotated[str | None, Query()] = None
) -> Response:
    """Descriptions of all sandboxes, or of those in one state."""
    return document(await manager.list_sandboxes(status))


@router.delete("/sandboxes", response_model=Nothing)
async def cleanup_all_sandboxes(manager: Manager) -> Response:
    """End and forget every sandbox."""
    await manager.cleanup_all_sandboxes()
    return document({})


@router.get("/sandboxes/{sandbox_id}", response_model=SandboxSaid)
async def get_sandbox(sandbox: Box) -> Response:
    """A sandbox with all that a handle of it has to know."""
    return document(describe(sandbox))


def describe(sandbox: Sandbox) -> dict[str, Any]:
    """What a handle on another machine knows of its sandbox."""
    try:
        isolation = sandbox.isolation
    except SandboxStateError:
        isolation = None
    return {
        "info": sandbox.get_info(),
        "capabilities": sorted(sandbox.capabilities),
        "isolation": isolation,
        "tools": sandbox.get_available_tools(),
    }


@router.get("/sandboxes/{sandbox_id}/info", response_model=SandboxInfo)
async def get_sandbox_info(sandbox_id: SandboxId, manager: Manager) -> Response:
    """A description of a sandbox as of now."""
    info = await manager.get_sandbox_info(sandbox_id)
    if info is None:
        raise SandboxNotFoundError(sandbox_id)
    return document(info)


@router.post("/sandboxes/{sandbox_id}/stop", response_model=Stopped)
async def stop_sandbox(sandbox: Box, manager: Manager) -> Response:
    """End a sandbox but go on listing it for a while."""
    return document({"stopped": await manager.stop_sandbox(sandbox.id)})


@router.delete("/sandboxes/{sandbox_id}", response_model=Deleted)
async def delete_sandbox(sandbox: Box, manager: Manager) -> Response:
    """End and forget a sandbox."""
    return document({"deleted": await manager.delete_sandbox(sandbox.id)})


@router.post("/sandboxes/{sandbox_id}/renew", response_model=Nothing)
async def renew(body: Renewal, sandbox: Box, manager: Manager) -> Response:
    """Let a sandbox live so many seconds from now."""
    await manager.renew(sandbox.id, body.ttl)
    return document({})


@router.post("/sandboxes/{sandbox_id}/pause", response_model=Nothing)
async def pause_sandbox(sandbox: Box) -> Response:
    """Have everything in a sandbox stand still."""
    await sandbox.pause()
    return document({})


@router.post("/sandboxes/{sandbox_id}/resume", response_model=Nothing)
async def resume_sandbox(sandbox: Box) -> Response:
    """Let a paused sandbox go on."""
    await sandbox.resume()
    return document({})


@router.post("/sandboxes/{sandbox_id}/fork", response_model=list[SandboxSaid])
async def fork(
    body: Forking, sandbox: Box, who: Who, once: Idempotent, idempotency_key: Key = None
) -> Response:
    """Make forks of a sandbox: all of them, or none. The same key again is answered with the same.

    What is in the way is an error of code `fork_refused`, which names it.
    """

    async def make() -> bytes:
        made = await sandbox.fork(
            body.n,
            at=body.at,
            reseed=body.reseed,
            unforkable=body.unforkable,
            sandbox_ids=body.sandbox_ids,
        )
        return wire.dump([describe(one) for one in made])

    asked = wire.dump({"fork": sandbox.id, **body.model_dump()})
    done = await once.do(who.name, idempotency_key, asked, make)
    return Response(done, media_type=wire.JSON)


@router.post("/sandboxes/{sandbox_id}/checkpoints", response_model=Checkpoint)
async def checkpoint(body: Keeping, sandbox: Box) -> Response:
    """Keep how a sandbox is now."""
    return document(await sandbox.checkpoint(body.name))


@router.get("/sandboxes/{sandbox_id}/checkpoints", response_model=list[Checkpoint])
async def list_checkpoints(sandbox: Box) -> Response:
    """What a sandbox can go back to, the oldest first."""
    return document(await sandbox.tree())


@router.get("/sandboxes/{sandbox_id}/diff", response_model=list[FileChange])
async def diff(
    sandbox: Box, a: Annotated[str, Query()], b: Annotated[str | None, Query()] = None
) -> Response:
    """What differs in the files of a sandbox between two checkpoints, or between one and now."""
    return document(await sandbox.diff(a, b))


@router.post("/sandboxes/{sandbox_id}/rollback", response_model=Nothing)
async def roll_back(body: GoingBack, sandbox: Box) -> Response:
    """Have a sandbox be as it was."""
    await sandbox.rollback(body.checkpoint)
    return document({})


@router.post("/sandboxes/{sandbox_id}/tools/execute", response_model=ToolResult)
async def execute_tool(body: ToolCall, sandbox: Box) -> Response:
    """Run a tool. Wrong parameters are a result."""
    return document(
        await sandbox.execute_tool(body.tool_name, body.parameters, timeout=body.timeout)
    )


@router.post("/run", response_model=CommandResult)
async def run_code(body: CodeRun, manager: Manager) -> Response:
    """Run a program in a fresh sandbox of its own; nothing of it stays."""
    files = {name: wire.decode_bytes(data) or b"" for name, data in (body.files or {}).items()}
    return document(
        await manager.run_code(
            body.code, language=body.language, stdin=wire.decode_bytes(body.stdin), files=files,
            timeout=body.timeout, config=body.config,
        )
    )  # fmt: skip


@router.get("/stats", response_model=dict[str, Any])
async def get_stats(manager: Manager) -> Response:
    """Counts of sandboxes by state and type, and the state of manager and pool."""
    return document(await manager.get_stats())
