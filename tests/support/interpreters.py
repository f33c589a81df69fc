"""The Pythons of this machine that a sandbox's programs and its guest have to run on."""

from __future__ import annotations

import atexit
import functools
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

__all__ = ["NEWEST", "OLDEST", "VERSIONS", "bare_python", "find_python", "installed_shell"]

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


@functools.cache
def bare_python() -> str:
    """A Python without IPython: one of the machine's, or a virtual environment made for this run.

    To be called when a test module is loaded: what it makes is then no test's leftover.
    """
    for python in (f"{sys.base_prefix}/bin/python3", "/usr/bin/python3"):
        if installed_shell(python) == "python":
            return python
    folder = tempfile.mkdtemp(prefix="bare-python-")
    os.chmod(folder, 0o755)
    atexit.register(shutil.rmtree, folder, True)
    venv.create(folder, with_pip=False)
    return folder


@functools.cache
def installed_shell(python: str) -> str:
    """What runs the cells of a kernel of that Python: `ipython` or `python`; or nothing can."""
    question = "import sys, importlib.util as u; print(u.find_spec('IPython') is not None)"
    old = "assert __import__('sys').version_info >= (3, 8)"
    if not os.access(python, os.X_OK):
        return "none"
    done = subprocess.run(
        [python, "-I", "-c", f"{old}; {question}"], capture_output=True, text=True, check=False
    )
    return {"True": "ipython", "False": "python"}.get(done.stdout.strip(), "none")
