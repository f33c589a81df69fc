"""A sandbox without any walls: the guest as a plain child process. For tests only.

Everything above the box is the real thing: the guest, its protocol, the channel, the base class.
What it runs can do to this machine whatever the tests can.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio
import anyio.to_thread

import ms_enclave
from ms_enclave.boxes import Sandbox, SandboxFactory
from ms_enclave.channel.guest_socket import GuestSocket
from ms_enclave.errors import ConfigError
from ms_enclave.model import IsolationReport, ProcessSandboxConfig

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.channel.process import Process, SpawnRequest
    from ms_enclave.model import SandboxConfig

__all__ = ["SubprocessSandbox", "install"]

_SOURCES = str(Path(ms_enclave.__file__).parent.parent)

_GUEST = f"""
import sys
sys.path.insert(0, {_SOURCES!r})
from ms_enclave.guest.server import serve
if len(sys.argv) > 2:
    import os
    user = int(sys.argv[2])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
serve(int(sys.argv[1]))
"""


class SubprocessSandbox(Sandbox):
    """One guest process and one temporary folder, which is the working folder."""

    sandbox_type = "subprocess"
    config_class: ClassVar[type[SandboxConfig]] = ProcessSandboxConfig
    offers = frozenset({"python", "kernel", "terminals", "ports", "watch"})

    program: ClassVar[str] = _GUEST
    """What runs inside; tests put something hostile here."""

    async def _open(self, stack: AsyncExitStack) -> None:
        folder = await anyio.to_thread.run_sync(lambda: tempfile.mkdtemp(prefix="box-"))
        stack.push_async_callback(anyio.to_thread.run_sync, shutil.rmtree, folder, True)
        os.chmod(folder, 0o755)
        self.config.working_dir = os.path.realpath(folder)
        self._output_folder = f"{self.config.working_dir}/.commands"
        self._child: subprocess.Popen[bytes] | None = None
        self._others: list[subprocess.Popen[bytes]] = []
        stack.push_async_callback(anyio.to_thread.run_sync, self._end)
        self._socket, theirs = socket.socketpair()
        stack.callback(self._socket.close)
        with theirs:
            self._child = await anyio.to_thread.run_sync(self._start, theirs, folder)
        self._capabilities = frozenset({"python", "kernel", "terminals", "ports", "watch"})
        self._isolation = IsolationReport(tier="none", kernel=os.uname().release)

    def _start(self, theirs: socket.socket, folder: str, *user: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", self.program, str(theirs.fileno()), *user],
            pass_fds=[theirs.fileno()],
            cwd=folder,
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _end(self) -> None:
        # Their sockets were closed before this, so they end by themselves and take their programs
        # along.
        for child in (self._child, *self._others):
            _wait_for(child)

    async def _close(self) -> None:
        # What programs left running in the background dies with a box; here nothing kills it.
        guest = None if self._status.value == "created" else getattr(self, "_child", None)
        left = [] if guest is None else await anyio.to_thread.run_sync(_below, guest.pid)
        await super()._close()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _spawn(self, request: SpawnRequest) -> Process:
        guest = await self._get_guest()
        return await guest.spawn(request)

    def _guest_user(self, user: str | int | None) -> int | None:
        if user is None or str(user) == str(os.getuid()):
            return None
        if str(user).isdigit():
            return int(user)
        try:
            return pwd.getpwnam(str(user)).pw_uid
        except KeyError:
            raise ConfigError(f"There is no user {user!r}") from None

    async def _connect_guest(self, user: str | int | None) -> GuestConnection:
        from ms_enclave.channel.guest import GuestConnection

        ours = self._socket
        if user is not None:
            if os.geteuid() != 0:
                raise PermissionError(errno.EPERM, f"not root, so nobody can become {user}")
            ours, theirs = socket.socketpair()
            with theirs:
                child = await anyio.to_thread.run_sync(self._start, theirs, "/", str(user))
            self._others.append(child)
        connection = GuestConnection(GuestSocket(ours), working_dir=self.config.working_dir)
        await connection.connect()
        return connection


def _wait_for(child: subprocess.Popen[bytes] | None) -> None:
    if child is None:
        return
    try:
        child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _below(ancestor: int) -> list[int]:
    """All processes that come from one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    found = [ancestor]
    for known in found:
        found += [pid for pid, parent in parents.items() if parent == known]
    return found[1:]


def install() -> None:
    """Make the type known as "subprocess", in this process only."""
    SandboxFactory.register_sandbox("subprocess", SubprocessSandbox)
