"""The Pythons of this machine that a sandbox's programs and its guest have to run on."""

from __future__ import annotations

import glob
import os
import shutil
import sys
from pathlib import Path

__all__ = ["NEWEST", "OLDEST", "VERSIONS", "find_python"]

OLDEST, NEWEST = (3, 8), (3, 14)
VERSIONS = [(3, minor) for minor in range(OLDEST[1], NEWEST[1] + 1)]


def find_python(version: tuple[int, int]) -> str | None:
    """A CPython of that version: ours, the path's, pyenv's, or what `scripts/setup` has fetched."""
    if version == sys.version_info[:2]:
        return sys.executable
    name = f"python{version[0]}.{version[1]}"
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    found = [
        *glob.glob(f"{pyenv}/versions/{version[0]}.{version[1]}.*/bin/{name}"),
        f"{cache}/ms-enclave/{name}/usr/bin/{name}",
    ]
    known = shutil.which(name)
    # The launcher of pyenv is there for every version, installed or not.
    if known and "shims" not in Path(known).parts:
        found.insert(0, known)
    return next((path for path in found if os.access(path, os.X_OK)), None)
