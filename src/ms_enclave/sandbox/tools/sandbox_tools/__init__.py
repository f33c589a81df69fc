"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.tools import FileOperation as FileOperation
from ms_enclave.tools import MultiCodeExecutor as MultiCodeExecutor
from ms_enclave.tools import NotebookExecutor as NotebookExecutor
from ms_enclave.tools import PythonExecutor as PythonExecutor
from ms_enclave.tools import ShellExecutor as ShellExecutor

__all__ = [
    "FileOperation",
    "MultiCodeExecutor",
    "NotebookExecutor",
    "PythonExecutor",
    "ShellExecutor",
]
