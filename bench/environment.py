"""A fresh virtual environment that the measured programs share, and what its start-up runs."""

from __future__ import annotations

import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Environment", "make_environment"]

_SCRIPT = "import sys\nfrom ms_enclave.cli import run_cmd\nsys.exit(run_cmd())\n"


@dataclass(frozen=True)
class Environment:
    """An interpreter that starts as quickly as a plain one can, and our command under it."""

    python: str
    command: list[str]
    hooks: list[str]
    """Files that run code whenever this interpreter starts; with any, plain Python looks slow."""


def make_environment(folder: Path) -> Environment:
    """Make one. It sees the packages of this environment, by paths and without their hooks."""
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    packages = next((folder / "lib").glob("python*/site-packages"))
    source = Path(__file__).resolve().parent.parent / "src"
    (packages / "measured.pth").write_text(f"{source}\n{sysconfig.get_path('purelib')}\n")
    script = folder / "bin" / "ms-enclave"
    script.write_text(_SCRIPT)
    return Environment(str(python), [str(python), str(script)], _hooks(packages))


def _hooks(packages: Path) -> list[str]:
    """`.pth` files with code, of the environment and of the interpreter's own start-up."""
    found = [
        str(path)
        for path in packages.glob("*.pth")
        if any(line.startswith(("import ", "import\t")) for line in path.read_text().splitlines())
    ]
    customised = (Path(folder) / "sitecustomize.py" for folder in sys.path if folder)
    return sorted([*found, *(str(path) for path in customised if path.exists())])
