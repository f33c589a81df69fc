"""The rows of `docker` sandboxes, each beside what the engine's own client does for the same image
with the same options, in turns with it.

Everything that is asked of an engine has a bound: one that hangs costs the row and not the run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.bench import programs, rivals
from ms_enclave.bench.context import WARM_UP, printed
from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.model import DockerSandboxConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from ms_enclave.bench.context import Context, Round
    from ms_enclave.boxes.base import Sandbox

__all__ = [
    "CROWD",
    "ENGINES_CROWD",
    "ENGINES_EXEC",
    "ENGINES_RM",
    "ENGINES_RUN",
    "FROM_POOL",
    "GATEWAY",
    "NOTEBOOK",
    "NOTEBOOK_IMAGE",
    "START",
    "STOP",
    "TRUE",
    "Engine",
    "crowd",
    "find",
    "notebooks",
    "starts",
    "stops",
    "true",
]

START, ENGINES_RUN = "docker: print(1) from nothing", "docker run"
TRUE, ENGINES_EXEC = "docker: true in a running sandbox", "docker exec"
STOP, ENGINES_RM = "docker: many stopped and removed", "docker rm -f"
CROWD, ENGINES_CROWD = "docker: 20 started at once", "20 docker run at once"

NOTEBOOK, GATEWAY = "docker_notebook: a cell from nothing", "a gateway container by hand"
FROM_POOL = "docker_notebook: a cell from the pool"
NOTEBOOK_IMAGE = "jupyter-kernel-gateway"

_PROGRAM = ["python3", "-c", "print(1)"]
_PATIENCE = 120.0
_LABEL = "ms-enclave-bench"
_SAME = frozenset({"AutoRemove", "RestartPolicy", "Init", "Privileged", "CpuPeriod"})
"""Settings that the words below have anyway, or that are the client's own default."""


