"""What client and server say to each other: names, errors as data, bytes as text, events. Pure.

Neither believes the other more than it must: a client makes exceptions out of a closed table of
ours and never looks up a name that a server sent; what it does not know is an `EnclaveError`.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import math
import os
import struct
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python

from ms_enclave import errors
from ms_enclave.errors import ConfigError, EnclaveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = [
    "CHUNK_LIMIT",
    "DEADLINE_HEADER",
    "IDEMPOTENCY_HEADER",
    "INTERNAL",
    "JSON",
    "JSON_LIMIT",
    "KEY_HEADER",
    "SSE",
    "STREAM",
    "UPLOAD_LIMIT",
    "V1",
    "EventReader",
    "FrameReader",
    "code_of",
    "codes_by_status",
    "decode_bytes",
    "decode_error",
    "dump",
    "encode_bytes",
    "encode_error",
    "encode_event",
    "encode_frame",
    "load",
    "read_deadline",
    "status_of",
]

V1 = "/v1"
KEY_HEADER = "x-api-key"
IDEMPOTENCY_HEADER = "idempotency-key"
DEADLINE_HEADER = "enclave-deadline"
"""Seconds that whoever asks is going to wait for the answer."""

JSON = "application/json"
SSE = "text/event-stream"
STREAM = "application/octet-stream"

JSON_LIMIT = 16 << 20
"""Bytes of a body that is not a stream."""
UPLOAD_LIMIT = 1 << 30
"""Bytes of a body that is one."""
CHUNK_LIMIT = 1 << 20
"""Bytes of one message on a connection to a port."""

INTERNAL = "internal"
OS_ERROR = "os_error"
TIMEOUT = "timeout"


# --- documents ---


def dump(value: Any) -> bytes:
    """JSON of data, or of one of our models.

    Raises:
        ConfigError: there is something in it that JSON cannot hold.
    """
    try:
        return to_json(value, inf_nan_mode="constants")  # what is wrong with those, the server says
    except (PydanticSerializationError, ValueError):
        pass
    try:  # half a character of UTF-16 has no bytes, but can be written down
        return json.dumps(to_jsonable_python(value, inf_nan_mode="constants")).encode()
    except (PydanticSerializationError, TypeError, ValueError) as error:
        raise ConfigError(f"this cannot be sent to a server: {error}") from None


def load(data: bytes | str) -> Any:
    """The data of JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        return from_json(data)
    except ValueError:
        pass
    try:
        return json.loads(data)  # which knows half characters
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def encode_bytes(data: bytes | bytearray | memoryview | None) -> str | None:
    """Bytes as they stand in a document."""
    return None if data is None else base64.b64encode(data).decode()


def decode_bytes(text: str | None) -> bytes | None:
    """The bytes of it.

    Raises:
        ConfigError: it is no base64.
    """
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("bytes travel as base64, which this is not") from None


# --- errors ---


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float:
    wrong = isinstance(value, bool) or not isinstance(value, (int, float))
    return 0.0 if wrong or not math.isfinite(value) else value


def _maybe_number(value: Any) -> float | None:
    return None if value is None else _number(value)


def _whole(value: Any) -> int:
    return int(_number(value))


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list):
        return []
    return [item for item in cast("list[Any]", value) if isinstance(item, str)]


def _texts_for_good(value: Any) -> tuple[str, ...]:
    return tuple(_texts(value))


_KINDS: Mapping[str, type[EnclaveError]] = {
    kind.code: kind
    for kind in (cast("type[EnclaveError]", getattr(errors, name)) for name in errors.__all__)
}

_DETAILS: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    errors.SandboxNotFoundError.code: {"sandbox_id": _text},
    errors.CommandNotFoundError.code: {"command_id": _text},
    errors.CapabilityError.code: {"capability": _text, "available_in": _texts_for_good},
    errors.IsolationUnavailableError.code: {"missing": _texts},
    errors.PoolTimeoutError.code: {"timeout": _number},
    errors.QuotaExceededError.code: {"retry_after": _maybe_number},
    errors.PortRefusedError.code: {"port": _whole},
    errors.PortTimeoutError.code: {"port": _whole, "timeout": _number},
    errors.ForkRefusedError.code: {"blockers": _texts},
    errors.SnapshotNotFoundError.code: {"name": _text},
}
"""What an error has besides its words, and what that must be."""

_OF_THE_SYSTEM: Mapping[int, int] = {
    errno.ENOENT: 404, errno.EEXIST: 409, errno.EACCES: 403, errno.EPERM: 403,
    errno.ENOSPC: 507, errno.EDQUOT: 507, errno.EFBIG: 413, errno.ENAMETOOLONG: 400,
    errno.EAGAIN: 429, errno.EMFILE: 429, errno.ECONNRESET: 502,
}  # fmt: skip
"""Statuses of errors of the sandbox's own file system; the others are conflicts."""


def encode_error(error: BaseException) -> dict[str, Any]:
    """An error as data. What is neither ours nor a file system's says nothing of itself."""
    if isinstance(error, EnclaveError):
        data: dict[str, Any] = {"code": error.code, "message": error.message}
        if error.remedy:
            data["remedy"] = error.remedy
        for name in _DETAILS.get(error.code, {}):
            data[name] = getattr(error, name, None)
        return data
    if isinstance(error, OSError) and error.errno is not None:
        data = {"code": OS_ERROR, "errno": errno.errorcode.get(error.errno, "EIO")}
        data["message"] = error.strerror or os.strerror(error.errno)
        if isinstance(error.filename, str):
            data["path"] = error.filename
        return data
    if isinstance(error, TimeoutError):
        return {"code": TIMEOUT, "message": str(error)}
    return {"code": INTERNAL, "message": "a fault in the server itself; its log says more"}


