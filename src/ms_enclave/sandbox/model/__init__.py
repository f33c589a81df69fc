"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.model import DEFAULT_POOL_EXECUTION_TIMEOUT as DEFAULT_POOL_EXECUTION_TIMEOUT
from ms_enclave.model import CommandResult as CommandResult
from ms_enclave.model import DockerNotebookConfig as DockerNotebookConfig
from ms_enclave.model import DockerSandboxConfig as DockerSandboxConfig
from ms_enclave.model import ExecuteCodeRequest as ExecuteCodeRequest
from ms_enclave.model import ExecuteCommandRequest as ExecuteCommandRequest
from ms_enclave.model import ExecutionResult as ExecutionResult
from ms_enclave.model import ExecutionStatus as ExecutionStatus
from ms_enclave.model import FileOperationConfig as FileOperationConfig
from ms_enclave.model import FileOperationRequest as FileOperationRequest
from ms_enclave.model import HealthCheckResult as HealthCheckResult
from ms_enclave.model import PythonExecutorConfig as PythonExecutorConfig
from ms_enclave.model import ReadFileRequest as ReadFileRequest
from ms_enclave.model import SandboxConfig as SandboxConfig
from ms_enclave.model import SandboxInfo as SandboxInfo
from ms_enclave.model import SandboxManagerConfig as SandboxManagerConfig
from ms_enclave.model import SandboxManagerType as SandboxManagerType
from ms_enclave.model import SandboxStatus as SandboxStatus
from ms_enclave.model import SandboxType as SandboxType
from ms_enclave.model import ShellExecutorConfig as ShellExecutorConfig
from ms_enclave.model import ToolConfig as ToolConfig
from ms_enclave.model import ToolExecutionRequest as ToolExecutionRequest
from ms_enclave.model import ToolResult as ToolResult
from ms_enclave.model import ToolType as ToolType
from ms_enclave.model import VolcengineSandboxConfig as VolcengineSandboxConfig
from ms_enclave.model import VolcengineSandboxManagerConfig as VolcengineSandboxManagerConfig
from ms_enclave.model import WriteFileRequest as WriteFileRequest

__all__ = [
    "DEFAULT_POOL_EXECUTION_TIMEOUT",
    "CommandResult",
    "DockerNotebookConfig",
    "DockerSandboxConfig",
    "ExecuteCodeRequest",
    "ExecuteCommandRequest",
    "ExecutionResult",
    "ExecutionStatus",
    "FileOperationConfig",
    "FileOperationRequest",
    "HealthCheckResult",
    "PythonExecutorConfig",
    "ReadFileRequest",
    "SandboxConfig",
    "SandboxInfo",
    "SandboxManagerConfig",
    "SandboxManagerType",
    "SandboxStatus",
    "SandboxType",
    "ShellExecutorConfig",
    "ToolConfig",
    "ToolExecutionRequest",
    "ToolResult",
    "ToolType",
    "VolcengineSandboxConfig",
    "VolcengineSandboxManagerConfig",
    "WriteFileRequest",
]
