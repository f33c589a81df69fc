"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.manager import HttpSandboxManager as HttpSandboxManager

__all__ = ["HttpSandboxManager"]
