"""Sandboxes that outlive their manager, and the next manager that finds them."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave import blocking
from ms_enclave.errors import CapabilityError, ConfigError, SandboxLostError, SandboxStateError
from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.spawner import keeping
from tests.security.boxes import (
    ANY_USERS_PYTHON,
    find_processes,
    wait_for_processes,
    wait_until_gone,
)
from tests.support.owners import Owner, groups_named, new_marker
from tests.support.parts import find_part, wait_until_dead
from tests.support.somebody import SOMEBODY, as_somebody

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ms_enclave.boxes.base import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.namespaces]

ROUNDS = int(os.environ.get("MS_ENCLAVE_TEST_ROUNDS", "3"))

KEEPER = """
import asyncio, json, os, sys
from ms_enclave.manager.local_manager import LocalSandboxManager

async def main(marker, folder):
    manager = LocalSandboxManager(state_dir=folder)
    await manager.start()
    for number, options in enumerate(json.loads(os.environ['BOXES'])):
        config = {'on_owner_death': 'keep', 'tools_config': ['shell_executor'], **options}
        name = await manager.create_sandbox('process', config, f'box-{number}')
        box = await manager.get_sandbox(name)
        await box.files.write('mine', f'{marker} {number}')
        await box.execute_command(f'setsid sleep {marker} > /dev/null 2>&1 &')
        info = await manager.get_sandbox_info(name)
        print(json.dumps(info.created_at.isoformat()), flush=True)
    await manager.create_sandbox('process', None, 'ends-with-it')
    print(json.dumps('ready'), flush=True)
    word = (await asyncio.to_thread(sys.stdin.readline)).strip()
    if word == 'hand over':
        await manager.hand_over()
    elif word == 'run':
        await box.execute_command(['sleep', marker + '1'])
    elif word == 'pause':
        if able := 'pause' in box.capabilities:
            await box.pause()
        print(json.dumps(able), flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main(*sys.argv[1:]))
"""


class Keeper(Owner):
    """A manager in a process of its own with sandboxes that are to outlive it."""

    def __init__(self, folder: Path, *boxes: dict[str, object]) -> None:
        env = {**os.environ, "BOXES": json.dumps(boxes)}
        super().__init__(program=KEEPER, arguments=[str(folder)], env=env)
        self.born = [self.read() for _ in boxes]
        assert self.read() == "ready"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A state folder; what was left in it is gone with the test."""
    yield tmp_path / "state"
    place = tmp_path / "state" / "process"
    for survivor in keeping.find(str(place))[0] if place.exists() else []:
        survivor.connection.close()
        survivor.kill()
        survivor.close()


async def test_the_next_manager_finds_what_a_killed_one_left(folder: Path) -> None:
    with Keeper(folder, {}, {"ttl": 1000, "env_vars": {"WHO": "second"}}) as owner:
        owner.kill()
        daemons = owner.daemons
        assert len(daemons) == 2
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            infos = {info.id: info for info in await manager.list_sandboxes()}
            assert sorted(infos) == ["box-0", "box-1"]
            assert [infos[f"box-{n}"].created_at.isoformat() for n in range(2)] == owner.born
            assert {info.status for info in infos.values()} == {"running"}
            assert infos["box-1"].config["ttl"] == 1000
            for number in range(2):
                box = await manager.get_sandbox(f"box-{number}")
                assert box is not None
                assert await box.files.read_text("mine") == f"{owner.marker} {number}"
                look = "cat mine; cat /proc/[0-9]*/comm | grep -c sleep; echo $WHO"
                seen = await box.execute_command(look)
                who = "second" if number else ""
                assert seen.stdout == f"{owner.marker} {number}1\n{who}\n"
                assert (await box.run_code("print(6 * 7)")).stdout == "42\n"
                result = await box.execute_tool("shell_executor", {"command": "echo tool"})
                assert result.output.strip() == "tool"
            assert owner.daemons == daemons
            fresh = await manager.create_sandbox("process", {"on_owner_death": "keep"})
            assert await manager.delete_sandbox(fresh)
            assert await manager.delete_sandbox("box-0")
            assert len(owner.daemons) == 1
        assert owner.left(1.0) == []
        assert list(folder.glob("*/station-*")) == []


