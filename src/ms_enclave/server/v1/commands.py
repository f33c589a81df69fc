"""Programs: run to their end, or started and found again; shells."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from ms_enclave import wire
from ms_enclave.boxes.commands import Command
from ms_enclave.model import CommandInfo, CommandResult
from ms_enclave.server.answers import document, events
from ms_enclave.server.finding import Box
from ms_enclave.server.v1.bodies import Body, Running, Settings
from ms_enclave.server.v1.said import (
    EVENTS,
    CommandAndChunk,
    CommandAndResult,
    CommandSaid,
    ShellAndResult,
    ShellEnd,
    ShellSaid,
)

if TYPE_CHECKING:
    from ms_enclave.boxes._relay import Sink

__all__ = ["router"]

router = APIRouter(tags=["commands"])


class CommandRun(Running):
    """A command to run to its end."""

    command: str | list[str]


class CodeRun(Running):
    """Python to run to its end."""

    code: str
    args: list[str] = Field(default_factory=list[str])


class CommandStart(Settings):
    """A command to start."""

    command: str | list[str]
    stdin: bool = False
    pty: tuple[int, int] | None = None
    tag: str | None = None


class Signal(Body):
    """A signal by number or name."""

    signal: Any


class Size(Body):
    """The size of a terminal."""

    rows: int
    cols: int


class Waiting(Body):
    """How long to wait."""

    timeout: float | None = None


class ShellStart(Body):
    """A shell by name, and how it starts where there is none."""

    name: str = "main"
    cwd: str | None = None
    env: dict[str, str] | None = None
    user: str | int | None = None


class Line(Body):
    """A line for a shell."""

    line: str
    timeout: float | None = None


# --- to their end ---


@router.post("/sandboxes/{sandbox_id}/commands/run", response_model=CommandResult)
async def execute_command(body: CommandRun, sandbox: Box) -> Response:
    """Run a program to its end: a string is a shell line, a list is an argv."""
    return document(await sandbox.execute_command(body.command, **body.all_said()))


@router.post("/sandboxes/{sandbox_id}/commands/run/events", **EVENTS)
async def execute_command_told(body: CommandRun, sandbox: Box) -> Response:
    """The same, telling what it prints as it prints it, and the result last."""
    return await events(
        _told(lambda sink: sandbox.execute_command(
            body.command, **body.all_said(), on_output=sink))
    )  # fmt: skip


@router.post("/sandboxes/{sandbox_id}/code/run", response_model=CommandResult)
async def run_code(body: CodeRun, sandbox: Box) -> Response:
    """Run Python source in a fresh interpreter."""
    return document(await sandbox.run_code(body.code, args=body.args, **body.all_said()))


@router.post("/sandboxes/{sandbox_id}/code/run/events", **EVENTS)
async def run_code_told(body: CodeRun, sandbox: Box) -> Response:
    """The same, telling what it prints as it prints it, and the result last."""
    return await events(
        _told(lambda sink: sandbox.run_code(
            body.code, args=body.args, **body.all_said(), on_output=sink))
    )  # fmt: skip


async def _told(run: "Callable[[Sink], Awaitable[Any]]") -> AsyncGenerator[dict[str, Any], None]:
    """What a program prints, piece by piece, and its result; it waits for whoever reads."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(maxsize=16)

    def sink(stream: str, data: bytes) -> None:  # in a worker thread
        asyncio.run_coroutine_threadsafe(pieces.put((stream, data)), loop).result()

    task = asyncio.ensure_future(run(sink))
    try:
        while not (task.done() and pieces.empty()):
            piece = asyncio.ensure_future(pieces.get())
            await asyncio.wait([task, piece], return_when=asyncio.FIRST_COMPLETED)
            if piece.done():
                stream, data = piece.result()
                yield {"stream": stream, "data": wire.encode_bytes(data)}
            else:
                piece.cancel()
        yield {"result": task.result()}
    finally:
        with anyio.CancelScope(shield=True):
            task.cancel()
            while not task.done():  # what it prints meanwhile is for nobody
                piece = asyncio.ensure_future(pieces.get())
                await asyncio.wait([task, piece], return_when=asyncio.FIRST_COMPLETED)
                piece.cancel()


# --- that run on ---


def _describe(command: Command) -> dict[str, Any]:
    return {
        "id": command.id, "pid": command.pid, "command": command.command, "tag": command.tag,
        "returncode": command.returncode, "cursor": command.cursor,
        "takes_input": command.takes_input,
    }  # fmt: skip


@router.post("/sandboxes/{sandbox_id}/commands", response_model=CommandSaid)
async def start_command(body: CommandStart, sandbox: Box) -> Response:
    """Start a program that runs on."""
    command = await sandbox.start_command(
        body.command, stdin=body.stdin, pty=body.pty, tag=body.tag, **body.said()
    )
    return document(_describe(command))


@router.get("/sandboxes/{sandbox_id}/commands", response_model=list[CommandInfo])
async def list_commands(sandbox: Box) -> Response:
    """The commands that were started, oldest first."""
    return document(await sandbox.list_commands())


