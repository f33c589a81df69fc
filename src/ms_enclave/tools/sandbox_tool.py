"""A tool that belongs to certain sandbox types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ms_enclave.tools.base import Tool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ms_enclave.tools.tool_info import ToolParams

__all__ = ["SandboxTool"]


class SandboxTool(Tool):
    """A `Tool` for the sandbox types in `_sandbox_types`, and for those compatible with them.

    All of `_name`, `_sandbox_types`, `_description` and `_parameters` can be given by the class or,
    for one object, to the constructor.
    """

    def __init__(
        self,
        name: str | None = None,
        sandbox_types: Sequence[str] | None = None,
        description: str | None = None,
        parameters: ToolParams | Mapping[str, Any] | None = None,
        enabled: bool = True,
        timeout: float | None = None,
    ) -> None:
        super().__init__(name, description, parameters, enabled, timeout)
        self._required_types = list(sandbox_types or self._sandbox_types or ())

    @property
    def required_sandbox_types(self) -> list[str]:
        """The sandbox types that the tool was made for."""
        return list(self._required_types)
