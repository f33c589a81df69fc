"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.tools.tool_info import ToolInfo as ToolInfo
from ms_enclave.tools.tool_info import ToolParam as ToolParam
from ms_enclave.tools.tool_info import ToolParams as ToolParams
from ms_enclave.tools.tool_info import parse_docstring as parse_docstring
from ms_enclave.tools.tool_info import parse_tool_info as parse_tool_info

__all__ = ["ToolInfo", "ToolParam", "ToolParams", "parse_docstring", "parse_tool_info"]
