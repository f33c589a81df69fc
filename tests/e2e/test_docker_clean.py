"""`ms-enclave clean` on an engine of the tests' own: what it clears away is nobody else's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.boxes import DockerSandbox
from tests.e2e.test_docker import containers, enclave, leave
from tests.e2e.test_docker_python import volumes
from tests.support.engine import WITHOUT_PYTHON
from tests.support.own_engine import OwnEngine, own_engine, why_no_own_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(why_no_own_engine() is not None, reason=str(why_no_own_engine())),
]


@pytest.fixture(scope="module")
def shared() -> Iterator[OwnEngine]:
    with own_engine() as engine:
        engine.load(WITHOUT_PYTHON)
        yield engine


@pytest.fixture(autouse=True)
def engine(shared: OwnEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnEngine]:
    monkeypatch.setenv("DOCKER_HOST", shared.url)
    yield shared
    assert shared.containers() == []


def test_it_is_shown_and_removed_and_what_lives_is_not_touched() -> None:
    live = DockerSandbox(sandbox_id="living")
    anyio.run(live.start)  # the first thing that a process does is to look for what was left
    try:
        owner = leave()
        found = {one["id"]: one for one in json.loads(enclave("ps", "--json"))}
        assert (found["left"]["owner"], found["left"]["state"]) == ("gone", "created")
        assert (found["living"]["owner"], found["living"]["state"]) == ("alive", "running")
        assert "left" in enclave("ps")
        assert "would remove docker left" in enclave("clean", "--dry-run")
        assert len(containers(owner)) == 1
        said = enclave("clean", "--all", "--type", "docker")
        assert "removed docker left" in said
        assert "living" not in said
        assert containers(owner) == []
        assert len(containers()) == 1
    finally:
        anyio.run(live.stop)


def test_what_was_to_be_kept_is_removed_only_when_all_is() -> None:
    owner = leave(remove_on_exit=False)
    assert "left" not in enclave("clean")
    assert "left" not in enclave("clean", "--all", "--type", "process", "--dry-run")
    assert len(containers(owner)) == 1
    assert "removed docker left" in enclave("clean", "--all", "--type", "docker")
    assert containers(owner) == []


def test_a_python_that_was_brought_along_goes_only_where_everything_is_meant() -> None:
    async def use() -> None:
        async with DockerSandbox({"image": WITHOUT_PYTHON}):
            pass

    anyio.run(use)
    kept = volumes()
    assert len(kept) == 2
    assert "a Python" not in enclave("clean")
    words = ("clean", "--all", "--type", "docker")
    assert "would remove docker volume" in enclave(*words, "--dry-run")
    assert volumes() == kept
    assert "(a Python for images without)" in enclave(*words)
    assert volumes() == set()
