"""Tools: what a model may call in a sandbox.

A tool sees only `SandboxContext`. Each is imported when its name is first used, so that a sandbox
without tools pays for none; those of other packages, and all by name, come from `ToolFactory`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms_enclave.tools.background_command import BackgroundCommand
    from ms_enclave.tools.base import Tool, ToolFactory, register_tool
    from ms_enclave.tools.checkpoints import CheckpointTool, RollbackTool
    from ms_enclave.tools.file_operation import FileOperation
    from ms_enclave.tools.multi_code_executor import MultiCodeExecutor
    from ms_enclave.tools.notebook_executor import NotebookExecutor
    from ms_enclave.tools.python_executor import PythonExecutor
    from ms_enclave.tools.sandbox_tool import SandboxTool
    from ms_enclave.tools.shell_executor import ShellExecutor
    from ms_enclave.tools.tool_info import ToolInfo, ToolParam, ToolParams

__all__ = [
    "BackgroundCommand",
    "CheckpointTool",
    "FileOperation",
    "MultiCodeExecutor",
    "NotebookExecutor",
    "PythonExecutor",
    "RollbackTool",
    "SandboxTool",
    "ShellExecutor",
    "Tool",
    "ToolFactory",
    "ToolInfo",
    "ToolParam",
    "ToolParams",
    "register_tool",
]

_HOMES = {
    "BackgroundCommand": "background_command",
    "CheckpointTool": "checkpoints",
    "FileOperation": "file_operation",
    "MultiCodeExecutor": "multi_code_executor",
    "NotebookExecutor": "notebook_executor",
    "PythonExecutor": "python_executor",
    "RollbackTool": "checkpoints",
    "SandboxTool": "sandbox_tool",
    "ShellExecutor": "shell_executor",
    "Tool": "base",
    "ToolFactory": "base",
    "ToolInfo": "tool_info",
    "ToolParam": "tool_info",
    "ToolParams": "tool_info",
    "register_tool": "base",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # bound, so that this is asked once for each name
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
