"""`python_executor`: Python source, run in the sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Unpack, override

from ms_enclave.errors import ConfigError
from ms_enclave.tools._cells import run_cell
from ms_enclave.tools._program import PROGRAM_PARAMETERS, BuiltinTool, ProgramOptions
from ms_enclave.tools._results import from_command

if TYPE_CHECKING:
    from ms_enclave.context import SandboxContext
    from ms_enclave.model import ToolResult
    from ms_enclave.tools.tool_info import ToolParams

__all__ = ["PythonExecutor"]

_FRESH_ONLY = ("cwd", "env", "user")
"""What only a fresh program can have."""


class PythonExecutor(BuiltinTool):
    """Runs Python source as a fresh program; what it prints is the output."""

    _name = "python_executor"
    _description = (
        "Run Python code in an isolated sandbox and return what it prints. "
        "Print whatever you want to see."
    )
    _capabilities: ClassVar[frozenset[str] | None] = frozenset({"python"})
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {
            "code": {"type": "string", "description": "The Python source to run."},
            **PROGRAM_PARAMETERS,
            "interactive": {
                "type": "boolean",
                "description": (
                    "True keeps variables from one call to the next, False starts afresh. "
                    "Default: a notebook keeps them, other sandboxes do not."
                ),
            },
        },
        "required": ["code"],
    }

    @override
    async def _run(
        self,
        context: SandboxContext,
        *,
        code: str,
        interactive: bool | None = None,
        **options: Unpack[ProgramOptions],
    ) -> ToolResult:
        if not code.strip():
            raise ConfigError("No code provided")
        if interactive is None:
            other = any(options.get(name) is not None for name in _FRESH_ONLY)
            interactive = "notebook" in context.capabilities and not other
        if interactive:
            return await self._run_cell(context, code, options)
        return from_command(self.name, await context.run_code(code, **options))

    async def _run_cell(
        self, context: SandboxContext, code: str, options: ProgramOptions
    ) -> ToolResult:
        """Run it where the last calls' variables are: by the sandbox's user, in one folder."""
        other = [name for name in _FRESH_ONLY if options.get(name) is not None]
        if other:
            raise ConfigError(f"{', '.join(other)}: not where variables are kept (interactive)")
        return await run_cell(
            context, self.name, code, timeout=options.get("timeout"), stdin=options.get("stdin")
        )
