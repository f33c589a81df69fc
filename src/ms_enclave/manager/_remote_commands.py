"""Commands and shells of a sandbox on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from ms_enclave import wire
from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes.commands import Command
from ms_enclave.boxes.shells import Shell
from ms_enclave.errors import CommandNotFoundError, SandboxLostError, SandboxStateError
from ms_enclave.loop import on_loop
from ms_enclave.model import CommandResult, OutputChunk, OutputEvent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from ms_enclave.manager._remote_link import Link

__all__ = ["Limited", "RemoteCommand", "RemoteShell"]


class RemoteCommand(Command):
    """A command that runs on a server: `returncode` and `cursor` are as the server said last, and
    reading them has it asked anew in the background."""

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        events: Callable[..., AsyncGenerator[Any, None]],
        link: Link,
        found: dict[str, Any],
        is_over: Callable[[], bool],
    ) -> None:  # no `super()`: there is no process here
        self._is_over = is_over
        self._told_at = 0
        self._call = call
        self._events = events
        self._link = link
        self.id = str(found["id"])
        self.pid = int(found["pid"])
        self.command = found["command"]
        self.tag = found["tag"]
        self._learn(found)

    def _learn(self, found: dict[str, Any]) -> None:
        self._told_at += 1
        self._returncode: int | None = found["returncode"]
        self._cursor = int(found["cursor"])
        self._takes_input = bool(found["takes_input"])

    async def _look(self) -> None:
        began = self._told_at
        try:
            found = await self._call("GET", "commands", self.id)
            if self._told_at == began:  # else something newer was said meanwhile
                self._learn(found)
        except (SandboxStateError, SandboxLostError, CommandNotFoundError):
            self._end_with_box()

    def _end_with_box(self) -> None:
        if self._returncode is None:
            self._returncode = 137

    async def _do(
        self, method: str, what: str | None = None, *, body: Any = None,
        extra: float | None = 0.0, **query: Any,
    ) -> Any:  # fmt: skip
        parts = ("commands", self.id) if what is None else ("commands", self.id, what)
        try:
            return await self._call(method, *parts, body=body, extra=extra, **query)
        except SandboxStateError as error:
            if "is not running" in error.message:
                self._end_with_box()
            raise

    @property
    @override
    def returncode(self) -> int | None:
        """None while it runs; then its exit code."""
        self._refresh()
        return self._returncode

    def _refresh(self) -> None:
        if self._returncode is None and self._is_over():
            self._end_with_box()
        elif self._returncode is None:
            self._link.look((self.id, "command"), self._look)

    @property
    @override
    def cursor(self) -> int:
        """Bytes that it has printed so far."""
        self._refresh()
        return self._cursor

    @property
    @override
    def takes_input(self) -> bool:
        """Whether it was started to be given input, and that has not been closed."""
        return self._takes_input

    @override
    async def events(self, *, after: int = 0) -> AsyncGenerator[OutputEvent, None]:
        """What it prints, from a cursor on, as it comes; ends with the command."""
        inputs.validate_count("after", after)
        told = self._events("GET", "commands", self.id, "events", after=after)
        try:
            async for event in told:
                yield OutputEvent.model_validate(event)
        finally:
            await told.aclose()

    @on_loop
    @override
    async def read(
        self, *, after: int = 0, max_bytes: int = 1 << 20, wait: float = 0.0
    ) -> OutputChunk:
        """What it has printed from a cursor on."""
        inputs.validate_count("max_bytes", max_bytes)
        inputs.validate_count("after", after)
        seconds = 0.0 if wait == 0 else inputs.validate_timeout(wait, "wait")
        said = await self._do(
            "GET", "output", extra=seconds, after=after, max_bytes=max_bytes, wait=seconds
        )
        self._learn(said["command"])
        return OutputChunk.model_validate(said["chunk"])

    @on_loop
    @override
    async def write(self, data: bytes | str) -> None:
        """Give it input; waits while it does not read what it was given before."""
        content = data.encode() if isinstance(data, str) else bytes(data)
        for start in range(0, max(len(content), 1), wire.CHUNK_LIMIT):
            piece = content[start : start + wire.CHUNK_LIMIT]
            self._learn(await self._do("SEND", "input", body=piece))

    @on_loop
    @override
    async def close_stdin(self) -> None:
        """Its input ends here."""
        self._learn(await self._do("DELETE", "input"))

    @on_loop
    @override
    async def send_signal(self, signal: int | str) -> None:
        """Send it a signal, by number or name."""
        self._learn(await self._do("POST", "signal", body={"signal": signal}))

    @on_loop
    @override
    async def kill(self) -> None:
        """End it with everything that it started; returns when that is gone."""
        self._learn(await self._do("DELETE", extra=10.0))

    @on_loop
    @override
    async def resize(self, rows: int, cols: int) -> None:
        """Give its terminal another size."""
        inputs.validate_size((rows, cols), "the size")
        self._learn(await self._do("POST", "size", body={"rows": rows, "cols": cols}))

    @on_loop
    @override
    async def wait(self, timeout: float | None = None) -> CommandResult:
        """Wait for its end and give its result."""
        seconds = inputs.validate_timeout(timeout)
        said = await self._do("POST", "wait", body={"timeout": seconds}, extra=seconds)
        self._learn(said["command"])
        return CommandResult.model_validate(said["result"])


class Limited(Protocol):
    """What has limits."""

    def seconds_of(self, timeout: float | None) -> float:
        """How long something may take that is given such a time-out."""
        ...

    def is_over(self) -> bool:
        """Whether it has ended."""
        ...


class RemoteShell(Shell):
    """A shell that runs on a server: `pid` is as the server said last."""

    def __init__(
        self,
        name: str,
        call: Callable[..., Awaitable[Any]],
        link: Link,
        sandbox: Limited,
    ) -> None:  # no `super()`: there is no session here
        self.name = name
        self._call = call
        self._link = link
        self._sandbox = sandbox
        self._told_at = 0
        self._pid: int | None = None

    def learn(self, said: dict[str, Any]) -> None:
        """What the server says of it."""
        self._told_at += 1
        self._pid = said["pid"]

    async def _do(self, method: str, *parts: str, **more: Any) -> Any:
        said = await self._call(method, "shells", self.name, *parts, **more)
        self.learn(said)
        return said

    async def _look(self) -> None:
        began = self._told_at
        try:
            said = await self._call("GET", "shells", self.name)
            if self._told_at == began:  # else something newer was said meanwhile
                self.learn(said)
        except (SandboxStateError, SandboxLostError):
            self._pid = None

    @property
    @override
    def pid(self) -> int | None:
        """The shell's process id, as seen inside; None where there is none at the moment."""
        if self._sandbox.is_over():
            self._pid = None
        if self._pid is not None:
            self._link.look((self, "shell"), self._look)
        return self._pid

    @on_loop
    @override
    async def run(self, line: str, timeout: float | None = None) -> CommandResult:
        """Run a line, or several, and give what it printed and its status."""
        given = inputs.validate_line(line)
        seconds = inputs.validate_timeout(timeout)
        said = await self._do(
            "POST", "run", body={"line": given, "timeout": seconds},
            extra=self._sandbox.seconds_of(seconds) + 10.0,
        )  # fmt: skip
        return CommandResult.model_validate(said["result"])

    @on_loop
    @override
    async def interrupt(self) -> None:
        """Interrupt the line that is running, as Ctrl-C does."""
        await self._do("POST", "interrupt")

    @override
    async def end_with_box(self) -> None:
        """The server has ended it."""
        self._pid = None

    @on_loop
    @override
    async def close(self) -> None:
        """End the shell with its jobs."""
        await self._do("DELETE", extra=30.0)
