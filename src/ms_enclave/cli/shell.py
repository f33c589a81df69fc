"""`ms-enclave shell`: a person's terminal in a fresh sandbox, for as long as its shell runs.

Every key goes inside, Ctrl-C too, and every byte comes out as it is; the window's size follows. Our
own terminal is given back as it was, however this ends.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ms_enclave.cli.lasting import stay
from ms_enclave.cli.program import (
    LIMITS,
    CommandBehindDashes,
    Cwd,
    Disk,
    Env,
    Interpreter,
    Memory,
    Network,
    Pids,
    Volume,
    config_of,
    environment_of,
    exit_code_of,
    size_of,
    volumes_of,
    write_out,
)
from ms_enclave.cli.report import complain

if TYPE_CHECKING:
    from collections.abc import Generator

    from ms_enclave.boxes.commands import Command
    from ms_enclave.errors import EnclaveError
    from ms_enclave.model import CommandResult

__all__ = ["ShellCommand", "shell"]

_INPUT, _OUTPUT = 0, 1
_PIECE = 1 << 16
_USUAL = (24, 80)
_THE_SHELL = ["sh", "-c", "[ -x /bin/bash ] && exec /bin/bash -i; exec sh -i"]
_PROMPT = "sandbox:$PWD\\$ "


class ShellCommand(CommandBehindDashes):
    """The command line, with the command to run kept apart."""

    pieces = ("[OPTIONS]", "[-- COMMAND [ARG]...]")


@dataclass(frozen=True)
class _Request:
    """What to run and how: the command line, understood."""

    sandbox_type: str
    config: dict[str, Any]
    command: list[str]
    cwd: str | None
    env: dict[str, str]
    timeout: float | None


def shell(
    context: typer.Context,
    sandbox_type: Annotated[
        str, typer.Option("--type", metavar="TYPE", help="Sandbox type; auto is the best here.")
    ] = "auto",
    timeout: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="How long it may run (for ever).", rich_help_panel=LIMITS
        ),
    ] = None,
    memory: Memory = None,
    disk: Disk = None,
    pids: Pids = None,
    network: Network = False,
    volume: Volume = None,
    env: Env = None,
    cwd: Cwd = None,
    python: Interpreter = None,
) -> None:
    """Open a shell, or any program, in a fresh sandbox, on this terminal.

    Nothing of the sandbox stays when it ends.
    """
    if not (os.isatty(_INPUT) and os.isatty(_OUTPUT)):
        raise typer.BadParameter("a shell needs a terminal; `ms-enclave run` takes pipes")
    request = _Request(
        sandbox_type=sandbox_type,
        config=config_of(
            memory_limit=size_of("--memory", memory),
            disk_limit=size_of("--disk", disk),
            pids_limit=pids,
            network_enabled=network or None,
            volumes=volumes_of(volume or []) or None,
            python=python,
        ),
        command=context.obj or _THE_SHELL,
        cwd=cwd,
        env={"PS1": _PROMPT, "TERM": os.environ.get("TERM", "dumb"), **environment_of(env or [])},
        timeout=timeout,
    )
    from ms_enclave import loop
    from ms_enclave.model import Verdict

    with _signals() as resized:
        result = loop.call(_serve, request, resized)
    if result.verdict not in {Verdict.OK, Verdict.ERROR} and result.error:
        complain(result.error)
    raise typer.Exit(exit_code_of(result))


@contextmanager
def _signals() -> Generator[int, None, None]:
    """What would end us goes through our own clean-up, which gives the terminal back. A byte comes
    through the descriptor when the window has another size."""

    def end(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    news, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def resize(_number: int, _frame: object) -> None:
        with suppress(BlockingIOError):
            os.write(tell, b"\0")

    handlers = {signal.SIGTERM: end, signal.SIGHUP: end, signal.SIGWINCH: resize}
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield news
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(news)
        os.close(tell)


# --- on the loop ---


async def _serve(request: _Request, resized: int) -> CommandResult:
    stay()
    import anyio

    from ms_enclave.errors import EnclaveError
    from ms_enclave.manager.local_manager import LocalSandboxManager

    async with (
        LocalSandboxManager() as manager,
        manager.sandbox(request.sandbox_type, request.config) as sandbox,
    ):
        command = await sandbox.start_command(
            request.command, pty=_window(), timeout=request.timeout, cwd=request.cwd,
            env=request.env,
        )  # fmt: skip
        outcome: list[CommandResult | EnclaveError] = []
        with _raw_terminal():
            async with anyio.create_task_group() as group:
                group.start_soon(_type, command)
                group.start_soon(_follow_size, command, resized)
                outcome.append(await _show(command))
                group.cancel_scope.cancel()
        if isinstance(outcome[0], EnclaveError):
            raise outcome[0]
        return outcome[0]


def _window() -> tuple[int, int]:
    """Rows and columns of our terminal, where it knows them."""
    size = os.get_terminal_size(_OUTPUT)
    return (size.lines, size.columns) if size.lines and size.columns else _USUAL


@contextmanager
def _raw_terminal() -> Generator[None, None, None]:
    """Every key is the program's, and nothing is echoed here."""
    import termios
    import tty

    before = termios.tcgetattr(_INPUT)
    try:
        tty.setraw(_INPUT)
        yield
    finally:
        termios.tcsetattr(_INPUT, termios.TCSADRAIN, before)


async def _type(command: Command) -> None:
    """Pass on what is typed here, no faster than it is read there."""
    import anyio

    from ms_enclave.errors import EnclaveError

    while True:
        await anyio.wait_readable(_INPUT)
        data = os.read(_INPUT, _PIECE)
        if not data:
            return  # our terminal is gone: a signal says the rest
        try:
            await command.write(data)
        except (BrokenPipeError, EnclaveError):
            return  # it has ended, which whoever shows its output sees


async def _follow_size(command: Command, resized: int) -> None:
    """Give its terminal the size of ours, each time that a byte says that this has changed."""
    import anyio

    while True:
        await anyio.wait_readable(resized)
        os.read(resized, _PIECE)
        await command.resize(*_window())


async def _show(command: Command) -> CommandResult | EnclaveError:
    """Show what it prints until it has ended; the error is for outside of the group."""
    from anyio.to_thread import run_sync

    from ms_enclave.errors import EnclaveError

    try:
        async for event in command.events():
            await run_sync(write_out, "stdout", event.data)
        return await command.wait()
    except EnclaveError as error:
        return error
