"""How much a tenant may have and do, and whose turn it is."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from ms_enclave import wire
from ms_enclave.boxes._inputs import coerce_config
from ms_enclave.errors import ConfigError, QuotaExceededError
from ms_enclave.loop import on_loop
from ms_enclave.manager import LocalSandboxManager
from ms_enclave.model import DockerSandboxConfig, ProcessSandboxConfig, Verdict
from ms_enclave.server import Quotas, create_server
from ms_enclave.server.answers import error_document
from ms_enclave.server.fair import FairQueue
from ms_enclave.server.quotas import Rate, Share, share_of
from ms_enclave.server.tenants import Tenants
from tests.support.subprocess_box import install
from tests.unit.server.test_gate import ask
from tests.unit.server.test_tenants import command, served

if TYPE_CHECKING:
    from pathlib import Path

install()

MIB = 1 << 20


@pytest.mark.parametrize(
    ("quotas", "one", "words"),
    [
        ({"sandboxes": 2}, Share(), "sandboxes (2 of 2)"),
        ({"cpus": 3}, Share(cpus=1.5), "cpus (2 of 3, and 1.5 wanted)"),
        ({"memory": "4m"}, Share(memory=3 * MIB), "memory"),
        ({"disk": "4m"}, Share(disk=3 * MIB), "disk"),
        ({"sandboxes": 0}, Share(), "sandboxes"),
    ],
)
def test_more_than_a_tenant_may_have_is_refused_with_the_figures(
    quotas: dict[str, Any], one: Share, words: str
) -> None:
    have = [Share(1.0, MIB, MIB)] * 2
    with pytest.raises(QuotaExceededError) as caught:
        Quotas(**quotas).check(have, one)
    assert words in caught.value.message
    Quotas().check(have, one)


def test_waiting_is_advised_only_where_it_helps() -> None:
    quotas = Quotas(memory="4m")
    for one, after in ((Share(memory=2 * MIB), 5.0), (Share(memory=5 * MIB), None)):
        with pytest.raises(QuotaExceededError) as caught:
            quotas.check([Share(memory=3 * MIB)], one)
        assert caught.value.retry_after == after


def test_a_sandbox_that_says_nothing_gets_what_it_counts_as() -> None:
    quotas = Quotas(cpus=8, memory="8g", ttl=60)
    bare = coerce_config(ProcessSandboxConfig, {"memory_limit": None})
    assert share_of(bare).cpus == 0.0
    settled = quotas.settle(bare)
    assert share_of(settled) == Share(1.0, 1 << 30, share_of(bare).disk)
    assert settled.ttl == 60
    own = coerce_config(DockerSandboxConfig, {"memory_limit": "2g", "cpu_limit": 0.5, "ttl": 5})
    assert quotas.settle(own) is own
    with pytest.raises(QuotaExceededError, match="60 s at most"):
        quotas.settle(coerce_config(ProcessSandboxConfig, {"ttl": 61}))


@pytest.mark.parametrize("field", [{"memory": "much"}, {"ttl": 0}, {"sandboxes": -1}, {"none": 1}])
def test_quotas_that_are_none_are_told(tmp_path: Path, field: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="quota"):
        create_server(store=str(tmp_path / "store.db"), quotas=field)


def test_quotas_are_for_tenants() -> None:
    with pytest.raises(ConfigError, match="store"):
        create_server(LocalSandboxManager(), quotas={})


def test_calls_may_come_at_a_rate_and_no_jump_of_the_day_changes_that() -> None:
    now = [100.0]
    rate = Rate(lambda: now[0])
    for _ in range(4):
        rate.take(4)
    with pytest.raises(QuotaExceededError) as caught:
        rate.take(4)
    assert caught.value.retry_after == pytest.approx(0.25)
    now[0] += 0.25
    rate.take(4)
    now[0] += 1000.0
    for _ in range(4):
        rate.take(4)
    with pytest.raises(QuotaExceededError):
        rate.take(4)
    rate.take(None)


# --- turns ---


async def test_turns_go_round_among_tenants_however_much_one_asks_for() -> None:
    queue, order = FairQueue(1, waiting=100), list[str]()

    async def one(tenant: str) -> None:
        async with queue.turn(tenant):
            order.append(tenant)

    async with anyio.create_task_group() as tasks, queue.turn("first"):
        for tenant in [*["much"] * 10, *["little"] * 2, "late"]:
            tasks.start_soon(one, tenant)
            await anyio.wait_all_tasks_blocked()
        assert order == []
    assert order[:6] == ["much", "little", "late", "much", "little", "much"]
    assert order.count("much") == 10


async def test_one_tenant_has_no_more_turns_than_it_may() -> None:
    queue = FairQueue(10, waiting=5)
    async with queue.turn("mine", 2), queue.turn("mine", 2):
        with anyio.move_on_after(0.05) as waited:
            async with queue.turn("mine", 2):
                raise AssertionError("a third turn")
        assert waited.cancelled_caught
        async with queue.turn("theirs", 2):
            pass
    async with queue.turn("mine", 2), queue.turn("mine", 2):
        pass


async def test_a_tenant_that_is_slow_leaves_turns_to_others() -> None:
    queue = FairQueue(2, waiting=5, each=1)
    with anyio.fail_after(10):
        async with queue.turn("mine"), queue.turn("theirs"):
            pass
    async with queue.turn("mine"):
        with anyio.move_on_after(0.05) as waited:
            async with queue.turn("mine"):
                raise AssertionError("a second turn")
        assert waited.cancelled_caught


async def test_no_queue_is_endless_and_nobody_waits_for_ever() -> None:
    queue = FairQueue(1, waiting=1, seconds=0.1)

    async def wait() -> None:
        with pytest.raises(QuotaExceededError, match="no turn came within"):
            async with queue.turn("mine"):
                pass

    async with queue.turn("mine"), anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(QuotaExceededError, match="wait already") as caught:
            async with queue.turn("mine"):
                pass
        assert caught.value.retry_after == 1.0
    async with queue.turn("mine"):
        pass


@on_loop
async def test_a_turn_that_comes_to_one_who_is_just_cancelled_is_the_next_ones() -> None:
    queue = FairQueue(1, waiting=5)
    await queue._wait("mine", None)
    waiting = asyncio.ensure_future(queue._wait("mine", None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    queue._end_one("mine")
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    with anyio.fail_after(10):
        await queue._wait("theirs", None)


async def test_whatever_is_cancelled_no_turn_is_lost() -> None:
    queue, chance, having = FairQueue(3, waiting=50), random.Random(7), [0]

    async def one(tenant: str) -> None:
        with anyio.move_on_after(chance.choice([0.0, 0.001, 0.01, 1.0])):
            async with queue.turn(tenant, 2):
                having[0] += 1
                assert having[0] <= 3
                try:
                    await anyio.sleep(chance.choice([0.0, 0.001]))
                finally:
                    having[0] -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(one, chance.choice("abcd"))
    async with queue.turn("a"), queue.turn("b"), queue.turn("c"):
        assert having == [0]


# --- by the server ---


async def test_creations_at_once_never_come_to_more_than_there_may_be(tmp_path: Path) -> None:
    async with served(tmp_path, quotas={"sandboxes": 3}) as one, one.client("mine") as manager:
        refused: list[QuotaExceededError] = []

        async def create() -> None:
            try:
                await manager.create_sandbox("subprocess")
            except QuotaExceededError as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(create)
        assert len(await manager.list_sandboxes()) == 3
        assert len(refused) == 17
        assert {error.retry_after for error in refused} == {5.0}
        await manager.stop_sandbox((await manager.list_sandboxes())[0].id)
        assert await manager.create_sandbox("subprocess")
        with pytest.raises(QuotaExceededError):
            await manager.initialize_pool(1, "subprocess")
        async with one.client("theirs") as other:
            assert await other.create_sandbox("subprocess")


async def test_a_pool_has_no_more_than_a_tenant_may_have(tmp_path: Path) -> None:
    async with served(tmp_path, quotas={"sandboxes": 3}) as one, one.client("mine") as manager:
        with pytest.raises(QuotaExceededError, match=r"a pool of 4 .* \(3\)"):
            await manager.initialize_pool(4, "subprocess")
        made = await manager.initialize_pool(3, "subprocess")
        assert await manager.initialize_pool(10, "subprocess") == made


async def test_a_program_runs_no_longer_than_a_sandbox_may_live(tmp_path: Path) -> None:
    policy = {"sandbox_types": ["process"]}
    async with (
        served(tmp_path, quotas={"ttl": 0.5}, policy=policy) as one,
        one.client("mine") as manager,
    ):
        done = await manager.run_code("import time; time.sleep(5)", timeout=600)
        assert done.verdict is Verdict.WALL_TIMEOUT


async def test_a_program_counts_while_it_runs(tmp_path: Path) -> None:
    policy = {"sandbox_types": ["process"]}
    none = {"sandboxes": 0}
    async with (
        served(tmp_path, quotas=none, policy=policy) as one,
        one.client("mine") as manager,
    ):
        for files in ({}, {"further": b""}):  # by either way of running one
            with pytest.raises(QuotaExceededError, match="sandboxes"):
                await manager.run_code("print(1)", files=files)


async def test_a_refusal_says_when_to_come_again(tmp_path: Path) -> None:
    async with served(tmp_path, quotas={"sandboxes": 1, "calls_per_second": 2}) as one:
        key = (await one.key("mine")).text
        body = wire.dump({"sandbox_type": "subprocess"})
        said = [await ask(one.server, "POST", "/v1/sandboxes", body, X_API_Key=key) for _ in "12"]
        assert [each.status for each in said] == [200, 429]
        assert said[1].headers["retry-after"] == "5"
        said = [await ask(one.server, "GET", "/sandboxes", X_API_Key=key) for _ in range(3)]
        assert said[-1].status == 429
        assert said[-1].headers["retry-after"] == "1"
        assert "calls a second" in said[-1].data["detail"]
        other = (await one.key("theirs")).text
        assert (await ask(one.server, "GET", "/sandboxes", X_API_Key=other)).status == 200


async def test_a_body_of_a_tenant_is_as_large_as_it_may_be(tmp_path: Path) -> None:
    async with served(tmp_path, quotas={"body": "1k"}) as one:
        key = (await one.key("mine")).text
        body = wire.dump({"code": "x" * 2000})
        said = await ask(one.server, "POST", "/v1/run", body, X_API_Key=key)
        assert (said.status, "1024 bytes" in said.body.decode()) == (413, True)


async def test_nobody_prolongs_a_life_beyond_what_it_may_be(tmp_path: Path) -> None:
    async with served(tmp_path, quotas={"ttl": 60}) as one, one.client("mine") as manager:
        made = await manager.create_sandbox("subprocess")
        box = await manager.get_sandbox_info(made)
        assert box is not None
        assert box.config["ttl"] == 60
        await manager.renew(made, 59)
        with pytest.raises(QuotaExceededError):
            await manager.renew(made, 61)


async def test_a_tenants_own_quotas_hold_from_its_next_request_on(tmp_path: Path) -> None:
    async with served(tmp_path, quotas={"sandboxes": 0}) as one, one.client("mine") as manager:
        with pytest.raises(QuotaExceededError):
            await manager.create_sandbox("subprocess")
        file = tmp_path / "quotas.json"
        words = ("keys", "tenant", "mine", "--store", str(one.store.path), "--quotas", str(file))
        await anyio.Path(file).write_text(json.dumps({"sandboxes": 1}))
        status, _, told = await anyio.to_thread.run_sync(lambda: command(*words))
        assert status == 0, told
        assert await manager.create_sandbox("subprocess")
        assert isinstance(one.server.access, Tenants)
        (own,) = one.server.access.managers
        assert own.quotas.sandboxes == 1


def test_what_a_tenant_is_held_to_is_checked_before_it_is_kept(tmp_path: Path) -> None:
    store, file = ("--store", str(tmp_path / "store.db")), tmp_path / "file.json"
    for option, text, words in (
        ("--policy", {"hostpaths": {}}, "Invalid policy"),
        ("--quotas", {"cpu": 1}, "Invalid quota"),
    ):
        file.write_text(json.dumps(text))
        status, _, told = command("keys", "tenant", "mine", option, str(file), *store)
        assert status != 0
        assert words in told
    file.write_text(json.dumps({"network": True}))
    assert command("keys", "tenant", "mine", "--policy", str(file), *store)[0] == 0
    (row,) = json.loads(command("keys", "tenants", *store)[1])
    assert (row["name"], row["policy"], row["quotas"]) == ("mine", {"network": True}, None)


def test_who_is_told_when_to_come_again_is_not_told_too_early() -> None:
    for seconds, said in ((0.1, "1"), (1.2, "2"), (2.0, "2")):
        error = QuotaExceededError("too often", retry_after=seconds)
        assert error_document(error, old=False).headers["retry-after"] == said


async def test_a_tenant_is_told_what_it_has_of_what_it_may_have(tmp_path: Path) -> None:
    quotas = {"sandboxes": 3, "cpus": 4, "memory": "2g"}
    async with served(tmp_path, quotas=quotas) as one, one.client("mine") as manager:
        await manager.create_sandbox("subprocess", {"cpu_limit": 0.5, "memory_limit": "256m"})
        ended = await manager.create_sandbox("subprocess")
        await manager.stop_sandbox(ended)
        told = (await manager.get_stats())["quotas"]
        async with one.client("theirs") as other:
            theirs = (await other.get_stats())["quotas"]
    assert told["sandboxes"] == {"taken": 1, "most": 3}
    assert told["cpus"] == {"taken": 0.5, "most": 4}
    assert told["memory"] == {"taken": 256 * MIB, "most": 2048 * MIB}
    assert told["disk"]["most"] is None
    assert told["disk"]["taken"] > 0
    assert theirs["sandboxes"]["taken"] == 0
