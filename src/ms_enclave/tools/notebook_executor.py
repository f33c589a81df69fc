"""`notebook_executor`: a cell in a notebook that remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

from typing_extensions import Unpack, override

from ms_enclave.errors import ConfigError
from ms_enclave.model import SandboxType
from ms_enclave.tools._cells import run_cell
from ms_enclave.tools._program import BuiltinTool, seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ms_enclave.context import SandboxContext
    from ms_enclave.model import ToolResult
    from ms_enclave.tools.tool_info import ToolParams

__all__ = ["NotebookExecutor"]


class _CellOptions(TypedDict, total=False):
    timeout: float
    restart: bool


class NotebookExecutor(BuiltinTool):
    """Runs cells in the sandbox's kernel, which keeps what they define."""

    _name = "notebook_executor"
    _description = (
        "Run a cell in a Python notebook in an isolated sandbox. Variables, imports and functions "
        "stay for the next call. Returns what the cell prints, the value of its last expression "
        "and what it displays. `await` works at top level. A cell that takes too long is "
        "interrupted, and the variables stay."
    )
    _sandbox_types: ClassVar[Sequence[str] | None] = (SandboxType.DOCKER_NOTEBOOK,)
    _capabilities: ClassVar[frozenset[str] | None] = frozenset({"kernel"})
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {
            "code": {"type": "string", "description": "The Python source of the cell."},
            "timeout": seconds(
                "Seconds after which the cell is interrupted. Default: the sandbox's own."
            ),
            "restart": {
                "type": "boolean",
                "description": "True forgets all variables before the cell. Default: false.",
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
        **options: Unpack[_CellOptions],
    ) -> ToolResult:
        if not code.strip():
            raise ConfigError("No code provided")
        timeout, anew = options.get("timeout"), options.get("restart", False)
        return await run_cell(context, self.name, code, timeout=timeout, anew=anew)
