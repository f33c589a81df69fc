"""Managers die while others live: of the dead nothing stays, and the living notice nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.errors import SandboxLostError, SandboxStartError
from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.security.boxes import ANY_USERS_PYTHON, wait_for_processes, wait_until_gone
from tests.support.owners import BUSY, NURSERY, PROGRAM, Owner, groups_named, new_marker
from tests.support.parts import ROLES, descendants_of, find_part, wait_until_dead
from tests.support.somebody import SOMEBODY, words_of_somebody

if TYPE_CHECKING:
    from ms_enclave.boxes.base import Sandbox

pytestmark = [pytest.mark.namespaces, pytest.mark.slow]

ROUNDS = int(os.environ.get("MS_ENCLAVE_TEST_ROUNDS", "3"))
"""How often each part is killed; the moments are the same ones again each time."""
DEATHS = int(os.environ.get("MS_ENCLAVE_TEST_DEATHS", "200"))
"""How many die at random moments; the seed says at which."""
SEED = int(os.environ.get("MS_ENCLAVE_TEST_SEED", "79"))
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


@pytest.mark.parametrize("tier", ["namespace", "landlock"])
def test_whenever_a_manager_is_killed_nothing_is_left(tier: str) -> None:
    chance = random.Random(78)
    env = {**os.environ, "CONFIG": json.dumps(config_of(tier))}
    for _ in range(2 * ROUNDS):
        groups: set[str] = set()
        with Owner(program=BUSY, env=env) as owner:
            assert owner.read() == "ready"
            stations = descendants_of(owner.process.pid)
            time.sleep(chance.uniform(0, 0.3))
            groups = owner.groups()
            owner.kill()
            assert owner.left(GONE) == []
        assert wait_until_dead(stations, GONE) == set()
        assert wait_for_no_groups(groups) == set()


class Work:
    """Everything that a manager is asked for, again and again, while parts of it are killed."""

    def __init__(self, manager: LocalSandboxManager, box: Sandbox, seed: str) -> None:
        self.manager = manager
        self.box = box
        self.name = seed.replace(" ", "-")
        self.chance = random.Random(seed)
        self.done = False
        self.calls = 0
        self.errors: list[Exception] = []

    async def go_on(self) -> None:
        """Until it is done; what is raised is kept."""
        kinds = [self.run, self.make_and_delete, self.use_files, self.use_box]
        while not self.done:
            try:
                await self.chance.choice(kinds)()
            except Exception as error:  # noqa: BLE001 - judged by the test
                self.errors.append(error)
                await anyio.sleep(0.01)
            self.calls += 1

    async def run(self) -> None:
        assert (await self.manager.run_code("print(6 * 7)")).stdout == "42\n"

    async def make_and_delete(self) -> None:
        name = await self.manager.create_sandbox("process")
        try:
            box = await self.manager.get_sandbox(name)
            assert box is not None
            await box.files.write("x", b"y" * 100_000)
            assert (await box.execute_command("wc -c < x")).stdout.strip() == "100000"
        finally:
            await self.manager.delete_sandbox(name)

    async def use_files(self) -> None:
        await self.box.files.write(self.name, b"z" * 300_000)
        assert len(await self.box.files.read(self.name)) == 300_000

    async def use_box(self) -> None:
        result = await self.box.run_code("print(2)", timeout=20)
        assert result.stdout == "2\n"


OF_LANDLOCK = ("launcher", "station", "init")
"""There a sandbox's first process is its keeper, which takes its place."""
HARMLESS = {"zygote", "guest"}
"""What a sandbox survives."""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("tier", "role"),
    [*(("namespace", role) for role in ROLES), *(("landlock", role) for role in OF_LANDLOCK)],
)
async def test_whatever_part_is_killed_callers_learn_it_and_the_next_sandbox_works(
    tier: str, role: str
) -> None:
    chance = random.Random(role)
    config = config_of(tier)
    async with (
        LocalSandboxManager(sandbox_config=config) as neighbours,
        LocalSandboxManager(sandbox_config=config) as manager,
    ):
        neighbour = await neighbours.get_sandbox(await neighbours.create_sandbox("process"))
        assert neighbour is not None
        await neighbour.files.write("mine", "here")
        calls = failed = 0
        for number in range(ROUNDS):
            marker = new_marker()
            name = await manager.create_sandbox("process")
            box = await manager.get_sandbox(name)
            assert box is not None
            await box.execute_command(f"setsid sleep {marker} > /dev/null 2>&1 &")
            await box.files.write("data", b"")
            (daemon,) = wait_for_processes(marker)
            work = [Work(manager, box, f"{role} {number} {n}") for n in range(3)]
            async with anyio.create_task_group() as group:
                for one in work:
                    group.start_soon(one.go_on)
                await anyio.sleep(chance.uniform(0.01, 0.1))
                os.kill(find_part(role, daemon), signal.SIGKILL)
                await anyio.sleep(0.1)
                for one in work:
                    one.done = True
            errors = [error for one in work for error in one.errors]
            unexpected = [error for error in errors if not is_expected(error, role)]
            assert unexpected == []
            calls += sum(one.calls for one in work)
            failed += len(errors)
            assert (await manager.run_code("print(1)")).stdout == "1\n"
            assert await neighbour.files.read_text("mine") == "here"
            assert (await neighbour.run_code("print(3)")).stdout == "3\n"
            if role in HARMLESS:
                assert (await box.run_code("print(4)")).stdout == "4\n"
                await box.files.write("more", b"")
            else:
                assert wait_until_gone(marker, GONE) == []
                with pytest.raises(SandboxLostError):
                    await box.run_code("print(4)")
            assert await manager.delete_sandbox(name)
            assert wait_until_gone(marker, GONE) == []
        assert calls > failed


