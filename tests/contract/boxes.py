"""The backends that the suites run over: one class and one mark here for a further one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from tests.security.boxes import (
    ANY_USERS_PYTHON,
    ColdSandbox,
    NoGroupsLandlockSandbox,
    NoGroupsSandbox,
    NoLayersSandbox,
)
from tests.support import fusion, subprocess_box
from tests.support.engine import WHEELS, WITHOUT_PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ms_enclave.boxes import Sandbox

__all__ = [
    "Cold",
    "Docker",
    "DockerNotebook",
    "DockerWithoutPython",
    "Gvisor",
    "Landlock",
    "LandlockNoGroups",
    "NoGroups",
    "NoLayers",
    "Process",
    "Subprocess",
    "Volcengine",
    "needs_engine",
    "needs_process",
    "needs_runsc",
]

subprocess_box.install()


class Subprocess:
    """The guest as a plain child: everything but the walls."""

    sandbox_type: ClassVar[str] = "subprocess"
    isolated: ClassVar[bool] = False
    bounded: ClassVar[frozenset[str]] = frozenset()


class Process:
    """The embedded sandbox."""

    sandbox_type: ClassVar[str] = "process"


class Cold(Process):
    """The same where ptrace cannot be had: every program from an interpreter of its own."""

    @classmethod
    def create(cls, **config: Any) -> Sandbox:
        return ColdSandbox({**cls.config, **config})


class NoGroups(Process):
    """The same without control groups: limits by rlimits and by watching, ends by looking."""

    @classmethod
    def create(cls, **config: Any) -> Sandbox:
        return NoGroupsSandbox({**cls.config, **config})


class NoLayers(Process):
    """The same over plain bounded folders, as on older kernels."""

    @classmethod
    def create(cls, **config: Any) -> Sandbox:
        return NoLayersSandbox({**cls.config, **config})


class Landlock(Process):
    """The embedded sandbox without namespaces. What is stored is bounded by looking at it."""

    bounded: ClassVar[frozenset[str]] = frozenset({"memory", "pids", "cpu"})
    config: ClassVar[dict[str, Any]] = {"isolation": "landlock", "python": ANY_USERS_PYTHON}


class LandlockNoGroups(Landlock):
    """The same without control groups, as in a container."""

    @classmethod
    def create(cls, **config: Any) -> Sandbox:
        return NoGroupsLandlockSandbox({**cls.config, **config})


class Gvisor(Process):
    """The embedded sandbox with a kernel of its own. One that has more memory or processes than it
    may have is lost: `tests/e2e/test_gvisor.py`."""

    bounded: ClassVar[frozenset[str]] = frozenset({"disk"})
    config: ClassVar[dict[str, Any]] = {"isolation": "gvisor"}


class Docker:
    """A container of a real engine, from the image that `scripts/engine` makes."""

    sandbox_type: ClassVar[str] = "docker"


class Volcengine:
    """Handles of a service that runs programs, which is one of ours."""

    sandbox_type: ClassVar[str] = "volcengine"
    config: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def service(cls) -> Iterator[None]:
        """The service, as long as the suite over it runs."""
        with fusion.Service() as service:
            cls.config = {"base_url": service.url}
            yield


class DockerWithoutPython(Docker):
    """An image that has nothing but a static busybox: a Python is brought along."""

    config: ClassVar[dict[str, Any]] = {"image": WITHOUT_PYTHON}


class DockerNotebook(Docker):
    """A container with a gateway: the first one builds the image, from wheels that are there."""

    sandbox_type: ClassVar[str] = "docker_notebook"
    config: ClassVar[dict[str, Any]] = {"wheels": str(WHEELS), "pull": "never"}


needs_engine = pytest.mark.docker
"""Marks a suite that runs over a container engine."""

needs_runsc = pytest.mark.runsc
"""Marks a suite that runs over sandboxes of tier `gvisor`."""

needs_process = pytest.mark.namespaces
"""Marks a suite that runs over the embedded sandbox."""
