"""A Docker engine of a test's own, to be stopped, killed and filled up, with the base image in it.

It runs in a mount namespace, so that its mounts end with it, and in a network namespace: an engine
that is to have no bridge removes the one that it finds, which is the machine's engine's. Its
containers are in a control group of its own, so that they can be found whatever became of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from tests.support.engine import IMAGE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from anyio.abc import ByteStream

__all__ = ["OwnEngine", "distant", "own_engine", "why_no_own_engine"]

START_BOUND = 30.0
END_BOUND = 20.0
_DOCKERD = "dockerd -H unix://{0}/s --data-root {0}/data --exec-root {0}/exec --pidfile {0}/pid"
_ALONE = "--iptables=false --ip6tables=false --bridge=none --cgroup-parent=/{1}"


def why_no_own_engine() -> str | None:
    """What is missing to start one; None where nothing is."""
    if os.geteuid() != 0:
        return "only root can start an engine"
    missing = [name for name in ("dockerd", "unshare") if shutil.which(name) is None]
    return f"there is no {missing[0]} here" if missing else None


class OwnEngine:
    """One engine in a folder. `start` and `end` may be called again and again."""

    def __init__(self, folder: Path, *, small: int | None = None, options: str = "") -> None:
        self.folder = folder
        self._options = options
        self.group = folder.name
        self._small = small
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What DOCKER_HOST is to be."""
        return f"unix://{self.folder}/s"

    def docker(self, *words: str) -> str:
        """What the command line prints."""
        command = ["docker", "-H", self.url, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.strip()

    def containers(self) -> list[str]:
        """All that there are, also those that do not run."""
        return self.docker("ps", "-aq", "--no-trunc").split()

    def start(self) -> None:
        """Start it and wait until it answers."""
        line = f"exec {_DOCKERD} {_ALONE} {self._options} >>{{0}}/log 2>&1".format(
            self.folder, self.group
        )
        if self._small is not None:
            size = f"-o size={self._small}m"
            line = (
                f"mkdir -p {self.folder}/data; mount -t tmpfs {size} t {self.folder}/data; {line}"
            )
        self._daemon = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-ec", line],
            start_new_session=True,
            env={**os.environ, "DOCKER_TMPDIR": f"{self.folder}/tmp"},
        )
        self._wait(START_BOUND, self._answers, "the engine does not answer")

    def _answers(self) -> bool:
        command = ["docker", "-H", self.url, "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def load(self, image: str) -> None:
        """Give it an image of the machine's engine's."""
        source = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        with source:
            subprocess.run(
                ["docker", "-H", self.url, "load", "-q"],
                stdin=source.stdout, stdout=subprocess.DEVNULL, check=True, timeout=60,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        """Send its daemon a signal."""
        assert self._daemon is not None
        self._daemon.send_signal(number)

    @contextmanager
    def stopped(self) -> Generator[None]:
        """For as long as the block takes, the daemon does nothing."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the daemon, and wait for that."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait(END_BOUND)
        # The next daemon takes a dead one that nobody has waited for to be alive.
        record = self.folder / "exec/containerd/containerd.pid"
        containerd = int(record.read_text(encoding="ascii"))
        record.unlink()
        self._wait(END_BOUND, lambda: not _command(containerd), "containerd outlives dockerd")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(containerd, 0)

    def fill(self) -> Path:
        """Take all that is left of its disk; what does so may be removed again."""
        assert self._daemon is not None
        filler = Path(f"/proc/{self._daemon.pid}/root{self.folder}/data/filler")
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size) == size:
                        pass
        return filler

    def free(self) -> int:
        """Bytes that its disk has left."""
        assert self._daemon is not None
        found = os.statvfs(f"/proc/{self._daemon.pid}/root{self.folder}/data")
        return found.f_bavail * found.f_frsize

    def end(self) -> None:
        """End it and everything that it has started."""
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGCONT)
            self._daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(END_BOUND)
        self._wait(END_BOUND, self._killed_all, "something of the engine is left")
        if self._daemon is not None:
            self._daemon.wait(END_BOUND)

    def members(self) -> list[int]:
        """The processes in its containers."""
        return [pid for pid in _pids() if self.group in _groups(pid)]

    def _killed_all(self) -> bool:
        """Kill what is left, which is known by the folder or the control group that it has."""
        left = [pid for pid in _pids() if self._has(pid)]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)  # an orphan has become ours
        return not left

    def _has(self, pid: int) -> bool:
        if pid == os.getpid():
            return False
        return os.fsencode(self.folder) in _command(pid) or self.group in _groups(pid)

    @staticmethod
    def _wait(seconds: float, is_so: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, complaint
            time.sleep(0.05)

    def remove(self) -> None:
        """Remove its folder and its control groups."""
        for top in ("", *os.listdir("/sys/fs/cgroup")):
            for folder, _, _ in os.walk(f"/sys/fs/cgroup/{top}/{self.group}", topdown=False):
                os.rmdir(folder)
        shutil.rmtree(self.folder)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command(pid: int) -> bytes:
    """The command of a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _groups(pid: int) -> str:
    """The control groups of a process that has not ended."""
    try:
        if not _command(pid):
            return ""
        return Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    except OSError:
        return ""


@contextmanager
def own_engine(*, small: int | None = None, options: str = "") -> Generator[OwnEngine]:
    """An engine with the base image.

    Args:
        small: MiB that its disk has, where it has one of its own.
        options: more of its daemon's, as a shell reads them.
    """
    folder = Path(tempfile.mkdtemp(prefix="own-engine-", dir="/run"))
    engine = OwnEngine(folder, small=small, options=options)
    try:
        engine.start()
        engine.load(IMAGE)
        yield engine
    finally:
        engine.end()
        engine.remove()


@asynccontextmanager
async def distant(path: str) -> AsyncGenerator[str]:
    """What DOCKER_HOST is to be for an engine that is reached as if it were on another machine."""

    async def pass_on(source: ByteStream, target: ByteStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for data in source:
                await target.send(data)
            await target.send_eof()

    async def serve(client: ByteStream) -> None:
        async with client:
            try:
                engine = await anyio.connect_unix(path)
            except OSError:
                return  # it does not run
            async with engine, anyio.create_task_group() as both:
                both.start_soon(pass_on, client, engine)
                both.start_soon(pass_on, engine, client)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield f"tcp://127.0.0.1:{port}"
        group.cancel_scope.cancel()
