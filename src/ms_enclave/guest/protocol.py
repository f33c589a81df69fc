"""The frames between a guest and its host: a codec without I/O, written once for both ends.

A frame is a header (magic, kind, channel, call id, payload length) and at most 64 KiB of payload.
The host opens calls (REQUEST), the guest ends each with one RESULT or ERROR. In between, raw bytes
flow as DATA on the channels of the call, each channel and direction with a credit of its own: who
receives grants credit (CREDIT) as it consumes, so neither end ever holds more than a window a
channel, and a slow reader of one call holds up no other.

| kind    | from  | payload                                                              |
|---------|-------|----------------------------------------------------------------------|
| HELLO   | both  | JSON with `version`; the first frame each way, call 0                |
| REQUEST | host  | JSON with `op`; channel 1: a further REQUEST frame continues the JSON |
| RESULT  | guest | JSON, the end of a call                                              |
| ERROR   | guest | JSON, the end of a call                                              |
| EVENT   | guest | JSON, something the host should know before the end                  |
| DATA    | both  | bytes                                                                |
| END     | both  | nothing: no more DATA on this channel                                |
| CREDIT  | both  | four bytes: how much more DATA may be sent on this channel           |
| CANCEL  | host  | nothing: end this call soon; it is still ended by RESULT or ERROR    |
"""

from __future__ import annotations

import json
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Tuple

    Frame = Tuple[int, int, int, bytes]
    Body = Dict[str, Any]

__all__ = [
    "CANCEL",
    "CREDIT",
    "DATA",
    "END",
    "ERROR",
    "EVENT",
    "HELLO",
    "MAX_BODY",
    "MAX_CALL",
    "MAX_CHANNEL",
    "MAX_PAYLOAD",
    "REQUEST",
    "RESULT",
    "STDERR",
    "STDIN",
    "STDOUT",
    "TERMINAL",
    "VERSION",
    "WIDE_WINDOW",
    "WINDOW",
    "Decoder",
    "FrameError",
    "ReceiveWindow",
    "SendWindow",
    "dump",
    "encode",
    "encode_credit",
    "encode_request",
    "load",
    "load_body",
    "load_credit",
]

VERSION = 1

HELLO, REQUEST, RESULT, ERROR, EVENT, DATA, END, CREDIT, CANCEL = range(1, 10)

STDIN, STDOUT, STDERR, TERMINAL = 0, 1, 2, 3
"""Channels of a spawned program; every other call has only channel 0."""

MAX_PAYLOAD = 1 << 16
MAX_BODY = 8 << 20
"""Bytes of JSON that a request may have over all its frames."""

MAX_CHANNEL = 3
MAX_CALL = 0xFFFFFFFF

WINDOW = 1 << 18
"""Bytes that may be under way on one channel in one direction. More than two payloads, so that a
full frame can be sent when half of the window has been granted again."""

WIDE_WINDOW = 1 << 20
"""The same for a call whose request says `wide`: who moves gigabytes waits less often."""

_MAGIC = b"mE"
_HEADER = struct.Struct("!2sBBII")
_CREDIT = struct.Struct("!I")
_EMPTY = (END, CANCEL)


class FrameError(ValueError):
    """The other end broke the protocol; nothing it sends from then on has a meaning."""


