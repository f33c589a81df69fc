"""Managers: who makes sandboxes, lends them, and ends them in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ms_enclave.manager.base import SandboxManager, SandboxManagerFactory, register_manager
from ms_enclave.manager.local_manager import LocalSandboxManager

if TYPE_CHECKING:
    from ms_enclave.manager.http_manager import HttpSandboxManager
    from ms_enclave.manager.volcengine import VolcengineSandboxManager

__all__ = [
    "HttpSandboxManager",
    "LocalSandboxManager",
    "SandboxManager",
    "SandboxManagerFactory",
    "VolcengineSandboxManager",
    "register_manager",
]

_HOMES = {"HttpSandboxManager": "http_manager", "VolcengineSandboxManager": "volcengine"}
"""Names that are imported when they are first used."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
