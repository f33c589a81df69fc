"""What the commands that run a program share: options, output passed on, how it ended."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from ms_enclave.cli.report import EXIT_OURS, complain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ms_enclave.model import CommandResult

__all__ = [
    "LIMITS",
    "SIGHT",
    "CommandBehindDashes",
    "Cwd",
    "Disk",
    "Env",
    "Interpreter",
    "Memory",
    "Network",
    "Pids",
    "Timeout",
    "Volume",
    "config_of",
    "environment_of",
    "exit_code_of",
    "remark",
    "size_of",
    "volumes_of",
    "write_out",
]

EXIT_TIMEOUT = 124
EXIT_OUT_OF_MEMORY = 137

LIMITS = "Limits"
SIGHT = "What it sees"
_STANDARD_OUTPUTS = {"stdout": 1, "stderr": 2}


class CommandBehindDashes(TyperCommand):
    """A command with everything behind `--` kept apart, as the command line to run."""

    pieces: ClassVar[tuple[str, ...]]
    """What the first line of the help shows behind the command's name."""

    needs_words: ClassVar[bool] = False
    """Whether nothing at all asks for help."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As click has it."""
        del ctx
        return list(self.pieces)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the first `--`; what follows is nobody's option."""
        cut = args.index("--") if "--" in args else len(args)
        ctx.obj = args[cut + 1 :] if "--" in args else None
        asks = self.needs_words and not args[:cut] and not ctx.obj
        return super().parse_args(ctx, ["--help"] if asks else args[:cut])


Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Wall-clock time (30).", rich_help_panel=LIMITS),
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory, such as 512m (1g).", rich_help_panel=LIMITS),
]
Disk = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What it may write to files (256m).", rich_help_panel=LIMITS),
]
Pids = Annotated[
    int | None,
    typer.Option(metavar="COUNT", help="Processes and threads (128).", rich_help_panel=LIMITS),
]
Network = Annotated[
    bool, typer.Option("--network", help="A network of its own.", rich_help_panel=SIGHT)
]
Volume = Annotated[
    list[str] | None,
    typer.Option(
        "--volume",
        "-v",
        metavar="HOST:INSIDE[:rw]",
        help="A folder of ours; read-only without rw.",
        rich_help_panel=SIGHT,
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        "-e",
        metavar="NAME[=VALUE]",
        help="A variable; without a value, ours.",
        rich_help_panel=SIGHT,
    ),
]
Cwd = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="The folder to start in.", rich_help_panel=SIGHT),
]
Interpreter = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Interpreter or virtual environment.", rich_help_panel=SIGHT),
]


# --- options, understood ---


def config_of(**values: Any) -> dict[str, Any]:
    """The settings that were given."""
    return {name: value for name, value in values.items() if value is not None}


def size_of(option: str, text: str | None) -> int | None:
    """Bytes of a size such as 512m. Raises BadParameter."""
    if text is None:
        return None

    from ms_enclave.utils.sizes import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def volumes_of(texts: Sequence[str]) -> dict[str, dict[str, str]]:
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


def environment_of(texts: Sequence[str]) -> dict[str, str]:
    """Variables of NAME=VALUE or of ours. Raises BadParameter."""
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


def write_out(stream: str, data: bytes) -> None:
    """Pass on what a program wrote; blocks where nobody reads."""
    view = memoryview(data)
    while view:
        view = view[os.write(_STANDARD_OUTPUTS[stream], view) :]


# --- how it ended ---


def exit_code_of(result: CommandResult) -> int:
    """The program's own, or what stands for how we ended it."""
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


def remark(result: CommandResult) -> None:
    """Say what the program's own output cannot: that we ended it, or lost some of what it said."""
    from ms_enclave.model import Verdict

    if result.verdict not in {Verdict.OK, Verdict.ERROR} and result.error:
        complain(result.error)
    for stream, lost in result.truncated.items():
        complain(f"{lost} more bytes of {stream} were dropped", "raise --output-limit to see them")
