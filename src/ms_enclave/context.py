"""All that a tool may ask of a sandbox.

A tool is written against `SandboxContext` and works in every box, local or remote, ours or a third
party's. It never learns what the box is made of: where that matters, it asks `capabilities`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
    from os import PathLike

    from ms_enclave.model import (
        Checkpoint,
        CommandInfo,
        CommandResult,
        Execution,
        FileInfo,
        Limits,
        OutputChunk,
        SandboxConfig,
        SandboxStatus,
        SearchMatch,
        Verdict,
    )
    from ms_enclave.model.kernels import OnInput

__all__ = [
    "CheckpointContext",
    "CommandContext",
    "FilesContext",
    "KernelContext",
    "LanguageContext",
    "SandboxContext",
]


@runtime_checkable
class FilesContext(Protocol):
    """The files of one sandbox. A relative path starts at the sandbox's working folder.

    Methods raise the builtin errors that name the trouble (`FileNotFoundError`,
    `IsADirectoryError`, `NotADirectoryError`, `PermissionError`, `FileExistsError`, `OSError`),
    `ConfigError` for a path that no sandbox can have, `SandboxLostError` when the box is gone.
    """

    def as_user(self, user: str | int | None) -> FilesContext:
        """The same files as another user of the sandbox, as of `execute_command`.

        Methods of the view raise what that raises for a user whom the sandbox cannot be.
        """
        ...

    async def read(self, path: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """The bytes of a file, from `offset` on, at most `limit` of them."""
        ...

    async def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """The whole content of a text file; bytes that do not decode are replaced."""
        ...

    def read_stream(
        self, path: str, *, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[bytes]:
        """The same in pieces; the file may be of any length."""
        ...

    async def write(self, path: str, data: bytes | str | AsyncIterable[bytes]) -> int:
        """Create or replace a file, and the folders above it. Gives the bytes written."""
        ...

    async def list(self, path: str = ".", depth: int = 1) -> list[FileInfo]:
        """The entries below a folder, `depth` levels deep."""
        ...

    async def stat(self, path: str) -> FileInfo:
        """What one path is. A symbolic link is reported as what it points to."""
        ...

    async def exists(self, path: str) -> bool:
        """Whether there is anything at a path."""
        ...

    async def mkdir(self, path: str) -> None:
        """Make a folder and the folders above it; one that exists is left alone."""
        ...

    async def move(self, source: str, target: str) -> None:
        """Rename a file or a folder."""
        ...

    async def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file or a link; a folder only when `recursive`."""
        ...

    async def search(self, pattern: str, path: str = ".") -> list[SearchMatch]:
        """The lines of text files at or below a path that a regular expression matches."""
        ...

    async def replace(self, path: str, old: str, new: str) -> int:
        """Replace every occurrence of a text in a file. Gives the number of replacements."""
        ...


@runtime_checkable
class KernelContext(Protocol):
    """A Python of the sandbox that keeps its variables from one cell to the next."""

    @property
    def death(self) -> Verdict | None:
        """Why it is dead; None while it lives."""
        ...

    async def run(
        self, code: str, *, timeout: float | None = None, on_input: OnInput | None = None
    ) -> Execution:
        """Run a cell and wait for its end."""
        ...

    async def restart(self) -> None:
        """End what it is, and start it anew with nothing in it."""
        ...


@runtime_checkable
class CommandContext(Protocol):
    """A program of the sandbox that runs on between calls."""

    @property
    def id(self) -> str:
        """The name under which `get_command` finds it."""
        ...

    @property
    def returncode(self) -> int | None:
        """None while it runs; then its exit code."""
        ...

    @property
    def cursor(self) -> int:
        """Bytes that it has printed so far."""
        ...

    @property
    def takes_input(self) -> bool:
        """Whether it was started to be given input, and that has not been closed."""
        ...

    async def read(
        self, *, after: int = 0, max_bytes: int = 1 << 20, wait: float = 0.0
    ) -> OutputChunk:
        """What it has printed from a cursor on; waits so many seconds where there is nothing."""
        ...

    async def write(self, data: bytes | str) -> None:
        """Give it input."""
        ...

    async def kill(self) -> None:
        """End it with everything that it started."""
        ...

    async def wait(self, timeout: float | None = None) -> CommandResult:
        """Wait for its end; a time-out (`TimeoutError`) ends the wait only."""
        ...


