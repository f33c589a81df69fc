"""A paused sandbox stands still, and loses nothing by it."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.errors import CapabilityError, SandboxStateError
from ms_enclave.model import SandboxStatus, Verdict
from ms_enclave.testing._suite import SandboxSuite, lacks, needs, wait_for_file

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox
    from ms_enclave.model import CommandResult

__all__ = ["PauseContract"]

_LONG = 1.5
"""Seconds of a pause that a program must notice, and that no machine holds it up for by itself."""

_GAPS = """
import time
last, longest = time.monotonic(), 0.0
open('begun', 'w').write('x')
while longest < 1.0:
    now = time.monotonic()
    longest, last = max(longest, now - last), now
print('stood still')
"""
"""Never waits, so that it notices when it has no processor for a second."""


class PauseContract(SandboxSuite):
    """`pause` and `resume`."""

    async def test_what_runs_stands_still_and_goes_on(self, fresh: Sandbox) -> None:
        needs(fresh, "pause")
        seen: list[CommandResult] = []

        async def run() -> None:
            seen.append(await fresh.run_code(_GAPS, timeout=60))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await wait_for_file(fresh, "begun", 30)
            await fresh.pause()
            await anyio.sleep(_LONG)
            assert seen == []
            await fresh.resume()
        assert seen[0].stdout == "stood still\n"

    async def test_calls_are_refused_until_it_goes_on(self, fresh: Sandbox) -> None:
        needs(fresh, "pause")
        await fresh.files.write("kept", "here")
        assert not fresh.paused
        await fresh.pause()
        assert (fresh.paused, fresh.status) == (True, SandboxStatus.RUNNING)
        assert fresh.get_info().paused
        for call in (
            lambda: fresh.execute_command("true"),
            lambda: fresh.files.read("kept"),
            lambda: fresh.put_file("/x", b""),
        ):
            with pytest.raises(SandboxStateError, match="paused"):
                await call()
        await fresh.resume()
        assert not fresh.paused
        assert await fresh.files.read_text("kept") == "here"
        assert (await fresh.execute_command("echo on")).stdout == "on\n"

    async def test_more_than_once_is_once(self, fresh: Sandbox) -> None:
        needs(fresh, "pause")
        await fresh.resume()
        await fresh.pause()
        await fresh.pause()
        await fresh.resume()
        await fresh.resume()
        assert (await fresh.execute_command("echo on")).stdout == "on\n"
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(fresh.pause)
                group.start_soon(fresh.resume)
        await fresh.resume()
        assert (await fresh.execute_command("echo on")).stdout == "on\n"

    async def test_a_kernel_keeps_its_state(self, fresh: Sandbox) -> None:
        needs(fresh, "pause")
        needs(fresh, "kernel")
        kernel = await fresh.kernel()
        await kernel.run("held = [1, 2, 3]; steps = iter(held); next(steps)")
        await fresh.pause()
        await fresh.resume()
        assert (await kernel.run("print(next(steps))")).stdout == "2\n"

    async def test_time_goes_on_for_who_has_little(self, fresh: Sandbox) -> None:
        needs(fresh, "pause")
        seen: list[CommandResult] = []

        async def run() -> None:
            seen.append(await fresh.execute_command("echo x > begun; exec sleep 1000", timeout=5))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await wait_for_file(fresh, "begun", 30)
            await fresh.pause()
            await anyio.sleep(5.5)
            await fresh.resume()
        assert seen[0].verdict is Verdict.WALL_TIMEOUT

    async def test_a_stop_ends_it_all_the_same(self, fresh: Sandbox) -> None:
        needs(fresh, "pause")
        ended: list[BaseException] = []

        async def run() -> None:
            try:
                await fresh.execute_command("echo x > begun; exec sleep 1000", timeout=100)
            except SandboxStateError as error:
                ended.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await wait_for_file(fresh, "begun", 30)
            await fresh.pause()
            await fresh.stop()
        assert len(ended) == 1
        assert fresh.status is SandboxStatus.STOPPED
        with pytest.raises(SandboxStateError, match="not running"):
            await fresh.resume()

    async def test_one_that_cannot_says_so(self, box: Sandbox) -> None:
        lacks(box, "pause")
        with pytest.raises(CapabilityError, match="pause"):
            await box.pause()
