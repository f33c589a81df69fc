"""The files of one sandbox, through the guest that runs inside it.

Nothing here resolves a path on the host: a path is text until the guest opens it in the sandbox's
own view. What the host checks is only that it is a path at all.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from ms_enclave.boxes._inputs import validate_user
from ms_enclave.errors import ConfigError
from ms_enclave.loop import on_loop

if TYPE_CHECKING:
    import builtins
    from contextlib import AbstractAsyncContextManager

    from ms_enclave.channel.guest import GuestConnection
    from ms_enclave.model import FileEvent, FileInfo, SearchMatch

__all__ = ["Files", "across_loops", "collect", "validate_path"]

READ_LIMIT = 256 << 20
"""Bytes that one `read` may return; what is inside could otherwise fill the host's memory."""

LIST_LIMIT = 100_000
SEARCH_LIMIT = 1_000
_PATH_BYTES = 4096
_NAME_BYTES = 255

T = TypeVar("T")
Connect = Callable[["str | int | None"], "AbstractAsyncContextManager[GuestConnection]"]


class Stream(Protocol):
    """Pieces of something that a guest gives, each fetched when it is wanted."""

    def __call__(
        self,
        open_stream: Callable[[GuestConnection], AsyncIterator[T]],
        user: str | int | None = None,
        /,
        *,
        needs: str | None = None,
    ) -> AsyncGenerator[T, None]: ...


class Files:
    """Files of a running sandbox. Relative paths start at its working folder.

    It owns nothing: every call borrows the sandbox's guest for as long as it takes, ends with the
    sandbox and can be cancelled at any time; a cancelled write leaves what was written so far.

    Raises, from every method:
        FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError,
        FileExistsError, OSError: as the same call would inside the sandbox (a full disk is
        `OSError` with `ENOSPC`).
        ConfigError: the path is not one, or the sandbox does not know the user.
        CapabilityError: the sandbox cannot work as that user.
        SandboxStateError: the sandbox is not running.
        SandboxLostError: the sandbox was lost during the call.
    """

    def __init__(self, connect: Connect, stream: Stream, user: str | int | None = None) -> None:
        self._connect = connect
        self._stream = stream
        self._user = user

    def as_user(self, user: str | int | None) -> Files:
        """The same files as another user of the sandbox; as its own user for None.

        That user's rights decide what can be done, and what is made belongs to that user. Users
        are those of `execute_command`.

        Raises:
            ConfigError: it is no name or number. Whether the sandbox has it, a call tells.
        """
        return Files(self._connect, self._stream, validate_user(user))

    @on_loop
    async def read(self, path: str, *, offset: int = 0, limit: int | None = None) -> bytes:
        """The bytes of a file, from `offset` on and at most `limit` of them.

        Without a limit a file above 256 MiB is refused (`OSError` with `EFBIG`), because what is
        inside decides how long it is: `read_stream` takes any length.
        """
        _not_negative(offset=offset, limit=limit)
        async with self._connect(self._user) as guest:
            chunks = guest.read(validate_path(path), offset=offset, limit=limit)
            return await collect(chunks, READ_LIMIT if limit is None else limit, path)

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "replace") -> str:
        """The text of a file; bytes that do not decode are replaced unless `errors` says else."""
        return (await self.read(path)).decode(encoding, errors)

    def read_stream(
        self, path: str, *, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a file in pieces; the file may be of any length."""
        _not_negative(offset=offset, limit=limit)
        text = validate_path(path)
        return self._stream(lambda guest: guest.read(text, offset=offset, limit=limit), self._user)

    async def write(
        self,
        path: str,
        data: bytes | str | AsyncIterable[bytes],
        *,
        encoding: str = "utf-8",
        mode: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = True,
    ) -> int:
        """Write a file, making the folders above it; returns the bytes written.

        `exclusive` raises `FileExistsError` where there is one, `append` adds to it. `data` may
        be an async iterable of any length: it is read on the caller's own loop.
        """
        content = data.encode(encoding) if isinstance(data, str) else across_loops(data)
        return await self._write(
            path, content, mode=mode, append=append, exclusive=exclusive, parents=parents
        )

    @on_loop
    async def _write(
        self,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        mode: int | None,
        append: bool,
        exclusive: bool,
        parents: bool,
    ) -> int:
        async with self._connect(self._user) as guest:
            return await guest.write(
                validate_path(path),
                data,
                mode=mode,
                append=append,
                exclusive=exclusive,
                parents=parents,
            )

    @on_loop
    async def list(
        self, path: str = ".", depth: int = 1, *, limit: int = LIST_LIMIT
    ) -> builtins.list[FileInfo]:
        """What is in a folder, `depth` levels down, at most `limit` entries, sorted by path."""
        _positive(depth=depth, limit=limit)
        async with self._connect(self._user) as guest:
            return await guest.list(validate_path(path), depth=depth, limit=limit)

    @on_loop
    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """What a path is: type, size in bytes, mode, time of its last change."""
        async with self._connect(self._user) as guest:
            return await guest.stat(validate_path(path), follow=follow)

    @on_loop
    async def exists(self, path: str) -> bool:
        """Whether there is anything at a path."""
        async with self._connect(self._user) as guest:
            return await guest.exists(validate_path(path))

    @on_loop
    async def mkdir(self, path: str, *, parents: bool = True) -> None:
        """Make a folder, by default also those above it; one that is there already is fine then."""
        async with self._connect(self._user) as guest:
            await guest.mkdir(validate_path(path), parents=parents)

    @on_loop
    async def move(self, source: str, target: str) -> None:
        """Rename a file or folder, replacing a file at the target."""
        async with self._connect(self._user) as guest:
            await guest.move(validate_path(source), validate_path(target))

    @on_loop
    async def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, a link (never what it points to) or a folder.

        A folder that is not empty needs `recursive`.
        """
        async with self._connect(self._user) as guest:
            await guest.remove(validate_path(path), recursive=recursive)

    @on_loop
    async def search(
        self, pattern: str, path: str = ".", *, limit: int = SEARCH_LIMIT
    ) -> builtins.list[SearchMatch]:
        """Lines that match a regular expression, in a file or anywhere below a folder.

        Args:
            limit: matches at most; more are not looked for.

        Raises:
            ConfigError: the pattern is no regular expression, or `limit` is not above 0.
            FileNotFoundError: there is nothing at the path.
        """
        _positive(limit=limit)
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"Invalid search pattern {pattern!r}: {error}") from None
        async with self._connect(self._user) as guest:
            return await guest.search(pattern, validate_path(path), limit=limit)

    async def watch(
        self, path: str = ".", *, recursive: bool = False
    ) -> AsyncGenerator[FileEvent, None]:
        """What changes in a folder from now on, with `recursive` also below it, through no link.

        The first event has the type `watching`: what happens after it is told. It goes on until
        the iterator is closed, the folder is gone (its deletion is the last event) or the sandbox
        is. Whoever is slow is held up by nothing and holds up nobody: where more happened than the
        sandbox's kernel remembers, an event of the type `lost` says so.

        Raises:
            CapabilityError: the sandbox lacks the capability `watch`.
            NotADirectoryError: it is no folder.
            OSError: `ENOSPC`, there are more than 8,192 folders, or more than the machine lets be
                watched; `EMFILE`, the sandbox has too many watches and connections already.
        """
        text = validate_path(path)
        pages = self._stream(
            lambda guest: guest.watch(text, recursive=recursive), self._user, needs="watch"
        )
        try:
            async for page in pages:
                for event in page:
                    yield event
        finally:
            await pages.aclose()

    @on_loop
    async def replace(self, path: str, old: str, new: str, *, count: int | None = None) -> int:
        """Replace a string in a text file, everywhere or the first `count` times.

        Returns how many were replaced; 0 leaves the file as it is.

        Raises:
            ConfigError: `old` is empty, or `count` is not above 0.
            FileNotFoundError, IsADirectoryError: there is no file at the path.
        """
        if not old:
            raise ConfigError("the text to replace must not be empty")
        if count is not None:
            _positive(count=count)
        async with self._connect(self._user) as guest:
            return await guest.replace(validate_path(path), old, new, count=count)


