"""Removes what was found of `process` sandboxes: as its next owner where one is waited for."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from typing import TYPE_CHECKING

import anyio.to_thread

from ms_enclave.boxes import _process_found as places
from ms_enclave.boxes import _state_lock as state_lock
from ms_enclave.errors import EnclaveError
from ms_enclave.spawner import stations

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from ms_enclave.model.diagnosis import FoundSandbox

__all__ = ["remove"]

_BLOCKING: dict[str, Callable[[str], object]] = {
    "box": places.end_box,
    "station": places.end_launcher,
    "group": places.end_group,
}


async def remove(found: Iterable[FoundSandbox]) -> None:
    """Remove them. What somebody has taken over meanwhile is left alone."""
    kept: dict[str, set[str]] = {}
    for one in found:
        sort, where = places.place_of(one)
        if sort == "kept":
            kept.setdefault(where, set()).add(one.id)
        else:
            await anyio.to_thread.run_sync(_BLOCKING[sort], where)
    for where, names in kept.items():
        await _remove_kept(where, names)


async def _remove_kept(where: str, names: set[str]) -> None:
    """Become the next owner of a station, and end these of its sandboxes."""
    known = await anyio.to_thread.run_sync(places.launchers)
    launcher = next((one for one in known if f"{one.pid}:{one.start}" == where), None)
    if launcher is None or launcher.folder is None:
        return
    if launcher.user != os.geteuid():  # root's: it answers its own user only
        await anyio.to_thread.run_sync(places.end_launcher, where)
        return
    with _owning(launcher.folder) as is_ours:
        if is_ours:
            await _end_some(launcher.folder, names)


async def _end_some(folder: str, names: set[str]) -> None:
    owner = secrets.token_hex(8)
    taken, _ = await stations.adopt_all(owner, folder)
    left = False
    try:
        for station in taken:
            boxes = await station.recall_boxes()
            for name in names & set(boxes):
                with contextlib.suppress(EnclaveError):  # it has ended just now
                    await station.close_box(name)
            left = left or bool(set(boxes) - names)
    finally:
        with anyio.CancelScope(shield=True):
            await (stations.leave_all_of(owner) if left else stations.end_all_of(owner))


@contextlib.contextmanager
def _owning(folder: str) -> Generator[bool]:
    """Have a state folder's lock, as a manager would; False where somebody has it."""
    try:
        lock = os.open(state_lock.of(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)
