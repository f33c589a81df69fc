"""Checkpoints of the embedded sandbox: any order of what may happen, against a model in memory."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import pytest

from ms_enclave.manager import LocalSandboxManager
from tests.e2e.test_forks import below_launcher, interpreters_of, opened, run, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ms_enclave.boxes import Sandbox

pytestmark = pytest.mark.namespaces

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = "abc"
BEGIN = (
    "import os\nx = []\n"
    f"for name in {FILES!r}: open(name, 'w').write('-' * 100)\n"
    "held = open('a', 'rb', buffering=0)"
)
LOOK = "x, [open(n).read().strip('-') if os.path.exists(n) else None for n in 'abc'], held.tell()"


class Model:
    """What a sandbox is to hold: a list, three files, and an offset."""

    def __init__(self) -> None:
        self.x: list[int] = []
        self.files: dict[str, str | None] = dict.fromkeys(FILES, "")
        self.offset = 0

    def copy(self) -> Model:
        other = Model()
        other.x, other.files, other.offset = [*self.x], dict(self.files), self.offset
        return other

    def __str__(self) -> str:
        return str((self.x, [self.files[name] for name in FILES], self.offset))


@pytest.fixture
async def manager() -> AsyncIterator[LocalSandboxManager]:
    async with LocalSandboxManager() as running:
        yield running


def slots_of(box: Sandbox) -> int:
    """How many inits of slots there are below the launcher of a sandbox's station."""
    found = 0
    for pid in below_launcher(box):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
            rows = [line.split()[1:] for line in file if line.startswith("NSpid:")]
            depth = len(rows[0]) if rows else 0
            found += depth > 2 and rows[0][-1] == "1"
    return found


def some_change(chance: random.Random, number: int, model: Model) -> str:
    """Code that changes something, and the model with it."""
    kind = chance.choice(["list", "write", "remove", "offset"])
    if kind == "list":
        model.x.append(number)
        return f"x.append({number})"
    if kind == "offset":
        model.offset = chance.randrange(90)
        return f"held.seek({model.offset})"
    name = chance.choice("bc")  # what is open keeps its name, or nothing could be kept
    if kind == "remove":
        model.files[name] = None
        return f"os.path.exists({name!r}) and os.remove({name!r})"
    model.files[name] = str(number)
    return f"open({name!r}, 'w').write('{number}')"


ENDS = ("1/0", "os._exit(1)", "os.kill(os.getpid(), 9)", "import ctypes; ctypes.string_at(0)")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_everything_is_as_it_is_to_be(
    manager: LocalSandboxManager, seed: int
) -> None:
    chance = random.Random(seed)
    box = await opened(manager)
    await run(box, BEGIN)
    model = Model()
    kept: dict[str, Model] = {}
    print(f"seed {seed}")
    for number in range(1, 41):
        what = chance.choice(["cell", "cell", "atomic", "fail", "keep", "back", "crash", "fork"])
        kernel = await box.kernel()
        if what in ("cell", "atomic"):
            code = "; ".join([some_change(chance, number, model) for _ in range(2)])
            assert (await kernel.run(code, atomic=what == "atomic")).success, (seed, number)
        elif what == "fail":
            code = some_change(chance, number, model.copy())
            done = await kernel.run(f"{code}\n{chance.choice(ENDS)}", atomic=True)
            assert not done.success
        elif what == "keep":
            kept[(await box.checkpoint()).id] = model.copy()
            kept = {name: kept[name] for name in [*kept][-8:]}
        elif what in ("back", "crash") and kept:
            if what == "crash":
                await kernel.run(chance.choice(ENDS[1:]))
            name = chance.choice([*kept])
            await box.rollback(name)
            model = kept[name].copy()
        elif what == "fork":
            old, at = box, chance.choice([None, *kept])
            (box,) = await box.fork(at=at)
            model = (model if at is None else kept[at]).copy()
            kept = {}
            await manager.delete_sandbox(old.id)
        assert await run(box, LOOK) == str(model), (seed, number, what)


async def test_nothing_of_checkpoints_is_left(manager: LocalSandboxManager) -> None:
    box, other = await opened(manager), await opened(manager)
    await other.kernel()
    await run(box, "x = 1")
    before = interpreters_of(box)
    for number in range(12):
        await box.checkpoint()
        kernel = await box.kernel()
        assert not (await kernel.run(f"x = {number}\n1/0", atomic=True)).success
        assert (await kernel.run(f"y = {number}", atomic=True)).success
        await box.rollback((await box.tree())[-1])
    assert len(await box.tree()) == 12
    await settled(box, before + 8)
    with anyio.fail_after(10):  # those of the two, and what is made ahead
        while await anyio.to_thread.run_sync(slots_of, box) > 2 + 4:
            await anyio.sleep(0.02)
    await box.stop()
    await settled(other, before - 2)


async def test_a_rolled_back_sandbox_stands_behind_the_same_walls(
    manager: LocalSandboxManager,
) -> None:
    box = await opened(manager, memory_limit="200m")
    await run(box, "x = 1")
    guards = box.isolation.guards
    kept = await box.checkpoint()
    await box.rollback(kept)
    text = await (await box.kernel()).run("print(open('/proc/self/status').read())")
    for wall in ("CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"):
        assert wall in text.stdout
    assert box.isolation.guards == guards
    done = await (await box.kernel()).run("data = bytearray(400 << 20)", atomic=True)
    assert done.verdict == "oom"
    assert await run(box, "x") == "1"


async def test_one_rollback_after_the_other_and_at_once(manager: LocalSandboxManager) -> None:
    box = await opened(manager)
    await run(box, "x = []")
    kept = [await box.checkpoint()]
    for number in range(3):
        await run(box, f"x.append({number})")
        kept.append(await box.checkpoint())
    async with anyio.create_task_group() as group:
        for one in kept:
            group.start_soon(box.rollback, one)
    assert await run(box, "len(x)") in "0123"
    await box.rollback(kept[2])
    assert await run(box, "x") == "[0, 1]"


async def test_a_rollback_that_is_cancelled_is_whole_or_none(
    manager: LocalSandboxManager,
) -> None:
    box = await opened(manager)
    await run(box, "x = 0; open('text', 'w').write('0')")
    kept = await box.checkpoint()
    await run(box, "x = 1; open('text', 'w').write('1')")
    for number in range(8):
        with anyio.move_on_after(0.003 * number):
            await box.rollback(kept)
        seen = await run(box, "x, open('text').read()")
        assert seen in ("(0, '0')", "(1, '1')")
        await run(box, "x = 1; open('text', 'w').write('1')")


async def test_a_fork_of_a_sandbox_that_went_back(manager: LocalSandboxManager) -> None:
    box: Sandbox = await opened(manager)
    await run(box, "x = 1")
    kept = await box.checkpoint()
    await run(box, "x = 2")
    await box.rollback(kept)
    (fork,) = await box.fork()
    assert await run(fork, "x") == "1"
    mine = await fork.checkpoint()
    await run(fork, "x = 3")
    await fork.rollback(mine)
    assert (await run(fork, "x"), await run(box, "x")) == ("1", "1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tree_search", ["* double", "path: ", "log: 1 "]),
        ("session", ["wall_timeout: while", "total: 2\nlog: 'one two '\ntotal: 2\n"]),
    ],
)
def test_the_examples_do_what_they_say(name: str, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in said:
        assert words in done.stdout
