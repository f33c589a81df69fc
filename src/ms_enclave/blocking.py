"""The same manager, sandboxes and files for ordinary code, without `async` and `await`.

Every call runs on the one private event-loop thread and blocks until it has ended; Ctrl-C cancels
what it was doing and waits for the clean-up. Async iterators are iterators here, and async context
managers context managers. `run` is the whole of it in one line.

Written by scripts/generate_blocking.py from the async source: change that, not this.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import anyio.to_thread

from ms_enclave.boxes import base as _base
from ms_enclave.boxes import commands as _commands
from ms_enclave.boxes import factory as _factory
from ms_enclave.boxes import files as _files
from ms_enclave.boxes import ports as _ports
from ms_enclave.boxes import shells as _shells
from ms_enclave.errors import ConfigError
from ms_enclave.loop import call, enter, iterate
from ms_enclave.manager import base as _manager
from ms_enclave.manager import http_manager as _http_manager
from ms_enclave.manager import local_manager as _local_manager

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
    from datetime import datetime
    from os import PathLike
    from types import TracebackType
    from typing import BinaryIO, Literal

    from typing_extensions import Self

    from ms_enclave.boxes import kernels as _kernels
    from ms_enclave.boxes._relay import Sink
    from ms_enclave.manager._policy import Clock
    from ms_enclave.model import (
        Checkpoint,
        CommandInfo,
        CommandResult,
        FileChange,
        FileEvent,
        FileInfo,
        IsolationReport,
        Limits,
        OutputChunk,
        OutputEvent,
        PortInfo,
        SandboxConfig,
        SandboxInfo,
        SandboxManagerConfig,
        SandboxStatus,
        SearchMatch,
        SnapshotInfo,
        ToolResult,
        Verdict,
    )
    from ms_enclave.model.kernels import Execution, KernelEvent, KernelInfo, KernelStatus, OnInput
    from ms_enclave.tools.base import Tool

__all__ = [
    "Command",
    "Files",
    "HttpSandboxManager",
    "Kernel",
    "LocalSandboxManager",
    "PortStream",
    "Sandbox",
    "SandboxFactory",
    "SandboxManager",
    "SandboxManagerFactory",
    "Shell",
    "run",
]

_END: Any = object()


def _feed(data: Any) -> Any:
    """An iterable of pieces as the async one that our loop reads; each step runs in a thread."""
    if isinstance(data, (bytes, bytearray, memoryview, str)) or not isinstance(data, Iterable):
        return cast("Any", data)
    return _pieces(cast("Iterable[bytes]", data))


async def _pieces(data: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    steps = iter(data)
    while (piece := await anyio.to_thread.run_sync(next, steps, _END)) is not _END:
        yield piece


class Files:
    """Files of a running sandbox. Relative paths start at its working folder.

    It owns nothing: every call borrows the sandbox's guest for as long as it takes, ends with the
    sandbox and can be cancelled at any time; a cancelled write leaves what was written so far.

    Raises, from every method:
        FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError,
        FileExistsError, OSError: as the same call would inside the sandbox (a full disk is
        `OSError` with `ENOSPC`).
        ConfigError: the path is not one, or the sandbox does not know the user.
        CapabilityError: the sandbox cannot work as that user.
        SandboxStateError: the sandbox is not running.
        SandboxLostError: the sandbox was lost during the call.
    """

    def __init__(self, target: _files.Files) -> None:
        self._target = target

    def as_user(self, user: str | int | None) -> Files:
        """The same files as another user of the sandbox; as its own user for None.

        That user's rights decide what can be done, and what is made belongs to that user. Users
        are those of `execute_command`.

        Raises:
            ConfigError: it is no name or number. Whether the sandbox has it, a call tells.
        """
        return Files(self._target.as_user(user))

    def read(self, path: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """The bytes of a file, from `offset` on and at most `limit` of them.

        Without a limit a file above 256 MiB is refused (`OSError` with `EFBIG`), because what is
        inside decides how long it is: `read_stream` takes any length.
        """
        return call(self._target.read, path, offset=offset, limit=limit)

    def read_text(self, path: str, encoding: str = "utf-8", errors: str = "replace") -> str:
        """The text of a file; bytes that do not decode are replaced unless `errors` says else."""
        return call(self._target.read_text, path, encoding, errors)

    def read_stream(
        self, path: str, *, offset: int = 0, limit: int | None = None
    ) -> Iterator[bytes]:
        """The bytes of a file in pieces; the file may be of any length."""
        return iterate(self._target.read_stream, path, offset=offset, limit=limit)

    def write(
        self,
        path: str,
        data: bytes | str | Iterable[bytes],
        *,
        encoding: str = "utf-8",
        mode: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = True,
    ) -> int:
        """Write a file, making the folders above it; returns the bytes written.

        `exclusive` raises `FileExistsError` where there is one, `append` adds to it. `data` may
        be an iterable of any length: it is read on the caller's own loop.
        """
        return call(
            self._target.write,
            path,
            _feed(data),
            encoding=encoding,
            mode=mode,
            append=append,
            exclusive=exclusive,
            parents=parents,
        )

    def list(
        self, path: str = ".", depth: int = 1, *, limit: int = 100000
    ) -> builtins.list[FileInfo]:
        """What is in a folder, `depth` levels down, at most `limit` entries, sorted by path."""
        return call(self._target.list, path, depth, limit=limit)

    def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """What a path is: type, size in bytes, mode, time of its last change."""
        return call(self._target.stat, path, follow=follow)

    def exists(self, path: str) -> bool:
        """Whether there is anything at a path."""
        return call(self._target.exists, path)

    def mkdir(self, path: str, *, parents: bool = True) -> None:
        """Make a folder, by default also those above it; one that is there already is fine then."""
        call(self._target.mkdir, path, parents=parents)

    def move(self, source: str, target: str) -> None:
        """Rename a file or folder, replacing a file at the target."""
        call(self._target.move, source, target)

    def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, a link (never what it points to) or a folder.

        A folder that is not empty needs `recursive`.
        """
        call(self._target.remove, path, recursive)

    def search(
        self, pattern: str, path: str = ".", *, limit: int = 1000
    ) -> builtins.list[SearchMatch]:
        """Lines that match a regular expression, in a file or anywhere below a folder.

        Args:
            limit: matches at most; more are not looked for.

        Raises:
            ConfigError: the pattern is no regular expression, or `limit` is not above 0.
            FileNotFoundError: there is nothing at the path.
        """
        return call(self._target.search, pattern, path, limit=limit)

    def watch(self, path: str = ".", *, recursive: bool = False) -> Iterator[FileEvent]:
        """What changes in a folder from now on, with `recursive` also below it, through no link.

        The first event has the type `watching`: what happens after it is told. It goes on until
        the iterator is closed, the folder is gone (its deletion is the last event) or the sandbox
        is. Whoever is slow is held up by nothing and holds up nobody: where more happened than the
        sandbox's kernel remembers, an event of the type `lost` says so.

        Raises:
            CapabilityError: the sandbox lacks the capability `watch`.
            NotADirectoryError: it is no folder.
            OSError: `ENOSPC`, there are more than 8,192 folders, or more than the machine lets be
                watched; `EMFILE`, the sandbox has too many watches and connections already.
        """
        return iterate(self._target.watch, path, recursive=recursive)

    def replace(self, path: str, old: str, new: str, *, count: int | None = None) -> int:
        """Replace a string in a text file, everywhere or the first `count` times.

        Returns how many were replaced; 0 leaves the file as it is.

        Raises:
            ConfigError: `old` is empty, or `count` is not above 0.
            FileNotFoundError, IsADirectoryError: there is no file at the path.
        """
        return call(self._target.replace, path, old, new, count=count)


