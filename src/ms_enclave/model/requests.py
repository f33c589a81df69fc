"""What can be asked of a sandbox by message."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ExecuteCodeRequest",
    "ExecuteCommandRequest",
    "FileOperationRequest",
    "ReadFileRequest",
    "ToolExecutionRequest",
    "WriteFileRequest",
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)

    sandbox_id: str | None = None
    timeout: float | None = Field(default=None, gt=0)
    """Seconds."""


class ExecuteCodeRequest(_Request):
    """Run a program's source."""

    code: str
    language: str = "python"


class ExecuteCommandRequest(_Request):
    """Run a command: a shell line or an argv."""

    command: str | list[str]
    working_dir: str | None = None
    env: dict[str, str] | None = None


class FileOperationRequest(_Request):
    """Do something with a file."""

    operation: str
    file_path: str
    content: str | None = None
    encoding: str = "utf-8"


class ReadFileRequest(_Request):
    """Read a file."""

    file_path: str
    encoding: str = "utf-8"


class WriteFileRequest(_Request):
    """Write a file."""

    file_path: str
    content: str
    encoding: str = "utf-8"


class ToolExecutionRequest(_Request):
    """Use a tool of a sandbox."""

    sandbox_id: str  # pyright: ignore[reportGeneralTypeIssues, reportIncompatibleVariableOverride]
    tool_name: str
    parameters: dict[str, Any] = Field(default_factory=dict[str, Any])
