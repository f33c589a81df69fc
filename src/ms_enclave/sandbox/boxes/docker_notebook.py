"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.boxes import DockerNotebook as DockerNotebook
from ms_enclave.boxes import DockerNotebookSandbox as DockerNotebookSandbox

__all__ = ["DockerNotebook", "DockerNotebookSandbox"]
