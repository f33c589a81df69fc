"""An engine that is stopped, killed or full: typed errors in time, and nothing that is left."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes import DockerSandbox, _docker_engine
from ms_enclave.errors import EngineUnavailableError, SandboxLostError, SandboxStartError
from ms_enclave.model import SandboxStatus, Verdict
from tests.support.own_engine import OwnEngine, distant, own_engine, why_no_own_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(why_no_own_engine() is not None, reason=str(why_no_own_engine())),
]

BOUND = 1.0
"""Seconds that stand for all the time that an engine is given."""


@pytest.fixture(scope="module")
def shared() -> Iterator[OwnEngine]:
    with own_engine() as engine:
        yield engine


@pytest.fixture
def engine(shared: OwnEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnEngine]:
    """An engine that may be stopped, and has nothing when the test begins and ends."""
    monkeypatch.setenv("DOCKER_HOST", shared.url)
    yield shared
    anyio.run(nothing_is_left, shared)


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnEngine]:
    """An engine of this one test's."""
    with own_engine() as made:
        monkeypatch.setenv("DOCKER_HOST", made.url)
        yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in _docker_engine.BOUNDS:
        monkeypatch.setitem(_docker_engine.BOUNDS, name, BOUND)


async def nothing_is_left(engine: OwnEngine) -> None:
    with anyio.fail_after(15):
        while await anyio.to_thread.run_sync(engine.containers):
            await anyio.sleep(0.05)


# --- an engine that is stopped ---


async def test_calls_go_on_while_the_engine_is_stopped(engine: OwnEngine) -> None:
    async with DockerSandbox() as box:
        kernel = await box.kernel()
        await kernel.run("x = 20")
        with engine.stopped():
            assert (await box.execute_command("echo there")).stdout == "there\n"
            await box.files.write("mine", "kept")
            assert await box.files.read_text("mine") == "kept"
            assert (await box.run_code("print(6 * 7)")).stdout == "42\n"
            assert (await kernel.run("print(x + 1)")).stdout == "21\n"
            result = await box.execute_command("sleep 600", timeout=0.2)
            assert result.verdict == Verdict.WALL_TIMEOUT
        assert (await box.execute_command("echo again")).stdout == "again\n"


@pytest.mark.usefixtures("impatient")
async def test_a_stop_while_the_engine_is_stopped_ends_the_container(engine: OwnEngine) -> None:
    box = DockerSandbox()
    await box.start()
    await box.start_command("while :; do sleep 600; done")
    assert len(await anyio.to_thread.run_sync(engine.members)) >= 2
    with engine.stopped():
        with anyio.fail_after(10):
            await box.stop()
        assert box.status == SandboxStatus.STOPPED
        assert await anyio.to_thread.run_sync(engine.members) == []
    await nothing_is_left(engine)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("step", ["image", "create", "attach", "start", "inspect"])
