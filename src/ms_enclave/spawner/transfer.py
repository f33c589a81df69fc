"""Carries a layer's files out of a station, or into it.

`python -I -S transfer.py WHAT LAYER USERS MOST IDS`, started by the owner for one layer
(`layer.Layer`) that nobody else uses. LAYER is a descriptor of
it and USERS one of its user namespace, in which this process then is root: with the ids that the
layer has, and with no right to anything of the host. `pack` writes the layer to standard output as
a tar, `unpack` fills an empty one from a tar on standard input. The other end makes and reads them:
names, links and owners in them are somebody hostile's, so every folder is reached from the layer on
and through no link. `pack` takes MOST bytes at most; IDS is `one` where the layer has one user.

Says on standard error what went wrong, and by which number (errno, 0 for none).
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tarfile

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from ms_enclave.spawner import _calls as calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

__all__ = ["main"]

_BENEATH = 0x01 | 0x02 | 0x04 | 0x08  # RESOLVE_NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 18
_ONLY_USER = 1000
"""Who the only user of a one-id map is inside."""


class _Packer:
    """Writes what is in a layer: files, folders and links, each second name as one."""

    def __init__(self, tar: tarfile.TarFile, most: int, one_id: bool) -> None:
        self._tar = tar
        self._left = most
        self._one_id = one_id
        self._seen: dict[int, str] = {}

    def take(self, parent: int, prefix: str) -> None:
        folder = os.open(".", _FOLDER, dir_fd=parent)
        try:
            for name in sorted(os.listdir(folder)):
                self._take(folder, name, prefix + name)
        finally:
            os.close(folder)

    def _take(self, folder: int, name: str, path: str) -> None:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        member = self._member(path, found)
        if stat.S_ISDIR(found.st_mode):
            member.type = tarfile.DIRTYPE
            self._tar.addfile(member)
            below = os.open(name, _FOLDER, dir_fd=folder)
            try:
                self.take(below, f"{path}/")
            finally:
                os.close(below)
        elif stat.S_ISLNK(found.st_mode):
            member.type, member.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=folder)
            self._tar.addfile(member)
        elif stat.S_ISREG(found.st_mode):
            self._take_file(folder, name, member, found)

    def _take_file(
        self, folder: int, name: str, member: tarfile.TarInfo, found: os.stat_result
    ) -> None:
        first = self._seen.setdefault(found.st_ino, member.name)
        if first != member.name:
            member.type, member.linkname = tarfile.LNKTYPE, first
            self._tar.addfile(member)
            return
        member.size = found.st_size
        self._left -= found.st_size
        if self._left < 0:
            raise OSError(errno.E2BIG, "its files have more bytes than a snapshot can hold")
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(file, "rb") as content:
            self._tar.addfile(member, content)

    def _member(self, path: str, found: os.stat_result) -> tarfile.TarInfo:
        member = tarfile.TarInfo(path)
        member.mode = stat.S_IMODE(found.st_mode)
        member.mtime = found.st_mtime_ns / 1e9
        member.uid, member.gid = found.st_uid, found.st_gid
        if self._one_id:
            member.uid = member.gid = _ONLY_USER
        return member


class _Filler:
    """Makes what an archive holds in an empty layer, a folder before what is in it."""

    def __init__(self, layer: int, one_id: bool) -> None:
        self._layer = layer
        self._one_id = one_id
        self._folders: list[tarfile.TarInfo] = []
        self._at: tuple[str, int] | None = None
        """The folder that the last one was made in."""

    def make(self, member: tarfile.TarInfo, content: IO[bytes] | None) -> None:
        above, _, name = member.name.rstrip("/").rpartition("/")
        parent = self._open(above)
        if member.isdir():
            os.mkdir(name, 0o700, dir_fd=parent)
            self._folders.append(member)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
            self._finish(parent, name, member)
        elif member.islnk():
            self._link(member.linkname, parent, name)
        elif content is not None:
            self._write(parent, name, content, member.size)
            self._finish(parent, name, member)

    def _link(self, other: str, parent: int, name: str) -> None:
        parent = os.dup(parent)
        try:
            above, _, first = other.rpartition("/")
            os.link(
                first, name, src_dir_fd=self._open(above), dst_dir_fd=parent, follow_symlinks=False
            )
        finally:
            os.close(parent)

    def _open(self, path: str) -> int:
        if self._at is None or self._at[0] != path:
            found = calls.openat2(self._layer, os.fsencode(path or "."), _FOLDER, _BENEATH)
            self.close()
            self._at = path, found
        return self._at[1]

    @staticmethod
    def _write(parent: int, name: str, content: IO[bytes], size: int) -> None:
        """What is in a file, its holes as holes: they were zeros on the way."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=parent), "wb", buffering=0) as file:
            while piece := content.read(_CHUNK):
                if piece.count(0) == len(piece):
                    file.seek(len(piece), os.SEEK_CUR)
                    continue
                left = memoryview(piece)
                while left:
                    left = left[file.write(left) :]
            file.truncate(size)

    def _finish(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        """Owner, mode and times, in this order: a change of the owner takes bits of the mode."""
        if not self._one_id:
            os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode, dir_fd=parent)
        moment = int(member.mtime * 1e9)
        os.utime(name, ns=(moment, moment), dir_fd=parent, follow_symlinks=False)

    def finish_folders(self) -> None:
        """When nothing is made in them any more; the deepest first."""
        for member in reversed(self._folders):
            above, _, name = member.name.rstrip("/").rpartition("/")
            self._finish(self._open(above), name, member)

    def close(self) -> None:
        at, self._at = self._at, None
        if at is not None:
            os.close(at[1])


def pack(layer: int, target: IO[bytes], most: int, one_id: bool) -> None:
    """Write what is in a layer as a tar. Raises OSError; E2BIG where it is more than `most` bytes.

    What is no file, folder or link is left out.
    """
    with tarfile.open(
        fileobj=target, mode="w|", format=tarfile.PAX_FORMAT,
        encoding="utf-8", errors="surrogateescape",
    ) as tar:  # fmt: skip
        _Packer(tar, most, one_id).take(layer, "")


def unpack(layer: int, source: IO[bytes], one_id: bool) -> None:
    """Make what a tar holds in an empty layer. Raises OSError or tarfile.TarError."""
    filler = _Filler(layer, one_id)
    try:
        with tarfile.open(
            fileobj=source, mode="r|", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member in tar:
                filler.make(member, tar.extractfile(member) if member.isreg() else None)
        filler.finish_folders()
    finally:
        filler.close()


def _enter(users: int, one_id: bool) -> None:
    """Be root of a user namespace, and nobody outside of it."""
    if not one_id:
        os.setgroups([])
    calls.setns(users, calls.CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def main(what: str, layer: int, users: int, most: int, one_id: bool) -> None:
    """Do one of them in the layer's user namespace."""
    _enter(users, one_id)
    if what == "pack":
        pack(layer, sys.stdout.buffer, most, one_id)
        sys.stdout.buffer.flush()
    else:
        unpack(layer, sys.stdin.buffer, one_id)


if __name__ == "__main__":
    try:
        what, *numbers, ids = sys.argv[1:]
        main(what, int(numbers[0]), int(numbers[1]), int(numbers[2]), ids == "one")
    except Exception as problem:  # noqa: BLE001 - the owner says it, in its own words
        number = getattr(problem, "errno", None) or 0
        print(number, getattr(problem, "strerror", None) or problem, file=sys.stderr)  # noqa: T201
        sys.exit(1)
