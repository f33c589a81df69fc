"""Root file systems that a sandbox is given instead of the host's: folders and OCI archives.

An archive is unpacked once, into a folder of the user's cache that is named by the digest of its
manifest. Everything in it is checked against its digest before any of it is written. Owners,
special bits and devices are not taken over: nothing in a sandbox is root, and what lies on the
host's disk must not be more than files.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import posixpath
import re
import shutil
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = [
    "Image",
    "can_name_programs",
    "find_python",
    "find_shell",
    "loader_of",
    "open_image",
    "resolve_inside",
]

ARCHIVE = "oci-archive:"
MAX_BYTES = 32 << 30
"""Bytes that one layer may unpack to."""
MAX_MEMBERS = 2_000_000

_KEPT_SECONDS = 30 * 86400.0
_MANY_LINKS = 40
_MANY_INDEXES = 4
_MAX_DOCUMENT = 16 << 20
_CHUNK = 1 << 20
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_PYTHONS = ("/usr/local/bin/python3", "/usr/bin/python3", "/bin/python3", "/opt/conda/bin/python3")
_SHELLS = ("/bin/bash", "/usr/bin/bash", "/bin/sh")
_OLDEST_PYTHON = 8
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_INDEXES = ("image.index.v1+json", "manifest.list.v2+json")
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})")


@dataclass(frozen=True)
class Image:
    """A root file system: its folder on the host, and the environment that it asks for."""

    root: str
    env: Mapping[str, str] = field(default_factory=dict[str, str])


def open_image(rootfs: str) -> Image:
    """The root file system that a config names. Blocks; an archive is unpacked the first time.

    Raises:
        ConfigError: there is none, or it is no valid archive for this machine.
    """
    if rootfs.startswith(ARCHIVE):
        return _open_archive(rootfs[len(ARCHIVE) :])
    root = os.path.realpath(os.path.expanduser(rootfs))
    if not os.path.isdir(root) or root == "/":
        raise ConfigError(
            f"There is no root file system at {rootfs}",
            remedy="give `rootfs` a folder, or oci-archive: and the path of an archive",
        )
    return Image(root)


# --- looking into one ---------------------------------------------------------------------------


def resolve_inside(root: str, path: str) -> str:
    """Where a path leads with `root` as the root, links included; it never leaves `root`.

    What does not exist counts as plain names.

    Raises:
        ConfigError: links that lead in a circle.
    """
    pending = path.split("/")[::-1]
    found: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del found[-1:]
            continue
        try:
            target = os.readlink(os.path.join(root, *found, part))
        except OSError:
            found.append(part)
            continue
        links += 1
        if links > _MANY_LINKS:
            raise ConfigError(f"links that lead in a circle in {root}: {path}")
        if target.startswith("/"):
            found.clear()
        pending += target.split("/")[::-1]
    return os.path.join(root, *found)


def find_python(root: str) -> str | None:
    """The path inside of a Python that our guest can run on; None if there is none."""
    for path in _PYTHONS:
        real = resolve_inside(root, path)
        version = re.search(r"python3\.(\d+)$", real)
        if os.path.isfile(real) and (version is None or int(version[1]) >= _OLDEST_PYTHON):
            return path
    return None


def find_shell(root: str) -> str:
    """The path inside of a shell: bash where there is one."""
    return next((path for path in _SHELLS if os.path.isfile(resolve_inside(root, path))), "/bin/sh")


def loader_of(program: str) -> tuple[str, list[str]]:
    """The dynamic loader of a program of the host, and the folders its libraries are in.

    Raises:
        ConfigError: the program is not an ELF file with a loader.
    """
    loader = _elf_loader(program)
    if loader is None:
        raise ConfigError(f"{program} cannot be put beside a root file system without Python")
    loader = os.path.realpath(loader)
    folders = [
        os.path.join(os.path.dirname(os.path.dirname(program)), "lib"),  # its own before others
        os.path.dirname(loader),
        *("/lib64", "/usr/lib64", "/lib", "/usr/lib"),
        *sorted(glob.glob("/usr/lib/*-linux-gnu")),
    ]
    return loader, list(dict.fromkeys(folders))


def can_name_programs(loader: str) -> bool:
    """Whether a dynamic loader can tell a program another name than its file's (glibc 2.33)."""
    with open(loader, "rb") as file:
        return b"--argv0" in file.read()


