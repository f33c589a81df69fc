"""What an engine has of ours: whose it is, and removing what nobody has.

Containers, which are sandboxes, and the volumes with a Python for images without
(`_docker_python`), which are kept for later ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio.to_thread

from ms_enclave.boxes import _docker_owner as owners
from ms_enclave.boxes import _docker_python as carried
from ms_enclave.boxes import _state_lock as state_lock
from ms_enclave.boxes._docker_engine import engine
from ms_enclave.model.diagnosis import FoundSandbox

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ms_enclave.boxes._docker_engine import Engine

__all__ = ["clear", "find", "remove", "sweep"]


async def find(sandbox_type: str, found_by: Engine) -> list[FoundSandbox]:
    """All of a type, oldest first."""
    return [one for one in await _find_all(found_by) if one.sandbox_type == sandbox_type]


async def _find_all(found_by: Engine) -> list[FoundSandbox]:
    rows = await found_by.list([owners.SANDBOX])
    found = await anyio.to_thread.run_sync(lambda: [_found(row) for row in rows])
    return sorted(found, key=lambda one: one.created)


async def remove(found: Iterable[FoundSandbox]) -> None:
    """Remove containers, running ones too."""
    async with engine() as remover:
        for one in found:
            await remover.remove(remover.container(one.place))


async def sweep(sweeper: Engine) -> None:
    """Remove what an owner that was killed has left: containers that never ran, since those that
    ran end by themselves, and volumes that it had begun to fill."""
    for one in await _find_all(sweeper):
        if one.owner == "gone" and not one.kept:
            await sweeper.remove(sweeper.container(one.place))
    rows = await sweeper.volumes([owners.PYTHON])
    for name in await anyio.to_thread.run_sync(carried.abandoned, rows):
        await sweeper.remove_volume(name)


async def clear(clearer: Engine, *, dry_run: bool) -> list[str]:
    """Remove what is kept for later sandboxes and no container has; gives what it is called."""
    rows = await clearer.volumes([owners.PYTHON])
    cleared: list[str] = []
    for name in carried.complete(rows):
        if await clearer.users_of(name):
            continue
        # The word that it is complete goes first: half of it is of no use.
        if dry_run or (await _discard(clearer, name)):
            cleared.append(f"volume {name} (a Python for images without)")
    return cleared


async def _discard(clearer: Engine, name: str) -> bool:
    await clearer.remove_volume(carried.marker(name))
    return await clearer.remove_volume(name)


def _found(row: dict[str, Any]) -> FoundSandbox:
    labels = cast("dict[str, str]", row.get("Labels") or {})
    gone = owners.is_gone(labels)
    state = labels.get(owners.STATE, "")
    is_left = bool(state) and gone is True and row.get("State") != "created"
    if is_left and state_lock.is_held(state_lock.of(state)):
        gone = False  # another manager has it by now
    return FoundSandbox(
        sandbox_type=owners.type_of(labels),
        id=labels.get(owners.SANDBOX, ""),
        place=str(row.get("Id", "")),
        state=str(row.get("State", "")),
        created=labels.get(owners.CREATED, ""),
        manager=labels.get(owners.MANAGER, ""),
        owner="unknown" if gone is None else "gone" if gone else "alive",
        kept=owners.KEPT in labels or is_left,
    )
