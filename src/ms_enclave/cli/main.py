"""Puts the commands together and turns whatever happens into an exit code and at most one line.

Starting quickly is a promise: nothing but typer is imported until a command needs it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from ms_enclave.cli import bench, doctor, found, jupyter, keys, port, run, server, shell, tools
from ms_enclave.cli.report import EXIT_OURS, complain
from ms_enclave.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app", "main"]

_EXIT_INTERRUPTED = 130
_EXIT_BROKEN_PIPE = 141
_SIGNALLED = 128
_DEBUG = "MS_ENCLAVE_DEBUG"

app = typer.Typer(
    name="ms-enclave",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ms-enclave {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(  # pyright: ignore[reportUnusedFunction]
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Run code that you do not trust: isolated, in milliseconds, and told what really happened."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command(
    "run",
    cls=run.RunCommand,
    context_settings={"allow_interspersed_args": False},
    epilog=run.EPILOG,
)(run.run)
app.command("port", cls=port.PortCommand, context_settings={"allow_interspersed_args": False})(
    port.port
)
app.command("shell", cls=shell.ShellCommand)(shell.shell)
app.command("tools")(tools.tools)
app.command("ps")(found.ps)
app.command("clean")(found.clean)
app.command("doctor")(doctor.doctor)
app.command("server")(server.server)
app.command("bench")(bench.bench)
app.add_typer(keys.app, name="keys")
app.add_typer(jupyter.app, name="jupyter")


def main(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code. Nothing is raised and no traceback printed.

    A fault of ours still shows its traceback where the environment has MS_ENCLAVE_DEBUG set.
    """
    try:
        status = app(args=list(arguments), prog_name="ms-enclave", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _EXIT_INTERRUPTED
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > _SIGNALLED:
            return ended.code  # by a signal, after what had to be undone
        # What typer makes of a broken pipe. As if the signal had come: our reader has seen enough.
        return _EXIT_BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the outermost boundary: a person reads what is said here
        return _explain(error)
    return status if isinstance(status, int) else 0


def _explain(error: Exception) -> int:
    # The class lives in typer or in click, depending on typer's version.
    ancestors = {ancestor.__name__ for ancestor in type(error).__mro__}
    if "ClickException" in ancestors:
        return _explain_usage(error)
    from ms_enclave.errors import EnclaveError

    if isinstance(error, EnclaveError):
        complain(error.message, error.remedy)
        return EXIT_OURS
    if os.environ.get(_DEBUG):
        raise error
    complain(
        f"a fault in ms-enclave itself: {type(error).__name__}: {error}",
        f"{_DEBUG}=1 shows where; please report it",
    )
    return EXIT_OURS


def _explain_usage(error: Exception) -> int:
    message = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "ms-enclave"
    complain(message, f"see {command} --help")
    return EXIT_OURS
