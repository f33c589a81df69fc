"""Every manager keeps every promise of a manager, with every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ms_enclave.testing import SandboxManagerContract
from tests.contract.boxes import (
    Docker,
    DockerNotebook,
    DockerWithoutPython,
    Landlock,
    Process,
    Subprocess,
    Volcengine,
    needs_engine,
    needs_process,
)
from tests.support.served import InProcess, OnLoopback

if TYPE_CHECKING:
    from ms_enclave.manager import SandboxManager


class Local(SandboxManagerContract):
    manager_type: ClassVar[str] = "local"


class TestLocalOverSubprocess(Subprocess, Local):
    async def run_code(self, manager: SandboxManager, code: str, **options: Any) -> Any:
        # `auto` never chooses what has no walls, so the sandbox is named.
        return await run_in_type("subprocess", manager, code, **options)


@needs_process
class TestLocalOverProcess(Process, Local):
    pass


class TestLocalOverLandlock(Landlock, Local):
    pass


class Http(SandboxManagerContract):
    """The same by a server of its own, which is called in this process."""

    manager_type: ClassVar[str] = "http"

    @classmethod
    def make(cls, **options: Any) -> SandboxManager:
        return InProcess(**options)


@needs_process
class TestHttpOverProcess(Process, Http):
    pass


@needs_process
class TestHttpOnLoopback(Process, Http):
    """The same through a socket."""

    @classmethod
    def make(cls, **options: Any) -> SandboxManager:
        return OnLoopback(**options)


@needs_engine
class TestLocalOverDocker(Docker, Local):
    async def run_code(self, manager: SandboxManager, code: str, **options: Any) -> Any:
        # `auto` prefers what is quicker.
        return await run_in_type("docker", manager, code, **options)


@needs_engine
class TestLocalOverDockerWithoutPython(DockerWithoutPython, TestLocalOverDocker):
    pass


@needs_engine
class TestLocalOverDockerNotebook(DockerNotebook, Local):
    brief: ClassVar[float] = 8.0

    async def run_code(self, manager: SandboxManager, code: str, **options: Any) -> Any:
        return await run_in_type("docker_notebook", manager, code, **options)


class TestVolcengine(Volcengine, SandboxManagerContract):
    manager_type: ClassVar[str] = "volcengine"

    @classmethod
    def make(cls, **options: Any) -> SandboxManager:
        return super().make(**{"base_url": cls.config["base_url"], **options})


class TestLocalOverVolcengine(Volcengine, Local):
    async def run_code(self, manager: SandboxManager, code: str, **options: Any) -> Any:
        return await run_in_type("volcengine", manager, code, **options)


async def run_in_type(
    sandbox_type: str,
    manager: SandboxManager,
    code: str,
    *,
    config: dict[str, Any],
    **options: Any,
) -> Any:
    from ms_enclave.manager._languages import run_in

    options.setdefault("stdin", None)
    options.setdefault("timeout", 30)
    options["files"] = options.get("files") or {}
    async with manager.sandbox(sandbox_type, config) as sandbox:
        return await run_in(sandbox, code, language="python", **options)
