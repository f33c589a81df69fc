"""The image of notebooks, on an engine of the tests' own: built once, and anew when it is stale."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest

from ms_enclave.boxes import DockerNotebook
from tests.support.engine import IMAGE, WHEELS
from tests.support.own_engine import OwnEngine, own_engine, why_no_own_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(why_no_own_engine() is not None, reason=str(why_no_own_engine())),
]

CONFIG: dict[str, Any] = {"wheels": str(WHEELS), "pull": "never"}
OURS = "jupyter-kernel-gateway"
BUILD_BOUND = 200.0

USE = """
import logging, sys
import anyio
from ms_enclave.boxes import DockerNotebook

logging.basicConfig(stream=sys.stderr, level=logging.INFO)

async def use():
    config = {"wheels": sys.argv[1], "pull": "never"}
    async with DockerNotebook(config) as box:
        print((await (await box.kernel()).run("6 * 7")).result["text/plain"])

anyio.run(use)
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[OwnEngine]:
    with own_engine() as engine:
        yield engine


@pytest.fixture
def engine(shared: OwnEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnEngine]:
    monkeypatch.setenv("DOCKER_HOST", shared.url)
    yield shared
    assert shared.containers() == []


def builds(engine: OwnEngine) -> list[str]:
    """The images that a build of ours has made, without those of its steps."""
    return engine.docker("images", "-q", "--filter", "label=ms-enclave.notebook").split()


def test_two_processes_that_are_the_first_build_once(engine: OwnEngine) -> None:
    program = [sys.executable, "-c", USE, str(WHEELS)]
    both = [
        subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    begun = 0
    for one in both:
        told, logged = one.communicate(timeout=BUILD_BOUND)
        assert told.strip() == "42", logged
        begun += logged.count(f"building the image {OURS} from")
    assert begun == 1
    assert len(builds(engine)) == 1


async def test_a_strict_notebook_runs_cells_and_has_its_walls(engine: OwnEngine) -> None:
    del engine
    async with DockerNotebook({**CONFIG, "hardening": "strict", "seed": 5}) as box:
        drawn = {"text/plain": repr(random.Random(5).random())}
        for name in ("main", "other"):
            kernel = await box.kernel(name)
            assert (await kernel.run("import random; random.random()")).result == drawn
        done = await kernel.run("print(open('/proc/self/status').read())")
        assert "CapBnd:\t0000000000000000" in done.stdout
        assert "Seccomp:\t2" in done.stdout
        refused = await kernel.run("open('/opt/new', 'w')")
        assert refused.error is not None
        assert "Read-only file system" in str(refused.error)


async def test_what_is_stale_gives_way_unless_it_is_used_and_a_base_of_the_users_is_seen(
    engine: OwnEngine, tmp_path: Path
) -> None:
    def make(name: str, text: str) -> str:
        (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\n{text}\n")
        return engine.docker("build", "-q", "--network=none", "-t", name, str(tmp_path))

    def short(image: str) -> str:
        return image.removeprefix("sha256:")[:12]

    write = (
        'RUN python3 -c "import sysconfig, pathlib; '
        "pathlib.Path(sysconfig.get_paths()['purelib'], 'brought.py').write_text('answer = 42')\""
    )
    await anyio.to_thread.run_sync(make, "brought-base", write)
    unused, used = [
        short(await anyio.to_thread.run_sync(make, OURS, f"LABEL ms-enclave.notebook={version}-x"))
        for version in ("one", "other")
    ]
    holder = await anyio.to_thread.run_sync(engine.docker, "create", used, "true")
    async with DockerNotebook({**CONFIG, "base_image": "brought-base"}) as box:
        done = await (await box.kernel()).run("import brought; brought.answer")
        assert done.result == {"text/plain": "42"}
        assert unused not in builds(engine)
        assert used in builds(engine), "a container has it"
        assert len(builds(engine)) == 2
    await anyio.to_thread.run_sync(engine.docker, "rm", holder)
