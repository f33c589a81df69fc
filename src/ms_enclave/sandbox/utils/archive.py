"""Another spelling of names that live elsewhere.

Written by scripts/generate_sandbox_tree.py: change that, not this.
"""

from __future__ import annotations

from ms_enclave.utils.archive import tar_directory as tar_directory
from ms_enclave.utils.archive import tar_file as tar_file

__all__ = ["tar_directory", "tar_file"]
