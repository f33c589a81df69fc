"""What a program may use up, and that the sandbox is whole after it tried to use up more."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import pytest

from ms_enclave.model import ExecutionStatus, Limits, Verdict
from ms_enclave.testing._suite import SandboxSuite, needs

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

__all__ = ["SandboxBoundsContract"]


class SandboxBoundsContract(SandboxSuite):
    """The limits that the subclass says its machine can hold (`bounded`)."""

    def need_bound(self, resource: str) -> None:
        """Skip a test of a resource that cannot be bounded here."""
        if resource not in self.bounded:
            pytest.skip(f"{self.sandbox_type} cannot bound {resource} on this machine")

    async def still_works(self, box: Sandbox) -> None:
        """Expect the sandbox to be as usable as before."""
        assert (await box.execute_command("echo alive", timeout=20)).stdout == "alive\n"
        await box.files.write("alive", "yes")
        assert await box.files.read("alive") == b"yes"

    async def test_a_full_disk_is_an_error_of_the_program(self) -> None:
        self.need_bound("disk")
        async with self.opened(disk_limit="4m") as box:
            result = await box.execute_command(
                "dd if=/dev/zero of=big bs=100000 count=200; echo $?"
            )
            assert result.stdout.strip() != "0"
            assert "no space" in result.stderr.lower()
            assert (await box.files.stat("big")).size <= 5_000_000
            await box.files.remove("big")
            await self.still_works(box)

    async def test_a_full_disk_is_an_error_of_a_write(self) -> None:
        self.need_bound("disk")
        async with self.opened(disk_limit="4m") as box:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
                await box.files.write("big", b"x" * 20_000_000)
            assert caught.value.errno == errno.ENOSPC
            if await box.files.exists("big"):
                await box.files.remove("big")
            await self.still_works(box)

    async def test_a_file_grows_no_larger_than_it_may(self, box: Sandbox) -> None:
        self.need_bound("disk")
        result = await box.execute_command(
            ["dd", "if=/dev/zero", "of=large", "bs=100000", "count=50"],
            limits=Limits(file_size_limit=1_000_000),
        )
        assert result.status == ExecutionStatus.ERROR
        assert (await box.files.stat("large")).size <= 1_000_000
        await box.files.remove("large")

    async def test_a_fork_bomb_is_held_and_ended(self) -> None:
        self.need_bound("pids")
        async with self.opened(pids_limit=40) as box:
            began = time.monotonic()
            result = await box.execute_command("f() { f | f & f; }; f", timeout=2)
            assert result.status != ExecutionStatus.SUCCESS
            assert time.monotonic() - began < 15
            await self.still_works(box)

    async def test_no_more_processes_than_allowed(self) -> None:
        self.need_bound("pids")
        async with self.opened(pids_limit=30) as box:
            needs(box, "python")
            code = (
                "import os, time\nmade = 0\n"
                "try:\n"
                "    for _ in range(200):\n"
                "        if os.fork() == 0:\n"
                "            time.sleep(20); os._exit(0)\n"
                "        made += 1\n"
                "except OSError as error:\n"
                "    print(made, error.errno, flush=True); os._exit(1)\n"
            )
            result = await box.run_code(code, timeout=20)
            made, number = map(int, result.stdout.split())
            assert made < 30
            assert number == errno.EAGAIN
            await self.still_works(box)

    async def test_memory_beyond_the_limit_is_out_of_memory(self) -> None:
        self.need_bound("memory")
        async with self.opened(memory_limit="128m") as box:
            needs(box, "python")
            code = "held = []\nwhile True:\n    held.append(bytearray(b'x') * (8 << 20))\n"
            result = await box.run_code(code, timeout=60)
            assert result.verdict == Verdict.OOM
            assert result.usage is not None
            # Some way above it, where the limit is held by looking; never the machine's memory.
            assert result.usage.peak_memory is None or result.usage.peak_memory < 512 << 20
            assert result.status == ExecutionStatus.ERROR
            assert result.exit_code == 137
            await self.still_works(box)

    async def test_processor_time_is_limited_apart_from_the_clock(self, box: Sandbox) -> None:
        self.need_bound("cpu")
        result = await box.execute_command(
            ["sh", "-c", "while :; do :; done"], timeout=30, limits=Limits(cpu_time_limit=1)
        )
        assert result.verdict == Verdict.CPU_TIMEOUT
        assert result.execution_time < 20
        idle = await box.execute_command(
            "sleep 1.5; echo done", timeout=30, limits=Limits(cpu_time_limit=1)
        )
        assert idle.stdout == "done\n"

    async def test_no_more_open_files_than_allowed(self, box: Sandbox) -> None:
        result = await box.execute_command("ulimit -n", limits=Limits(nofile_limit=64))
        assert result.stdout.strip() == "64"
