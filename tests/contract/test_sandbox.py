"""Every backend keeps every promise of a sandbox."""

from __future__ import annotations

from ms_enclave.testing import SandboxContract, SandboxLifeContract
from tests.contract.boxes import Process, Subprocess, needs_process


class TestSubprocess(Subprocess, SandboxContract):
    pass


class TestSubprocessLife(Subprocess, SandboxLifeContract):
    pass


@needs_process
class TestProcess(Process, SandboxContract):
    pass


@needs_process
class TestProcessLife(Process, SandboxLifeContract):
    pass