class Ledger:
    """Writes files into a sandbox, one after the other, and knows which were acknowledged."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self.acknowledged: dict[str, bytes] = {}
        self.errors: list[Exception] = []
        self.done = False

    async def go_on(self) -> None:
        number = 0
        while not self.done:
            number += 1
            name, content = f"note-{number % 20}", b"%d" % number * 500
            try:
                # Whether a write that fails has been made is not known: so it has its own place.
                await self.box.files.write(f"{name}-{number}", content)
            except Exception as error:  # noqa: BLE001 - judged by the test
                self.errors.append(error)
                await anyio.sleep(0.01)
            else:
                self.acknowledged[f"{name}-{number}"] = content

    async def lost(self) -> list[str]:
        """What was acknowledged and is not there."""
        return [
            name
            for name, content in self.acknowledged.items()
            if await self.box.files.read(name) != content
        ]


class Neighbour:
    """Another manager, used all the time: nothing of it may ever fail."""

    def __init__(self, manager: LocalSandboxManager, box: Sandbox) -> None:
        self.manager = manager
        self.box = box
        self.done = False
        self.calls = 0

    async def go_on(self) -> None:
        while not self.done:
            assert (await self.manager.run_code("print(6 * 7)")).stdout == "42\n"
            assert (await self.box.execute_command("cat mine")).stdout == "here"
            self.calls += 1
            await anyio.sleep(0.02)


@pytest.mark.timeout(60 + DEATHS)
async def test_parts_die_at_random_moments_and_nothing_that_was_acknowledged_is_lost() -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    async with LocalSandboxManager() as neighbours, LocalSandboxManager() as manager:
        theirs = await neighbours.get_sandbox(await neighbours.create_sandbox("process"))
        assert theirs is not None
        await theirs.files.write("mine", "here")
        neighbour = Neighbour(neighbours, theirs)
        async with anyio.create_task_group() as around:
            around.start_soon(neighbour.go_on)
            left = DEATHS - DEATHS // 3
            while left > 0:
                left -= await live_and_die(manager, chance, left)
            neighbour.done = True
        assert neighbour.calls > 10


async def live_and_die(manager: LocalSandboxManager, chance: random.Random, most: int) -> int:
    """A sandbox's life under work, in which parts of it are killed until it is lost; how many."""
    marker = new_marker()
    name = await manager.create_sandbox("process")
    box = await manager.get_sandbox(name)
    assert box is not None
    await box.execute_command(f"setsid sleep {marker} > /dev/null 2>&1 &")
    (daemon,) = wait_for_processes(marker)
    ledger = Ledger(box)
    work = [Work(manager, box, f"{marker} {number}") for number in range(2)]
    await box.files.write("data", b"")
    roles: list[str] = []
    async with anyio.create_task_group() as group:
        for one in (ledger, *work):
            group.start_soon(one.go_on)
        while len(roles) < most and (not roles or roles[-1] in HARMLESS):
            await anyio.sleep(chance.uniform(0, 0.1))
            role = chance.choice(ROLES)
            try:
                os.kill(find_part(role, daemon), signal.SIGKILL)
            except (IndexError, ProcessLookupError):
                continue  # the last one's successor is not there yet
            roles.append(role)
        await anyio.sleep(0.02)
        for one in (ledger, *work):
            one.done = True
    errors = [*ledger.errors, *(error for one in work for error in one.errors)]
    assert [e for e in errors if not any(is_expected(e, role) for role in roles)] == [], roles
    assert (await manager.run_code("print(1)")).stdout == "1\n"
    if roles[-1] in HARMLESS:
        assert await ledger.lost() == []
    else:
        with pytest.raises(SandboxLostError):
            await box.run_code("print(4)")
    await manager.delete_sandbox(name)
    assert wait_until_gone(marker, 5) == []
    return len(roles)


