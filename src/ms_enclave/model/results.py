"""What an execution gives, and how sandboxes and servers describe themselves."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from ms_enclave.model.enums import ExecutionStatus, SandboxStatus, Verdict

__all__ = [
    "CommandResult",
    "ExecutionResult",
    "FileEvent",
    "FileInfo",
    "HealthCheckResult",
    "IsolationReport",
    "PortInfo",
    "SandboxInfo",
    "SearchMatch",
    "ToolResult",
    "Usage",
]


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _in_utc(moment: datetime) -> datetime:
    # One without a zone comes from `datetime.now()` in other people's tools: local time.
    return moment.astimezone(timezone.utc)


def _none_is_zero(value: Any) -> Any:
    return 0.0 if value is None else value


UtcTime = Annotated[datetime, AfterValidator(_in_utc)]
Seconds = Annotated[float, BeforeValidator(_none_is_zero)]

_VERDICTS = {
    ExecutionStatus.SUCCESS: Verdict.OK,
    ExecutionStatus.ERROR: Verdict.ERROR,
    ExecutionStatus.TIMEOUT: Verdict.WALL_TIMEOUT,
    ExecutionStatus.CANCELLED: Verdict.CANCELLED,
}


def _verdict_of(status: Any) -> Verdict | None:
    try:
        return _VERDICTS[ExecutionStatus(status)]
    except ValueError:  # no status: the field's own check says so
        return None


class Usage(BaseModel, defer_build=True):
    """What an execution used."""

    wall: float = 0.0
    """Seconds."""
    cpu_user: float = 0.0
    """Seconds of processor time in the program."""
    cpu_system: float = 0.0
    """Seconds of processor time in the kernel."""
    peak_memory: int | None = None
    """Bytes; None where it could not be measured."""
    processes: int | None = None
    """Processes started; None where they could not be counted."""
    source: str = ""
    """Where the figures come from: `cgroup-v2`, `cgroup-v1`, `rusage`, …"""


class IsolationReport(BaseModel, defer_build=True):
    """What stands between the sandbox and the host."""

    tier: str
    guards: dict[str, str] = Field(default_factory=dict[str, str])
    """Guards by name: `on`, `off` or `n/a`."""
    kernel: str = ""
    versions: dict[str, str] = Field(default_factory=dict[str, str])


class Outcome(BaseModel, defer_build=True):
    """How an execution ended. Only `status` decides whether it was a success."""

    status: ExecutionStatus
    execution_time: Seconds = 0.0
    """Seconds."""
    timestamp: UtcTime = Field(default_factory=_now)
    """When it began, in UTC."""
    truncated: dict[str, int] = Field(default_factory=dict[str, int])
    """Bytes lost, by stream (`stdout`, `stderr`); a stream that is whole is not in it."""
    verdict: Verdict = Verdict.OK
    """Why it ended as it did."""
    signal: int | None = None
    """The number of the signal that ended it."""
    usage: Usage | None = None
    isolation: str | None = None
    """The tier of isolation it ran in."""
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])

    @model_validator(mode="before")
    @classmethod
    def _derive_verdict(cls, values: Any) -> Any:
        # Other people's tools know a status only.
        if not isinstance(values, dict):
            return values
        given = cast("dict[str, Any]", values)
        verdict = _verdict_of(given.get("status"))
        if given.get("verdict") is None and verdict is not None:
            return {**given, "verdict": verdict}
        return given

    @property
    def success(self) -> bool:
        """Whether it ended well."""
        return self.status == ExecutionStatus.SUCCESS


class CommandResult(Outcome):
    """What a command did."""

    command: str | list[str]
    """As the caller gave it: a shell line or an argv."""
    exit_code: int
    """The program's own; 128 + N for signal N; -1 for a time-out."""
    stdout: str = ""
    stderr: str = ""
    error: str | None = None
    """Why it is no success."""


class ExecutionResult(Outcome):
    """What an execution gave, whatever was executed."""

    output: Any = None
    """Text, for everything that runs programs."""
    error: str | None = None
    """What went wrong and what was written to stderr; None where there is neither."""


class ToolResult(ExecutionResult):
    """What a tool gave."""

    tool_name: str
    exit_code: int | None = None
    """The program's, as in `CommandResult`; None where there was none."""
    stdout: str = ""
    stderr: str = ""


class FileInfo(BaseModel, defer_build=True):
    """One file, folder or other thing in a sandbox."""

    path: str
    name: str
    type: Literal["file", "directory", "symlink", "other"]
    size: int
    """Bytes."""
    mode: int
    """Permission bits."""
    modified: float
    """Seconds since the epoch."""


class FileEvent(BaseModel, defer_build=True):
    """One change that a watch of a folder tells of."""

    type: Literal["watching", "created", "modified", "deleted", "lost"]
    """`watching` comes first: from then on changes are told. What is moved in was `created`, what
    is moved out `deleted`. `lost`: there was more than could be told, so look for yourself."""
    path: str
    """What changed; for `watching` and `lost` the watched folder itself. The last event is that it
    was `deleted`, or moved."""
    directory: bool = False
    """Whether that is a folder."""


class SearchMatch(BaseModel, defer_build=True):
    """One line of a file that a search found."""

    path: str
    line: int
    """From 1."""
    text: str


class PortInfo(BaseModel, defer_build=True):
    """A TCP port on which a program in a sandbox takes connections."""

    port: int
    address: str
    """Where it listens, `0.0.0.0` and `::` for everywhere."""
    pid: int | None = None
    """The process that has it, as seen inside; None where nobody may know."""
    process: str | None = None
    """That process's own name, of at most 64 characters. A program can call itself anything."""


class SandboxInfo(BaseModel, defer_build=True):
    """A sandbox as its manager describes it."""

    id: str
    status: SandboxStatus
    paused: bool = False
    """Whether everything in it stands still."""
    type: str
    config: dict[str, Any] = Field(default_factory=dict[str, Any])
    created_at: UtcTime = Field(default_factory=_now)
    updated_at: UtcTime = Field(default_factory=_now)
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    available_tools: list[str] = Field(default_factory=list[str])


class HealthCheckResult(BaseModel, defer_build=True):
    """How a server is."""

    healthy: bool
    version: str
    uptime: float | None = None
    """Seconds."""
    active_sandboxes: int = 0
    system_info: dict[str, Any] = Field(default_factory=dict[str, Any])
