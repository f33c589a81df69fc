"""`ms-enclave tools`: what a model may call, and how."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ms_enclave.tools.base import Tool

__all__ = ["tools"]


def tools(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Print the schema of this tool as JSON.", show_default=False
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the schemas of all tools as one JSON list.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Print schemas for OpenAI's strict mode.")
    ] = False,
) -> None:
    """List the tools that a sandbox can have; with a name, print how a model calls that tool."""
    from json import dumps

    from ms_enclave.tools import ToolFactory

    names = [name] if name else sorted(ToolFactory.get_available_tools())
    found = [ToolFactory.create_tool(each) for each in names]
    if name or json:
        schemas = [tool.strict_schema if strict else tool.schema for tool in found]
        typer.echo(dumps(schemas[0] if name else schemas, indent=2, ensure_ascii=False))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table("Tool", "What it does", "Works in", box=SIMPLE)
    for tool in found:
        table.add_row(tool.name, tool.description, _where(tool))
    Console().print(table)


def _where(tool: Tool) -> str:
    """Which sandboxes can serve a tool."""
    needs = tool.required_capabilities
    if needs is None:
        types = [str(getattr(name, "value", name)) for name in tool.required_sandbox_types]
        return ", ".join(types) or "any sandbox"
    return f"any sandbox with {', '.join(sorted(needs))}" if needs else "any sandbox"
