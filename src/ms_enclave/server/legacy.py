"""The routes that people already use, with the bodies and failures that they know.

Who uses them sends whole configs: a value equal to the old default was not asked for.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import ConfigDict

from ms_enclave.errors import (
    AuthenticationError,
    ConfigError,
    EnclaveError,
    QuotaExceededError,
    SandboxNotFoundError,
)
from ms_enclave.model import (
    HealthCheckResult,
    SandboxInfo,
    ToolExecutionRequest,
)
from ms_enclave.model.legacy import old_state, undefaulted
from ms_enclave.server.answers import RefusedError, document
from ms_enclave.server.finding import Box, Manager, find_by_id
from ms_enclave.version import __version__

__all__ = ["router"]

router = APIRouter(tags=["as ever"])

Mapping = Annotated[Any, Body(description="An object, or nothing.")]


def _object(given: Any) -> dict[str, Any] | None:
    if given is None or isinstance(given, dict):
        return cast("dict[str, Any] | None", given)
    raise ConfigError("the body must be an object")


class ToolExecution(ToolExecutionRequest):
    """A tool of a sandbox, and what it is called with."""

    model_config = ConfigDict(defer_build=False)  # routes are built with their models


@contextmanager
def refused_as(status: int, kind: type[Exception]) -> Generator[None, None, None]:
    """Have errors of a kind answered with the status that these routes always had for them."""
    try:
        yield
    except (AuthenticationError, QuotaExceededError):
        raise
    except kind as error:
        raise RefusedError(error, status) from error


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether the server answers, and since when. Open to everybody, so it counts nothing."""
    state = request.app.state
    return document(
        HealthCheckResult(healthy=True, version=__version__, uptime=time.monotonic() - state.begun)
    )


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Whether it takes sandboxes: 503 before it has started and while it ends."""
    is_ready = await request.app.state.is_ready()
    return document({"ready": is_ready}, 200 if is_ready else 503)


@router.post("/sandbox/create")
async def create_sandbox(
    manager: Manager, sandbox_type: Annotated[str, Query()], config: Mapping = None
) -> Response:
    """Make and start a sandbox."""
    with refused_as(400, EnclaveError):
        made = await manager.create_sandbox(
            sandbox_type, undefaulted(_object(config), sandbox_type)
        )
    return document({"sandbox_id": made})


@router.get("/sandboxes")
async def list_sandboxes(
    manager: Manager, status: Annotated[str | None, Query()] = None
) -> Response:
    """Descriptions of all sandboxes, or of those in one state."""
    return document([_old(info) for info in await manager.list_sandboxes(status)])


@router.get("/sandbox/{sandbox_id}")
async def get_sandbox(sandbox: Box) -> Response:
    """A description of a sandbox."""
    return document(_old(sandbox.get_info(), sandbox.get_available_tools()))


def _old(info: SandboxInfo, tools: dict[str, Any] | None = None) -> dict[str, Any]:
    """Its tools are a mapping there, with their schemas where one sandbox is asked for."""
    named: dict[str, Any] = {name: {} for name in info.available_tools}
    return {
        **info.model_dump(mode="json"),
        "status": old_state(info.status),
        "available_tools": named if tools is None else tools,
    }


@router.post("/sandbox/{sandbox_id}/stop")
async def stop_sandbox(sandbox: Box, manager: Manager) -> Response:
    """End a sandbox but go on listing it for a while."""
    if not await manager.stop_sandbox(sandbox.id):
        raise SandboxNotFoundError(sandbox.id)
    return document({"message": f"Sandbox {sandbox.id} stopped successfully"})


@router.delete("/sandbox/{sandbox_id}")
async def delete_sandbox(sandbox: Box, manager: Manager) -> Response:
    """End and forget a sandbox."""
    if not await manager.delete_sandbox(sandbox.id):
        raise SandboxNotFoundError(sandbox.id)
    return document({"message": f"Sandbox {sandbox.id} deleted successfully"})


@router.post("/sandbox/tool/execute")
async def execute_tool(asked: ToolExecution, manager: Manager) -> Response:
    """Run a tool of a sandbox."""
    sandbox = await find_by_id(manager, asked.sandbox_id)
    with refused_as(404, ValueError):
        return document(
            await sandbox.execute_tool(asked.tool_name, asked.parameters, timeout=asked.timeout)
        )


@router.get("/sandbox/{sandbox_id}/tools")
async def get_tools(sandbox: Box, manager: Manager) -> Response:
    """The tools of a sandbox: name to schema."""
    return document(await manager.get_sandbox_tools(sandbox.id))


@router.post("/sandbox/{sandbox_id}/archive")
async def put_archive(
    request: Request, sandbox: Box, target_dir: Annotated[str, Query()]
) -> Response:
    """Unpack the tar of the body below a folder of a sandbox."""
    await sandbox.put_archive(target_dir, request.stream())
    return document({"ok": True})


@router.get("/stats")
async def get_stats(manager: Manager) -> Response:
    """Counts of sandboxes by state and type, and the state of manager and pool."""
    return document(await manager.get_stats())


@router.post("/pool/initialize")
async def initialize_pool(
    manager: Manager,
    pool_size: Annotated[int | None, Query()] = None,
    sandbox_type: Annotated[str | None, Query()] = None,
    config: Mapping = None,
) -> Response:
    """Make a pool of equal sandboxes, or find it made."""
    made = await manager.initialize_pool(
        pool_size, sandbox_type, undefaulted(_object(config), sandbox_type or "")
    )
    return document(
        {"message": "Sandbox pool initialized", "pool_size": len(made), "sandbox_ids": made}
    )


@router.post("/pool/execute")
async def execute_tool_in_pool(
    manager: Manager,
    tool_name: Annotated[str, Query()],
    timeout: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    parameters: Mapping = None,
) -> Response:
    """Run a tool in a sandbox of the pool."""
    with refused_as(400, ValueError):
        return document(await manager.execute_tool_in_pool(tool_name, _object(parameters), timeout))
