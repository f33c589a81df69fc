"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.model import ExecuteCodeRequest as ExecuteCodeRequest
from ms_enclave.model import ExecuteCommandRequest as ExecuteCommandRequest
from ms_enclave.model import FileOperationRequest as FileOperationRequest
from ms_enclave.model import ReadFileRequest as ReadFileRequest
from ms_enclave.model import ToolExecutionRequest as ToolExecutionRequest
from ms_enclave.model import WriteFileRequest as WriteFileRequest

__all__ = [
    "ExecuteCodeRequest",
    "ExecuteCommandRequest",
    "FileOperationRequest",
    "ReadFileRequest",
    "ToolExecutionRequest",
    "WriteFileRequest",
]