class PortStream:
    """Bytes to and from a port of a sandbox, as any byte stream of anyio's.

    `send` returns when the bytes are on their way, and waits while whoever listens takes none.
    What is received waits in the sandbox: at most a few hundred KiB of it are held here.

    Raises, from every method but `aclose`:
        anyio.EndOfStream: the other side has ended its way, and everything was received.
        anyio.BrokenResourceError: the connection broke, or nobody listens any more.
        anyio.ClosedResourceError: it was closed.
        anyio.BusyResourceError: another task does the same at this moment.
        SandboxStateError, SandboxLostError: the sandbox was stopped or lost.
    """

    def __init__(self, target: _ports.PortStream) -> None:
        self._target = target

    def receive(self, max_bytes: int = 65536) -> bytes:
        """The next bytes, at most so many."""
        return call(self._target.receive, max_bytes)

    def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        call(self._target.send, item)

    def send_eof(self) -> None:
        """End the way there; what comes from there can still be received."""
        call(self._target.send_eof)

    def aclose(self) -> None:
        """End both ways. What was sent before is still delivered, as far as somebody reads it."""
        call(self._target.aclose)

    def __enter__(self) -> Self:
        call(self._target.__aenter__)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        call(self._target.__aexit__, exc_type, exc, traceback)


class Shell:
    """A shell in a sandbox: what one line changes, the next one finds.

    A handle that may be used from any thread and event loop; the shell lives until `close` or the
    sandbox's end. Lines run one at a time, in the order in which they were asked for. A line that
    is cancelled, or whose time is over, is interrupted, and where that does not help what it has in
    the foreground is killed; jobs in the background go on.

    A line may end the shell (`exit`, `exec`), or anything else may. Then the line's result says so
    (`metadata["shell_ended"]`), and the next line runs in a new shell (`metadata["new_shell"]`).

    Raises, from every method:
        SandboxStateError: the sandbox is not running.
        SandboxLostError: the sandbox was lost.
    """

    def __init__(self, target: _shells.Shell) -> None:
        self._target = target

    @property
    def name(self) -> str:
        """As the async one has it."""
        return self._target.name

    @property
    def pid(self) -> int | None:
        """The shell's process id, as seen inside; None where there is none at the moment."""
        return self._target.pid

    def run(self, line: str, timeout: float | None = None) -> CommandResult:
        """Run a line, or several, and give what it printed and its status.

        Its input is empty. What jobs printed since the last line comes with this one. The result
        has no `usage`: the shell's limits and figures are those of all its lines together.

        Args:
            timeout: seconds, of the config where None; the line is ended then, not the shell.

        Raises:
            ConfigError: the line is empty or has a NUL byte, or `timeout` is not valid.
            BlockingIOError: a new shell is needed, and the sandbox has no terminal left for it.
        """
        return call(self._target.run, line, timeout)

    def interrupt(self) -> None:
        """Interrupt the line that is running, as Ctrl-C does. Nothing happens where there is none.

        It is for a program to make of that what it wants; the line's own time-out insists.
        """
        call(self._target.interrupt)

    def close(self) -> None:
        """End the shell with its jobs. The next line would begin a new one. Idempotent."""
        call(self._target.close)

    def end_with_box(self) -> None:
        """Its sandbox is about to end."""
        call(self._target.end_with_box)


class Command:
    """A command that runs on by itself, like a `Popen`. A handle: dropping it changes nothing.

    What it prints is taken in whether it is read or not, so it never waits for a reader. The
    newest output is held in memory and older output in the sandbox's own files, up to the output
    limit; what is older still is lost, and `lost` says how much.

    Raises, from every method:
        SandboxStateError: the sandbox is not running; its commands have ended with it.
        SandboxLostError: the sandbox was lost.
    """

    def __init__(self, target: _commands.Command) -> None:
        self._target = target

    @property
    def id(self) -> str:
        """As the async one has it."""
        return self._target.id

    @property
    def pid(self) -> int:
        """As the async one has it."""
        return self._target.pid

    @property
    def command(self) -> str | list[str]:
        """As the async one has it."""
        return self._target.command

    @property
    def tag(self) -> str | None:
        """As the async one has it."""
        return self._target.tag

    @property
    def returncode(self) -> int | None:
        """None while it runs; then its exit code, as in `CommandResult`."""
        return self._target.returncode

    @property
    def cursor(self) -> int:
        """Bytes that it has printed so far."""
        return self._target.cursor

    @property
    def takes_input(self) -> bool:
        """Whether it was started to be given input, and that has not been closed."""
        return self._target.takes_input

    def events(self, *, after: int = 0) -> Iterator[OutputEvent]:
        """What it prints, from a cursor on, as it comes; ends with the command.

        Raises:
            ConfigError: `after` is not a cursor that it has had.
        """
        return iterate(self._target.events, after=after)

    def read(self, *, after: int = 0, max_bytes: int = 1 << 20, wait: float = 0.0) -> OutputChunk:
        """What it has printed from a cursor on, on all its streams in the order in which it came.

        Args:
            after: a cursor that an event or a chunk gave; 0 for the beginning.
            max_bytes: at most so many, and never more than 16 MiB.
            wait: seconds to wait for something where there is nothing yet.

        Raises:
            ConfigError: an argument is not valid, or `after` is not a cursor that it has had.
        """
        return call(self._target.read, after=after, max_bytes=max_bytes, wait=wait)

    def write(self, data: bytes | str) -> None:
        """Give it input; waits while it does not read what it was given before.

        Raises:
            SandboxStateError: it was started without `stdin=True`, or its input was closed.
            BrokenPipeError: it has ended, or reads no more.
        """
        call(self._target.write, data)

    def close_stdin(self) -> None:
        """Its input ends here. Nothing happens where it has ended already. Into a terminal Ctrl-D
        is typed, which ends what reads there and is not for ever.

        Raises:
            SandboxStateError: it was started without `stdin=True`.
        """
        call(self._target.close_stdin)

    def send_signal(self, signal: int | str) -> None:
        """Send it a signal, by number or name ("INT", "SIGINT"); nothing where it has ended.

        Raises:
            ConfigError: there is no such signal.
        """
        call(self._target.send_signal, signal)

    def kill(self) -> None:
        """End it with everything that it started; returns when that is gone."""
        call(self._target.kill)

    def resize(self, rows: int, cols: int) -> None:
        """Give its terminal another size; it gets SIGWINCH. Nothing happens after its end.

        Raises:
            ConfigError: no terminal is of such a size.
            SandboxStateError: it was started without `pty`.
        """
        call(self._target.resize, rows, cols)

    def wait(self, timeout: float | None = None) -> CommandResult:
        """Wait for its end and give its result, with the newest output up to the output limit.

        May be called any number of times, by many.

        Raises:
            TimeoutError: it did not end within `timeout` seconds; it runs on.
        """
        return call(self._target.wait, timeout)


