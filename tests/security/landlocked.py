"""Sandboxes of the tier `landlock` with one of their walls taken away, as controls of attacks."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from tests.security.boxes import LandlockSandbox

__all__ = ["Bare", "OpenFiles", "Unfiltered", "Unscoped", "UnscopedAndUnfiltered", "as_caller"]

_ALLOW_ALL = "06000000" + "0000ff7f"
_NO_SCOPES = 5
"""The last ABI that cannot scope signals."""


def as_caller() -> bool:
    """Whether a sandbox's user is the caller: then nothing but these walls is between them."""
    return os.geteuid() != 0


class Unfiltered(LandlockSandbox):
    """Without the filter of system calls."""

    def _station_plan(self) -> dict[str, Any]:
        return {**super()._station_plan(), "filter": _ALLOW_ALL}


class Unscoped(LandlockSandbox):
    """As on kernels before 6.12."""

    def _station_plan(self) -> dict[str, Any]:
        return {**super()._station_plan(), "newest": _NO_SCOPES}


class UnscopedAndUnfiltered(Unfiltered, Unscoped):
    """Without both."""


class OpenFiles(LandlockSandbox):
    """Without rules about files.

    The folder of temporary files has a rule of its own: it may be a file system of its own, and a
    file moves only between folders that have the same rights by rules on that one.
    """

    def _station_plan(self) -> dict[str, Any]:
        plan = super()._station_plan()
        everywhere = ("/", tempfile.gettempdir())
        opened = [{"source": path, "target": path, "writable": True} for path in everywhere]
        return {**plan, "binds": [*plan["binds"], *opened]}


class Bare(OpenFiles, Unfiltered):
    """Without either."""
