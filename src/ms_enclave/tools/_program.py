"""The parameters that every tool that runs a program has."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from ms_enclave.model import SandboxType, ToolResult
from ms_enclave.tools.sandbox_tool import SandboxTool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ms_enclave.context import SandboxContext

__all__ = ["PROGRAM_PARAMETERS", "BuiltinTool", "ProgramOptions", "seconds"]


def seconds(description: str) -> dict[str, Any]:
    """The schema of a time-out."""
    return {"type": "number", "description": description, "exclusiveMinimum": 0}


PROGRAM_PARAMETERS: dict[str, Any] = {
    "timeout": seconds("Seconds after which the program is ended. Default: the sandbox's own."),
    "stdin": {"type": "string", "description": "Text that the program reads as its input."},
    "cwd": {"type": "string", "description": "The folder in which the program starts."},
    "env": {
        "type": "object",
        "description": "Environment variables besides the sandbox's own.",
        "additionalProperties": {"type": "string"},
    },
    "user": {"type": "string", "description": "The user of the sandbox who runs the program."},
}


class ProgramOptions(TypedDict, total=False):
    """`PROGRAM_PARAMETERS`, as a sandbox takes them."""

    timeout: float | None
    stdin: str | None
    cwd: str | None
    env: dict[str, str] | None
    user: str | None


class BuiltinTool(SandboxTool):
    """A tool of ours: checks its parameters when called directly, too."""

    _sandbox_types: ClassVar[Sequence[str] | None] = (SandboxType.DOCKER, SandboxType.VOLCENGINE)
    _capabilities: ClassVar[frozenset[str] | None] = frozenset()

    async def execute(self, sandbox_context: SandboxContext, **kwargs: Any) -> ToolResult:
        """Check the parameters, then do the work."""
        return await self._run(sandbox_context, **self.check_parameters(kwargs))

    @abstractmethod
    async def _run(self, context: SandboxContext, **arguments: Any) -> ToolResult:
        """Do the work, on parameters that fit the schema."""
