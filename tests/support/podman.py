"""Podman's Docker-compatible service, of a test's own: root's, or an ordinary user's (rootless).

It has its own store in a folder, with the base image of the machine's engine in it. Its mounts are
in a mount namespace and end with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.engine import IMAGE
from tests.support.somebody import SOMEBODY

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["podman_service", "why_no_podman"]

_START_BOUND = 60.0

_CONTAINERS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
# Without the limits it asks for the highest that there can be, which not every root may have.

_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{0}/root"
runroot = "{0}/run"
[storage.options.overlay]
ignore_chown_errors = "true"
"""


def why_no_podman() -> str | None:
    """What is missing to start it; None where nothing is."""
    if os.geteuid() != 0:
        return "only root can start a service for another user"
    missing = [name for name in ("podman", "runc", "unshare") if shutil.which(name) is None]
    return f"there is no {missing[0]} here" if missing else None


@contextmanager
def podman_service(*, rootless: bool) -> Generator[str]:
    """A running service; gives what DOCKER_HOST is to be."""
    folder = Path(tempfile.mkdtemp(prefix="podman-", dir="/tmp"))  # a socket's path must be short
    try:
        for name in ("home", "xdg", "cache"):
            (folder / name).mkdir()
        (folder / "xdg").chmod(0o700)
        (folder / "containers.conf").write_text(_CONTAINERS)
        (folder / "storage.conf").write_text(_STORAGE.format(folder))
        archive = folder / "image.tar"
        subprocess.run(["docker", "save", "-o", str(archive), IMAGE], check=True, timeout=60)
        archive.chmod(0o644)
        words: list[str] = []
        if rootless:
            for path in (folder, *folder.iterdir()):
                os.chown(path, SOMEBODY, SOMEBODY)
            words = [
                "setpriv",
                "--reuid",
                str(SOMEBODY),
                "--regid",
                str(SOMEBODY),
                "--clear-groups",
            ]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "USER": "somebody",
            "XDG_RUNTIME_DIR": str(folder / "xdg"),
            "TMPDIR": str(folder),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }
        line = (
            f"podman load -q -i {archive} >/dev/null && rm {archive} && "
            f"exec podman system service -t 0 unix://{folder}/s"
        )
        with (folder / "log").open("wb") as log:
            service = subprocess.Popen(
                ["unshare", "--mount", *words, "sh", "-ec", line],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            _wait_for(folder / "s", service, folder / "log")
            yield f"unix://{folder}/s"
        finally:
            service.terminate()
            try:
                service.wait(20)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()
            _end_the_rest(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(socket: Path, service: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_BOUND
    while not socket.exists():
        assert service.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"it does not answer: {log.read_text()}"
        time.sleep(0.05)


def _end_the_rest(folder: Path) -> None:
    """A rootless Podman leaves a process behind that holds its namespaces."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{folder}/".encode() in environment:
                try:
                    os.kill(int(entry.name), 9)
                except ProcessLookupError:
                    continue
