"""What a kernel promises, whatever sandbox it is in and whether it has IPython."""

# ruff: noqa: S101, ASYNC110 - these are tests

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

import anyio
import anyio.to_thread
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

    # --- input ---

    async def test_input_is_answered_through_the_call(self, kernel: Kernel) -> None:
        asked: list[str] = []

        async def answer(prompt: str) -> str:
            asked.append(prompt)
            return "Ann"

        done = await kernel.run("name = input('who? '); f'hi {name}'", on_input=answer)
        assert asked == ["who? "]
        assert done.result == {"text/plain": "'hi Ann'"}

    async def test_input_with_nobody_to_answer_is_an_error_of_the_cell(
        self, kernel: Kernel
    ) -> None:
        done = await kernel.run("input('who? ')", timeout=10)
        assert done.verdict is Verdict.ERROR
        assert done.error is not None
        assert done.error.name in ("EOFError", "StdinNotImplementedError")

    async def test_a_timeout_ends_a_wait_for_input(self, kernel: Kernel) -> None:
        async def answer(_prompt: str) -> str:
            await anyio.sleep(0.6)
            return "late"

        done = await kernel.run("x = 1; input()", timeout=0.2, on_input=answer)
        assert done.verdict is Verdict.WALL_TIMEOUT
        assert (await kernel.run("x")).result == {"text/plain": "1"}

    # --- events ---

    async def test_a_stream_has_jupyters_messages_in_order(self, kernel: Kernel) -> None:
        events = [
            (event.type, event.content)
            async for event in kernel.run_stream("print('one')\ndisplay(2)\nprint('three')\n4")
        ]
        assert [kind for kind, _ in events] == [
            "status", "execute_input", "stream", "display_data", "stream", "execute_result",
            "status", "execute_reply",
        ]  # fmt: skip
        assert events[0][1] == {"execution_state": "busy"}
        assert events[1][1]["execution_count"] == 1
        assert events[2][1] == {"name": "stdout", "text": "one\n"}
        assert events[3][1] == {"data": {"text/plain": "2"}, "metadata": {}, "transient": {}}
        assert events[5][1]["data"] == {"text/plain": "4"}
        assert events[7][1]["status"] == "ok"

    async def test_a_reader_that_takes_its_time_loses_nothing_and_holds_up_nobody(
        self, kernel: Kernel
    ) -> None:
        text, last = "", None
        async for event in kernel.run_stream("for i in range(50_000): print(i)", timeout=60):
            while kernel.status == "busy":
                await anyio.sleep(0.01)
            if event.type == "stream":
                text += event.content["text"]
            last = event
        assert text == "".join(f"{i}\n" for i in range(50_000))
        assert last is not None
        assert last.execution is not None
        assert last.execution.stdout == text

    async def test_a_stream_that_is_left_interrupts_its_cell(self, kernel: Kernel) -> None:
        events = kernel.run_stream("x = 1\nprint('begun')\nwhile True: pass")
        async for event in events:
            if event.type == "stream":
                break
        await events.aclose()
        assert (await kernel.run("x")).result == {"text/plain": "1"}

    async def test_a_cancelled_cell_is_interrupted_and_the_variables_stay(
        self, kernel: Kernel
    ) -> None:
        with anyio.move_on_after(0.3) as scope:
            await kernel.run("x = 1\nwhile True: pass")
        assert scope.cancelled_caught
        assert (await kernel.run("x")).result == {"text/plain": "1"}

    async def test_a_timeout_ends_an_await_too(self, kernel: Kernel) -> None:
        done = await kernel.run("import asyncio\nx = 1\nawait asyncio.sleep(60)", timeout=0.3)
        assert done.verdict is Verdict.WALL_TIMEOUT
        assert (await kernel.run("await asyncio.sleep(0)\nx")).result == {"text/plain": "1"}

    async def test_cells_that_wait_run_after_a_restart(self, kernel: Kernel) -> None:
        outcomes: list[Execution] = []

        async def run(code: str) -> None:
            outcomes.append(await kernel.run(code))

        async with anyio.create_task_group() as group:
            group.start_soon(run, "x = 1\nwhile True: pass")
            while kernel.status != "busy":
                await anyio.sleep(0.005)
            group.start_soon(run, "'x' in globals()")
            await anyio.sleep(0.05)
            await kernel.restart()
        assert outcomes[0].verdict is Verdict.CANCELLED
        assert outcomes[1].result == {"text/plain": "False"}

    async def test_cells_wait_for_each_other(self, kernel: Kernel) -> None:
        await kernel.run("seen = []")
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(kernel.run, f"seen.append({number}); seen.append({number})")
        pairs = (await kernel.run("[a == b for a, b in zip(seen[::2], seen[1::2])]")).result
        assert pairs == {"text/plain": str([True] * 5)}

    # --- displays ---

    async def test_objects_show_themselves_in_every_way_they_have(self, kernel: Kernel) -> None:
        done = await kernel.run(
            "class Thing:\n"
            "    def __repr__(self): return 'thing'\n"
            "    def _repr_html_(self): return '<b>thing</b>'\n"
            "    def _repr_png_(self): return b'\\x89PNG'\n"
            "display(Thing())\nThing()"
        )
        wanted = {"text/plain": "thing", "text/html": "<b>thing</b>", "image/png": "iVBORw==\n"}
        for bundle in (done.result, *done.displays):
            assert bundle is not None
            assert {**bundle, "image/png": bundle["image/png"].strip() + "\n"} == wanted

    async def test_a_display_is_updated_and_output_cleared(self, kernel: Kernel) -> None:
        done = await kernel.run(
            "from IPython.display import clear_output, display\n" if self._has_ipython else "pass"
        )
        assert done.success
        done = await kernel.run(
            "print('gone')\ndisplay('gone')\nclear_output()\n"
            "handle = display('old', display_id=True)\nhandle.update('new')"
        )
        assert done.stdout == ""
        assert [bundle["text/plain"] for bundle in done.displays] == ["'new'"]

    @property
    def _has_ipython(self) -> bool:
        return self.implementation == "ipython"

    # --- bad input and faults ---

    async def test_endless_output_is_cut_and_counted_and_the_variables_stay(
        self, kernel: Kernel
    ) -> None:
        await kernel.run("x = 1")
        done = await kernel.run("while True: print('y' * 1000)", timeout=1)
        assert done.verdict is Verdict.WALL_TIMEOUT
        assert len(done.stdout) <= 10 << 20
        assert (await kernel.run("x")).result == {"text/plain": "1"}

    async def test_output_beyond_the_limit_is_drained_and_counted(self, kernel: Kernel) -> None:
        done = await kernel.run(
            "import os\nfor _ in range(12): print('y' * (1 << 20))\nos.write(2, b'e' * 1000)"
        )
        assert done.success
        assert done.truncated == {"stdout": 12 * ((1 << 20) + 1) - (10 << 20)}
        assert len(done.stderr) == 1000

    async def test_a_display_of_512_mib_is_left_out_and_counted(self, kernel: Kernel) -> None:
        done = await kernel.run(
            "class Huge:\n"
            "    def __repr__(self): return 'huge'\n"
            "    def _repr_html_(self): return 'h' * (512 << 20)\n"
            "Huge()"
        )
        assert done.success
        assert done.result is not None
        assert "text/html" not in done.result
        assert str(512 << 20)[:3] in done.result["text/plain"]
        assert done.truncated["displays"] >= 512 << 20

    async def test_a_hundred_thousand_displays_are_bounded(self, kernel: Kernel) -> None:
        done = await kernel.run("for i in range(100_000): display(i)", timeout=100)
        assert done.success
        assert len(done.displays) == 1000
        assert done.truncated["displays"] > 0
        assert (await kernel.run("1 + 1")).result == {"text/plain": "2"}

    async def test_a_fork_of_a_kernel_is_nobodys_kernel(self, kernel: Kernel) -> None:
        done = await kernel.run(
            "import os, sys\npid = os.fork()\n"
            "if pid == 0: print('from the child')\n"
            "else: x = os.waitpid(pid, 0)[1]"
        )
        assert done.success
        assert done.stdout == "from the child\n"
        assert (await kernel.run("x")).result == {"text/plain": "0"}
        assert (await kernel.run("1 + 1")).result == {"text/plain": "2"}

    async def test_multiprocessing_works_in_cells(self, kernel: Kernel) -> None:
        done = await kernel.run(
            "import multiprocessing as m\ndef double(x): return 2 * x\n"
            "with m.get_context('fork').Pool(2) as pool: y = pool.map(double, [1, 2])\ny"
        )
        assert done.result == {"text/plain": "[2, 4]"}, done

    async def test_a_cell_may_close_the_standard_descriptors(self, kernel: Kernel) -> None:
        done = await kernel.run("import os\nfor i in range(3): os.close(i)\nprint('still')\n5")
        assert (done.stdout, done.result) == ("still\n", {"text/plain": "5"})
        assert (await kernel.run("print('here')")).stdout == "here\n"

    async def test_a_kernel_that_closes_its_channel_is_dead(self, kernel: Kernel) -> None:
        done = await kernel.run("import os, time\nos.closerange(3, 100)\ntime.sleep(60)")
        assert done.verdict is Verdict.ERROR
        assert kernel.status == "dead"
        assert "channel" in kernel.death_reason

    async def test_a_cell_may_replace_its_streams(self, kernel: Kernel) -> None:
        done = await kernel.run("import io, sys\nsys.stdout = io.StringIO()\nprint('away')\n3")
        assert (done.stdout, done.result) == ("", {"text/plain": "3"})
        done = await kernel.run("sys.stdout = None\n4")
        assert done.result == {"text/plain": "4"}
        done = await kernel.run("class Bad:\n    pass\nsys.stdout = sys.stderr = Bad()\n5")
        assert (await kernel.run("6")).result == {"text/plain": "6"}

    async def test_what_threads_print_after_a_cell_comes_with_the_next(
        self, kernel: Kernel
    ) -> None:
        await kernel.run(
            "import threading, time\ndef late():\n    gate.wait()\n    print('late')\n"
            "    said.set()\ngate, said = threading.Event(), threading.Event()\n"
            "threading.Timer(0.05, gate.set).start()\nthreading.Thread(target=late).start()"
        )
        done = await kernel.run("said.wait(10)")
        assert done.stdout == "late\n"

    @pytest.mark.parametrize(
        "frame",
        [
            b"this is no frame",
            b"mE\x05\x00\x00\x00\x00\x01\x00\x00\x00\x05{}...",
            b"mE\x06\x00\x00\x00\x00\x01\x00\x00\x00\x02[]",
            b"mE\x05\x00\x00\x00\x00\x01\x00\x00\x00\x02{}",
            b"mE\x02\x00\x00\x00\x00\x01\x00\x00\x00\x02{}",
        ],
        ids=["garbage", "no JSON", "no object", "no message", "a request"],
    )
    async def test_what_breaks_the_protocol_kills_the_kernel_and_nobody_else(
        self, box: Sandbox, kernel: Kernel, frame: bytes
    ) -> None:
        done = await kernel.run(_WRITE_TO_CHANNEL % frame)
        assert done.verdict is Verdict.ERROR
        assert kernel.death is Verdict.ERROR
        assert "protocol" in kernel.death_reason
        assert (await box.run_code("print(1)")).stdout == "1\n"

    async def test_an_error_of_any_length_is_told(self, kernel: Kernel) -> None:
        done = await kernel.run("raise ValueError('x' * (20 << 20))")
        assert done.error is not None
        assert done.error.name == "ValueError"
        assert 1000 < len(done.error.value) < 1 << 20

    @pytest.mark.parametrize("code", ["x = '\0'", "x = '\ud800'", "\\", "'" * 3, "(" * 300])
    async def test_code_that_is_none_is_an_error_of_the_cell(
        self, kernel: Kernel, code: str
    ) -> None:
        assert (await kernel.run(code)).verdict is Verdict.ERROR
        assert (await kernel.run("1 + 1")).result == {"text/plain": "2"}

    async def test_code_that_is_too_long_or_no_text_is_refused(self, kernel: Kernel) -> None:
        for code in ("#" * (9 << 20), b"1"):
            with pytest.raises(ConfigError):
                await kernel.run(code)  # pyright: ignore[reportArgumentType]
        assert (await kernel.run("#" * (4 << 20) + "\n3")).result == {"text/plain": "3"}

    async def test_forged_answers_for_other_cells_change_nothing(self, kernel: Kernel) -> None:
        forged = b"".join(
            b"mE\x03\x00" + number.to_bytes(4, "big") + b"\x00\x00\x00\x0f" + b'{"status":"ok"}'
            for number in (1, 2, 1 << 31)
        )
        done = await kernel.run(_WRITE_TO_CHANNEL % forged + "\n1/0")
        assert done.error is not None
        assert done.error.name == "ZeroDivisionError"
        assert (await kernel.run("2")).result == {"text/plain": "2"}

    async def test_any_number_of_forged_answers_takes_no_memory(self, kernel: Kernel) -> None:
        answer = b'{"status":"ok"}'
        one = b"mE\x03\x00" + (1 << 30).to_bytes(4, "big") + len(answer).to_bytes(4, "big") + answer
        before = await anyio.to_thread.run_sync(_memory)
        done = await kernel.run(_FLOOD_CHANNEL % (one * 100) + "\n7")
        assert done.result == {"text/plain": "7"}
        assert await anyio.to_thread.run_sync(_memory) - before < _MORE_MEMORY
        assert (await kernel.run("8")).result == {"text/plain": "8"}

    async def test_a_kernel_that_claims_success_and_dies_is_dead(self, kernel: Kernel) -> None:
        claim = (
            "import os, sys\n"
            "sys.stdout._link.send_json(3, {'status': 'ok', 'execution_count': 1})\nos._exit(0)"
        )
        await kernel.run(claim)
        with anyio.fail_after(10):
            while kernel.status != "dead":
                await anyio.sleep(0.01)
        assert kernel.death is Verdict.ERROR
        assert "exited with code 0" in kernel.death_reason


_WRITE_TO_CHANNEL = (
    "import os, socket\n"
    "for fd in (4, 3):\n"
    "    try:\n"
    "        os.write(fd, %r)\n"
    "        break\n"
    "    except OSError: pass"
)

_FLOOD_CHANNEL = """
import os
for fd in (4, 3):
    try:
        os.fstat(fd)
    except OSError:
        continue
    os.set_blocking(fd, True)
    for _ in range(1000):
        data = %r
        while data:
            data = data[os.write(fd, data):]
    break
"""
_MORE_MEMORY = 48 << 20


def _memory() -> int:
    """Bytes that this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
