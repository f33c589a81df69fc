"""Podman's Docker-compatible service as the engine: root's, and an ordinary user's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.boxes import DockerSandbox
from ms_enclave.errors import IsolationUnavailableError
from ms_enclave.model import Verdict
from tests.support.engine import IMAGE
from tests.support.podman import podman_service, why_no_podman

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.docker,
    pytest.mark.skipif(why_no_podman() is not None, reason=str(why_no_podman())),
]

CONFIG = {"image": f"localhost/{IMAGE}", "pull": "never"}


@pytest.fixture(scope="module", params=["root", "rootless"])
def service(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool]]:
    rootless = request.param == "rootless"
    with podman_service(rootless=rootless) as url:
        yield url, rootless


@pytest.fixture
def rootless(service: tuple[str, bool], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the engine that is used is an ordinary user's."""
    url, is_rootless = service
    monkeypatch.setenv("DOCKER_HOST", url)
    # The service reads the profile of system calls from where we write it.
    cache = f"{os.path.dirname(url.removeprefix('unix://'))}/cache"
    os.makedirs(f"{cache}/ms-enclave", 0o755, exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    return is_rootless


async def test_a_sandbox_does_all_that_it_does_elsewhere(rootless: bool) -> None:
    async with DockerSandbox(CONFIG) as box:
        done = await box.execute_command("echo out; echo err >&2; exit 3")
        assert (done.stdout, done.stderr, done.exit_code) == ("out\n", "err\n", 3)
        assert (await box.run_code("print(6 * 7)")).stdout == "42\n"
        await box.files.write("folder/file", b"\0data")
        assert await box.files.read("folder/file") == b"\0data"
        kernel = await box.kernel()
        await kernel.run("x = 20")
        assert (await kernel.run("x + 1")).result == {"text/plain": "21"}
        late = await box.execute_command("sleep 1000 & sleep 1000", timeout=0.5)
        assert late.verdict is Verdict.WALL_TIMEOUT
        left = await box.execute_command("cat /proc/[0-9]*/comm | grep -c sleep")
        assert left.stdout == "0\n"
    assert [row.id for row in await DockerSandbox.find_all()] == []


async def test_its_walls_are_there_and_what_it_says_of_them_is_true(rootless: bool) -> None:
    async with DockerSandbox(CONFIG) as box:
        seen = await box.execute_command(
            "grep -e ^Seccomp: -e ^NoNewPrivs /proc/self/status; cat /proc/self/uid_map; "
            "cat /proc/net/dev | grep -c :; unshare -U true"
        )
        lines = seen.stdout.split("\n")
        assert [line.split() for line in lines[:2]] == [["NoNewPrivs:", "1"], ["Seccomp:", "2"]]
        assert lines[2].split()[:2] == ["0", "12345" if rootless else "0"]
        assert lines[3] == "1", "the loopback interface"
        assert not seen.success, "a user namespace of its own"
        report = box.isolation
        assert report is not None
        guards = report.guards
        assert guards["user_namespace"] == ("on" if rootless else "off")
        if rootless and not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            assert guards["cgroup_memory"] == guards["cgroup_pids"] == "off"
        else:
            assert guards["cgroup_memory"] == guards["cgroup_pids"] == "on"


async def test_a_limit_that_it_cannot_hold_is_refused_where_it_is_required(rootless: bool) -> None:
    box = DockerSandbox({**CONFIG, "require": ["cgroup_memory"]})
    if not rootless or os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        async with box:
            return
    with pytest.raises(IsolationUnavailableError, match="cgroup_memory"):
        await box.start()
    assert await DockerSandbox.find_all() == []


async def test_many_come_and_go(rootless: bool) -> None:
    async def one() -> None:
        async with DockerSandbox(CONFIG) as box:
            assert (await box.execute_command("echo well")).stdout == "well\n"

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one)
    assert await DockerSandbox.find_all() == []
