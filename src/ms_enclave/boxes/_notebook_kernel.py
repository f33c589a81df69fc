"""A kernel of Jupyter's as one of ours: its process is the guest's, its words the gateway's.

The guest starts it, so that how it ends is known as of any program of the sandbox: with its signal,
its exit code, and whether memory was out. Only what it says passes the gateway.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
from typing_extensions import override

from ms_enclave.channel.jupyter import Translator
from ms_enclave.channel.process import KernelProcess, Process
from ms_enclave.errors import SandboxLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import ByteReceiveStream

    from ms_enclave.boxes._notebook_client import Channels
    from ms_enclave.channel.process import Exit

__all__ = ["GatewayKernel"]

_LAST_WORDS = 0.3
"""Seconds that what a kernel has said may take to pass the gateway after its end is known."""
_DOUBT = 0.1
"""Seconds that an answer may take after the news that it was given, before it is asked for."""


class GatewayKernel(KernelProcess):
    """A kernel that the guest has started and a gateway has the addresses of.

    Args:
        open_channels: connects to it through the gateway, for a session of that name; answers
            once the kernel does.
        forget: told when it has ended for good.
    """

    def __init__(
        self, process: Process, open_channels: Callable[[str], Awaitable[Channels]],
        forget: Callable[[], object],
    ) -> None:  # fmt: skip
        self._inner = process
        self._open = open_channels
        self._forget = forget
        self._translator = Translator()
        self.process = self._outer = _GatewayProcess(process, lambda: self._translator.has_begun)
        self._channels: Channels | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._doubting: asyncio.Task[None] | None = None
        self._take: Callable[[str, bytes], object] = lambda _source, _data: None
        self._is_closed = False

    @override
    def listen(self, take: Callable[[str, bytes], object]) -> None:
        self._take = take
        self._tasks = [
            asyncio.create_task(self._hear()),
            asyncio.create_task(self._read("stdout", self._inner.stdout)),
            asyncio.create_task(self._read("stderr", self._inner.stderr)),
        ]

    async def _hear(self) -> None:
        reason = "its gateway has ended, or has dropped it"
        try:
            channels = self._channels = await self._open(self._translator.session)
            await channels.send(self._translator.greeting())
            while (text := await channels.receive()) is not None:
                frames = self._translator.take(text)
                await self._outer.interrupt_if_due()
                if frames:
                    self._take("channel", frames)
                if self._translator.is_in_doubt and self._doubting is None:
                    self._doubting = asyncio.create_task(self._doubt(channels))
        except SandboxLostError as error:
            reason = error.message
        await self._outer.lose(reason)
        with suppress(SandboxLostError):
            await self._inner.kill()

    async def _doubt(self, channels: Channels) -> None:
        """Wait for the answer to a request that is done, then ask whether there will be one."""
        while self._translator.is_in_doubt:
            await asyncio.sleep(_DOUBT)
            question = self._translator.doubt()
            if question is not None:
                await channels.send(question)
        self._doubting = None

    async def _read(self, name: str, stream: ByteReceiveStream) -> None:
        with suppress(
            anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError,
            SandboxLostError,
        ):  # fmt: skip
            while True:
                data = await stream.receive()
                if not self._translator.has_greeted:  # later it says itself what is printed there
                    self._take(name, data)

    @override
    def drain(self, *, channel: bool = False) -> None:
        """What has come was handed over as it came."""

    @override
    async def send(self, data: bytes) -> None:
        for message in self._translator.requests(data):
            if self._channels is not None:
                await self._channels.send(message)
        refused = self._translator.take_refused()
        if refused:
            self._take("channel", refused)

    @override
    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        tasks = [*self._tasks, *([] if self._doubting is None else [self._doubting])]
        for task in tasks:
            task.cancel()
        try:
            await self._inner.aclose()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._channels is not None:
                await self._channels.aclose()
        finally:
            self._forget()


class _GatewayProcess(Process):
    """The process of a kernel, which is lost where it cannot be talked to any more."""

    def __init__(self, process: Process, can_interrupt: Callable[[], bool]) -> None:
        self._can_interrupt = can_interrupt
        self._is_due = False
        self.pid = process.pid
        self.stdin = None
        self.stdout, self.stderr = process.stdout, process.stderr
        self._process = process
        self._reason = ""
        self._ended = asyncio.Event()
        self._watcher: asyncio.Task[Exit] | None = None

    async def lose(self, reason: str) -> None:
        """Nothing more comes from it. That is usually its own end, which says more."""
        if self._watcher is not None:
            await asyncio.wait([self._watcher], timeout=_LAST_WORDS)
            if self._watcher.done():
                return
        self._reason = reason
        self._ended.set()

    async def interrupt_if_due(self) -> None:
        """Send the interrupt that came before the kernel was at its request."""
        if self._is_due and self._can_interrupt():
            self._is_due = False
            with suppress(SandboxLostError):
                await self._process.send_signal(signal.SIGINT)

    @override
    async def wait(self) -> Exit:
        watcher = self._watcher
        if watcher is None:
            watcher = self._watcher = asyncio.create_task(self._process.wait())
            watcher.add_done_callback(lambda _task: self._ended.set())
        await self._ended.wait()
        if self._reason:
            raise SandboxLostError(f"the kernel is lost: {self._reason}")
        ended = await asyncio.shield(watcher)
        await asyncio.sleep(_LAST_WORDS)
        return ended

    @override
    async def send_signal(self, signum: int) -> None:
        if signum == signal.SIGINT and not self._can_interrupt():
            self._is_due = True
            return
        await self._process.send_signal(signum)

    @override
    async def kill(self) -> None:
        await self._process.kill()

    @override
    async def aclose(self) -> None:
        await self._process.aclose()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