class Kernel:
    """A Python in a sandbox that keeps its variables from one cell to the next.

    A handle that may be used from any thread and event loop; the kernel lives until it or its
    sandbox is ended. Cells run one at a time, in the order in which they were asked for. A cell
    that is cancelled, or whose time is over, is interrupted and keeps the variables; one that does
    not yield within two seconds is killed with its kernel. A kernel that died stays dead, with
    `death` saying why, until it is restarted.
    """

    def __init__(self, target: _kernels.Kernel) -> None:
        self._target = target

    @property
    def id(self) -> str:
        """As the async one has it."""
        return self._target.id

    @property
    def name(self) -> str:
        """As the async one has it."""
        return self._target.name

    @property
    def created_at(self) -> datetime:
        """As the async one has it."""
        return self._target.created_at

    @property
    def status(self) -> KernelStatus:
        """Whether it can take a cell, has one, or none will ever be taken."""
        return self._target.status

    @property
    def death(self) -> Verdict | None:
        """Why it is dead, by the word of who is outside; None while it lives."""
        return self._target.death

    @property
    def death_reason(self) -> str:
        """The same in words; empty while it lives."""
        return self._target.death_reason

    def get_info(self) -> KernelInfo:
        """A description of it, as of now."""
        return self._target.get_info()

    def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        atomic: bool | None = None,
        on_input: OnInput | None = None,
    ) -> Execution:
        """Run a cell and wait for its end. What the cell does is a result, whatever it is.

        Args:
            timeout: seconds; the sandbox's own where None.
            atomic: whether nothing of a cell stays that does not succeed, whatever became of it:
                variables, open files, folder and the sandbox's files are then as before it, and a
                kernel that it killed lives. What lies outside of the sandbox is not undone. As
                the sandbox's config says where None.
            on_input: called with the prompt when the cell calls `input`; what it gives is the
                answer. One that is not async may block. Without it `input` raises in the cell.

        Raises:
            ConfigError: the code is none, or longer than 8 MiB.
            SandboxStateError: the kernel is dead, or the sandbox is not running.
            SandboxLostError: the sandbox failed.
            CapabilityError, ForkRefusedError: the cell cannot be atomic; it has not run.
        """
        return call(self._target.run, code, timeout=timeout, atomic=atomic, on_input=on_input)

    def run_stream(
        self,
        code: str,
        *,
        timeout: float | None = None,
        atomic: bool | None = None,
        on_input: OnInput | None = None,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
    ) -> Iterator[KernelEvent]:
        """Run a cell and give what it says as it says it, in Jupyter's messages.

        The last event is the `execute_reply`, which has the whole outcome as `execution`. Left
        early, the cell is interrupted. Arguments and exceptions are those of `run`.

        Args:
            silent: whether the cell has no number and shows no result and no error.
            store_history: whether the cell is counted.
            user_expressions: by name, what to evaluate after the cell; the values are in the
                content of the `execute_reply`.
        """
        return iterate(
            self._target.run_stream,
            code,
            timeout=timeout,
            atomic=atomic,
            on_input=on_input,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
        )

    def answer(self, text: str) -> None:
        """Answer the `input` that the running cell waits in; nothing where it does not."""
        call(self._target.answer, text)

    def interrupt(self) -> None:
        """Interrupt the cell that runs, as Ctrl-C would; nothing where none does."""
        call(self._target.interrupt)

    def restart(self) -> None:
        """End what it is, if it lives, and start it anew with nothing in it. A cell that is
        running ends as cancelled.
        """
        call(self._target.restart)

    def delete(self) -> None:
        """End it for good, with all that it started. May be called twice."""
        call(self._target.delete)


