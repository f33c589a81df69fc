"""Files and ports of a sandbox on a server, in the shape in which the handle asks a guest for them:
so all that is promised about them is kept by the same lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from ms_enclave import wire
from ms_enclave.errors import EnclaveError, ServerUnreachableError
from ms_enclave.manager._remote_ports import RemotePort
from ms_enclave.model import FileEvent, FileInfo, PortInfo, SearchMatch

if TYPE_CHECKING:
    import builtins
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable

    from ms_enclave.manager._remote_link import Link

__all__ = ["RemoteGuest", "upload"]


class RemoteGuest:
    """Methods as `channel.guest.GuestConnection` has them."""

    is_lost = False

    def __init__(self, link: Link, path: Callable[..., str], user: str | int | None) -> None:
        self._link = link
        self._path = path
        self._user = user
        self._as = {"uid" if isinstance(user, int) else "user": user}

    async def _do(self, operation: str, **body: Any) -> Any:
        path = self._path("files", operation)
        return await self._link.post(path, {**body, "user": self._user}, extra=None)

    async def _pieces(self, *parts: str, **query: Any) -> AsyncGenerator[bytes, None]:
        path = self._path(*parts, **query, **self._as)
        async with self._link.answering("GET", path) as answering:
            try:
                async for piece in answering.pieces():
                    yield piece
            except ServerUnreachableError:
                await self._link.get(self._path())  # says so where the sandbox is gone
                raise

    def read(
        self, path: str, *, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a file as they come."""
        return self._pieces("files", "content", path=path, offset=offset, limit=limit)

    async def write(
        self,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        mode: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = True,
    ) -> int:
        """Write a file; returns the bytes written."""
        flags = {"mode": mode, "append": append, "exclusive": exclusive, "parents": parents}
        url = self._path("files", "content", path=path, **flags, **self._as)
        return int((await self._upload(url, data))["written"])

    async def _upload(self, url: str, data: bytes | AsyncIterable[bytes]) -> Any:
        return await upload(self._link, url, data)

    async def list(
        self, path: str, depth: int = 1, limit: int = 100_000
    ) -> builtins.list[FileInfo]:
        """What is in a folder."""
        found = await self._do("list", path=path, depth=depth, limit=limit)
        return [FileInfo.model_validate(one) for one in found]

    async def stat(self, path: str, follow: bool = True) -> FileInfo:
        """What a path is."""
        return FileInfo.model_validate(await self._do("stat", path=path, follow=follow))

    async def exists(self, path: str) -> bool:
        """Whether there is anything at a path."""
        return bool((await self._do("exists", path=path))["exists"])

    async def mkdir(self, path: str, parents: bool = True) -> None:
        """Make a folder."""
        await self._do("mkdir", path=path, parents=parents)

    async def move(self, source: str, target: str) -> None:
        """Rename."""
        await self._do("move", source=source, target=target)

    async def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, a link or a folder."""
        await self._do("remove", path=path, recursive=recursive)

    async def search(
        self, pattern: str, path: str, limit: int = 1000
    ) -> builtins.list[SearchMatch]:
        """Lines that match."""
        found = await self._do("search", pattern=pattern, path=path, limit=limit)
        return [SearchMatch.model_validate(one) for one in found]

    async def replace(self, path: str, old: str, new: str, count: int | None = None) -> int:
        """Replace a string in a file."""
        return int((await self._do("replace", path=path, old=old, new=new, count=count))["count"])

    async def watch(
        self, path: str, *, recursive: bool = False
    ) -> AsyncGenerator[builtins.list[FileEvent], None]:
        """What changes in a folder."""
        url = self._path("files", "watch", path=path, recursive=recursive, **self._as)
        async for event in self._link.events("GET", url):
            yield [FileEvent.model_validate(event)]

    async def put_archive(self, target_dir: str, chunks: AsyncIterable[bytes]) -> None:
        """Unpack a tar below a folder."""
        await self._upload(self._path("archive", path=target_dir, **self._as), chunks)

    def get_archive(self, path: str) -> AsyncGenerator[bytes, None]:
        """A folder's content as tar."""
        return self._pieces("archive", path=path)

    # --- ports ---

    async def ports(self) -> builtins.list[PortInfo]:
        """What listens."""
        found = await self._link.get(self._path("ports"))
        return [PortInfo.model_validate(one) for one in found]

    async def connect_port(self, port: int) -> RemotePort:
        """A connection to a port."""
        return await RemotePort.open(self._link, self._path, port)


async def upload(link: Link, url: str, data: bytes | AsyncIterable[bytes]) -> Any:
    """Send something of any length, and give what answers it. Raises what its pieces raise."""
    if isinstance(data, bytes):
        return await link.put(url, data)
    pieces = _Noting(data)
    try:
        return await link.put(url, pieces)
    except EnclaveError:
        if pieces.failed is not None:
            raise pieces.failed from None
        raise


class _Noting:
    """Somebody's pieces on their way up, and what they failed with, which is the news then."""

    def __init__(self, data: AsyncIterable[bytes]) -> None:
        self._data = data
        self.failed: BaseException | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._data:
                if piece:
                    for start in range(0, len(piece), wire.CHUNK_LIMIT):
                        yield bytes(piece[start : start + wire.CHUNK_LIMIT])
        except anyio.get_cancelled_exc_class():
            raise
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failed = error
            raise
