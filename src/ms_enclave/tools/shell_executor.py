"""`shell_executor`: a shell line or a program, run in the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Unpack, override

from ms_enclave.errors import ConfigError
from ms_enclave.tools._program import PROGRAM_PARAMETERS, BuiltinTool, ProgramOptions
from ms_enclave.tools._results import from_command

if TYPE_CHECKING:
    from ms_enclave.context import SandboxContext
    from ms_enclave.model import ToolResult
    from ms_enclave.tools.tool_info import ToolParams

__all__ = ["ShellExecutor"]


class ShellExecutor(BuiltinTool):
    """Runs a string with the sandbox's shell (bash where it has one), a list as it is."""

    _name = "shell_executor"
    _description = "Run a Bash command in an isolated sandbox and return what it prints."
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {
            "command": {
                "description": (
                    "A command line for the shell, or a program and its arguments as a list, "
                    "which no shell sees."
                ),
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}},
                ],
            },
            **PROGRAM_PARAMETERS,
        },
        "required": ["command"],
    }

    @override
    async def _run(
        self,
        context: SandboxContext,
        *,
        command: str | list[str],
        **options: Unpack[ProgramOptions],
    ) -> ToolResult:
        if not (command.strip() if isinstance(command, str) else "".join(command[:1])):
            raise ConfigError("No command provided")
        return from_command(self.name, await context.execute_command(command, **options))
