"""Uncompressed tar in and out of a folder, as a stream, inside the sandbox.

In: every member is made below an open folder, one name at a time, through no link; what would land
elsewhere is refused, what stands in the way of a file is replaced and never written through. Sizes
need no bound here: the sandbox's disk has one. Out: files, folders and links, no devices or FIFOs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from .call import Refused
from .files import NotPlain, open_folder, open_plain, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .call import Call
    from .loop import Steps

__all__ = ["OPERATIONS"]

_BLOCK = 512
_CHUNK = 1 << 16
_NAMES_LIMIT = 1 << 18  # what a member may say about itself before its header
_DEPTH = 256
_ATTRIBUTE_LIMIT = 8192
_USED_ATTRIBUTES = (b"path", b"linkpath", b"size", b"mtime")
_PLAIN, _HARD_LINK, _SYMBOLIC_LINK, _FOLDER = b"0", b"1", b"2", b"5"
_LONG_NAME, _LONG_LINK, _ATTRIBUTES, _GLOBAL_ATTRIBUTES = b"L", b"K", b"x", b"g"


# --- in ---


class _Source:
    """The archive's bytes as they come, handed out in the pieces that are asked for."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._buffer = bytearray()
        self.started = False

    def exactly(self, size: int) -> Steps[bytes]:
        while len(self._buffer) < size:
            data = yield from self._call.receive()
            if not data:
                raise Refused("the archive ends in the middle of a member")
            self._buffer += data
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def header(self) -> Steps[bytes]:
        """The next header; b"" where the archive simply ends."""
        if not self._buffer:
            data = yield from self._call.receive()
            if not data:
                if not self.started:
                    raise Refused("an empty archive")
                return b""
            self._buffer += data
        self.started = True
        return (yield from self.exactly(_BLOCK))

    def some(self, limit: int) -> Steps[bytes]:
        if self._buffer:
            return (yield from self.exactly(min(limit, len(self._buffer))))
        data = yield from self._call.receive()
        if not data:
            raise Refused("the archive ends in the middle of a member")
        self._buffer += data[limit:]
        return data[:limit]

    def skip(self, size: int) -> Steps[None]:
        while size > 0:
            size -= len((yield from self.some(size)))
            yield 0

    def drain(self) -> Steps[None]:
        while (yield from self._call.receive()):
            yield 0


class _Member:
    def __init__(self, block: bytes) -> None:
        self.name = _text_field(block, 0, 100)
        prefix = _text_field(block, 345, 155) if block[257:263] == b"ustar\0" else b""
        if prefix:
            self.name = prefix + b"/" + self.name
        self.mode = _number_field(block, 100, 8) & 0o777
        self.size = _number_field(block, 124, 12)
        self.modified = float(_number_field(block, 136, 12))
        self.kind = block[156:157]
        self.target = _text_field(block, 157, 100)
        if self.kind in (b"\0", b"7"):
            self.kind = _FOLDER if self.name.endswith(b"/") else _PLAIN

    def apply(self, said: dict[bytes, bytes]) -> None:
        """What came before the header goes before what stands in it."""
        self.name = said.get(b"path", self.name)
        self.target = said.get(b"linkpath", self.target)
        try:
            if b"size" in said:
                self.size = int(said[b"size"][:20])
            self.modified = float(said.get(b"mtime", self.modified))
        except ValueError:
            raise Refused("an archive member with a size or time that is no number") from None
        if self.size < 0:
            raise Refused("an archive member of negative size")


def put_archive(call: Call) -> Steps[dict[str, Any]]:
    path = call.path()
    os.makedirs(path, exist_ok=True)
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    source = _Source(call)
    said: dict[bytes, bytes] = {}
    always: dict[bytes, bytes] = {}
    members = 0
    try:
        while True:
            block = yield from source.header()
            if not block.strip(b"\0"):
                break
            _check_sum(block)
            member = _Member(block)
            padding = -member.size % _BLOCK
            if member.kind in (_LONG_NAME, _LONG_LINK, _ATTRIBUTES, _GLOBAL_ATTRIBUTES):
                if member.size > _NAMES_LIMIT:
                    raise Refused("an archive member with too much to say about itself")
                content = yield from source.exactly(member.size + padding)
                found = _read_names(member.kind, content[: member.size])
                (always if member.kind == _GLOBAL_ATTRIBUTES else said).update(found)
                continue
            member.apply(_merged(always, said))
            said = {}
            padding = -member.size % _BLOCK
            yield from _unpack(member, source, top)
            yield from source.skip(padding)
            members += 1
        yield from source.drain()
    finally:
        os.close(top)
    return {"members": members}


