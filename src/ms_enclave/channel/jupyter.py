"""Jupyter's messages to what a kernel of ours says, and requests of ours to Jupyter's messages.

Pure: who reads frames of a kernel can so read a kernel of Jupyter's, and nothing else has to know
that there are two. What comes is hostile: a message that is no answer to a request of this host's
counts for nothing, and one of a shape that there is not breaks the protocol.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, cast

from ms_enclave.channel._connection import ProtocolError
from ms_enclave.guest import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Translator"]

_SHOWN = frozenset({
    "execute_result", "display_data", "update_display_data", "clear_output", "error",
})  # fmt: skip
_ASKED = {"complete": "complete", "inspect": "inspect", "is_complete": "is_complete"}
_STREAMS = {"stdout": protocol.STDOUT, "stderr": protocol.STDERR}
_PIECE = protocol.MAX_PAYLOAD
_LOST = "ms-enclave-lost"
_DOUBT = "doubt"
_MOST_OF_ERROR, _MOST_LINES = 1 << 18, 1000
"""Characters and entries of a traceback that are handed on."""


class Translator:
    """One kernel's messages, from its greeting to its end."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(16)
        self._frames = protocol.Decoder()
        self._request = b""
        self._number = 0
        """Of the request that is being done, or was last."""
        self._operation = ""
        self._reply: dict[str, Any] | None = None
        self._is_idle = False
        self._asked: dict[str, Any] | None = None
        """The header of the question that waits for an answer."""
        self._is_doubted = False
        """Whether the kernel was asked if it has forgotten the request."""
        self.has_begun = True
        """Whether the kernel has said that it is at the request: an interrupt before is lost."""
        self.has_greeted = False
        self._refused = b""

    @property
    def session(self) -> str:
        """What the host's end is known by."""
        return self._nonce

    def greeting(self) -> str:
        """What to ask a new kernel; its answer is its greeting."""
        return self._message("kernel_info_request", {}, "hello")

    # --- to the kernel ---

    def requests(self, data: bytes) -> list[str]:
        """The messages for frames to a kernel of ours."""
        return [
            message
            for kind, more, number, payload in self._frames.feed(data)
            if (message := self._translate(kind, more, number, payload)) is not None
        ]

    def _translate(self, kind: int, more: int, number: int, payload: bytes) -> str | None:
        if kind == protocol.DATA:
            asked, self._asked = self._asked, None
            if asked is None or number != self._number:
                return None
            value = payload.decode("utf-8", "replace")
            return self._message("input_reply", {"value": value}, "input", asked, "stdin")
        if kind != protocol.REQUEST:
            return None
        self._request += payload
        if more:
            return None
        body, self._request = protocol.load_body(self._request), b""
        self._number, self._operation = number, str(body.get("op"))
        self._reply, self._is_idle, self._asked = None, False, None
        self._is_doubted = False
        if not _is_text(body.get("code", "")):
            self._refused += _refusal(number)
            return None
        self.has_begun = False
        return self._message(f"{self._operation}_request", _content(body), str(number))

    @property
    def is_in_doubt(self) -> bool:
        """Whether the kernel is done with a request that it has not answered: the answer may be on
        its way, which is another than that of the news, or an interrupt has met the kernel before
        or after the code; then ipykernel gives none."""
        return self._is_idle and self._reply is None and not self._is_doubted

    def doubt(self) -> str | None:
        """What to ask a kernel to know that no answer will come any more; None where that is known.

        It answers on the way that its other answers take, and in their order.
        """
        if not self.is_in_doubt:
            return None
        self._is_doubted = True
        return self._message("kernel_info_request", {}, f"{_DOUBT}{self._number}")

    def take_refused(self) -> bytes:
        """Frames that answer requests which no message can hold."""
        refused, self._refused = self._refused, b""
        return refused

    def _message(
        self, kind: str, content: dict[str, Any], name: str, parent: dict[str, Any] | None = None,
        channel: str = "shell",
    ) -> str:  # fmt: skip
        header = {
            "msg_id": f"{self._nonce}_{name}",
            "msg_type": kind,
            "session": self._nonce,
            "username": "",
            "version": "5.3",
        }
        body: dict[str, Any] = {
            "header": header,
            "parent_header": parent or {},
            "metadata": {},
            "content": content,
            "channel": channel,
            "buffers": [],
        }
        return json.dumps(body)

    # --- from the kernel ---

    def take(self, text: str | bytes) -> bytes:
        """The frames for a message; none for one that says nothing of a request.

        Raises:
            ProtocolError: it is none.
        """
        try:
            body = json.loads(text)
            header, parent = body["header"], body["parent_header"]
            kind, content = header["msg_type"], body["content"]
            asked = parent.get("msg_id")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ProtocolError("The kernel sent no message of Jupyter's") from None
        name = _name(asked, self._nonce)
        if name is None or not isinstance(content, dict) or not isinstance(kind, str):
            return b""
        said = cast("dict[str, Any]", content)
        if name == "hello":
            if kind != "kernel_info_reply" or self.has_greeted:
                return b""
            self.has_greeted = True
            return _greeting(said)
        if name == f"{_DOUBT}{self._number}":
            return self._take_forgotten(kind, said)
        if not (name.isascii() and name.isdigit()) or len(name) > 10:
            return b""
        if not 0 < int(name) <= protocol.MAX_CALL:
            return b""
        return self._take_of(int(name), kind, said, header)

    def _take_of(
        self, number: int, kind: str, said: dict[str, Any], header: dict[str, Any]
    ) -> bytes:
        """What is about a request that this host has made."""
        if kind == "stream":
            return _stream(number, said)
        if number != self._number or (self._reply is not None and self._is_idle):
            return b""
        self.has_begun = self.has_begun or kind != "status"
        if kind == "input_request":
            self._asked = header
            return _event(number, kind, said)
        if kind in _SHOWN:
            return _event(number, kind, _shown(kind, said))
        return self._take_end(number, kind, said)

    def _take_end(self, number: int, kind: str, content: dict[str, Any]) -> bytes:
        if kind == f"{self._operation}_reply":
            self._reply = content
            self._is_idle = self._is_idle or self._operation in _ASKED
        elif kind == "status" and content.get("execution_state") == "idle":
            self._is_idle = True
        else:
            return b""
        if self._reply is None or not self._is_idle:
            return b""
        return _framed(protocol.RESULT, number, _clipped(self._reply))

    def _take_forgotten(self, kind: str, content: dict[str, Any]) -> bytes:
        """What is about a doubt. After its answer there will be none to the request itself."""
        if kind == "status" and content.get("execution_state") == "idle":
            self._is_doubted = False  # it, too, may have been interrupted
        if kind != "kernel_info_reply" or not self._is_idle or self._reply is not None:
            return b""
        self._reply = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
        return _failure(self._number, self._reply)


