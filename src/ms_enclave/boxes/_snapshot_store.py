"""Where snapshots are: a folder of the user's, which any number of managers may use at once.

    names/NAME          a SnapshotInfo (JSON): what makes it a snapshot
    listings/DIGEST     what is in it (`_snapshot_plan.Listing`)
    contents/DIGEST     the content of files, once for all snapshots that have it
    incoming/…          what is being made; whoever makes it has a lock on it

All changes are made under one lock, and a name is the last thing of a snapshot that is written: so
what was broken off, by a full disk or a kill, is what nobody needs, and is removed by the next that
looks. Who reads a snapshot has a lock on its listing, and what that needs stays until then. No name
that somebody inside of a sandbox has chosen is a name here. Everything blocks.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import tarfile
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ms_enclave.boxes import _snapshot_plan as plan
from ms_enclave.errors import (
    ConfigError,
    QuotaExceededError,
    SnapshotNotFoundError,
    SnapshotStoreError,
)
from ms_enclave.model import SnapshotInfo
from ms_enclave.utils.archive import read_tar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["HeldSnapshot", "IncomingSnapshot", "SnapshotStore", "users_folder"]

_CHUNK = 1 << 18
_MAX_TAR = plan.MAX_BYTES + plan.MAX_MEMBERS * 8192
"""Bytes of an archive: what is in its files, and what it says of them."""
_PARTS = ("names", "listings", "contents", "incoming")


def users_folder() -> str:
    """Where snapshots are of managers that have no folder of their own."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return os.path.join(base, "ms-enclave", "snapshots")


