"""What the suites share: how to get a sandbox, and how to see whether a process still lives."""

# ruff: noqa: S101, ASYNC110 - these are tests

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import pytest

from ms_enclave.boxes import Sandbox, SandboxFactory
from ms_enclave.loop import call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping

__all__ = [
    "HEARTBEAT",
    "HasItError",
    "SandboxSuite",
    "beats",
    "lacks",
    "needs",
    "use_first",
    "wait_for_file",
]

HEARTBEAT = "while :; do echo x >> beat; sleep 0.02; done"
"""A shell line that shows for as long as it lives that it lives, whatever its pid and namespace."""


class SandboxSuite:
    """Base of the suites over sandboxes. Subclasses say what to test with class attributes."""

    sandbox_type: ClassVar[str] = ""
    """The registered name of the backend."""

    config: ClassVar[Mapping[str, Any]] = {}
    """What every sandbox of the suite is configured with."""

    isolated: ClassVar[bool] = True
    """Whether what is inside cannot reach the host."""

    bounded: ClassVar[frozenset[str]] = frozenset({"memory", "disk", "pids", "cpu"})
    """Which resources this machine can bound for the backend."""

    @classmethod
    def create(cls, **config: Any) -> Sandbox:
        """A sandbox that has not started. Suites over a running one use `opened`."""
        return SandboxFactory.create_sandbox(cls.sandbox_type, {**cls.config, **config})

    @classmethod
    def opened(cls, **config: Any) -> AbstractAsyncContextManager[Sandbox]:
        """A running sandbox that ends with the block; override it for another kind of handle."""
        return cls.create(**config)

    @pytest.fixture(scope="class")
    @classmethod
    def box(cls) -> Iterator[Sandbox]:
        """One running sandbox for all tests of the class that do it no harm."""
        stack = AsyncExitStack()
        opened = call(stack.enter_async_context, cls.opened())
        call(use_first, opened)
        try:
            yield opened
        finally:
            call(stack.aclose)

    @pytest.fixture
    async def clean(self, box: Sandbox) -> AsyncIterator[Sandbox]:
        """The running sandbox of the class with nothing in its working folder, for a test that
        fills that: a sandbox that takes a second to start has not to start for it."""
        await _empty(box)
        yield box
        await _empty(box)

    @pytest.fixture
    async def fresh(self) -> AsyncIterator[Sandbox]:
        """A running sandbox for a test that breaks it or leaves things in it."""
        async with self.opened() as opened:
            yield opened


async def _empty(box: Sandbox) -> None:
    """Remove everything from the working folder."""
    for entry in await box.files.list("."):
        await box.files.remove(entry.path, recursive=True)


async def use_first(box: Sandbox) -> None:
    """Have a sandbox make what it makes on first use, so that no test seems to have left it."""
    await box.files.exists(".")
    if "notebook" in box.capabilities:
        await box.kernel()


def needs(box: Sandbox, capability: str) -> None:
    """Skip a test for sandboxes that say they cannot do it."""
    if capability not in box.capabilities:
        pytest.skip(f"{box.sandbox_type} lacks the capability {capability}")


class HasItError(pytest.skip.Exception):
    """A test of what sandboxes say that cannot do something, which this one can: that is no test
    that a machine could be made to run."""


def lacks(box: Sandbox, capability: str) -> None:
    """Skip a test for sandboxes that can do it."""
    if capability in box.capabilities:
        raise HasItError(f"{box.sandbox_type} has the capability {capability}")


async def wait_for_file(box: Sandbox, path: str, seconds: float = 10) -> None:
    """Wait until something inside has written a file.

    Raises:
        TimeoutError: it did not.
    """
    with anyio.fail_after(seconds):
        while not await box.files.exists(path) or not (await box.files.stat(path)).size:
            await anyio.sleep(0.02)


@asynccontextmanager
async def beats(box: Sandbox) -> AsyncGenerator[None, None]:
    """Expect the block to end every `HEARTBEAT` in the sandbox's working folder.

    The beat must have been seen in the block (else the test would hold for a program that never
    started), and must be still afterwards for ten times as long as it takes to beat.
    """
    yield
    assert await box.files.exists("beat"), "the process whose end is tested never started"
    before = (await box.files.stat("beat")).size
    assert before > 0
    await anyio.sleep(0.3)
    after = (await box.files.stat("beat")).size
    assert after == before, "a process that had to be gone still lives"