def _is_text(code: Any) -> bool:
    try:
        str(code).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(number: int) -> bytes:
    error: dict[str, Any] = {
        "ename": "UnicodeEncodeError",
        "evalue": "surrogates not allowed",
        "traceback": [],
    }
    return _failure(number, error)


def _failure(number: int, error: dict[str, Any]) -> bytes:
    return _event(number, "error", error) + _framed(
        protocol.RESULT, number, {"status": "error", **error}
    )


def _name(asked: Any, nonce: str) -> str | None:
    """Which request of this host's a message is about."""
    if not isinstance(asked, str) or not asked.startswith(f"{nonce}_"):
        return None
    return asked[len(nonce) + 1 :]


_DEFAULTS: dict[str, tuple[tuple[str, Callable[[Any], Any]], ...]] = {
    "complete": (("code", str), ("cursor_pos", int)),
    "inspect": (("code", str), ("cursor_pos", int), ("detail_level", int)),
    "is_complete": (("code", str),),
}


def _content(body: dict[str, Any]) -> dict[str, Any]:
    operation = str(body.get("op"))
    if operation != "execute":
        fields = _DEFAULTS.get(operation, ())
        return {
            name: make(body.get(name) or 0) if make is int else body.get(name, "")
            for name, make in fields
        }
    return {
        "code": body["code"],
        "silent": bool(body.get("silent")),
        "store_history": bool(body.get("store_history", True)),
        "user_expressions": body.get("user_expressions") or {},
        "allow_stdin": bool(body.get("allow_stdin")),
        "stop_on_error": False,
    }


def _greeting(content: dict[str, Any]) -> bytes:
    language = content.get("language_info")
    known = cast("dict[str, Any]", language) if isinstance(language, dict) else {}
    facts = {
        "implementation": str(content.get("implementation", ""))[:100],
        "implementation_version": str(content.get("implementation_version", ""))[:100],
        "python": str(known.get("version", ""))[:100],
        "version": protocol.VERSION,
    }
    return protocol.encode(protocol.HELLO, 0, protocol.dump(facts))


def _stream(number: int, content: dict[str, Any]) -> bytes:
    channel, text = _STREAMS.get(str(content.get("name"))), content.get("text")
    if channel is None or not isinstance(text, str):
        return b""
    data = text.encode("utf-8", "replace")
    return b"".join(
        protocol.encode(protocol.DATA, number, data[start : start + _PIECE], channel)
        for start in range(0, len(data), _PIECE)
    )


def _shown(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    if kind == "error":
        return _clipped(content)
    metadata = content.get("metadata")
    if not isinstance(metadata, dict) or _LOST not in metadata:
        return content
    rest = dict(cast("dict[str, Any]", metadata))
    return {**content, "lost": rest.pop(_LOST), "metadata": rest}


def _clipped(body: dict[str, Any]) -> dict[str, Any]:
    """A body with no more of an error than somebody could read."""
    trace = body.get("traceback")
    if not isinstance(trace, list):
        return body
    lines: list[str] = []
    room = _MOST_OF_ERROR
    for line in cast("list[Any]", trace)[:_MOST_LINES]:
        if isinstance(line, str):
            lines.append(line[:room])
            room = max(0, room - len(line))
    return {**body, "traceback": lines, "evalue": str(body.get("evalue", ""))[:_MOST_OF_ERROR]}


def _event(number: int, kind: str, content: dict[str, Any]) -> bytes:
    return _framed(protocol.EVENT, number, {"type": kind, "content": content})


def _framed(kind: int, number: int, body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    starts = range(0, len(text), _PIECE)
    return b"".join(
        protocol.encode(kind, number, text[start : start + _PIECE], int(start != starts[-1]))
        for start in starts
    )
