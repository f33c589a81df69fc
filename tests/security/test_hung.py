"""A station that hangs does not outlive its owner."""

from __future__ import annotations

import os
import secrets
import signal

import anyio
import pytest

from ms_enclave.boxes.process_sandbox import ProcessSandbox
from tests.security.boxes import status_of, wait_for_processes, wait_until_gone

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]


async def test_a_station_that_hangs_goes_with_its_launcher() -> None:
    marker = f"600.{secrets.randbelow(10**9)}"
    box = ProcessSandbox()
    await box.start()
    try:
        await box.execute_command(f"setsid sleep {marker} >/dev/null 2>&1 &")
        (pid,) = wait_for_processes(marker)
        station = int(status_of(int(status_of(pid)["PPid"]))["PPid"])
        os.kill(station, signal.SIGSTOP)
        os.kill(int(status_of(station)["PPid"]), signal.SIGKILL)
        with anyio.fail_after(10):
            while wait_until_gone(marker, 0.0):
                await anyio.sleep(0.01)
    finally:
        await box.stop()