async def test_a_command_of_the_dead_owner_ends_and_its_sandbox_goes_on(folder: Path) -> None:
    with Keeper(folder, {}) as owner:
        owner.tell("run")
        wait_for_processes(f"{owner.marker}1")
        owner.kill()
        assert wait_until_gone(f"{owner.marker}1") == []
        assert len(owner.daemons) == 1
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            box = await manager.get_sandbox("box-0")
            assert box is not None
            assert await box.files.read_text("mine") == f"{owner.marker} 0"


async def test_one_that_is_left_paused_goes_on_with_the_next_manager(folder: Path) -> None:
    with Keeper(folder, {}) as owner:
        if not owner.ask("pause"):
            pytest.skip("no control groups of version 2 that this user may write")
        owner.kill()
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            box = await manager.get_sandbox("box-0")
            assert box is not None
            assert not box.paused
            with anyio.fail_after(30):
                assert await box.files.read_text("mine") == f"{owner.marker} 0"
                await box.pause()
                await box.resume()
                assert (await box.run_code("print(6 * 7)")).stdout == "42\n"


async def test_one_that_is_left_paused_has_no_longer_to_live(folder: Path) -> None:
    with Keeper(folder, {"ttl": 3}) as owner:
        if not owner.ask("pause"):
            pytest.skip("no control groups of version 2 that this user may write")
        owner.kill()
        assert owner.left(20.0) == []


async def test_one_without_namespaces_is_kept_too(folder: Path) -> None:
    config = {"isolation": "landlock", "python": ANY_USERS_PYTHON}
    with Keeper(folder, config, {**config, "ttl": 1000}, {**config, "ttl": 2}) as owner:
        owner.kill()
        launcher = find_part("launcher", owner.daemons[0])
        assert wait_for_count(owner, 2) == 2
        manager = LocalSandboxManager(state_dir=str(folder))
        await manager.start()
        for number in range(2):
            box = await manager.get_sandbox(f"box-{number}")
            assert box is not None
            assert box.isolation.tier == "landlock"
            assert await box.files.read_text("mine") == f"{owner.marker} {number}"
            assert await box.files.read_text("/sandbox/mine") == f"{owner.marker} {number}"
            seen = await box.execute_command("cat mine", cwd="/sandbox")
            assert seen.stdout == f"{owner.marker} {number}"
            assert (await box.run_code("print(6 * 7)")).stdout == "42\n"
            assert box.config.working_dir.endswith("/work")
        await manager.hand_over()
        assert len(owner.daemons) == 2
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert len(await manager.list_sandboxes()) == 2
            fresh = await manager.create_sandbox("process", {**config, "on_owner_death": "keep"})
            assert await manager.delete_sandbox(fresh)
        assert owner.left(1.0) == []
        assert wait_until_dead({launcher}, 5.0) == set()
        assert list(folder.glob("*/station-*")) == []


@pytest.mark.parametrize("word", ["hand over", "end"])
async def test_an_owner_that_ends_in_good_order_leaves_them_too(folder: Path, word: str) -> None:
    with Keeper(folder, {}) as owner:
        owner.tell(word)
        assert owner.close() == 0
        assert len(owner.daemons) == 1
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert [info.id for info in await manager.list_sandboxes()] == ["box-0"]
        assert owner.left(1.0) == []


async def test_one_owner_after_the_other(folder: Path) -> None:
    with Keeper(folder, {}) as owner:
        owner.kill()
        marker = new_marker()
        for number in range(4):
            manager = LocalSandboxManager(state_dir=str(folder))
            await manager.start()
            box = await manager.get_sandbox("box-0")
            assert box is not None
            assert (await box.execute_command("cat seen || true")).stdout == "x" * number
            await box.files.write("seen", "x" * (number + 1))
            async with anyio.create_task_group() as group:

                async def run(box: Sandbox) -> None:
                    with pytest.raises(SandboxLostError):
                        await box.execute_command(["sleep", marker])

                group.start_soon(run, box)
                with anyio.fail_after(10):
                    while not find_processes(marker):
                        await anyio.sleep(0.01)
                await manager.hand_over()
            assert box.status == "error"
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert find_processes(marker) == []
            assert await manager.delete_sandbox("box-0")
            assert owner.daemons == []


