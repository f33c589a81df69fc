"""A process in memory that does exactly what a test tells it: for ends that no real one has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave.channel.process import Exit, Process

if TYPE_CHECKING:
    from anyio.abc import ByteReceiveStream, ByteSendStream

__all__ = ["ScriptedProcess", "an_end"]


def an_end(exit_code: int = 0, signal: int | None = None, **more: Any) -> Exit:
    """An `Exit` with figures that do not matter."""
    figures: dict[str, Any] = {
        "cause": None,
        "cpu_user": 0.0,
        "cpu_system": 0.0,
        "peak_memory": None,
        "processes": None,
        "source": "rusage",
    }
    return Exit(exit_code=exit_code, signal=signal, **{**figures, **more})


class _Output:
    """The receiving end of an output; the test writes with `put` and ends it with `end`."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[bytes](1000)

    def put(self, data: bytes) -> None:
        self._send.send_nowait(data)

    def end(self) -> None:
        self._send.close()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        return await self._receive.receive()

    async def aclose(self) -> None:
        self._send.close()
        self._receive.close()


class _Input:
    """The sending end of an input; breaks once `broken` is set."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.broken = False
        self.closed = False

    async def send(self, item: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        if self.broken:
            raise anyio.BrokenResourceError
        self.taken += item

    async def aclose(self) -> None:
        self.closed = True


class ScriptedProcess(Process):
    """Ends when told, or when killed unless `immortal`. Counts what was done to it."""

    def __init__(self, *, immortal: bool = False) -> None:
        self.pid = 2
        self.out, self.err, self.input = _Output(), _Output(), _Input()
        self.stdin: ByteSendStream | None = self.input  # type: ignore[assignment]
        self.stdout: ByteReceiveStream = self.out  # type: ignore[assignment]
        self.stderr: ByteReceiveStream = self.err  # type: ignore[assignment]
        self.immortal = immortal
        self.kills = 0
        self.closes = 0
        self.waiting = anyio.Event()
        self._ended = anyio.Event()
        self._end: Exit | Exception | None = None

    def end(self, result: Exit | Exception, *, close: bool = True) -> None:
        """End; with `close` its outputs end too."""
        if self._end is None:
            self._end = result
        self._ended.set()
        if close:
            self.out.end()
            self.err.end()

    async def wait(self) -> Exit:
        self.waiting.set()
        await self._ended.wait()
        if isinstance(self._end, Exception):
            raise self._end
        assert self._end is not None
        return self._end

    async def send_signal(self, signum: int) -> None:
        raise AssertionError("not for these tests")

    async def kill(self) -> None:
        self.kills += 1
        if self.immortal:
            await anyio.sleep_forever()
        self.end(an_end(137, 9))

    async def aclose(self) -> None:
        self.closes += 1
        await self.out.aclose()
        await self.err.aclose()
