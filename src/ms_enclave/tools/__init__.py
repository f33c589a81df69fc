"""Tools: what a model may call in a sandbox.

A tool sees only `SandboxContext`. Ours are imported with this package; those of other packages,
and all by name, come from `ToolFactory`.
"""

from ms_enclave.tools.base import Tool, ToolFactory, register_tool
from ms_enclave.tools.file_operation import FileOperation
from ms_enclave.tools.multi_code_executor import MultiCodeExecutor
from ms_enclave.tools.python_executor import PythonExecutor
from ms_enclave.tools.sandbox_tool import SandboxTool
from ms_enclave.tools.shell_executor import ShellExecutor
from ms_enclave.tools.tool_info import ToolInfo, ToolParam, ToolParams

__all__ = [
    "FileOperation",
    "MultiCodeExecutor",
    "PythonExecutor",
    "SandboxTool",
    "ShellExecutor",
    "Tool",
    "ToolFactory",
    "ToolInfo",
    "ToolParam",
    "ToolParams",
    "register_tool",
]