async def test_a_start_of_which_the_engine_does_a_part_is_an_error_and_leaves_nothing(
    step: str, engine: OwnEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(_docker_engine.Engine, step)

    async def stop_and_ask(self: Any, *arguments: Any) -> Any:
        engine.signal(signal.SIGSTOP)
        return await original(self, *arguments)

    monkeypatch.setattr(_docker_engine.Engine, step, stop_and_ask)
    box = DockerSandbox()
    try:
        with anyio.fail_after(15), pytest.raises(EngineUnavailableError, match="did not answer"):
            await box.start()
        assert box.status == SandboxStatus.ERROR
        await box.stop()
    finally:
        engine.signal(signal.SIGCONT)
    await nothing_is_left(engine)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("seconds", [0.002, 0.01, 0.05, 0.1])
async def test_a_start_that_is_cancelled_while_the_engine_is_stopped_leaves_nothing(
    seconds: float, engine: OwnEngine
) -> None:
    async def stop_soon() -> None:
        await anyio.sleep(seconds)
        engine.signal(signal.SIGSTOP)

    box = DockerSandbox()
    try:
        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                group.start_soon(stop_soon)
                with anyio.move_on_after(seconds + 0.2):
                    await box.start()
            await box.stop()
    finally:
        engine.signal(signal.SIGCONT)
    await nothing_is_left(engine)


# --- an engine that is killed ---


async def test_calls_outlive_an_engine_that_is_killed_until_it_is_back(mortal: OwnEngine) -> None:
    box = DockerSandbox()
    await box.start()
    async with anyio.create_task_group() as group:

        async def call() -> None:
            result = await box.execute_command("cat fifo; echo done", timeout=30)
            assert result.stdout == "done\n"

        await box.execute_command("mkfifo fifo")
        group.start_soon(call)
        await anyio.to_thread.run_sync(mortal.kill)
        await box.execute_command(": > fifo")
    other = DockerSandbox()
    with pytest.raises(EngineUnavailableError, match="cannot be reached"):
        await other.start()
    # An engine that starts ends what it finds.
    await anyio.to_thread.run_sync(mortal.start)
    with pytest.raises(SandboxLostError, match="container"), anyio.fail_after(20):
        while True:
            await box.execute_command("true")
    await box.stop()
    await nothing_is_left(mortal)
    async with DockerSandbox() as box:
        assert (await box.execute_command("echo new")).stdout == "new\n"


async def test_a_distant_engine_that_is_killed_takes_its_sandboxes_along(
    mortal: OwnEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with distant(f"{mortal.folder}/s") as url:
        monkeypatch.setenv("DOCKER_HOST", url)
        box = DockerSandbox()
        await box.start()
        async with anyio.create_task_group() as group:

            async def call() -> None:
                with pytest.raises(SandboxLostError):
                    await box.execute_command("sleep 600")

            group.start_soon(call)
            await anyio.sleep(0.2)
            await anyio.to_thread.run_sync(mortal.kill)
        assert box.status == SandboxStatus.ERROR
        with pytest.raises(EngineUnavailableError):
            await box.stop()
        await anyio.to_thread.run_sync(mortal.start)
        await nothing_is_left(mortal)


async def test_an_engine_that_dies_while_it_starts_a_sandbox_leaves_none(
    mortal: OwnEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _docker_engine.Engine.start

    async def kill_and_ask(self: Any, container: Any) -> None:
        await anyio.to_thread.run_sync(mortal.kill)
        await original(self, container)

    with monkeypatch.context() as patched:
        patched.setattr(_docker_engine.Engine, "start", kill_and_ask)
        with pytest.raises(EngineUnavailableError):
            await DockerSandbox().start()
    await anyio.to_thread.run_sync(mortal.start)
    await nothing_is_left(mortal)


# --- an engine that is full ---


@pytest.fixture(scope="module")
def small() -> Iterator[OwnEngine]:
    with own_engine(small=256) as made:
        yield made


async def test_a_full_disk_is_said_with_what_to_do(
    small: OwnEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", small.url)
    filler = await anyio.to_thread.run_sync(small.fill)
    try:
        with pytest.raises(SandboxStartError, match="no space left on device") as caught:
            await DockerSandbox().start()
        assert "docker system df" in (caught.value.remedy or "")
    finally:
        filler.unlink()
    await nothing_is_left(small)
    async with DockerSandbox() as box:
        assert (await box.execute_command("echo room")).stdout == "room\n"


async def test_a_program_that_fills_the_disk_is_told_so_and_leaves_nothing(
    small: OwnEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", small.url)
    before = small.free()
    async with DockerSandbox() as box:
        result = await box.execute_command("head -c 1G /dev/zero > /opt/much", timeout=60)
        assert result.exit_code == 1
        assert "No space left on device" in result.stderr
        with pytest.raises(OSError, match="No space left on device"):
            await box.files.write("/opt/more", b"x" * 1_000_000)
        assert (await box.execute_command("rm /opt/much; echo on")).stdout == "on\n"
        await box.execute_command("head -c 1G /dev/zero > /opt/much", timeout=60)
    await nothing_is_left(small)
    assert small.free() > before - (4 << 20)
