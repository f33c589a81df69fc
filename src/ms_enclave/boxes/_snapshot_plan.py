"""What a snapshot is, purely: which names one can have, what may be in one and how that is written
down.

The content of files lies elsewhere, under its digest, so a hostile name or link in a snapshot is
only ever text on the host.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ms_enclave.errors import ConfigError, SnapshotStoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "FOLDERS",
    "MAX_BYTES",
    "MAX_MEMBERS",
    "Entry",
    "Listing",
    "content_of",
    "digest_of",
    "header",
    "room_for",
    "validate_snapshot_name",
]

FOLDERS = ("tmp", "work")
"""What is in a snapshot: what a sandbox has in /tmp, and in its work folder."""
MAX_BYTES = 1 << 30
MAX_MEMBERS = 20_000 + len(FOLDERS)
"""The same bounds as forks have: sandboxes that begin with a snapshot share it in memory."""

_USER = 1000
_IDS = 65536
_DEEPEST = 210  # a sandbox's own may have 200, and what they are in
_MAX_LINK = 4095
_MAX_PATH = 4095
_PAGE = 4096
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FOLDER, _FILE, _LINK, _SAME = "folder", "file", "link", "same"
_MODES = {"tmp": 0o1777, "work": 0o755}
_OWNERS = {"tmp": 0, "work": _USER}


def validate_snapshot_name(name: object) -> str:
    """A name that a snapshot can have.

    Raises:
        ConfigError: it is none: a path, say.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"no name of a snapshot: {str(name)[:200]!r}",
            remedy="use 1 to 128 letters, digits, dots, _ or -, the first a letter or a digit",
        )
    return name


@dataclass(frozen=True)
class Entry:
    """A file, folder or link. `value` is the digest of a file's content, what a symbolic link says,
    or the path of the file that has this name, too; `mtime` is in s since the epoch."""

    kind: str
    path: str
    mode: int
    uid: int
    gid: int
    mtime: float
    size: int
    value: str