def _elf_loader(program: str) -> str | None:
    """What PT_INTERP says, for 64-bit little-endian files (elf.h)."""
    with open(program, "rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            return None
        offset = int.from_bytes(header[32:40], "little")
        size = int.from_bytes(header[54:56], "little")
        for number in range(int.from_bytes(header[56:58], "little")):
            file.seek(offset + number * size)
            row = file.read(size)
            if int.from_bytes(row[:4], "little") == 3:
                file.seek(int.from_bytes(row[8:16], "little"))
                return file.read(int.from_bytes(row[32:40], "little")).rstrip(b"\0").decode()
    return None


# --- archives -----------------------------------------------------------------------------------


def _open_archive(name: str) -> Image:
    path = Path(name).expanduser()
    wanted = None
    if not path.exists() and ":" in name:  # skopeo's form: the archive and a reference in it
        archive, _, wanted = name.rpartition(":")
        path = Path(archive).expanduser()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            blobs = _Blobs(tar, path)
            descriptor = _choose_manifest(blobs, wanted)
            return _unpack_once(blobs, descriptor)
    except FileNotFoundError:
        raise ConfigError(
            f"There is no archive at {path}",
            remedy="make one with: skopeo copy docker://IMAGE oci-archive:FILE.tar",
        ) from None
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{path} is no valid OCI archive: {error}") from error
    except (IsADirectoryError, PermissionError) as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error


class _Blobs:
    """The content of an OCI layout in an uncompressed tar."""

    def __init__(self, tar: tarfile.TarFile, path: Path) -> None:
        self.path = path
        self._tar = tar
        self._members = {posixpath.normpath(member.name): member for member in tar}

    def document(self, name: str) -> dict[str, Any]:
        """A JSON object of the layout by its path."""
        with self._open(name) as file:
            return self._parse(file.read(_MAX_DOCUMENT))

    def described(self, descriptor: Mapping[str, Any]) -> dict[str, Any]:
        """A JSON object by its descriptor, checked against the digest."""
        with self.blob(descriptor) as file:
            return self._parse(file.read(_MAX_DOCUMENT))

    @contextlib.contextmanager
    def blob(self, descriptor: Mapping[str, Any]) -> Generator[IO[bytes]]:
        """A blob, at its start, after its digest has been found right."""
        digest = str(descriptor.get("digest"))
        parsed = _DIGEST.fullmatch(digest)
        if parsed is None:
            raise self.bad(f"a digest of an unknown kind: {digest[:80]}")
        with self._open(f"blobs/{parsed[1]}/{parsed[2]}") as file:
            if _digest(file, parsed[1]) != parsed[2]:
                raise self.bad(f"content that does not have the digest {digest}")
            file.seek(0)
            yield file

    def bad(self, text: str) -> ConfigError:
        return ConfigError(f"{self.path} is no valid OCI archive: {text}")

    def _open(self, name: str) -> IO[bytes]:
        member = self._members.get(name)
        file = self._tar.extractfile(member) if member is not None and member.isreg() else None
        if file is None:
            raise self.bad(f"it has no {name}")
        return file

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            document: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.bad(str(error)) from error
        if not isinstance(document, dict):
            raise self.bad("a document that is no object")
        return cast("dict[str, Any]", document)


def _digest(file: IO[bytes], kind: str) -> str:
    found = hashlib.new(kind)
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return found.hexdigest()


def _choose_manifest(blobs: _Blobs, wanted: str | None) -> dict[str, Any]:
    """The descriptor of the image for this machine."""
    index = blobs.document("index.json")
    machine = _MACHINES.get(platform.machine(), platform.machine())
    for _ in range(_MANY_INDEXES):
        rows = [row for row in _rows(blobs, index, "manifests") if _fits(row, machine, wanted)]
        if not rows:
            raise ConfigError(
                f"{blobs.path} has no image {wanted or ''} for linux/{machine}".replace("  ", " ")
            )
        if not str(rows[0].get("mediaType")).endswith(_INDEXES):
            return rows[0]
        index, wanted = blobs.described(rows[0]), None
    raise blobs.bad("indexes in indexes")


def _fits(row: Mapping[str, Any], machine: str, wanted: str | None) -> bool:
    place = _object(row.get("platform"))
    name = _object(row.get("annotations")).get("org.opencontainers.image.ref.name")
    right_place = (
        place.get("os", "linux") == "linux" and place.get("architecture", machine) == machine
    )
    return right_place and wanted in (None, name)


def _rows(blobs: _Blobs, document: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = _list(document.get(key))
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise blobs.bad(f"a document without {key}")
    return rows


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _unpack_once(blobs: _Blobs, descriptor: Mapping[str, Any]) -> Image:
    """The unpacked image, from the cache if it is there."""
    manifest = blobs.described(descriptor)
    settings = blobs.described(_object(manifest.get("config")))
    place = _cache() / str(descriptor["digest"]).replace(":", "-")
    with _locked(place.with_name(f"{place.name}.lock")):
        if not place.is_dir():
            partial = place.with_name(f"{place.name}.partial")
            if partial.exists():  # of somebody who was killed
                shutil.rmtree(partial)
            partial.mkdir(mode=0o755)
            try:
                _unpack_layers(blobs, manifest, settings, str(partial))
                os.sync()  # a name in the cache stands for complete content, also after a crash
                partial.rename(place)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            _forget_unused(place.parent)
    return Image(str(place), _environment(settings))


def _forget_unused(cache: Path) -> None:
    """Remove images that no sandbox was made from for long, and that none is made of now."""
    before = time.time() - _KEPT_SECONDS
    for lock in cache.glob("*.lock"):
        image = lock.with_suffix("")
        if not image.is_dir() or lock.stat().st_mtime > before:
            continue
        with contextlib.suppress(OSError), _locked(lock, wait=False):
            # Whoever has had it meanwhile has used it, or will see that it is not there.
            if lock.stat().st_mtime <= before and not _is_mounted(image.name):
                gone = image.with_name(f"{image.name}.partial")
                image.rename(gone)  # at once; the rest is as what somebody killed has left
                shutil.rmtree(gone)


def _is_mounted(name: str) -> bool:
    """Whether a process that we may look at has it among its mounts, as every sandbox's have."""
    for mounts in glob.iglob("/proc/[0-9]*/mountinfo"):
        with contextlib.suppress(OSError), open(mounts, encoding="utf-8", errors="replace") as file:
            if name in file.read():
                return True
    return False


def _environment(settings: Mapping[str, Any]) -> dict[str, str]:
    pairs = [str(line).partition("=") for line in _list(_object(settings.get("config")).get("Env"))]
    return {name: value for name, _, value in pairs if name}


def _cache() -> Path:
    """The folder of unpacked images: the user's own.

    Raises:
        ConfigError: it cannot be made, or belongs to somebody else.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "ms-enclave" / "images"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as error:
        owner, reason = -1, error.strerror
    else:
        reason = "it belongs to somebody else"
    if owner != os.geteuid():
        raise ConfigError(
            f"Images cannot be unpacked to {folder}: {reason}",
            remedy="set XDG_CACHE_HOME to a folder of your own",
        )
    return folder


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Generator[None]:
    """Hold a lock, whose time is that of its last use. Raises BlockingIOError if not to wait."""
    import fcntl  # not on every system that can import this module

    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if wait:
            os.utime(path)
        yield


# --- layers -------------------------------------------------------------------------------------


def _unpack_layers(
    blobs: _Blobs, manifest: Mapping[str, Any], settings: Mapping[str, Any], root: str
) -> None:
    layers = _rows(blobs, manifest, "layers")
    content = _list(_object(settings.get("rootfs")).get("diff_ids"))
    if len(layers) != len(content):
        raise blobs.bad(f"{len(layers)} layers and {len(content)} digests of their content")
    for layer, digest in zip(layers, content, strict=True):
        with blobs.blob(layer) as packed, _uncompressed(blobs, layer, packed, root) as plain:
            parsed = _DIGEST.fullmatch(str(digest))
            if parsed is None or _digest(plain, parsed[1]) != parsed[2]:
                raise blobs.bad(f"a layer that does not have the content {str(digest)[:80]}")
            plain.seek(0)
            _Layer(blobs, root).unpack(plain)


@contextlib.contextmanager
def _uncompressed(
    blobs: _Blobs, layer: Mapping[str, Any], packed: IO[bytes], beside: str
) -> Generator[IO[bytes]]:
    kind = str(layer.get("mediaType"))
    if kind.endswith("tar"):
        yield packed
    elif kind.endswith(("+gzip", ".gzip")):
        with tempfile.TemporaryFile(dir=os.path.dirname(beside)) as plain:
            _inflate(blobs, packed, plain)
            yield plain
    else:
        raise ConfigError(
            f"{blobs.path} has a layer of a kind that cannot be unpacked here: {kind}",
            remedy="make the archive with gzip layers: skopeo copy --dest-compress-format gzip …",
        )


def _inflate(blobs: _Blobs, packed: IO[bytes], plain: IO[bytes]) -> None:
    import gzip
    import zlib

    total = 0
    try:
        with gzip.GzipFile(fileobj=packed) as file:
            while chunk := file.read(_CHUNK):
                total += len(chunk)
                if total > MAX_BYTES:
                    raise blobs.bad(f"a layer of more than {MAX_BYTES} bytes")
                plain.write(chunk)
    except (OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the archive
        raise blobs.bad(str(error)) from error
    plain.seek(0)


class _Layer:
    """Puts one layer onto what the layers before it have made of `root`.

    Nobody else writes there meanwhile, so a path that was looked at is still what it was.
    """

    def __init__(self, blobs: _Blobs, root: str) -> None:
        self._blobs = blobs
        self._root = root
        self._own: set[str] = {root}
        """What this layer has made: whiteouts are for the layers before."""
        self._folders: dict[str, str] = {}

    def unpack(self, file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for number, member in enumerate(iter(tar.next, None)):
                if number > MAX_MEMBERS:
                    raise self._blobs.bad(f"a layer of more than {MAX_MEMBERS} files")
                self._put(tar, member)
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def _put(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = [part for part in member.name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in member.name:
            raise self._blobs.bad(f"an unsafe name: {member.name!r}")
        if not parts:
            return
        folder = self._folder("/".join(parts[:-1]))
        path = os.path.join(folder, parts[-1])
        if parts[-1] == _OPAQUE:
            self._clear(folder)
        elif parts[-1].startswith(_WHITEOUT):
            hidden = os.path.join(folder, parts[-1][len(_WHITEOUT) :])
            if os.path.dirname(hidden) == folder and os.path.basename(hidden) not in (
                "",
                ".",
                "..",
            ):
                self._hide(hidden)
        else:
            self._make(tar, member, path)

    def _folder(self, name: str) -> str:
        """The real place of a folder, made if it is missing; everything on the way is ours."""
        found = self._folders.get(name)
        if found is None:
            found = resolve_inside(self._root, name)
            try:
                os.makedirs(found, 0o755, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise self._blobs.bad(f"a file in the place of the folder {name!r}") from None
            self._folders[name] = found
        self._mark(found)
        return found

    def _mark(self, path: str) -> None:
        while path not in self._own:
            self._own.add(path)
            path = os.path.dirname(path)

    def _make(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            if not os.path.isdir(path) or os.path.islink(path):
                self._remove(path)
                os.mkdir(path)
            os.chmod(path, member.mode & 0o1777 | 0o700)
        elif member.isreg():
            self._remove(path)
            self._write(cast("IO[bytes]", tar.extractfile(member)), member, path)
        elif member.issym():
            self._remove(path)
            os.symlink(member.linkname, path)
        elif member.islnk():
            self._link(member, path)
        else:
            return  # a device or a pipe: a sandbox has its own /dev
        self._mark(path)

    def _write(self, content: IO[bytes], member: tarfile.TarInfo, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            shutil.copyfileobj(content, file, _CHUNK)
            os.fchmod(file.fileno(), member.mode & 0o777 | 0o600)
        with contextlib.suppress(OverflowError, OSError, ValueError):
            os.utime(path, (member.mtime, member.mtime))  # cached bytecode goes by it

    def _link(self, member: tarfile.TarInfo, path: str) -> None:
        folder, _, name = member.linkname.rpartition("/")
        source = os.path.join(resolve_inside(self._root, folder), name)
        if (
            not os.path.lexists(source)
            or name in ("", ".", "..")
            or (os.path.isdir(source) and not os.path.islink(source))
        ):
            raise self._blobs.bad(f"a link to what is not there: {member.linkname!r}")
        if source != path:
            self._remove(path)
            os.link(source, path, follow_symlinks=False)

    def _hide(self, path: str) -> None:
        if path not in self._own:
            self._remove(path)
        elif os.path.isdir(path) and not os.path.islink(path):
            self._clear(path)

    def _clear(self, folder: str) -> None:
        """Remove what the layers before put into a folder, at any depth."""
        for name in os.listdir(folder):
            self._hide(os.path.join(folder, name))

    def _remove(self, path: str) -> None:
        if not os.path.lexists(path):
            return
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
        self._folders.clear()  # a link on the way to a folder may be gone