def code_of(error: BaseException) -> str:
    """The code that `encode_error` gives an error."""
    if isinstance(error, EnclaveError):
        return error.code
    if isinstance(error, OSError) and error.errno is not None:
        return OS_ERROR
    return TIMEOUT if isinstance(error, TimeoutError) else INTERNAL


def status_of(error: BaseException) -> int:
    """The HTTP status that an error goes out with."""
    if isinstance(error, EnclaveError):
        return error.http_status
    if isinstance(error, OSError) and error.errno is not None:
        return _OF_THE_SYSTEM.get(error.errno, 409)
    return 408 if isinstance(error, TimeoutError) else 500


def codes_by_status() -> dict[int, list[str]]:
    """The codes that an error may have, by the status that it goes out with."""
    found: dict[int, list[str]] = {}
    for code, kind in _KINDS.items():
        found.setdefault(kind.http_status, []).append(code)
    for status in {*_OF_THE_SYSTEM.values(), 409}:
        found.setdefault(status, []).append(OS_ERROR)
    found.setdefault(408, []).append(TIMEOUT)
    found.setdefault(500, []).append(INTERNAL)
    return found


def decode_error(data: Any, otherwise: str = "the server failed") -> Exception:
    """The exception of what `encode_error` made; an `EnclaveError` for what is none of ours.

    Args:
        otherwise: what to say of data that says nothing.
    """
    body = cast("dict[str, Any]", data) if isinstance(data, dict) else {}
    code, message = _text(body.get("code")), _text(body.get("message"))
    if code == OS_ERROR:
        return _os_error(body, message)
    if code == TIMEOUT:
        return TimeoutError(message)
    kind = _KINDS.get(code, EnclaveError)
    error = kind.__new__(kind)
    error.args = (message or otherwise,)
    error.message = message or otherwise
    error.remedy = _text(body.get("remedy")) or None
    for name, check in _DETAILS.get(kind.code, {}).items():
        setattr(error, name, check(body.get(name)))
    return error


def _os_error(body: Mapping[str, Any], message: str) -> OSError:
    name = _text(body.get("errno"))
    number = getattr(errno, name, None) if name in errno.errorcode.values() else None
    path = body.get("path")
    numbered = number if isinstance(number, int) else errno.EIO
    if isinstance(path, str):
        return OSError(numbered, message, path)
    return OSError(numbered, message)


# --- deadlines ---


def read_deadline(text: str) -> float:
    """The seconds of the header.

    Raises:
        ConfigError: it is no number of seconds.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds <= 0:
        raise ConfigError(f"{DEADLINE_HEADER} must be a number of seconds above 0")
    return seconds


# --- events ---


def encode_event(data: Any, name: str | None = None) -> bytes:
    """One server-sent event with JSON."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + (data if isinstance(data, bytes) else dump(data)) + b"\n\n"


class EventReader:
    """Takes a stream of server-sent events apart, wherever it is cut into pieces.

    Args:
        most: bytes that one event may have.
    """

    def __init__(self, most: int = 4 * JSON_LIMIT) -> None:
        self._most = most
        self._rest = bytearray()

    def feed(self, piece: bytes) -> Iterable[tuple[str, bytes]]:
        """The events that are whole now: name ("" for none) and data.

        Raises:
            EnclaveError: one is longer than it may be.
        """
        self._rest += piece
        if len(self._rest) > self._most:
            raise EnclaveError("the server sent an event that has no end")
        while (end := self._rest.find(b"\n\n")) >= 0:
            block = bytes(self._rest[:end])
            del self._rest[: end + 2]
            name, data = "", b""
            for line in block.split(b"\n"):
                if line.startswith(b"data: "):
                    data = line[6:]
                elif line.startswith(b"event: "):
                    name = line[7:].decode("ascii", "replace")
            if name or data:  # the others keep the connection awake
                yield name, data


# --- bytes that end in one of several ways ---

_LENGTH = struct.Struct(">I")


def encode_frame(data: bytes | None, error: BaseException | None = None) -> bytes:
    """Some bytes of a connection; or its end (None), with an error where that is why."""
    if data is not None:
        return _LENGTH.pack(len(data)) + data
    why = dump({} if error is None else encode_error(error))
    return _LENGTH.pack(0) + _LENGTH.pack(len(why)) + why


class FrameReader:
    """Takes frames apart, wherever they are cut into pieces. What `error` is tells how it ended."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self.ended = False
        self.error: Exception | None = None

    def feed(self, piece: bytes) -> Iterable[bytes]:
        """The bytes that are whole now."""
        self._rest += piece
        while not self.ended and (size := self._size()) is not None:
            if size == 0:
                self._end()
                return
            if len(self._rest) < 4 + size:
                return
            data = bytes(self._rest[4 : 4 + size])
            del self._rest[: 4 + size]
            yield data

    def _size(self, at: int = 0) -> int | None:
        return _LENGTH.unpack_from(self._rest, at)[0] if len(self._rest) >= at + 4 else None

    def _end(self) -> None:
        size = self._size(4)
        if size is None or len(self._rest) < 8 + size:
            return
        self.ended = True
        said = load(bytes(self._rest[8 : 8 + size]))
        self.error = decode_error(said) if said else None
