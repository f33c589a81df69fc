"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.model import DEFAULT_POOL_EXECUTION_TIMEOUT as DEFAULT_POOL_EXECUTION_TIMEOUT

__all__ = ["DEFAULT_POOL_EXECUTION_TIMEOUT"]