class Listing:
    """All that is in a snapshot, a folder before what is in it."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = {entry.path: entry for entry in entries}

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    @property
    def size(self) -> int:
        """Bytes in its files."""
        return sum(entry.size for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, parts: tuple[str, ...], member: tarfile.TarInfo, digest: str) -> None:
        """Have what an archive says of one more; `digest` is of its content, if it has any.

        Special bits of files are not taken over; what a link says is not looked at.

        Raises:
            ConfigError: it is nothing that a snapshot can hold, or not at that place.
        """
        if not parts:
            return
        path = "/".join(parts)
        if parts[0] not in FOLDERS:
            raise ConfigError(
                f"no snapshot: it holds {path[:200]!r}, which is in neither tmp nor work"
            )
        if len(parts) > _DEEPEST:
            raise ConfigError(f"no snapshot: folders more than {_DEEPEST} deep")
        self._add_folders(parts[:-1])
        made = self._made(path, member, digest)
        known = self._entries.get(path)
        if known is not None and not (known.kind == made.kind == _FOLDER):
            raise ConfigError(f"no snapshot: it holds {path[:200]!r} twice")
        if len(parts) == 1 and made.kind != _FOLDER:
            raise ConfigError(f"no snapshot: {path} is no folder")
        if known is None:
            self._refuse_more()
        self._entries[path] = made

    def _refuse_more(self) -> None:
        if len(self._entries) >= MAX_MEMBERS:
            raise ConfigError(f"no snapshot: more than {MAX_MEMBERS} files and folders")

    def _add_folders(self, parts: tuple[str, ...]) -> None:
        """Those above it, which an archive need not name."""
        for depth in range(1, len(parts) + 1):
            path = "/".join(parts[:depth])
            known = self._entries.get(path)
            if known is None:
                self._refuse_more()
                owner, mode = _OWNERS.get(path, _USER), _MODES.get(path, 0o755)
                self._entries[path] = Entry(_FOLDER, path, mode, owner, owner, 0.0, 0, "")
            elif known.kind != _FOLDER:
                raise ConfigError(
                    f"no snapshot: something is below {path[:200]!r}, which is no folder"
                )

    def _made(self, path: str, member: tarfile.TarInfo, digest: str) -> Entry:
        if len(path.encode("utf-8", "surrogateescape")) > _MAX_PATH:
            raise ConfigError("no snapshot: a path that is too long")
        kind, size, value, mode = self._what(path, member, digest)
        if not (0 <= member.uid < _IDS and 0 <= member.gid < _IDS):
            raise ConfigError(
                f"no snapshot: {path[:200]!r} belongs to a user that no sandbox has",
                remedy="make the archive with tar --owner=1000 --group=1000",
            )
        top = "/" not in path
        # When somebody last did something in them says nothing of what is in them.
        known = not top and math.isfinite(member.mtime)
        mtime = min(max(float(member.mtime), 0.0), 2.0**33) if known else 0.0
        return Entry(kind, path, mode, member.uid, member.gid, mtime, size, value)

    def _what(self, path: str, member: tarfile.TarInfo, digest: str) -> tuple[str, int, str, int]:
        if member.isdir():
            return _FOLDER, 0, "", member.mode & 0o1777
        if member.isreg():
            return _FILE, member.size, digest, member.mode & 0o777
        if member.issym():
            text = member.linkname
            if not text or "\0" in text or len(text.encode("utf-8", "surrogateescape")) > _MAX_LINK:
                raise ConfigError(f"no snapshot: a link that says nothing: {path[:200]!r}")
            return _LINK, 0, text, 0o777
        if member.islnk():
            other = "/".join(part for part in member.linkname.split("/") if part not in ("", "."))
            known = self._entries.get(other)
            if known is None or known.kind not in (_FILE, _SAME) or other == path:
                raise ConfigError(
                    f"no snapshot: {path[:200]!r} is a second name of what is no file before it"
                )
            return _SAME, 0, known.value if known.kind == _SAME else other, known.mode
        raise ConfigError(
            f"no snapshot: {path[:200]!r} is no file, folder or link",
            remedy="leave devices, pipes and sockets out",
        )

    # --- written down ---

    def written(self) -> bytes:
        """The same for two that hold the same."""
        rows = [
            [one.kind, one.path, one.mode, one.uid, one.gid, one.mtime, one.size, one.value]
            for one in self._whole()
        ]
        return json.dumps(rows, separators=(",", ":")).encode("ascii")

    def _whole(self) -> list[Entry]:
        self._add_folders(("tmp",))
        self._add_folders(("work",))
        # Second names come after all files, so that a file never comes after a name of it.
        return sorted(
            self._entries.values(), key=lambda one: (one.kind == _SAME, one.path.split("/"))
        )

    @classmethod
    def read(cls, text: bytes) -> Listing:
        """What `written` gave.

        Raises:
            SnapshotStoreError: it is damaged.
        """
        try:
            rows = cast("list[Any]", json.loads(text))
            return cls(Entry(*row) for row in rows)
        except (ValueError, TypeError) as error:
            raise SnapshotStoreError(f"a snapshot is damaged: {error}") from error

    def digests(self) -> set[str]:
        """Of all content that it needs."""
        return {one.value for one in self._entries.values() if one.kind == _FILE}


def content_of(entry: Entry) -> str | None:
    """The digest of what is in it; None for what is no file."""
    return entry.value if entry.kind == _FILE else None


def header(entry: Entry) -> tarfile.TarInfo:
    """An entry as an archive says it: `Listing.add` reads the same from it."""
    member = tarfile.TarInfo(entry.path)
    member.mode, member.uid, member.gid = entry.mode, entry.uid, entry.gid
    member.mtime = entry.mtime
    if entry.kind == _FOLDER:
        member.type = tarfile.DIRTYPE
    elif entry.kind == _FILE:
        member.size = entry.size
    else:
        member.type = tarfile.SYMTYPE if entry.kind == _LINK else tarfile.LNKTYPE
        member.linkname = entry.value
    return member


def room_for(listing: Listing) -> tuple[int, int]:
    """Bytes and inodes of a file system that takes all of it, whole pages and folders included."""
    pages = sum(-(-entry.size // _PAGE) + 1 for entry in listing.entries)
    return (pages + 256) * _PAGE, len(listing) + 64


def digest_of(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
