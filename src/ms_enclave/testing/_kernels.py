"""What a kernel promises, whatever sandbox it is in and whether it has IPython."""

# ruff: noqa: S101, ASYNC110 - these are tests

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import anyio
import pytest

from ms_enclave.errors import ConfigError, SandboxStateError
from ms_enclave.model import Verdict
from ms_enclave.testing._suite import SandboxSuite, needs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ms_enclave.boxes import Kernel, Sandbox
    from ms_enclave.model import Execution

__all__ = ["KernelContract"]


class KernelContract(SandboxSuite):
    """Kernels of one sandbox: each test has one of its own."""

    implementation: ClassVar[str] = "python"
    """What runs the cells: `python`, or `ipython` where the sandbox has that."""

    @pytest.fixture
    async def kernel(self, box: Sandbox) -> AsyncIterator[Kernel]:
        needs(box, "kernel")
        kernel = await box.kernel("test")
        try:
            yield kernel
        finally:
            await kernel.delete()

    # --- cells ---

    async def test_variables_stay_and_the_last_expression_is_the_result(
        self, kernel: Kernel
    ) -> None:
        first = await kernel.run("x = 1")
        second = await kernel.run("x + 1")
        assert (first.success, first.result) == (True, None)
        assert second.result == {"text/plain": "2"}
        assert second.execution_count == 2

    async def test_it_says_what_runs_the_cells(self, kernel: Kernel) -> None:
        assert kernel.get_info().implementation == self.implementation

    async def test_python_and_other_programs_print_into_the_same_streams(
        self, kernel: Kernel
    ) -> None:
        done = await kernel.run(
            "import os, sys\nprint('one')\nos.write(1, b'two')\n"
            "print('err', file=sys.stderr)\nx = os.system('echo three >&2')"
        )
        assert "one" in done.stdout
        assert "two" in done.stdout
        assert "err" in done.stderr
        assert "three" in done.stderr

    async def test_an_error_is_a_result_with_its_traceback(self, kernel: Kernel) -> None:
        done = await kernel.run("def f():\n    1/0\nf()")
        assert done.verdict is Verdict.ERROR
        assert done.error is not None
        assert (done.error.name, done.error.value) == ("ZeroDivisionError", "division by zero")
        assert "1/0" in "\n".join(done.error.traceback).replace("\x1b[39;49m", "") or done.error
        assert (await kernel.run("f")).success

    async def test_a_syntax_error_is_a_result(self, kernel: Kernel) -> None:
        done = await kernel.run("1 +")
        assert done.error is not None
        assert done.error.name == "SyntaxError"

    async def test_top_level_await_and_background_tasks(self, kernel: Kernel) -> None:
        await kernel.run(
            "import asyncio\nseen = []\n"
            "async def later():\n    await asyncio.sleep(0.01)\n    seen.append(1)\n"
            "async def begin():\n    return asyncio.create_task(later())\n"
            "task = await begin()"
        )
        with anyio.fail_after(10):
            while (await kernel.run("seen")).result != {"text/plain": "[1]"}:
                await anyio.sleep(0.01)  # nothing awaits it: it runs while the kernel is idle

    # --- several ---

    async def test_kernels_of_a_sandbox_share_nothing_but_the_sandbox(self, box: Sandbox) -> None:
        needs(box, "kernel")
        one, other = await box.kernel("one"), await box.kernel("other")
        try:
            await one.run("x = 1; open('shared', 'w').write('text')")
            done = await other.run("open('shared').read(), 'x' in globals()")
            assert done.result == {"text/plain": "('text', False)"}
            assert {"one", "other"} <= {info.name for info in await box.list_kernels()}
            assert await box.kernel("one") is one
        finally:
            await one.delete()
            await other.delete()
        assert not {"one", "other"} & {info.name for info in await box.list_kernels()}

    async def test_a_deleted_kernel_takes_no_cells(self, box: Sandbox) -> None:
        needs(box, "kernel")
        kernel = await box.kernel("short")
        await kernel.delete()
        await kernel.delete()
        assert kernel.status == "dead"
        with pytest.raises(SandboxStateError, match="deleted"):
            await kernel.run("1")

    async def test_a_restarted_kernel_begins_anew(self, kernel: Kernel) -> None:
        await kernel.run("x = 1")
        await kernel.restart()
        assert (await kernel.run("'x' in globals()")).result == {"text/plain": "False"}

    async def test_a_name_or_a_module_that_cannot_be_is_refused(self, box: Sandbox) -> None:
        needs(box, "kernel")
        with pytest.raises(ConfigError):
            await box.kernel("")
        with pytest.raises(ConfigError):
            await box.kernel("x", preload=["no such module"])

    # --- time-outs and death ---

    async def test_a_timeout_interrupts_and_keeps_the_variables(self, kernel: Kernel) -> None:
        await kernel.run("x = 5")
        done = await kernel.run("print('begun')\nwhile True: pass", timeout=0.3)
        assert (done.status, done.verdict) == ("timeout", Verdict.WALL_TIMEOUT)
        assert done.stdout == "begun\n"
        assert done.error is not None
        assert "timed out after 0.3 seconds" in done.error.value
        assert kernel.status == "idle"
        assert (await kernel.run("x")).result == {"text/plain": "5"}

    async def test_what_does_not_yield_is_killed_and_the_verdict_says_so(
        self, kernel: Kernel
    ) -> None:
        done = await kernel.run(
            "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
            timeout=0.3,
        )
        assert done.verdict is Verdict.WALL_TIMEOUT
        assert done.error is not None
        assert "its kernel was killed" in done.error.value
        assert (kernel.status, kernel.death) == ("dead", Verdict.WALL_TIMEOUT)
        with pytest.raises(SandboxStateError, match=r"restart\(\)"):
            await kernel.run("1")
        await kernel.restart()
        assert (await kernel.run("1 + 1")).result == {"text/plain": "2"}
        assert kernel.death is None

    async def test_an_interrupt_ends_the_cell_only(self, kernel: Kernel) -> None:
        await kernel.run("x = 5")
        done: Execution | None = None
        async for event in kernel.run_stream("print('begun')\nwhile True: pass"):
            if event.type == "stream":
                await kernel.interrupt()
            done = event.execution
        assert done is not None
        assert done.error is not None
        assert done.error.name == "KeyboardInterrupt"
        await kernel.interrupt()  # an idle kernel does not mind
        assert (await kernel.run("x")).result == {"text/plain": "5"}

    async def test_a_kernel_that_exits_says_so(self, kernel: Kernel) -> None:
        done = await kernel.run("print('last'); import os; os._exit(3)")
        assert done.verdict is Verdict.ERROR
        assert done.stdout == "last\n"
        assert done.error is not None
        assert done.error.name == "KernelDied"
        assert "exit code 3" in done.error.value or "code 3" in done.error.value
        assert kernel.death is Verdict.ERROR

    async def test_a_killed_kernel_says_so(self, kernel: Kernel) -> None:
        done = await kernel.run("import os; os.kill(os.getpid(), 9)")
        assert done.verdict is Verdict.SIGNAL
        assert kernel.death is Verdict.SIGNAL
        assert "signal 9" in kernel.death_reason