def encode(kind: int, call: int, payload: bytes = b"", channel: int = 0) -> bytes:
    """One frame as bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise FrameError(f"a frame of {len(payload)} bytes")
    return _HEADER.pack(_MAGIC, kind, channel, call, len(payload)) + payload


def encode_credit(call: int, amount: int, channel: int = 0) -> bytes:
    return encode(CREDIT, call, _CREDIT.pack(amount), channel)


def encode_request(call: int, body: Body) -> list[bytes]:
    """The frames of a request, which may be longer than one.

    Raises:
        FrameError: it is longer than a request may be.
    """
    text = dump(body)
    if len(text) > MAX_BODY:
        raise FrameError(f"a request of {len(text)} bytes")
    starts = range(0, len(text), MAX_PAYLOAD)
    return [
        encode(REQUEST, call, text[start : start + MAX_PAYLOAD], int(start != starts[-1]))
        for start in starts
    ]


def dump(body: object) -> bytes:
    """JSON in ASCII; file names that are no text survive as lone surrogates."""
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode("ascii")


def load_body(payload: bytes) -> Body:
    """The JSON object of a payload.

    Raises:
        FrameError: it is none.
    """
    body: Any = load(payload)
    if not isinstance(body, dict):
        raise FrameError("JSON, but no object")
    return body  # pyright: ignore[reportUnknownVariableType] - its keys are text, as JSON has it


def load(payload: bytes) -> object:
    """The value of a JSON payload.

    Raises:
        FrameError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(payload.decode("ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"not JSON: {error}") from None


def load_credit(payload: bytes) -> int:
    return int(_CREDIT.unpack(payload)[0])


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


class Decoder:
    """Bytes to frames. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Frame]:
        """All frames that are complete with these bytes.

        Raises:
            FrameError: the bytes are no frames. The decoder is of no use after that.
        """
        if self._buffer:
            data = self._buffer + data
        frames: list[Frame] = []
        start = 0
        while len(data) - start >= _HEADER.size:
            magic, kind, channel, call, length = _HEADER.unpack_from(data, start)
            _check_header(magic, kind, channel, call, length)
            end = start + _HEADER.size + length
            if end > len(data):
                break
            frames.append((kind, channel, call, data[start + _HEADER.size : end]))
            start = end
        self._buffer = data[start:]
        return frames


def _check_header(magic: bytes, kind: int, channel: int, call: int, length: int) -> None:
    if magic != _MAGIC:
        raise FrameError(f"not a frame: {magic!r}")
    if not HELLO <= kind <= CANCEL:
        raise FrameError(f"a frame of unknown kind {kind}")
    if channel > MAX_CHANNEL:
        raise FrameError(f"a frame on channel {channel}")
    if (call == 0) != (kind == HELLO):
        raise FrameError(f"a frame of kind {kind} for call {call}")
    if length > MAX_PAYLOAD:
        raise FrameError(f"a frame of {length} bytes")
    if (kind in _EMPTY and length) or (kind == CREDIT and length != _CREDIT.size):
        raise FrameError(f"a frame of kind {kind} with {length} bytes")


class SendWindow:
    """What may still be sent on one channel."""

    __slots__ = ("_size", "credit")

    def __init__(self, size: int = WINDOW) -> None:
        self._size = self.credit = size

    def take(self, amount: int) -> None:
        if amount > self.credit:
            raise FrameError("more was sent than the other end takes")
        self.credit -= amount

    def grant(self, amount: int) -> None:
        """The other end takes more.

        Raises:
            FrameError: more than it ever could have taken.
        """
        if amount == 0 or amount > self._size - self.credit:
            raise FrameError(f"a credit of {amount} bytes")
        self.credit += amount


class ReceiveWindow:
    """What the other end may still send on one channel, and when to grant more."""

    __slots__ = ("_consumed", "_open", "_size", "ended")

    def __init__(self, size: int = WINDOW) -> None:
        self._size = self._open = size
        self._consumed = 0
        self.ended = False

    def receive(self, amount: int) -> None:
        """The other end has sent bytes.

        Raises:
            FrameError: more than it may, or after its END.
        """
        if self.ended:
            raise FrameError("data after the end")
        if amount > self._open:
            raise FrameError("more data than was asked for")
        self._open -= amount

    def end(self) -> None:
        if self.ended:
            raise FrameError("a second end")
        self.ended = True

    @property
    def is_half_full(self) -> bool:
        """Whether the other end may send no more than half of the window."""
        return self._open <= self._size // 2

    def consume(self, amount: int) -> int:
        """Bytes were used up; gives the credit to send now, or 0: not for every few bytes."""
        self._consumed += amount
        if self.ended or self._consumed < self._size // 2:
            return 0
        granted, self._consumed = self._consumed, 0
        self._open += granted
        return granted
