"""Run code that a model wrote: isolated, in milliseconds, anywhere.

Every public name is here, and is imported when it is first used: importing the package costs
nothing and loads no backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms_enclave import (
        blocking,
        errors,
        model,
    )
    from ms_enclave.boxes import (
        Command,
        Files,
        Kernel,
        PortStream,
        Sandbox,
        SandboxFactory,
        Shell,
        register_sandbox,
    )
    from ms_enclave.context import (
        SandboxContext,
    )
    from ms_enclave.errors import (
        AuthenticationError,
        CapabilityError,
        CommandNotFoundError,
        ConfigError,
        EnclaveError,
        EngineUnavailableError,
        ForkRefusedError,
        IsolationUnavailableError,
        NotAllowedError,
        PoolEmptyError,
        PoolTimeoutError,
        PortRefusedError,
        PortTimeoutError,
        QuotaExceededError,
        SandboxLostError,
        SandboxNotFoundError,
        SandboxStartError,
        SandboxStateError,
        ServerUnreachableError,
        SnapshotNotFoundError,
        SnapshotStoreError,
        StoreUnavailableError,
        ToolNotFoundError,
        UnknownTypeError,
    )
    from ms_enclave.manager import (
        LocalSandboxManager,
        SandboxManager,
        SandboxManagerFactory,
        register_manager,
    )
    from ms_enclave.model import (
        CellError,
        Checkpoint,
        CommandInfo,
        CommandResult,
        Diagnosis,
        DockerNotebookConfig,
        DockerSandboxConfig,
        ExecuteCodeRequest,
        ExecuteCommandRequest,
        Execution,
        ExecutionResult,
        ExecutionStatus,
        FileChange,
        FileEvent,
        FileInfo,
        FileOperationConfig,
        FileOperationRequest,
        HealthCheckResult,
        IsolationReport,
        KernelEvent,
        KernelInfo,
        Limits,
        OutputChunk,
        OutputEvent,
        PortInfo,
        Problem,
        ProcessSandboxConfig,
        PythonExecutorConfig,
        ReadFileRequest,
        ResolvedLimits,
        SandboxConfig,
        SandboxInfo,
        SandboxManagerConfig,
        SandboxManagerType,
        SandboxStatus,
        SandboxType,
        SearchMatch,
        ShellExecutorConfig,
        SnapshotInfo,
        ToolConfig,
        ToolExecutionRequest,
        ToolResult,
        ToolType,
        Usage,
        Verdict,
        VolcengineSandboxConfig,
        VolcengineSandboxManagerConfig,
        WriteFileRequest,
    )
    from ms_enclave.tools import (
        BackgroundCommand,
        CheckpointTool,
        FileOperation,
        MultiCodeExecutor,
        NotebookExecutor,
        PythonExecutor,
        RollbackTool,
        SandboxTool,
        ShellExecutor,
        Tool,
        ToolFactory,
        ToolInfo,
        ToolParam,
        ToolParams,
        register_tool,
    )
    from ms_enclave.version import (
        __version__,
    )

__all__ = [
    "AuthenticationError",
    "BackgroundCommand",
    "CapabilityError",
    "CellError",
    "Checkpoint",
    "CheckpointTool",
    "Command",
    "CommandInfo",
    "CommandNotFoundError",
    "CommandResult",
    "ConfigError",
    "Diagnosis",
    "DockerNotebookConfig",
    "DockerSandboxConfig",
    "EnclaveError",
    "EngineUnavailableError",
    "ExecuteCodeRequest",
    "ExecuteCommandRequest",
    "Execution",
    "ExecutionResult",
    "ExecutionStatus",
    "FileChange",
    "FileEvent",
    "FileInfo",
    "FileOperation",
    "FileOperationConfig",
    "FileOperationRequest",
    "Files",
    "ForkRefusedError",
    "HealthCheckResult",
    "IsolationReport",
    "IsolationUnavailableError",
    "Kernel",
    "KernelEvent",
    "KernelInfo",
    "Limits",
    "LocalSandboxManager",
    "MultiCodeExecutor",
    "NotAllowedError",
    "NotebookExecutor",
    "OutputChunk",
    "OutputEvent",
    "PoolEmptyError",
    "PoolTimeoutError",
    "PortInfo",
    "PortRefusedError",
    "PortStream",
    "PortTimeoutError",
    "Problem",
    "ProcessSandboxConfig",
    "PythonExecutor",
    "PythonExecutorConfig",
    "QuotaExceededError",
    "ReadFileRequest",
    "ResolvedLimits",
    "RollbackTool",
    "Sandbox",
    "SandboxConfig",
    "SandboxContext",
    "SandboxFactory",
    "SandboxInfo",
    "SandboxLostError",
    "SandboxManager",
    "SandboxManagerConfig",
    "SandboxManagerFactory",
    "SandboxManagerType",
    "SandboxNotFoundError",
    "SandboxStartError",
    "SandboxStateError",
    "SandboxStatus",
    "SandboxTool",
    "SandboxType",
    "SearchMatch",
    "ServerUnreachableError",
    "Shell",
    "ShellExecutor",
    "ShellExecutorConfig",
    "SnapshotInfo",
    "SnapshotNotFoundError",
    "SnapshotStoreError",
    "StoreUnavailableError",
    "Tool",
    "ToolConfig",
    "ToolExecutionRequest",
    "ToolFactory",
    "ToolInfo",
    "ToolNotFoundError",
    "ToolParam",
    "ToolParams",
    "ToolResult",
    "ToolType",
    "UnknownTypeError",
    "Usage",
    "Verdict",
    "VolcengineSandboxConfig",
    "VolcengineSandboxManagerConfig",
    "WriteFileRequest",
    "__version__",
    "blocking",
    "errors",
    "model",
    "register_manager",
    "register_sandbox",
    "register_tool",
]

_SUBMODULES = frozenset({"blocking", "errors", "model"})
_HOMES = ("version", "errors", "model", "context", "tools", "boxes", "manager")
"""Where the names live, the cheapest first: a name is looked for in what is loaded anyway."""


def __getattr__(name: str) -> Any:
    # Bound here on first use, so that this is asked once for each name.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    for home in _HOMES:
        module = import_module(f"{__name__}.{home}")
        if hasattr(module, name):
            globals()[name] = value = getattr(module, name)
            return value
    raise AttributeError(f"{name} is nowhere in {__name__}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
