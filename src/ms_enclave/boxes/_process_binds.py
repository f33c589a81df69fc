"""What of the host shows where in a process sandbox: binds, and the volumes of a config."""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Bind", "below", "covered", "volume_binds", "without_covered"]

_NEVER_A_SOURCE = ("/proc", "/sys", "/dev", "/run")
"""Kernel interfaces, and the sockets of everything that runs on the host."""
_REMOVABLE_MEDIA = "/run/media"
_TAKEN = ("/", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/tmp", "/run")  # noqa: S108
_TAKEN_BELOW = ("/proc", "/sys", "/dev", "/run/enclave", "/.enclave")


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host and where it shows."""

    source: str
    target: str
    writable: bool = False

    def row(self) -> dict[str, Any]:
        return {"source": self.source, "target": self.target, "writable": self.writable}


def below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it, going by the names."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def covered(path: str, binds: Iterable[Bind]) -> bool:
    """Whether one of the binds that are only read shows the path."""
    return any(below(path, bind.target) for bind in binds if not bind.writable)


def without_covered(binds: Iterable[Bind]) -> list[Bind]:
    """Each bind once, folders before what is in them, and none that another already shows."""
    kept: list[Bind] = []
    for bind in sorted(set(binds), key=lambda bind: (bind.target.count("/"), bind.target)):
        shown = any(
            bind.source == bind.target and other.source == other.target
            and below(bind.target, other.target)
            for other in kept
        )  # fmt: skip
        if not shown:
            kept.append(bind)
    return kept


def volume_binds(volumes: Mapping[str, Mapping[str, str]], system: Sequence[Bind]) -> list[Bind]:
    """The volumes of a config, checked against each other and against what is there anyway.

    Raises:
        ConfigError: a source is not there or must not be shown, or a target is taken.
    """
    found: list[Bind] = []
    for source, spec in volumes.items():
        bind = _volume(source, spec)
        if any(bind.target == other.target for other in found):
            raise ConfigError(f"two volumes want to be {bind.target}")
        if covered(bind.target, system) and not os.path.exists(bind.target):
            raise ConfigError(
                f"volume {source}: {bind.target} is in a folder that the sandbox only reads",
                remedy="give it a target outside the system's folders, for instance in /mnt",
            )
        found.append(bind)
    return found


def _volume(source: str, spec: Mapping[str, str]) -> Bind:
    mode = spec.get("mode", "rw")
    if set(spec) - {"bind", "mode"} or mode not in ("ro", "rw"):
        raise ConfigError(f"volume {source}: give it as {{'bind': path, 'mode': 'ro' or 'rw'}}")
    return Bind(_source(source), _target(source, spec.get("bind", "")), mode == "rw")


def _target(source: str, target: str) -> str:
    plain = target.rstrip("/")
    if not target.startswith("/") or "\0" in target or posixpath.normpath(target) != (plain or "/"):
        raise ConfigError(f"volume {source}: its target must be a plain absolute path: {target!r}")
    if (plain or "/") in _TAKEN or any(below(plain, folder) for folder in _TAKEN_BELOW):
        raise ConfigError(f"volume {source}: {plain or '/'} is taken")
    return plain


def _source(source: str) -> str:
    path = os.path.expanduser(source)
    if not os.path.isabs(path) or "\0" in path or not os.path.exists(path):
        raise ConfigError(f"volume {source}: there is no such file or folder on the host")
    real = os.path.realpath(path)
    forbidden = real == "/" or any(below(real, folder) for folder in _NEVER_A_SOURCE)
    if forbidden and not below(real, _REMOVABLE_MEDIA):
        raise ConfigError(f"volume {source}: {real} is never shown to a sandbox")
    kind = os.stat(real).st_mode
    if stat.S_ISSOCK(kind):
        raise ConfigError(f"volume {source}: a socket would lead out of the sandbox")
    if not stat.S_ISDIR(kind) and not stat.S_ISREG(kind):
        raise ConfigError(f"volume {source}: {real} is neither a file nor a folder")
    return real
