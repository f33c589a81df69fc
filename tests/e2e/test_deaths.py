"""Managers die while others live: of the dead nothing stays, and the living notice nothing."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.owners import PROGRAM, Owner, groups_named
from tests.support.somebody import SOMEBODY, words_of_somebody

pytestmark = [pytest.mark.namespaces, pytest.mark.slow]

GONE = 1.0
"""Seconds after the owner's death in which everything of its sandboxes is gone."""


def wait_for_no_groups(names: set[str], seconds: float = 5.0) -> set[str]:
    deadline = time.monotonic() + seconds
    while (left := groups_named(names)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def test_of_eight_managers_only_the_killed_ones_sandboxes_go() -> None:
    chance = random.Random(8)
    with ExitStack() as stack:
        living = [stack.enter_context(Owner()) for _ in range(4)]
        for owner in living:
            assert owner.read() == "ready"
        for number in range(6):
            late = [stack.enter_context(Owner())] if number < 4 else []  # starts while others die
            time.sleep(chance.uniform(0, 0.5))
            victim = living.pop(chance.randrange(len(living)))
            groups = victim.groups()
            victim.kill()
            assert victim.left(GONE) == []
            for owner in late:
                assert owner.read() == "ready"
            living += late
            assert [owner.works() for owner in living] == [True] * len(living)
            assert wait_for_no_groups(groups) == set()
        groups = living[0].groups() | living[1].groups()
        for owner in living:
            assert owner.end() == 0
            assert owner.left(0) == []
        assert wait_for_no_groups(groups) == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be two users")
def test_two_users_leave_each_other_alone() -> None:
    home = Path(tempfile.mkdtemp(prefix="deaths-"))
    os.chown(home, SOMEBODY, SOMEBODY)
    home.chmod(0o755)
    command, env = words_of_somebody(home, [sys.executable, "-c", PROGRAM])
    try:
        with ExitStack() as stack:
            ours, theirs, both_die = (
                stack.enter_context(Owner()),
                stack.enter_context(Owner(command=command, env=env)),
                [
                    stack.enter_context(Owner()),
                    stack.enter_context(Owner(command=command, env=env)),
                ],
            )
            for owner in (ours, theirs, *both_die):
                assert owner.read() == "ready"
            users = {os.stat(f"/proc/{owner.process.pid}").st_uid for owner in (ours, theirs)}
            assert users == {0, SOMEBODY}
            for victim in both_die:
                victim.kill()
                assert victim.left(GONE) == []
                assert ours.works()
                assert theirs.works()
            assert ours.end() == 0
            assert theirs.works()
            assert theirs.end() == 0
    finally:
        shutil.rmtree(home)
