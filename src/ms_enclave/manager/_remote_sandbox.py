"""The handle of a sandbox on a server: the same methods, each of which is a request."""

from __future__ import annotations

import errno
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import anyio
import anyio.to_thread
from typing_extensions import override

from ms_enclave import wire
from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._snapshot_plan import validate_snapshot_name
from ms_enclave.boxes.base import Sandbox
from ms_enclave.errors import (
    EnclaveError,
    SandboxLostError,
    SandboxNotFoundError,
    SandboxStateError,
    ToolNotFoundError,
)
from ms_enclave.loop import iterate_on_loop, on_loop, to_the_end
from ms_enclave.manager._remote_commands import RemoteCommand, RemoteShell
from ms_enclave.manager._remote_files import RemoteGuest
from ms_enclave.manager._remote_kernels import RemoteKernel
from ms_enclave.manager._remote_link import path_of
from ms_enclave.model import (
    Checkpoint,
    CommandInfo,
    CommandResult,
    DockerNotebookConfig,
    DockerSandboxConfig,
    FileChange,
    IsolationReport,
    ProcessSandboxConfig,
    SandboxConfig,
    SandboxInfo,
    SandboxStatus,
    SnapshotInfo,
    ToolResult,
    VolcengineSandboxConfig,
)
from ms_enclave.model.kernels import KernelInfo

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AsyncExitStack
    from typing import BinaryIO

    from ms_enclave.boxes._relay import Sink
    from ms_enclave.boxes.commands import Command
    from ms_enclave.boxes.kernels import Kernel
    from ms_enclave.boxes.shells import Shell
    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import Process, SpawnRequest
    from ms_enclave.manager._remote_link import Link
    from ms_enclave.model import Limits
    from ms_enclave.tools.base import Tool

__all__ = ["RemoteSandbox"]

T = TypeVar("T")

STDIN_LIMIT = 11 << 20
"""Bytes of input that go with one request, which has 16 MiB as base64."""

FORK_SECONDS = 60.0
"""What forks may take longer than another call: there may be many of them."""

SNAPSHOT_SECONDS = 120.0
"""The same for all that a sandbox has stored."""

_CONFIGS: dict[str, type[SandboxConfig]] = {
    "process": ProcessSandboxConfig,
    "docker": DockerSandboxConfig,
    "docker_notebook": DockerNotebookConfig,
    "volcengine": VolcengineSandboxConfig,
}

_OVER = frozenset({SandboxStatus.STOPPED, SandboxStatus.ERROR})


