"""`ms-enclave jupyter`: kernels of sandboxes for Jupyter's clients."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from ms_enclave.cli.report import EXIT_OURS, complain

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Kernels of sandboxes for Jupyter's clients.")


@app.command("install")
def install(
    name: Annotated[str, typer.Option(metavar="NAME", help="The kernel's name.")] = "ms-enclave",
    display_name: Annotated[
        str, typer.Option(metavar="TEXT", help="What menus show.")
    ] = "Python (sandbox)",
    sandbox_type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="The sandbox's type.")
    ] = "process",
    python: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Interpreter or virtual environment of the cells."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most memory, like 2g.")
    ] = None,
    network: Annotated[bool, typer.Option("--network", help="Give cells a network.")] = False,
    preload: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Import this ahead; may be repeated."),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:INSIDE[:rw]", help="Show a folder of the host, read-only."),
    ] = None,
    user: Annotated[bool, typer.Option("--user", help="For this user, in any Jupyter.")] = False,
    prefix: Annotated[
        str | None, typer.Option(metavar="PATH", help="Into this Jupyter; default: our own.")
    ] = None,
) -> None:
    """Install a kernel spec: `jupyter kernelspec list` shows it then, and notebooks can use it."""
    try:
        from ms_enclave.jupyter import spec
    except ModuleNotFoundError as error:
        complain(f"{error.name} is missing", "pip install 'ms-enclave[notebook]'")
        raise typer.Exit(EXIT_OURS) from None
    config: dict[str, Any] = {"python": python or sys.prefix, "preload": preload or []}
    if memory is not None:
        config["memory_limit"] = memory
    if network:
        config["network_enabled"] = True
    if volume:
        config["volumes"] = dict(map(_volume, volume))
    content = spec.spec(display_name, sandbox_type, config)
    place = spec.install(name, content, user=user, prefix=None if user else prefix or sys.prefix)
    typer.echo(f"installed kernel spec {name} in {place}")
    typer.echo(f"config: {json.dumps(config)}")


def _volume(text: str) -> tuple[str, dict[str, str]]:
    host, _, rest = text.partition(":")
    inside, _, mode = rest.partition(":")
    if not inside or mode not in ("", "ro", "rw"):
        raise typer.BadParameter(f"{text!r} is not HOST:INSIDE[:rw]", param_hint="--volume")
    return host, {"bind": inside, "mode": mode or "ro"}
