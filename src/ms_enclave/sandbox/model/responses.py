"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.model import CommandResult as CommandResult
from ms_enclave.model import ExecutionResult as ExecutionResult
from ms_enclave.model import HealthCheckResult as HealthCheckResult
from ms_enclave.model import SandboxInfo as SandboxInfo
from ms_enclave.model import ToolResult as ToolResult

__all__ = ["CommandResult", "ExecutionResult", "HealthCheckResult", "SandboxInfo", "ToolResult"]