class RemoteSandbox(Sandbox):
    """A sandbox on a server. It owns nothing: dropping it changes nothing there.

    What can be read without `await` (`status`, `metadata`, …) is what the server said last; while
    the sandbox may still change, reading it has the server asked anew in the background.
    """

    sandbox_type: str = ""
    config_class: ClassVar[type[SandboxConfig]] = SandboxConfig

    def __init__(self, link: Link, described: dict[str, Any]) -> None:
        info = SandboxInfo.model_validate(described["info"])
        super().__init__(_config(info), info.id)
        self.sandbox_type = info.type
        self._link = link
        self._tools: dict[str, dict[str, Any]] = {}
        self._lent: dict[str, Tool] = {}
        self._open_shells: dict[str, RemoteShell] = {}
        self._open_kernels: dict[str, RemoteKernel] = {}
        self._learn(described)
        link.know(self.id, self)

    def note_end(self) -> None:
        """It was ended by the manager that this handle is of."""
        self._status = SandboxStatus.STOPPED

    def is_over(self) -> bool:
        """Whether it has ended, as far as is known here."""
        return self._status in _OVER

    def _learn(self, described: dict[str, Any]) -> None:
        info = SandboxInfo.model_validate(described["info"])
        self._status = info.status
        self._paused = info.paused
        self.metadata = info.metadata
        self.created_at, self.updated_at = info.created_at, info.updated_at
        self._capabilities = frozenset(described["capabilities"])
        if described["isolation"] is not None:
            self._isolation = IsolationReport.model_validate(described["isolation"])
        self._tools = described["tools"]

    def _path(self, *parts: str, **query: Any) -> str:
        return path_of("sandboxes", self.id, *parts, **query)

    # --- its life ---

    @property
    @override
    def capabilities(self) -> frozenset[str]:
        """Names of what it can do."""
        return self._capabilities

    @property
    @override
    def status(self) -> SandboxStatus:
        """The state it was in when the server said so last."""
        if self._status not in _OVER:
            self._link.look((self.id, "status"), self._look_again)
        return self._status

    @property
    @override
    def idle_seconds(self) -> float:
        """The server's affair: nothing here ends for being idle."""
        return 0.0

    async def _look_again(self) -> None:
        try:
            self._learn(await self._link.get(self._path()))
        except SandboxNotFoundError:
            self._status = SandboxStatus.STOPPED

    @override
    async def start(self) -> None:
        """It has started already, or never will."""
        self._require_running()

    @to_the_end
    @override
    async def stop(self) -> None:
        """Destroy the box and everything in it; it is still listed for a while."""
        with suppress(SandboxNotFoundError):
            await self._link.post(self._path("stop"))
        self._link.tell_end(self.id)

    @property
    @override
    def paused(self) -> bool:
        """Whether it stood still when the server said so last."""
        if self._status not in _OVER:
            self._link.look((self.id, "status"), self._look_again)
        return self._paused

    @on_loop
    @override
    async def _pause(self, wanted: bool) -> None:
        await self._call("POST", "pause" if wanted else "resume")
        self._paused = wanted

    @asynccontextmanager
    @override
    async def _using(self) -> AsyncGenerator[None, None]:
        """A call, of which the answer says whether the sandbox is still there."""
        try:
            yield
        except SandboxNotFoundError as error:
            if error.sandbox_id != self.id:
                raise
            self._status = SandboxStatus.STOPPED
            # What a handle of a box that was deleted says, wherever that box was.
            raise SandboxStateError(
                f"Sandbox {self.id} is not running: the server has it no longer"
            ) from None
        except SandboxLostError as error:
            self._status = SandboxStatus.ERROR
            self.metadata["error"] = error.message
            raise

    async def _call(
        self, method: str, *parts: str, body: Any = None, extra: float | None = 0.0, **query: Any
    ) -> Any:
        path = self._path(*parts, **query)
        async with self._using():
            if method == "GET":
                return await self._link.get(path, extra=extra)
            if method == "SEND":
                return await self._link.send(path, body)
            if method == "DELETE":
                return await self._link.delete(path, extra=extra)
            return await self._link.post(path, body, extra=extra)

    @iterate_on_loop
    async def _events(
        self, method: str, *parts: str, body: Any = None, **query: Any
    ) -> AsyncGenerator[Any, None]:
        events = self._link.events(method, self._path(*parts, **query), body)
        try:
            while True:
                async with self._using():
                    event = await anext(events, None)
                if event is None:
                    return
                yield event
        finally:
            await events.aclose()

    # --- what a backend writes, which this is not ---

    @override
    async def _open(self, stack: AsyncExitStack) -> None:
        raise SandboxStateError("a handle makes no sandbox: its manager does")

    @override
    async def _spawn(self, request: SpawnRequest) -> Process:
        raise SandboxStateError("a handle starts no process: its server does")

    @override
    async def _connect_guest(self, user: str | int | None) -> GuestConnection:
        return cast("GuestConnection", RemoteGuest(self._link, self._path, user))

    @asynccontextmanager
    @override
    async def _use_guest(
        self, user: str | int | None = None
    ) -> AsyncGenerator[GuestConnection, None]:
        async with self._using():
            yield await self._connect_guest(user)

    @asynccontextmanager
    @override
    async def _using_again(self, guest: GuestConnection) -> AsyncGenerator[None, None]:
        del guest
        async with self._using():
            yield

    @iterate_on_loop
    @override
    async def _stream(
        self,
        open_stream: Callable[[GuestConnection], AsyncIterator[T]],
        user: str | int | None = None,
        /,
        *,
        needs: str | None = None,
    ) -> AsyncGenerator[T, None]:
        if needs is not None:
            await self._require(needs)
        chunks = cast("AsyncGenerator[T, None]", open_stream(await self._connect_guest(user)))
        try:
            while True:
                async with self._using():
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            await chunks.aclose()

    # --- running programs ---

    @on_loop
    @override
    async def execute_command(
        self,
        command: str | Sequence[str],
        timeout: float | None = None,
        *,
        stdin: bytes | str | BinaryIO | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        on_output: Sink | None = None,
        stream: bool | None = None,
    ) -> CommandResult:
        """Run a program to its end: a string is a shell line, a list is an argv."""
        del stream
        given = inputs.validate_command(command)
        body = await self._running(timeout, stdin, cwd, env, user, limits)
        body["command"] = given
        return await self._run(("commands", "run"), body, on_output)

    @on_loop
    @override
    async def run_code(
        self,
        code: str,
        *,
        args: Sequence[str] = (),
        stdin: bytes | str | BinaryIO | None = None,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        on_output: Sink | None = None,
    ) -> CommandResult:
        """Run Python source as the `__main__` of a fresh interpreter."""
        source = inputs.validate_code(code)
        words = inputs.validate_args(args)
        body = await self._running(timeout, stdin, cwd, env, user, limits)
        body |= {"code": source, "args": list(words)}
        await self._require("python")
        return await self._run(("code", "run"), body, on_output)

    async def _running(
        self,
        timeout: float | None,
        stdin: bytes | str | BinaryIO | None,
        cwd: str | None,
        env: Mapping[str, str] | None,
        user: str | int | None,
        limits: Limits | Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """The settings, checked here as they are there: what is wrong costs no request."""
        self._settings(timeout, stdin, cwd, env, user, limits, None)
        given = inputs.normalise_stdin(stdin)
        if given is not None and not isinstance(given, bytes):
            given = await anyio.to_thread.run_sync(given.read, STDIN_LIMIT + 1)
        if given is not None and len(given) > STDIN_LIMIT:
            raise OSError(
                errno.EFBIG, f"more than {STDIN_LIMIT >> 20} MiB of input: put it into a file first"
            )
        coerced = inputs.coerce_limits(limits)
        return {
            "timeout": timeout,
            "stdin": wire.encode_bytes(given),
            "cwd": cwd,
            "env": None if env is None else dict(env),
            "user": user,
            "limits": None if coerced is None else coerced.model_dump(exclude_none=True),
        }

    async def _run(
        self, parts: tuple[str, ...], body: dict[str, Any], on_output: Sink | None
    ) -> CommandResult:
        if on_output is None:
            extra = self.config.resolve_limits(None, body["timeout"]).timeout
            return CommandResult.model_validate(
                await self._call("POST", *parts, body=body, extra=extra)
            )
        events = self._events("POST", *parts, "events", body=body)
        try:
            async for event in events:
                if "result" in event:
                    return CommandResult.model_validate(event["result"])
                data = wire.decode_bytes(event["data"]) or b""
                await anyio.to_thread.run_sync(on_output, event["stream"], data)
        finally:
            await events.aclose()
        raise SandboxLostError("the server ended a command without its result")

    @on_loop
    @override
    async def start_command(
        self,
        command: str | Sequence[str],
        *,
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        limits: Limits | Mapping[str, Any] | None = None,
        tag: str | None = None,
    ) -> Command:
        """Start a program that runs on: a string is a shell line, a list is an argv."""
        given, tag = inputs.validate_command(command), inputs.validate_tag(tag)
        size = inputs.validate_size(pty)
        body = await self._running(timeout, None, cwd, env, user, limits)
        del body["stdin"]
        body |= {"command": given, "stdin": bool(stdin), "pty": size, "tag": tag}
        if size is not None:
            await self._require("terminals")
        made = await self._call("POST", "commands", body=body)
        return RemoteCommand(self._call, self._events, self._link, made, self.is_over)

    @on_loop
    @override
    async def get_command(self, command_id: str) -> Command:
        """A handle of a command that `start_command` started."""
        found = await self._call("GET", "commands", command_id)
        return RemoteCommand(self._call, self._events, self._link, found, self.is_over)

    @on_loop
    @override
    async def list_commands(self) -> list[CommandInfo]:
        """The commands that `start_command` started, oldest first."""
        found = await self._call("GET", "commands")
        return [CommandInfo.model_validate(one) for one in found]

    @on_loop
    @override
    async def shell(
        self,
        name: str = "main",
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
    ) -> Shell:
        """The shell of that name."""
        name = inputs.validate_shell_name(name)
        self._settings(None, None, cwd, env, user, None, None)
        await self._require("terminals")
        body = {"name": name, "cwd": cwd, "env": None if env is None else dict(env), "user": user}
        opened = await self._call("POST", "shells", body=body)
        shell = self._open_shells.setdefault(name, RemoteShell(name, self._call, self._link, self))
        shell.learn(opened)
        return shell

    # --- kernels ---

    @on_loop
    @override
    async def kernel(
        self,
        name: str = "default",
        *,
        preload: Sequence[str] = (),
        ipython: bool = True,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Kernel:
        """The kernel of that name, made where there is none."""
        inputs.validate_kernel_name(name)
        modules = inputs.validate_modules(preload)
        self._settings(None, None, cwd, env, None, None, None)
        await self._require("kernel")
        body = {
            "name": name, "preload": list(modules), "ipython": ipython, "cwd": cwd,
            "env": None if env is None else dict(env),
        }  # fmt: skip
        found = await self._call("POST", "kernels", body=body, extra=60.0)
        kernel = RemoteKernel(self._call, self._events, self._link, found, self)
        known = self._open_kernels.setdefault(name, kernel)
        if known.id != kernel.id:
            known = self._open_kernels[name] = kernel
        known.learn(found)
        return known

    def seconds_of(self, timeout: float | None) -> float:
        """How long something may take that is given such a time-out."""
        return self.config.resolve_limits(None, timeout).timeout

    @on_loop
    @override
    async def list_kernels(self) -> list[KernelInfo]:
        """The kernels that it has, the dead ones too."""
        found = await self._call("GET", "kernels")
        return [KernelInfo.model_validate(one["info"]) for one in found]

    # --- forks ---

    @on_loop
    @override
    async def _fork_into(
        self,
        made: list[Sandbox],
        ids: Sequence[str],
        *,
        reseed: bool,
        at: str | None,
        drop: bool,
        new: bool,
    ) -> list[Sandbox]:
        await self._require("fork")
        body: dict[str, Any] = {
            "n": len(ids), "reseed": bool(reseed), "sandbox_ids": list(ids), "at": at,
            "unforkable": "drop" if drop else "refuse",
        }  # fmt: skip
        try:
            async with self._using():
                found = await self._link.post(
                    self._path("fork"), body, extra=FORK_SECONDS, once=False
                )
        except anyio.get_cancelled_exc_class():
            # The server undoes what it was making; it may have been done a moment before. Where the
            # ids are the caller's, what has them may be other sandboxes, that were there before.
            with anyio.CancelScope(shield=True):
                for one in ids if new else ():
                    with suppress(EnclaveError):
                        await self._link.delete(path_of("sandboxes", one))
            raise
        for one in found:
            made.append(type(self)(self._link, one))
            self._link.on_made(made[-1].id)
        return [*made]

    @on_loop
    @override
    async def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keep how it is now, to come back to it."""
        given = None if name is None else inputs.validate_kernel_name(name)
        await self._require("checkpoint")
        said = await self._call("POST", "checkpoints", body={"name": given}, extra=FORK_SECONDS)
        return Checkpoint.model_validate(said)

    @on_loop
    @override
    async def rollback(self, checkpoint: Checkpoint | str) -> None:
        """Be again as it was."""
        await self._require("checkpoint")
        wanted = checkpoint if isinstance(checkpoint, str) else checkpoint.id
        body = {"checkpoint": wanted}
        await self._call("POST", "rollback", body=body, extra=FORK_SECONDS)
        for kernel in [*self._open_kernels.values()]:
            await kernel.look()

    @on_loop
    @override
    async def tree(self) -> list[Checkpoint]:
        """Its checkpoints, the oldest first."""
        await self._require("checkpoint")
        return [Checkpoint.model_validate(one) for one in await self._call("GET", "checkpoints")]

    @on_loop
    @override
    async def diff(
        self, a: Checkpoint | str, b: Checkpoint | str | None = None
    ) -> list[FileChange]:
        """What differs in its files between two checkpoints, or between one and now."""
        await self._require("checkpoint")
        query = {"a": a if isinstance(a, str) else a.id}
        if b is not None:
            query["b"] = b if isinstance(b, str) else b.id
        found = await self._call("GET", "diff", extra=FORK_SECONDS, **query)
        return [FileChange.model_validate(one) for one in found]

    @on_loop
    @override
    async def snapshot(self, name: str) -> SnapshotInfo:
        """Keep its files for new sandboxes to begin with."""
        validate_snapshot_name(name)
        await self._require("snapshot")
        body = {"name": name}
        said = await self._call("POST", "snapshots", body=body, extra=SNAPSHOT_SECONDS)
        return SnapshotInfo.model_validate(said)

    # --- tools ---

    @override
    async def initialize_tools(self) -> None:
        """The server has made them."""

    @override
    def get_available_tools(self) -> dict[str, dict[str, Any]]:
        """The OpenAI schema of every tool, by name."""
        return {name: self._tools[name] for name in self.list_tools()}

    @override
    def list_tools(self) -> list[str]:
        """The names of its tools."""
        return [name for name in self._tools if self._is_enabled(name)]

    def _is_enabled(self, tool_name: str) -> bool:
        lent = self._toolbox.find(tool_name) or self._lent.get(tool_name)
        return lent is None or lent.enabled

    @override
    def get_tool(self, tool_name: str) -> Tool | None:
        """The tool of that name, which runs where it is called: `execute_tool` runs it there."""
        from ms_enclave.tools.base import ToolFactory

        if tool_name not in self._tools:
            return None
        own = self._toolbox.find(tool_name)
        if own is None and tool_name not in self._lent:
            self._lent[tool_name] = ToolFactory.create_tool(tool_name)
        return own or self._lent[tool_name]

    @override
    def add_tool(self, tool: Tool) -> None:
        """Give it a tool of this process, which uses it as one of a local sandbox would."""
        self._toolbox.add(tool)
        self._tools[tool.name] = tool.schema

    @on_loop
    @override
    async def execute_tool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> ToolResult:
        """Run a tool. Wrong parameters are a result (`verdict` "invalid_parameters")."""
        if not self._is_enabled(tool_name):
            raise ToolNotFoundError(f"Tool {tool_name} not found in this sandbox: it is disabled")
        added = self._toolbox.find(tool_name)
        if added is not None:
            return await self._use_tool(added, parameters, timeout)
        return await run_tool(
            self._call, tool_name, parameters, timeout, self.config.resolve_limits(None).timeout
        )


async def run_tool(
    call: Callable[..., Any],
    tool_name: str,
    parameters: Mapping[str, Any] | None,
    timeout: float | None,
    usual: float,
) -> ToolResult:
    """A tool, by whatever way of calling its sandbox."""
    if not isinstance(tool_name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ToolNotFoundError(f"Tool {tool_name} not found in this sandbox")
    body = {"tool_name": tool_name, "parameters": parameters, "timeout": timeout}
    own = None if parameters is None else dict(parameters).get("timeout")
    extra = max(usual, *(s for s in (own, timeout) if isinstance(s, (int, float))), 0.0)
    return ToolResult.model_validate(await call("POST", "tools", "execute", body=body, extra=extra))


def _config(info: SandboxInfo) -> SandboxConfig:
    """The config as it stands there; of a type that is unknown here, what every sandbox has."""
    kind = _CONFIGS.get(info.type, SandboxConfig)
    known = {name: value for name, value in info.config.items() if name in kind.model_fields}
    try:
        return kind.model_validate(known)
    except ValueError as error:
        raise EnclaveError(
            f"the server describes sandbox {info.id} in a way that is none"
        ) from error
