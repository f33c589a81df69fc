"""Requests that are given up half way, that are too much, or that make no sense."""

from __future__ import annotations

import os
import resource
import secrets

import anyio
import pytest

from ms_enclave import loop
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import ConfigError, EnclaveError, SandboxStartError
from ms_enclave.model import ProcessSandboxConfig
from tests.security.boxes import ColdSandbox, find_processes

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]


@pytest.mark.parametrize("kind", [ProcessSandbox, ColdSandbox])
async def test_a_start_that_is_cancelled_leaves_no_process(kind: type[ProcessSandbox]) -> None:
    marker = f"600.{secrets.randbelow(10**9)}"
    async with kind() as box:
        for number in range(40):
            with anyio.move_on_after(0.001 * (number % 20)):
                await box.execute_command(["sleep", marker])
        assert (await box.execute_command(["true"])).exit_code == 0  # what was asked before is done
        assert [pid for pid in find_processes(marker) if pid != os.getpid()] == []


async def test_a_request_without_sense_ends_nobody_elses_sandbox() -> None:
    async with ProcessSandbox() as neighbour:
        for limits in ({"nofile_limit": 2**70}, {"nofile_limit": 2**40}):
            async with ProcessSandbox(ProcessSandboxConfig(**limits)) as box:
                assert (await box.run_code("print(1)")).stdout == "1\n"
        many = ProcessSandbox(ProcessSandboxConfig(preload=["module" * 100] * 500))
        with pytest.raises(ConfigError, match="bytes"):
            await many.start()
        await many.stop()
        station = neighbour._station  # pyright: ignore[reportPrivateUsage]
        for fields in ({}, {"process": []}):
            with pytest.raises(SandboxStartError, match="Error"):
                await loop.run(station.ask, "signal", **fields)
        assert (await neighbour.run_code("print(2)")).stdout == "2\n"


async def test_want_of_descriptors_leaks_none() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with ProcessSandbox() as box:
        await box.run_code("print(1)")
        before = len(os.listdir("/proc/self/fd"))
        taken = [os.dup(0) for _ in range(10)]
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 4, hard))
            for _ in range(20):
                with pytest.raises(EnclaveError):
                    await box.run_code("print(2)")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
        assert len(os.listdir("/proc/self/fd")) <= before
        assert (await box.run_code("print(3)")).stdout == "3\n"
