"""Runs a program as an ordinary user of the machine, from a test run by root.

Folders that only root may enter (an interpreter or a checkout in its home) are opened for this one
process by mounts of its own; the paths stay the same, and the machine is not changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SOMEBODY", "as_somebody", "words_of_somebody"]

ROOT = Path(__file__).parents[2]
SOMEBODY = 12345
"""A user that no machine knows: nothing in the sandbox may need a name for it."""

SHOW = """
set -e
mount --make-rprivate /
mkdir -p "$SCRATCH/held"
place() {
    mkdir -p "$(dirname "$2")"
    if [ -L "$1" ]; then cp -P "$1" "$2"; return; fi
    if [ -d "$1" ]; then mkdir -p "$2"; else touch "$2"; fi
    mount --rbind "$1" "$2"
}
for path in $OPENED; do place "$path" "$SCRATCH/held$path"; done
for folder in $CLOSED; do mount -t tmpfs -o mode=0755 covered "$folder"; done
for path in $OPENED; do place "$SCRATCH/held$path" "$path"; done
cd "$CHECKOUT"
exec setpriv --reuid "$WHO" --regid "$WHO" --clear-groups env -i HOME="$SCRATCH" \\
    PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 CI="$CI" \\
    ${PYTHONPATH:+PYTHONPATH="$PYTHONPATH"} "$@"
"""


def closed_above(path: Path) -> Path | None:
    """The uppermost folder on the way to a path that others than its owner may not enter."""
    for folder in reversed((path, *path.parents)):
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def words_of_somebody(home: Path, words: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment that start a program as an ordinary user that may enter
    what this Python and the tests lie in. The process that is started becomes that program."""
    needed = {ROOT, *(Path(prefix) for prefix in (sys.prefix, sys.base_prefix))}
    needed |= {Path(sys.executable).resolve().parents[1]}
    closed = {folder for path in needed if (folder := closed_above(path)) is not None}
    opened: set[Path] = set()
    for path in needed:
        if closed & {path}:
            opened |= set(path.iterdir())  # itself closed: what is in it is shown in its cover
        elif closed & set(path.parents):
            opened.add(path)
    opened = {path for path in opened if not opened & set(path.parents)}
    for path in (*opened, *closed):
        assert " " not in str(path), "the shell splits at spaces"
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "SCRATCH": str(home),
        "OPENED": " ".join(sorted(map(str, opened))),
        "CLOSED": " ".join(sorted(map(str, closed))),
        "CHECKOUT": str(ROOT),
        "WHO": str(SOMEBODY),
        "CI": os.environ.get("CI", ""),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # of a copy of the source
    }
    return ["unshare", "--mount", "sh", "-c", SHOW, "sh", *words], environment


def as_somebody(
    home: Path, words: Iterable[str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end as an ordinary user."""
    command, environment = words_of_somebody(home, words)
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
