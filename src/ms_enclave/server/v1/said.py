"""What answers say, for whoever reads `/openapi.json`; nothing is checked by it on its way out."""

from typing import Any

from fastapi import Response
from pydantic import BaseModel

from ms_enclave import wire
from ms_enclave.model import CommandResult, Execution, IsolationReport, OutputChunk, SandboxInfo
from ms_enclave.model.kernels import KernelInfo

__all__ = [
    "BYTES",
    "EVENTS",
    "CommandAndChunk",
    "CommandAndResult",
    "CommandSaid",
    "Created",
    "Deleted",
    "Exists",
    "KernelAndExecution",
    "KernelAndReply",
    "KernelFound",
    "KernelListed",
    "KernelSaid",
    "Nothing",
    "PoolSaid",
    "Replaced",
    "Returned",
    "SandboxSaid",
    "ShellAndResult",
    "ShellEnd",
    "ShellSaid",
    "Stopped",
    "Written",
]


def _stream(kind: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    said = {200: {"description": description, "content": {kind: {"schema": schema}}}}
    return {"response_class": Response, "responses": said}


_TEXT = {"type": "string"}
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": _TEXT, "data": {**_TEXT, "contentMediaType": wire.JSON}},
}
EVENTS = _stream(wire.SSE, "Server-sent events with JSON, then `end`; or `error`.", _EVENT)
BYTES = _stream(wire.STREAM, "Bytes as they come.", {**_TEXT, "format": "binary"})


class Nothing(BaseModel):
    """It was done."""


class Created(BaseModel):
    """What was made."""

    sandbox_id: str


class SandboxSaid(BaseModel):
    """All that a handle has to know."""

    info: SandboxInfo
    capabilities: list[str]
    isolation: IsolationReport | None
    tools: dict[str, Any]


class Stopped(BaseModel):
    """Whether it ran."""

    stopped: bool


class Deleted(BaseModel):
    """Whether it was there."""

    deleted: bool


class CommandSaid(BaseModel):
    """How a command is."""

    id: str
    pid: int
    command: str | list[str]
    tag: str | None
    returncode: int | None
    cursor: int
    takes_input: bool


class CommandAndChunk(BaseModel):
    """What it printed."""

    chunk: OutputChunk
    command: CommandSaid


class CommandAndResult(BaseModel):
    """How it ended."""

    result: CommandResult
    command: CommandSaid


class AuditEntry(BaseModel):
    """Something that was done, or refused."""

    number: int
    at: float
    """Seconds since 1970."""
    tenant: str
    """Empty: whoever was not let in."""
    key: str | None
    """Its id; None for who runs the server."""
    action: str
    sandbox: str | None
    detail: dict[str, Any] | None
    request: str | None
    outcome: str | None
    """`ok`, or an error's code; None while it goes on, or where the server ended meanwhile."""
    seconds: float | None


class ShellEnd(BaseModel):
    """The process of a shell, where it has one."""

    pid: int | None


class ShellSaid(ShellEnd):
    """How a shell is."""

    name: str


class ShellAndResult(ShellEnd):
    """How a line ended."""

    result: CommandResult


class Written(BaseModel):
    """Bytes."""

    written: int


class Exists(BaseModel):
    """Whether there is anything."""

    exists: bool


class Replaced(BaseModel):
    """How often."""

    count: int


class KernelListed(BaseModel):
    """A kernel, a dead one too."""

    info: KernelInfo


class KernelSaid(KernelListed):
    """How a kernel is."""

    death_reason: str | None


class KernelFound(BaseModel):
    """How the kernel is now."""

    kernel: KernelSaid


class KernelAndExecution(KernelFound):
    """How a cell ended."""

    execution: Execution


class KernelAndReply(KernelFound):
    """What an editor is told."""

    reply: dict[str, Any]


class PoolSaid(BaseModel):
    """What the pool has."""

    sandbox_ids: list[str]


class Returned(BaseModel):
    """Whether there was such a loan."""

    returned: bool
