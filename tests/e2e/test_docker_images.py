"""How images come to an engine: not at all, where it lacks them, or anew at every start."""

from __future__ import annotations

import logging
import subprocess
from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes import DockerSandbox
from ms_enclave.errors import SandboxStartError
from tests.e2e.test_docker import docker
from tests.support.engine import WITHOUT_PYTHON
from tests.support.registry import Registry, registry

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.docker


@pytest.fixture
def source() -> Iterator[Registry]:
    """A registry that has the small image."""
    made = docker("create", "--network=none", WITHOUT_PYTHON, "true")
    try:
        exported = subprocess.run(["docker", "export", made], capture_output=True, check=True)
    finally:
        docker("rm", made)
    architecture = docker("image", "inspect", WITHOUT_PYTHON, "--format", "{{.Architecture}}")
    with registry(exported.stdout, architecture) as source:
        yield source
        for name in docker("images", "-q", f"{source.url}/brought").split():
            docker("rmi", "-f", name)


async def test_an_image_is_fetched_when_the_config_says_so_and_not_else(
    source: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ms_enclave")
    image = f"{source.url}/brought:1"
    with pytest.raises(SandboxStartError, match="No such image"):
        await DockerSandbox({"image": image, "pull": "never"}).start()
    assert source.asked == 0
    async with DockerSandbox({"image": image, "pull_progress_interval": 0.001}) as box:
        assert (await box.execute_command("echo fetched")).stdout == "fetched\n"
    assert f"pulling {image}: " in caplog.text
    asked = source.asked
    assert asked > 0
    async with DockerSandbox({"image": image}):
        assert source.asked == asked
    async with DockerSandbox({"image": image, "pull": "always"}):
        assert source.asked > asked


async def test_an_image_that_a_registry_has_not_is_said_in_its_words(source: Registry) -> None:
    with pytest.raises(SandboxStartError, match=r"not found|unknown") as caught:
        await DockerSandbox({"image": f"{source.url}/brought:missing"}).start()
    assert "name of" in (caught.value.remedy or "")
