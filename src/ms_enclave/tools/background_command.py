"""`background_command`: programs that run on between calls, one operation a call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
from typing_extensions import override

from ms_enclave.errors import CommandNotFoundError, ConfigError
from ms_enclave.model import ExecutionStatus, ToolResult, Verdict
from ms_enclave.tools._program import PROGRAM_PARAMETERS, BuiltinTool

if TYPE_CHECKING:
    from ms_enclave.context import CommandContext, SandboxContext
    from ms_enclave.model import CommandInfo, OutputChunk
    from ms_enclave.tools.tool_info import ToolParams

__all__ = ["BackgroundCommand"]

FIRST_WAIT = 1.0
"""Seconds that a new command has to say something, or to fail, before its start is told."""

SHOWN = 16_384
"""Bytes of output that one call shows, where nothing else is asked for."""

_MOST_SEARCHED = 4 << 20
_MOST_WAIT = 60.0
_MOST_TYPING = 10.0


@dataclass(frozen=True)
class _Request:
    """One call: what to do with which command."""

    context: SandboxContext
    id: str | None = None
    command: str | list[str] | None = None
    text: str | None = None
    after: int | None = None
    max_bytes: int = SHOWN
    pattern: str | None = None
    wait: float | None = None
    max_seconds: float | None = None
    stdin: bool = False
    tag: str | None = None
    cwd: str | None = None
    env: dict[str, str] | None = None
    user: str | None = None

    def need(self, name: str, operation: str) -> Any:
        value = getattr(self, name)
        if value is None:
            raise ConfigError(f"{name.capitalize()} is required for {operation} operation")
        return value

    async def find(self, operation: str) -> CommandContext:
        name: str = self.need("id", operation)
        try:
            return await self.context.get_command(name)
        except CommandNotFoundError as error:  # a model's mistake, not an outage
            raise ConfigError(f"{error.message}; `list` shows the ids there are") from None


@dataclass
class _Done:
    """What an operation says: a line of its own, and what the command printed."""

    line: str
    text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


async def _start(request: _Request) -> _Done:
    given = request.need("command", "start")
    if not (given.strip() if isinstance(given, str) else "".join(given[:1])):
        raise ConfigError("No command provided")
    command = await request.context.start_command(
        given, stdin=request.stdin, timeout=request.max_seconds, tag=request.tag,
        cwd=request.cwd, env=request.env, user=request.user,
    )  # fmt: skip
    wait = FIRST_WAIT if request.wait is None else request.wait
    chunk = await command.read(after=0, max_bytes=request.max_bytes, wait=wait)
    return _shown(command, chunk)


async def _read(request: _Request) -> _Done:
    command = await request.find("read")
    if request.pattern is not None:
        return await _search(request, command, request.pattern)
    chunk = await command.read(
        after=request.after or 0, max_bytes=request.max_bytes, wait=request.wait or 0.0
    )
    return _shown(command, chunk)


async def _search(request: _Request, command: CommandContext, pattern: str) -> _Done:
    """The lines that match, as `grep` in the sandbox has it: what a pattern costs is paid there."""
    chunk = await command.read(
        after=request.after or 0, max_bytes=_MOST_SEARCHED, wait=request.wait or 0.0
    )
    words = ["grep", "-anE", "-e", pattern]
    found = await request.context.execute_command(words, stdin=chunk.data, timeout=30)
    if found.exit_code > 1 or found.exit_code < 0:
        raise ConfigError(f"The pattern cannot be used: {found.stderr.strip() or found.error}")
    done = _shown(command, chunk)
    data = found.stdout.encode()
    if len(data) > request.max_bytes:
        done.line += f"; only the first {request.max_bytes} bytes of the matches"
    done.text = data[: request.max_bytes].decode("utf-8", "ignore")
    done.metadata["matches"] = found.stdout.count("\n")
    done.line += f"; {done.metadata['matches']} lines match, each with its number"
    return done


async def _write(request: _Request) -> _Done:
    command = await request.find("write")
    text: str = request.need("text", "write")
    if not command.takes_input:
        raise ConfigError(f"Command {command.id} was started without stdin=true")
    before = command.cursor if request.after is None else request.after
    try:
        with anyio.fail_after(_MOST_TYPING):
            await command.write(text)
    except BrokenPipeError as error:
        raise ConfigError(str(error.strerror)) from None
    except TimeoutError:
        raise ConfigError(f"Command {command.id} does not read its input") from None
    wait = FIRST_WAIT if request.wait is None else request.wait
    chunk = await command.read(after=before, max_bytes=request.max_bytes, wait=wait)
    return _shown(command, chunk)


async def _stop(request: _Request) -> _Done:
    command = await request.find("stop")
    running = command.returncode is None
    await command.kill()
    done = _shown(command, None)
    done.line = f"{'Stopped' if running else 'It had ended already'}: {done.line}"
    return done


async def _list(request: _Request) -> _Done:
    infos = await request.context.list_commands()
    lines = "".join(f"{_row(info)}\n" for info in infos)
    count = sum(info.returncode is None for info in infos)
    return _Done(
        f"{count} running, {len(infos) - count} ended",
        lines,
        {"commands": [info.model_dump(mode="json") for info in infos]},
    )


def _row(info: CommandInfo) -> str:
    state = "running" if info.returncode is None else f"exit code {info.returncode}"
    given = info.command if isinstance(info.command, str) else " ".join(info.command)
    tag = f" [{info.tag}]" if info.tag else ""
    return f"{info.id}{tag} {state}, {info.cursor} bytes: {given}"


def _shown(command: CommandContext, chunk: OutputChunk | None) -> _Done:
    state = "is running"
    if command.returncode is not None:
        state = f"has ended with exit code {command.returncode}"
    metadata: dict[str, Any] = {
        "id": command.id, "running": command.returncode is None, "exit_code": command.returncode,
    }  # fmt: skip
    line = f"Command {command.id} {state}"
    if chunk is None:
        return _Done(line, "", metadata)
    metadata |= {"cursor": chunk.cursor, "lost": chunk.lost, "eof": chunk.eof}
    if chunk.lost:
        line += f"; {chunk.lost} older bytes are lost"
    more = "all of its output" if chunk.eof else f"read on with after={chunk.cursor}"
    return _Done(f"{line}; {more}", chunk.data.decode("utf-8", "replace"), metadata)


_Operation = Callable[[_Request], Awaitable[_Done]]

_OPERATIONS: dict[str, _Operation] = {
    "start": _start,
    "read": _read,
    "write": _write,
    "stop": _stop,
    "list": _list,
}


class BackgroundCommand(BuiltinTool):
    """Starts programs that run on, reads what they print, gives them input and ends them."""

    _name = "background_command"
    _description = (
        "Run programs in the background of an isolated sandbox, such as servers, watchers and long "
        "builds. `start` gives an id and the first output at once. `read` shows output: from a "
        "cursor (`after`), or the lines that match a `pattern`; nothing is lost by not reading. "
        "`write` types into a program that was started with `stdin`. `stop` ends one with "
        "everything that it started. `list` shows all."
    )
    _capabilities: ClassVar[frozenset[str] | None] = frozenset({"commands"})
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {
            "operation": {
                "type": "string",
                "description": "What to do.",
                "enum": list(_OPERATIONS),
            },
            "id": {
                "type": "string",
                "description": "For read, write and stop: the id that start gave.",
            },
            "command": {
                "description": (
                    "For start: a command line for the shell, or a program and its arguments as a "
                    "list, which no shell sees."
                ),
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}},
                ],
            },
            "text": {
                "type": "string",
                "description": "For write: what to type, with a line end where one is meant.",
            },
            "after": {
                "type": "integer",
                "description": (
                    "For read: the cursor to read from, as the last call told it. Default: 0, the "
                    "beginning."
                ),
                "minimum": 0,
            },
            "max_bytes": {
                "type": "integer",
                "description": f"The most output to show, in bytes. Default: {SHOWN}.",
                "minimum": 1,
                "maximum": 1 << 20,
            },
            "pattern": {
                "type": "string",
                "description": (
                    "For read: show only lines that match this extended regular expression "
                    "(grep -E)."
                ),
            },
            "wait": {
                "type": "number",
                "description": (
                    "Seconds to wait for output where there is none yet. Default: 1 for start and "
                    "write, 0 for read."
                ),
                "minimum": 0,
                "maximum": _MOST_WAIT,
            },
            "max_seconds": {
                "type": "number",
                "description": "For start: seconds after which it is ended. Default: never.",
                "exclusiveMinimum": 0,
            },
            "stdin": {
                "type": "boolean",
                "description": "For start: whether it is to be given input by write.",
            },
            "tag": {"type": "string", "description": "For start: a short name, shown by list."},
            **{name: PROGRAM_PARAMETERS[name] for name in ("cwd", "env", "user")},
        },
        "required": ["operation"],
    }

    @override
    async def _run(self, context: SandboxContext, *, operation: str, **options: Any) -> ToolResult:
        done = await _OPERATIONS[operation](_Request(context, **options))
        output = done.line if not done.text else f"{done.line}\n{done.text}"
        lost = done.metadata.get("lost") or 0
        return ToolResult(
            tool_name=self.name,
            status=ExecutionStatus.SUCCESS,
            verdict=Verdict.OK,
            output=output,
            stdout=done.text,
            exit_code=done.metadata.get("exit_code"),
            truncated={"stdout": lost} if lost else {},
            metadata={"operation": operation, **done.metadata},
        )
