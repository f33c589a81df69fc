"""The tier `landlock` where it is meant for: started by an ordinary user, and on a machine without
user namespaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ms_enclave.errors import SandboxLostError
from tests.security.boxes import LandlockSandbox, wait_for_processes, wait_until_gone
from tests.support.owners import new_marker
from tests.support.parts import descendants_of, find_part, wait_until_dead
from tests.support.somebody import SOMEBODY, as_somebody

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE = "tests/security/test_landlock.py"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be another user")

BEST = """
import asyncio, json
from ms_enclave.boxes.process_sandbox import ProcessSandbox
from ms_enclave.errors import IsolationUnavailableError

async def main():
    shown = {}
    try:
        async with ProcessSandbox():
            shown["refusal"] = None
    except IsolationUnavailableError as error:
        shown["refusal"] = [error.message, error.remedy]
    async with ProcessSandbox({"isolation": "best"}) as box:
        ran = await box.run_code("print(6 * 7)")
        shown["best"] = [ran.stdout.strip(), ran.isolation, box.isolation.tier]
    print(json.dumps(shown))

asyncio.run(main())
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of that user's own."""
    folder = Path(tempfile.mkdtemp(prefix="landlock-"))
    os.chown(folder, SOMEBODY, SOMEBODY)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_root
def test_without_user_namespaces_the_best_is_landlock(home: Path) -> None:
    # The limit is one of each user namespace: the machine's own is not touched.
    words = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    words += ['echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh"]
    done = as_somebody(home, [*words, sys.executable, "-c", BEST], 60)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["best"] == ["42", "landlock", "landlock"]
    said, remedy = shown["refusal"]
    assert "user.max_user_namespaces is 0" in said
    assert "sysctl -w user.max_user_namespaces=" in remedy


@needs_root
def test_doctor_prints_what_mends_it_and_does_it_when_asked(home: Path) -> None:
    doctor = f"{sys.executable} -c 'from ms_enclave.cli import run_cmd; run_cmd()' doctor process"
    limit = "/proc/sys/user/max_user_namespaces"
    script = (
        f"echo 0 > {limit}; {doctor}; echo '--' $?; {doctor} --fix; echo '--' $?; cat {limit};"
        f"{doctor} --fix --apply; echo '--' $?; cat {limit}"
    )
    done = as_somebody(home, ["unshare", "--user", "--map-root-user", "sh", "-c", script], 60)
    shown, printed, applied, limits = done.stdout.split("-- ")
    assert "does not work here" in shown
    assert "tier landlock works when it is asked for by name" in shown
    line = "sysctl -w user.max_user_namespaces=15000"
    assert printed.splitlines()[0] == "1"
    assert printed.splitlines()[1].startswith(line)
    assert len(printed.splitlines()) == 2
    assert applied.splitlines()[:2] == ["1", "0"], "printed, not done"
    assert applied.splitlines()[2].startswith(line)
    assert limits.split() == ["0", "15000"], done.stderr


@needs_root
@pytest.mark.namespaces
def test_with_user_namespaces_the_best_is_not_landlock(home: Path) -> None:
    done = as_somebody(home, [sys.executable, "-c", BEST], 60)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown == {"refusal": None, "best": ["42", "namespace", "namespace"]}


@needs_root
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_its_walls_hold_an_ordinary_users_sandbox(home: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", SUITE]
    done = as_somebody(home, words, 280)
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert int(summary.split(" passed")[0].split()[-1]) > 60, summary
    assert "skipped" not in summary


@pytest.mark.parametrize("victim", ["station", "launcher"])
async def test_whatever_is_killed_of_it_nothing_is_left(victim: str) -> None:
    marker = f"left-{victim}-{os.getpid()}"
    before = descendants_of(os.getpid())
    box = LandlockSandbox()
    await box.start()
    await box.execute_command(f"setsid bash -c 'exec -a {marker} sleep 600' >/dev/null 2>&1 &")
    wait_for_processes(marker)
    parts = descendants_of(os.getpid()) - before
    folder = Path(box.config.working_dir).parent.parent
    assert folder.exists()
    launcher = next(pid for pid in parts if _parent(pid) == os.getpid())
    station = next(pid for pid in parts if _parent(pid) == launcher)
    os.kill(station if victim == "station" else launcher, signal.SIGKILL)
    assert wait_until_gone(marker, 2.0) == []
    assert wait_until_dead(parts - {launcher}, 2.0) == set()
    with pytest.raises(SandboxLostError):
        await box.execute_command("echo no")
    await box.stop()
    deadline = time.monotonic() + 2
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not folder.exists()
    async with LandlockSandbox() as another:
        assert (await another.execute_command("echo works")).stdout == "works\n"


@pytest.mark.parametrize("how", ["with unread words", "after its keeper", "after all the others"])
async def test_a_killed_station_leaves_no_program(how: str) -> None:
    marker = new_marker()
    box = LandlockSandbox()
    await box.start()
    if how == "after all the others" and box.isolation.guards["cgroup_kill"] != "on":
        await box.stop()
        pytest.skip("nothing but a control group knows what all have left that knew of it")
    await box.execute_command(
        f"setsid sleep {marker} >/dev/null 2>&1 & setsid sleep {marker}1 >/dev/null 2>&1 &"
    )
    (daemon,) = wait_for_processes(marker)
    (short,) = wait_for_processes(f"{marker}1")
    launcher, station, keeper = (
        find_part(role, daemon) for role in ("launcher", "station", "init")
    )
    os.kill(station, signal.SIGSTOP)
    if how == "with unread words":
        os.kill(short, signal.SIGKILL)  # the keeper tells of it, and nobody reads that
        assert wait_until_gone(f"{marker}1") == []
    else:
        os.kill(keeper, signal.SIGKILL)
        assert wait_for_parent(daemon, station)
    if how == "after all the others":
        os.kill(launcher, signal.SIGKILL)
    os.kill(station, signal.SIGKILL)
    if how != "after all the others":
        assert wait_until_gone(marker, 5.0) == []
    with pytest.raises(SandboxLostError):
        await box.execute_command("echo no")
    await box.stop()
    assert wait_until_gone(marker, 5.0) + wait_until_gone(f"{marker}1", 5.0) == []
    async with LandlockSandbox():  # the next one removes the files
        assert not Path(box.config.working_dir).exists()


def wait_for_parent(pid: int, parent: int) -> bool:
    deadline = time.monotonic() + 5
    while not (found := _parent(pid) == parent) and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


async def test_the_end_of_one_is_not_the_end_of_another() -> None:
    async with LandlockSandbox() as one:
        async with LandlockSandbox() as other:
            await other.execute_command("true")
        assert (await one.execute_command("echo alive")).stdout == "alive\n"


async def test_what_killed_stations_leave_the_next_one_removes() -> None:
    box = LandlockSandbox()
    await box.start()
    folder = Path(box.config.working_dir).parent.parent
    left = folder.with_name("ms-enclave-landlock-of-somebody-dead")
    (left / "1" / "work").mkdir(parents=True)
    (left / "1" / "work" / "file").write_text("x")
    await box.stop()
    async with LandlockSandbox() as one, LandlockSandbox() as other:
        assert not left.exists()
        for living in (one, other):
            assert (await living.execute_command("echo works")).stdout == "works\n"


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])
