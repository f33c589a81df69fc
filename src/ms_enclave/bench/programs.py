"""What stands beside us: a plain Python in a clean environment, and other ways to run a program."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

__all__ = [
    "BARE",
    "BWRAP",
    "DOCKER",
    "PYTHON",
    "SANDLOCK",
    "SERVER",
    "Environment",
    "ForkServer",
    "Other",
    "clean",
    "find_image",
    "find_others",
    "fork_server",
    "hooks_of",
    "kernel_time",
    "make_environment",
    "processor_time",
    "start",
]

PYTHON = "python -c"
BARE = "python -I -S -c"
SERVER = "fork server without walls"
BWRAP = "bwrap"
SANDLOCK = "sandlock"
DOCKER = "docker run --network none"

_HERE = Path(__file__).resolve().parent
_PATIENCE = 60.0
_SETTLING, _LOOK = 2.0, 0.1  # s
_LITTLE = 20.0  # ms of processor time a second that the kernel's threads always take
_KERNEL_THREAD = 0x00200000  # PF_KTHREAD
_SCRIPT = "import sys\nfrom ms_enclave.cli import run_cmd\nsys.exit(run_cmd())\n"


@dataclass(frozen=True)
class Environment:
    """Interpreters that start as quickly as they can, and our command under one of them."""

    python: str
    """A plain one: nothing is installed beside it."""
    full: str
    """The same with the packages of our own environment, found by path and without their hooks."""
    command: tuple[str, ...]
    hooks: tuple[str, ...]
    """Files that run code whenever these start; with any, a plain Python looks slow."""


def make_environment(folder: Path) -> Environment:
    """Make fresh virtual environments below a folder."""
    plain, full = folder / "plain", folder / "full"
    for place in (plain, full):
        venv.create(place, symlinks=True, with_pip=False)
    packages = next((full / "lib").glob("python*/site-packages"))
    (packages / "measured.pth").write_text("".join(f"{path}\n" for path in _package_paths()))
    script = full / "bin" / "ms-enclave"
    script.write_text(_SCRIPT)
    python, fuller = (str(place / "bin" / "python") for place in (plain, full))
    return Environment(python, fuller, (fuller, str(script)), tuple(hooks_of(python, fuller)))


def _package_paths() -> list[str]:
    """Where we find packages: all our paths but those that every Python has, and the program's."""
    standard = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    standard |= {os.path.join(path, "lib-dynload") for path in standard}
    standard.add(os.path.realpath(os.path.dirname(sys.argv[0])))
    found = [str(_HERE.parent.parent), *(path for path in sys.path if os.path.isdir(path))]
    return [path for path in dict.fromkeys(found) if os.path.realpath(path) not in standard]


def hooks_of(*pythons: str) -> list[str]:
    """What runs at the start of an interpreter, beside what every Python has."""
    ask = (
        "import glob, importlib.util, site, sys\n"
        "for folder in site.getsitepackages():\n"
        "    for path in glob.glob(folder + '/*.pth'):\n"
        "        if any(l.startswith(('import ', 'import\\t')) for l in open(path)): print(path)\n"
        "for name in ('sitecustomize', 'usercustomize'):\n"
        "    found = sys.modules.get(name)\n"
        "    if found: print(found.__file__)\n"
    )
    found: set[str] = set()
    for python in pythons:
        done = subprocess.run(
            [python, "-c", ask], capture_output=True, text=True, check=True, env=clean()
        )
        found.update(done.stdout.split("\n"))
    return sorted(found - {""})


def clean() -> dict[str, str]:
    """What a shell that a person works in would have; nothing that changes how Python starts."""
    return {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}


def start(argv: Sequence[str], printed: str = "1\n") -> float:
    """Run a program; ms from its start to its end.

    Raises RuntimeError where it does not end well and print what it should.
    """
    begun = time.perf_counter()
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=_PATIENCE, check=False, env=clean()
    )
    taken = time.perf_counter() - begun
    if (done.returncode, done.stdout) != (0, printed):
        raise RuntimeError(f"{list(argv)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return taken * 1000


def processor_time(argv: Sequence[str], text: str = "") -> tuple[float, str]:
    """Run a program on some input; the ms of processor time that it took, and what it printed.

    Counted are the program, all that it reaped, and the kernel's own threads, as far as they are
    seen: a namespace is taken down by one of those when the last who was in it has ended.
    Raises RuntimeError where the program does not end well.
    """
    before = _settled_kernel_time()
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean(),
    ) as started:
        if started.stdin is None or started.stdout is None:
            raise RuntimeError("no pipes")
        started.stdin.write(text)
        started.stdin.close()
        printed = started.stdout.read()
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode != 0:
        raise RuntimeError(f"{argv[0]} ended with {started.returncode}: {printed.strip()}")
    kernel = _settled_kernel_time() - before
    return (usage.ru_utime + usage.ru_stime) * 1000 + kernel, printed


