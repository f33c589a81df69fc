"""What this machine lacks for the tier `landlock`, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ms_enclave.boxes._process_probe import landlock_remedy
from ms_enclave.model.diagnosis import Problem
from ms_enclave.spawner.landlock import OLDEST

if TYPE_CHECKING:
    from ms_enclave.boxes._process_probe import HostFacts

__all__ = ["landlock_problem"]

_KERNEL = "6.2"
"""The first with the oldest ABI that will do."""


def landlock_problem(facts: HostFacts, step: str) -> Problem | None:
    """Why a start of that tier failed at a step of its launcher; None where nothing is known."""
    if step == "landlock" and facts.landlock_abi == 0:
        return Problem(what="there is no Landlock here", remedy=landlock_remedy(facts))
    if step == "landlock":
        return Problem(
            what=f"this kernel's Landlock is too old: ABI {facts.landlock_abi}, and only from "
            f"{OLDEST} on can it tell truncating a file from writing it",
            remedy=f"boot Linux {_KERNEL} or newer",
        )
    if step == "ids":
        return Problem(
            what="root cannot give sandboxes a user of their own here, and nothing in one may be "
            "root",
            remedy="start ms-enclave as an ordinary user, or the container without --cap-drop (or "
            "with --cap-add CHOWN --cap-add KILL --cap-add SETUID --cap-add SETGID)",
        )
    if step == "folder":
        return Problem(
            what="there is no place for the sandboxes' files",
            remedy="set TMPDIR to a folder that you may write and every user may enter",
        )
    return None
