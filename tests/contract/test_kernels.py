"""Every kernel keeps every promise of a kernel, with IPython and without it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ms_enclave.testing import KernelContract
from tests.contract.boxes import (
    Cold,
    Docker,
    DockerWithoutPython,
    Landlock,
    Process,
    Subprocess,
    needs_engine,
    needs_process,
)
from tests.support.interpreters import bare_python, installed_shell

if TYPE_CHECKING:
    from ms_enclave.boxes.kernels import Kernel


class TestSubprocess(Subprocess, KernelContract):
    implementation = "ipython"


@needs_process
class TestProcess(Process, KernelContract):
    config: ClassVar[dict[str, Any]] = {"python": bare_python()}


@needs_process
class TestIPython(Process, KernelContract):
    config: ClassVar[dict[str, Any]] = {"python": sys.prefix}
    implementation = "ipython"


@needs_process
class TestInstalledIPython(Process, KernelContract):
    """Whatever IPython the interpreter has that the virtual environment was made from."""

    config: ClassVar[dict[str, Any]] = {"python": f"{sys.base_prefix}/bin/python3"}
    implementation = installed_shell(f"{sys.base_prefix}/bin/python3")


@needs_process
class TestCold(Cold, KernelContract):
    config: ClassVar[dict[str, Any]] = {"python": bare_python()}


class TestLandlock(Landlock, KernelContract):
    config: ClassVar[dict[str, Any]] = {**Landlock.config, "python": bare_python()}

    @pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's shares no memory in /dev/shm")
    async def test_multiprocessing_works_in_cells(self, kernel: Kernel) -> None:
        await super().test_multiprocessing_works_in_cells(kernel)


@needs_engine
class TestDocker(Docker, KernelContract):
    pass


@needs_engine
class TestDockerWithoutPython(DockerWithoutPython, KernelContract):
    pass