def validate_path(path: str | os.PathLike[str]) -> str:
    """A path as text.

    Raises:
        ConfigError: it is empty, too long, holds a NUL byte or is no path at all.
    """
    if not isinstance(path, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a path must be text, not {type(path).__name__}")
    text = os.fspath(path)
    if not isinstance(text, str) or not text:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError("a path must be text and not empty")
    if "\0" in text:
        raise ConfigError("a path must not contain NUL bytes")
    encoded = os.fsencode(text)
    if len(encoded) > _PATH_BYTES or any(len(p) > _NAME_BYTES for p in encoded.split(b"/")):
        raise ConfigError(f"a path may have {_PATH_BYTES} bytes and a name in it {_NAME_BYTES}")
    return text


async def collect(chunks: AsyncIterator[bytes], limit: int, path: str) -> bytes:
    """All chunks in one piece.

    Raises:
        OSError: `EFBIG`, more than `limit` bytes came.
    """
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"more than {limit} bytes: read it as a stream", path)
    return bytes(data)


def across_loops(data: bytes | AsyncIterable[bytes]) -> bytes | AsyncIterable[bytes]:
    """An iterable that can be read on our loop while each of its steps runs on the caller's.

    To be called on the caller's loop, before the hop. What the caller's generator awaits may be
    bound to that loop.
    """
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    if not isinstance(data, AsyncIterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(data).__name__
        raise ConfigError(f"content must be bytes, text or an async iterable, not {kind}")
    return _AcrossLoops(data, asyncio.get_running_loop())


class _AcrossLoops:
    def __init__(self, data: AsyncIterable[bytes], home: asyncio.AbstractEventLoop) -> None:
        self._iterator = data.__aiter__()
        self._home = home

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if asyncio.get_running_loop() is self._home:
            return await self._iterator.__anext__()
        step = asyncio.run_coroutine_threadsafe(self._step(), self._home)
        chunk = await asyncio.wrap_future(step)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _step(self) -> bytes | None:
        # A future cannot carry StopAsyncIteration out of a coroutine: None ends it.
        try:
            return await self._iterator.__anext__()
        except StopAsyncIteration:
            return None


def _not_negative(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 0:
            raise ConfigError(f"{name} must not be negative, not {value}")


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