class Sandbox:
    """One sandbox: `CREATED → STARTING → RUNNING → STOPPING → STOPPED`, or `ERROR`.

    A handle. It may be used from any thread and any event loop, also from another one than it
    was started in: everything happens on one private loop. It owns what its backend's `_open`
    acquired, from a successful start until `stop`.

    Cancelling a call ends what the call was doing, never the sandbox; cancelling a start undoes
    it; a stop cannot be cancelled, takes 10 s at most and may be called twice, at the same time
    too. A stop ends the calls that are still running, which raise `SandboxStateError`.
    """

    def __init__(self, target: _base.Sandbox) -> None:
        self._target = target

    @property
    def id(self) -> str:
        """As the async one has it."""
        return self._target.id

    @property
    def sandbox_type(self) -> str:
        """As the async one has it."""
        return self._target.sandbox_type

    @property
    def config(self) -> SandboxConfig:
        """As the async one has it."""
        return self._target.config

    @property
    def metadata(self) -> dict[str, Any]:
        """As the async one has it."""
        return self._target.metadata

    @property
    def created_at(self) -> datetime:
        """As the async one has it."""
        return self._target.created_at

    @property
    def updated_at(self) -> datetime:
        """As the async one has it."""
        return self._target.updated_at

    @property
    def files(self) -> Files:
        """As the async one has it."""
        return Files(self._target.files)

    @property
    def status(self) -> SandboxStatus:
        """The state it is in."""
        return self._target.status

    @property
    def paused(self) -> bool:
        """Whether everything in it stands still, until `resume`."""
        return self._target.paused

    @property
    def idle_seconds(self) -> float:
        """Seconds since it started or the last call ended; 0 while it starts or one is running."""
        return self._target.idle_seconds

    def start(self) -> None:
        """Make the box. A second call finds it running and does nothing.

        The config is copied: changing the caller's object afterwards changes nothing.

        Raises:
            SandboxStateError: it was stopped before, or while it was starting.
            SandboxStartError, IsolationUnavailableError, ConfigError: it cannot be made here.
        """
        call(self._target.start)

    def stop(self) -> None:
        """Destroy the box and everything in it. Always finishes, and may be called again.

        Raises:
            EnclaveError: something of the box could not be removed; its status is ERROR then.
        """
        call(self._target.stop)

    def pause(self) -> None:
        """Have everything in it stand still: it uses no processor time until `resume`.

        The memory that the kernel can read again, such as files, is given back to the machine; the
        rest stays as it is. Time goes on: a `ttl`, and the time-outs of calls that are under way,
        which wait until it is resumed and are judged then. New calls are refused; `stop` works. A
        paused sandbox stays so when it is paused again.

        Raises:
            CapabilityError: the box cannot do that here: without control groups, say.
            SandboxStateError: it is not running, or did not come to a halt: then it goes on.
        """
        call(self._target.pause)

    def resume(self) -> None:
        """Let it go on after `pause`. One that is not paused just goes on.

        Raises:
            CapabilityError, SandboxStateError, SandboxLostError: as `pause`.
        """
        call(self._target.resume)

    def cleanup(self) -> None:
        """Leave nothing behind: the same as `stop`."""
        call(self._target.cleanup)

    def start_command(
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
        """Start a program that runs on: a string is a shell line, a list is an argv.

        It outlives its handle and every call, and ends with the sandbox at the latest. The other
        arguments are those of `execute_command`.

        Args:
            stdin: whether it is given input, by `write`; otherwise its input is empty.
            pty: rows and columns of a terminal of its own, which is then its input and its output,
                raw: one stream, "pty". `TERM` is xterm-256color unless `env` says otherwise.
            timeout: seconds after which it is ended with everything that it started; never, where
                neither this nor `limits` says so: the config's is for calls that wait.
            tag: a line to know it by in `list_commands`.

        Raises:
            ConfigError: an argument is none that a program could be given.
            CapabilityError: a terminal, and the sandbox has none to give.
            BlockingIOError: a terminal, and all that the sandbox may have are in use.
            QuotaExceededError: 1,000 commands of the sandbox are running.
            SandboxStateError: the sandbox is not running.
            SandboxLostError: the sandbox failed; never the program.
        """
        return Command(
            call(
                self._target.start_command,
                command,
                stdin=stdin,
                pty=pty,
                timeout=timeout,
                cwd=cwd,
                env=env,
                user=user,
                limits=limits,
                tag=tag,
            )
        )

    def get_command(self, command_id: str) -> Command:
        """A handle of a command that `start_command` started, also of one that has ended lately.

        Raises:
            CommandNotFoundError: the sandbox knows none of that id.
            SandboxStateError, SandboxLostError: as `start_command`.
        """
        return Command(call(self._target.get_command, command_id))

    def list_commands(self) -> list[CommandInfo]:
        """The commands that `start_command` started, oldest first; those that ended lately, too.

        Raises:
            SandboxStateError, SandboxLostError: as `start_command`.
        """
        return call(self._target.list_commands)

    def shell(
        self,
        name: str = "main",
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | int | None = None,
    ) -> Shell:
        """The shell of that name, which keeps folder, variables, functions and jobs between lines.

        It is the sandbox's bash, or its `sh` where there is none, and starts with its first line.
        `cwd`, `env` and `user` are for the call that names it first.

        Raises:
            ConfigError: an argument is not valid.
            CapabilityError: the sandbox has no terminals, without which no line can be interrupted.
            SandboxStateError, SandboxLostError: as `start_command`.
        """
        return Shell(call(self._target.shell, name, cwd=cwd, env=env, user=user))

    def kernel(
        self,
        name: str = "default",
        *,
        preload: Sequence[str] = (),
        ipython: bool = True,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Kernel:
        """The kernel of that name, made where there is none: a Python that keeps its variables.

        One that is there is given as it is, also where it is dead; the other arguments are for one
        that is made.

        Args:
            preload: modules that it has imported already, besides those of the config.
            ipython: whether IPython runs the cells where the sandbox has it; without it a kernel
                is quicker and smaller, and has no magics.

        Raises:
            CapabilityError: the sandbox has no kernels.
            ConfigError: an argument is none, or a module cannot be preloaded.
            SandboxStartError: the kernel does not start.
        """
        return Kernel(
            call(self._target.kernel, name, preload=preload, ipython=ipython, cwd=cwd, env=env)
        )

    def list_kernels(self) -> list[KernelInfo]:
        """The kernels that it has, the dead ones too."""
        return call(self._target.list_kernels)

    def checkpoint(self, name: str | None = None) -> Checkpoint:
        """Keep how it is now: its kernel, if one lives, and its files; to come back to it.

        It goes on meanwhile. Those of a sandbox end with it. The last `max_checkpoints` of the
        config have the memory of their kernels, older ones the files alone (`Checkpoint.memory`).

        Args:
            name: what it can be called by, beside its id; the last of that name is meant.

        Raises:
            CapabilityError: this kind of sandbox has none.
            ForkRefusedError: something in it cannot be kept; `blockers` name it.
        """
        return call(self._target.checkpoint, name)

    def rollback(self, checkpoint: Checkpoint | str) -> None:
        """Be again as it was: its kernel with all variables, open files and the rest, and its
        files. Whatever runs in it ends, and a kernel that died lives again.

        Of a checkpoint without memory come the files, and its kernels are dead: see `restart`.

        Raises:
            CapabilityError: this kind of sandbox has no checkpoints.
            ConfigError: it has none of that id or name.
        """
        call(self._target.rollback, checkpoint)

    def tree(self) -> list[Checkpoint]:
        """Its checkpoints, the oldest first; each names the one before it as its `parent`."""
        return call(self._target.tree)

    def diff(self, a: Checkpoint | str, b: Checkpoint | str | None = None) -> list[FileChange]:
        """What differs in its files between two checkpoints, or between one and now, by path.

        Files are compared by what is in them. What is in the kernels' memory is not looked at.

        Args:
            a: the earlier one, or its id or name.
            b: the later one; how it is now where None.

        Raises:
            CapabilityError: this kind of sandbox has no checkpoints.
            ConfigError: it has none of that id or name.
            ForkRefusedError: it has more stored now than is copied at once, or more differs than
                can be told.
        """
        return call(self._target.diff, a, b)

    def fork(
        self,
        n: int = 1,
        *,
        at: Checkpoint | str | None = None,
        reseed: bool = True,
        unforkable: Literal["refuse", "drop"] = "refuse",
        sandbox_ids: Sequence[str] | None = None,
    ) -> list[Sandbox]:
        """Copies of this sandbox as it is now, each a sandbox of its own: all of them, or none.

        Each has the kernel with its variables, imports and half consumed generators, its folder,
        umask and signal handlers, its open files at the same places, and the sandbox's files as
        they are at this moment. Each has an id, limits, a network and a life of its own, and none
        sees what another one does from now on. Nothing is run again, and this one goes on as it is.
        Needs a sandbox with exactly one kernel, between two cells.

        Args:
            n: how many.
            at: a checkpoint to go on from instead, or its id or name.
            reseed: whether the random generators of `random`, numpy and torch begin anew in each;
                else all go on with the same numbers. Generators that the program made for itself go
                on as they are.
            unforkable: what becomes of descriptors that cannot be had twice (a pipe, a socket, a
                file without a name) and of other processes: with "drop" the copies are without
                them. What is read from such a descriptor or written to it fails there (EBADF), and
                what a process that is left out is writing at the moment may be there in part.
                Memory that is shared, and the like, is refused anyway.
            sandbox_ids: the ids that they are to have, one for each; new ones where None.

        Raises:
            CapabilityError: this kind of sandbox cannot be forked.
            ForkRefusedError: something in it cannot be; `blockers` name it. Nothing has changed.
            ConfigError: `n` is no whole number from 1 on, an id is none or taken, `unforkable` is
                neither, or there is no such checkpoint.
        """
        return [
            Sandbox(one)
            for one in call(
                self._target.fork,
                n,
                at=at,
                reseed=reseed,
                unforkable=unforkable,
                sandbox_ids=sandbox_ids,
            )
        ]

    def snapshot(self, name: str) -> SnapshotInfo:
        """Keep its files, those of its working folder and of /tmp, for new sandboxes to begin with.

        Files only: no kernel, no variables, nothing that runs; in the folders no pipes, sockets and
        extended attributes. It stands still for the moment in which they are copied, where control
        groups allow; else what changes meanwhile may be half written. It may be paused. A snapshot
        outlives its sandbox and the manager; `create_sandbox` begins with one where the config's
        `snapshot` names it.

        Args:
            name: 1 to 128 letters, digits, dots, `_` or `-`, the first a letter or a digit.

        Raises:
            CapabilityError: this kind of sandbox has none.
            ConfigError: the name is none, or there is a snapshot of that name.
            ForkRefusedError: its files are more than 1 GiB or 20,000, or too deep.
            SnapshotStoreError: they cannot be stored; nothing is left of it.
        """
        return call(self._target.snapshot, name)

    def list_ports(self) -> list[PortInfo]:
        """The TCP ports on which programs of the sandbox take connections, sorted by port.

        Raises:
            CapabilityError: the sandbox has no ports of its own.
            SandboxStateError: the sandbox is not running.
            SandboxLostError: the sandbox failed.
        """
        return call(self._target.list_ports)

    def connect(self, port: int, *, timeout: float | None = 30.0) -> PortStream:
        """A connection to a TCP port on the sandbox's own loopback address.

        It ends with the sandbox, and lasts until it is closed: `with` does that. It can be
        used on any event loop; one task may send while another receives.

        Args:
            timeout: seconds to wait for whoever listens to take the connection, as one does not
                whose queue is full; None for as long as it takes. The connection itself has none.

        Raises:
            PortRefusedError: nothing takes connections at that port.
            PortTimeoutError: something listens, and has not taken the connection in time.
            ConfigError: that is no port, or no time.
            OSError: `EMFILE`, the sandbox has 400 connections already.
            CapabilityError, SandboxStateError, SandboxLostError: as `list_ports`.
        """
        return PortStream(call(self._target.connect, port, timeout=timeout))

    @property
    def capabilities(self) -> frozenset[str]:
        """Names of what it can do; all of them are known once it has started."""
        return self._target.capabilities

    @property
    def isolation(self) -> IsolationReport:
        """Which walls stand around it.

        Raises:
            SandboxStateError: it has not started, so there are none yet.
        """
        return self._target.isolation

    @property
    def client(self) -> Any:
        """The engine's client, on backends that have an engine; else None."""
        return self._target.client

    @property
    def container(self) -> Any:
        """The engine's container, on backends that have an engine; else None."""
        return self._target.container

    def get_info(self) -> SandboxInfo:
        """A description of it, as of now."""
        return self._target.get_info()

    def execute_command(
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
        return call(
            self._target.execute_command,
            command,
            timeout,
            stdin=stdin,
            cwd=cwd,
            env=env,
            user=user,
            limits=limits,
            on_output=on_output,
            stream=stream,
        )

    def run_code(
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
        return call(
            self._target.run_code,
            code,
            args=args,
            stdin=stdin,
            timeout=timeout,
            cwd=cwd,
            env=env,
            user=user,
            limits=limits,
            on_output=on_output,
        )

    def put_file(
        self,
        path: str,
        content: bytes | str | Iterable[bytes],
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
        call(self._target.put_file, path, _feed(content), encoding, user=user)

    def put_dir(
        self, source: str | PathLike[str], target: str, *, user: str | int | None = None
    ) -> None:
        """Copy what is in a folder of the host into a folder of the sandbox, without links.

        Raises:
            ConfigError: the source is not a folder.
        """
        call(self._target.put_dir, source, target, user=user)

    def put_archive(
        self, target_dir: str, data: bytes | Iterable[bytes], *, user: str | int | None = None
    ) -> None:
        """Unpack an uncompressed tar in the sandbox, below a folder that is made if needed.

        It is unpacked by the guest, as the user and within the sandbox's disk limit; a member
        that would land outside the folder is refused.
        """
        call(self._target.put_archive, target_dir, _feed(data), user=user)

    def get_file(self, path: str, *, user: str | int | None = None) -> bytes:
        """The content of one file."""
        return call(self._target.get_file, path, user=user)

    def get_archive(self, path: str, *, user: str | int | None = None) -> Iterator[bytes]:
        """A file or folder as a stream of tar. Made inside: to be unpacked with care."""
        return iterate(self._target.get_archive, path, user=user)

    def get_dir(
        self,
        source: str,
        target: str | PathLike[str],
        *,
        user: str | int | None = None,
        max_bytes: int = 8 << 30,
    ) -> None:
        """Copy a folder of the sandbox into a folder of the host, which is made if needed.

        What comes out is hostile: only plain files and folders that stay below the target are
        taken, links and devices are left out.

        Args:
            max_bytes: what it may take on the host; what is inside decides how much there is.

        Raises:
            ConfigError: the archive holds something that cannot be taken safely, or is larger.
        """
        call(self._target.get_dir, source, target, user=user, max_bytes=max_bytes)

    def initialize_tools(self) -> None:
        """Make the tools that the config names. `start` does it; a second time changes nothing.

        Raises:
            UnknownTypeError, ConfigError: the config names a tool or an option there is not.
        """
        call(self._target.initialize_tools)

    def get_available_tools(self) -> dict[str, dict[str, Any]]:
        """The OpenAI schema of every tool, by name."""
        return self._target.get_available_tools()

    def list_tools(self) -> list[str]:
        """The names of its tools."""
        return self._target.list_tools()

    def get_tool(self, tool_name: str) -> Tool | None:
        """The tool of that name, or None."""
        return self._target.get_tool(tool_name)

    def add_tool(self, tool: Tool) -> None:
        """Give it a tool, replacing one of the same name.

        Raises:
            ConfigError: it is no `Tool`.
        """
        self._target.add_tool(tool)

    def execute_tool(
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
        return call(self._target.execute_tool, tool_name, parameters, timeout=timeout)

    def __enter__(self) -> Self:
        call(self._target.__aenter__)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        call(self._target.__aexit__, exc_type, exc, traceback)


class SandboxFactory:
    """Makes sandboxes by type: registered here, built in, or from an installed package."""

    @classmethod
    def create_sandbox(
        cls,
        sandbox_type: str,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> Sandbox:
        """A sandbox, not yet started: `with` starts and stops it.

        Args:
            config: the backend's config, or what it is made from.
            sandbox_id: 1 to 64 letters, digits, `_` or `-`; a new one where None.

        Raises:
            UnknownTypeError: nothing has that name.
            ConfigError: the config or the id is not valid.
        """
        return Sandbox(_factory.SandboxFactory.create_sandbox(sandbox_type, config, sandbox_id))

    @classmethod
    def get_available_types(cls) -> list[str]:
        """The types that `create_sandbox` takes, whether or not they work on this machine."""
        return _factory.SandboxFactory.get_available_types()


class SandboxManager:
    """Makes sandboxes, gives handles to them and ends them; a context manager.

    It may be used from any thread and any event loop, another one for each call if need be. It
    owns every sandbox that it made, until `delete_sandbox` or its own `stop`. Cancelling a call
    undoes what the call was making.
    """

    def __init__(self, target: _manager.SandboxManager) -> None:
        self._target = target

    @property
    def config(self) -> SandboxManagerConfig:
        """As the async one has it."""
        return self._target.config

    def start(self) -> None:
        """Make the manager ready. A second call does nothing; after a `stop` it starts anew."""
        call(self._target.start)

    def stop(self) -> None:
        """End every sandbox that the manager owns. Always finishes, and may be called again.

        Raises:
            EnclaveError: something could not be removed; everything else was.
        """
        call(self._target.stop)

    def create_sandbox(
        self,
        sandbox_type: str = "auto",
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> str:
        """Make and start a sandbox; gives its id. One that fails leaves nothing behind.

        Args:
            sandbox_type: a registered name; `auto` is the best type that works here.
            config: the type's config, or what it is made from; the manager's own where None.
            sandbox_id: 1 to 64 letters, digits, `_` or `-`; a new one where None.

        Raises:
            UnknownTypeError: nothing has that name.
            ConfigError: the config or the id is not valid, or the id is taken.
            IsolationUnavailableError: this machine cannot isolate; `remedy` says what to do.
            SandboxStartError: it cannot be made.
        """
        return call(self._target.create_sandbox, sandbox_type, config, sandbox_id)

    def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        """The handle of a sandbox; None where the manager has none of that id."""
        value = call(self._target.get_sandbox, sandbox_id)
        return None if value is None else Sandbox(value)

    def get_sandbox_info(self, sandbox_id: str) -> SandboxInfo | None:
        """A description of a sandbox as of now; None where the manager has none of that id."""
        return call(self._target.get_sandbox_info, sandbox_id)

    def list_sandboxes(self, status_filter: SandboxStatus | str | None = None) -> list[SandboxInfo]:
        """Descriptions of all sandboxes, or of those in one state."""
        return call(self._target.list_sandboxes, status_filter)

    def stop_sandbox(self, sandbox_id: str) -> bool:
        """End a sandbox but go on listing it for a while; False where there is none of that id."""
        return call(self._target.stop_sandbox, sandbox_id)

    def delete_sandbox(self, sandbox_id: str) -> bool:
        """End and forget a sandbox; False where there is none of that id."""
        return call(self._target.delete_sandbox, sandbox_id)

    def renew(self, sandbox_id: str, ttl: float) -> None:
        """Let a sandbox live `ttl` seconds from now, whatever it was promised before.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
            ConfigError: `ttl` is not above 0.
        """
        call(self._target.renew, sandbox_id, ttl)

    def cleanup_all_sandboxes(self) -> None:
        """End and forget every sandbox. A pool stays, and fills again for its next borrower."""
        call(self._target.cleanup_all_sandboxes)

    def get_stats(self) -> dict[str, Any]:
        """Counts of sandboxes by state and type, and the state of manager and pool."""
        return call(self._target.get_stats)

    @contextmanager
    def sandbox(
        self, sandbox_type: str = "auto", config: SandboxConfig | Mapping[str, Any] | None = None
    ) -> Generator[Sandbox, None, None]:
        """A sandbox for the length of a block: created, lent, deleted.

        Raises:
            As `create_sandbox`.
        """
        with enter(self._target.sandbox(sandbox_type, config)) as value:
            yield Sandbox(value)

    def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        stdin: bytes | str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout: float | None = 30.0,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> CommandResult:
        """Run a program in a fresh sandbox of its own; nothing of it stays.

        Args:
            language: `python`, or one of `multi_code_executor`'s.
            files: further files beside the program, by relative name.
            timeout: seconds; the config's where None.

        Raises:
            ConfigError: an argument is none that a program could be given.
            Otherwise as `create_sandbox`.
        """
        return call(
            self._target.run_code,
            code,
            language=language,
            stdin=stdin,
            files=files,
            timeout=timeout,
            config=config,
        )

    def execute_tool(
        self, sandbox_id: str, tool_name: str, parameters: Mapping[str, Any] | None = None
    ) -> ToolResult:
        """Run a tool of a sandbox.

        Raises:
            SandboxNotFoundError, ToolNotFoundError: there is none of that name.
            SandboxStateError: the sandbox is not running.
        """
        return call(self._target.execute_tool, sandbox_id, tool_name, parameters)

    def get_sandbox_tools(self, sandbox_id: str) -> dict[str, Any]:
        """The tools of a sandbox: name to schema, in OpenAI's function-calling shape.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
        """
        return call(self._target.get_sandbox_tools, sandbox_id)

    def put_archive(self, sandbox_id: str, target_dir: str, data: bytes | Iterable[bytes]) -> None:
        """Unpack an uncompressed tar below a folder of a sandbox.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
            OSError: the sandbox refuses, as its file system would.
        """
        call(self._target.put_archive, sandbox_id, target_dir, _feed(data))

    def put_dir(self, sandbox_id: str, source: str | PathLike[str], target: str) -> None:
        """Copy a folder of this machine into a sandbox.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
            ConfigError: the source is no folder.
        """
        call(self._target.put_dir, sandbox_id, source, target)

    def list_snapshots(self) -> list[SnapshotInfo]:
        """The snapshots that sandboxes of this manager can begin with, by name.

        Raises:
            CapabilityError: this kind of manager has none.
            SnapshotStoreError: they cannot be read.
        """
        return call(self._target.list_snapshots)

    def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot. Sandboxes that began with it, and exports under way, go on.

        Raises:
            SnapshotNotFoundError: there is none of that name.
            Otherwise as `list_snapshots`.
        """
        call(self._target.delete_snapshot, name)

    def export_snapshot(self, name: str) -> Iterator[bytes]:
        """A snapshot as an uncompressed tar, in pieces: what a sandbox has in its working folder
        below `work`, and what it has in /tmp below `tmp`.

        Raises:
            As `delete_snapshot`, with the first piece.
        """
        return iterate(self._target.export_snapshot, name)

    def import_snapshot(self, name: str, tar: bytes | Iterable[bytes]) -> SnapshotInfo:
        """Have an uncompressed tar of that form as a snapshot. It may come from anybody.

        Set-user-id bits are not taken over, and links are not followed. It is all or nothing.

        Args:
            name: as `Sandbox.snapshot` takes it.
            tar: its bytes, or an iterable of pieces, which is read on the caller's own loop.

        Raises:
            ConfigError: the name or the tar is not valid, there is a snapshot of that name, or it
                is more than 1 GiB or 20,000 files.
            Otherwise as `list_snapshots`.
        """
        return call(self._target.import_snapshot, name, _feed(tar))

    def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Make a pool of equal sandboxes; gives their ids. A second call finds it made.

        An id stays while the sandbox behind it is replaced, after each use that cannot be undone.

        Args:
            pool_size: how many, constantly; the manager config's where None.

        Raises:
            As `create_sandbox`; then nothing was made.
        """
        return call(self._target.initialize_pool, pool_size, sandbox_type, config)

    @contextmanager
    def borrow(self, *, timeout: float | None = None) -> Generator[Sandbox, None, None]:
        """A sandbox of the pool for the length of a block; first come, first served.

        A block that ends in an exception costs the sandbox its life, and the pool replaces it.

        Args:
            timeout: seconds that waiting may take.

        Raises:
            PoolEmptyError: there is no pool.
            PoolTimeoutError: no sandbox was free in time.
        """
        with enter(self._target.borrow(timeout=timeout)) as value:
            yield Sandbox(value)

    def execute_tool_in_pool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> ToolResult:
        """Run a tool in a sandbox of the pool.

        Args:
            timeout: seconds that waiting for a sandbox may take; the tool has its own.

        Raises:
            As `borrow`, and ToolNotFoundError.
        """
        return call(self._target.execute_tool_in_pool, tool_name, parameters, timeout)

    def __enter__(self) -> Self:
        call(self._target.__aenter__)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        call(self._target.__aexit__, exc_type, exc, traceback)


class LocalSandboxManager(SandboxManager):
    """Makes sandboxes on this machine.

    Owns every sandbox it made and what they share, until `stop`, or the end of the interpreter.
    `create_sandbox` starts a manager that was never started. A forked child cannot use its
    parent's manager.

    Args:
        config: the manager's config, or what it is made from.
        max_age: seconds after which a sandbox without a `ttl` is deleted.
        retention: seconds that a stopped or failed sandbox is still listed.
        clock: what time it is, for the two above and for `ttl`.
        settings: fields of the config; they go before what stands in `config`.
    """

    def __init__(
        self,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        *,
        max_age: float = 48 * 3600.0,
        retention: float = 3600.0,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        target = _local_manager.LocalSandboxManager(
            config, max_age=max_age, retention=retention, clock=clock, **settings
        )
        super().__init__(target)
        self._target = target

    def list_snapshots(self) -> list[SnapshotInfo]:
        """The snapshots that there are, by name. See `SandboxManager.list_snapshots`."""
        return call(self._target.list_snapshots)

    def delete_snapshot(self, name: str) -> None:
        """Delete one. See `SandboxManager.delete_snapshot`."""
        call(self._target.delete_snapshot, name)

    def export_snapshot(self, name: str) -> Iterator[bytes]:
        """One as a tar, in pieces. See `SandboxManager.export_snapshot`."""
        return iterate(self._target.export_snapshot, name)

    def import_snapshot(self, name: str, tar: bytes | Iterable[bytes]) -> SnapshotInfo:
        """Have a tar as one. See `SandboxManager.import_snapshot`."""
        return call(self._target.import_snapshot, name, _feed(tar))

    def start(self) -> None:
        """Make the manager ready. A second call does nothing; after a `stop` it starts anew."""
        call(self._target.start)

    def hand_over(self) -> None:
        """Stop, but leave the sandboxes with `on_owner_death="keep"` to the next manager.

        Commands that run in them are ended; what they left in the background goes on. It is what
        the end of the interpreter does, too.
        """
        call(self._target.hand_over)

    def stop(self) -> None:
        """End every sandbox that the manager owns. Always finishes, and may be called again.

        Raises:
            EnclaveError: something could not be removed; everything else was.
        """
        call(self._target.stop)

    def create_sandbox(
        self,
        sandbox_type: str = "auto",
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> str:
        """Make and start a sandbox; gives its id. See `SandboxManager.create_sandbox`."""
        return call(self._target.create_sandbox, sandbox_type, config, sandbox_id)

    def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        """The handle of a sandbox; None where the manager has none of that id."""
        value = call(self._target.get_sandbox, sandbox_id)
        return None if value is None else Sandbox(value)

    def get_sandbox_info(self, sandbox_id: str) -> SandboxInfo | None:
        """A description of a sandbox as of now; None where the manager has none of that id.

        One that was lost is here with its state `error` and the reason in `metadata["error"]`;
        one whose creation failed is not, since its creator was told.
        """
        return call(self._target.get_sandbox_info, sandbox_id)

    def list_sandboxes(self, status_filter: SandboxStatus | str | None = None) -> list[SandboxInfo]:
        """Descriptions of all sandboxes, or of those in one state.

        Raises:
            ConfigError: there is no such state.
        """
        return call(self._target.list_sandboxes, status_filter)

    def stop_sandbox(self, sandbox_id: str) -> bool:
        """End a sandbox but go on listing it for a while; False where there is none of that id."""
        return call(self._target.stop_sandbox, sandbox_id)

    def delete_sandbox(self, sandbox_id: str) -> bool:
        """End and forget a sandbox; False where there is none of that id."""
        return call(self._target.delete_sandbox, sandbox_id)

    def cleanup_all_sandboxes(self) -> None:
        """End and forget every sandbox. A pool stays, and fills again for its next borrower.

        Raises:
            EnclaveError: something could not be removed; everything else was.
        """
        call(self._target.cleanup_all_sandboxes)

    def renew(self, sandbox_id: str, ttl: float) -> None:
        """Let a sandbox live `ttl` seconds from now, whatever it was promised before.

        Raises:
            SandboxNotFoundError: the manager has none of that id.
            ConfigError: `ttl` is not above 0.
        """
        call(self._target.renew, sandbox_id, ttl)

    def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        stdin: bytes | str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout: float | None = 30.0,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> CommandResult:
        """Run a program in a fresh sandbox of its own. See `SandboxManager.run_code`."""
        return call(
            self._target.run_code,
            code,
            language=language,
            stdin=stdin,
            files=files,
            timeout=timeout,
            config=config,
        )

    def get_stats(self) -> dict[str, Any]:
        """Counts of sandboxes by state and type, and the state of manager and pool."""
        return call(self._target.get_stats)

    def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Make a pool of equal sandboxes; gives their ids. See `SandboxManager.initialize_pool`."""
        return call(self._target.initialize_pool, pool_size, sandbox_type, config)

    @contextmanager
    def borrow(self, *, timeout: float | None = None) -> Generator[Sandbox, None, None]:
        """A sandbox of the pool for the length of a block. See `SandboxManager.borrow`."""
        with enter(self._target.borrow(timeout=timeout)) as value:
            yield Sandbox(value)

    def cleanup_expired(self) -> list[str]:
        """Delete the sandboxes whose time is over, now; gives their ids. Also done by itself."""
        return call(self._target.cleanup_expired)


class HttpSandboxManager(SandboxManager):
    """Makes sandboxes on a server; see `SandboxManager` and `docs/server.md`.

    It owns the sandboxes that it made, until `delete_sandbox` or its own `stop`, which deletes
    them. A pool belongs to the server: it is found by whoever has the same key, and stays. What
    goes wrong there is raised here with its class and its words; a server that does not answer is
    a `ServerUnreachableError`, whatever the call.

    Args:
        config: the manager's config, or what it is made from; of it count `base_url`, `api_key`,
            `timeout` and `sandbox_config`.
        app: an ASGI application in this process that is spoken to in place of a server.
        settings: fields of the config; they go before what stands in `config`.

    Raises:
        ConfigError: there is no `base_url`, or something else is not valid.
    """

    def __init__(
        self,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        *,
        app: Any = None,
        **settings: Any,
    ) -> None:
        target = _http_manager.HttpSandboxManager(config, app=app, **settings)
        super().__init__(target)
        self._target = target

    def start(self) -> None:
        """Make the manager ready. It is no use of the server: the first call is."""
        call(self._target.start)

    def stop(self) -> None:
        """Delete the sandboxes that this manager made, and close the connections.

        Raises:
            EnclaveError: something could not be removed; everything else was.
        """
        call(self._target.stop)

    def create_sandbox(
        self,
        sandbox_type: str = "auto",
        config: SandboxConfig | Mapping[str, Any] | None = None,
        sandbox_id: str | None = None,
    ) -> str:
        """Make and start a sandbox; gives its id. See `SandboxManager.create_sandbox`."""
        return call(self._target.create_sandbox, sandbox_type, config, sandbox_id)

    def get_sandbox(self, sandbox_id: str) -> Sandbox | None:
        """The handle of a sandbox; None where the server has none of that id."""
        value = call(self._target.get_sandbox, sandbox_id)
        return None if value is None else Sandbox(value)

    def get_sandbox_info(self, sandbox_id: str) -> SandboxInfo | None:
        """A description of a sandbox as of now; None where the server has none of that id."""
        return call(self._target.get_sandbox_info, sandbox_id)

    def list_sandboxes(self, status_filter: SandboxStatus | str | None = None) -> list[SandboxInfo]:
        """Descriptions of all sandboxes, or of those in one state.

        Raises:
            ConfigError: there is no such state.
        """
        return call(self._target.list_sandboxes, status_filter)

    def stop_sandbox(self, sandbox_id: str) -> bool:
        """End a sandbox but go on listing it for a while; False where there is none of that id."""
        return call(self._target.stop_sandbox, sandbox_id)

    def delete_sandbox(self, sandbox_id: str) -> bool:
        """End and forget a sandbox; False where there is none of that id."""
        return call(self._target.delete_sandbox, sandbox_id)

    def cleanup_all_sandboxes(self) -> None:
        """End and forget every sandbox on the server that this key has. A pool stays, and fills
        again for its next borrower.
        """
        call(self._target.cleanup_all_sandboxes)

    def renew(self, sandbox_id: str, ttl: float) -> None:
        """Let a sandbox live `ttl` seconds from now, whatever it was promised before.

        Raises:
            SandboxNotFoundError: the server has none of that id.
            ConfigError: `ttl` is not above 0.
        """
        call(self._target.renew, sandbox_id, ttl)

    def get_stats(self) -> dict[str, Any]:
        """Counts of sandboxes by state and type, the state of the server's manager and pool, and
        which server it is.
        """
        return call(self._target.get_stats)

    def list_snapshots(self) -> list[SnapshotInfo]:
        """The snapshots on the server that this key has. See `SandboxManager.list_snapshots`."""
        return call(self._target.list_snapshots)

    def delete_snapshot(self, name: str) -> None:
        """Delete one. See `SandboxManager.delete_snapshot`."""
        call(self._target.delete_snapshot, name)

    def export_snapshot(self, name: str) -> Iterator[bytes]:
        """One as a tar, in pieces. See `SandboxManager.export_snapshot`."""
        return iterate(self._target.export_snapshot, name)

    def import_snapshot(self, name: str, tar: bytes | Iterable[bytes]) -> SnapshotInfo:
        """Have a tar as one. See `SandboxManager.import_snapshot`."""
        return call(self._target.import_snapshot, name, _feed(tar))

    def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        stdin: bytes | str | None = None,
        files: Mapping[str, bytes | str] | None = None,
        timeout: float | None = 30.0,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> CommandResult:
        """Run a program in a fresh sandbox of its own. See `SandboxManager.run_code`."""
        return call(
            self._target.run_code,
            code,
            language=language,
            stdin=stdin,
            files=files,
            timeout=timeout,
            config=config,
        )

    def execute_tool(
        self, sandbox_id: str, tool_name: str, parameters: Mapping[str, Any] | None = None
    ) -> ToolResult:
        """Run a tool of a sandbox. See `SandboxManager.execute_tool`."""
        return call(self._target.execute_tool, sandbox_id, tool_name, parameters)

    def put_archive(self, sandbox_id: str, target_dir: str, data: bytes | Iterable[bytes]) -> None:
        """Unpack an uncompressed tar below a folder of a sandbox."""
        call(self._target.put_archive, sandbox_id, target_dir, _feed(data))

    def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Make a pool of equal sandboxes; gives their ids. See `SandboxManager.initialize_pool`."""
        return call(self._target.initialize_pool, pool_size, sandbox_type, config)

    @contextmanager
    def borrow(self, *, timeout: float | None = None) -> Generator[Sandbox, None, None]:
        """A sandbox of the pool for the length of a block. See `SandboxManager.borrow`.

        The loan lasts as long as its connection: one whose borrower is gone costs the sandbox its
        life, and the pool replaces it.
        """
        with enter(self._target.borrow(timeout=timeout)) as value:
            yield Sandbox(value)

    def execute_tool_in_pool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
    ) -> ToolResult:
        """Run a tool in a sandbox of the pool. See `SandboxManager.execute_tool_in_pool`."""
        return call(self._target.execute_tool_in_pool, tool_name, parameters, timeout)


class SandboxManagerFactory:
    """Makes managers by type: registered here, built in, or from an installed package."""

    @classmethod
    def create_manager(
        cls,
        manager_type: str | None = None,
        config: SandboxManagerConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> SandboxManager:
        """A manager, not yet started.

        Args:
            manager_type: a registered name; where None, `http` if there is a `base_url`, else
                `local`.
            kwargs: what the manager's class takes; fields of its config among them.

        Raises:
            UnknownTypeError: nothing has that name.
            ConfigError: the config is not valid.
        """
        return SandboxManager(
            _manager.SandboxManagerFactory.create_manager(manager_type, config, **kwargs)
        )

    @classmethod
    def get_registered_types(cls) -> list[str]:
        """The types that `create_manager` takes."""
        return _manager.SandboxManagerFactory.get_registered_types()


def run(
    code: str | None = None,
    *,
    command: str | Sequence[str] | None = None,
    sandbox_type: str = "auto",
    timeout: float = 30,
    stdin: bytes | str | None = None,
    files: Mapping[str, bytes | str] = MappingProxyType({}),
    config: SandboxConfig | Mapping[str, Any] | None = None,
) -> CommandResult:
    """Run Python source, or a command, in a fresh sandbox; nothing of it stays.

    A command that is a string is a shell line, a list is an argv. Who runs many programs makes a
    `LocalSandboxManager` once, which is much quicker.

    Args:
        timeout: seconds that the program may run.
        stdin: what the program reads.
        files: what is put beside the program: relative name to content.

    Raises:
        ConfigError: there is neither code nor a command, there are both, or one is not valid.
        IsolationUnavailableError: this machine cannot isolate; `remedy` says what to do.
        SandboxStartError: the sandbox cannot be made.
    """
    if (code is None) == (command is None):
        raise ConfigError("No code provided" if code is None else "code or command, not both")

    async def work() -> CommandResult:
        async with (
            _local_manager.LocalSandboxManager() as manager,
            manager.sandbox(sandbox_type, config) as sandbox,
        ):
            for name, content in files.items():
                await sandbox.files.write(name, content)
            if command is not None:
                return await sandbox.execute_command(command, timeout, stdin=stdin)
            return await sandbox.run_code(code or "", timeout=timeout, stdin=stdin)

    return call(work)
