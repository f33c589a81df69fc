"""Commands that live on: how they are described, and their output as it is read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ms_enclave.model.results import UtcTime

__all__ = ["CommandInfo", "OutputChunk", "OutputEvent"]

_BYTES = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
"""What a program prints is any bytes: as JSON they are base64."""


class OutputEvent(BaseModel, defer_build=True):
    """Some of what a command printed."""

    model_config = _BYTES

    stream: Literal["stdout", "stderr", "pty"]
    data: bytes
    cursor: int
    """Where to go on after it: bytes that the command has printed up to its end, on all streams."""
    lost: int = 0
    """Bytes right before it that were asked for and are not there any more."""


class OutputChunk(BaseModel, defer_build=True):
    """What a command printed, from a cursor on, on all streams in the order in which it came."""

    model_config = _BYTES

    data: bytes
    cursor: int
    """Where to go on."""
    lost: int = 0
    """Bytes between the cursor that was asked for and the beginning of `data` that are not there
    any more."""
    eof: bool = False
    """The command has ended, and there is nothing beyond `cursor`."""


class CommandInfo(BaseModel, defer_build=True):
    """A command as its sandbox describes it."""

    id: str
    command: str | list[str]
    """As the caller gave it: a shell line or an argv."""
    tag: str | None = None
    pid: int
    """As seen inside."""
    pty: bool = False
    """Whether it has a terminal."""
    started_at: UtcTime
    returncode: int | None = None
    """None while it runs; then the exit code, as in `CommandResult`."""
    cursor: int = 0
    """Bytes that it has printed so far."""
