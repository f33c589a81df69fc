"""`ms-enclave run`: one program in a fresh sandbox, seen from outside like the program itself.

What it prints goes out as it comes, byte for byte; the exit code is its own. Standard error gets
one more line only where we ended it or lost some of its output.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ms_enclave.cli.program import (
    LIMITS,
    SIGHT,
    CommandBehindDashes,
    Cwd,
    Disk,
    Env,
    Interpreter,
    Memory,
    Network,
    Pids,
    Timeout,
    Volume,
    config_of,
    environment_of,
    exit_code_of,
    remark,
    size_of,
    volumes_of,
    write_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ms_enclave.model import CommandResult

__all__ = ["EPILOG", "RunCommand", "run"]

EPILOG = (
    "The exit code is the program's own; 124 after a time-out, 137 when it ran out of memory, "
    "125 where ms-enclave could not run it."
)


class RunCommand(CommandBehindDashes):
    """The command line, with the command to run kept apart."""

    pieces = ("[OPTIONS]", "[FILE [ARG]... | -c CODE [ARG]... | -- COMMAND [ARG]...]")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the first `--`; what follows is nobody's option.

        Behind a FILE a `--` is an argument of that program like any other. Nothing at all asks
        for help.
        """
        if "--" not in args:
            return super().parse_args(ctx, args or ["--help"])
        cut = args.index("--")
        rest = super().parse_args(ctx, args[:cut])
        words = ctx.params.get("words")
        if words:
            ctx.params["words"] = [*words, *args[cut:]]
        else:
            ctx.obj = args[cut + 1 :]
        return rest


@dataclass(frozen=True)
class _Request:
    """What to run and how: the command line, understood."""

    sandbox_type: str
    config: dict[str, Any]
    code: str | None
    command: list[str] | None
    args: list[str]
    cwd: str | None
    env: dict[str, str]
    timeout: float | None
    stdin: bool
    sink: Callable[[str, bytes], None] | None


def run(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="A Python program; '-' reads it from standard input.",
            show_default=False,
        ),
    ] = None,
    code: Annotated[
        str | None, typer.Option("-c", metavar="CODE", help="Python source to run.")
    ] = None,
    sandbox_type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Sandbox type; auto is the best here.")
    ] = "auto",
    stdin: Annotated[
        bool, typer.Option("--stdin", "-i", help="Pass our standard input on to it.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the whole result as JSON when it has ended.")
    ] = False,
    timeout: Timeout = None,
    cpu_time: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Processor time.", rich_help_panel=LIMITS),
    ] = None,
    memory: Memory = None,
    disk: Disk = None,
    pids: Pids = None,
    output_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="What is shown of each output (10m).", rich_help_panel=LIMITS
        ),
    ] = None,
    network: Network = False,
    volume: Volume = None,
    env: Env = None,
    cwd: Cwd = None,
    python: Interpreter = None,
    rootfs: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Root file system: a folder or oci-archive:FILE.",
            rich_help_panel=SIGHT,
        ),
    ] = None,
    isolation: Annotated[
        str | None,
        typer.Option(
            metavar="TIER", help="The isolation tier to insist on.", rich_help_panel=SIGHT
        ),
    ] = None,
) -> None:
    """Run a Python program, or any command, in a fresh sandbox.

    It sees a read-only system and an empty work folder: no files, variables or network of yours.
    """
    command: list[str] | None = context.obj
    words = words or []
    source, args = _choose(code, words, command)
    if source == "-" and stdin and code is None:
        raise typer.BadParameter("standard input holds the program: --stdin has nothing to pass on")
    config = config_of(
        timeout=timeout,
        memory_limit=size_of("--memory", memory),
        disk_limit=size_of("--disk", disk),
        output_limit=size_of("--output-limit", output_limit),
        cpu_time_limit=cpu_time,
        pids_limit=pids,
        network_enabled=network or None,
        volumes=volumes_of(volume or []) or None,
        python=python,
        rootfs=rootfs,
        isolation=isolation,
    )
    request = _Request(
        sandbox_type=sandbox_type,
        config=config,
        code=None if command else (code if code is not None else _read_program(source)),
        command=command,
        args=args,
        cwd=cwd,
        env=environment_of(env or []),
        timeout=timeout,
        stdin=stdin,
        sink=None if json else write_out,
    )
    if sandbox_type in {"auto", "process"} and not {"python", "rootfs", "volumes"} & set(config):
        from ms_enclave.boxes._process_ahead import start_ahead

        start_ahead()  # it is built while we import the rest
    from ms_enclave import loop

    result = loop.call(_execute, request)
    if json:
        typer.echo(result.model_dump_json())
    else:
        remark(result)
    raise typer.Exit(exit_code_of(result))


# --- the command line, understood ---


def _choose(
    code: str | None, words: Sequence[str], command: Sequence[str] | None
) -> tuple[str, list[str]]:
    """The program's file (or "") and its arguments, from the three ways to name what to run."""
    if command is not None:
        if code is not None or words:
            raise typer.BadParameter("give one of FILE, -c CODE and -- COMMAND")
        if not command:
            raise typer.BadParameter("no command behind --")
        return "", []
    if code is not None:
        return "", list(words)
    if not words:
        raise typer.BadParameter("nothing to run: give FILE, -c CODE or -- COMMAND")
    return words[0], list(words[1:])


def _read_program(name: str) -> str:
    from importlib.util import decode_source  # knows Python's encoding declarations

    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        hint = " (a command goes behind --)" if isinstance(error, FileNotFoundError) else ""
        raise typer.BadParameter(f"cannot read {name}: {error.strerror}{hint}") from None
    try:
        return decode_source(data)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise typer.BadParameter(f"{name} is not Python source: {error}") from None


# --- the run ---


async def _execute(request: _Request) -> CommandResult:
    from ms_enclave.manager.local_manager import LocalSandboxManager

    how: dict[str, Any] = {
        # Unbuffered: a thread that waits in a buffered file would hold up our exit.
        "stdin": FileIO(0, closefd=False) if request.stdin else None,
        "timeout": request.timeout,
        "cwd": request.cwd,
        "env": request.env,
        "on_output": request.sink,
    }
    async with (
        LocalSandboxManager() as manager,
        manager.sandbox(request.sandbox_type, request.config) as sandbox,
    ):
        if request.command is not None:
            return await sandbox.execute_command(request.command, **how)
        return await sandbox.run_code(request.code or "", args=request.args, **how)
