"""`file_operation`: the sandbox's files, one operation a call."""

from __future__ import annotations

import base64
import codecs
import posixpath
import stat
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
from typing_extensions import override

from ms_enclave.errors import ConfigError, EnclaveError
from ms_enclave.model import ExecutionStatus, FileInfo, ToolResult, Verdict
from ms_enclave.tools._program import BuiltinTool, seconds

if TYPE_CHECKING:
    from ms_enclave.context import FilesContext, SandboxContext
    from ms_enclave.tools.tool_info import ToolParams

__all__ = ["FileOperation"]


@dataclass(frozen=True)
class _Request:
    """One call: what to do with which path."""

    files: FilesContext
    path: str
    encoding: str
    limit: int
    """The most bytes that a read hands back."""
    content: str | None = None
    pattern: str | None = None
    old: str | None = None
    new: str | None = None
    target: str | None = None
    depth: int = 1

    def need(self, name: str, operation: str) -> str:
        value: str | None = getattr(self, name)
        if value is None:
            raise ConfigError(f"{name.capitalize()} is required for {operation} operation")
        return value


@dataclass
class _Done:
    """What an operation says."""

    output: str
    metadata: dict[str, Any] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)


async def _read(request: _Request) -> _Done:
    size = (await request.files.stat(request.path)).size
    data = await request.files.read(request.path, limit=request.limit)
    lost = {"stdout": size - len(data)} if size > len(data) else {}
    if request.encoding == "base64":
        return _Done(base64.b64encode(data).decode("ascii"), {"size": size}, lost)
    try:
        # A character that the limit cut in two is no fault of the file's.
        text = codecs.getincrementaldecoder(request.encoding)().decode(data, final=not lost)
    except UnicodeDecodeError:
        # What does not decode is shown as such, and said: base64 gives the bytes themselves.
        return _Done(data.decode(request.encoding, "replace"), {"size": size, "lossy": True}, lost)
    return _Done(text, {"size": size}, lost)


async def _write(request: _Request) -> _Done:
    return await _store(request, request.need("content", "write"))


async def _create(request: _Request) -> _Done:
    return await _store(request, request.content or "")


async def _store(request: _Request, content: str) -> _Done:
    try:
        if request.encoding == "base64":
            data = base64.b64decode(content, validate=True)
        else:
            data = content.encode(request.encoding)
    except ValueError as error:
        raise ConfigError(f"content is not {request.encoding}: {error}") from error
    await request.files.write(request.path, data)
    return _Done(f"File written successfully: {request.path}", {"size": len(data)})


async def _delete(request: _Request) -> _Done:
    try:
        await request.files.remove(request.path, recursive=True)
    except FileNotFoundError:
        # The caller wants it gone, and it is: as with `rm -rf`, no error.
        return _Done(f"Nothing to delete: {request.path}", {"existed": False})
    return _Done(f"Successfully deleted: {request.path}", {"existed": True})


async def _list(request: _Request) -> _Done:
    entries = await request.files.list(request.path, depth=request.depth)
    return _Done(
        "".join(f"{_line(entry)}\n" for entry in entries),
        {"entries": [entry.model_dump(mode="json") for entry in entries]},
    )


async def _exists(request: _Request) -> _Done:
    there = await request.files.exists(request.path)
    return _Done("exists" if there else "does not exist", {"exists": there})


async def _stat(request: _Request) -> _Done:
    info = await request.files.stat(request.path)
    return _Done(_line(info), {"stat": info.model_dump(mode="json")})


async def _mkdir(request: _Request) -> _Done:
    await request.files.mkdir(request.path)
    return _Done(f"Directory created: {request.path}")


async def _move(request: _Request) -> _Done:
    target = request.need("target", "move")
    await request.files.move(request.path, target)
    return _Done(f"Moved: {request.path} -> {target}")


async def _search(request: _Request) -> _Done:
    matches = await request.files.search(request.need("pattern", "search"), request.path)
    return _Done(
        "".join(f"{match.path}:{match.line}:{match.text}\n" for match in matches),
        {"matches": [match.model_dump(mode="json") for match in matches]},
    )


async def _replace(request: _Request) -> _Done:
    old, new = request.need("old", "replace"), request.need("new", "replace")
    if not old:
        raise ConfigError("old must not be empty")
    count = await request.files.replace(request.path, old, new)
    if not count:
        raise ConfigError(f"The text to replace is not in {request.path}")
    return _Done(
        f"Replaced {count} occurrence{'s'[: count != 1]} in {request.path}", {"count": count}
    )


_TYPE_LETTERS = {"file": "-", "directory": "d", "symlink": "l", "other": "?"}


def _line(entry: FileInfo) -> str:
    """One entry as `ls -l` shows it."""
    mode = _TYPE_LETTERS[entry.type] + stat.filemode(entry.mode)[1:]
    time = datetime.fromtimestamp(entry.modified, timezone.utc).strftime("%Y-%m-%d %H:%M")
    return f"{mode} {entry.size:>10} {time} {entry.name}"


