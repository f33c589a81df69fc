"""A call that hops onto the private loop is, for its caller, a call like any other."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
import weakref
from importlib.util import find_spec
from typing import Any

import anyio
import pytest

from ms_enclave import loop

BACKENDS = (
    "asyncio",
    pytest.param(
        "trio",
        marks=pytest.mark.skipif(find_spec("trio") is None, reason="trio is not installed"),
    ),
)
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


class Problem(ValueError):
    pass


@loop.on_loop
async def where(value: Any = None) -> tuple[str, Any]:
    await anyio.lowlevel.checkpoint()
    return threading.current_thread().name, value


@loop.on_loop
async def fail(error: BaseException) -> None:
    await anyio.lowlevel.checkpoint()
    raise error


class Box:
    """Something with an async method that waits for ever and cleans up slowly."""

    def __init__(self, clean_up: float = 0.02) -> None:
        self.entered = threading.Event()
        self.cleaned = False
        self.clean_up = clean_up
        self.error: Exception | None = None

    @loop.on_loop
    async def wait(self) -> None:
        try:
            self.entered.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.clean_up)
            self.cleaned = True
            if self.error is not None:
                raise self.error


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_call_runs_on_the_loop_thread_whatever_the_caller_runs_on(backend: str) -> None:
    assert anyio.run(where, 7, backend=backend) == ("ms-enclave-loop", 7)


def test_a_program_without_a_loop_calls_it_too() -> None:
    assert loop.call(where, 8) == ("ms-enclave-loop", 8)


def test_three_event_loops_and_two_threads_share_it() -> None:
    names = {asyncio.run(where())[0] for _ in range(3)}
    threads = [
        threading.Thread(target=lambda: names.add(asyncio.run(where())[0])) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names == {"ms-enclave-loop"}


def test_on_the_loop_thread_it_runs_inline() -> None:
    async def nested() -> bool:
        task = asyncio.current_task()

        @loop.on_loop
        async def same_task() -> bool:
            return asyncio.current_task() is task

        return await same_task()

    assert loop.call(nested)


def test_a_blocking_call_on_the_loop_thread_is_refused() -> None:
    async def nested() -> None:
        loop.call(where)

    with pytest.raises(RuntimeError, match="await instead"):
        loop.call(nested)


@pytest.mark.parametrize("backend", BACKENDS)
def test_context_variables_are_carried_over(backend: str) -> None:
    @loop.on_loop
    async def read() -> str:
        before = variable.get()
        variable.set("inner")
        return before

    async def main() -> tuple[str, str]:
        variable.set("mine")
        return await read(), variable.get()

    assert anyio.run(main, backend=backend) == ("mine", "mine")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_exception_keeps_type_and_identity(backend: str) -> None:
    problem = Problem("p")
    with pytest.raises(Problem) as caught:
        anyio.run(fail, problem, backend=backend)
    assert caught.value is problem


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_not_even_an_exit_ends_the_loop(error: BaseException) -> None:
    with pytest.raises(type(error)):
        loop.call(fail, error)
    assert loop.call(where, 1)[1] == 1


@pytest.mark.parametrize("blocking", [True, False])
def test_an_exception_leaves_no_reference_cycle(blocking: bool) -> None:
    class Big:
        pass

    @loop.on_loop
    async def hold() -> None:
        big = Big()
        held.append(weakref.ref(big))
        raise Problem

    async def main() -> None:
        with contextlib.suppress(Problem):
            await hold()
        await asyncio.sleep(0)

    held: list[weakref.ref[Big]] = []
    gc.collect()
    gc.disable()
    try:
        if blocking:
            with pytest.raises(Problem):
                loop.call(hold)
        else:
            asyncio.run(main())
        # The loop thread lets go of its last callback when it runs the next.
        loop.call(where)
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deadline_of_the_caller_cancels_the_work_and_waits_for_its_clean_up(backend: str) -> None:
    box = Box()

    async def main() -> bool:
        with anyio.move_on_after(0.01) as scope:
            await box.wait()
        assert box.cleaned
        return scope.cancelled_caught

    assert anyio.run(main, backend=backend)


async def test_cancelling_again_does_not_abandon_the_clean_up() -> None:
    box = Box(clean_up=0.1)
    task = asyncio.ensure_future(box.wait())
    await anyio.to_thread.run_sync(box.entered.wait)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert box.cleaned


async def test_a_cancellation_respects_what_is_shielded() -> None:
    entered = threading.Event()
    log: list[str] = []

    @loop.on_loop
    async def stop() -> None:
        with anyio.CancelScope(shield=True):
            entered.set()
            await anyio.sleep(0.05)
            log.append("stopped")

    task = asyncio.ensure_future(stop())
    await anyio.to_thread.run_sync(entered.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["stopped"]


async def test_wait_for_gives_its_own_time_out() -> None:
    box = Box()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(box.wait(), 0.01)
    assert box.cleaned


async def test_a_clean_up_that_fails_is_heard_of() -> None:
    box = Box()
    box.error = Problem("clean-up")
    task = asyncio.ensure_future(box.wait())
    await anyio.to_thread.run_sync(box.entered.wait)
    task.cancel()
    with pytest.raises(Problem):
        await task


async def test_a_task_cancelled_before_its_first_step_does_nothing() -> None:
    box = Box()
    task = asyncio.ensure_future(box.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not box.entered.is_set()


def test_a_coroutine_thrown_away_while_it_waits_cancels_the_work() -> None:
    box = Box()

    async def main() -> None:
        coroutine = box.wait()
        waited_for = coroutine.send(None)
        await anyio.to_thread.run_sync(box.entered.wait)
        coroutine.close()
        assert waited_for is not None

    asyncio.run(main())
    deadline = time.monotonic() + 5
    while not box.cleaned and time.monotonic() < deadline:
        time.sleep(0.001)
    assert box.cleaned


def test_a_hop_costs_about_a_fifth_of_a_millisecond() -> None:
    async def main() -> float:
        await where()
        times: list[float] = []
        for _ in range(200):
            start = time.perf_counter()
            await where()
            times.append(time.perf_counter() - start)
        return sorted(times)[20]

    assert asyncio.run(main()) < 0.002  # a busy machine; 0.07 ms on an idle one


@loop.iterate_on_loop
async def count(to: int, log: list[str]) -> Any:
    try:
        for number in range(to):
            await anyio.lowlevel.checkpoint()
            yield threading.current_thread().name, number
        if to == 3:
            raise Problem("at the end")
    finally:
        await anyio.lowlevel.checkpoint()
        log.append("closed on " + threading.current_thread().name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_generator_runs_on_the_loop_step_by_step(backend: str) -> None:
    log: list[str] = []

    async def main() -> list[Any]:
        return [item async for item in count(2, log)]

    assert anyio.run(main, backend=backend) == [("ms-enclave-loop", 0), ("ms-enclave-loop", 1)]
    assert log == ["closed on ms-enclave-loop"]


async def test_a_generator_that_is_left_early_is_closed() -> None:
    log: list[str] = []
    steps = count(100, log)
    async for _ in steps:
        break
    await steps.aclose()
    assert log == ["closed on ms-enclave-loop"]


async def test_a_generator_s_exception_arrives() -> None:
    steps = count(3, [])
    for number in range(3):
        assert (await anext(steps))[1] == number
    with pytest.raises(Problem):
        await anext(steps)


async def test_cancelling_a_step_ends_the_generator_cleanly() -> None:
    log: list[str] = []

    @loop.iterate_on_loop
    async def stuck() -> Any:
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            log.append("closed")

    with anyio.move_on_after(0.02) as scope:
        async for _ in stuck():
            pass
    assert scope.cancelled_caught
    assert log == ["closed"]


def test_ordinary_code_iterates_and_leaves_early() -> None:
    log: list[str] = []
    for _name, number in loop.iterate(count, 100, log):
        if number == 2:
            break
    assert log == ["closed on ms-enclave-loop"]
    assert [number for _, number in loop.iterate(count, 2, log)] == [0, 1]