@router.get("/sandboxes/{sandbox_id}/commands/{command_id}", response_model=CommandSaid)
async def get_command(command_id: str, sandbox: Box) -> Response:
    """A command that was started."""
    return document(_describe(await sandbox.get_command(command_id)))


@router.get("/sandboxes/{sandbox_id}/commands/{command_id}/output", response_model=CommandAndChunk)
async def read_output(
    command_id: str,
    sandbox: Box,
    after: Annotated[int, Query()] = 0,
    max_bytes: Annotated[int, Query()] = 1 << 20,
    wait: Annotated[float, Query(allow_inf_nan=False)] = 0.0,
) -> Response:
    """What it has printed from a cursor on."""
    command = await sandbox.get_command(command_id)
    chunk = await command.read(after=after, max_bytes=max_bytes, wait=wait)
    return document({"chunk": chunk, "command": _describe(command)})


@router.get("/sandboxes/{sandbox_id}/commands/{command_id}/events", **EVENTS)
async def command_events(
    command_id: str, sandbox: Box, after: Annotated[int, Query()] = 0
) -> Response:
    """What it prints, from a cursor on, as it comes; ends with the command."""
    command = await sandbox.get_command(command_id)
    return await events(command.events(after=after), eager=False)


@router.post("/sandboxes/{sandbox_id}/commands/{command_id}/input", response_model=CommandSaid)
async def write_input(command_id: str, request: Request, sandbox: Box) -> Response:
    """Give it input: the bytes of the body."""
    command = await sandbox.get_command(command_id)
    await command.write(await request.body())
    return document(_describe(command))


@router.delete("/sandboxes/{sandbox_id}/commands/{command_id}/input", response_model=CommandSaid)
async def close_input(command_id: str, sandbox: Box) -> Response:
    """Its input ends here."""
    command = await sandbox.get_command(command_id)
    await command.close_stdin()
    return document(_describe(command))


@router.post("/sandboxes/{sandbox_id}/commands/{command_id}/signal", response_model=CommandSaid)
async def send_signal(command_id: str, body: Signal, sandbox: Box) -> Response:
    """Send it a signal."""
    command = await sandbox.get_command(command_id)
    await command.send_signal(body.signal)
    return document(_describe(command))


@router.post("/sandboxes/{sandbox_id}/commands/{command_id}/size", response_model=CommandSaid)
async def resize(command_id: str, body: Size, sandbox: Box) -> Response:
    """Give its terminal another size."""
    command = await sandbox.get_command(command_id)
    await command.resize(body.rows, body.cols)
    return document(_describe(command))


@router.delete("/sandboxes/{sandbox_id}/commands/{command_id}", response_model=CommandSaid)
async def kill(command_id: str, sandbox: Box) -> Response:
    """End it with everything that it started."""
    command = await sandbox.get_command(command_id)
    await command.kill()
    return document(_describe(command))


@router.post("/sandboxes/{sandbox_id}/commands/{command_id}/wait", response_model=CommandAndResult)
async def wait(command_id: str, body: Waiting, sandbox: Box) -> Response:
    """Wait for its end; the result, or that it has not come."""
    command = await sandbox.get_command(command_id)
    result = await command.wait(body.timeout)
    return document({"result": result, "command": _describe(command)})


# --- shells ---


@router.post("/sandboxes/{sandbox_id}/shells", response_model=ShellSaid)
async def open_shell(body: ShellStart, sandbox: Box) -> Response:
    """The shell of that name."""
    shell = await sandbox.shell(body.name, cwd=body.cwd, env=body.env, user=body.user)
    return document({"name": shell.name, "pid": shell.pid})


@router.get("/sandboxes/{sandbox_id}/shells/{name}", response_model=ShellSaid)
async def get_shell(name: str, sandbox: Box) -> Response:
    """How a shell is."""
    return document({"name": name, "pid": (await sandbox.shell(name)).pid})


@router.post("/sandboxes/{sandbox_id}/shells/{name}/run", response_model=ShellAndResult)
async def run_line(name: str, body: Line, sandbox: Box) -> Response:
    """Run a line, or several."""
    shell = await sandbox.shell(name)
    result = await shell.run(body.line, body.timeout)
    return document({"result": result, "pid": shell.pid})


@router.post("/sandboxes/{sandbox_id}/shells/{name}/interrupt", response_model=ShellEnd)
async def interrupt_shell(name: str, sandbox: Box) -> Response:
    """Interrupt the line that is running."""
    shell = await sandbox.shell(name)
    await shell.interrupt()
    return document({"pid": shell.pid})


@router.delete("/sandboxes/{sandbox_id}/shells/{name}", response_model=ShellEnd)
async def close_shell(name: str, sandbox: Box) -> Response:
    """End the shell with its jobs."""
    shell = await sandbox.shell(name)
    await shell.close()
    return document({"pid": shell.pid})
