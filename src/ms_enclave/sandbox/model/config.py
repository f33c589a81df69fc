"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.model import DockerNotebookConfig as DockerNotebookConfig
from ms_enclave.model import DockerSandboxConfig as DockerSandboxConfig
from ms_enclave.model import FileOperationConfig as FileOperationConfig
from ms_enclave.model import PythonExecutorConfig as PythonExecutorConfig
from ms_enclave.model import SandboxConfig as SandboxConfig
from ms_enclave.model import SandboxManagerConfig as SandboxManagerConfig
from ms_enclave.model import ShellExecutorConfig as ShellExecutorConfig
from ms_enclave.model import ToolConfig as ToolConfig
from ms_enclave.model import VolcengineSandboxConfig as VolcengineSandboxConfig
from ms_enclave.model import VolcengineSandboxManagerConfig as VolcengineSandboxManagerConfig

__all__ = [
    "DockerNotebookConfig",
    "DockerSandboxConfig",
    "FileOperationConfig",
    "PythonExecutorConfig",
    "SandboxConfig",
    "SandboxManagerConfig",
    "ShellExecutorConfig",
    "ToolConfig",
    "VolcengineSandboxConfig",
    "VolcengineSandboxManagerConfig",
]
