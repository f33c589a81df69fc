"""What makes a guest of an interpreter that has no file of ours: see `guest.loader`."""

from __future__ import annotations

import marshal
from functools import cache
from pathlib import Path

from ms_enclave.guest import loader

__all__ = ["TOO_OLD", "again", "argv", "payload"]

TOO_OLD = loader.TOO_OLD
_FOLDER = Path(loader.__file__).parent
_WITHOUT = ("boot", "loader")
_FORMAT = 2  # of `marshal`: what every interpreter reads


def argv(python: str) -> list[str]:
    """The program to start, by the name or path of its interpreter."""
    return [python, "-I", "-S", "-c", loader.START]


def payload(secret: bytes = b"") -> bytes:
    """What it reads first, before it answers as a guest does. Reads files once.

    Args:
        secret: has it offer a socket of its own; see `guest.offer`.
    """
    return _modules() + _part(secret)


def again(secret: bytes) -> bytes:
    """What a guest reads first that has lost its host, and is to offer another one a socket."""
    return _part(secret)


@cache
def _modules() -> bytes:
    sources = {
        _name(path.stem): path.read_bytes()
        for path in sorted(_FOLDER.glob("*.py"))
        if path.stem not in _WITHOUT
    }
    compiled = {
        name: marshal.dumps(compile(source, f"<{name}>", "exec", dont_inherit=True))
        for name, source in sources.items()
    }
    modules = marshal.dumps((sources, loader.reads(), compiled), _FORMAT)
    return _part(Path(loader.__file__).read_bytes()) + _part(modules)


def _part(data: bytes) -> bytes:
    return b"%08d" % len(data) + data


def _name(stem: str) -> str:
    return "guest" if stem == "__init__" else f"guest.{stem}"
