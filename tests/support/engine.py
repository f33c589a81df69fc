"""Runs programs in containers of a real Docker engine, with this checkout and what it needs.

`scripts/engine ensure` makes the engine and the image. Nothing in a container has a network.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

__all__ = ["IMAGE", "WHEELS", "WITHOUT_PYTHON", "docker_run", "why_no_engine"]

ROOT = Path(__file__).parents[2]
IMAGE = "python:3.11-slim"
WITHOUT_PYTHON = "ms-enclave-test-busybox"
WHEELS = Path("/var/cache/ms-enclave/notebook")
"""What the image of notebooks is built with."""
_SITE, _CHECKOUT = "/opt/site", "/opt/checkout"


@functools.cache
def why_no_engine() -> str | None:
    """What is missing for `docker_run`, and what to do; None where nothing is."""
    try:
        done = subprocess.run(
            ["docker", "image", "inspect", IMAGE, WITHOUT_PYTHON],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return "there is no docker here; as root: scripts/engine ensure"
    except subprocess.TimeoutExpired:
        return "the Docker engine does not answer"
    if done.returncode:
        return f"{done.stderr.strip()}; as root: scripts/engine ensure"
    if not WHEELS.is_dir():
        return f"there is no {WHEELS}; as root: scripts/engine ensure"
    return None


@functools.cache
def _site_packages() -> str:
    """A folder of the host with what the tests import, for the container's Python."""
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    version = subprocess.run(
        ["docker", "run", "--rm", "--network=none", IMAGE, "python3", "-c", ask],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout.strip()  # fmt: skip
    if version == sysconfig.get_python_version():
        return sysconfig.get_paths()["purelib"]
    folder = tempfile.mkdtemp(prefix="site-packages-")
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--target", folder]
    pip += ["--python-version", version, "--only-binary=:all:", "--no-deps"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements/dev.txt")], timeout=300, check=True)
    os.chmod(folder, 0o755)
    return folder


def docker_run(
    words: list[str], *options: str, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a program in a new container that is otherwise as Docker makes it by default."""
    mounts = [f"{_site_packages()}:{_SITE}:ro", f"{ROOT}:{_CHECKOUT}:ro"]
    environment = {
        "PYTHONPATH": f"{_SITE}:{_CHECKOUT}/src:{_CHECKOUT}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/tmp",
        "CI": os.environ.get("CI", ""),
    }
    return subprocess.run(
        [
            "docker", "run", "--rm", "--init", "--network=none", f"--workdir={_CHECKOUT}",
            *(f"--volume={mount}" for mount in mounts),
            *(f"--env={name}={value}" for name, value in environment.items()),
            *options, IMAGE, *words,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
    )  # fmt: skip
