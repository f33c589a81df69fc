"""Root file systems that tests give to sandboxes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["make_bare_root"]


def make_bare_root(root: Path) -> Path:
    """Make one with a shell and cat, and no Python, in a folder that is there; gives the folder."""
    for program in ("/bin/sh", "/bin/cat"):
        _copy_with_libraries(program, root)
    (root / "etc").mkdir()
    (root / "etc" / "whoami").write_text("the image\n")
    for folder, _, names in os.walk(root):
        os.chmod(folder, 0o755)
        for name in names:
            os.chmod(os.path.join(folder, name), 0o755)
    return root


def _copy_with_libraries(program: str, root: Path) -> None:
    """Put a program of the host, and the libraries it needs, below a root."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in [program, *re.findall(r"(/\S+) \(0x", listed)]:
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(path), target)
