"""What is asked again of who was let in, while their request goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.manager import LocalSandboxManager
from ms_enclave.server import Principal, _recheck

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest


def somebody(is_good: Callable[[], Awaitable[bool]]) -> Principal:
    return Principal("mine", LocalSandboxManager(), is_good=is_good)


async def test_a_look_that_fails_is_had_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_recheck, "RECHECK_SECONDS", 0.0)
    answers: list[Any] = [LookupError("odd"), True, False]
    refused = anyio.Event()

    async def is_good() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            with _recheck.asked_again(somebody(is_good), tasks.start_soon, refused.set):
                await refused.wait()
    assert not answers
    assert "odd" in caplog.text


async def test_a_look_that_ends_after_the_request_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_recheck, "RECHECK_SECONDS", 0.0)
    looking, over, looks = anyio.Event(), anyio.Event(), list[int]()
    failed: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failed.append(context))

    async def is_good() -> bool:
        looks.append(1)
        looking.set()
        await over.wait()
        return True

    try:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                with _recheck.asked_again(somebody(is_good), tasks.start_soon, lambda: None):
                    await looking.wait()
                over.set()
            for _ in range(10):
                await anyio.sleep(0)
    finally:
        loop.set_exception_handler(None)
    assert (looks, failed) == ([1], [])