def _merged(first: dict[bytes, bytes], second: dict[bytes, bytes]) -> dict[bytes, bytes]:
    merged = dict(first)
    merged.update(second)
    return merged


def _check_sum(block: bytes) -> None:
    said = _number_field(block, 148, 8)
    if said != sum(block[:148]) + 8 * 32 + sum(block[156:]):
        raise Refused("not an uncompressed tar archive")


def _text_field(block: bytes, start: int, size: int) -> bytes:
    return block[start : start + size].partition(b"\0")[0]


def _number_field(block: bytes, start: int, size: int) -> int:
    field = block[start : start + size]
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise Refused("not an uncompressed tar archive") from None


def _read_names(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    if kind == _LONG_NAME:
        return {b"path": content.partition(b"\0")[0]}
    if kind == _LONG_LINK:
        return {b"linkpath": content.partition(b"\0")[0]}
    found: dict[bytes, bytes] = {}
    while content:
        length = content.partition(b" ")[0]
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(content):
            raise Refused("an archive member with broken attributes")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if key.startswith(b"GNU.sparse"):
            raise Refused("a sparse file in the archive")
        if key in _USED_ATTRIBUTES and len(value) <= _ATTRIBUTE_LIMIT:
            found[key] = value
        content = content[int(length) :]
    return found


def _unpack(member: _Member, source: _Source, top: int) -> Steps[None]:
    """Make one member and take its content from the source."""
    names = _names(member.name)
    known = (_PLAIN, _HARD_LINK, _SYMBOLIC_LINK, _FOLDER)
    if member.kind not in known or not names:
        if names and member.kind not in b"346":
            raise Refused(f"an archive member of unknown kind: {_show(member.name)}")
        yield from source.skip(member.size)  # a device, a FIFO, or the folder itself
        return
    parent = _open_parent(top, names, member.name)
    try:
        if member.kind == _FOLDER:
            _make_folder(parent, names[-1], member)
        elif member.kind == _PLAIN:
            yield from _make_file(parent, names[-1], member, source)
            return
        elif member.kind == _SYMBOLIC_LINK:
            _clear(parent, names[-1])
            os.symlink(_link_text(member), names[-1], dir_fd=parent)
        else:
            _make_hard_link(top, parent, names[-1], member)
    finally:
        os.close(parent)
    yield from source.skip(member.size)


def _names(path: bytes) -> list[bytes]:
    """The names in a member's path, from the folder on.

    Raises:
        Refused: it leads out of the folder, or is none.
    """
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if path.startswith(b"/") or b".." in names or b"\0" in path or len(names) > _DEPTH:
        raise Refused(f"an archive member outside of its folder: {_show(path)}")
    return names


def _show(path: bytes) -> str:
    return repr(path[:200].decode("utf-8", "replace"))


def _open_parent(top: int, names: list[bytes], path: bytes, make: bool = True) -> int:
    """The folder that a member belongs in, reached through no link."""
    folder = os.dup(top)
    try:
        for name in names[:-1]:
            if make:
                # What is there already is a folder, or the next line says what it is.
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o777, dir_fd=folder)
            below = open_folder(name, folder)
            os.close(folder)
            folder = below
    except OSError as error:
        os.close(folder)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise Refused(f"an archive member below what is no folder: {_show(path)}") from None
        raise
    return folder


