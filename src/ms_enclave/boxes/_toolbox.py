"""The tools of one sandbox: made from its config or added by hand, looked up by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ms_enclave.errors import CapabilityError, ConfigError, ToolNotFoundError

if TYPE_CHECKING:
    from ms_enclave.context import SandboxContext
    from ms_enclave.tools.base import Tool

__all__ = ["Toolbox"]


class Toolbox:
    """Tools by name. Holds no state of any run; safe to read from any thread."""

    def __init__(self) -> None:
        self._tools: dict[str, Tool] = {}

    def load(self, tools_config: Mapping[str, Any]) -> None:
        """Make the tools that a config names, with their options; those that are there stay.

        Raises:
            UnknownTypeError: no tool has that name.
            ConfigError: a tool does not take such options.
        """
        if not tools_config:
            return
        from ms_enclave.tools.base import ToolFactory  # a sandbox without tools pays for none

        for name, options in tools_config.items():
            if name not in self._tools:
                self._tools[name] = ToolFactory.create_tool(name, **_options(name, options))

    def check(self, context: SandboxContext) -> None:
        """Refuse tools that this sandbox cannot serve.

        Raises:
            CapabilityError: a tool needs something that the sandbox lacks.
            ConfigError: a tool is made for other types of sandbox.
        """
        for tool in self._tools.values():
            if tool.is_compatible_with(context):
                continue
            lacking = sorted((tool.required_capabilities or frozenset()) - context.capabilities)
            if lacking:
                raise CapabilityError(lacking[0])
            types = ", ".join(tool.required_sandbox_types)
            where = f"in a {context.sandbox_type} sandbox, only in: {types}"
            raise ConfigError(f"Tool {tool.name} cannot be used {where}")

    def add(self, tool: Tool) -> None:
        """Put a tool in, replacing one of the same name."""
        from ms_enclave.tools.base import Tool

        if not isinstance(tool, Tool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a tool must be a Tool, not {type(tool).__name__}")
        self._tools[tool.name] = tool

    def find(self, name: str) -> Tool | None:
        """The tool of that name, enabled or not."""
        return self._tools.get(name)

    def get(self, name: str) -> Tool:
        """The tool of that name.

        Raises:
            ToolNotFoundError: there is none, or it is disabled.
        """
        tool = self._tools.get(name)
        if tool is None or not tool.enabled:
            known = ", ".join(self.names()) or "none"
            raise ToolNotFoundError(f"Tool {name} not found in this sandbox (it has: {known})")
        return tool

    def names(self) -> list[str]:
        """Names of the tools that may be called."""
        return [name for name, tool in self._tools.items() if tool.enabled]

    def schemas(self) -> dict[str, dict[str, Any]]:
        """The schema of every tool that may be called, by name."""
        return {name: tool.schema for name, tool in self._tools.items() if tool.enabled}


def _options(name: str, options: Any) -> dict[str, Any]:
    if options is None:
        return {}
    if isinstance(options, Mapping):
        return {str(key): value for key, value in options.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if hasattr(options, "model_dump"):
        return options.model_dump(exclude_none=True, exclude_unset=True)
    raise ConfigError(f"options of tool {name} must be a dict, not {type(options).__name__}")
