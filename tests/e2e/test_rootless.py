"""What root's test run cannot show: the sandbox started by an ordinary user, with one id and no
control group. The suites that say what it holds run again as such a user, in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.somebody import SOMEBODY, as_somebody

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITES = {
    "security": ("tests/security",),
    "contract": (
        "tests/contract/test_sandbox.py",
        "tests/contract/test_kernels.py",
        "tests/contract/test_forks.py",
        "tests/e2e/test_forks.py",
        "tests/e2e/test_checkpoints.py",
    ),
}
NO_USERS = ("tests/security/test_fuzz.py",)
"""What has nothing to do with who runs it."""
ATTACKS = ("tests/security/test_attacks.py", "tests/security/test_posture.py")
LIMITS = ("tests/security/test_limits.py", "tests/security/test_usage.py")
LIVES = ("tests/e2e/test_keep.py", "tests/e2e/test_soak.py")
CHOSEN = (
    "TestNoGroups or (TestProcess and (users or test_kernels))"
    " or (security and not NoGroupsSandbox and not test_landlock)"
    " or ((test_forks or test_checkpoints) and (TestProcess or e2e) and not Http)"
)
"""There are no groups here anyway; of the contract of files, whose rights count is what differs.
The tier `landlock` is run as this user by a test of its own."""


@contextmanager
def folder_of_somebody() -> Iterator[Path]:
    """A folder of that user's own."""
    folder = Path(tempfile.mkdtemp(prefix="rootless-"))
    os.chown(folder, SOMEBODY, SOMEBODY)
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def home() -> Iterator[Path]:
    with folder_of_somebody() as folder:
        yield folder


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
        "own_ids", "cgroup_memory", "cgroup_pids", "cgroup_cpu", "cgroup_kill", "lock_limit",
        "zygote",
    }  # fmt: skip
    assert shown == ["1000", "1000", "0", "1"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("part", SUITES)
def test_the_suites_pass_as_an_ordinary_user(home: Path, part: str) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words += [f"--ignore={name}" for name in (*LIMITS, *ATTACKS, *NO_USERS)]
    words += ["-m", "not docker"]  # whose engine an ordinary user may not ask
    done = as_somebody(home, [*words, *SUITES[part], "-k", CHOSEN, "--durations=5"], 380)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 100, summary


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_it_withstands_what_is_tried_as_an_ordinary_user(home: Path) -> None:
    """With one id, what serves and what attacks are the same user: other walls count."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", *ATTACKS]
    done = as_somebody(home, [*words, "-k", "TestProcess or TestCold or exactly"], 220)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 60, summary


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_sandboxes_outlive_an_ordinary_users_manager_and_nothing_else_does(home: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *LIVES]
    done = as_somebody(home, words, 180)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 20, summary


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_limit_holds_for_an_ordinary_user(home: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *LIMITS]
    done = as_somebody(home, [*words, "-k", "not NoGroups and not Cold"], 280)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 50, summary