_Operation = Callable[[_Request], Awaitable[_Done]]

_OPERATIONS: dict[str, _Operation] = {
    "create": _create,
    "read": _read,
    "write": _write,
    "delete": _delete,
    "list": _list,
    "exists": _exists,
    "search": _search,
    "replace": _replace,
    "stat": _stat,
    "mkdir": _mkdir,
    "move": _move,
}

_ALIASES: dict[str, _Operation] = {
    "create_file": _create,
    "read_file": _read,
    "write_file": _write,
    "delete_file": _delete,
    "list_dir": _list,
    "list_directory": _list,
    "file_exists": _exists,
    "search_files": _search,
    "replace_in_file": _replace,
    "create_dir": _mkdir,
    "create_directory": _mkdir,
    "make_dir": _mkdir,
    "move_file": _move,
}
"""Other spellings in use. Models are shown the short ones and may use either."""


class FileOperation(BuiltinTool):
    """Creates, reads, changes, moves, finds and removes files, text or binary."""

    _name = "file_operation"
    _description = (
        "Work on the files of an isolated sandbox: create, read, write, delete, list, exists, "
        "search (regular expression), replace (text), stat, mkdir, move."
    )
    _capabilities: ClassVar[frozenset[str] | None] = frozenset({"files"})
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {
            "operation": {
                "type": "string",
                "description": "What to do.",
                "enum": [*_OPERATIONS, *_ALIASES],
            },
            "file_path": {"type": "string", "description": "The file or folder to do it to."},
            "content": {"type": "string", "description": "For create and write: the new content."},
            "encoding": {
                "type": "string",
                "description": "Text encoding of the file; base64 for binary content.",
                "default": "utf-8",
            },
            "pattern": {"type": "string", "description": "For search: the regular expression."},
            "old": {"type": "string", "description": "For replace: the text to be replaced."},
            "new": {"type": "string", "description": "For replace: the text to put instead."},
            "target": {"type": "string", "description": "For move: the new path."},
            "depth": {
                "type": "integer",
                "description": "For list: how many levels of folders to show. Default 1.",
                "minimum": 1,
            },
            "cwd": {
                "type": "string",
                "description": "Where relative paths start. Default: the working folder.",
            },
            "user": {
                "type": "string",
                "description": (
                    "The user of the sandbox who does it: with that user's rights, and the owner "
                    "of what is made."
                ),
            },
            "timeout": seconds("Seconds that the operation may take. Default: the sandbox's own."),
        },
        "required": ["operation", "file_path"],
    }

    @override
    def check_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        operation = parameters.get("operation")
        if isinstance(operation, str) and operation not in {**_OPERATIONS, **_ALIASES}:
            raise ConfigError(f"Unknown operation: {operation}")
        return super().check_parameters(parameters)

    @override
    async def _run(
        self,
        context: SandboxContext,
        *,
        operation: str,
        file_path: str,
        encoding: str = "utf-8",
        cwd: str = "",
        target: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        **arguments: Any,
    ) -> ToolResult:
        if not file_path.strip():
            raise ConfigError("No file path provided")
        limits = context.config.resolve_limits(timeout=timeout)
        request = _Request(
            files=context.files if user is None else context.files.as_user(user),
            path=posixpath.join(cwd, file_path),
            encoding=_known_encoding(encoding),
            limit=limits.output,
            target=None if target is None else posixpath.join(cwd, target),
            **arguments,
        )
        act = _OPERATIONS.get(operation) or _ALIASES[operation]
        with anyio.move_on_after(limits.timeout):
            return await self._perform(act, request)
        return self._failed(
            ExecutionStatus.TIMEOUT,
            Verdict.WALL_TIMEOUT,
            f"{operation} timed out after {limits.timeout:g} seconds",
        )

    async def _perform(self, act: _Operation, request: _Request) -> ToolResult:
        try:
            done = await act(request)
        except EnclaveError:
            raise  # some are OSErrors as well: ours, not the file's
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            return self._failed(
                ExecutionStatus.ERROR, Verdict.ERROR, f"{why}: {error.filename or request.path}"
            )
        return ToolResult(
            tool_name=self.name,
            status=ExecutionStatus.SUCCESS,
            verdict=Verdict.OK,
            output=done.output,
            metadata=done.metadata,
            truncated=done.truncated,
        )

    def _failed(self, status: ExecutionStatus, verdict: Verdict, error: str) -> ToolResult:
        return ToolResult(
            tool_name=self.name, status=status, verdict=verdict, output="", error=error
        )


def _known_encoding(name: str) -> str:
    """The encoding's name, where it is one for text (or `base64`)."""
    if name == "base64":
        return name
    try:
        info = codecs.lookup(name)
        "".encode(name)  # refuses codecs between bytes and bytes
    except (LookupError, ValueError) as error:
        raise ConfigError(f"Unknown encoding: {name}") from error
    return info.name