@runtime_checkable
class LanguageContext(Protocol):
    """A sandbox with the capability `languages`: it compiles and runs programs by itself."""

    async def run_language(
        self,
        language: str,
        code: str,
        *,
        files: Mapping[str, bytes | str] | None = None,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        compile_timeout: float | None = None,
    ) -> CommandResult:
        """Compile and run one program, and wait for its end.

        Args:
            files: further files beside the program, by relative name.
            timeout: seconds for running; the sandbox's own where None.
            compile_timeout: seconds for compiling.

        Raises:
            ConfigError: the sandbox does not have that language.
        """
        ...


@runtime_checkable
class CheckpointContext(Protocol):
    """A sandbox with the capability `checkpoint`: it can be again as it was."""

    async def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keep how it is now.

        Raises:
            ConfigError: the name is none.
            ForkRefusedError: something in it cannot be kept; `blockers` name it.
        """
        ...

    async def rollback(self, checkpoint: Checkpoint | str) -> None:
        """Be again as it was. Whatever runs in it ends."""
        ...

    async def tree(self) -> list[Checkpoint]:
        """Its checkpoints, the oldest first."""
        ...


@runtime_checkable
class SandboxContext(Protocol):
    """What a tool sees of the sandbox it runs in."""

    @property
    def id(self) -> str:
        """The sandbox's name in its manager."""
        ...

    @property
    def config(self) -> SandboxConfig:
        """What the sandbox was made with. To be read, not changed."""
        ...

    @property
    def sandbox_type(self) -> str:
        """The registered name of the backend: for messages, never for decisions."""
        ...

    @property
    def status(self) -> SandboxStatus:
        """The sandbox's state."""
        ...

    @property
    def capabilities(self) -> frozenset[str]:
        """What the sandbox can do, by name (`files`, `python`, …)."""
        ...

    @property
    def files(self) -> FilesContext:
        """The sandbox's files."""
        ...

    async def execute_command(
        self,
        command: str | Sequence[str],
        timeout: float | None = None,
        *,
        stdin: bytes | str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        limits: Limits | None = None,
    ) -> CommandResult:
        """Run a shell line (a string) or a program (a list) and wait for its end.

        Args:
            timeout: seconds; the sandbox's own where None.
        """
        ...

    async def run_code(
        self,
        code: str,
        *,
        args: Sequence[str] = (),
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        limits: Limits | None = None,
    ) -> CommandResult:
        """Run Python source as a fresh `__main__`. Needs the capability `python`.

        Args:
            timeout: seconds; the sandbox's own where None.

        Raises:
            CapabilityError: the sandbox has no Python.
        """
        ...

    async def start_command(
        self,
        command: str | Sequence[str],
        *,
        stdin: bool = False,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
        tag: str | None = None,
    ) -> CommandContext:
        """Start a shell line (a string) or a program (a list) that runs on by itself.

        Args:
            timeout: seconds after which it is ended; never where None.
        """
        ...

    async def get_command(self, command_id: str) -> CommandContext:
        """One that was started.

        Raises:
            CommandNotFoundError: none has that id.
        """
        ...

    async def list_commands(self) -> list[CommandInfo]:
        """All that were started, oldest first; of those that have ended, the last."""
        ...

    async def kernel(self, name: str = "default") -> KernelContext:
        """The kernel of that name, made where there is none. Needs the capability `kernel`."""
        ...

    async def put_file(
        self,
        path: str,
        content: bytes | str | AsyncIterable[bytes],
        encoding: str = "utf-8",
        *,
        user: str | int | None = None,
    ) -> None:
        """Write one file into the sandbox. The path is absolute."""
        ...

    async def put_dir(
        self, source: str | PathLike[str], target: str, *, user: str | int | None = None
    ) -> None:
        """Copy a folder of the host into the sandbox."""
        ...

    async def put_archive(
        self,
        target_dir: str,
        data: bytes | AsyncIterable[bytes],
        *,
        user: str | int | None = None,
    ) -> None:
        """Unpack an uncompressed tar below a folder of the sandbox."""
        ...

    async def get_file(self, path: str, *, user: str | int | None = None) -> bytes:
        """The content of one file of the sandbox."""
        ...

    async def get_dir(
        self, source: str, target: str | PathLike[str], *, user: str | int | None = None
    ) -> None:
        """Copy a folder of the sandbox to the host."""
        ...

    def get_archive(self, path: str, *, user: str | int | None = None) -> AsyncIterator[bytes]:
        """A folder of the sandbox as a stream of tar."""
        ...