def _settled_kernel_time() -> float:
    """The same in ms since the start of the machine, when they have little more to do."""
    deadline = time.monotonic() + _SETTLING
    seen = kernel_time()
    while time.monotonic() < deadline:
        time.sleep(_LOOK)
        now = kernel_time()
        if now - seen < _LITTLE * _LOOK:
            return now
        seen = now
    return seen


def kernel_time() -> float:
    """Processor time of the kernel's threads in ms; 0 where none is seen, as in a container."""
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                if int(stat.rpartition(")")[2].split()[6]) & _KERNEL_THREAD:
                    total += int(
                        Path(entry.path, "schedstat").read_text(encoding="utf-8").split()[0]
                    )
            except OSError:
                continue  # it has just ended
    return total / 1e6


# --- other sandboxes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Other:
    """Another way to isolate a program: its name, and the command line for a piece of Python."""

    name: str
    words: tuple[str, ...]

    def argv(self, code: str) -> list[str]:
        """The command line that runs this code."""
        return [*self.words, "-c", code]


def find_others(python: str, note: Callable[[str], object]) -> list[Other]:
    """Those that are installed and work here; for the rest a note says why they are left out."""
    found: list[Other] = []
    for name, program, words in (
        (BWRAP, "bwrap", _bwrap(python)),
        (SANDLOCK, "sandlock", ("run", "-r", "/", "--", python)),
        (DOCKER, "docker", _docker()),
    ):
        path = shutil.which(program)
        if path is None:
            note(f"{name}: not installed, left out")
        elif words is None:
            note(f"{name}: no engine that answers and has an image python:*, left out")
        else:
            other = Other(name, (path, *words))
            try:
                start(other.argv("print(1)"))
            except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
                note(f"{name}: does not work here, left out: {' '.join(str(error).split())[-200:]}")
            else:
                found.append(other)
    return found


def _bwrap(python: str) -> tuple[str, ...]:
    walls = ("--unshare-all", "--die-with-parent", "--ro-bind", "/", "/")
    return (*walls, "--proc", "/proc", "--dev", "/dev", python)


def _docker() -> tuple[str, ...] | None:
    image = find_image()
    return None if image is None else ("run", "--rm", "--network", "none", image, "python")


def find_image() -> str | None:
    """The first image of Python that an engine here has already; nothing is fetched."""
    docker = shutil.which("docker")
    if docker is None:
        return None
    try:
        listed = subprocess.run(
            [docker, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    names = listed.stdout.split()
    images = sorted(name for name in names if name.rpartition("/")[2].startswith("python:"))
    return images[0] if images else None


# --- the same without walls ---------------------------------------------------------------------


class ForkServer:
    """A warm interpreter that forks for each program, and isolates nothing."""

    def __init__(self, address: str) -> None:
        self._address = address

    def run(self, code: str, printed: str = "1\n") -> float:
        """Run a program; ms until all that it printed is here.

        Raises RuntimeError where it does not print what it should.
        """
        begun = time.perf_counter()
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_PATIENCE)
            line.connect(self._address)
            line.sendall(code.encode())
            line.shutdown(socket.SHUT_WR)
            answer = b""
            while data := line.recv(65536):
                answer += data
        taken = time.perf_counter() - begun
        if answer.decode() != printed:
            raise RuntimeError(f"the fork server answered {answer!r}")
        return taken * 1000


@contextlib.contextmanager
def fork_server(python: str, preload: Sequence[str] = ()) -> Generator[ForkServer]:
    """A fork server with these modules loaded, for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="enclave-bench-") as folder:
        address = f"{folder}/line"
        argv = [python, "-I", str(_HERE / "_fork_server.py"), address, *preload]
        server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean())
        try:
            if server.stdout is None or server.stdout.readline() != b"ready\n":
                raise RuntimeError("the fork server did not start")
            yield ForkServer(address)
        finally:
            server.communicate()
