"""Data: names, configs, requests and results. No I/O, and no backend behind it."""

from __future__ import annotations

from ms_enclave.model.checkpoints import Checkpoint, FileChange
from ms_enclave.model.commands import CommandInfo, OutputChunk, OutputEvent
from ms_enclave.model.config import (
    DockerNotebookConfig,
    DockerSandboxConfig,
    FileOperationConfig,
    ProcessSandboxConfig,
    PythonExecutorConfig,
    SandboxConfig,
    SandboxManagerConfig,
    ShellExecutorConfig,
    ToolConfig,
    VolcengineSandboxConfig,
    VolcengineSandboxManagerConfig,
)
from ms_enclave.model.constants import DEFAULT_POOL_EXECUTION_TIMEOUT
from ms_enclave.model.diagnosis import Diagnosis, Problem
from ms_enclave.model.enums import (
    ExecutionStatus,
    SandboxManagerType,
    SandboxStatus,
    SandboxType,
    ToolType,
    Verdict,
)
from ms_enclave.model.kernels import CellError, Execution, KernelEvent, KernelInfo
from ms_enclave.model.limits import Limits, ResolvedLimits
from ms_enclave.model.requests import (
    ExecuteCodeRequest,
    ExecuteCommandRequest,
    FileOperationRequest,
    ReadFileRequest,
    ToolExecutionRequest,
    WriteFileRequest,
)
from ms_enclave.model.results import (
    CommandResult,
    ExecutionResult,
    FileEvent,
    FileInfo,
    HealthCheckResult,
    IsolationReport,
    PortInfo,
    SandboxInfo,
    SearchMatch,
    ToolResult,
    Usage,
)
from ms_enclave.model.snapshots import SnapshotInfo

__all__ = [
    "DEFAULT_POOL_EXECUTION_TIMEOUT",
    "CellError",
    "Checkpoint",
    "CommandInfo",
    "CommandResult",
    "Diagnosis",
    "DockerNotebookConfig",
    "DockerSandboxConfig",
    "ExecuteCodeRequest",
    "ExecuteCommandRequest",
    "Execution",
    "ExecutionResult",
    "ExecutionStatus",
    "FileChange",
    "FileEvent",
    "FileInfo",
    "FileOperationConfig",
    "FileOperationRequest",
    "HealthCheckResult",
    "IsolationReport",
    "KernelEvent",
    "KernelInfo",
    "Limits",
    "OutputChunk",
    "OutputEvent",
    "PortInfo",
    "Problem",
    "ProcessSandboxConfig",
    "PythonExecutorConfig",
    "ReadFileRequest",
    "ResolvedLimits",
    "SandboxConfig",
    "SandboxInfo",
    "SandboxManagerConfig",
    "SandboxManagerType",
    "SandboxStatus",
    "SandboxType",
    "SearchMatch",
    "ShellExecutorConfig",
    "SnapshotInfo",
    "ToolConfig",
    "ToolExecutionRequest",
    "ToolResult",
    "ToolType",
    "Usage",
    "Verdict",
    "VolcengineSandboxConfig",
    "VolcengineSandboxManagerConfig",
    "WriteFileRequest",
]