async def test_what_only_serves_its_own_manager_is_never_kept(folder: Path) -> None:
    manager = LocalSandboxManager(
        state_dir=str(folder), sandbox_config={"on_owner_death": "keep"}, pool_size=1
    )
    await manager.initialize_pool(sandbox_type="process")
    assert (await manager.run_code("print(1)")).stdout == "1\n"
    await manager.hand_over()
    async with LocalSandboxManager(state_dir=str(folder)) as next_one:
        assert await next_one.list_sandboxes() == []


async def test_a_folder_has_one_owner_at_a_time(folder: Path) -> None:
    with Keeper(folder, {}) as owner:
        second = LocalSandboxManager(state_dir=str(folder))
        with pytest.raises(SandboxStateError, match=str(owner.process.pid)):
            await second.start()
        async with LocalSandboxManager(state_dir=str(folder.with_name("other"))) as third:
            assert await third.list_sandboxes() == []
        owner.kill()
        await second.start()
        assert len(await second.list_sandboxes()) == 1
        await second.stop()


async def test_the_folder_must_be_private(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="chmod 0700"):
        await LocalSandboxManager(state_dir=str(folder)).start()


async def test_keeping_takes_a_folder() -> None:
    async with LocalSandboxManager() as manager:
        with pytest.raises(CapabilityError, match="state_dir"):
            await manager.create_sandbox("process", {"on_owner_death": "keep"})


# --- without an owner ---------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["ttl", "idle_timeout"])
async def test_without_an_owner_the_station_sees_to_the_time(folder: Path, option: str) -> None:
    with Keeper(folder, {option: 2.5}, {}, {option: 3.5}) as owner:
        launcher = find_part("launcher", owner.daemons[0])
        owner.kill()
        assert len(owner.daemons) == 3
        assert wait_for_count(owner, 1) == 1
        assert wait_until_dead({launcher}, 0) == {launcher}
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert [info.id for info in await manager.list_sandboxes()] == ["box-1"]


def test_with_its_last_sandbox_a_station_ends(folder: Path) -> None:
    with Keeper(folder, {"ttl": 2}) as owner:
        launcher = find_part("launcher", owner.daemons[0])
        groups = owner.groups()
        owner.kill()
        assert wait_for_count(owner, 0) == 0
        assert wait_until_dead({launcher}, 5) == set()
        assert groups_named(groups) == set()
        assert list(folder.glob("process/*")) == []


async def test_a_renewal_holds_without_an_owner(folder: Path) -> None:
    with Keeper(folder, {"ttl": 1000}, {"ttl": 1000}) as owner:
        owner.kill()
        manager = LocalSandboxManager(state_dir=str(folder))
        await manager.start()
        await manager.renew("box-1", 0.5)
        await manager.hand_over()
        assert wait_for_count(owner, 1) == 1
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert [info.id for info in await manager.list_sandboxes()] == ["box-0"]


async def test_an_adopted_one_has_no_more_time_than_it_was_given(folder: Path) -> None:
    with Keeper(folder, {"ttl": 3}) as owner:
        owner.kill()
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            with anyio.fail_after(20):
                while await manager.list_sandboxes():
                    await anyio.sleep(0.02)
            assert owner.daemons == []


def wait_for_count(owner: Keeper, count: int) -> int:
    deadline = time.monotonic() + 20
    while (seen := len(owner.daemons)) > count and time.monotonic() < deadline:
        time.sleep(0.02)
    return seen


# --- what lies in the folder --------------------------------------------------------------------


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with us."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def records(bystander: subprocess.Popen[bytes]) -> dict[str, dict[str, object]]:
    """Records that name its pid, or somebody's, as if of a time before that was used again."""
    true = keeping.identity(bystander.pid)
    return {
        "a1": {**true, "start": true["start"] - 1},
        "a2": {**true, "boot": "00000000-0000-0000-0000-000000000000"},
        "a3": {**true, "pid": 1},
        "a4": {**keeping.identity(os.getpid()), "pid": bystander.pid},
    }


