"""The sandboxes: what all of them promise, and one class for each backend."""

from __future__ import annotations

from ms_enclave.boxes.base import Sandbox
from ms_enclave.boxes.factory import SandboxFactory, register_sandbox
from ms_enclave.boxes.files import Files

__all__ = ["Files", "Sandbox", "SandboxFactory", "register_sandbox"]
