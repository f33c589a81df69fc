"""What the image of notebooks is built from, and whether one that is there was built from it. Pure.

An image of the default name that carries our label is ours, and is built anew when its base or
its Dockerfile has changed. One without the label is its maker's, and used as it is.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_enclave.boxes._docker_plan import LABEL
from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ms_enclave.model import DockerNotebookConfig

__all__ = [
    "BUILT_FROM",
    "DEFAULT",
    "context",
    "is_current",
    "label_of_build",
    "labels",
    "load",
    "uses_ours",
]

DEFAULT = "jupyter-kernel-gateway"
BUILT_FROM = f"{LABEL}notebook"
_MOST = 1 << 30
"""Bytes of wheels that go into a build."""


def uses_ours(config: DockerNotebookConfig) -> bool:
    """Whether the image is one that we build."""
    return config.image.removesuffix(":latest") == DEFAULT


def labels(base: Mapping[str, Any]) -> dict[str, str]:
    """What an image says that is built on this base."""
    return {BUILT_FROM: f"{_version()}-{base['Id']}"}


def label_of_build(number: str) -> str:
    """What everything carries that comes of one build."""
    return f"{LABEL}build={number}"


def is_current(image: Mapping[str, Any], base: Mapping[str, Any] | None) -> bool:
    """Whether an image can be used as it is.

    Args:
        base: None where it is not there to be compared with.
    """
    settings: dict[str, Any] = image.get("Config") or {}
    said: dict[str, str] = settings.get("Labels") or {}
    built_from = said.get(BUILT_FROM)
    if built_from is None:
        return True
    if base is None:
        return built_from.partition("-")[0] == _version()
    return built_from == labels(base)[BUILT_FROM]


def load() -> None:
    """Read files, once."""
    _version()


@cache
def _dockerfile() -> bytes:
    return files("ms_enclave.boxes.notebook").joinpath("Dockerfile").read_bytes()


@cache
def _version() -> str:
    return hashlib.sha256(_dockerfile()).hexdigest()[:12]


def context(wheels: str | None) -> bytes:
    """The archive to build from. Reads files.

    Raises:
        ConfigError: the folder of wheels is none, or is too large.
    """
    found = [] if wheels is None else _find(Path(wheels))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, "Dockerfile", _dockerfile())
        folder = tarfile.TarInfo("wheels")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for path in found:
            _add(archive, f"wheels/{path.name}", path.read_bytes())
    return buffer.getvalue()


def _find(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise ConfigError(
            f"wheels: there are none in {folder}",
            remedy="fill it: pip download --only-binary=:all: -d FOLDER jupyter_kernel_gateway "
            "ipykernel, with the --python-version of the base image",
        )
    if sum(path.stat().st_size for path in found) > _MOST:
        raise ConfigError(f"wheels: more than {_MOST >> 30} GiB in {folder}")
    return found


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))
