"""Shells of a sandbox, which keep folder, variables, functions and jobs from line to line."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.boxes import _execution as execution
from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._shell_session import KILL_FOREGROUND, Session
from ms_enclave.channel.process import Exit
from ms_enclave.errors import SandboxLostError
from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from ms_enclave.channel.process import Process
    from ms_enclave.model import CommandResult, ResolvedLimits

__all__ = ["Home", "Shell", "Shells"]

_STOP_BOUND = 20.0


@dataclass(frozen=True)
class Home:
    """What shells need of their sandbox."""

    using: Callable[[], AbstractAsyncContextManager[None]]
    """A call on the running sandbox."""
    own: Callable[[Callable[[], Awaitable[object]]], None]
    """Has something undone with the sandbox."""
    limits: Callable[[float | None], ResolvedLimits]
    tier: Callable[[], str | None]


@dataclass(frozen=True)
class Recipe:
    """How one shell is started, each time."""

    start: Callable[[], Awaitable[Process]]
    kill_foreground: Callable[[int], Awaitable[object]]
    program: str
    """The name of the program: `bash` or `sh`."""


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

    def __init__(self, name: str, home: Home, recipe: Recipe) -> None:
        self.name = name
        """The name under which `Sandbox.shell` gives it."""
        self._home = home
        self._recipe = recipe
        self._session: Session | None = None
        self._turn = anyio.Lock()

    @property
    def pid(self) -> int | None:
        """The shell's process id, as seen inside; None where there is none at the moment."""
        session = self._session
        return None if session is None or session.ended.is_set() else session.process.pid

    @on_loop
    async def run(self, line: str, timeout: float | None = None) -> CommandResult:
        """Run a line, or several, and give what it printed and its status.

        Its input is empty. What jobs printed since the last line comes with this one. The result
        has no `usage`: the shell's limits and figures are those of all its lines together.

        Args:
            timeout: seconds, of the config where None; the line is ended then, not the shell.

        Raises:
            ConfigError: the line is empty or has a NUL byte, or `timeout` is not valid.
            BlockingIOError: a new shell is needed, and the sandbox has no terminal left for it.
        """
        given = inputs.validate_line(line)
        limits = self._home.limits(inputs.validate_timeout(timeout))
        async with self._home.using(), self._turn:
            began, started = datetime.now(timezone.utc), time.monotonic()
            last = self._session
            session = await self._ready(limits.output)
            job = execution.Job(given, limits, isolation=self._home.tier())
            job.metadata["shell"] = self._recipe.program
            if last is not None and last is not session:
                job.metadata["new_shell"] = True
            status, timed_out = await self._run_in(session, given, limits.timeout)
            return _result(session, job, status, timed_out, began, started)

    @on_loop
    async def interrupt(self) -> None:
        """Interrupt the line that is running, as Ctrl-C does. Nothing happens where there is none.

        It is for a program to make of that what it wants; the line's own time-out insists.
        """
        async with self._home.using():
            if self._session is not None and self._turn.locked():
                await self._session.interrupt()

    @on_loop
    async def close(self) -> None:
        """End the shell with its jobs. The next line would begin a new one. Idempotent."""
        async with self._home.using(), self._turn:
            session, self._session = self._session, None
            if session is not None:
                await session.end()

    async def _ready(self, limit: int) -> Session:
        """The shell that is there, or a new one."""
        session = self._session
        if session is None or session.ended.is_set():
            process = await self._recipe.start()
            is_bash = self._recipe.program == "bash"
            session = Session(process, is_bash, limit, self._recipe.kill_foreground)
            try:
                await session.begin()
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await session.end()
                raise
            self._session = session
        return session

    async def _run_in(self, session: Session, line: str, timeout: float) -> tuple[int | None, bool]:
        """The status of a line (None: the shell ended), and whether its time was over."""
        try:
            with anyio.move_on_after(timeout):
                return await session.run(line), False
            await session.stop()
        except BaseException:
            # The line ends with its call, whatever ended that.
            with anyio.move_on_after(_STOP_BOUND, shield=True):
                await session.stop()
            session.finish()
            raise
        return (None if session.ended.is_set() else 0), True

    async def end_with_box(self) -> None:
        """Its sandbox is about to end."""
        if self._session is not None:
            await self._session.end(with_box=True)


class Shells:
    """The shells of one sandbox by name."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._all: dict[str, Shell] = {}

    def get(self, name: str, recipe: Recipe) -> Shell:
        """The shell of that name; made by the recipe where there is none yet."""
        if name not in self._all:
            if not self._all:
                self._home.own(self._end_all)
            self._all[name] = Shell(name, self._home, recipe)
        return self._all[name]

    async def _end_all(self) -> None:
        ends = [asyncio.ensure_future(shell.end_with_box()) for shell in self._all.values()]
        if ends:
            await asyncio.wait(ends)


def kill_foreground_argv(pid: int) -> tuple[str, ...]:
    """What ends the line of a shell that does not end it itself; run beside it, as its user."""
    return ("/bin/sh", "-c", KILL_FOREGROUND, "-", str(pid))


def _result(
    session: Session, job: execution.Job, status: int | None, timed_out: bool,
    began: datetime, started: float,
) -> CommandResult:  # fmt: skip
    out, err = session.finish()
    if status is None:
        job.metadata["shell_ended"] = True
    ended = Exit(exit_code=status) if status is not None else session.exit
    if ended is None:
        raise session.lost or SandboxLostError("The end of a shell was not reported")
    seen = execution.Observation(out, err, started, ended=ended, timed_out=timed_out)
    result = execution.result(job, seen, began)
    changes: dict[str, Any] = {"usage": None}
    if status is None:
        why = result.error or "The line ended its shell"
        changes["error"] = f"{why}; the next line begins a new shell"
    return result.model_copy(update=changes)