@contextlib.contextmanager
def _telling(folder: Path) -> Generator[None]:
    """Say of an error of the disk what it means for snapshots."""
    try:
        yield
    except OSError as error:
        remedy = None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "make room on that disk, or delete snapshots that nobody needs"
        raise SnapshotStoreError(
            f"Snapshots cannot be kept in {folder}: {error.strerror}", remedy=remedy
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    import fcntl  # not on every system that can import this module

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _take_lock(descriptor: int) -> bool:
    """Have a lock that nobody else has; False where somebody does."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class SnapshotStore:
    """The snapshots in a folder, which is made when the first is.

    Every method raises SnapshotStoreError where the folder cannot be read or written, and then
    nothing has changed; ConfigError where the folder is somebody else's or open to others.

    Args:
        most: says how many there may be; None for any number.
    """

    def __init__(self, folder: str, most: Callable[[], int | None] = lambda: None) -> None:
        self._most = most
        self._folder = Path(folder)
        self._contents = self._folder / "contents"
        self._listings = self._folder / "listings"
        self._names = self._folder / "names"

    # --- looking ---

    def list(self) -> list[SnapshotInfo]:
        """All of them, by name."""
        with _telling(self._folder):
            try:
                names = sorted(os.listdir(self._names))
            except FileNotFoundError:
                return []
            found = [self._read(name) for name in names]
        return [info for info in found if info is not None]

    def find(self, name: str) -> SnapshotInfo:
        """One of them. Raises SnapshotNotFoundError; ConfigError for what is no name."""
        plan.validate_snapshot_name(name)
        with _telling(self._folder):
            info = self._read(name)
        if info is None:
            raise SnapshotNotFoundError(name)
        return info

    def _read(self, name: str) -> SnapshotInfo | None:
        try:
            text = (self._names / name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return SnapshotInfo.model_validate_json(text)
        except ValueError as error:
            raise SnapshotStoreError(f"The snapshot {name!r} is damaged: {error}") from error

    def hold(self, name: str) -> HeldSnapshot:
        """Have one to read, whoever deletes it meanwhile, until it is closed.

        Raises:
            SnapshotNotFoundError: there is none of that name.
        """
        plan.validate_snapshot_name(name)
        import fcntl

        with _telling(self._folder):
            if not self._names.is_dir():
                raise SnapshotNotFoundError(name)
            with _locked(self._folder / "lock"):
                info = self._read(name)
                if info is None:
                    raise SnapshotNotFoundError(name)
                file = (self._listings / _digest(info)).open("rb")
                fcntl.flock(file, fcntl.LOCK_SH)
        try:
            return HeldSnapshot(info, file, self._contents)
        except BaseException:
            file.close()
            raise

    # --- changing ---

    def begin(self) -> IncomingSnapshot:
        """Begin to make one. Whoever asks closes it."""
        with _telling(self._folder):
            self._make_folder()
            with _locked(self._folder / "lock"):
                place = self._folder / "incoming" / secrets.token_hex(8)
                place.mkdir(mode=0o700)
                return IncomingSnapshot(self, place)

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._folder.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigError(
                f"{self._folder} must belong to this user and be closed to everybody else",
                remedy=f"chmod 0700 {self._folder}, or set XDG_DATA_HOME to a folder of your own",
            )
        for part in _PARTS:
            (self._folder / part).mkdir(mode=0o700, exist_ok=True)

    def enter(self, name: str, listing: plan.Listing, contents: Path) -> SnapshotInfo:
        """Have one more, whose files' contents are in a folder and are moved from there.

        Raises:
            ConfigError: there is one of that name.
        """
        text = listing.written()
        digest = plan.digest_of(text)
        info = SnapshotInfo(
            name=name, id=f"sha256:{digest}", size=listing.size, files=len(listing),
            created_at=datetime.now(timezone.utc),
        )  # fmt: skip
        with _telling(self._folder), _locked(self._folder / "lock"):
            self.refuse_taken(name)
            try:
                for content in listing.digests():
                    if not (self._contents / content).exists():
                        (contents / content).rename(self._contents / content)
                _write_whole(self._listings / digest, text)
                os.sync()  # a name stands for complete content, also after a crash
                _write_whole(self._names / name, info.model_dump_json().encode())
            except BaseException:
                self._sweep()
                raise
        return info

    def refuse_taken(self, name: str) -> None:
        """Raise ConfigError where there is a snapshot of that name, QuotaExceededError where there
        are as many as there may be."""
        most = self._most()
        if most is not None and len(os.listdir(self._names)) >= most:
            raise QuotaExceededError(
                f"more than this tenant may have: {most} snapshots", remedy="delete one"
            )
        if (self._names / name).exists():
            raise ConfigError(
                f"There is a snapshot {name!r} already",
                remedy="delete it, or use another name",
            )

    def delete(self, name: str) -> None:
        """Delete one, and all that only it needed. Who reads it goes on reading it.

        Raises:
            SnapshotNotFoundError: there is none of that name.
        """
        plan.validate_snapshot_name(name)
        with _telling(self._folder):
            if not self._names.is_dir():
                raise SnapshotNotFoundError(name)
            with _locked(self._folder / "lock"):
                try:
                    (self._names / name).unlink()
                except FileNotFoundError:
                    raise SnapshotNotFoundError(name) from None
                self._sweep()

    def _sweep(self) -> None:
        """Remove what nobody needs, the lock being held."""
        named = {_digest(info) for info in map(self._read, os.listdir(self._names)) if info}
        needed: set[str] = set()
        for digest in os.listdir(self._listings):
            path = self._listings / digest
            with path.open("rb") as file:
                if digest not in named and _take_lock(file.fileno()):
                    path.unlink()
                else:
                    needed |= plan.Listing.read(file.read()).digests()
        for digest in {*os.listdir(self._contents)} - needed:
            (self._contents / digest).unlink()
        self._remove_broken_off()

    def _remove_broken_off(self) -> None:
        for place in (self._folder / "incoming").iterdir():
            if not place.is_dir():  # of `_write_whole`, by somebody who had the lock and was killed
                place.unlink()
                continue
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _take_lock(descriptor):
                    shutil.rmtree(place)
            finally:
                os.close(descriptor)


class IncomingSnapshot:
    """A snapshot that is being made, out of an archive that is written to it. `file` takes that.

    A context manager; where `enter` was not called nothing is left of it.
    """

    def __init__(self, store: SnapshotStore, place: Path) -> None:
        self._store = store
        self._place = place
        self._lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _take_lock(self._lock)
        self.file: IO[bytes] = (place / "archive").open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, piece: bytes) -> None:
        """Take a piece of the archive.

        Raises:
            ConfigError: it is more than a snapshot can hold.
            SnapshotStoreError: it cannot be stored.
        """
        if self.file.tell() + len(piece) > _MAX_TAR:
            raise ConfigError(f"no snapshot: more than {plan.MAX_BYTES} bytes")
        with _telling(self._place.parent.parent):
            self.file.write(piece)

    def enter(self, name: str) -> SnapshotInfo:
        """Have what was written as a snapshot of that name. The archive may be hostile.

        Raises:
            ConfigError: the name or the archive is not valid, or there is one of that name.
            SnapshotStoreError: it cannot be stored.
        """
        plan.validate_snapshot_name(name)
        self._store.refuse_taken(name)
        contents = self._place / "contents"
        listing = plan.Listing()
        with _telling(self._place.parent.parent):
            contents.mkdir()
            self.file.flush()
            members = read_tar(self.file, max_bytes=plan.MAX_BYTES, max_members=plan.MAX_MEMBERS)
            for parts, member, content in members:
                digest = "" if content is None else self._keep(content, contents, len(listing))
                listing.add(parts, member, digest)
        return self._store.enter(name, listing, contents)

    def _keep(self, content: IO[bytes], contents: Path, number: int) -> str:
        """Have a file's content under its digest."""
        found = hashlib.sha256()
        new = contents / f"new-{number}"
        with new.open("xb") as file:
            while piece := content.read(_CHUNK):
                found.update(piece)
                file.write(piece)
        new.rename(contents / found.hexdigest())
        return found.hexdigest()

    def close(self) -> None:
        """Let go of what is left. Idempotent."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            with contextlib.suppress(OSError):  # what was not written for want of room
                self.file.close()
            shutil.rmtree(self._place, ignore_errors=True)
            os.close(lock)


class HeldSnapshot:
    """A snapshot that somebody reads, and that stays whole until `close`."""

    def __init__(self, info: SnapshotInfo, file: IO[bytes], contents: Path) -> None:
        self.info = info
        self._contents = contents
        self._file = file
        text = file.read()
        if plan.digest_of(text) != _digest(info):
            raise SnapshotStoreError(f"The snapshot {info.name!r} is damaged")
        self.listing = plan.Listing.read(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def pieces(self) -> Iterator[bytes]:
        """It as an uncompressed tar, in pieces.

        Raises:
            SnapshotStoreError: something of it is damaged or cannot be read.
        """
        buffer = bytearray()
        with _telling(self._contents.parent):
            for entry in self.listing.entries:
                buffer += plan.header(entry).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
                digest = plan.content_of(entry)
                if digest is not None:
                    for piece in self._content(digest, entry.size):
                        buffer += piece
                        if len(buffer) >= _CHUNK:
                            yield bytes(buffer)
                            buffer.clear()
                    buffer += bytes(-entry.size % tarfile.BLOCKSIZE)
        yield bytes(buffer + bytes(2 * tarfile.BLOCKSIZE))

    def _content(self, digest: str, size: int) -> Iterator[bytes]:
        found, left = hashlib.sha256(), size
        with (self._contents / digest).open("rb") as file:
            while left and (piece := file.read(min(left, _CHUNK))):
                found.update(piece)
                left -= len(piece)
                if not left and found.hexdigest() != digest:
                    break  # before its last piece is given: nobody takes it for whole
                yield piece
        if left or found.hexdigest() != digest:
            raise SnapshotStoreError(f"The snapshot {self.info.name!r} is damaged")

    def close(self) -> None:
        """Let it be deleted. Idempotent."""
        self._file.close()


def _digest(info: SnapshotInfo) -> str:
    return info.id.partition(":")[2]


def _write_whole(path: Path, text: bytes) -> None:
    """Write a file that is there with all of its content, or not at all."""
    new = path.parent.parent / "incoming" / f"{path.name}.new"
    try:
        with new.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
