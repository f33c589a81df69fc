"""Begins to build what the next process sandbox will need, before that sandbox is asked for.

Imports nothing that takes long, which is its whole point: see `ms_enclave.spawner.launch`.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from ms_enclave.errors import EnclaveError

if TYPE_CHECKING:
    from ms_enclave.model import ProcessSandboxConfig

__all__ = ["start_ahead"]


@dataclass(frozen=True)
class _Defaults:
    """What the config of a process sandbox says of the host where nobody sets anything."""

    python: str | None = None
    rootfs: str | None = None
    working_dir: str = "/sandbox"
    volumes: dict[str, object] = field(default_factory=dict[str, object])


def start_ahead() -> None:
    """Launch the station of a sandbox with a config that shows nothing special of the host.

    The first such sandbox of this process finds it. Nothing is raised: whatever is wrong with the
    machine, that sandbox will find it out again and say so.
    """
    if sys.platform != "linux":
        return
    from ms_enclave.boxes import _process_request as requests
    from ms_enclave.boxes._process_plan import plan_runtime
    from ms_enclave.spawner import launch

    settings = cast("ProcessSandboxConfig", _Defaults())
    with suppress(OSError, EnclaveError):
        plan = requests.station_plan(plan_runtime(settings), settings.working_dir)
        launch.launch_ahead(requests.plan_key(plan), plan)
