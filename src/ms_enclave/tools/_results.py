"""Turns what a command did into what a tool says. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ms_enclave.model import CommandResult, ExecutionStatus, ToolResult

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["error_text", "from_command"]


def from_command(
    tool_name: str, result: CommandResult, metadata: Mapping[str, Any] | None = None
) -> ToolResult:
    """The result of a tool that ran one command: same figures, `output` is what it printed."""
    return ToolResult(
        tool_name=tool_name,
        status=result.status,
        output=result.stdout,
        error=error_text(result),
        metadata={**result.metadata, **(metadata or {})},
        execution_time=result.execution_time,
        timestamp=result.timestamp,
        exit_code=result.exit_code,
        stdout=result.stdout,
        stderr=result.stderr,
        truncated=result.truncated,
        verdict=result.verdict,
        signal=result.signal,
        usage=result.usage,
        isolation=result.isolation,
    )


def error_text(result: CommandResult) -> str | None:
    """What went wrong, for a reader: why it ended, then what it wrote to stderr.

    A program that succeeded may have written there too: that text alone, or None.
    """
    if result.status == ExecutionStatus.SUCCESS:
        return result.stderr or None
    why = result.error or f"Command failed with exit code {result.exit_code}"
    if not result.stderr or result.stderr in why:
        return why
    return f"{why}\n{result.stderr}"
