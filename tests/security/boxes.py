"""Sandboxes with something changed on their station's plan, and a look at them from outside."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from ms_enclave.boxes.process_sandbox import ProcessSandbox

__all__ = [
    "ANY_USERS_PYTHON",
    "ColdSandbox",
    "GvisorSandbox",
    "LandlockSandbox",
    "NoGroupsLandlockSandbox",
    "NoGroupsSandbox",
    "NoLayersSandbox",
    "PlainShellSandbox",
    "UnfilteredSandbox",
    "find_processes",
    "members_of",
    "namespaces",
    "status_of",
    "wait_for_processes",
    "wait_until_gone",
]


def _any_users_python() -> str | None:
    """An interpreter that the user of a sandbox without mounts may run: None for our own."""
    own = Path(sys.executable)
    if os.geteuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in own.resolve().parents):
        return None
    return "/usr/bin/python3"


ANY_USERS_PYTHON = _any_users_python()


class LandlockSandbox(ProcessSandbox):
    """Without namespaces."""

    def __init__(self, config: Any = None, sandbox_id: str | None = None) -> None:
        given = {"isolation": "landlock", "python": ANY_USERS_PYTHON, **(config or {})}
        super().__init__(given, sandbox_id)


class GvisorSandbox(ProcessSandbox):
    """With a kernel of its own."""

    def __init__(self, config: Any = None, sandbox_id: str | None = None) -> None:
        super().__init__({"isolation": "gvisor", **(config or {})}, sandbox_id)


class NoGroupsLandlockSandbox(LandlockSandbox):
    """Neither namespaces nor control groups, as in a container."""

    def _station_plan(self) -> dict[str, Any]:
        return {**super()._station_plan(), "groups": False}


class ColdSandbox(ProcessSandbox):
    """Every process from a new interpreter, as where ptrace cannot be had."""

    def _station_plan(self) -> dict[str, Any]:
        return {**super()._station_plan(), "cold_reason": "switched off for a test"}


class NoGroupsSandbox(ProcessSandbox):
    """Without control groups, as for an ordinary user of a machine that delegates none."""

    def _station_plan(self) -> dict[str, Any]:
        return {**super()._station_plan(), "groups": False}


class PlainShellSandbox(ProcessSandbox):
    """With a plain `sh` for a shell, as an image without bash."""

    async def _find_shell(self) -> str:
        return "/bin/sh"


class NoLayersSandbox(ProcessSandbox):
    """Plain bounded folders instead of overlays, as on older kernels."""

    def _station_plan(self) -> dict[str, Any]:
        return {**super()._station_plan(), "layers": False}


class UnfilteredSandbox(ProcessSandbox):
    """A filter that allows everything: the control for attacks that the filter holds."""

    def _station_plan(self) -> dict[str, Any]:
        allow_all = "06000000" + "0000ff7f"
        plan = super()._station_plan()
        return {**plan, "filter": allow_all, "init_filter": allow_all, "cold_reason": "control"}


def find_processes(marker: str) -> list[int]:
    """Pids, as the host sees them, of processes with a word of that text in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if marker.encode() in words:
            found.append(int(entry.name))
    return found


def members_of(space: str) -> set[int]:
    """Pids, as the host sees them, of everybody alive in a pid namespace."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "ns" / "pid") == space:
                found |= (
                    {int(entry.name)}
                    if status_of(int(entry.name))["State"][0] not in "ZX"
                    else set()
                )
        except (OSError, KeyError):
            continue
    return found


def wait_for_processes(marker: str, count: int = 1, seconds: float = 10.0) -> list[int]:
    """The processes of that marker, as soon as there are so many: what a shell leaves in the
    background begins when it likes."""
    deadline = time.monotonic() + seconds
    while len(found := find_processes(marker)) < count:
        assert time.monotonic() < deadline, f"{len(found)} processes instead of {count}"
        time.sleep(0.005)
    return found


def wait_until_gone(marker: str, seconds: float = 5.0) -> list[int]:
    """The processes of that marker that are still there after so long; none if all is well."""
    deadline = time.monotonic() + seconds
    while (left := find_processes(marker)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def namespaces(pid: int | str) -> dict[str, str]:
    """Kind of namespace to its identity."""
    folder = f"/proc/{pid}/ns"
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
    return {kind: os.readlink(f"{folder}/{kind}") for kind in kinds}


def status_of(pid: int, task: int | None = None) -> dict[str, str]:
    """The lines of /proc/PID/status, or of one of its tasks."""
    path = f"/proc/{pid}/status" if task is None else f"/proc/{pid}/task/{task}/status"
    rows = (line.partition(":") for line in Path(path).read_text().splitlines())
    return {name: value.strip() for name, _, value in rows}
