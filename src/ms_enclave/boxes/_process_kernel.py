"""A kernel as an instance of a station: its channel is a socket, read on the loop's readiness."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from ms_enclave.channel.guest_socket import GuardedSocket
from ms_enclave.channel.process import KernelProcess
from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from ms_enclave.spawner.client import StationClient, StationProcess
    from ms_enclave.spawner.pipes import PipeReader

__all__ = ["StationKernel", "prepare"]

_MODULE, _LIGHT = "guest.kernel", "guest.kernel_light"
"""What a zygote imports so that its copies are kernels at once. First, as it has what is imported
after it show its figures."""

_CHUNK = 1 << 16
_ROUNDS = 16
"""Reads of a pipe in a row: as much as a pipe can hold."""

_prepared: weakref.WeakKeyDictionary[StationClient, set[tuple[str, ...]]]
_prepared = weakref.WeakKeyDictionary()


async def prepare(
    station: StationClient,
    named: list[str],
    ipython: bool,
    ask: Callable[[StationClient, list[str]], Awaitable[None]],
) -> list[str]:
    """Have modules imported in a zygote, the first time that they are wanted of a station; gives
    all that it has.

    Raises:
        ConfigError: one of them cannot be imported there. Where nobody named any, a kernel that
            starts from nothing is only slower.
    """
    known = _prepared.setdefault(station, set())
    modules = [*([] if ipython else [_LIGHT]), _MODULE, *named]
    key = tuple(modules)
    if key in known:
        return modules
    try:
        await ask(station, modules)
    except ConfigError:
        if named:
            raise
    known.add(key)
    return modules


class StationKernel(KernelProcess):
    """The kernel of a station's process; owns the socket and the process."""

    def __init__(self, process: StationProcess, channel: socket.socket) -> None:
        self.process = process
        self._channel = GuardedSocket(channel)
        self._loop = asyncio.get_running_loop()
        self._take: Callable[[str, bytes], object] = lambda _source, _data: None
        self._streams: dict[str, PipeReader] = dict(
            zip(("stdout", "stderr"), process.outputs, strict=True)
        )
        self._read: set[int] = set()

    def listen(self, take: Callable[[str, bytes], object]) -> None:
        """Have whatever comes handed over, as it comes."""
        self._take = take
        self._watch(self._channel.fileno(), self._on_channel)
        for name, stream in self._streams.items():
            self._watch(stream.fileno(), lambda name=name: self._on_output(name))

    def _watch(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._read.add(descriptor)
        self._loop.add_reader(descriptor, callback)

    def _unwatch(self, descriptor: int) -> None:
        if descriptor in self._read:
            self._read.discard(descriptor)
            self._loop.remove_reader(descriptor)

    def _on_channel(self) -> bool:
        """Take what is there of the channel; False when there was nothing."""
        if self._channel.fileno() not in self._read:
            return False
        try:
            data = self._channel.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._unwatch(self._channel.fileno())
        self._take("channel", data)
        return bool(data)

    def _on_output(self, name: str) -> bool:
        stream = self._streams[name]
        if stream.fileno() not in self._read:
            return False
        data = stream.take(_CHUNK)
        if data is None:
            return False
        if not data:
            self._unwatch(stream.fileno())
        else:
            self._take(name, data)
        return bool(data)

    def drain(self, *, channel: bool = False) -> None:
        """Hand over what is there already of the output, or of the channel too. Never waits."""
        for name in self._streams:
            for _ in range(_ROUNDS):
                if not self._on_output(name):
                    break
        for _ in range(_ROUNDS if channel else 0):
            if not self._on_channel():
                break

    async def send(self, data: bytes) -> None:
        """Send bytes to the kernel."""
        view = memoryview(data)
        while view and self._channel.fileno() >= 0:
            try:
                view = view[self._channel.send(view) :]
            except BlockingIOError:
                with suppress(anyio.ClosedResourceError):
                    await anyio.wait_writable(self._channel.raw)
            except OSError:
                return  # it has ended, which its process tells

    async def aclose(self) -> None:
        """Kill it with every descendant, if it runs, and close its channel."""
        for descriptor in list(self._read):
            self._unwatch(descriptor)
        if self._channel.fileno() >= 0:
            anyio.notify_closing(self._channel.raw)
            self._channel.close()
        await self.process.aclose()
