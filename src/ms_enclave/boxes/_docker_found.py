"""What an engine has of ours: whose it is, and removing what nobody has.

Containers, and the volumes with a Python for images without (`_docker_python`), which are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio.to_thread

from ms_enclave.boxes import _docker_owner as owners
from ms_enclave.boxes import _docker_python as carried
from ms_enclave.boxes._docker_engine import engine
from ms_enclave.model.diagnosis import FoundSandbox

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ms_enclave.boxes._docker_engine import Engine

__all__ = ["CACHE", "find", "remove", "sweep"]

CACHE = "cache"
"""The state of what is no sandbox, and kept for later ones."""


async def find(sandbox_type: str, found_by: Engine) -> list[FoundSandbox]:
    """All of them, oldest first."""
    rows = await found_by.list([owners.SANDBOX])
    volumes = await found_by.volumes([owners.PYTHON])
    names = {str(row["Name"]) for row in volumes}

    def judge() -> list[FoundSandbox]:  # looks at processes, which are files
        found = [_found(sandbox_type, row) for row in rows]
        return found + [
            _found_volume(sandbox_type, row, is_whole=carried.marker(str(row["Name"])) in names)
            for row in volumes
            if not carried.is_marker(str(row["Name"]))
        ]

    found = await anyio.to_thread.run_sync(judge)
    return sorted(found, key=lambda one: one.created)


async def remove(found: Iterable[FoundSandbox]) -> None:
    """Remove containers, running ones too, and volumes that no container has."""
    async with engine() as remover:
        for one in sorted(found, key=lambda one: one.state == CACHE):
            await _remove(remover, one)


async def _remove(remover: Engine, one: FoundSandbox) -> None:
    if one.state != CACHE:
        await remover.remove(remover.container(one.place))
    elif await remover.remove_volume(one.place):
        await remover.remove_volume(carried.marker(one.place))


async def sweep(sandbox_type: str, sweeper: Engine) -> None:
    """Remove what an owner that was killed has left: containers that never ran, since those that
    ran end by themselves, and volumes that were being filled."""
    for one in await find(sandbox_type, sweeper):
        if one.owner == "gone" and not one.kept:
            await _remove(sweeper, one)


def _found(sandbox_type: str, row: dict[str, Any]) -> FoundSandbox:
    labels = cast("dict[str, str]", row.get("Labels") or {})
    gone = owners.is_gone(labels)
    return FoundSandbox(
        sandbox_type=sandbox_type,
        id=labels.get(owners.SANDBOX, ""),
        place=str(row.get("Id", "")),
        state=str(row.get("State", "")),
        created=labels.get(owners.CREATED, ""),
        manager=labels.get(owners.MANAGER, ""),
        owner="unknown" if gone is None else "gone" if gone else "alive",
        kept=owners.KEPT in labels,
    )


def _found_volume(sandbox_type: str, row: dict[str, Any], *, is_whole: bool) -> FoundSandbox:
    labels = cast("dict[str, str]", row.get("Labels") or {})
    gone = owners.is_gone(labels)
    return FoundSandbox(
        sandbox_type=sandbox_type,
        id="python",
        place=str(row["Name"]),
        state=CACHE,
        created=labels.get(owners.CREATED, ""),
        manager=labels.get(owners.MANAGER, ""),
        owner="unknown" if gone is None else "gone" if gone else "alive",
        kept=is_whole,
    )
