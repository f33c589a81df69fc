"""What runs in a container of an image with Python: puts a copy of that Python where it is told to.

The copy needs nothing of the file system that it is then seen in: it has its own standard library,
its own shared libraries and its own dynamic loader. Standard library only, CPython 3.8 and later,
on Linux; sent as text.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import sys
import sysconfig

__all__ = ["main"]

_WITHOUT = (
    "test", "tests", "idlelib", "turtledemo", "tkinter", "ensurepip", "site-packages",
    "dist-packages", "config-*", "lib2to3", "pydoc_data",
)  # fmt: skip


def main(folder: str, starter: str) -> None:
    """Fill a folder; `starter` is the program that takes the interpreter's name there, in hex."""
    program = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    loader = _loader_of(program)
    with open(loader, "rb") as file:
        if b"argv0" not in file.read():
            raise SystemExit(f"{loader} cannot tell a program another name (glibc 2.33 can)")
    for name in ("bin", "lib", "so"):
        os.makedirs(os.path.join(folder, name), mode=0o755, exist_ok=True)
    library = sysconfig.get_path("stdlib")
    place = os.path.join(folder, "lib", os.path.basename(library))
    shutil.copytree(library, place, ignore=shutil.ignore_patterns(*_WITHOUT))
    for extension in glob.glob(os.path.join(place, "lib-dynload", "*.so")):
        try:
            ctypes.CDLL(extension)
        except OSError:
            os.unlink(extension)  # it wants what this image does not have
    for path in _libraries(program, place):
        _copy(path, os.path.join(folder, "so"))
    shutil.copyfile(loader, os.path.join(folder, "so", "python3"))
    shutil.copyfile(program, os.path.join(folder, "so", "program"))
    with open(os.path.join(folder, "bin", "python3"), "wb") as file:
        file.write(bytes.fromhex(starter))
    for path in ("so/python3", "so/program", "bin/python3", "."):
        _open_to_all(os.path.join(folder, path))
    os.write(1, b"complete\n")


def _open_to_all(path: str) -> None:
    os.chmod(path, 0o755)  # noqa: S103 - every user of a sandbox runs it, and nobody can write there


def _loader_of(program: str) -> str:
    """What PT_INTERP says, for 64-bit little-endian files (elf.h)."""
    with open(program, "rb") as file:
        header = file.read(64)
        offset = int.from_bytes(header[32:40], "little")
        size = int.from_bytes(header[54:56], "little")
        for number in range(int.from_bytes(header[56:58], "little")):
            file.seek(offset + number * size)
            row = file.read(size)
            if int.from_bytes(row[:4], "little") == 3:
                file.seek(int.from_bytes(row[8:16], "little"))
                name = file.read(int.from_bytes(row[32:40], "little")).rstrip(b"\0")
                return os.path.realpath(name.decode())
    raise SystemExit(f"{program} has no dynamic loader")


def _libraries(program: str, place: str) -> list[str]:
    """The shared libraries that are loaded now, and those that the C library loads by itself."""
    for name in ("libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
    with open("/proc/self/maps") as file:
        mapped = {line.split(None, 5)[5].strip() for line in file if len(line.split(None, 5)) == 6}
    return sorted(
        path
        for path in mapped
        if ".so" in os.path.basename(path) and path != program and not path.startswith(place)
    )


def _copy(path: str, folder: str) -> None:
    """Copy a library, under every name that it has where it lies."""
    real = os.path.realpath(path)
    shutil.copyfile(real, os.path.join(folder, os.path.basename(real)))
    _open_to_all(os.path.join(folder, os.path.basename(real)))
    parent = os.path.dirname(real)
    for name in os.listdir(parent):
        other = os.path.join(parent, name)
        link = os.path.join(folder, name)
        if os.path.islink(other) and os.path.realpath(other) == real and not os.path.lexists(link):
            os.symlink(os.path.basename(real), link)
