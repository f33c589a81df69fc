"""Which station serves whom: one for each owner and plan, shared by the owner's sandboxes.

A manager keeps its stations until it stops. A sandbox that no manager made brings its own, which
ends with the last sandbox that uses it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ms_enclave.errors import IsolationUnavailableError, SandboxStartError
from ms_enclave.loop import add_closer, remove_closer
from ms_enclave.spawner import keeping
from ms_enclave.spawner.client import StationClient
from ms_enclave.spawner.launch import take, take_over
from ms_enclave.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["acquire", "adopt_all", "end_all_of", "leave_all_of", "release"]

ADOPT_SECONDS = 20.0
"""Seconds that a station of the last owner may take to answer before it is ended."""

_stations: dict[tuple[str, str], StationClient] = {}
_locks: dict[tuple[str, str], anyio.Lock] = {}


def _forget_in_child() -> None:
    _stations.clear()
    _locks.clear()


if sys.platform != "win32":
    import os

    os.register_at_fork(after_in_child=_forget_in_child)


async def acquire(owner: str, key: str, plan: Mapping[str, Any]) -> StationClient:
    """The owner's station for a plan, started if there is none; to be given back by `release`.

    Raises what `StationClient.start` raises.
    """
    place = (owner, key)
    async with _locks.setdefault(place, anyio.Lock()):
        station = _stations.get(place)
        if station is not None and not station.alive:
            await _end(place)
            station = None
        if station is None:
            station = StationClient({**plan, "key": key}, take(key))
            await station.start()
            _stations[place] = station
            add_closer(station, station.leave if station.keeps else station.close, last=True)
        station.users += 1
        return station


async def release(owner: str, station: StationClient, *, keep: bool) -> None:
    """Give a station back; it ends with its last user unless the owner keeps it."""
    station.users -= 1
    if not keep and station.users <= 0:
        for place, known in list(_stations.items()):
            if known is station and place[0] == owner:
                async with _locks[place]:
                    if known.users <= 0 and _stations.get(place) is known:
                        await _end(place)


async def end_all_of(owner: str) -> None:
    """End every station of an owner."""
    for place in [place for place in _stations if place[0] == owner]:
        async with _locks[place]:
            if place in _stations:
                await _end(place)


async def adopt_all(owner: str, path: str) -> tuple[list[StationClient], list[str]]:
    """The stations that a last owner left in a folder, now this one's; and what was lost of them.

    Precondition: this owner has locked the folder.
    """
    found, complaints = await anyio.to_thread.run_sync(keeping.find, path)
    adopted: list[StationClient] = []

    async def one(survivor: keeping.Survivor) -> None:
        launched = take_over(survivor.connection, survivor)
        station = StationClient({"keep": path}, launched)
        try:
            await station.start(ADOPT_SECONDS)
        except (SandboxStartError, IsolationUnavailableError) as error:
            complaints.append(error.message)
            return
        if station.facts["release"] != __version__:
            release = station.facts["release"]
            complaints.append(f"version {release} made them, and only that can adopt them")
            await station.leave()
            return
        place = (owner, station.facts["key"])
        while place in _stations:
            place = (owner, f"{place[1]}+")  # it serves what it has, and no new one
        _stations[place] = station
        _locks.setdefault(place, anyio.Lock())
        add_closer(station, station.leave, last=True)
        adopted.append(station)

    async with anyio.create_task_group() as group:
        for survivor in found:
            group.start_soon(one, survivor)
    return adopted, complaints


async def leave_all_of(owner: str) -> None:
    """Let go of the owner's stations that are to outlive it."""
    for place, station in list(_stations.items()):
        if place[0] == owner and station.keeps:
            del _stations[place]
            remove_closer(station)
            await station.leave()


async def _end(place: tuple[str, str]) -> None:
    station = _stations.pop(place)
    remove_closer(station)
    with anyio.CancelScope(shield=True):
        await station.close()
