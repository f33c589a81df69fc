"""The README's first command, from a fresh copy, by somebody who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NOT_IN_A_CLONE = shutil.ignore_patterns(
    ".git", ".venv*", "site", ".cache", "*_cache", "__pycache__", ".hypothesis", ".coverage*"
)
PATH = "/usr/local/bin:/usr/bin:/bin"


@pytest.fixture
def somebody() -> pwd.struct_passwd:
    """An ordinary user: who runs the tests, or nobody where that is root."""
    return pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())


@pytest.fixture
def home(somebody: pwd.struct_passwd) -> Iterator[Path]:
    """A folder of that user's own, which may also be entered by others."""
    folder = Path(tempfile.mkdtemp(prefix="home-"))
    os.chown(folder, somebody.pw_uid, somebody.pw_gid)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.namespaces
@pytest.mark.timeout(400)
def test_an_ordinary_user_comes_from_a_fresh_copy_to_a_sandboxed_program(
    somebody: pwd.struct_passwd, home: Path
) -> None:
    if shutil.which("python3", path=PATH) is None:
        pytest.skip("no python3 that an ordinary user could start: apt-get install python3")
    root = os.getuid() == 0
    copy = home / "ms-enclave"
    shutil.copytree(ROOT, copy, ignore=NOT_IN_A_CLONE)
    for entry in [copy, *copy.rglob("*")]:
        os.lchown(entry, somebody.pw_uid, somebody.pw_gid)
    kept = {
        k: v
        for k, v in os.environ.items()
        if k.startswith(("PIP_", "SSL_")) or "proxy" in k.lower()
    }

    done = subprocess.run(
        ["scripts/setup"],
        cwd=copy,
        env={**kept, "HOME": str(home), "PATH": PATH, "TMPDIR": str(home), "LANG": "C.UTF-8"},
        **({"user": somebody.pw_uid, "group": somebody.pw_gid, "extra_groups": []} if root else {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=380,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n1\n" in done.stdout.partition("running a program in a sandbox")[2]
