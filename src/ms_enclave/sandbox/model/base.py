"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.model import ExecutionStatus as ExecutionStatus
from ms_enclave.model import SandboxManagerType as SandboxManagerType
from ms_enclave.model import SandboxStatus as SandboxStatus
from ms_enclave.model import SandboxType as SandboxType
from ms_enclave.model import ToolType as ToolType

__all__ = ["ExecutionStatus", "SandboxManagerType", "SandboxStatus", "SandboxType", "ToolType"]
