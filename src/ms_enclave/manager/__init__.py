"""Managers: who makes sandboxes, lends them, and ends them in time."""

from __future__ import annotations

from ms_enclave.manager.base import SandboxManager, SandboxManagerFactory, register_manager
from ms_enclave.manager.local_manager import LocalSandboxManager

__all__ = ["LocalSandboxManager", "SandboxManager", "SandboxManagerFactory", "register_manager"]