@dataclass(frozen=True)
class Engine:
    """An engine that answers, with an image of Python; made by `find`."""

    docker: str
    image: str
    words: tuple[str, ...]
    """Options of `docker run` that make the container as ours is made."""
    others: list[rivals.Rival] = field(default_factory=list[rivals.Rival])

    @property
    def config(self) -> dict[str, Any]:
        """What our sandboxes are made with."""
        return {"image": self.image, "pull": "never"}

    def run(self, *words: str) -> list[str]:
        """The command line that runs a program in a new container."""
        return [self.docker, "run", "--label", _LABEL, *self.words, *words]

    def has(self, image: str) -> bool:
        """Whether that image is there."""
        try:
            self.call("image", "inspect", "--format", "{{.Id}}", image)
        except (RuntimeError, subprocess.TimeoutExpired):
            return False
        return True

    def first_output(self, *words: str) -> float:
        """Milliseconds from nothing to what a program prints; its end is waited for after.

        Args:
            words: an image and the program in it that prints 1; a plain Python's if none.
        """
        begun = time.perf_counter()
        with subprocess.Popen(
            self.run("--rm", *(words or (self.image, *_PROGRAM))),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                with _bounded(process):
                    assert process.stdout is not None  # noqa: S101 - it is a pipe
                    line = process.stdout.readline()
                    taken = time.perf_counter() - begun
                    _, said = process.communicate(timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        if line != b"1\n":
            raise RuntimeError(f"docker run printed {line!r}: {said.decode(errors='replace')}")
        return taken * 1000

    def call(self, *words: str) -> str:
        """Have the client do something; what it prints. Raises RuntimeError."""
        done = subprocess.run(
            [self.docker, *words], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"docker {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def clear(self) -> None:
        """Remove the containers of an interrupted round."""
        left = self.call("ps", "-aq", "--filter", f"label={_LABEL}").split()
        if left:
            self.call("rm", "-f", *left)


@contextmanager
def _bounded(process: subprocess.Popen[bytes]) -> Generator[None]:
    """Kill a client that says nothing for too long: reading from it has no bound of its own."""
    timer = threading.Timer(_PATIENCE, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def find(folder: Path, note: Callable[[str], object]) -> Engine | None:
    """An engine and what is measured over it; a note says why there is none."""
    found = programs.find_image()
    docker = shutil.which("docker")
    if docker is None or found is None:
        note("docker sandboxes: no engine that answers and has an image python:*, left out")
        return None
    if find_spec("aiodocker") is None:
        note("docker sandboxes: aiodocker is not installed, left out")
        return None
    return Engine(docker, found, _words(found, folder), rivals.find(note))


def _words(image: str, folder: Path) -> tuple[str, ...]:
    from ms_enclave.boxes import _docker_plan as plans
    from ms_enclave.boxes import _docker_seccomp

    config = DockerSandboxConfig(image=image, pull="never")
    dialect = plans.Dialect(_docker_seccomp.profile())
    plan = plans.plan_container(config, plans.limits_of(config), {}, strict_user=0, dialect=dialect)
    return tuple(words_of(plan.document["HostConfig"], folder))


def words_of(host: Mapping[str, Any], folder: Path) -> list[str]:
    """The options of `docker run` that ask for what an engine is asked for.

    Raises RuntimeError for a setting that is not known here: the comparison would not be fair.
    """
    words = ["--interactive=false", "--workdir=/"]
    for name, value in host.items():
        if name in _SAME or value in (None, "", [], {}):
            continue
        words += _option(name, value, folder)
    return words


def _option(name: str, value: Any, folder: Path) -> list[str]:
    if name == "SecurityOpt":
        return [_security(option, folder) for option in value]
    if name in _MANY:
        return [f"--{_MANY[name]}={item}" for item in value]
    if name in _PAIRS:
        option, sign = _PAIRS[name]
        return [f"--{option}={key}{sign}{text}" for key, text in value.items()]
    if name in _ONE:
        return [f"--{_ONE[name]}={value}"]
    if name == "LogConfig":
        return [f"--log-driver={value['Type']}"]
    if name == "ReadonlyRootfs":
        return ["--read-only"] if value else []
    raise RuntimeError(f"docker run has no option that is known here for {name}")


_MANY = {"CapDrop": "cap-drop", "CapAdd": "cap-add"}
_PAIRS = {"Sysctls": ("sysctl", "="), "Tmpfs": ("tmpfs", ":")}
_ONE = {
    "NetworkMode": "network", "PidsLimit": "pids-limit", "ShmSize": "shm-size", "Memory": "memory",
    "MemorySwap": "memory-swap", "CpuQuota": "cpu-quota", "IpcMode": "ipc",
    "CgroupnsMode": "cgroupns", "OomScoreAdj": "oom-score-adj",
}  # fmt: skip


def _security(option: str, folder: Path) -> str:
    name, _, value = option.partition("=")
    if name != "seccomp":
        return f"--security-opt={option}"
    file = folder / "seccomp.json"
    file.write_text(json.dumps(json.loads(value)), encoding="utf-8")
    return f"--security-opt=seccomp={file}"


# --- rows ---------------------------------------------------------------------------------------


def _engine(context: Context) -> Engine:
    if context.engine is None:
        raise RuntimeError("there is no engine")
    return context.engine


def _few(context: Context) -> int:
    return max(2, context.scale.samples // 4)


async def _ours(context: Context) -> str:
    """A sandbox that has run Python once; its id."""
    made = await context.manager.create_sandbox("docker", _engine(context).config)
    box = await context.manager.get_sandbox(made)
    if box is None or printed(await box.run_code("print(1)")) != "1\n":
        raise RuntimeError("a sandboxed program did not print what it should")
    return made


async def starts(context: Context, into: Round) -> None:
    """A container made and started, up to the first output of Python in it."""
    engine = _engine(context)
    try:
        for _ in range(_few(context)):
            begun = time.perf_counter()
            made = await _ours(context)
            into.add(START, (time.perf_counter() - begun) * 1000)
            await context.manager.delete_sandbox(made)
            into.add(ENGINES_RUN, engine.first_output())
        _add_others(context, into, "start", engine.image, _few(context))
    finally:
        engine.clear()


async def true(context: Context, into: Round) -> None:
    """The smallest command in a container that runs; the engine's own in the same one, afterwards:
    what an engine still does when its client has the answer is nobody else's time."""
    engine = _engine(context)
    async with context.manager.sandbox("docker", engine.config) as box:
        argv = [engine.docker, "exec", f"sandbox-{box.id}", "sh", "-c", "true"]
        for _ in range(context.scale.samples):
            begun = time.perf_counter()
            printed(await box.execute_command("true"))
            into.add(TRUE, (time.perf_counter() - begun) * 1000)
        for _ in range(context.scale.samples):
            into.add(ENGINES_EXEC, programs.start(argv, ""))
    _add_others(context, into, "true", engine.image, context.scale.samples)


async def stops(context: Context, into: Round) -> None:
    """Many stopped and removed at once, that are doing nothing; ms for all of them."""
    engine, many = _engine(context), max(2, context.scale.containers // 2)
    try:
        boxes = [await _ours(context) for _ in range(many)]
        plain = [
            engine.call(*engine.run("--detach", engine.image, "sleep", "600")[1:]).strip()
            for _ in range(many)
        ]
        begun = time.perf_counter()
        async with anyio.create_task_group() as group:
            for made in boxes:
                group.start_soon(context.manager.delete_sandbox, made)
        into.add(STOP, (time.perf_counter() - begun) * 1000)
        begun = time.perf_counter()
        engine.call("rm", "-f", *plain)
        into.add(ENGINES_RM, (time.perf_counter() - begun) * 1000)
        _add_others(context, into, "stop", engine.image, 1)
    finally:
        engine.clear()


async def crowd(context: Context, into: Round) -> None:
    """As many at once as that, up to the last first output; ms for all of them."""
    engine, many = _engine(context), context.scale.containers
    made: list[str] = []

    async def one() -> None:
        made.append(await _ours(context))

    try:
        begun = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(many):
                group.start_soon(one)
        into.add(CROWD, (time.perf_counter() - begun) * 1000)
    finally:
        async with anyio.create_task_group() as group:
            for each in made:
                group.start_soon(context.manager.delete_sandbox, each)
    try:
        with ThreadPoolExecutor(many) as pool:
            started = [pool.submit(engine.first_output) for _ in range(many)]
        into.add(ENGINES_CROWD, max(each.result() for each in started))
    finally:
        engine.clear()
    _add_others(context, into, "crowd", engine.image, many)


async def notebooks(context: Context, into: Round) -> None:
    """A notebook up to the first answer of a kernel in it: from nothing, and from a pool."""
    engine = _engine(context)
    config = {"image": NOTEBOOK_IMAGE, "pull": "never"}
    by_hand = Path(__file__).with_name("_gateway.py").read_text(encoding="utf-8")
    try:
        for _ in range(max(1, _few(context) // 2)):
            begun = time.perf_counter()
            made = await context.manager.create_sandbox("docker_notebook", config)
            await _first_cell(await context.manager.get_sandbox(made))
            into.add(NOTEBOOK, (time.perf_counter() - begun) * 1000)
            await context.manager.delete_sandbox(made)
            into.add(GATEWAY, engine.first_output(NOTEBOOK_IMAGE, "python3", "-c", by_hand))
    finally:
        engine.clear()
    async with LocalSandboxManager() as manager:
        await manager.initialize_pool(2, "docker_notebook", config)
        for _ in range(2):
            begun = time.perf_counter()
            async with manager.borrow() as box:
                await _first_cell(box)
                into.add(FROM_POOL, (time.perf_counter() - begun) * 1000)
    _add_others(context, into, "notebook", NOTEBOOK_IMAGE, 1)


async def _first_cell(box: Sandbox | None) -> None:
    if box is None or (await (await box.kernel()).run("print(1)")).stdout != "1\n":
        raise RuntimeError("a cell did not print what it should")


def _add_others(context: Context, into: Round, what: str, image: str, count: int) -> None:
    engine = _engine(context)
    if context.scale is WARM_UP:
        return  # each is a process of its own, and nothing of it stays warm
    for rival in engine.others:
        for sample in rival.measure(what, image, count):
            into.add(rival.name, sample)
