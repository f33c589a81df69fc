"""Pipe ends as byte streams, on the loop's own readiness: no thread, no copy beyond the read."""

from __future__ import annotations

import contextlib
import os

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

__all__ = ["PipeReader", "PipeWriter", "open_null"]

_SET_PIPE_SIZE, _GET_PIPE_SIZE = 1031, 1032  # F_SETPIPE_SZ, F_GETPIPE_SZ
_CHUNK = 1 << 16
_WASTE = bytearray(_CHUNK)
_WASTES = 16
"""Where what nobody wants goes, and how often it does at once."""
_WIDTHS = (len(_WASTE) * _WASTES, 1 << 18, 1 << 17)
"""Bytes for which such a pipe gets room, or for as many as it may have."""
_DROP_PAUSE = 0.004
"""Seconds in which whoever fills one that has all the room is left alone."""


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

    drops = True
    """Whether what is in it can be let go of unread."""

    pause = _DROP_PAUSE
    """Seconds in which whoever fills it is left alone, if nobody wants what is in it: the less room
    it has, the fewer, so that the pace stays."""

    _is_wide = False

    def take(self, max_bytes: int = _CHUNK) -> bytes | None:
        """What is there now: None for nothing yet, no bytes at the end of the stream."""
        try:
            return os.read(self._descriptor, max_bytes)
        except BlockingIOError:
            return None

    def drop(self) -> int | None:
        """Let go of what is there now; gives its bytes, 0 at the end of the stream and None for
        nothing yet. Meant to be called a while apart: the pipe gets room for that."""
        descriptor = self._require_open()
        if not self._is_wide:
            self._is_wide = True
            self.pause = _DROP_PAUSE * _widen(descriptor) / _WIDTHS[0]
        try:
            return os.readv(descriptor, [_WASTE] * _WASTES)
        except BlockingIOError:
            return None

    async def pass_over(self) -> int:
        """Wait for a while, and drop what has come until then; gives its bytes.

        Raises anyio.EndOfStream, anyio.ClosedResourceError.
        """
        await anyio.sleep(self.pause)
        while (dropped := self.drop()) is None:
            await anyio.wait_readable(self._descriptor)
        if not dropped:
            raise anyio.EndOfStream
        return dropped

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


def _widen(descriptor: int) -> int:
    """Give a pipe room; returns how many bytes it has now. A user may have only so much in all."""
    import fcntl  # not on every machine that imports this

    for width in _WIDTHS:
        with contextlib.suppress(OSError):
            return fcntl.fcntl(descriptor, _SET_PIPE_SIZE, width)
    return fcntl.fcntl(descriptor, _GET_PIPE_SIZE)


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
