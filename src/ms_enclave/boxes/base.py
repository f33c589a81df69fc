"""What every sandbox is: a life, a way to run programs, its files and its tools.

A backend writes three methods and no more: how its box is made (`_open`), how a process starts in
it (`_spawn`) and how a guest is reached (`_connect_guest`). Everything that is promised about a
sandbox is kept here, once.
"""

from __future__ import annotations

import errno
import posixpath
from abc import abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import anyio
import anyio.to_thread

from ms_enclave.boxes import _execution as execution
from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._command_methods import CommandMethods
from ms_enclave.boxes._environment import BASE_ENVIRONMENT
from ms_enclave.boxes._fork_methods import ForkMethods
from ms_enclave.boxes._guests import Guests
from ms_enclave.boxes._settings import Settings
from ms_enclave.boxes._snapshot_methods import SnapshotMethods
from ms_enclave.boxes._toolbox import Toolbox
from ms_enclave.boxes.files import Files, across_loops, validate_path
from ms_enclave.boxes.ports import Ports
from ms_enclave.channel.process import SpawnRequest
from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    SandboxLostError,
    SandboxStateError,
)
from ms_enclave.loop import iterate_on_loop, on_loop
from ms_enclave.model import (
    CommandResult,
    IsolationReport,
    SandboxConfig,
    SandboxInfo,
    ToolResult,
)

if TYPE_CHECKING:
    from os import PathLike
    from typing import IO, BinaryIO

    from ms_enclave.boxes._relay import Sink
    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import Process
    from ms_enclave.context import SandboxContext
    from ms_enclave.model import Limits
    from ms_enclave.model.diagnosis import Diagnosis, FoundSandbox
    from ms_enclave.tools.base import Tool

__all__ = ["BASE_ENVIRONMENT", "PROCESS_WIDE", "WHOLE", "Keeping", "Sandbox"]

T = TypeVar("T")

WHOLE = frozenset(
    {"python", "kernel", "limits", "isolation", "terminals", "ports", "watch", "network", "pause"}
)
"""Capabilities of a box that can all that boxes can."""

PROCESS_WIDE = "process-wide"
"""The owner of sandboxes that no manager made."""

CONNECT_BOUND = 10.0
"""Seconds that a guest may take to answer for the first time."""

SPOOL_SIZE = 8 << 20
"""Bytes of a folder on its way that are held in memory before a file is used."""

SPOOL_PIECE = 1 << 20

GET_DIR_LIMIT = 8 << 30
GET_DIR_OVERHEAD = 64 << 20
"""What the archive may say about its files, in bytes."""


@dataclass(frozen=True)
class Keeping:
    """How sandboxes of one type outlive their manager."""

    folder: str
    """Where the next manager finds them."""
    seconds: float | None
    """How long one without a `ttl` lives in all; None: for ever, but not without an owner."""


