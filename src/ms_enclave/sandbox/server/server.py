"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.server import SandboxServer as SandboxServer
from ms_enclave.server import create_server as create_server

__all__ = ["SandboxServer", "create_server"]
