"""Pipe ends as byte streams, on the loop's own readiness: no thread, no copy beyond the read."""

from __future__ import annotations

import os

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

__all__ = ["PipeReader", "PipeWriter", "open_null"]

_CHUNK = 1 << 16


def open_null() -> int:
    """A descriptor of /dev/null to read from."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


class _PipeEnd:
    """Owns one descriptor."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    def _require_open(self) -> int:
        if self._descriptor < 0:
            raise anyio.ClosedResourceError
        return self._descriptor

    def fileno(self) -> int:
        """The descriptor; -1 when closed."""
        return self._descriptor

    def close(self) -> None:
        """Close it, when nobody waits on it. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    async def aclose(self) -> None:
        """Close it; whoever waits on it gets `ClosedResourceError`. Idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            anyio.notify_closing(descriptor)
            os.close(descriptor)


class PipeReader(_PipeEnd, ByteReceiveStream):
    """The reading end of a pipe."""

    def take(self, max_bytes: int = _CHUNK) -> bytes | None:
        """What is there now: None for nothing yet, no bytes at the end of the stream."""
        try:
            return os.read(self._descriptor, max_bytes)
        except BlockingIOError:
            return None

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        while True:
            try:
                data = os.read(self._require_open(), max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._descriptor)
                continue
            if not data:
                raise anyio.EndOfStream
            return data


class PipeWriter(_PipeEnd, ByteSendStream):
    """The writing end of a pipe."""

    async def send(self, item: bytes) -> None:
        view = memoryview(item)
        while view:
            try:
                view = view[os.write(self._require_open(), view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._descriptor)
            except BrokenPipeError:
                raise anyio.BrokenResourceError from None
