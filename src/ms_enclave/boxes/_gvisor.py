"""One sandbox of tier `gvisor`: started, reached, and ended with all that belongs to it.

Its owner is `ProcessSandbox`, which acquires it in `_open`. What is asked of `runsc` is decided by
`_gvisor_plan`; everything of it on the machine belongs to one launcher (`spawner.gvisor_launcher`),
which ends when it is closed, or when this process ends.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ms_enclave.channel import guest_loader as loader
from ms_enclave.channel.guest import GuestConnection
from ms_enclave.channel.guest_socket import HeardSocket
from ms_enclave.errors import (
    EnclaveError,
    IsolationUnavailableError,
    SandboxLostError,
    SandboxStartError,
)
from ms_enclave.spawner.keeping import identity
from ms_enclave.spawner.launch import Launched, launch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Gvisor", "find_runsc"]

INIT = 2
"""The number of `runsc` where its keeper is the first process."""

_START_SECONDS = 30.0
_END_SECONDS = 10.0
_REASON_SECONDS = 2.0
_PACKET = 1 << 14
_REMEDY = (
    "see that it works by itself: runsc --network=none --ignore-cgroups do true; or use "
    "isolation='namespace'"
)


def find_runsc() -> tuple[str, str]:
    """The path of `runsc` and its version. Blocks: it is started.

    Raises:
        IsolationUnavailableError: there is none, it does not run, or we are not root.
    """
    path = shutil.which("runsc")
    if path is None:
        raise IsolationUnavailableError(
            "isolation='gvisor' needs the program runsc, and there is none on this machine",
            missing=["runsc"],
            remedy="install gVisor: apt install runsc on Debian, or its own package elsewhere",
        )
    if os.geteuid() != 0:
        raise IsolationUnavailableError(
            "isolation='gvisor' needs root: runsc makes mounts and starts its parts as others",
            missing=["root"],
            remedy="run as root, or use isolation='namespace', which needs none",
        )
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, timeout=20, check=True, env={}, cwd="/"
        )
    except (subprocess.SubprocessError, OSError) as error:
        raise IsolationUnavailableError(
            f"{path} does not run: {error}", missing=["runsc"], remedy=_REMEDY
        ) from error
    return path, done.stdout.decode(errors="replace").partition("\n")[0][-40:]


class Gvisor:
    """`start` it, `connect` to its guest once, and `close` it: then nothing of it is left.

    Args:
        plan: for its launcher.
        lost: told why it has ended, when it has ended by itself.
    """

    def __init__(self, plan: Mapping[str, Any], lost: Callable[[str], object]) -> None:
        self._plan = plan
        self._lost = lost
        self._launched: Launched | None = None
        self._line: HeardSocket | None = None
        self._reason: str | None = None
        self.controllers: list[str] = []
        """Of the control groups that hold it."""
        self.launcher = (0, 0)
        """Pid and start time of its first process."""

    async def start(self) -> None:
        """Start it.

        Raises:
            IsolationUnavailableError: the machine does not allow what it needs.
            SandboxStartError: it ended or did not answer in time.
        """
        channel = await anyio.to_thread.run_sync(self._launch)
        self._line = HeardSocket(channel)
        with anyio.move_on_after(_START_SECONDS):
            row = await self._hear()
            if row is not None and row["event"] == "started":
                self.controllers = row["controllers"]
                return
            text = "its launcher ended" if row is None else f"{row['step']}: {row['text']}"
            raise IsolationUnavailableError(
                f"runsc could not be started: {text}", missing=["runsc"], remedy=_REMEDY
            )
        raise SandboxStartError("The launcher of runsc did not get ready in time")

    def _launch(self) -> socket.socket:
        """In a worker thread: starting a process blocks."""
        loader.payload()  # reads files, once
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                launched = self._launched = launch(self._plan)
                socket.send_fds(launched.control, [b"\0"], [theirs.fileno()])
            pid = launched.process.pid
            self.launcher = (pid, identity(pid)["start"])
        except BaseException:
            ours.close()
            raise
        return ours

    async def connect(self, working_dir: str) -> GuestConnection:
        """Make a guest of its first process, and greet it.

        Raises:
            IsolationUnavailableError: `runsc` does not work here.
        """
        line = self._line
        if line is None:
            raise SandboxLostError("There is no guest in it any more")
        try:
            await line.send(loader.payload())
            connection = GuestConnection(line, working_dir=working_dir)
            await connection.connect(_START_SECONDS)
        except (anyio.BrokenResourceError, anyio.EndOfStream, SandboxLostError) as error:
            raise await self._why_not(error) from error
        line.on_end = self._ended
        return connection

    async def _why_not(self, error: Exception) -> EnclaveError:
        reason = await self._find_reason()
        text = reason or getattr(error, "message", "") or "it said nothing"
        return IsolationUnavailableError(
            f"runsc could not start a sandbox: {text}", missing=["runsc"], remedy=_REMEDY
        )

    async def _ended(self) -> None:
        reason = await self._find_reason()
        self._lost(reason or "The sandbox's kernel has ended")

    async def _find_reason(self) -> str:
        """Why it has ended, as far as its launcher says so in time."""
        if self._reason is None:
            with anyio.move_on_after(_REASON_SECONDS):
                self._reason = _explain(await self._hear())
        return self._reason or ""

    async def _hear(self) -> dict[str, Any] | None:
        launched = self._launched
        while launched is not None and launched.control.fileno() >= 0:
            try:
                data = launched.control.recv(_PACKET)
            except BlockingIOError:
                await anyio.wait_readable(launched.control)
                continue
            except OSError:
                return None
            return json.loads(data) if data else None
        return None

    async def close(self) -> None:
        """End it with everything in it; returns when all of it is gone. May be called twice."""
        line, self._line = self._line, None
        if line is not None:
            line.on_end = None
            await line.aclose()
        launched, self._launched = self._launched, None
        if launched is None:
            return
        anyio.notify_closing(launched.control)
        launched.control.close()
        try:
            await anyio.to_thread.run_sync(launched.process.wait, _END_SECONDS)
        except subprocess.TimeoutExpired:
            launched.process.kill()  # its keeper dies with it
            await anyio.to_thread.run_sync(launched.process.wait)
        os.close(launched.notes)


def _explain(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row.get("oom"):
        return "The sandbox had more memory than it may have, and ended with its kernel"
    words = str(row.get("text", "")).strip()[-500:]
    return f"The sandbox's kernel ended with status {row.get('status')}" + (
        f": {words}" if words else ""
    )