class Sandbox(CommandMethods, ForkMethods, SnapshotMethods, Ports):
    """One sandbox: `CREATED → STARTING → RUNNING → STOPPING → STOPPED`, or `ERROR`.

    A handle. It may be used from any thread and any event loop, also from another one than it
    was started in: everything happens on one private loop. It owns what its backend's `_open`
    acquired, from a successful start until `stop`.

    Cancelling a call ends what the call was doing, never the sandbox; cancelling a start undoes
    it; a stop cannot be cancelled, takes 10 s at most and may be called twice, at the same time
    too. A stop ends the calls that are still running, which raise `SandboxStateError`.
    """

    sandbox_type: str
    """The name under which the backend is registered."""

    config_class: ClassVar[type[SandboxConfig]] = SandboxConfig
    """What its configs are validated with."""

    guest_is_the_box: ClassVar[bool] = True
    """Whether the loss of the guest is the loss of the box. Where it is not, a new guest is made
    for the next call."""

    offers: ClassVar[frozenset[str]] = frozenset()
    """Capabilities that a box of this type has where the machine allows: for error messages."""

    basics: ClassVar[frozenset[str]] = frozenset({"files", "commands"})
    """Capabilities of every box in which something stays between two calls."""

    def __init__(
        self,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> None:
        super().__init__(
            inputs.new_sandbox_id()
            if sandbox_id is None
            else inputs.validate_sandbox_id(sandbox_id)
        )
        self.config: SandboxConfig = inputs.coerce_config(self.config_class, config)
        self.files = Files(self._use_guest, self._stream)
        self._capabilities: frozenset[str] = frozenset()
        self._isolation: IsolationReport | None = None
        self._environment: Mapping[str, str] = BASE_ENVIRONMENT
        self._shell: str | None = None
        self._owner = PROCESS_WIDE
        self._keeping: Keeping | None = None
        self._apart = ""  # ends its name outside, where managers that share an engine may not meet
        self._toolbox = Toolbox()
        self._guests = Guests(self._make_guest, self._own, self._is_the_box)

    # --- what a backend writes ---

    @abstractmethod
    async def _spawn(self, request: SpawnRequest) -> Process:
        """Start one process in the box. The caller closes it."""

    @abstractmethod
    async def _connect_guest(self, user: str | int | None) -> GuestConnection:
        """A connected guest that does all it does as `user`; closed before the box is.

        Called again for the same user only when the last guest of that user has ended.

        Args:
            user: as `_guest_user` gave it; the box's own if None.
        """

    def _guest_user(self, user: str | int | None) -> str | int | None:
        """One name for one user, so that each has one guest; None for the box's own.

        Raises:
            ConfigError, CapabilityError: as `_spawn` does for a user it cannot be.
        """
        return user

    @classmethod
    async def release_owner(cls, owner: str) -> None:
        """Give back what sandboxes of one manager shared. Nothing, unless a backend says so."""
        del owner

    @classmethod
    async def leave_owner(cls, owner: str) -> None:
        """Let go of what sandboxes of one manager shared and what is to outlive it."""
        del owner

    @classmethod
    async def adopt(cls, owner: str, keeping: Keeping) -> list[tuple[Sandbox, float | None]]:
        """Handles, not yet started, of what a last owner left; each with the seconds that its
        `ttl` or a renewal leaves it, or None. Nothing, unless a backend can be left."""
        del owner, keeping
        return []

    async def _renewed(self, seconds: float) -> None:
        """It is to live so long from now: for boxes that see to that themselves."""
        del seconds

    @classmethod
    async def find_all(cls) -> list[FoundSandbox]:
        """What there is of sandboxes of this type, whoever made it, oldest first. Nothing, unless a
        backend keeps them where others can see them.

        Raises:
            EngineUnavailableError: what has them cannot be asked.
        """
        return []

    @classmethod
    async def remove_found(cls, found: Sequence[FoundSandbox]) -> None:
        """Remove what `find_all` found, running ones too. Raises as that does."""
        del found

    @classmethod
    async def clear_cache(cls, *, dry_run: bool = False) -> list[str]:
        """Remove what is kept for later sandboxes of this type and none has now. Raises as
        `find_all` does.

        Args:
            dry_run: only say what that is.

        Returns:
            A few words for each thing.
        """
        del dry_run
        return []

    @classmethod
    async def diagnose(cls) -> Diagnosis:
        """Whether this type works on this machine, and what to do where it does not."""
        from ms_enclave.boxes._diagnose import diagnose_by_starting  # only `doctor` wants it

        return await diagnose_by_starting(cls)

    async def _look(self) -> None:
        """See whether the box is there, where its guest is not all of it.

        Raises:
            SandboxLostError: it is gone.
        """

    async def _reset(self) -> bool:
        """Become as new for a pool's next borrower: truly, with nothing of the last one left.

        False: the box cannot do that, and is replaced.
        """
        return False

    # --- what it is ---

    @property
    def capabilities(self) -> frozenset[str]:
        """Names of what it can do; all of them are known once it has started."""
        return self._capabilities | self.basics

    @property
    def isolation(self) -> IsolationReport:
        """Which walls stand around it.

        Raises:
            SandboxStateError: it has not started, so there are none yet.
        """
        if self._isolation is None:
            raise SandboxStateError(f"Sandbox {self.id} has no isolation before it has started")
        return self._isolation

    @property
    def client(self) -> Any:
        """The engine's client, on backends that have an engine; else None."""
        return None

    @property
    def container(self) -> Any:
        """The engine's container, on backends that have an engine; else None."""
        return None

    def get_info(self) -> SandboxInfo:
        """A description of it, as of now."""
        return SandboxInfo(
            id=self.id,
            status=self._status,
            paused=self._paused,
            type=self.sandbox_type,
            config=self.config.model_dump(mode="json"),
            created_at=self.created_at,
            updated_at=self.updated_at,
            metadata=dict(self.metadata),
            available_tools=self.list_tools(),
        )

    async def get_execution_context(self) -> SandboxContext:
        """What tools see of it."""
        return self

    async def _prepare(self) -> None:
        self.config = self.config.model_copy(deep=True)
        if self.config.snapshot is not None and "snapshot" not in self.offers:
            await self._require("snapshot")
        await self.initialize_tools()

    async def _check(self) -> None:
        self._toolbox.check(self)
        if self.config.atomic or self.config.auto_checkpoint:
            await self._require("checkpoint")

    async def _require(self, capability: str) -> None:
        """Refuse what the box cannot do.

        Raises:
            CapabilityError: it lacks the capability; names the types of box that have it.
        """
        if capability not in self.capabilities:
            from ms_enclave.boxes.factory import (
                types_offering,
            )  # it knows all boxes, boxes no other

            offering = await anyio.to_thread.run_sync(types_offering, capability)  # may import
            raise CapabilityError(capability, available_in=offering)

    @asynccontextmanager
    async def _use_guest(
        self, user: str | int | None = None
    ) -> AsyncGenerator[GuestConnection, None]:
        async with self._using():
            user = self._guest_user(user)
            async with self._guests.use(user) as guest, self._outliving(user, guest):
                yield guest

    @asynccontextmanager
    async def _using_again(self, guest: GuestConnection) -> AsyncGenerator[None, None]:
        """A further call about something that a guest of the sandbox's own user has under way."""
        async with self._using(), self._outliving(None, guest):
            yield

    @asynccontextmanager
    async def _outliving(
        self, user: str | int | None, guest: GuestConnection | None = None
    ) -> AsyncGenerator[None, None]:
        """Where the box is more than this guest, a program that kills the guest loses one call."""
        try:
            yield
        except SandboxLostError as error:
            if self._is_the_box(user) or not (guest is None or guest.is_lost):
                raise
            await self._look()
            text = f"The sandbox's file server was ended by a program in it ({error.message})"
            raise ConnectionResetError(errno.ECONNRESET, text) from error

    def _is_the_box(self, user: str | int | None) -> bool:
        return self.guest_is_the_box and user is None

    async def _make_guest(self, user: str | int | None) -> GuestConnection:
        async with self._outliving(user):
            # Shielded: a greeting that one impatient caller cut short could not be repeated.
            with anyio.move_on_after(CONNECT_BOUND, shield=True):
                return await self._connect_guest(user)
            raise SandboxLostError(f"The guest of sandbox {self.id} does not answer")

    async def _get_guest(self) -> GuestConnection:
        return await self._guests.get()

    @iterate_on_loop
    async def _stream(
        self,
        open_stream: Callable[[GuestConnection], AsyncIterator[T]],
        user: str | int | None = None,
        /,
        *,
        needs: str | None = None,
    ) -> AsyncGenerator[T, None]:
        """Chunks from the guest. Each is a call of its own: whoever reads may take a day."""
        async with AsyncExitStack() as held:
            async with self._using():
                if needs is not None:
                    await self._require(needs)
                user = self._guest_user(user)
                guest = await held.enter_async_context(self._guests.use(user))
                chunks = open_stream(guest)
            try:
                while True:
                    async with self._using(), self._outliving(user, guest):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    yield chunk
            finally:
                if isinstance(chunks, AsyncGenerator):
                    await chunks.aclose()

    # --- running programs ---

    @on_loop
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
        """Run a program to its end: a string is a shell line, a list is an argv.

        The shell is the sandbox's bash, or its `sh` where there is none; `metadata["shell"]` says
        which. `stream` is accepted for the sake of existing code: output is always streamed.

        Args:
            timeout: seconds; the limits' or the config's where None.
            stdin: what it reads; a binary file is read as the program goes on.
            on_output: called with ("stdout" or "stderr", bytes) as output comes, up to the output
                limit; in a worker thread, so it may block. What it raises ends the command.

        Raises:
            ConfigError: an argument is none that a program could be given.
            SandboxStateError: the sandbox is not running.
            SandboxLostError: the sandbox failed; never the program.
        """
        del stream
        given = inputs.validate_command(command)
        settings = self._settings(timeout, stdin, cwd, env, user, limits, on_output)
        async with self._using():
            return await self._see_through(*await self._plan_command(given, settings))

    @on_loop
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
        """Run Python source as the `__main__` of a fresh interpreter; `args` are its `sys.argv`.

        The other arguments are those of `execute_command`.

        Raises:
            CapabilityError: the sandbox has no Python.
            Otherwise as `execute_command`.
        """
        source = inputs.validate_code(code)
        words = inputs.validate_args(args)
        settings = self._settings(timeout, stdin, cwd, env, user, limits, on_output)
        async with self._using():
            await self._require("python")
            return await self._see_through(
                *self._planned(settings, source, {}, code=source, args=words)
            )

    @classmethod
    async def _run_fresh(
        cls,
        owner: str,
        config: SandboxConfig | Mapping[str, Any] | None,
        code: str,
        *,
        stdin: bytes | str | None,
        timeout: float | None,
    ) -> CommandResult | None:
        """Run Python source in a fresh sandbox that nobody has a handle of.

        For boxes that have a shorter way to that than making one, using it and ending it; None
        where there is none. On the private loop. Raises what `start` and `run_code` raise.
        """
        del owner, config, code, stdin, timeout
        return None

    def _settings(
        self,
        timeout: float | None,
        stdin: bytes | str | BinaryIO | None,
        cwd: str | None,
        env: Mapping[str, str] | None,
        user: str | int | None,
        limits: Limits | Mapping[str, Any] | None,
        on_output: Sink | None,
    ) -> Settings:
        seconds = inputs.validate_timeout(timeout)
        return Settings(
            stdin=inputs.normalise_stdin(stdin),
            cwd=inputs.resolve_cwd(cwd, self.config.working_dir),
            env=inputs.merge_environment(self._environment, self.config.env_vars, env),
            user=inputs.validate_user(user),
            limits=self.config.resolve_limits(inputs.coerce_limits(limits), seconds),
            on_output=on_output,
        )

    async def _plan_command(
        self, given: str | list[str], settings: Settings
    ) -> tuple[SpawnRequest, execution.Job]:
        metadata: dict[str, Any] = {}
        shell = ""
        if isinstance(given, str):
            shell = await self._find_shell()
            metadata["shell"] = posixpath.basename(shell)
        argv = inputs.command_argv(given, shell)
        return self._planned(settings, given, metadata, argv=argv)

    def _planned(
        self,
        settings: Settings,
        given: str | list[str],
        metadata: dict[str, Any],
        *,
        argv: tuple[str, ...] | None = None,
        code: str | None = None,
        args: tuple[str, ...] = (),
    ) -> tuple[SpawnRequest, execution.Job]:
        request = SpawnRequest(
            argv=argv,
            code=code,
            args=args,
            cwd=settings.cwd,
            env=settings.env,
            user=settings.user,
            stdin=settings.stdin is not None,
            limits=settings.limits,
        )
        job = execution.Job(
            command=given,
            limits=settings.limits,
            stdin=settings.stdin,
            on_output=settings.on_output,
            isolation=None if self._isolation is None else self._isolation.tier,
            metadata=metadata,
        )
        return request, job

    async def _see_through(self, request: SpawnRequest, job: execution.Job) -> CommandResult:
        """Start a process and see it to its end; boxes may have a shorter way to that."""
        brief = replace(request, brief=True)
        return await execution.execute(lambda: self._spawn(brief), job)

    async def _find_shell(self) -> str:
        if self._shell is None:
            guest = await self._get_guest()
            self._shell = "/bin/bash" if await guest.exists("/bin/bash") else "/bin/sh"
        return self._shell

    # --- files in and out ---

    async def put_file(
        self,
        path: str,
        content: bytes | str | AsyncIterable[bytes],
        encoding: str = "utf-8",
        *,
        user: str | int | None = None,
    ) -> None:
        """Write one file, and the folders above it.

        `user` is, here and below, who in the sandbox does it: see `files.as_user`.

        Raises:
            ConfigError: the path is not absolute.
            Otherwise as `files.write`.
        """
        if not validate_path(path).startswith("/"):
            raise ConfigError(f"file_path must be an absolute path: {path}")
        await self.files.as_user(user).write(path, content, encoding=encoding)

    async def put_dir(
        self, source: str | PathLike[str], target: str, *, user: str | int | None = None
    ) -> None:
        """Copy what is in a folder of the host into a folder of the sandbox, without links.

        Raises:
            ConfigError: the source is not a folder.
        """
        import tempfile

        from ms_enclave.utils.archive import write_directory  # with it comes `tarfile`

        if not await anyio.Path(source).is_dir():
            raise ConfigError(f"put_dir source is not a directory: {source}")
        with tempfile.SpooledTemporaryFile(SPOOL_SIZE) as spool:
            await anyio.to_thread.run_sync(write_directory, source, spool)
            spool.seek(0)
            await self.put_archive(target, _pieces(spool), user=user)

    async def put_archive(
        self,
        target_dir: str,
        data: bytes | AsyncIterable[bytes],
        *,
        user: str | int | None = None,
    ) -> None:
        """Unpack an uncompressed tar in the sandbox, below a folder that is made if needed.

        It is unpacked by the guest, as the user and within the sandbox's disk limit; a member
        that would land outside the folder is refused.
        """
        await self._put_archive(target_dir, across_loops(data), inputs.validate_user(user))

    @on_loop
    async def _put_archive(
        self, target_dir: str, data: bytes | AsyncIterable[bytes], user: str | int | None
    ) -> None:
        async with self._use_guest(user) as guest:
            chunks = _once(data) if isinstance(data, bytes) else data
            await guest.put_archive(validate_path(target_dir), chunks)

    async def get_file(self, path: str, *, user: str | int | None = None) -> bytes:
        """The content of one file."""
        return await self.files.as_user(user).read(path)

    def get_archive(
        self, path: str, *, user: str | int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A file or folder as a stream of tar. Made inside: to be unpacked with care."""
        text = validate_path(path)
        return self._stream(lambda guest: guest.get_archive(text), inputs.validate_user(user))

    async def get_dir(
        self,
        source: str,
        target: str | PathLike[str],
        *,
        user: str | int | None = None,
        max_bytes: int = GET_DIR_LIMIT,
    ) -> None:
        """Copy a folder of the sandbox into a folder of the host, which is made if needed.

        What comes out is hostile: only plain files and folders that stay below the target are
        taken, links and devices are left out.

        Args:
            max_bytes: what it may take on the host; what is inside decides how much there is.

        Raises:
            ConfigError: the archive holds something that cannot be taken safely, or is larger.
        """
        import tempfile

        from ms_enclave.utils.archive import extract_tar

        limit = inputs.validate_count("max_bytes", max_bytes)
        size = 0
        with tempfile.SpooledTemporaryFile(SPOOL_SIZE) as spool:
            async with aclosing(self.get_archive(source, user=user)) as chunks:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit + GET_DIR_OVERHEAD:
                        raise ConfigError(f"{source} has more than {limit} bytes")
                    await anyio.to_thread.run_sync(spool.write, chunk)
            extract = partial(extract_tar, spool, Path(target), max_bytes=limit)
            await anyio.to_thread.run_sync(extract)

    # --- tools ---

    async def initialize_tools(self) -> None:
        """Make the tools that the config names. `start` does it; a second time changes nothing.

        Raises:
            UnknownTypeError, ConfigError: the config names a tool or an option there is not.
        """
        # Finding a tool by name may import it, which no event loop should wait for.
        await anyio.to_thread.run_sync(self._toolbox.load, self.config.tools_config)

    def get_available_tools(self) -> dict[str, dict[str, Any]]:
        """The OpenAI schema of every tool, by name."""
        return self._toolbox.schemas()

    def list_tools(self) -> list[str]:
        """The names of its tools."""
        return self._toolbox.names()

    def get_tool(self, tool_name: str) -> Tool | None:
        """The tool of that name, or None."""
        return self._toolbox.find(tool_name)

    def add_tool(self, tool: Tool) -> None:
        """Give it a tool, replacing one of the same name.

        Raises:
            ConfigError: it is no `Tool`.
        """
        self._toolbox.add(tool)

    @on_loop
    async def execute_tool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> ToolResult:
        """Run a tool. Wrong parameters are a result (`verdict` "invalid_parameters").

        With `auto_checkpoint` in its config there is a checkpoint `auto` of how it was before, and
        the result's `metadata["checkpoint"]` has its id. Where the sandbox cannot be kept, the tool
        runs all the same, and `metadata["checkpoint_refused"]` says what was in the way.

        Args:
            timeout: seconds, of the request: a `timeout` among the parameters goes before it.

        Raises:
            ToolNotFoundError: the sandbox has no such tool.
            SandboxStateError, SandboxLostError: as `execute_command`.
        """
        tool = self._toolbox.get(tool_name)
        async with self._using():
            return await self._use_tool(tool, parameters, timeout)

    async def _use_tool(
        self, tool: Tool, parameters: Mapping[str, Any] | None, timeout: float | None
    ) -> ToolResult:
        if not self.config.auto_checkpoint or tool.has_checkpoints:
            return await tool.call(self, parameters, timeout=timeout)
        kept = await self._keep_before_tool()
        result = await tool.call(self, parameters, timeout=timeout)
        return result.model_copy(update={"metadata": {**result.metadata, **kept}})


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await anyio.to_thread.run_sync(file.read, SPOOL_PIECE):
        yield piece
