"""The owner's end of a sandbox's terminal."""

from __future__ import annotations

import errno
import os
import signal
import struct

import anyio
from anyio.abc import ByteReceiveStream

from ms_enclave.channel.process import Terminal
from ms_enclave.spawner.pipes import PipeReader, PipeWriter

__all__ = ["HostTerminal", "NothingReader"]

_SET_SIZE, _SIGNAL = 0x5414, 0x40045436  # TIOCSWINSZ, TIOCSIG


class HostTerminal(Terminal):
    """Masters one terminal; owns both descriptors that it is made with.

    Args:
        master: the end that masters it.
        other: the end for the program. Where it is the program's standard streams it is closed by
            `close_other`.
    """

    def __init__(self, master: int, other: int) -> None:
        self.other = other
        self.output = self.reader = TerminalReader(master)
        self.input = PipeWriter(os.dup(master))

    def set_size(self, rows: int, cols: int) -> None:
        """What `resize` does, at once."""
        self._control(_SET_SIZE, struct.pack("HHHH", rows, cols, 0, 0))

    async def resize(self, rows: int, cols: int) -> None:
        if self.reader.fileno() >= 0:
            self.set_size(rows, cols)

    async def interrupt(self) -> None:
        if self.reader.fileno() >= 0:
            self._control(_SIGNAL, int(signal.SIGINT))

    def _control(self, request: int, argument: bytes | int) -> None:
        import fcntl  # only where there are terminals

        fcntl.ioctl(self.reader.fileno(), request, argument)

    def close_other(self) -> None:
        """Close the program's end here, or reading would never end. Idempotent."""
        other, self.other = self.other, -1
        if other >= 0:
            os.close(other)

    async def aclose(self) -> None:
        """Hang up. Idempotent."""
        self.close_other()
        await self.input.aclose()
        await self.reader.aclose()


class TerminalReader(PipeReader):
    """What is written to the terminal. When nobody has it any more, that is an error there."""

    drops = False

    def take(self, max_bytes: int = 1 << 16) -> bytes | None:
        try:
            return super().take(max_bytes)
        except OSError as error:
            if error.errno == errno.EIO:
                return b""
            raise

    async def receive(self, max_bytes: int = 1 << 16) -> bytes:
        try:
            return await super().receive(max_bytes)
        except OSError as error:
            if error.errno == errno.EIO:
                raise anyio.EndOfStream from None
            raise


class NothingReader(ByteReceiveStream):
    """The standard error of a program that has a terminal: that is where it goes."""

    def fileno(self) -> int:
        """There is nothing to watch."""
        return -1

    def take(self, max_bytes: int = 1 << 16) -> bytes:
        """Its end."""
        del max_bytes
        return b""

    def close(self) -> None:
        """Nothing to do."""

    async def receive(self, max_bytes: int = 1 << 16) -> bytes:
        del max_bytes
        raise anyio.EndOfStream

    async def aclose(self) -> None:
        """Nothing to do."""