async def test_nobody_is_killed_for_having_a_number_that_a_record_names(
    folder: Path,
    bystander: subprocess.Popen[bytes],
    records: dict[str, dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = folder / "process"
    place.mkdir(parents=True)
    folder.chmod(0o700)
    monkeypatch.chdir(place)  # its path may be too long for a socket
    for name, row in records.items():
        (place / f"station-{name}.json").write_text(json.dumps(row))
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as nobody:
            nobody.bind(f"station-{name}.sock")
    async with LocalSandboxManager(state_dir=str(folder)) as manager:
        assert await manager.list_sandboxes() == []
    assert bystander.poll() is None
    assert list(place.iterdir()) == []


BROKEN = [b"", b"{", b"[]", b"null", b'{"pid": 1}', b'{"pid": "1", "start": 1, "boot": ""}',
          b'{"pid": -1, "start": 1, "boot": "x"}', b"\xff\xfe", b"1" * 100_000]  # fmt: skip


async def test_what_is_no_record_is_put_aside(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = folder / "process"
    place.mkdir(parents=True)
    folder.chmod(0o700)
    for number, text in enumerate(BROKEN):
        (place / f"station-{number}.json").write_bytes(text)
    (place / "station-ff.json").mkdir()
    (place / "somebody's").write_text("else")
    (place / "station-fe.sock").write_text("no socket")
    async with LocalSandboxManager(state_dir=str(folder)) as manager:
        assert await manager.list_sandboxes() == []
        name = await manager.create_sandbox("process", {"on_owner_death": "keep"})
        assert await manager.delete_sandbox(name)
    for number, text in enumerate(BROKEN):
        assert (place / f"station-{number}.json.corrupt").read_bytes() == text
        assert f"station-{number}.json is not a record" in caplog.text
    assert (place / "somebody's").read_text() == "else"


async def test_a_station_with_a_broken_record_is_found_all_the_same(folder: Path) -> None:
    with Keeper(folder, {}) as owner:
        (record,) = folder.glob("process/*.json")
        launcher = json.loads(record.read_text())["pid"]
        record.write_text("{")
        owner.kill()
        try:
            async with LocalSandboxManager(state_dir=str(folder)) as manager:
                assert [info.id for info in await manager.list_sandboxes()] == ["box-0"]
            assert owner.left(1.0) == []
        finally:
            assert wait_until_dead({launcher}, 1.0) == set()


async def test_what_another_version_left_is_left_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Keeper(folder, {}) as owner:
        owner.kill()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ms_enclave.spawner.stations.__version__", "0.0.9")
            async with LocalSandboxManager(state_dir=str(folder)) as manager:
                assert await manager.list_sandboxes() == []
        assert "only that can adopt them" in caplog.text
        assert len(owner.daemons) == 1
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert len(await manager.list_sandboxes()) == 1


@pytest.mark.parametrize("how", ["launcher hangs", "station hangs", "no socket"])
async def test_what_cannot_be_reached_is_lost_and_ended(
    folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ms_enclave.spawner.stations.ADOPT_SECONDS", 1.0)
    with Keeper(folder, {}) as owner:
        launcher = find_part("launcher", owner.daemons[0])
        station = find_part("station", owner.daemons[0])
        groups = owner.groups()
        if how == "no socket":
            (path,) = folder.glob("process/*.sock")
            path.unlink()
        else:
            os.kill(launcher if how == "launcher hangs" else station, signal.SIGSTOP)
        owner.kill()
        async with LocalSandboxManager(state_dir=str(folder)) as manager:
            assert await manager.list_sandboxes() == []
            assert owner.left(2.0) == []
            assert wait_until_dead({launcher, station}, 1.0) == set()
            assert (await manager.run_code("print(1)")).stdout == "1\n"
            assert groups_named(groups) == set()


def memory_of(pid: int) -> bytes:
    """What a process may write of its memory: all that it could have stored something in."""
    found = b""
    with open(f"/proc/{pid}/maps") as rows, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for row in rows:
            (first, _, end), kind = row.split()[0].partition("-"), row.split()[1]
            if kind.startswith("rw"):
                memory.seek(int(first, 16))
                found += memory.read(int(end, 16) - int(first, 16))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into these")
def test_what_a_sandbox_is_given_is_not_in_the_processes_that_serve_others(folder: Path) -> None:
    secret = f"token-{secrets.token_hex(16)}"
    with Keeper(folder, {"env_vars": {"TOKEN": secret}}, {}, {}) as owner:
        daemons = owner.daemons
        assert secret.encode() in Path(f"/proc/{daemons[0]}/environ").read_bytes()
        parts = {find_part("station", daemons[0]), *(find_part("init", pid) for pid in daemons)}
        assert len(parts) == 4
        owner.kill()
        for pid in parts:
            assert b"/run/enclave" in memory_of(pid)
            assert secret.encode() not in memory_of(pid)
        with blocking.LocalSandboxManager(state_dir=str(folder)) as manager:
            assert len(manager.list_sandboxes()) == 3


# --- at any moment ------------------------------------------------------------------------------

BUSY = """
import asyncio, json, logging, sys
from ms_enclave.manager.local_manager import LocalSandboxManager

logging.basicConfig()  # what it says of the last one is in the test's output

async def work(manager, marker):
    while True:
        name = await manager.create_sandbox('process', {'on_owner_death': 'keep'})
        print(json.dumps(['made', name]), flush=True)
        box = await manager.get_sandbox(name)
        await box.files.write('mine', name)
        await box.execute_command(f'setsid sleep {marker} > /dev/null 2>&1 &')
        await box.run_code('print(1)')
        if len(await manager.list_sandboxes()) > 4:
            print(json.dumps(['deleted', name]), flush=True)
            await manager.delete_sandbox(name)

async def main(marker, folder):
    async with LocalSandboxManager(state_dir=folder) as manager:
        print(json.dumps(len(await manager.list_sandboxes())), flush=True)
        await asyncio.gather(*(work(manager, marker) for _ in range(3)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.slow
async def test_whenever_a_manager_is_killed_the_next_has_all_that_it_left(folder: Path) -> None:
    chance = random.Random(78)
    markers: list[str] = []
    heard: list[list[str]] = []
    groups: set[str] = set()
    for _ in range(2 * ROUNDS):
        with Owner(program=BUSY, arguments=[str(folder)]) as owner:
            markers.append(owner.marker)
            owner.read()
            for _ in range(chance.randrange(8)):
                heard.append(owner.read())
            await anyio.sleep(chance.uniform(0, 0.05))
            groups |= owner.groups()
            owner.process.kill()
            heard += owner.rest()
    launchers = [json.loads(path.read_text())["pid"] for path in folder.glob("*/*.json")]
    async with LocalSandboxManager(state_dir=str(folder)) as manager:
        infos = await manager.list_sandboxes()
        expected = {name for what, name in heard if what == "made"}
        expected -= {name for what, name in heard if what == "deleted"}
        assert expected <= {info.id for info in infos}
        for info in infos:
            box = await manager.get_sandbox(info.id)
            assert box is not None
            assert (await box.run_code("print(1)")).stdout == "1\n"
            if await box.files.exists("mine"):
                assert await box.files.read_text("mine") in ("", info.id)
        for info in infos:
            assert await manager.delete_sandbox(info.id)
        assert [pid for marker in markers for pid in find_processes(marker)] == []
    assert wait_until_dead(set(launchers), 1.0) == set()
    assert groups_named(groups) == set()
    assert list(folder.glob("*/*")) == []


ROOTLESS = """
import asyncio, json, os, signal, subprocess, sys
from ms_enclave.manager.local_manager import LocalSandboxManager

OWNER = '''
import asyncio, sys
from ms_enclave.manager.local_manager import LocalSandboxManager
async def main():
    manager = LocalSandboxManager(state_dir=sys.argv[1])
    await manager.create_sandbox('process', {'on_owner_death': 'keep'}, 'box')
    box = await manager.get_sandbox('box')
    await box.files.write('mine', 'here')
    print('ready', flush=True)
    sys.stdin.read()
asyncio.run(main())
'''

async def main(folder):
    owner = subprocess.Popen(
        [sys.executable, '-c', OWNER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    owner.stdout.readline()
    owner.kill()
    owner.wait()
    async with LocalSandboxManager(state_dir=folder) as manager:
        box = await manager.get_sandbox('box')
        seen = await box.run_code('print(1)')
        print(os.geteuid(), await box.files.read_text('mine'), seen.stdout)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as an ordinary user here")
def test_an_ordinary_user_s_sandbox_is_adopted_too() -> None:
    home = Path(tempfile.mkdtemp(prefix="keep-"))
    os.chown(home, SOMEBODY, SOMEBODY)
    home.chmod(0o755)
    try:
        done = as_somebody(home, [sys.executable, "-c", ROOTLESS, str(home / "state")], 60)
        assert done.stdout.split() == [str(SOMEBODY), "here", "1"], done.stderr
    finally:
        shutil.rmtree(home)