def _clear(parent: int, name: bytes) -> None:
    """Remove what stands in the way of a member; a folder stays, and is an error."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return


def _make_folder(parent: int, name: bytes, member: _Member) -> None:
    try:
        os.mkdir(name, 0o777, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise
    # What is to come must fit in, whatever the archive says.
    folder = open_folder(name, parent)
    try:
        os.fchmod(folder, member.mode | 0o700)
    finally:
        os.close(folder)


def _make_file(parent: int, name: bytes, member: _Member, source: _Source) -> Steps[None]:
    _clear(parent, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=parent)
    try:
        left = member.size
        while left > 0:
            data = yield from source.some(left)
            write_all(descriptor, data)
            left -= len(data)
            yield 0
        os.fchmod(descriptor, member.mode)
        _set_time(descriptor, member.modified)
    finally:
        os.close(descriptor)


def _set_time(descriptor: int, modified: float) -> None:
    try:
        os.utime(descriptor, (modified, modified))
    except (OSError, OverflowError, ValueError):
        return  # a time that the file system cannot hold says nothing that matters


def _link_text(member: _Member) -> bytes:
    if not member.target or b"\0" in member.target:
        raise Refused(f"a link to nowhere in the archive: {_show(member.name)}")
    return member.target


def _make_hard_link(top: int, parent: int, name: bytes, member: _Member) -> None:
    names = _names(member.target)
    if not names:
        raise Refused(f"a link to nowhere in the archive: {_show(member.name)}")
    folder = _open_parent(top, names, member.target, make=False)
    try:
        _clear(parent, name)
        os.link(names[-1], name, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(folder)


# --- out ---


def get_archive(call: Call) -> Steps[dict[str, Any]]:
    """A folder's content, named from the folder on, or one file under its own name."""
    path = call.path()
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))  # may we?
        yield from _send_below(call, path)
    elif stat.S_ISREG(status.st_mode):
        yield from _send_file(call, path, os.path.basename(path.rstrip(b"/")), follow=True)
    else:
        raise NotPlain(errno.EINVAL, "neither a file nor a folder")
    yield from call.send_all(bytes(2 * _BLOCK))
    return {}


def _send_below(call: Call, top: bytes) -> Steps[None]:
    todo = [b""]
    while todo:
        folder = todo.pop()
        try:
            names = sorted(os.listdir(os.path.join(top, folder)))
        except OSError:
            continue  # closed to us, or gone meanwhile
        for name in names:
            member = os.path.join(folder, name)
            path = os.path.join(top, member)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield from _send_file(call, path, member)
            elif stat.S_ISDIR(status.st_mode):
                todo.append(member)
                yield from call.send_all(_header(member + b"/", status, _FOLDER))
            elif stat.S_ISLNK(status.st_mode):
                yield from _send_link(call, path, member, status)
            yield 0


def _send_link(call: Call, path: bytes, member: bytes, status: os.stat_result) -> Steps[None]:
    try:
        target = os.readlink(path)
    except OSError:
        return
    yield from call.send_all(_header(member, status, _SYMBOLIC_LINK, target=target))


def _send_file(call: Call, path: bytes, member: bytes, follow: bool = False) -> Steps[None]:
    """One file; it has in the archive the size that it had when it was opened."""
    try:
        descriptor = open_plain(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW))
    except OSError:
        if follow:
            raise
        return  # closed to us, gone, or something else meanwhile
    try:
        status = os.fstat(descriptor)
        yield from call.send_all(_header(member, status, _PLAIN, size=status.st_size))
        left = status.st_size
        while left > 0:
            room = yield from call.room()
            data = os.read(descriptor, min(room, left)) or bytes(min(room, left))
            call.send(data)
            left -= len(data)
            yield 0
    finally:
        os.close(descriptor)
    yield from call.send_all(bytes(-status.st_size % _BLOCK))


def _header(
    name: bytes, status: os.stat_result, kind: bytes, size: int = 0, target: bytes = b""
) -> bytes:
    extra: dict[bytes, bytes] = {}
    if len(name) > 100 or not name.isascii():
        extra[b"path"] = name
    if len(target) > 100 or not target.isascii():
        extra[b"linkpath"] = target
    if size >= 8**11:
        extra[b"size"] = b"%d" % size
    block = _block(name, stat.S_IMODE(status.st_mode), size, status.st_mtime, kind, target)
    if not extra:
        return block
    records = b"".join(_record(key, value) for key, value in extra.items())
    front = _block(b"attributes", 0o644, len(records), 0, _ATTRIBUTES, b"")
    return front + records + bytes(-len(records) % _BLOCK) + block


def _block(name: bytes, mode: int, size: int, modified: float, kind: bytes, target: bytes) -> bytes:
    seconds = min(max(int(modified), 0), 8**11 - 1)
    fields = [
        name[:100].ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0%07o\0" % (0, 0),
        b"%011o\0" % (size if size < 8**11 else 0),
        b"%011o\0" % seconds,
        b" " * 8,
        kind,
        target[:100].ljust(100, b"\0"),
        b"ustar\x0000",
    ]
    block = b"".join(fields).ljust(_BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """`length key=value`, where the length counts its own digits."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


OPERATIONS = {"put_archive": put_archive, "get_archive": get_archive}