@pytest.mark.timeout(60 + DEATHS)
def test_managers_die_at_random_moments_and_nothing_is_left_of_them() -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    with (
        Owner() as neighbour,
        Owner(program=NURSERY, arguments=[], env={**os.environ, "CONFIG": "{}"}) as nursery,
    ):
        assert [neighbour.read(), nursery.read()] == ["ready", "ready"]
        for _ in range(DEATHS // 3 // 3 + 1):
            markers = [new_marker() for _ in range(3)]
            victims = [nursery.ask(marker) for marker in markers]
            families: set[int] = set()
            for victim in victims:
                time.sleep(chance.uniform(0, 0.4))
                families |= descendants_of(victim)
                os.kill(victim, signal.SIGKILL)
            assert wait_until_dead({*victims, *families}, 5) == set()
            assert [pid for marker in markers for pid in wait_until_gone(marker, 5)] == []
            assert neighbour.works()
        assert [nursery.end(), neighbour.end()] == [0, 0]


def config_of(tier: str) -> dict[str, object]:
    """What a sandbox of a tier takes here."""
    return {"isolation": tier, "python": ANY_USERS_PYTHON if tier == "landlock" else None}


def is_expected(error: Exception, role: str) -> bool:
    """Typed, and of a kind that this death can cause."""
    if role == "guest":
        return isinstance(error, ConnectionResetError)
    return isinstance(error, (SandboxLostError, SandboxStartError))


def first_zygote() -> int:
    """The one that all others of our station are made from."""
    for station in descendants_of(os.getpid()):
        if "station.py" in Path(f"/proc/{station}/cmdline").read_text():
            children = Path(f"/proc/{station}/task/{station}/children").read_text().split()
            named = [
                pid for pid in children if "zygote" in Path(f"/proc/{pid}/cmdline").read_text()
            ]
            return min(int(pid) for pid in named)
    raise AssertionError("there is no station")


async def test_what_was_preloaded_outlives_the_zygote_that_it_was_made_from() -> None:
    async with LocalSandboxManager() as manager:
        config = {"preload": ["fractions"]}
        code = "import sys; print('fractions' in sys.modules)"
        assert (await manager.run_code(code, config=config)).stdout == "True\n"
        killed = first_zygote()
        os.kill(killed, signal.SIGKILL)
        assert not wait_until_dead({killed}, 10)
        for _ in range(3):
            assert (await manager.run_code(code, config=config)).stdout == "True\n"
        assert (await manager.run_code(code)).stdout == "False\n"
        async with manager.sandbox("process") as sandbox:
            assert (await sandbox.execute_command("true")).exit_code == 0
        for _ in range(3):
            assert (await manager.run_code(code, config=config)).stdout == "True\n"
