"""The tiers of the process sandbox: what each asks of its station, and says of itself.

`namespace` is the default. `landlock` is for machines that allow no user namespaces: there is no
file system of the sandbox's own, so its work folder is a folder of the host, and what the config
calls `working_dir` is another name of it.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ms_enclave.boxes import _process_request as requests
from ms_enclave.boxes._process_binds import below
from ms_enclave.errors import CapabilityError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ms_enclave.boxes._process_plan import RuntimePlan
    from ms_enclave.model import IsolationReport, ProcessSandboxConfig

__all__ = ["Landlock", "Namespaces", "Place", "Tier"]


@dataclass(frozen=True)
class Place:
    """Where a sandbox is, once it is open."""

    work: str
    """Its work folder, as its programs see it."""
    user: int | None
    """Its user on the host; None where it has none of its own."""
    layered: bool = False
    network: bool = False
    """Whether it is to have one."""
    moved: Sequence[tuple[str, str]] = ()
    """Folders that callers may name, and where they really are."""
    env: tuple[tuple[str, str], ...] = ()

    def real(self, path: str) -> str:
        """The path that a program has to use for one that a caller gave."""
        for folder, target in self.moved:
            if below(path, folder):
                return target + path[len(folder.rstrip("/")) :]
        return path


class Tier(ABC):
    """One way to isolate."""

    name: str
    able: frozenset[str]
    """What a sandbox can do because of how it is isolated."""

    @abstractmethod
    def station_plan(self, plan: RuntimePlan, config: ProcessSandboxConfig) -> dict[str, Any]:
        """What a station of this tier is built from.

        Raises:
            CapabilityError: the config wants what this tier does not have.
            ConfigError: an interpreter that the sandbox's user could not run.
        """

    @abstractmethod
    def place(self, config: ProcessSandboxConfig, box: Mapping[str, Any]) -> Place:
        """Where a sandbox is, from what the station says of it."""

    @abstractmethod
    def user(
        self, user: str | int | None, facts: Mapping[str, Any], place: Place
    ) -> tuple[int, int]:
        """uid and gid for the user that a caller names. Raises ConfigError or CapabilityError."""

    @abstractmethod
    def report(self, facts: Mapping[str, Any], place: Place) -> IsolationReport:
        """Which walls stand."""


class Namespaces(Tier):
    """User, mount, pid, network and other namespaces: a file system of the sandbox's own."""

    name = "namespace"
    able = frozenset({"ports", "watch"})

    def station_plan(self, plan: RuntimePlan, config: ProcessSandboxConfig) -> dict[str, Any]:
        return requests.station_plan(plan, config.working_dir)

    def place(self, config: ProcessSandboxConfig, box: Mapping[str, Any]) -> Place:
        return Place(config.working_dir, box["user"], box["layered"], config.network_enabled)

    def user(
        self, user: str | int | None, facts: Mapping[str, Any], place: Place
    ) -> tuple[int, int]:
        return requests.resolve_user(user, facts["root_mode"])

    def report(self, facts: Mapping[str, Any], place: Place) -> IsolationReport:
        return requests.isolation_report(facts, place.layered, network=place.network)


class Landlock(Tier):
    """Landlock, seccomp, rlimits and a subreaper, on the host's own file system."""

    name = "landlock"
    able = frozenset()  # the host's loopback and its files are not to be spied on

    def station_plan(self, plan: RuntimePlan, config: ProcessSandboxConfig) -> dict[str, Any]:
        if config.network_enabled:
            raise CapabilityError("network", remedy="use isolation='namespace'")
        as_root = _becomes_another_user()
        _refuse_what_needs_mounts(plan, config, as_root)
        if as_root:
            _refuse_a_closed_interpreter(plan)
        places = list(dict.fromkeys((os.path.realpath(tempfile.gettempdir()), "/var/tmp", "/tmp")))  # noqa: S108 - each only if it will do
        return requests.landlock_plan(plan, places)

    def place(self, config: ProcessSandboxConfig, box: Mapping[str, Any]) -> Place:
        work, tmp = box["work"], box["tmp"]
        return Place(
            work,
            box["user"],
            moved=(
                *((folder, folder) for folder in (work, tmp)),  # which may themselves be in /tmp
                (config.working_dir, work),
                ("/tmp", tmp),  # noqa: S108 - the sandbox's
            ),
            env=(("TMPDIR", tmp), ("USER", "sandbox"), ("LOGNAME", "sandbox")),
        )

    def user(
        self, user: str | int | None, facts: Mapping[str, Any], place: Place
    ) -> tuple[int, int]:
        return requests.landlock_user(user, place.user or 0)

    def report(self, facts: Mapping[str, Any], place: Place) -> IsolationReport:
        return requests.landlock_report(facts)


def _becomes_another_user() -> bool:
    """Whether a sandbox's user is another than we, as the launcher decides it."""
    if os.geteuid() != 0:
        return False
    lines = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return len(lines) > 1 or lines[0][2] != "1" or lines[0][1] == "0"


def _refuse_what_needs_mounts(
    plan: RuntimePlan, config: ProcessSandboxConfig, as_root: bool
) -> None:
    if config.rootfs is not None:
        raise CapabilityError("rootfs", remedy="leave `rootfs` out, or use isolation='namespace'")
    moved = [bind for bind in (*plan.binds, *plan.volumes) if bind.source != bind.target]
    if moved:
        raise CapabilityError(
            "volumes",
            message=f"without mounts {moved[0].source} cannot be shown at {moved[0].target}",
            remedy="bind a volume to its own path, or use isolation='namespace'",
        )
    if plan.volumes and as_root:
        raise CapabilityError(
            "volumes",
            message="a sandbox's own user cannot write to folders of others",
            remedy="give it mode 'ro', or start as the user whom the folder belongs to",
        )


def _refuse_a_closed_interpreter(plan: RuntimePlan) -> None:
    for path in {plan.python[0], os.path.realpath(plan.python[0])}:
        closed = _closed_above(path)
        if closed is not None:
            raise ConfigError(
                f"A sandbox's own user may not enter {closed}, which {path} is in",
                remedy="give `python` an interpreter that every user may run, for instance "
                "python='/usr/bin/python3'",
            )


def _closed_above(path: str) -> str | None:
    """The nearest folder above a path that others than its owner may not enter."""
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return path
    return None
