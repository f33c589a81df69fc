"""Every kernel keeps every promise of a kernel, with IPython and without it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import pytest

from ms_enclave.model import Verdict
from ms_enclave.testing import KernelContract
from tests.contract.boxes import (
    Cold,
    Docker,
    DockerNotebook,
    DockerWithoutPython,
    Landlock,
    Process,
    Subprocess,
    needs_engine,
    needs_process,
)
from tests.support.interpreters import bare_python, installed_shell
from tests.support.served import OverHttp

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox
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
class TestOverHttp(OverHttp, Process, KernelContract):
    config: ClassVar[dict[str, Any]] = {"python": bare_python()}


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


@needs_engine
class TestDockerNotebook(DockerNotebook, KernelContract):
    """Kernels of Jupyter's own. What is here otherwise is what ipykernel does otherwise."""

    implementation = "ipython"

    async def test_a_kernel_that_exits_says_so(self, kernel: Kernel) -> None:
        """What it printed last may be lost: ipykernel prints from a thread, which has ended too."""
        done = await kernel.run("import os; os._exit(3)")
        assert done.verdict is Verdict.ERROR
        assert done.error is not None
        assert done.error.name == "KernelDied"
        assert "code 3" in done.error.value
        assert kernel.death is Verdict.ERROR

    async def test_a_kernel_that_closes_its_channel_is_dead(self, kernel: Kernel) -> None:
        """The library that it talks with aborts then."""
        done = await kernel.run("import os, time\nos.closerange(3, 100)\ntime.sleep(60)")
        assert done.verdict is Verdict.SIGNAL
        assert kernel.status == "dead"
        assert "SIGABRT" in kernel.death_reason

    async def test_a_cell_may_replace_its_streams(self, kernel: Kernel) -> None:
        """But not by what has no `flush`, which ipykernel calls."""
        done = await kernel.run("import io, sys\nsys.stdout = io.StringIO()\nprint('away')\n3")
        assert (done.stdout, done.result) == ("", {"text/plain": "3"})
        assert (await kernel.run("sys.stdout = None\n4")).verdict is Verdict.ERROR

    @pytest.mark.parametrize(
        "message",
        [
            "'execute_reply', {'status': []}",
            "'stream', {'name': 'stdout', 'text': 5}",
            "'clear_output', {'wait': []}",
            "'status', {'execution_state': []}",
            "'no_such_type', {}",
        ],
    )
    async def test_what_breaks_the_protocol_kills_the_kernel_and_nobody_else(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, box: Sandbox, kernel: Kernel, message: str
    ) -> None:
        """Signed messages of wild shapes, for the very cell, count for nothing."""
        done = await kernel.run(
            "k = get_ipython().kernel\n"
            "def forge(kind, content):\n"
            "    parent = k.get_parent()\n"
            "    k.session.send(k.iopub_socket, kind, content=content, parent=parent)\n"
            f"forge({message})\n7"
        )
        assert done.result == {"text/plain": "7"}
        assert (await kernel.run("8")).result == {"text/plain": "8"}
        assert (await box.run_code("print(1)")).stdout == "1\n"

    async def test_any_number_of_forged_answers_takes_no_memory(self, kernel: Kernel) -> None:
        """Signed messages for cells that there are not; each takes ipykernel a while."""
        done = await kernel.run(
            "k = get_ipython().kernel\nparent = k.get_parent()\n"
            "parent = {**parent, 'header': {**parent['header'], 'msg_id': 'none'}}\n"
            "for _ in range(5000):\n"
            "    k.session.send(k.iopub_socket, 'stream', parent=parent,\n"
            "                   content={'name': 'stdout', 'text': 'x' * 100})\n7"
        )
        assert (done.result, done.stdout) == ({"text/plain": "7"}, "")
        assert (await kernel.run("8")).result == {"text/plain": "8"}

    async def test_a_kernel_that_claims_success_and_dies_is_dead(self, kernel: Kernel) -> None:
        claim = (
            "import os, time\nk = get_ipython().kernel\nparent = k.get_parent()\n"
            "said = {'status': 'ok', 'execution_count': 1}\n"
            "k.session.send(k.iopub_socket, 'execute_reply', content=said, parent=parent)\n"
            "k.session.send(k.iopub_socket, 'status', {'execution_state': 'idle'}, parent=parent)\n"
            "time.sleep(0.5)\nos._exit(0)"
        )
        await kernel.run(claim)
        with anyio.fail_after(10):
            while kernel.status != "dead":
                await anyio.sleep(0.01)
        assert kernel.death is Verdict.ERROR
        assert "exited with code 0" in kernel.death_reason
