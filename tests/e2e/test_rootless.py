"""What root's test run cannot show: the sandbox started by an ordinary user, with one id and no
control group. The suites that say what it holds run again as such a user, in a process of its own.

Folders that only root may enter (an interpreter or a checkout in its home) are opened for this one
process by mounts of its own; the paths stay the same, and the machine is not changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parents[2]
SOMEBODY = 12345
"""A user that no machine knows: nothing in the sandbox may need a name for it."""

SUITES = ("tests/security", "tests/contract/test_sandbox.py")
CHOSEN = "TestNoGroups or (security and not NoGroupsSandbox)"
"""There are no groups here anyway, and the contract of files has nothing to do with them."""

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
    PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 CI="$CI" "$@"
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of that user's own."""
    folder = Path(tempfile.mkdtemp(prefix="rootless-"))
    os.chown(folder, SOMEBODY, SOMEBODY)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def closed_above(path: Path) -> Path | None:
    """The uppermost folder on the way to a path that others than its owner may not enter."""
    for folder in reversed((path, *path.parents)):
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def as_somebody(
    home: Path, words: Iterable[str], seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a program as an ordinary user that may enter what this Python and the tests lie in."""
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
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", SHOW, "sh", *words],
        env={
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "SCRATCH": str(home),
            "OPENED": " ".join(sorted(map(str, opened))),
            "CLOSED": " ".join(sorted(map(str, closed))),
            "CHECKOUT": str(ROOT),
            "WHO": str(SOMEBODY),
            "CI": os.environ.get("CI", ""),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as an ordinary user here"),
]


def test_it_has_one_id_and_no_group_and_says_so(home: Path) -> None:
    code = (
        "import asyncio, json\n"
        "from ms_enclave.boxes.process_sandbox import ProcessSandbox\n"
        "async def main():\n"
        "    async with ProcessSandbox() as box:\n"
        "        shown = await box.execute_command('id -u; cat /proc/self/uid_map')\n"
        "        print(json.dumps([box.isolation.guards, shown.stdout.split()]))\n"
        "asyncio.run(main())\n"
    )
    done = as_somebody(home, [sys.executable, "-c", code], 60)
    assert done.returncode == 0, done.stderr
    guards, shown = json.loads(done.stdout)
    off = {name for name, state in guards.items() if state == "off"}
    assert off >= {"own_ids"}
    assert off <= {
        "own_ids", "cgroup_memory", "cgroup_pids", "cgroup_cpu", "cgroup_kill", "zygote"
    }  # fmt: skip
    assert shown == ["1000", "1000", "0", "1"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_suites_pass_as_an_ordinary_user(home: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITES]
    done = as_somebody(home, [*words, "-k", CHOSEN, "--durations=5"], 280)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 100, summary
