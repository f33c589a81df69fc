"""What every sandbox means by a program that runs in it: the request, the process, its end.

A backend hands out a `Process`; who runs commands sees nothing else of the backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anyio.abc import ByteReceiveStream, ByteSendStream

    from ms_enclave.model.limits import ResolvedLimits

__all__ = ["Exit", "KernelProcess", "KernelRequest", "Process", "SpawnRequest", "Terminal"]

_NO_ENV: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class SpawnRequest:
    """What to start. Exactly one of `argv` and `code` is given.

    Raises:
        ValueError: neither or both of `argv` and `code` are given, or `argv` is empty.
    """

    argv: tuple[str, ...] | None
    """A command, found through the `PATH` of `env`; never read by a shell."""

    code: str | None = None
    """Python source, run as a fresh `__main__`."""

    args: tuple[str, ...] = ()
    """`sys.argv[1:]` of `code`."""

    cwd: str = "/sandbox"
    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)
    """The whole environment of the process; nothing is inherited."""

    user: str | int | None = None
    stdin: bool = False
    """Whether `Process.stdin` is a stream; otherwise the program reads from `/dev/null`."""

    limits: ResolvedLimits | None = None
    pty: tuple[int, int] | None = None
    """Rows and columns of a controlling terminal, for boxes with the capability `terminals`."""

    pty_behind: bool = False
    """Whether the terminal is not the standard streams, which are pipes then, but behind them, as
    `/dev/tty`."""

    brief: bool = False
    """Whether it is only seen to its end: that it runs, or writes no more, may then be told some
    milliseconds later, along with that."""

    def __post_init__(self) -> None:
        if (self.argv is None) == (self.code is None):
            raise ValueError("a request needs exactly one of argv and code")
        if self.argv is not None and not self.argv:
            raise ValueError("an empty command cannot be run")


@dataclass(frozen=True)
class Exit:
    """How a process ended and what it used, as established outside of user code."""

    exit_code: int
    """0 to 255; 128 + N when signal N ended it."""

    signal: int | None = None
    cause: str | None = None
    """A limit that the box knows was hit: `oom`, `cpu_timeout`, `process_limit`, `disk_limit`;
    `infra` when the box itself failed; None when the program simply ended."""

    cpu_user: float = 0.0
    """Seconds."""

    cpu_system: float = 0.0
    """Seconds."""

    peak_memory: int | None = None
    """Bytes."""

    processes: int | None = None
    source: str = "rusage"
    """Where the figures come from."""

    detail: str = ""


class Terminal(ABC):
    """The controlling terminal of a program, from its other side."""

    output: ByteReceiveStream
    """What is written to it. Ends with `anyio.EndOfStream`."""

    @abstractmethod
    async def resize(self, rows: int, cols: int) -> None:
        """Give it another size; the program gets SIGWINCH. Nothing happens after its end."""

    @abstractmethod
    async def interrupt(self) -> None:
        """Send SIGINT to what has the terminal in the foreground. Nothing happens after its end."""


class Process(ABC):
    """A program that runs in a sandbox. Whoever asked for it owns it and closes it.

    What it wrote before its end can be received without anyone else's doing; a cancelled
    `receive` loses nothing; `kill` may be called while others wait or receive.
    """

    pid: int
    """As seen inside."""

    stdin: ByteSendStream | None
    stdout: ByteReceiveStream
    """Ends with `anyio.EndOfStream`."""

    stderr: ByteReceiveStream
    """Ends with `anyio.EndOfStream`."""

    terminal: Terminal | None = None
    """Of a request with `pty`. Where it is the standard streams, `stdin` writes to it, `stdout` is
    its output, and `stderr` is at its end."""

    @abstractmethod
    async def wait(self) -> Exit:
        """Return how it ended, once it has. May be called any number of times, by many.

        Raises:
            SandboxLostError: the sandbox went away, so nobody knows.
        """

    async def ends_soon(self, seconds: float) -> bool:
        """Whether within a time it has ended, with all that it wrote received or to be received
        without waiting. May always answer False, and earlier.

        Raises:
            SandboxLostError: the sandbox went away, so nobody knows.
        """
        del seconds
        return False

    @abstractmethod
    async def send_signal(self, signum: int) -> None:
        """Send a signal to the process itself; nothing happens when it has ended."""

    @abstractmethod
    async def kill(self) -> None:
        """Kill it and every descendant, daemonised ones too; return when they are gone."""

    async def abandon(self) -> None:
        """Close its streams, and need not kill it: its sandbox is about to end, and takes it along.

        It is not to be waited for any more.
        """
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None:
        """Kill it if it runs and close its streams. May be called twice."""


# --- kernels ---


@dataclass(frozen=True)
class KernelRequest:
    """What kernel to start."""

    preload: tuple[str, ...] = ()
    """Modules that it has imported before its first cell."""

    ipython: bool = True
    """Whether IPython runs the cells, where it is installed."""

    cwd: str = "/sandbox"
    env: Mapping[str, str] = field(default_factory=lambda: _NO_ENV)
    """The whole environment of the kernel; nothing is inherited."""

    limits: ResolvedLimits | None = None
    seed: int | None = None
    """Start of its random numbers; None for a new one."""


class KernelProcess(ABC):
    """A kernel that runs in a sandbox: its process, and the channel it says everything on.

    Whoever asked for it owns it and closes it. Used on the private loop only.
    """

    process: Process
    """Its end is the kernel's end. Its streams are what was written to descriptors 1 and 2 of the
    kernel; they are read by `listen` alone."""

    @abstractmethod
    def listen(self, take: Callable[[str, bytes], object]) -> None:
        """Have whatever comes handed over, as it comes: ("channel", "stdout" or "stderr", bytes);
        no bytes at the end of each. Called once."""

    @abstractmethod
    async def send(self, data: bytes) -> None:
        """Send bytes to the kernel. Nothing happens when it has ended."""

    @abstractmethod
    def drain(self, *, channel: bool = False) -> None:
        """Hand over what is there already of the output, or of the channel too. Never waits."""

    @abstractmethod
    async def aclose(self) -> None:
        """Kill it with every descendant, if it runs, and close its channel. May be called twice."""
