"""Every backend keeps every promise of a sandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ms_enclave.testing import (
    BackgroundContract,
    CodeContract,
    CommandContract,
    FilesContract,
    PortsContract,
    SandboxBoundsContract,
    SandboxContract,
    SandboxLifeContract,
    ShellContract,
    TerminalContract,
    WatchContract,
)
from tests.contract.boxes import (
    Cold,
    Docker,
    DockerNotebook,
    DockerWithoutPython,
    Gvisor,
    Landlock,
    LandlockNoGroups,
    NoGroups,
    NoLayers,
    Process,
    Subprocess,
    needs_engine,
    needs_process,
    needs_runsc,
)
from tests.security.boxes import PlainShellSandbox
from tests.support.served import OverHttp, OverLoopback

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox


class ProgramsContract(
    CommandContract,
    BackgroundContract,
    TerminalContract,
    CodeContract,
    SandboxBoundsContract,
    SandboxLifeContract,
):
    """What depends on how programs are started and ended; files do not."""


class StorageContract(FilesContract, SandboxBoundsContract):
    """What depends on where files are kept."""


class TestSubprocess(Subprocess, SandboxContract):
    pass


class TestSubprocessLife(Subprocess, SandboxLifeContract):
    pass


@needs_process
class TestProcess(Process, SandboxContract):
    pass


@needs_process
class TestProcessLife(Process, SandboxLifeContract):
    pass


@needs_process
class TestProcessOverHttp(OverHttp, Process, SandboxContract):
    """By handles of a server that is called in this process."""


@needs_process
class TestProcessOverLoopback(
    OverLoopback,
    Process,
    CommandContract,
    TerminalContract,
    WatchContract,
    PortsContract,
    ShellContract,
):
    """The same through a socket, where that can make a difference: streams, and what is left."""


@needs_process
class TestCold(Cold, ProgramsContract):
    pass


@needs_process
class TestPlainShell(Process, ShellContract):
    """Where there is no bash, but a plain `sh`."""

    @classmethod
    def create(cls, **config: Any) -> Sandbox:
        return PlainShellSandbox({**cls.config, **config})


@needs_process
class TestNoGroups(NoGroups, ProgramsContract, ShellContract, PortsContract, WatchContract):
    """With all that an ordinary user's one id could make different."""


@needs_process
class TestNoLayers(NoLayers, StorageContract):
    pass


class TestLandlock(Landlock, SandboxContract):
    pass


class TestLandlockLife(Landlock, SandboxLifeContract):
    pass


class TestLandlockNoGroups(LandlockNoGroups, ProgramsContract):
    pass


@needs_runsc
class TestGvisor(Gvisor, CommandContract, CodeContract, FilesContract, SandboxBoundsContract):
    async def test_the_own_user_by_number_is_the_own_user(self, box: Sandbox) -> None:
        """By Python: what Debian's `stat` asks, the `runsc` of that release refuses."""
        for user in (None, 1000, "1000"):
            await box.files.as_user(user).write("own", f"{user}")
            assert await box.files.read_text("own") == f"{user}"
        shown = await box.run_code("import os; print(os.stat('own').st_uid)")
        assert shown.stdout == "1000\n"


@needs_runsc
class TestGvisorLife(Gvisor, SandboxLifeContract):
    pass


@needs_engine
class TestDocker(Docker, SandboxContract):
    pass


@needs_engine
class TestDockerLife(Docker, SandboxLifeContract):
    pass


@needs_engine
class TestDockerWithoutPython(DockerWithoutPython, SandboxContract):
    pass


@needs_engine
class TestDockerWithoutPythonLife(DockerWithoutPython, SandboxLifeContract):
    pass


@needs_engine
class TestDockerNotebook(DockerNotebook, SandboxContract):
    pass


@needs_engine
class TestDockerNotebookLife(DockerNotebook, SandboxLifeContract):
    pass
