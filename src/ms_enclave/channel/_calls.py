"""What every part of the host's end of a guest shares: how a call is made, how answers are checked.

What is inside is hostile. Nothing it says becomes a path, an import or a class here: errors go
through a closed table, texts are cut and quoted, figures are checked.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from ms_enclave.channel._connection import CallFailed
from ms_enclave.errors import ConfigError
from ms_enclave.guest import protocol

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncGenerator, AsyncIterable, Generator
    from contextlib import AbstractContextManager

    from ms_enclave.channel._connection import Call, Connection

__all__ = [
    "INT64",
    "GuestCalls",
    "clean",
    "failures",
    "joined",
    "load_page",
    "number_in",
    "relative",
    "seconds_in",
]

_SHOWN = 4096
_MOVES_MUCH = frozenset({"read", "write", "get_archive", "put_archive"})
INT64 = 1 << 63

_ERRNOS = frozenset(
    {
        errno.EACCES, errno.EAGAIN, errno.EBUSY, errno.EDQUOT, errno.EEXIST, errno.EFBIG,
        errno.EINVAL, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.EMLINK,
        errno.ENAMETOOLONG, errno.ENFILE, errno.ENODEV, errno.ENOENT, errno.ENOMEM, errno.ENOSPC,
        errno.ENOSYS, errno.ENOTDIR, errno.ENOTEMPTY, errno.ENXIO, errno.EOVERFLOW, errno.EPERM,
        errno.EROFS, errno.ETXTBSY, errno.EXDEV,
    }
)  # fmt: skip
"""What a file operation may fail with; anything else is an input/output error. A guest must not
choose freely: `OSError` makes time-outs and lost connections out of some numbers."""


class GuestCalls:
    """Makes the calls of one connection. A part of `GuestConnection`, which has several."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _open(self, operation: str, **body: Any) -> Call:
        try:
            return await self._connection.open(
                {"op": operation, **body}, wide=operation in _MOVES_MUCH
            )
        except protocol.FrameError:
            limit = protocol.MAX_BODY >> 20
            raise ConfigError(f"More than {limit} MiB: too long for one request") from None

    async def _ask(self, operation: str, about: str, **body: Any) -> dict[str, Any]:
        with self._failures(about):
            call = await self._open(operation, **body)
            try:
                return await call.result()
            finally:
                call.close()

    async def _upload(
        self, operation: str, data: bytes | AsyncIterable[bytes], about: str, **body: Any
    ) -> dict[str, Any]:
        with self._failures(about):
            call = await self._open(operation, **body)
            try:
                if isinstance(data, bytes):
                    await call.send(data)
                else:
                    async for chunk in data:
                        if not await call.send(bytes(chunk)):
                            break  # it failed, and says why
                call.send_end()
                return await call.result()
            finally:
                call.close()

    async def _pages(
        self, operation: str, path: str, limit: int, **body: Any
    ) -> AsyncGenerator[builtins.list[Any], None]:
        """Entries of a result that comes in pages; never more than were asked for."""
        with self._failures(path):
            call = await self._open(operation, path=path, limit=limit, **body)
            try:
                while data := await call.receive_page():
                    page = load_page(data)
                    limit -= len(page)
                    if limit < 0:
                        raise protocol.FrameError("more results than were asked for")
                    for entry in page:
                        yield entry
                await call.result()
            finally:
                call.close()

    def _failures(self, about: str) -> AbstractContextManager[None]:
        return failures(self._connection, about)


@contextmanager
def failures(connection: Connection, about: str) -> Generator[None]:
    """Turn a failed call into the exception for it, with the caller's own path.

    What a guest cannot have meant ends the connection: nothing else it says can be relied on.
    """
    try:
        yield
    except CallFailed as failed:
        raise _exception(failed.body, about) from None
    except protocol.FrameError as error:
        raise connection.broken(error) from error


def _exception(body: dict[str, Any], about: str) -> Exception:
    refused = body.get("refused")
    if refused is not None:
        return ConfigError(f"The sandbox refused: {clean(str(refused))[:1000]!s}")
    number = body.get("errno")
    if not isinstance(number, int) or number not in _ERRNOS:
        number = errno.EIO
    text = "not a plain file" if body.get("special") is True else os.strerror(number)
    return OSError(number, text, about) if about else OSError(number, text)


def clean(text: str) -> str:
    """Text of a guest's without what cannot be written down, and not endless."""
    text = text[:_SHOWN]
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def number_in(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < INT64:
        raise protocol.FrameError(f"a {name} that is no number")
    return value


def seconds_in(body: dict[str, Any], name: str) -> float:
    value = body.get(name)
    if not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise protocol.FrameError(f"a {name} that is no time")
    return float(value)


def load_page(data: bytes) -> list[list[Any]]:
    page = protocol.load(data)
    if not isinstance(page, list):
        raise protocol.FrameError("a page of results that is none")
    entries = cast("list[Any]", page)
    for entry in entries:
        if not isinstance(entry, list) or not entry:
            raise protocol.FrameError("a page of results that is none")
    return entries


def relative(name: object) -> str:
    """A path below a folder. Whoever joins it to a folder of their own must stay below that."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise protocol.FrameError("a file name that is none")
    return clean("/".join(parts))


def joined(folder: str, name: str) -> str:
    folder = folder.rstrip("/") or "/" * folder.startswith("/")
    if folder in ("", "."):
        return name
    return f"{folder}{'' if folder.endswith('/') else '/'}{name}"
