"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.manager import HttpSandboxManager as HttpSandboxManager
from ms_enclave.manager import LocalSandboxManager as LocalSandboxManager
from ms_enclave.manager import SandboxManager as SandboxManager
from ms_enclave.manager import SandboxManagerFactory as SandboxManagerFactory
from ms_enclave.manager import VolcengineSandboxManager as VolcengineSandboxManager

__all__ = [
    "HttpSandboxManager",
    "LocalSandboxManager",
    "SandboxManager",
    "SandboxManagerFactory",
    "VolcengineSandboxManager",
]
