"""The list of bombs: cases that use up what there is. Pure data; what they do stands in `inside`.

Each ends by itself, after so many things or seconds as its module says, whether or not anything
stops it: without a guard it does no harm to a machine. So the limits here are far below that. With
limits far above (`unbounded`) each must go through: that is its control.
"""

from __future__ import annotations

from typing import Any

from ms_enclave.attack.cases import Case

__all__ = ["BOMBS", "unbounded"]

_SMALL: dict[str, Any] = {
    "memory_limit": "96m", "pids_limit": 64, "disk_limit": "8m", "nofile_limit": 128,
    "output_limit": "64k", "cpu_limit": 0.5, "timeout": 20.0,
}  # fmt: skip
_LARGE: dict[str, Any] = {
    "memory_limit": "2g", "pids_limit": 2000, "disk_limit": "512m", "nofile_limit": 4096,
    "output_limit": "64m", "cpu_limit": 2.0, "timeout": 60.0,
}  # fmt: skip


def _bomb(
    number: int, name: str, tries: str, *ends: str, group: str = "exhaust", **limits: Any
) -> Case:
    return Case(number, name, group, tries, {**_SMALL, **limits}, ends)


BOMBS = (_bomb(36, "fork_bomb", "fork without end", "process_limit", pids_limit=24),)
"""In the order of the threat model."""


def unbounded(case: Case) -> Case:
    """The same with limits that it does not reach before it ends by itself."""
    return Case(case.number, case.name, case.group, case.tries, _LARGE, case.ends)
