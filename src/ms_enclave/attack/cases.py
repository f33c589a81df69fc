"""The list of cases: one row each. What they do stands in `inside`. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CASES", "Case"]


@dataclass(frozen=True)
class Case:
    """An attack that a sandbox has to withstand."""

    number: int
    """In the list of the threat model."""
    name: str
    """The function that tries it."""
    group: str
    """The module of `inside` that has it."""
    tries: str
    """What it tries, in words."""
    limits: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What a sandbox is made with in which it is tried; one that has some is a bomb."""
    ends: tuple[str, ...] = ()
    """The verdicts of whoever is outside that say that it was held."""
    by_kernel: bool = False
    """Whether it tries what the kernel answers for. A sandbox with a kernel of its own is answered
    by that, and whatever it allows stays inside."""


_BY_KERNEL = frozenset({
    "privileges", "user_namespaces", "devices", "other_architectures", "every_other_call",
    "terminals", "other_processes", "rings", "weak_spots", "socket_families", "listening_filters",
    "programs_in_memory", "priorities",
})  # fmt: skip


def _group(group: str, *rows: tuple[int, str, str]) -> tuple[Case, ...]:
    return tuple(
        Case(number, name, group, tries, by_kernel=name in _BY_KERNEL)
        for number, name, tries in rows
    )


CASES = (
    *_group(
        "escape",
        (1, "settings_of_the_kernel", "open every setting of the kernel for writing"),
        (2, "ids", "be root outside"),
        (3, "privileges", "find a thread with capabilities, or without a filter"),
        (4, "setuid_programs", "gain rights from the programs that give them"),
        (5, "user_namespaces", "make or enter a namespace"),
        (6, "mounts", "mount, remount and unmount"),
        (7, "other_roots", "take another root"),
        (8, "devices", "make and open devices"),
        (9, "control_groups", "write to a control group"),
        (13, "first_process", "read and write the first process"),
        (14, "core_dumps", "leave a core file on the host"),
        (15, "other_architectures", "make calls of another architecture"),
        (16, "every_other_call", "make every system call that there is not to be"),
        (17, "terminals", "type into a terminal"),
        (19, "other_processes", "trace, and read another process's memory"),
        (20, "keys", "use the kernel's keys"),
        (21, "rings", "have calls made by the kernel's rings"),
        (22, "weak_spots", "use what kernels are broken by"),
        (23, "socket_families", "open sockets of odd families"),
        (25, "listening_filters", "take over the calls of others by a filter"),
        (26, "programs_in_memory", "shed the walls by a program that is no file"),
        (28, "namespaces", "be in a namespace of the machine's own"),
        (44, "priorities", "take precedence over the others"),
        (50, "clocks", "set clocks and names"),
    ),
    *_group(
        "theft",
        (10, "sockets_of_the_host", "reach what listens on the host"),
        (12, "files_of_the_host", "read the host's files"),
        (27, "the_machine", "read what tells of the machine"),
        (51, "the_file_system", "plant a file where programs are"),
        (59, "the_network", "reach the network"),
        (76, "secrets_of_the_caller", "read the caller's secrets"),
    ),
)
"""All, by group."""
