"""Whose a container is: labels that say it, and whether the owner still lives."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ms_enclave.boxes._docker_plan import LABEL
from ms_enclave.spawner.keeping import identity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "CREATED", "KEPT", "MANAGER", "PYTHON", "SANDBOX", "STATE", "is_gone", "labels", "type_of",
]  # fmt: skip

SANDBOX, MANAGER, CREATED, KEPT, PYTHON, STATE, _OWNER, _TYPE = (
    f"{LABEL}{name}"
    for name in ("sandbox", "manager", "created", "kept", "python", "state", "owner", "type")
)
_PLAIN, _NOTEBOOK = "docker", "docker_notebook"


def labels(
    sandbox_id: str, manager: str, created: datetime, *, kept: bool = False, state: str = "",
    sandbox_type: str = _PLAIN,
) -> dict[str, str]:  # fmt: skip
    """The labels of a container that this process makes.

    Args:
        kept: it may outlive its sandbox.
        state: the folder in which the next manager finds it, if it may outlive this one.
    """
    return {
        **({KEPT: "true"} if kept else {}),
        **({STATE: state} if state else {}),
        SANDBOX: sandbox_id,
        _TYPE: sandbox_type,
        MANAGER: manager,
        CREATED: created.isoformat(timespec="seconds"),
        _OWNER: _process(os.getpid()) or "",
    }


def type_of(given: Mapping[str, str]) -> str:
    """Which type of sandbox a container is: exactly one, whatever its label says."""
    return _NOTEBOOK if given.get(_TYPE) == _NOTEBOOK else _PLAIN


def is_gone(given: Mapping[str, str]) -> bool | None:
    """Whether the process that made a container has ended; None where that cannot be known here:
    it was on another machine, or among other processes."""
    owner = given.get(_OWNER, "")
    place, _, rest = owner.partition(":")
    here = (_process(os.getpid()) or "").partition(":")[0]
    if not place or place != here:
        return None
    pid = rest.partition(":")[0]
    if not (pid.isascii() and pid.isdigit()) or len(pid) > 10:  # anybody may write a label
        return None
    return _process(int(pid)) != owner


def _process(pid: int) -> str | None:
    """What tells a process from all others: where it is, its number, and when it began."""
    try:
        known = identity(pid)
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None  # no such process, or no Linux
    return f"{known['boot']}/{namespace}:{pid}:{known['start']}"
