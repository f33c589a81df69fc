"""`runtime="runsc"`: containers with gVisor's kernel instead of the machine's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ms_enclave.attack import CASES, run_case
from ms_enclave.boxes import DockerSandbox
from ms_enclave.errors import ConfigError, SandboxLostError
from tests.support.own_engine import own_engine, why_no_own_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.docker,
    pytest.mark.skipif(
        why_no_own_engine() is not None or shutil.which("runsc") is None,
        reason="there is no runsc here, or no engine can be started",
    ),
]

CONFIG = {"runtime": "runsc", "pull": "never"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An engine that knows it. It is to look for no network: containers have none."""
    program = Path(tmp_path_factory.mktemp("runsc")) / "runsc"
    program.write_text(f'#!/bin/sh\nexec {shutil.which("runsc")} --network=none "$@"\n')
    program.chmod(0o755)
    with own_engine(options=f"--add-runtime runsc={program}") as engine:
        yield engine.url


@pytest.fixture(autouse=True)
def used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", url)


async def test_a_sandbox_does_all_that_it_does_elsewhere() -> None:
    async with DockerSandbox(CONFIG) as box:
        done = await box.execute_command("cat /proc/version; echo err >&2; exit 3")
        assert "4.4.0" in done.stdout, "what gVisor says that it is"
        assert os.uname().release not in done.stdout
        assert (done.stderr, done.exit_code) == ("err\n", 3)
        assert (await box.run_code("print(6 * 7)")).stdout == "42\n"
        await box.files.write("folder/file", b"\0data")
        assert await box.files.read("folder/file") == b"\0data"
        kernel = await box.kernel()
        await kernel.run("x = 20")
        assert (await kernel.run("x + 1")).result == {"text/plain": "21"}
        guards = box.isolation.guards
        assert (guards["own_kernel"], guards["seccomp"]) == ("on", "n/a")
    assert await DockerSandbox.find_all() == []


async def test_what_has_too_much_memory_ends_with_its_kernel() -> None:
    async with DockerSandbox({**CONFIG, "memory_limit": "200m"}) as box:
        with pytest.raises(SandboxLostError):
            await box.run_code("x = bytearray(600 << 20)")
    assert await DockerSandbox.find_all() == []


async def test_it_withstands_what_the_others_do() -> None:
    outcomes: dict[str, str] = {}
    async with DockerSandbox({**CONFIG, "hardening": "strict"}) as box:
        for case in CASES:
            finding = await run_case(box, case)
            assert finding.outcome in ("held", "bounded"), finding
            outcomes[case.name] = finding.outcome
    assert outcomes["secrets_of_the_caller"] == outcomes["mounts"] == "held"


async def test_a_runtime_that_the_engine_does_not_know_is_told() -> None:
    with pytest.raises(ConfigError, match="nonesuch"):
        await DockerSandbox({**CONFIG, "runtime": "nonesuch"}).start()
