"""A sandbox starts whole or not at all, and always ends."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave import loop
from ms_enclave.boxes import _life
from ms_enclave.errors import (
    CapabilityError,
    EnclaveError,
    SandboxLostError,
    SandboxStartError,
    SandboxStateError,
)
from ms_enclave.model import SandboxStatus
from tests.support.scripted_box import ScriptedSandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DONE = ["+a", "+b", "-b", "-a"]


async def forever() -> None:
    await anyio.sleep_forever()


def hanging() -> tuple[Callable[[], Awaitable[None]], threading.Event]:
    """What hangs, and what is set once it does: it may run in another loop."""
    hangs = threading.Event()

    async def hang() -> None:
        hangs.set()
        await anyio.sleep_forever()

    return hang, hangs


async def until(happened: threading.Event) -> None:
    with anyio.fail_after(30):
        while not happened.is_set():
            await anyio.sleep(0.001)


def failing(error: BaseException) -> object:
    async def fail() -> None:
        raise error

    return fail


async def test_what_was_made_is_undone_in_reverse() -> None:
    box = ScriptedSandbox()
    async with box:
        assert box.did == ["+a", "+b"]
    assert box.did == DONE
    assert box.status is SandboxStatus.STOPPED


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (SandboxStartError("no"), SandboxStartError),
        (PermissionError(1, "not permitted"), SandboxStartError),
        (TimeoutError(), SandboxStartError),
        (ConnectionError("gone"), SandboxStartError),
        (ZeroDivisionError("a fault of ours"), ZeroDivisionError),
    ],
)
async def test_a_start_that_fails_is_undone_and_says_why(
    error: Exception, raised: type[Exception]
) -> None:
    box = ScriptedSandbox()
    box.while_opening = failing(error)  # type: ignore[assignment]
    with pytest.raises(raised):
        await box.start()
    assert box.did == DONE
    assert box.status is SandboxStatus.ERROR
    assert box.metadata["error"]
    with pytest.raises(SandboxStateError, match="cannot start"):
        await box.start()
    await box.stop()
    assert box.status is SandboxStatus.STOPPED


@pytest.mark.parametrize("native", [False, True])
async def test_a_start_that_is_cancelled_is_undone_before_the_cancel_goes_on(native: bool) -> None:
    box = ScriptedSandbox()
    box.while_opening, hangs = hanging()
    if native:
        task = asyncio.create_task(box.start())
        await until(hangs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(box.start)
                await until(hangs)
                scope.cancel()
        assert scope.cancelled_caught
    assert box.did == DONE
    assert box.status is SandboxStatus.ERROR


async def test_a_stop_ends_a_start_that_hangs() -> None:
    box = ScriptedSandbox()
    box.while_opening, hangs = hanging()
    task = asyncio.create_task(box.start())
    await until(hangs)
    await box.stop()
    with pytest.raises(SandboxStateError, match="stopped while it was starting"):
        await task
    assert box.did == DONE
    assert box.status is SandboxStatus.STOPPED


@pytest.mark.parametrize("native", [False, True])
async def test_a_stop_that_is_cancelled_goes_on_to_the_end(native: bool) -> None:
    box = ScriptedSandbox()
    await box.start()
    if native:
        task = asyncio.create_task(box.stop())
        await anyio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
    else:
        with anyio.move_on_after(0.005):
            await box.stop()
    assert box.did == DONE
    assert box.status is SandboxStatus.STOPPED


async def test_a_stop_is_bounded_and_says_what_it_could_not_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_life, "CLOSE_BOUND", 0.05)
    box = ScriptedSandbox()
    box.while_closing = forever
    await box.start()
    with pytest.raises(SandboxLostError, match="could not be destroyed"):
        await box.stop()
    assert box.status is SandboxStatus.ERROR
    assert "could not be destroyed" in box.metadata["error"]
    await box.stop()


async def test_a_stop_that_fails_undoes_the_rest_and_raises() -> None:
    box = ScriptedSandbox()
    box.while_closing = failing(EnclaveError("stuck"))  # type: ignore[assignment]
    await box.start()
    with pytest.raises(EnclaveError, match="stuck"):
        await box.stop()
    assert box.did == DONE
    assert box.status is SandboxStatus.ERROR


async def test_two_stops_at_once_close_once() -> None:
    box = ScriptedSandbox()
    await box.start()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(box.stop)
    assert box.did == DONE


async def test_calls_that_are_running_end_with_the_stop() -> None:
    box = ScriptedSandbox()
    await box.start()
    task = asyncio.create_task(box.execute_command(["x"]))
    while not box.processes:
        await anyio.sleep(0.005)
    assert box.idle_seconds == 0
    began = time.monotonic()
    await box.stop()
    assert time.monotonic() - began < 2
    with pytest.raises(SandboxStateError, match="not running"):
        await task
    assert (box.processes[0].kills, box.processes[0].closes) == (1, 1)


async def test_a_lost_box_ends_its_calls_and_says_why() -> None:
    box = ScriptedSandbox()
    await box.start()
    task = asyncio.create_task(box.execute_command(["x"]))
    while not box.processes:
        await anyio.sleep(0.005)

    async def lose() -> None:
        box._lost("the machine is on fire")  # pyright: ignore[reportPrivateUsage]

    await loop.run(lose)
    with pytest.raises(SandboxLostError, match="on fire"):
        await task
    assert box.status is SandboxStatus.ERROR
    assert box.metadata["error"] == "the machine is on fire"
    with pytest.raises(SandboxLostError, match="on fire"):
        await box.execute_command(["x"])
    assert box.did == ["+a", "+b"]
    await box.stop()
    assert box.did == DONE


async def test_a_box_that_is_lost_while_it_starts_does_not_start() -> None:
    box = ScriptedSandbox()

    async def lose() -> None:
        box._lost("gone at once")  # pyright: ignore[reportPrivateUsage]

    box.while_opening = lose
    with pytest.raises(SandboxStartError, match="gone at once"):
        await box.start()
    assert box.did == DONE


async def test_a_failure_of_the_box_in_a_call_is_the_end_of_the_box() -> None:
    box = ScriptedSandbox()
    async with box:
        task = asyncio.create_task(box.execute_command(["x"]))
        while not box.processes:
            await anyio.sleep(0.005)

        async def fail() -> None:
            box.processes[0].end(SandboxLostError("channel closed"))

        await loop.run(fail)
        with pytest.raises(SandboxLostError, match="channel closed"):
            await task
        assert box.status is SandboxStatus.ERROR


async def test_idle_time_counts_from_the_last_call() -> None:
    box = ScriptedSandbox()
    async with box:
        await anyio.sleep(0.02)
        assert 0.02 <= box.idle_seconds < 5


async def test_a_start_is_no_idle_time() -> None:
    seen: list[float] = []

    async def look() -> None:
        await anyio.sleep(0.02)
        seen.append(box.idle_seconds)
        seen.append(time.monotonic())

    box = ScriptedSandbox()
    box.while_opening = look
    async with box:
        idle, began = seen
        assert idle == 0
        assert box.idle_seconds <= time.monotonic() - began


async def test_a_request_holds_what_the_process_is_started_with() -> None:
    box = ScriptedSandbox({"env_vars": {"A": "1", "B": "1"}, "timeout": 9})
    async with box:
        with anyio.move_on_after(0.05):
            await box.execute_command(
                ["a", "b"], cwd="sub", env={"B": "2"}, user=1000, stdin=b"x", timeout=3
            )
        [request] = box.requests
        assert request.argv == ("a", "b")
        assert request.code is None
        assert request.cwd == "/sandbox/sub"
        assert request.user == 1000
        assert request.stdin is True
        assert (request.env["A"], request.env["B"]) == ("1", "2")
        assert set(request.env) == {"PATH", "LANG", "A", "B"}
        assert request.limits is not None
        assert request.limits.timeout == 3


async def test_what_a_box_lacks_names_who_has_it() -> None:
    box = ScriptedSandbox()
    async with box:
        box._capabilities = frozenset()  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(CapabilityError) as caught:
            await box.run_code("1")
    assert caught.value.capability == "python"
    assert isinstance(caught.value, NotImplementedError)
    assert "process" in caught.value.available_in
