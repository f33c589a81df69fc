"""What a kernel says, made of frames and checked: nothing of it is trusted.

Pure: bytes in, statements out. A statement that is too long is not held, only counted.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, cast

from ms_enclave.channel._connection import ProtocolError
from ms_enclave.errors import ConfigError
from ms_enclave.guest import protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MESSAGE_TYPES",
    "KernelDecoder",
    "Message",
    "Output",
    "Result",
    "encode_end_of_input",
    "encode_input",
    "encode_request",
    "error_of",
    "new_number",
]

MESSAGE_TYPES = frozenset({
    "execute_result", "display_data", "update_display_data", "clear_output", "error",
    "input_request",
})  # fmt: skip
_DEEPEST = 100
_STREAMS = {protocol.STDOUT: "stdout", protocol.STDERR: "stderr"}


@dataclass(frozen=True)
class Output:
    """Bytes that a cell printed."""

    call: int
    stream: str
    data: bytes


@dataclass(frozen=True)
class Message:
    """A message of Jupyter's that a cell caused."""

    call: int
    type: str
    content: dict[str, Any]
    size: int
    """Bytes that it took on the channel; those that were too many to be held, with no content."""


@dataclass(frozen=True)
class Result:
    """The kernel says that a request is done."""

    call: int
    body: dict[str, Any]


class KernelDecoder:
    """Bytes of a kernel's to what it says.

    Args:
        most: bytes that one message may have.
    """

    def __init__(self, most: int) -> None:
        self.greeting: dict[str, Any] | None = None
        self._most = most
        self._frames = protocol.Decoder()
        self._unfinished = bytearray()
        self._lost = 0

    def feed(self, data: bytes) -> Iterator[Output | Message | Result]:
        """What is complete with these bytes.

        Raises:
            ProtocolError: the bytes are nothing that a kernel of ours says.
        """
        try:
            for kind, channel, call, payload in self._frames.feed(data):
                if kind == protocol.DATA and channel in _STREAMS:
                    yield Output(call, _STREAMS[channel], payload)
                elif kind == protocol.HELLO and self.greeting is None:
                    self.greeting = _load(payload)
                elif kind in (protocol.EVENT, protocol.RESULT):
                    yield from self._take(kind, channel, call, payload)
                else:
                    _refuse(kind)
        except protocol.FrameError as error:
            raise ProtocolError(f"The kernel broke the protocol: {error}") from None

    def _take(self, kind: int, more: int, call: int, payload: bytes) -> Iterator[Message | Result]:
        if len(self._unfinished) + len(payload) > self._most:
            self._lost += len(self._unfinished) + len(payload)
            self._unfinished.clear()
        elif self._lost:
            self._lost += len(payload)
        else:
            self._unfinished += payload
        if more:
            return
        text, lost = bytes(self._unfinished), self._lost
        self._unfinished.clear()
        self._lost = 0
        if kind == protocol.RESULT:
            yield Result(call, _load(text) if not lost else {})
        elif lost:
            yield Message(call, "", {}, lost)
        else:
            yield _message(call, _load(text), len(text))


def _refuse(kind: int) -> NoReturn:
    raise protocol.FrameError(f"a frame of kind {kind} from a kernel")


def _message(call: int, body: dict[str, Any], size: int) -> Message:
    kind, content = body.get("type"), body.get("content")
    if kind not in MESSAGE_TYPES or not isinstance(content, dict):
        raise protocol.FrameError("a message of a type that there is not")
    return Message(
        call, cast("str", kind), _CHECKS[cast("str", kind)](cast("dict[str, Any]", content)), size
    )


def _load(payload: bytes) -> dict[str, Any]:
    try:
        body = json.loads(payload, parse_constant=lambda _name: None)
        if b"\\u" in payload or payload.count(b"[") + payload.count(b"{") > _DEEPEST:
            body = _bounded(body, _DEEPEST)
    except (ValueError, RecursionError) as error:
        raise protocol.FrameError(f"not JSON: {error}") from None
    if not isinstance(body, dict):
        raise protocol.FrameError("JSON, but no object")
    return cast("dict[str, Any]", body)


def _bounded(value: Any, levels: int) -> Any:
    """A JSON value whose text can be written down again, and which is not nested without end."""
    if isinstance(value, str):
        return value if value.isascii() else _clean(value)
    if not levels:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return {_bounded(name, levels): _bounded(item, levels - 1) for name, item in pairs}
    if isinstance(value, list):
        return [_bounded(item, levels - 1) for item in cast("list[Any]", value)]
    return value


def _clean(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --- shapes ---


def _text(content: dict[Any, Any], name: str) -> str:
    value = content.get(name, "")
    return value if isinstance(value, str) else str(value)


def _object(content: dict[Any, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _display(content: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "data": _object(content, "data"),
        "metadata": _object(content, "metadata"),
        "transient": _object(content, "transient"),
    }
    return shown | _lost(content)


def _result(content: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "execution_count": _count(content.get("execution_count")),
        "data": _object(content, "data"),
        "metadata": _object(content, "metadata"),
    }
    return shown | _lost(content)


def _lost(content: dict[str, Any]) -> dict[str, int]:
    lost = content.get("lost")
    return {"lost": lost} if isinstance(lost, int) and 0 < lost < 1 << 50 else {}


def _count(value: Any) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31
    return value if good else 0


def error_of(content: dict[str, Any]) -> dict[str, Any]:
    """An error in Jupyter's shape, whatever a kernel put there."""
    trace = content.get("traceback")
    lines = cast("list[Any]", trace) if isinstance(trace, list) else []
    return {
        "ename": _text(content, "ename"),
        "evalue": _text(content, "evalue"),
        "traceback": [line for line in lines if isinstance(line, str)],
    }


def _clear(content: dict[str, Any]) -> dict[str, Any]:
    return {"wait": content.get("wait") is True}


def _question(content: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": _text(content, "prompt"), "password": content.get("password") is True}


_CHECKS = {
    "execute_result": _result,
    "display_data": _display,
    "update_display_data": _display,
    "clear_output": _clear,
    "error": error_of,
    "input_request": _question,
}

# --- to a kernel ---

_system = random.SystemRandom()


def new_number() -> int:
    """A number for a request, which no cell before it could have known."""
    return _system.randrange(1, protocol.MAX_CALL)


def encode_request(number: int, body: dict[str, Any]) -> bytes:
    """A request as it is sent.

    Raises:
        ConfigError: it is longer than one may be.
    """
    try:
        return b"".join(protocol.encode_request(number, body))
    except protocol.FrameError:
        limit = protocol.MAX_BODY >> 20
        raise ConfigError(f"More than {limit} MiB: too long for one cell") from None


def encode_input(number: int, text: str) -> bytes:
    """An answer to `input`."""
    data = text.encode("utf-8", "replace")[: protocol.MAX_PAYLOAD]
    return protocol.encode(protocol.DATA, number, data)


def encode_end_of_input(number: int) -> bytes:
    """Nobody answers any more."""
    return protocol.encode(protocol.END, number)
