"""Images without a Python of their own: one is brought along on a volume, once for each engine."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from ms_enclave.boxes import DockerSandbox
from ms_enclave.boxes import _docker_found as found
from ms_enclave.boxes import _docker_owner as owners
from ms_enclave.errors import SandboxStartError
from tests.support.engine import IMAGE, WITHOUT_PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.docker

PREFIX = "ms-enclave-python-"


def docker(*words: str, stdin: bytes | None = None) -> str:
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, check=True)
    return done.stdout.decode().strip()


def volumes() -> set[str]:
    return set(docker("volume", "ls", "-q", "--filter", "label=ms-enclave.python").split())


def enclave(*words: str) -> str:
    code = "from ms_enclave.cli import run_cmd; run_cmd()"
    program = [sys.executable, "-c", code, *words]
    return subprocess.run(program, capture_output=True, check=True, text=True, timeout=60).stdout


def remove_volumes() -> None:
    """Those that no sandbox has now; a sandbox that is started later makes a new one."""
    for name in volumes():
        subprocess.run(["docker", "volume", "rm", name], capture_output=True, check=False)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    def fillers() -> str:
        return docker("ps", "-aq", "--filter", f"name={PREFIX}")

    assert fillers() == ""
    yield
    assert fillers() == ""
    names = volumes()
    assert {name for name in names if not name.endswith("-complete")} == {
        name.removesuffix("-complete") for name in names if name.endswith("-complete")
    }


@pytest.fixture
def image(request: pytest.FixtureRequest) -> Iterator[str]:
    """The base image with its Python replaced by what a test says."""
    name = f"ms-enclave-python-test-{os.getpid()}"
    text = f"FROM {IMAGE}\nRUN rm -f /usr/local/bin/python* && {request.param}\n"
    subprocess.run(
        ["docker", "build", "-q", "-t", name, "-"],
        input=text.encode(), capture_output=True, check=True,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
    )  # fmt: skip
    yield name
    docker("rmi", "-f", name)


NO_PYTHON_TO_DAY = (
    "printf '#!/bin/sh\\necho no python to-day >&2\\n' >/usr/local/bin/python3"
    " && chmod +x /usr/local/bin/python3"
)
TALKING = (
    "printf '#!/bin/sh\\necho not a guest; exec sleep 60\\n' >/usr/local/bin/python3"
    " && chmod +x /usr/local/bin/python3"
)
TOO_OLD = (
    "printf '#!/bin/sh\\necho Python 3.8 or later is needed >&2; exit 86\\n'"
    " >/usr/local/bin/python3 && chmod +x /usr/local/bin/python3"
)


@pytest.mark.parametrize("image", [NO_PYTHON_TO_DAY, TOO_OLD], indirect=True)
async def test_a_python_that_does_not_work_gives_way(image: str) -> None:
    async with DockerSandbox({"image": image}) as box:
        assert (await box.run_code("print(6 * 7)")).stdout == "42\n"
        assert box.metadata["python"] == "/.ms-enclave/bin/python3"


@pytest.mark.parametrize(
    "config", [{}, {"hardening": "strict"}, {"user": "nobody"}, {"read_only": True}]
)
async def test_everything_works_where_there_is_nothing_but_a_static_program(
    config: dict[str, Any],
) -> None:
    async with DockerSandbox({"image": WITHOUT_PYTHON, **config}) as box:
        code = "import sys, ssl, sqlite3, ctypes, subprocess; print(subprocess.run("
        code += "[sys.executable, '-c', 'print(6 * 7)'], capture_output=True).stdout)"
        assert (await box.run_code(code)).stdout == "b'42\\n'\n"
        kernel = await box.kernel()
        await kernel.run("x = 41")
        assert (await kernel.run("x + 1")).result == {"text/plain": "42"}
        assert (await box.execute_command("echo $0; cat /etc/hostname >&2")).exit_code == 0
        denied = await box.execute_command("echo x >/.ms-enclave/bin/python3")
        assert denied.exit_code != 0


async def test_what_another_user_asks_for_is_served_by_the_same() -> None:
    async with DockerSandbox({"image": WITHOUT_PYTHON}) as box:
        await box.files.as_user("nobody").write("/tmp/theirs", "x")
        assert (await box.execute_command("stat -c %U /tmp/theirs")).stdout == "nobody\n"


async def test_no_variable_and_no_file_of_ours_reaches_programs() -> None:
    async with DockerSandbox({"image": WITHOUT_PYTHON}) as box:
        shown = (await box.execute_command("env; command -v python3")).stdout
        assert "LD_" not in shown
        assert "PYTHON" not in shown
        assert ".ms-enclave" not in shown


async def test_without_a_donor_it_is_said_what_to_do() -> None:
    config = {"image": WITHOUT_PYTHON, "python_image": "ms-enclave-no-such", "pull": "never"}
    with pytest.raises(SandboxStartError, match="No such image: ms-enclave-no-such") as caught:
        await DockerSandbox(config).start()
    assert WITHOUT_PYTHON in caught.value.message
    assert "pull" in (caught.value.remedy or "")


async def test_a_donor_without_python_is_refused_in_the_engines_words() -> None:
    config = {"image": WITHOUT_PYTHON, "python_image": WITHOUT_PYTHON}
    with pytest.raises(SandboxStartError, match="python3"):
        await DockerSandbox(config).start()


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.4, 0.8])
async def test_a_start_that_is_cancelled_while_it_is_made_leaves_nothing(seconds: float) -> None:
    remove_volumes()
    box = DockerSandbox({"image": WITHOUT_PYTHON})
    with anyio.move_on_after(seconds):
        await box.start()
    await box.stop()


async def test_what_was_not_finished_is_not_used() -> None:
    remove_volumes()
    donor = docker("image", "inspect", IMAGE, "--format", "{{.Id}}")
    label = f"ms-enclave.python={donor}/{await layout()}"
    half = f"{PREFIX}half-{os.getpid()}"
    docker("volume", "create", "--label", label, half)
    try:
        async with DockerSandbox({"image": WITHOUT_PYTHON}) as box:
            assert (await box.run_code("print(1)")).stdout == "1\n"
    finally:
        docker("volume", "rm", half)


async def layout() -> str:
    from ms_enclave.boxes import _docker_python

    return _docker_python.LAYOUT


async def test_one_that_somebody_removed_is_made_anew() -> None:
    async with DockerSandbox({"image": WITHOUT_PYTHON}):
        pass
    remove_volumes()
    async with DockerSandbox({"image": WITHOUT_PYTHON}) as box:
        assert (await box.run_code("print(1)")).stdout == "1\n"


async def test_many_that_are_the_first_share_one() -> None:
    remove_volumes()
    outputs: list[str] = []

    async def use() -> None:
        async with DockerSandbox({"image": WITHOUT_PYTHON}) as box:
            outputs.append((await box.run_code("print(1)")).stdout)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(use)
    assert outputs == ["1\n"] * 4
    assert len(volumes()) == 2


async def test_it_is_no_sandbox_and_is_cleared_only_when_none_has_it() -> None:
    remove_volumes()
    async with DockerSandbox({"image": WITHOUT_PYTHON}) as box:
        assert [one.id for one in await DockerSandbox.find_all()].count(box.id) == 1
        assert all(not one.place.startswith(PREFIX) for one in await DockerSandbox.find_all())
        assert await DockerSandbox.clear_cache() == []
        assert len(volumes()) == 2
    [words] = await DockerSandbox.clear_cache(dry_run=True)
    assert len(volumes()) == 2
    assert await DockerSandbox.clear_cache() == [words]
    assert volumes() == set()


def test_what_two_types_share_is_named_once() -> None:
    name = f"{PREFIX}shared-{os.getpid()}"
    both = (name, f"{name}-complete")
    try:
        for one in both:
            docker("volume", "create", "--label", f"{owners.PYTHON}=sha256:none/0", one)
        lines = enclave("clean", "--all", "--dry-run").splitlines()
        said = f"would remove docker volume {name} (a Python for images without)"
        assert [line for line in lines if name in line] == [said]
    finally:
        docker("volume", "rm", "-f", *both)


async def test_what_a_killed_owner_had_begun_is_swept() -> None:
    now = datetime.now(timezone.utc)
    given = await anyio.to_thread.run_sync(owners.labels, "x", "m", now)
    label = "ms-enclave.owner"
    gone = f"{given[label].rpartition(':')[0]}:1"  # our number, but of who began long before
    kind = f"{owners.PYTHON}=sha256:none/0"
    half, ours = f"{PREFIX}half-{os.getpid()}", f"{PREFIX}ours-{os.getpid()}"
    docker("volume", "create", "--label", kind, "--label", f"{label}={gone}", half)
    docker("volume", "create", "--label", kind, "--label", f"{label}={given[label]}", ours)
    try:
        async with found.engine() as engine:
            await found.sweep(engine)
        assert half not in volumes()
        assert ours in volumes()
    finally:
        docker("volume", "rm", "-f", half, ours)


@pytest.mark.parametrize("image", [TALKING], indirect=True)
async def test_a_python_that_runs_and_says_what_no_guest_says_is_not_replaced(image: str) -> None:
    with pytest.raises(SandboxStartError, match="none of a guest's"):
        await DockerSandbox({"image": image}).start()


async def test_a_python_that_something_else_has_ended_is_not_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its image's packages would be gone without a word."""
    with pytest.raises(SandboxStartError, match="memory was used up"):
        await DockerSandbox({"memory_limit": "6m"}).start()
    async with DockerSandbox() as box:
        assert box.metadata["python"] == "python3"
    assert "taking a Python" not in caplog.text


USE = """
import anyio
from ms_enclave.boxes import DockerSandbox

async def use():
    async with DockerSandbox({"image": %r}) as box:
        print((await box.run_code("print(6 * 7)")).stdout)

anyio.run(use)
"""


def test_two_processes_that_are_the_first_do_not_disturb_each_other() -> None:
    remove_volumes()
    program = [sys.executable, "-c", USE % WITHOUT_PYTHON]
    both = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        said, _ = one.communicate(timeout=60)
        assert said.strip() == "42"
    assert len(volumes()) in (2, 4)
