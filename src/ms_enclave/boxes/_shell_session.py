"""One shell process, and what it is asked and answers.

The shell is interactive (that is what gets over an interrupt, and has jobs), but its standard
streams are pipes; its terminal is behind them. A line is a command of its own for it, followed by
ours, which writes the line's status to the terminal and a mark to both outputs: the status is not
among what the line prints, and the marks say where that ends. Both carry a secret that is new for
each line. All of it is inside, so it is believed only as far as the line itself could have lied.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import anyio

from ms_enclave.boxes import _execution as execution
from ms_enclave.boxes._execution import Capture
from ms_enclave.errors import EnclaveError, SandboxLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteReceiveStream

    from ms_enclave.channel.process import Exit, Process

__all__ = ["Output", "Session", "shell_argv"]

_SETTLE = 1.0
"""Seconds that the marks may take after the status: a line may have sent the outputs elsewhere."""

_TRIES = 3
_PATIENCE = 0.5
"""Seconds that what was interrupted, or killed, has to end before more is done."""

_READING = 5.0
"""Seconds that a shell may take to read a line."""

_STALE = 4
_MOST_TERMINAL = 4096
_BEGIN = "PS1= PS2=\nexec 8>&1 9>&2\n"
_BEGIN_BASH = "PROMPT_COMMAND=\nunset HISTFILE\nset +o history +H\n"

KILL_FOREGROUND = """
read -r line </proc/"$1"/stat || exit 1
set -- ${line##*) }
[ "$6" -gt 1 ] && [ "$6" != "$3" ] && kill -KILL "-$6"
"""
"""Kills what a shell ($1, a process id) has in the foreground of its terminal, but not itself."""


def shell_argv(path: str) -> tuple[str, ...]:
    """How a shell is started: nobody's start-up files, and no editing of lines."""
    if path.endswith("bash"):
        return (path, "--noprofile", "--norc", "--noediting", "-i")
    return (path, "-i")


class Output:
    """One output of the shell, cut at the marks."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._mark = b""
        self._stale: list[bytes] = []
        """Those of lines that have ended: a shell that was interrupted may be asked twice."""
        self.line = Capture(limit)
        self.later = Capture(limit)
        """What came after the end of the line: it is shown with the next one."""
        self.ended = True

    def begin(self, mark: bytes) -> None:
        """A line is about to begin, at whose end the mark comes."""
        self.line, self.later = self.later, Capture(self._limit)
        self._mark = mark
        self.ended = False

    def end(self) -> None:
        """The line is over, whether its mark has come or not."""
        self._take(self._rest)
        self._rest = b""
        self._stale = [*self._stale, self._mark][-_STALE:]
        self.ended = True

    def forget(self) -> None:
        """Nobody is to see what came so far."""
        self.later = Capture(self._limit)

    def feed(self, data: bytes) -> None:
        """Take what came next."""
        self._rest += data
        marks = {self._mark, *self._stale} - {b""}
        while True:
            found = [(place, mark) for mark in marks if (place := self._rest.find(mark)) >= 0]
            if not found:
                break
            place, mark = min(found)
            self._take(self._rest[:place])
            self._rest = self._rest[place + len(mark) :]
            if mark == self._mark:
                self.ended = True
        cut = max(0, len(self._rest) - max((len(mark) - 1 for mark in marks), default=0))
        self._take(self._rest[:cut])
        self._rest = self._rest[cut:]

    def _take(self, data: bytes) -> None:
        (self.later if self.ended else self.line).feed(data)


class Session:
    """A shell from its start to its end. `run` one line at a time.

    Its outputs are read the whole time, within bounds, so that jobs can print between lines.
    Owned by whoever makes it, who ends it with `end`.
    """

    def __init__(
        self, process: Process, is_bash: bool, limit: int,
        kill_foreground: Callable[[int], Awaitable[object]],
    ) -> None:  # fmt: skip
        self.process = process
        self.exit: Exit | None = None
        self.lost: SandboxLostError | None = None
        self.ended = anyio.Event()
        self.outputs = (Output(limit), Output(limit))
        self._is_bash = is_bash
        self._eval = "eval" if is_bash else "command eval"
        self._kill_foreground = kill_foreground
        self._secret = ""
        self._begun = False
        self._status: int | None = None
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()
        self._told = b""
        self.task = asyncio.get_running_loop().create_task(self._attend())

    # --- lines ---

    async def begin(self) -> None:
        """Make a shell that has just started ready for its first line."""
        self._expect()
        await self._send((_BEGIN_BASH if self._is_bash else "") + _BEGIN + self._question())
        await self._wait()
        for output in self.outputs:
            output.end()
            output.forget()  # whatever it said until now is nobody's

    async def run(self, line: str) -> int | None:
        """Run a line and give its status; None where the shell has ended with it.

        Cancelled, the line goes on: `stop` ends it.
        """
        self._expect()
        quoted = line.replace("'", "'\\''")
        # Apart from the shell, nobody has the descriptors that the marks are written to.
        # `command`: else some shells drop what follows a line that is no syntax.
        await self._send(
            f"command printf '\\n%s begun\\n' {self._secret} >/dev/tty 2>/dev/null;"
            f" {self._eval} '{quoted}' </dev/null 8>&- 9>&-\n{self._question()}"
        )
        await self._wait()
        return self._status

    def finish(self) -> tuple[Capture, Capture]:
        """The line is over: what it printed, on both streams."""
        for output in self.outputs:
            output.end()
        out, err = self.outputs
        return out.line, err.line

    async def stop(self) -> None:
        """End the line that is running: by an interrupt, else by killing what is in the
        foreground, else with the shell. Nothing happens where it has ended."""
        for _ in range(_TRIES):
            await self.interrupt()
            if await self._is_over(_PATIENCE):
                return
            await self._try_to_kill_foreground()
            if await self._is_over(_PATIENCE):
                return
        await self.kill()
        await self.ended.wait()

    async def interrupt(self) -> None:
        """Send SIGINT to what is in the foreground."""
        terminal = self.process.terminal
        if terminal is not None and not self.ended.is_set():
            # One that is still reading the line would do what is left of it.
            with anyio.move_on_after(_READING):
                while not self._begun and not self.ended.is_set():
                    await self._news.wait()
            await terminal.interrupt()
            await self._send(self._question())  # some shells have lost what they were to read next

    def _expect(self) -> None:
        self._secret = secrets.token_hex(16)
        self._status = None
        self._begun = False
        for output in self.outputs:
            output.begin(self._secret.encode())

    def _question(self) -> str:
        """What makes the shell say how its last command ended, and where its output does."""
        # Without anything that a shell may not recognise after a line that was no syntax.
        secret = self._secret
        return (
            f"command printf '\\n%s %d\\n' {secret} \"$?\" >/dev/tty 2>/dev/null;"
            f" command printf %s {secret} >&8 2>/dev/null;"
            f" command printf %s {secret} >&9 2>/dev/null\n"
        )

    async def _send(self, text: str) -> None:
        stream = self.process.stdin
        if stream is None:
            return
        try:
            with anyio.move_on_after(_READING, shield=True):  # half a line would be another line
                await stream.send(text.encode("utf-8", "surrogateescape"))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, SandboxLostError):
            return  # it has ended, which is told elsewhere

    async def _is_over(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._wait()
            return True
        return False

    async def _wait(self) -> None:
        """Until the status is there with all that was printed before it, or the shell has ended."""
        while self._status is None and not self.ended.is_set():
            await self._news.wait()
        with anyio.move_on_after(_SETTLE):
            while not all(output.ended for output in self.outputs) and not self.ended.is_set():
                await self._news.wait()

    async def _try_to_kill_foreground(self) -> None:
        try:
            await self._kill_foreground(self.process.pid)
        except (EnclaveError, OSError):
            return  # then the shell goes, too

    # --- the process ---

    async def kill(self) -> None:
        """End the shell with everything that it started."""
        try:
            await execution.kill(self.process)
        except SandboxLostError as error:
            self.lost = error

    async def end(self, *, with_box: bool = False) -> None:
        """End it and let go of it; `with_box`: the sandbox is about to end anyway."""
        if not with_box and not self.ended.is_set():
            await self.kill()
        self._scope.cancel()
        await asyncio.wait([self.task])

    async def _attend(self) -> None:
        try:
            with self._scope:
                await self._read_everything()
        except SandboxLostError as error:
            self.lost = error
        finally:
            with anyio.move_on_after(execution.KILL_BOUND, shield=True):
                await self.process.abandon()
            self.ended.set()
            self._tell()

    async def _read_everything(self) -> None:
        process = self.process
        out, err = self.outputs
        open_outputs = 2
        drained = anyio.Event()

        async def pump(stream: ByteReceiveStream, take: Callable[[bytes], None]) -> None:
            nonlocal open_outputs
            try:
                while True:
                    take(await stream.receive())
                    self._tell()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                open_outputs -= stream is not (terminal and terminal.output)
            if not open_outputs:
                drained.set()

        terminal = process.terminal
        async with anyio.create_task_group() as group:
            group.start_soon(pump, process.stdout, out.feed)
            group.start_soon(pump, process.stderr, err.feed)
            if terminal is not None:
                group.start_soon(pump, terminal.output, self._hear)
            try:
                self.exit = await process.wait()
                with anyio.move_on_after(execution.DRAIN_QUIET):
                    await drained.wait()
            except SandboxLostError as error:
                self.lost = error
            group.cancel_scope.cancel()

    def _hear(self, data: bytes) -> None:
        """Take what was written to the terminal: a status, or anything else."""
        *lines, rest = (self._told + data).split(b"\n")
        self._told = rest[-_MOST_TERMINAL:]
        for line in lines:
            words = line.split()
            if len(words) != 2 or words[0] != self._secret.encode():
                continue
            self._begun = True
            if words[1].isdigit() and self._status is None:
                self._status = min(int(words[1]), 255)

    def _tell(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()
