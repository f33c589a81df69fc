"""`ms-enclave port`: a server in a fresh sandbox, and its ports on the loopback of this machine.

The sandbox needs no network for that: what connects here is passed on through its channel. It lives
as long as its command; what that prints goes out as it comes, and the exit code is its own.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

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
    from anyio.abc import ByteStream, Listener, SocketStream

    from ms_enclave.boxes.base import Sandbox
    from ms_enclave.boxes.commands import Command
    from ms_enclave.errors import EnclaveError
    from ms_enclave.model import CommandResult

__all__ = ["PortCommand", "port"]

_HOST = "127.0.0.1"
_PIECE = 1 << 18


class PortCommand(CommandBehindDashes):
    """The command line, with the command to run kept apart."""

    pieces = ("[OPTIONS]", "-p [HERE:]INSIDE", "-- COMMAND [ARG]...")
    needs_words = True


@dataclass(frozen=True)
class _Request:
    """What to run and what to publish: the command line, understood."""

    sandbox_type: str
    config: dict[str, Any]
    command: list[str]
    ports: list[tuple[int, int]]
    """On this machine, and inside."""
    cwd: str | None
    env: dict[str, str]
    timeout: float | None


def port(
    context: typer.Context,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            "--publish",
            "-p",
            metavar="[HERE:]INSIDE",
            help="A port inside and where it is here (the same; 0 is any). May be repeated.",
        ),
    ] = None,
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
    """Run a server in a fresh sandbox and reach its ports here, on 127.0.0.1 only.

    The sandbox needs no network for that, and ends with the command.
    """
    command: list[str] = context.obj or []
    if not command:
        raise typer.BadParameter("no command behind --")
    if not publish:
        raise typer.BadParameter("no port: give -p [HERE:]INSIDE")
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
        command=command,
        ports=[_ports_of(text) for text in publish],
        cwd=cwd,
        env=environment_of(env or []),
        timeout=timeout,
    )
    from ms_enclave import loop
    from ms_enclave.model import Verdict

    result = loop.call(_serve, request)
    if result.verdict not in {Verdict.OK, Verdict.ERROR} and result.error:
        complain(result.error)
    raise typer.Exit(exit_code_of(result))


def _ports_of(text: str) -> tuple[int, int]:
    here, given, inside = text.rpartition(":")
    try:
        ports = int(here) if given else int(inside), int(inside)
    except ValueError:
        ports = (-1, -1)
    if not (0 <= ports[0] < 1 << 16 and 0 < ports[1] < 1 << 16):
        raise typer.BadParameter(f"--publish: {text!r} is not [HERE:]INSIDE, two port numbers")
    return ports


# --- serving ---


async def _serve(request: _Request) -> CommandResult:
    stay()
    import anyio

    from ms_enclave.errors import EnclaveError
    from ms_enclave.manager.local_manager import LocalSandboxManager

    async with AsyncExitStack() as stack:
        listeners = [await _listen(stack, here) for here, _ in request.ports]
        manager = await stack.enter_async_context(LocalSandboxManager())
        sandbox = await stack.enter_async_context(
            manager.sandbox(request.sandbox_type, request.config)
        )
        await sandbox.list_ports()  # it says at once where it has none
        command = await sandbox.start_command(
            request.command, timeout=request.timeout, cwd=request.cwd, env=request.env
        )
        outcome: list[CommandResult | EnclaveError] = []
        async with anyio.create_task_group() as group:
            for listener, (_, inside) in zip(listeners, request.ports, strict=True):
                group.start_soon(_publish, listener, sandbox, inside)
            outcome.append(await _see_through(command))
            group.cancel_scope.cancel()
        if isinstance(outcome[0], EnclaveError):
            raise outcome[0]
        return outcome[0]


async def _see_through(command: Command) -> CommandResult | EnclaveError:
    """Pass on what a command prints until it has ended; the error is for outside of the group."""
    from anyio.to_thread import run_sync

    from ms_enclave.errors import EnclaveError

    try:
        async for event in command.events():
            if event.lost:
                complain(f"{event.lost} bytes of output were dropped")
            await run_sync(write_out, event.stream, event.data)
        return await command.wait()
    except EnclaveError as error:
        return error


async def _listen(stack: AsyncExitStack, here: int) -> Listener[SocketStream]:
    import anyio

    from ms_enclave.errors import ConfigError

    try:
        listener = await anyio.create_tcp_listener(local_host=_HOST, local_port=here)
    except OSError as error:
        raise ConfigError(f"cannot listen on {_HOST}:{here}: {error.strerror}") from None
    return await stack.enter_async_context(listener)


async def _publish(listener: Listener[SocketStream], sandbox: Sandbox, inside: int) -> None:
    import anyio.abc

    here = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610
    typer.echo(f"{_HOST}:{here} is port {inside} of the sandbox", err=True)

    async def pass_on(client: SocketStream) -> None:
        async with client:
            await _pass_on(client, sandbox, inside)

    await listener.serve(pass_on)


async def _pass_on(client: SocketStream, sandbox: Sandbox, port: int) -> None:
    """One connection, for as long as both of its ends want it."""
    import anyio

    from ms_enclave.errors import EnclaveError

    try:
        stream = await sandbox.connect(port)
    except (OSError, EnclaveError):  # nobody takes it there, there are too many, or it has ended
        _refuse(client)
        return
    async with stream, anyio.create_task_group() as group:
        group.start_soon(_copy, client, stream, group.cancel_scope)
        group.start_soon(_copy, stream, client, group.cancel_scope)


async def _copy(source: ByteStream, target: ByteStream, both: Any) -> None:
    """One way of a connection. A way that breaks takes the other with it."""
    import anyio

    from ms_enclave.errors import EnclaveError

    try:
        try:
            while True:
                await target.send(await source.receive(_PIECE))
        except anyio.EndOfStream:
            await target.send_eof()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError, EnclaveError):
        both.cancel()


def _refuse(client: SocketStream) -> None:
    """Have the connection end as one that was never taken: with a reset."""
    import socket
    import struct

    import anyio.abc

    raw = client.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
