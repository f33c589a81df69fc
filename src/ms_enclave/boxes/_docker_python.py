"""A Python for images that have none: a copy of another image's, on a volume of the engine.

The volume is made once and used, read-only, by every later sandbox. What is not complete is never
used: a second, empty volume stands for the word that the first one is, and is made last.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread

from ms_enclave.boxes import _docker_owner as owners
from ms_enclave.boxes._starter import MACHINES, starter
from ms_enclave.errors import EnclaveError, SandboxStartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ms_enclave.boxes._docker_engine import Engine

__all__ = [
    "FOLDER",
    "LAYOUT",
    "PYTHON",
    "abandoned",
    "carry",
    "complete",
    "forget",
    "marker",
]

FOLDER = "/.ms-enclave"
"""Where the volume is, in a container."""
PYTHON = f"{FOLDER}/bin/python3"

LAYOUT = "2"
"""What is in it, and how; another number makes another volume."""
_PREFIX = "ms-enclave-python-"
_COMPLETE = "-complete"
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
_FILL_BOUND = 300.0
_WORDS = 2000

logger = logging.getLogger(__name__)


@dataclass
class _Known:
    """What one client of an engine knows."""

    lock: anyio.Lock
    complete: dict[str, str]
    """By what a volume is of: its name."""


_known: WeakKeyDictionary[Engine, _Known] = WeakKeyDictionary()


async def carry(engine: Engine, donor: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The name of a volume with a copy of an image's Python, made where there is none.

    Args:
        donor: what the engine knows of the image.
        labels: whose a container is that is made for that.

    Raises:
        SandboxStartError: it cannot be made.
    """
    known = _known.setdefault(engine, _Known(anyio.Lock(), {}))
    kind = f"{donor['Id']}/{LAYOUT}"
    async with known.lock:
        found = known.complete.get(kind) or await _find(engine, kind)
        if found is None:
            found = await _make(engine, donor, kind, labels)
        known.complete[kind] = found
        return found


async def forget(engine: Engine, name: str) -> None:
    """A volume is not what it was to be: it goes, and nobody looks for it there any more."""
    known = _known.get(engine)
    if known is not None:
        known.complete = {kind: held for kind, held in known.complete.items() if held != name}
    await engine.remove_volume(marker(name))
    await engine.remove_volume(name)


def marker(name: str) -> str:
    """The name of the volume that says that this one is complete."""
    return name + _COMPLETE


def complete(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Which volumes of these are complete, by what the engine knows of all there are."""
    names = {str(row["Name"]) for row in rows}
    return sorted(name for name in names if marker(name) in names)


def abandoned(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which are not, and never will be: whoever was to fill them has ended. Looks at processes."""
    whole = complete(rows)
    kept = {*whole, *map(marker, whole)}
    return [
        str(row["Name"])
        for row in rows
        if str(row["Name"]) not in kept and owners.is_gone(row.get("Labels") or {})
    ]


async def _find(engine: Engine, kind: str) -> str | None:
    return next(iter(complete(await engine.volumes([f"{owners.PYTHON}={kind}"]))), None)


async def _make(
    engine: Engine, donor: Mapping[str, Any], kind: str, labels: Mapping[str, str]
) -> str:
    """Make a volume and fill it. What fails or is cancelled leaves nothing."""
    name = _PREFIX + secrets.token_hex(6)
    image = (donor.get("RepoTags") or [donor["Id"]])[0]
    machine = _ARCHITECTURES.get(str(donor.get("Architecture")), "")
    if machine not in MACHINES:
        raise SandboxStartError(
            f"A Python cannot be carried into a container for {donor.get('Architecture')}",
            remedy="use an image that has Python 3.8 or later",
        )
    logger.info("taking a Python from %s for images that have none", image)
    given = {label: value for label, value in labels.items() if label != owners.KEPT}
    own = {label: value for label, value in given.items() if label != owners.SANDBOX}
    own[owners.PYTHON] = kind
    try:
        # Shielded, for an engine would go on with what nobody waits for any more.
        with anyio.CancelScope(shield=True):
            await engine.make_volume(name, own)
        _check(image, await _fill(engine, str(donor["Id"]), name, given, machine))
        with anyio.CancelScope(shield=True):
            await engine.make_volume(marker(name), own)
    except BaseException:
        with anyio.CancelScope(shield=True):
            for left in (marker(name), name):
                try:
                    await engine.remove_volume(left)
                except EnclaveError as error:
                    logger.warning("volume %s is still to be removed: %s", left, error)
        raise
    return name


def _check(image: str, said: str) -> None:
    if not said.startswith("complete"):
        raise SandboxStartError(
            f"The Python of {image} could not be taken: {said[-_WORDS:] or 'it said nothing'}",
            remedy="name an image with Python 3.8 or later, on a C library of 2021 or later, as "
            "`python_image`",
        )


async def _fill(
    engine: Engine, image: str, name: str, labels: Mapping[str, str], machine: str
) -> str:
    """What the program says that fills it: `complete`, or why it is not."""
    words = ("--library-path", f"{FOLDER}/so", "--argv0", PYTHON, f"{FOLDER}/so/program")
    code = starter(f"{FOLDER}/so/python3", words, machine).hex()
    source = await anyio.to_thread.run_sync(_donor)
    document: dict[str, Any] = {
        "Image": image,
        "User": "0",
        "WorkingDir": "/",
        "Entrypoint": ["python3", "-I", "-c", f"{source}\nmain({FOLDER!r}, {code!r})\n"],
        "Cmd": [],
        "Labels": {**labels, owners.SANDBOX: f"{labels[owners.SANDBOX]}-python"},
        "AttachStdout": True,
        "AttachStderr": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "NetworkMode": "none",
            "AutoRemove": True,
            "LogConfig": {"Type": "none", "Config": {}},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Mounts": [{"Type": "volume", "Source": name, "Target": FOLDER}],
        },
    }
    container = await engine.create(f"{name}-filler", document)
    try:
        attached = await engine.attach(container)
        try:
            await engine.start(container)
            said = b""
            with anyio.fail_after(_FILL_BOUND):
                try:
                    while True:
                        said += await attached.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return said.decode("utf-8", "replace") or attached.said
        except TimeoutError:
            return f"it took more than {_FILL_BOUND:g} s"
        finally:
            with anyio.CancelScope(shield=True):
                await attached.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            await engine.remove(container)


@cache
def _donor() -> str:
    return Path(__file__).with_name("_docker_donor.py").read_text(encoding="utf-8")
