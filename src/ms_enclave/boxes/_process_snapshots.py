"""Snapshots of the embedded sandbox: how one becomes a layer of a station, and a layer one.

A program of ours (`spawner.transfer`) carries the files, as somebody who has no right to anything
of the host. A station has each snapshot once, in memory, below the files of all its sandboxes that
began with it; the last ones stay for the next.
"""

from __future__ import annotations

import errno
import os
import subprocess
import weakref
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from ms_enclave.boxes import _snapshot_plan as plan
from ms_enclave.errors import (
    CapabilityError,
    ConfigError,
    ForkRefusedError,
    SandboxLostError,
    SandboxStartError,
    SnapshotStoreError,
)
from ms_enclave.spawner import transfer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import IO

    from ms_enclave.boxes._snapshot_store import HeldSnapshot, IncomingSnapshot, SnapshotStore
    from ms_enclave.model import SnapshotInfo
    from ms_enclave.spawner.client import StationClient

__all__ = ["copy_files", "loaded", "store"]

_MOST_KEPT = 4
"""Snapshots that a station keeps though no sandbox is beginning with them."""


@dataclass
class _Loaded:
    """A snapshot that a station has: how many are beginning with it, and what to say to those whose
    work folder is /tmp."""

    users: int
    has_work: bool


class _Station:
    """Those of one station, the one that was used last at the end."""

    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.known: dict[str, _Loaded] = {}


_stations: weakref.WeakKeyDictionary[StationClient, _Station] = weakref.WeakKeyDictionary()


async def copy_files(station: StationClient, box: str) -> tuple[int, int]:
    """What a sandbox has stored, copied aside: descriptors of its layer and of its users.

    Raises:
        ForkRefusedError: it is too much, or changes meanwhile.
    """
    told = await station.give("copy", box=box)
    if isinstance(told, dict):
        raise ForkRefusedError(
            f"The sandbox's files cannot be copied: {'; '.join(told['blockers'])}",
            blockers=told["blockers"],
        )
    return told


def store(
    station: StationClient, layer: tuple[int, int], name: str, snapshots: SnapshotStore
) -> SnapshotInfo:
    """Have a layer as a snapshot. Blocks.

    Raises:
        ConfigError: there is one of that name.
        ForkRefusedError: its files are too much.
        SnapshotStoreError: it cannot be stored.
    """
    with snapshots.begin() as incoming:
        _pack(station, layer, incoming)
        return incoming.enter(name)


def _pack(station: StationClient, layer: tuple[int, int], incoming: IncomingSnapshot) -> None:
    process = _transfer("pack", station, layer, stdin=subprocess.DEVNULL, stdout=incoming.file)
    _, said = process.communicate()
    if process.returncode:
        text = f"The sandbox's files cannot be stored: {_what(said)}"
        if said.startswith(b"%d " % errno.E2BIG):  # of the sandbox's, not of the disk's doing
            raise ForkRefusedError(text, blockers=[_what(said)])
        raise SnapshotStoreError(text)


def _transfer(
    what: str, station: StationClient, layer: tuple[int, int],
    stdin: int, stdout: int | IO[bytes],
) -> subprocess.Popen[bytes]:  # fmt: skip
    """The program that carries, at work."""
    ids = "many" if station.facts["root_mode"] else "one"
    words = [station.plan["launcher_python"], "-I", "-S", str(Path(transfer.__file__).resolve())]
    return subprocess.Popen(
        [*words, what, str(layer[0]), str(layer[1]), str(plan.MAX_BYTES), ids],
        pass_fds=layer, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env={}, cwd="/",
    )  # fmt: skip


def _what(said: bytes) -> str:
    return said[-500:].decode("utf-8", "replace").strip().partition(" ")[2] or "it was ended"


@asynccontextmanager
async def loaded(
    station: StationClient, name: str, snapshots: SnapshotStore, work: str
) -> AsyncGenerator[str, None]:
    """What a sandbox that begins with a snapshot names to the station, in the block.

    Raises:
        SnapshotNotFoundError, SnapshotStoreError: there is none of that name, or it is damaged.
        CapabilityError: this machine's kernel cannot share files so.
        ConfigError: the sandbox has no place for what is in it.
    """
    info = await anyio.to_thread.run_sync(snapshots.find, name)
    known = _stations.setdefault(station, _Station())
    async with known.lock:
        if info.id not in known.known:
            info = await _load(station, known, await anyio.to_thread.run_sync(snapshots.hold, name))
        found = known.known[info.id] = known.known.pop(info.id)  # the last one now
        found.users += 1
    try:
        if work == "/tmp" and found.has_work:  # noqa: S108 - inside
            raise ConfigError(
                f"The snapshot {name!r} has files of a work folder beside those of /tmp",
                remedy="use another working_dir than /tmp",
            )
        yield info.id
    finally:
        found.users -= 1
        with anyio.CancelScope(shield=True):
            await _make_room(station, known)


async def _make_room(station: StationClient, known: _Station) -> None:
    """Let go of those that nobody was beginning with for longest."""
    idle = [one for one, found in known.known.items() if not found.users]
    for one in idle[: max(0, len(known.known) - _MOST_KEPT)]:
        del known.known[one]
        if station.alive:
            with suppress(SandboxLostError):
                await station.ask("drop", box="", checkpoint=one)


async def _load(station: StationClient, known: _Station, held: HeldSnapshot) -> SnapshotInfo:
    """Have a station have one, whole or not at all. Closes what it is read from."""
    with held:
        if held.info.id in known.known:  # it was deleted just now, and this one has its name
            return held.info
        disk, inodes = plan.room_for(held.listing)
        layer = await station.give("layer", disk=disk, inodes=inodes)
        if isinstance(layer, dict):
            raise CapabilityError("snapshot", remedy="snapshots take Linux 6.15 or newer")
        try:
            await anyio.to_thread.run_sync(_unpack, station, layer, held)
            await station.ask("hold", [layer[0]], checkpoint=held.info.id)
        finally:
            for descriptor in layer:
                os.close(descriptor)
        has_work = any(one.path.startswith("work/") for one in held.listing.entries)
        known.known[held.info.id] = _Loaded(0, has_work)
        return held.info


def _unpack(station: StationClient, layer: tuple[int, int], held: HeldSnapshot) -> None:
    process = _transfer("unpack", station, layer, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    with process:
        try:
            with suppress(BrokenPipeError):  # it has ended, and says why
                for piece in held.pieces():
                    process.stdin.write(piece)  # pyright: ignore[reportOptionalMemberAccess]
            _, said = process.communicate()
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise SandboxStartError(f"The snapshot {held.info.name!r} cannot be loaded: {_what(said)}")
