"""The part of a sandbox that is about commands that live on, and shells."""

from __future__ import annotations

import math
import posixpath
from abc import abstractmethod
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ms_enclave.boxes import _inputs as inputs
from ms_enclave.boxes._life import Life
from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from ms_enclave.boxes._execution import Job
    from ms_enclave.boxes._relay import Sink
    from ms_enclave.boxes._settings import Settings
    from ms_enclave.boxes.commands import Command, Commands
    from ms_enclave.boxes.files import Files
    from ms_enclave.boxes.shells import Recipe, Shell, Shells
    from ms_enclave.channel.process import Process, SpawnRequest
    from ms_enclave.model import CommandInfo, IsolationReport, Limits, SandboxConfig

__all__ = ["CommandMethods"]

TERM = "xterm-256color"
"""What a terminal says it is, unless the caller knows better."""

SHELL_SIZE = (24, 80)


class CommandMethods(Life):
    """`start_command` and `shell`, and what belongs to them."""

    files: Files
    config: SandboxConfig
    _isolation: IsolationReport | None
    _output_folder = "/tmp/.ms-enclave/commands"  # noqa: S108 - inside, and hostile like all there
    """Where older output is put; goes with the box."""
    _commands: Commands | None = None
    _shells: Shells | None = None

    @abstractmethod
    async def _spawn(self, request: SpawnRequest) -> Process:
        """Start one process in the box. The caller closes it."""

    @abstractmethod
    async def _require(self, capability: str) -> None:
        """Refuse what the box cannot do. Raises CapabilityError."""

    @abstractmethod
    def _settings(
        self, timeout: float | None, stdin: Any, cwd: str | None, env: Mapping[str, str] | None,
        user: str | int | None, limits: Limits | Mapping[str, Any] | None, on_output: Sink | None,
    ) -> Settings:  # fmt: skip
        """The settings of one program. Raises ConfigError."""

    @abstractmethod
    async def _plan_command(
        self, given: str | list[str], settings: Settings
    ) -> tuple[SpawnRequest, Job]:
        """What to start for a command. Precondition: within a call on the box."""

    @on_loop
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
        given, tag = inputs.validate_command(command), inputs.validate_tag(tag)
        size = inputs.validate_size(pty)
        if size is not None:
            env = {"TERM": TERM, **(env or {})}
        limits = inputs.coerce_limits(limits)
        settings = self._settings(timeout, None, cwd, env, user, limits, None)
        seconds = timeout or (None if limits is None else limits.timeout) or math.inf
        async with self._using():
            if size is not None:
                await self._require("terminals")
            request, job = await self._plan_command(given, settings)
            request = replace(request, stdin=stdin, pty=size)
            return await self._known_commands().start(
                lambda: self._spawn(request), job, timeout=seconds, tag=tag
            )

    @on_loop
    async def get_command(self, command_id: str) -> Command:
        """A handle of a command that `start_command` started, also of one that has ended lately.

        Raises:
            CommandNotFoundError: the sandbox knows none of that id.
            SandboxStateError, SandboxLostError: as `start_command`.
        """
        async with self._using():
            return self._known_commands().get(command_id)

    @on_loop
    async def list_commands(self) -> list[CommandInfo]:
        """The commands that `start_command` started, oldest first; those that ended lately, too.

        Raises:
            SandboxStateError, SandboxLostError: as `start_command`.
        """
        async with self._using():
            return self._known_commands().list()

    @on_loop
    async def shell(
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
        name = inputs.validate_shell_name(name)
        settings = self._settings(
            None, None, cwd, {"TERM": "dumb", **(env or {})}, user, None, None
        )
        async with self._using():
            await self._require("terminals")
            request, _ = await self._plan_command(":", settings)
            return self._known_shells().get(name, self._recipe(request))

    def _recipe(self, request: SpawnRequest) -> Recipe:
        from ms_enclave.boxes import shells
        from ms_enclave.boxes._shell_session import shell_argv

        path = (request.argv or ("/bin/sh",))[0]
        own = replace(request, argv=shell_argv(path), stdin=True, pty=SHELL_SIZE, pty_behind=True)

        async def kill_foreground(pid: int) -> None:
            helper = replace(request, argv=shells.kill_foreground_argv(pid), cwd="/")
            process = await self._spawn(helper)
            try:
                await process.wait()
            finally:
                await process.aclose()

        return shells.Recipe(lambda: self._spawn(own), kill_foreground, posixpath.basename(path))

    def _known_shells(self) -> Shells:
        if self._shells is None:
            from ms_enclave.boxes.shells import Home, Shells

            home = Home(
                using=self._within,
                own=self._own,
                limits=lambda timeout: self.config.resolve_limits(None, timeout),
                tier=lambda: None if self._isolation is None else self._isolation.tier,
            )
            self._shells = Shells(home)
        return self._shells

    def _known_commands(self) -> Commands:
        if self._commands is None:
            from ms_enclave.boxes.commands import Commands  # a plain run needs none

            self._commands = Commands(self._within, self._own, self.files, self._output_folder)
        return self._commands

    @asynccontextmanager
    async def _within(self) -> AsyncGenerator[None, None]:
        """A call on the box."""
        async with self._using():
            yield
