"""Runs that are begun before anybody asks: as fresh, as bounded and as well cleared away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.errors import ConfigError
from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.model import ProcessSandboxConfig, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.namespaces

POISON = """
import builtins, os, sys
print(sorted(os.listdir('/tmp')), sorted(os.listdir('.')), hasattr(builtins, 'poison'),
      'poison' in sys.modules, 'POISON' in os.environ, os.getpid())
builtins.poison = sys.modules['poison'] = os
os.environ['POISON'] = '1'
for name in ('/tmp/poison', 'poison', '/dev/shm/poison'):
    open(name, 'w').write('x')
"""


@pytest.fixture
async def manager() -> AsyncIterator[LocalSandboxManager]:
    async with LocalSandboxManager() as manager:
        yield manager


async def test_no_run_sees_what_another_left(manager: LocalSandboxManager) -> None:
    seen = {(await manager.run_code(POISON)).stdout for _ in range(40)}
    assert seen == {"[] [] False False False 2\n"}


async def test_runs_draw_different_random_numbers(manager: LocalSandboxManager) -> None:
    code = "import random, uuid, secrets; print(random.random(), uuid.uuid4(), secrets.token_hex())"
    config = ProcessSandboxConfig(preload=["random", "uuid", "secrets", "ssl"])
    drawn = [(await manager.run_code(code, config=config)).stdout.split() for _ in range(20)]
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == len(drawn)


async def test_the_generator_of_a_preloaded_openssl_is_seeded_anew(
    manager: LocalSandboxManager,
) -> None:
    config = ProcessSandboxConfig(preload=["ssl"])
    code = "import ssl; print(ssl.RAND_bytes(16).hex())"
    drawn = [(await manager.run_code(code, config=config)).stdout for _ in range(20)]
    assert len(set(drawn)) == len(drawn)


async def test_a_seed_repeats_the_numbers(manager: LocalSandboxManager) -> None:
    code = "import random; print(random.random())"
    config = ProcessSandboxConfig(seed=7)
    drawn = {(await manager.run_code(code, config=config)).stdout for _ in range(5)}
    assert len(drawn) == 1


async def test_a_run_that_takes_another_shape_is_not_given_what_was_begun_for_the_last(
    manager: LocalSandboxManager,
) -> None:
    code = "x = bytearray(100 << 20); print(len(x))"
    large, small = ProcessSandboxConfig(), ProcessSandboxConfig(memory_limit="48m")
    for _ in range(3):
        assert (await manager.run_code(code, config=large)).verdict is Verdict.OK
        assert (await manager.run_code(code, config=small)).verdict is Verdict.OOM


async def test_input_output_and_exit_status_are_those_of_a_run(
    manager: LocalSandboxManager,
) -> None:
    for number in range(4):
        code = "import sys; sys.stderr.write('e' * 70000); print(sys.stdin.read()); sys.exit(3)"
        result = await manager.run_code(code, stdin=f"input {number}")
        assert (result.stdout, len(result.stderr)) == (f"input {number}\n", 70000)
        assert (result.exit_code, result.verdict) == (3, Verdict.ERROR)


async def test_a_time_out_ends_all_that_a_run_started(manager: LocalSandboxManager) -> None:
    code = "import os, time\nif os.fork() == 0: os.setsid()\ntime.sleep(100)"
    for _ in range(3):
        result = await manager.run_code(code, timeout=0.3)
        assert (result.verdict, result.exit_code) == (Verdict.WALL_TIMEOUT, -1)


async def test_a_cancelled_run_ends(manager: LocalSandboxManager) -> None:
    for _ in range(5):
        with anyio.move_on_after(0.05) as scope:
            await manager.run_code("import time; time.sleep(100)")
        assert scope.cancelled_caught
    assert (await manager.run_code("print(1)")).stdout == "1\n"


async def test_a_hundred_at_once(manager: LocalSandboxManager) -> None:
    found: list[str] = []

    async def one(number: int) -> None:
        found.append((await manager.run_code(f"print({number})")).stdout)

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(one, number)
    assert sorted(found, key=int) == [f"{number}\n" for number in range(100)]


async def test_long_code_and_long_output(manager: LocalSandboxManager) -> None:
    code = f"text = {'x' * 300_000!r}\nprint(text)"
    for _ in range(3):
        assert (await manager.run_code(code)).stdout == "x" * 300_000 + "\n"


async def test_too_much_output_kills_where_that_is_wanted(manager: LocalSandboxManager) -> None:
    config = ProcessSandboxConfig(output_limit=1000, output_action="kill")
    result = await manager.run_code("while True: print('x' * 100)", config=config)
    assert (result.verdict, len(result.stdout)) == (Verdict.OUTPUT_LIMIT, 1000)


async def test_what_a_run_leaves_running_ends_with_it(manager: LocalSandboxManager) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\n"
        "print('parent')"
    )
    for _ in range(3):
        assert (await manager.run_code(code)).stdout == "parent\n"


async def test_a_killed_station_is_replaced(manager: LocalSandboxManager) -> None:
    await manager.run_code("print(1)")
    from ms_enclave.spawner import stations

    for station in list(stations._stations.values()):
        station._launcher.kill()  # the station goes with it
    with anyio.fail_after(20):
        while True:
            try:
                result = await manager.run_code("print(2)")
            except Exception:  # noqa: BLE001 - it may hear of it at any time of its own
                continue
            break
    assert result.stdout == "2\n"


async def test_what_foreign_code_still_held_is_written_at_the_end(
    manager: LocalSandboxManager,
) -> None:
    code = "import ctypes; ctypes.CDLL(None).printf(b'from C'); print('from Python')"
    for preload in ([], ["ctypes"], ["numpy"]):
        config = ProcessSandboxConfig(preload=preload)
        result = await manager.run_code(code, config=config)
        assert "from C" in result.stdout
        assert "from Python" in result.stdout


async def test_what_is_no_program_is_refused(manager: LocalSandboxManager) -> None:
    wrong: Any = 1
    with pytest.raises(ConfigError):
        await manager.run_code(wrong)
    with pytest.raises(ConfigError):
        await manager.run_code("print(1)", stdin=wrong)
    assert (await manager.run_code("print(1)")).stdout == "1\n"
