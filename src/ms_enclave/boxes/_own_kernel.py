"""What a kernel that is a program of the host needs there, whoever starts it. Pure."""

from __future__ import annotations

__all__ = ["host_tasks"]

_OWN_TASKS = 256
"""Threads that gVisor's kernel and its file servers may have; some 140 were seen."""
_TASKS_EACH = 2
"""Tasks of the host that one inside may take."""


def host_tasks(pids: int) -> int:
    """How many processes and threads a host has to allow for so many inside."""
    return pids * _TASKS_EACH + _OWN_TASKS
