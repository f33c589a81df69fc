"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.boxes import DockerNotebook as DockerNotebook
from ms_enclave.boxes import DockerNotebookSandbox as DockerNotebookSandbox
from ms_enclave.boxes import DockerSandbox as DockerSandbox
from ms_enclave.boxes import Sandbox as Sandbox
from ms_enclave.boxes import SandboxFactory as SandboxFactory
from ms_enclave.boxes import StatelessSandbox as StatelessSandbox
from ms_enclave.boxes import VolcengineSandbox as VolcengineSandbox
from ms_enclave.boxes import register_sandbox as register_sandbox

__all__ = [
    "DockerNotebook",
    "DockerNotebookSandbox",
    "DockerSandbox",
    "Sandbox",
    "SandboxFactory",
    "StatelessSandbox",
    "VolcengineSandbox",
    "register_sandbox",
]
