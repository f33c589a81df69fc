"""`ms-enclave run`: one program in a fresh sandbox, seen from outside like the program itself.

What it prints goes out as it comes, byte for byte; the exit code is its own. Standard error gets
one more line only where we ended it or lost some of its output.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ms_enclave.cli.report import EXIT_OURS, complain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ms_enclave.model import CommandResult

__all__ = ["EPILOG", "RunCommand", "run"]

EXIT_TIMEOUT = 124
EXIT_OUT_OF_MEMORY = 137

EPILOG = (
    "The exit code is the program's own; 124 after a time-out, 137 when it ran out of memory, "
    "125 where ms-enclave could not run it."
)

_LIMITS = "Limits"
_SIGHT = "What it sees"
_STANDARD_OUTPUTS = {"stdout": 1, "stderr": 2}


class RunCommand(TyperCommand):
    """The command with everything behind `--` kept apart, as the command line to run."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What the first line of the help shows behind the command's name."""
        del ctx
        return ["[OPTIONS]", "[FILE [ARG]... | -c CODE [ARG]... | -- COMMAND [ARG]...]"]

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
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Wall-clock time (30).", rich_help_panel=_LIMITS),
    ] = None,
    cpu_time: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Processor time.", rich_help_panel=_LIMITS),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory, such as 512m (1g).", rich_help_panel=_LIMITS),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="What it may write to files (256m).", rich_help_panel=_LIMITS
        ),
    ] = None,
    pids: Annotated[
        int | None,
        typer.Option(metavar="COUNT", help="Processes and threads (128).", rich_help_panel=_LIMITS),
    ] = None,
    output_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="What is shown of each output (10m).", rich_help_panel=_LIMITS
        ),
    ] = None,
    network: Annotated[
        bool, typer.Option("--network", help="A network of its own.", rich_help_panel=_SIGHT)
    ] = False,
    volume: Annotated[
        list[str] | None,
        typer.Option(
            "--volume",
            "-v",
            metavar="HOST:INSIDE[:rw]",
            help="A folder of ours; read-only without rw.",
            rich_help_panel=_SIGHT,
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            "-e",
            metavar="NAME[=VALUE]",
            help="A variable; without a value, ours.",
            rich_help_panel=_SIGHT,
        ),
    ] = None,
    cwd: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="The folder to start in.", rich_help_panel=_SIGHT),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Interpreter or virtual environment.", rich_help_panel=_SIGHT
        ),
    ] = None,
    rootfs: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Root file system: a folder or oci-archive:FILE.",
            rich_help_panel=_SIGHT,
        ),
    ] = None,
    isolation: Annotated[
        str | None,
        typer.Option(
            metavar="TIER", help="The isolation tier to insist on.", rich_help_panel=_SIGHT
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
    config = _config(
        timeout=timeout,
        memory_limit=_size("--memory", memory),
        disk_limit=_size("--disk", disk),
        output_limit=_size("--output-limit", output_limit),
        cpu_time_limit=cpu_time,
        pids_limit=pids,
        network_enabled=network or None,
        volumes=_volumes(volume or []) or None,
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
        env=_environment(env or []),
        timeout=timeout,
        stdin=stdin,
        sink=None if json else _write,
    )
    if sandbox_type in {"auto", "process"} and not {"python", "rootfs", "volumes"} & set(config):
        from ms_enclave.boxes._process_ahead import start_ahead

        start_ahead()  # it is built while we import the rest
    from ms_enclave import loop

    result = loop.call(_execute, request)
    if json:
        typer.echo(result.model_dump_json())
    else:
        _remark(result)
    raise typer.Exit(_exit_code(result))


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


def _config(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _size(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    from ms_enclave.utils.sizes import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _volumes(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Docker's notation to Docker's mapping; read-only unless `rw` is asked for."""
    volumes: dict[str, dict[str, str]] = {}
    for text in texts:
        host, _, rest = text.partition(":")
        inside, _, mode = rest.partition(":")
        mode = mode or "ro"
        if not host or not inside.startswith("/") or mode not in {"ro", "rw"}:
            raise typer.BadParameter(f"--volume: {text!r} is not HOST:/INSIDE[:ro|rw]")
        volumes[os.path.abspath(host)] = {"bind": inside, "mode": mode}
    return volumes


def _environment(texts: Sequence[str]) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not name:
            raise typer.BadParameter(f"--env: {text!r} is not NAME[=VALUE]")
        if given:
            chosen[name] = value
        elif name in os.environ:
            chosen[name] = os.environ[name]
    return chosen


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


def _write(stream: str, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_STANDARD_OUTPUTS[stream], view) :]


# --- how it ended ---


def _exit_code(result: CommandResult) -> int:
    from ms_enclave.model import Verdict

    by_verdict = {
        Verdict.WALL_TIMEOUT: EXIT_TIMEOUT,
        Verdict.CPU_TIMEOUT: EXIT_TIMEOUT,
        Verdict.OOM: EXIT_OUT_OF_MEMORY,
        Verdict.INFRA: EXIT_OURS,
        Verdict.CANCELLED: EXIT_OURS,
    }
    if result.verdict in by_verdict:
        return by_verdict[result.verdict]
    return result.exit_code if 0 <= result.exit_code <= 255 else EXIT_OURS


def _remark(result: CommandResult) -> None:
    """Say what the program's own output cannot: that we ended it, or lost some of what it said."""
    from ms_enclave.model import Verdict

    if result.verdict not in {Verdict.OK, Verdict.ERROR} and result.error:
        complain(result.error)
    for stream, lost in result.truncated.items():
        complain(f"{lost} more bytes of {stream} were dropped", "raise --output-limit to see them")
