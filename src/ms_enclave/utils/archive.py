"""Tar in and out. What comes out of a sandbox is hostile and is unpacked with care."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

__all__ = [
    "MAX_BYTES",
    "Extracted",
    "extract_tar",
    "read_tar",
    "tar_directory",
    "tar_file",
    "write_directory",
]

MAX_BYTES = 8 << 30
"""Bytes that an archive may unpack to."""

MAX_MEMBERS = 200_000

_MAX_HEADER = 1 << 20
"""Bytes of one extended header: real ones hold a path."""

_MAX_PATH = 4096
_MAX_NAME = 255
_CHUNK = 1 << 18
_WRITABLE_BY_OTHERS = 0o022


# --- in ---


def tar_directory(source: str | os.PathLike[str]) -> bytes:
    """What is in a folder, as an uncompressed tar: sorted, relative names, without symbolic links.

    Owners are left out. What is no plain file or folder is too.

    Raises:
        NotADirectoryError: it is no folder.
        OSError: something in it cannot be read.
    """
    buffer = io.BytesIO()
    write_directory(source, buffer)
    return buffer.getvalue()


def write_directory(source: str | os.PathLike[str], target: IO[bytes]) -> None:
    """The same into a file, which may be larger than memory. Raises as `tar_directory`."""
    root = Path(source)
    if not root.is_dir():
        raise NotADirectoryError(f"not a directory: {source}")
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _walk(root):
            member = tar.gettarinfo(path, path.relative_to(root).as_posix())
            # A second name of one file would become a link to the first.
            member.type = tarfile.DIRTYPE if member.isdir() else tarfile.REGTYPE
            member.linkname = ""
            _disown(member)
            if member.isdir():
                tar.addfile(member)
                continue
            with path.open("rb") as content:
                member.size = os.fstat(content.fileno()).st_size
                tar.addfile(member, content)


def _walk(folder: Path) -> Iterator[Path]:
    """Files and folders below a folder, a folder before what is in it, without links."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)
            yield from _walk(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _disown(member: tarfile.TarInfo) -> None:
    member.uid = member.gid = 0
    member.uname = member.gname = ""


def tar_file(name: str, data: bytes | str) -> bytes:
    """One file as an uncompressed tar. Text is written as UTF-8."""
    content = data.encode() if isinstance(data, str) else data
    member = tarfile.TarInfo(name)
    member.size = len(content)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


# --- out ---


@dataclass
class Extracted:
    """What an archive gave."""

    files: int = 0
    bytes: int = 0
    left_out: list[str] = field(default_factory=list[str])
    """Names of links, devices and other things that are no plain file or folder."""


def extract_tar(
    source: IO[bytes],
    target: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> Extracted:
    """Unpack a hostile, uncompressed tar into a folder of the host, which is made if needed.

    Only plain files and folders below the target are made. Symbolic links and devices are left
    out, a hard link becomes a copy; owners, special bits and write permission for others are not
    taken over. The whole archive is looked through before anything is written.

    Args:
        source: a file that can be sought; it is read from its start.

    Raises:
        ConfigError: a name that is absolute, holds `..` or cannot be a name here; more than the
            bounds; a file in the place of a folder; no valid tar.
        OSError: the target cannot be written.

    Where second names of files make it too much, some of it is there when that is raised.
    """
    _check_all(source, max_bytes, max_members)
    root = Path(target)
    root.mkdir(parents=True, exist_ok=True)
    done = Extracted()
    for tar, member in _members(source):
        parts = _safe_parts(member.name)
        if member.isdir():
            _make_folder(root, parts)
        elif member.isreg():
            _refuse_more(done.bytes + member.size, max_bytes)
            content = cast("BinaryIO", tar.extractfile(member))
            done.bytes += _write_file(root, parts, content, member)
            done.files += 1
        elif member.islnk():
            _copy_file(root, member, parts, done, max_bytes)
        else:
            done.left_out.append(member.name)
    return done


def read_tar(
    source: IO[bytes], *, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS
) -> Iterator[tuple[tuple[str, ...], tarfile.TarInfo, IO[bytes] | None]]:
    """The members of a hostile, uncompressed tar: the parts of its name, what the archive says of
    it, and its content if it is a plain file, good until the next. Nothing is written.

    The whole archive is looked through before the first is given. What a symbolic link leads to is
    not looked at. Raises ConfigError as `extract_tar`.
    """
    _check_all(source, max_bytes, max_members)
    for tar, member in _members(source):
        yield _safe_parts(member.name), member, tar.extractfile(member) if member.isreg() else None


def _check_all(source: IO[bytes], max_bytes: int, max_members: int) -> None:
    total = 0
    for number, (_, member) in enumerate(_members(source), 1):
        if number > max_members:
            raise ConfigError(f"the archive has more than {max_members} members")
        if member.size < 0:
            raise ConfigError(f"the archive is damaged at {member.name!r}")
        total += member.size if member.isreg() else 0
        _refuse_more(total, max_bytes)
        _safe_parts(member.name)
        if member.islnk():
            _safe_parts(member.linkname)


def _refuse_more(total: int, max_bytes: int) -> None:
    if total > max_bytes:
        raise ConfigError(f"the archive unpacks to more than {max_bytes} bytes")


def _members(source: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members one by one. None of them stays in memory."""
    source.seek(0)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", _Careful(source)), mode="r:") as tar:
            for member in tar:
                yield tar, member
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    except (tarfile.TarError, EOFError, OverflowError, RecursionError, UnicodeError) as error:
        raise ConfigError(f"the archive is no valid tar: {error}") from error


class _Careful:
    """The archive's file, without the reads that a made-up header size would ask for."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._source.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset < 0:
            raise tarfile.ReadError("a header that points before the start")
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()


def _safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a member's name below the target.

    Raises:
        ConfigError: it does not stay there, or is no name on this machine.
    """
    parts = tuple(part for part in name.split("/") if part not in {"", "."})
    foreign = os.name == "nt" and any(letter in name for letter in '\\:*?"<>|')
    if name.startswith("/") or ".." in parts or "\0" in name or foreign:
        raise ConfigError(f"the archive holds an unsafe name: {name!r}")
    encoded = [len(os.fsencode(part)) for part in parts]
    if len(os.fsencode(name)) > _MAX_PATH or any(length > _MAX_NAME for length in encoded):
        raise ConfigError(f"the archive holds a name that is too long: {name[:80]!r}…")
    return parts


def _make_folder(root: Path, parts: tuple[str, ...]) -> Path:
    folder = root
    for part in parts:
        folder = folder / part
        try:
            folder.mkdir()
        except FileExistsError:
            # A link could lead out of the target, even one that the user made.
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise ConfigError(f"not a folder: {folder}") from None
    return folder


def _write_file(
    root: Path, parts: tuple[str, ...], content: IO[bytes], member: tarfile.TarInfo
) -> int:
    if not parts:
        raise ConfigError(f"the archive holds a file without a name: {member.name!r}")
    path = _make_folder(root, parts[:-1]) / parts[-1]
    if path.is_dir() and not path.is_symlink():
        raise ConfigError(f"a folder is in the place of a file: {path}")
    path.unlink(missing_ok=True)  # never written through: it may be a link or have other names
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, _CHUNK)
        size = file.tell()
    path.chmod((member.mode & 0o777 & ~_WRITABLE_BY_OTHERS) | 0o600)
    _set_time(path, member.mtime)
    return size


def _set_time(path: Path, moment: float) -> None:
    try:
        os.utime(path, (moment, moment))
    except (OSError, OverflowError, ValueError):
        return  # a time that this file system cannot hold: the file keeps the present one


def _copy_file(
    root: Path, member: tarfile.TarInfo, parts: tuple[str, ...], done: Extracted, max_bytes: int
) -> None:
    """Make a hard link's file a file of its own; it is left out where what it links to is none.

    Raises:
        ConfigError: with it there would be more bytes than may be: a link costs its archive
            nothing, and a copy as much as the file.
    """
    linked = _safe_parts(member.linkname)
    source = _plain_below(root, linked)
    if source is None:
        done.left_out.append(member.name)
        return
    if parts != linked:
        status = source.lstat()
        _refuse_more(done.bytes + status.st_size, max_bytes)
        member.mode = stat.S_IMODE(status.st_mode)
        with source.open("rb") as content:
            done.bytes += _write_file(root, parts, content, member)
    done.files += 1


def _plain_below(root: Path, parts: tuple[str, ...]) -> Path | None:
    """A plain file below the root, reached through no link; None where there is none."""
    path = root.joinpath(*parts)
    try:
        inside = all(
            stat.S_ISDIR(folder.lstat().st_mode)
            for folder in path.parents
            if root in folder.parents
        )
        return path if inside and stat.S_ISREG(path.lstat().st_mode) else None
    except OSError:
        return None
