"""`ms-enclave ps` and `clean` for sandboxes of type `process`: living, killed, kept, another's."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.boxes import _process_found as places
from ms_enclave.errors import SandboxLostError
from ms_enclave.manager import LocalSandboxManager
from ms_enclave.spawner import cgroups, register
from tests.e2e.test_keep import Keeper, folder
from tests.support.owners import Owner
from tests.support.somebody import words_of_somebody

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["folder"]

pytestmark = [pytest.mark.namespaces]

OURS = "from ms_enclave.cli import run_cmd; run_cmd()"
ONE = """
import asyncio, sys
from ms_enclave.manager.local_manager import LocalSandboxManager

async def main():
    async with LocalSandboxManager() as manager:
        await manager.create_sandbox('process', None, sys.argv[1])
        print('ready', flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


def enclave(*words: str) -> subprocess.CompletedProcess[str]:
    """Our command; no engine of containers is asked."""
    return subprocess.run(
        [sys.executable, "-c", OURS, *words],
        env={**os.environ, "DOCKER_HOST": "unix:///nowhere.sock", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def seen() -> dict[str, dict[str, Any]]:
    """What `ps` shows of type process, by id."""
    rows = json.loads(enclave("ps", "--json").stdout)
    return {row["id"]: row for row in rows if row["sandbox_type"] == "process"}


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to that"
        time.sleep(0.02)


async def test_a_living_managers_sandbox_is_shown_and_left_alone() -> None:
    async with LocalSandboxManager() as manager:
        made = await manager.create_sandbox("process", None, "mine-to-see")
        row = seen()[made]
        assert (row["owner"], row["state"], row["kept"]) == ("alive", "running", False)
        assert row["created"][:2] == "20"
        assert "mine-to-see" in enclave("ps").stdout
        assert "mine-to-see" not in enclave("clean", "--all", "--dry-run").stdout
        refused = enclave("clean", "mine-to-see")
        assert refused.returncode == 125
        assert "its owner lives" in " ".join(refused.stderr.split())
        box = await manager.get_sandbox(made)
        assert box is not None
        assert (await box.execute_command("echo alive")).stdout == "alive\n"
    assert "mine-to-see" not in seen()
    assert enclave("clean", "mine-to-see").returncode == 125


@pytest.mark.parametrize("isolation", ["namespace", "landlock"])
async def test_a_sandbox_can_be_taken_from_a_living_manager_by_its_name(isolation: str) -> None:
    python = {"python": places_python()} if isolation == "landlock" else {}
    async with LocalSandboxManager() as manager:
        config = {"isolation": isolation, **python}
        made = await manager.create_sandbox("process", config, "to-be-taken")
        other = await manager.create_sandbox("process", config, "to-be-left")
        box, stays = await manager.get_sandbox(made), await manager.get_sandbox(other)
        assert box is not None and stays is not None
        done = enclave("clean", "to-be-taken", "--force")
        assert (done.returncode, done.stdout) == (0, "removed process to-be-taken\n"), done.stderr
        with pytest.raises(SandboxLostError):
            await box.execute_command("true")
        assert seen()["to-be-taken"]["state"] == "lost"
        assert (await stays.execute_command("echo alive")).stdout == "alive\n"


def places_python() -> str:
    from tests.security.boxes import ANY_USERS_PYTHON

    return ANY_USERS_PYTHON


def test_a_killed_manager_leaves_nothing_to_see() -> None:
    with Owner() as owner:
        assert owner.read() == "ready"
        mine = {name for name, row in seen().items() if row["owner"] == "alive"}
        assert len(mine) >= 2
        owner.process.send_signal(signal.SIGKILL)
        owner.process.wait()
        wait_for(lambda: not owner.daemons)
        wait_for(lambda: not set(seen()) & mine)


def test_what_hangs_after_its_owners_death_is_shown_and_removed() -> None:
    """A launcher that is stopped does not end with its owner, nor does its station then."""
    with Owner() as owner:
        assert owner.read() == "ready"
        (launcher,) = [one for one in places.launchers() if one.owner[0] == owner.process.pid]
        assert launcher.has_owner
        stopped = [launcher.pid, *_children(launcher.pid)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        owner.process.send_signal(signal.SIGKILL)
        owner.process.wait()
        name = f"station-{launcher.pid}"
        row = seen()[name]
        assert (row["owner"], row["state"]) == ("gone", "ending")
        assert f"would remove process {name}" in enclave("clean", "--dry-run").stdout
        assert f"removed process {name}" in enclave("clean").stdout
        for pid in stopped[1:]:
            with_suppressed_kill(pid)
        wait_for(lambda: not owner.daemons)
        assert name not in seen()
        enclave("clean")


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(word) for word in text.split()]


def with_suppressed_kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return


def test_a_kept_sandbox_is_removed_when_that_is_asked_for(folder: Path) -> None:
    with Keeper(folder, {"ttl": 1000}, {}) as owner:
        living = {name: seen()[name] for name in ("box-0", "box-1", "ends-with-it")}
        assert [row["owner"] for row in living.values()] == ["alive"] * 3
        assert [row["kept"] for row in living.values()] == [True, True, False]
        owner.kill()
        kept = {name: row for name, row in seen().items() if name in living}
        assert sorted(kept) == ["box-0", "box-1"]
        assert {row["owner"] for row in kept.values()} == {"gone"}
        assert {row["state"] for row in kept.values()} == {"kept"}
        assert kept["box-0"]["created"] == owner.born[0][:19]
        assert "box-0" not in enclave("clean").stdout
        assert len(owner.daemons) == 2
        done = enclave("clean", "box-1")
        assert done.stdout == "removed process box-1\n", done.stderr
        assert len(owner.daemons) == 1
        done = enclave("clean", "--all")
        assert "removed process box-0" in done.stdout, done.stderr
        assert owner.left(5.0) == []
        assert not set(seen()) & set(living)


async def test_a_kept_sandbox_that_a_next_manager_has_is_left_alone(folder: Path) -> None:
    with Keeper(folder, {}) as owner:
        owner.kill()
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            row = seen()["box-0"]
            assert (row["owner"], row["kept"]) == ("alive", True)
            assert "box-0" not in enclave("clean", "--all").stdout
            box = await manager.get_sandbox("box-0")
            assert box is not None
            assert (await box.execute_command("echo alive")).stdout == "alive\n"
        assert "box-0" not in seen()
        assert owner.left(5.0) == []


@contextmanager
def _group() -> Iterator[str]:
    """A control group such as a station leaves that was killed together with its launcher."""
    places_of_groups = [h.path for h in cgroups.own_hierarchies() if cgroups.usable(h)]
    if not places_of_groups:
        pytest.skip("no control group can be made here")
    path = f"{places_of_groups[0]}/{cgroups.PREFIX}{secrets.token_hex(8)}"
    os.mkdir(path)
    try:
        yield path
    finally:
        if os.path.exists(path):
            os.rmdir(path)


def test_a_control_group_that_nobody_holds_is_removed() -> None:
    with _group() as path:
        name = os.path.basename(path)
        assert seen()[name]["owner"] == "gone"
        assert f"removed process {name}" in enclave("clean").stdout
        assert not os.path.exists(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_are_shown_to_root_only() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        home.chmod(0o777)
        words, environment = words_of_somebody(home, [sys.executable, "-c", ONE, "somebodys"])
        with subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            row = seen()["somebodys"]
            assert row["owner"] == "alive"
            looking, environment = words_of_somebody(
                home, [sys.executable, "-c", OURS, "ps", "--json"]
            )
            theirs = subprocess.run(
                looking, env=environment, capture_output=True, text=True, check=True, timeout=60
            )
            assert [one["id"] for one in json.loads(theirs.stdout)] == ["somebodys"]
            process.communicate(b"\n", timeout=60)
        assert "somebodys" not in seen()


# --- the register ---


def test_a_row_is_there_until_it_is_taken_back_and_is_nobody_elses() -> None:
    before = register.read(os.getpid())
    one, two = register.add({"id": "one"}), register.add({"id": "two"})
    assert [row["id"] for row in register.read(os.getpid())[len(before) :]] == ["one", "two"]
    child = os.fork()
    if child == 0:
        os._exit(0 if register.read(os.getpid()) == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    one()
    three = register.add({"id": "three"})  # in the place of the first
    assert sorted(row["id"] for row in register.read(os.getpid())) == ["three", "two"]
    two()
    three()
    assert register.read(os.getpid()) == before
    with pytest.raises(ValueError, match="a row of"):
        register.add({"id": "x" * 1000})


def test_what_a_hostile_register_says_is_nothing() -> None:
    bad: list[dict[str, Any]] = [
        {}, {"type": "process"}, {"type": "process", "id": "../x"}, {"type": 1, "id": []},
        {"type": "process", "id": "a", "launcher": "x", "began": 1, "init": 2, "created": "",
         "manager": "", "kept": 1},
    ]  # fmt: skip
    undo = [register.add(row) for row in bad]
    try:
        found = places.find("process")
        assert not [one for one in found if one.id in {"../x", "a"}]
    finally:
        for each in undo:
            each()
