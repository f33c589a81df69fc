"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.tools import Tool as Tool
from ms_enclave.tools import ToolFactory as ToolFactory
from ms_enclave.tools import register_tool as register_tool

__all__ = ["Tool", "ToolFactory", "register_tool"]
