"""Sandboxes of the tier `landlock` with one of their walls taken away, as controls of attacks."""

from __future__ import annotations

import os
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
    """Without rules about files."""

    def _station_plan(self) -> dict[str, Any]:
        plan = super()._station_plan()
        everything = {"source": "/", "target": "/", "writable": True}
        return {**plan, "binds": [*plan["binds"], everything]}


class Bare(OpenFiles, Unfiltered):
    """Without either."""
