"""A station that hangs does not outlive its owner, and what it is asked meanwhile is not lost."""

from __future__ import annotations

import asyncio
import os
import secrets
import select
import signal

import anyio
import pytest

from ms_enclave import loop
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import SandboxLostError
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


@pytest.mark.parametrize("goes_on", [True, False])
async def test_requests_that_do_not_fit_into_the_socket_wait_for_their_turn(goes_on: bool) -> None:
    marker = f"600.{secrets.randbelow(10**9)}"
    box = ProcessSandbox()
    await box.start()
    try:
        await box.execute_command(f"setsid sleep {marker} >/dev/null 2>&1 &")
        (pid,) = wait_for_processes(marker)
        station = int(status_of(int(status_of(pid)["PPid"]))["PPid"])
        client = box._station  # pyright: ignore[reportPrivateUsage]
        os.kill(station, signal.SIGSTOP)

        async def ask_many() -> list[object]:
            asked = [
                asyncio.ensure_future(client.ask("signal", process=-1, signal=0))
                for _ in range(1000)
            ]
            await asyncio.sleep(0)  # all have begun
            room = select.select([], [client._socket], [], 0)[1]  # pyright: ignore[reportPrivateUsage]
            assert room == []
            os.kill(station, signal.SIGCONT if goes_on else signal.SIGKILL)
            return await asyncio.gather(*asked, return_exceptions=True)

        answers = await loop.run(ask_many)
        if goes_on:
            assert answers == [{}] * 1000
        else:
            assert {type(answer) for answer in answers} == {SandboxLostError}
    finally:
        await box.stop()
