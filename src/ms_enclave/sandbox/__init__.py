"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.boxes import DockerSandbox as DockerSandbox
from ms_enclave.boxes import Sandbox as Sandbox
from ms_enclave.boxes import SandboxFactory as SandboxFactory
from ms_enclave.manager import HttpSandboxManager as HttpSandboxManager
from ms_enclave.manager import LocalSandboxManager as LocalSandboxManager
from ms_enclave.model import DockerSandboxConfig as DockerSandboxConfig
from ms_enclave.model import ExecuteCodeRequest as ExecuteCodeRequest
from ms_enclave.model import ExecuteCommandRequest as ExecuteCommandRequest
from ms_enclave.model import ExecutionStatus as ExecutionStatus
from ms_enclave.model import HealthCheckResult as HealthCheckResult
from ms_enclave.model import ReadFileRequest as ReadFileRequest
from ms_enclave.model import SandboxConfig as SandboxConfig
from ms_enclave.model import SandboxInfo as SandboxInfo
from ms_enclave.model import SandboxStatus as SandboxStatus
from ms_enclave.model import ToolExecutionRequest as ToolExecutionRequest
from ms_enclave.model import ToolResult as ToolResult
from ms_enclave.model import WriteFileRequest as WriteFileRequest
from ms_enclave.server import SandboxServer as SandboxServer
from ms_enclave.server import create_server as create_server
from ms_enclave.tools import PythonExecutor as PythonExecutor
from ms_enclave.tools import Tool as Tool
from ms_enclave.tools import ToolFactory as ToolFactory

__all__ = [
    "DockerSandbox",
    "DockerSandboxConfig",
    "ExecuteCodeRequest",
    "ExecuteCommandRequest",
    "ExecutionStatus",
    "HealthCheckResult",
    "HttpSandboxManager",
    "LocalSandboxManager",
    "PythonExecutor",
    "ReadFileRequest",
    "Sandbox",
    "SandboxConfig",
    "SandboxFactory",
    "SandboxInfo",
    "SandboxServer",
    "SandboxStatus",
    "Tool",
    "ToolExecutionRequest",
    "ToolFactory",
    "ToolResult",
    "WriteFileRequest",
    "create_server",
]
