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


def _endless(name: str, tries: str, number: int = 45) -> Case:
    return _bomb(number, name, tries, "wall_timeout", group="tenacity", cpu_limit=1.0, timeout=0.6)


BOMBS = (
    _bomb(36, "fork_bomb", "fork without end", "process_limit", pids_limit=24),
    _bomb(36, "vfork_storm", "start without end what never begins", "process_limit", pids_limit=24),
    _bomb(37, "thread_storm", "start threads without end", "process_limit", pids_limit=24),
    _bomb(38, "heap", "take memory of its own", "oom"),
    _bomb(38, "mapping", "take memory that is shared", "oom"),
    _bomb(38, "many_processes", "take memory in many processes", "oom"),
    _bomb(38, "files_in_memory", "take memory for files without a name", "oom"),
    _bomb(38, "shared_memory", "fill what is shared", "oom", "disk_limit"),
    _bomb(38, "page_tables", "take memory for tables of pages", "oom"),
    _bomb(38, "buffers", "take memory for what nobody reads", "oom", nofile_limit=2048),
    _bomb(38, "messages", "take memory for messages", "oom"),
    _bomb(39, "storing", "fill the disk", "disk_limit"),
    _bomb(40, "names", "have more files than there may be", "disk_limit"),
    _bomb(41, "descriptors", "open without end"),
    _bomb(41, "locks", "lock without end"),
    _bomb(42, "output_flood", "print without end", "truncated"),
    _bomb(44, "spin", "use every processor", cpu_limit=0.25),
    _endless("signals_ignored", "outlive its time and ignore every signal"),
    _endless("busy", "outlive its time and be busy"),
    _endless("unbegun", "outlive its time and wait for a program that never begins"),
    _endless("stopped", "outlive its time and be stopped"),
    _endless("tree", "outlive its time as a tree of processes"),
    _endless("daemons", "outlive its time as daemons that are never the same for long", 46),
    _bomb(48, "zombies", "leave the dead unburied", "process_limit", pids_limit=24),
    _bomb(49, "queues", "fill the kernel's queues"),
)
"""In the order of the threat model."""


def unbounded(case: Case) -> Case:
    """The same with limits that it does not reach before it ends by itself."""
    return Case(case.number, case.name, case.group, case.tries, _LARGE, case.ends)
