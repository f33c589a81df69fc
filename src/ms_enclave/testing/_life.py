"""A sandbox's life: it starts whole or not at all, and always ends."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from ms_enclave.errors import ConfigError, SandboxStateError, UnknownTypeError
from ms_enclave.model import SandboxStatus
from ms_enclave.testing._suite import HEARTBEAT, SandboxSuite, wait_for_file

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

__all__ = ["SandboxLifeContract"]


class SandboxLifeContract(SandboxSuite):
    """Start, stop and the states between; for handles that `create` makes in this process."""

    async def test_it_goes_from_created_to_running_to_stopped(self) -> None:
        box = self.create()
        assert box.status == SandboxStatus.CREATED
        await box.start()
        assert box.status == SandboxStatus.RUNNING == "running"
        await box.stop()
        assert box.status == SandboxStatus.STOPPED

    async def test_a_block_starts_and_stops_it(self) -> None:
        async with self.create() as box:
            assert box.status == SandboxStatus.RUNNING
            assert (await box.execute_command("echo hi")).stdout == "hi\n"
        assert box.status == SandboxStatus.STOPPED

    async def test_a_block_that_fails_stops_it_too(self) -> None:
        box = self.create()
        with pytest.raises(LookupError):
            async with box:
                raise LookupError
        assert box.status == SandboxStatus.STOPPED

    async def test_starting_twice_is_starting_once(self) -> None:
        async with self.create() as box:
            await box.start()
            async with anyio.create_task_group() as group:
                group.start_soon(box.start)
                group.start_soon(box.start)
            assert box.status == SandboxStatus.RUNNING

    async def test_two_starts_at_once_are_one(self) -> None:
        box = self.create()
        async with anyio.create_task_group() as group:
            group.start_soon(box.start)
            group.start_soon(box.start)
        assert box.status == SandboxStatus.RUNNING
        await box.stop()

    async def test_stopping_twice_and_at_once_is_stopping_once(self) -> None:
        box = self.create()
        await box.start()
        async with anyio.create_task_group() as group:
            group.start_soon(box.stop)
            group.start_soon(box.stop)
        await box.stop()
        await box.cleanup()
        assert box.status == SandboxStatus.STOPPED

    async def test_one_that_never_started_can_be_stopped(self) -> None:
        box = self.create()
        await box.stop()
        assert box.status == SandboxStatus.STOPPED

    async def test_a_stopped_one_does_not_start_again(self) -> None:
        box = self.create()
        await box.stop()
        with pytest.raises(SandboxStateError):
            await box.start()

    @pytest.mark.parametrize("started", [False, True])
    async def test_one_that_is_not_running_refuses_calls(self, started: bool) -> None:
        box = self.create()
        if started:
            await box.start()
            await box.stop()
        for call in (
            lambda: box.execute_command("true"),
            lambda: box.files.read("x"),
            lambda: box.put_file("/x", b""),
        ):
            with pytest.raises(SandboxStateError, match="not running"):
                await call()

    async def test_a_start_that_is_cancelled_leaves_nothing_behind(self) -> None:
        box = self.create()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await box.start()
        assert box.status in (SandboxStatus.CREATED, SandboxStatus.ERROR)
        await box.stop()
        assert box.status == SandboxStatus.STOPPED

    @pytest.mark.parametrize("delay", [0.001, 0.01, 0.05])
    async def test_a_start_that_is_cut_short_is_undone(self, delay: float) -> None:
        box = self.create()
        with anyio.move_on_after(delay):
            await box.start()
        await box.stop()
        assert box.status == SandboxStatus.STOPPED

    async def test_a_stop_ends_a_start_that_is_under_way(self) -> None:
        box = self.create()

        async def start() -> None:
            try:
                await box.start()
            except SandboxStateError:
                return

        async with anyio.create_task_group() as group:
            group.start_soon(start)
            await anyio.sleep(0.001)
            await box.stop()
        assert box.status == SandboxStatus.STOPPED

    async def test_a_stop_goes_on_when_its_caller_is_cancelled(self) -> None:
        box = self.create()
        await box.start()
        with anyio.move_on_after(0.001):
            await box.stop()
        await box.stop()
        assert box.status == SandboxStatus.STOPPED

    async def test_a_block_that_is_cancelled_stops_what_it_was_for(self) -> None:
        box = self.create()
        with anyio.CancelScope() as scope:
            async with box:
                scope.cancel()
                await anyio.sleep(60)
        assert scope.cancelled_caught
        assert box.status == SandboxStatus.STOPPED

    async def test_who_is_cancelled_already_can_stop_it(self) -> None:
        box = self.create()
        await box.start()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await box.stop()
        assert box.status == SandboxStatus.STOPPED

    async def test_a_stop_ends_what_is_running_and_says_so(self) -> None:
        box = self.create()
        await box.start()
        errors: list[BaseException] = []

        async def run() -> None:
            try:
                await box.execute_command(f"({HEARTBEAT}) & sleep 60")
            except SandboxStateError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await wait_for_file(box, "beat")
            began = time.monotonic()
            await box.stop()
            assert time.monotonic() - began < 10
        assert len(errors) == 1
        assert box.status == SandboxStatus.STOPPED

    async def test_a_stop_takes_programs_along_that_ignore_it(self) -> None:
        box = self.create()
        await box.start()
        line = f"trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; {HEARTBEAT}' </dev/null &"
        await box.execute_command(f"{line} wait", timeout=0.3)
        began = time.monotonic()
        await box.stop()
        assert time.monotonic() - began < 10

    def test_it_works_across_event_loops(self) -> None:
        """Existing code starts in one `asyncio.run`, works in a second, stops in a third."""
        box = self.create()
        asyncio.run(box.start())

        async def use() -> str:
            await box.files.write("note", "kept")
            return (await box.execute_command("cat note")).stdout

        assert asyncio.run(use()) == "kept"
        assert asyncio.run(use()) == "kept"
        asyncio.run(box.stop())
        assert box.status == SandboxStatus.STOPPED

    def test_it_works_from_two_threads_at_once(self) -> None:
        box = self.create()
        asyncio.run(box.start())
        printed: dict[int, list[str]] = {1: [], 2: []}

        def work(number: int) -> None:
            async def use() -> None:
                for turn in range(5):
                    result = await box.execute_command(["echo", f"{number}.{turn}"])
                    printed[number].append(result.stdout.strip())

            asyncio.run(use())

        threads = [threading.Thread(target=work, args=(number,)) for number in printed]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(box.stop())
        assert printed == {n: [f"{n}.{turn}" for turn in range(5)] for n in printed}

    async def test_changing_the_config_after_the_start_changes_nothing(self) -> None:
        box = self.create(timeout=7)
        config = box.config
        config.timeout = 8  # what existing code does before it tries again
        async with box:
            config.timeout = 9
            config.env_vars["LATE"] = "yes"
            assert box.config.timeout == 8
            assert "LATE" not in box.config.env_vars

    async def test_info_describes_it(self) -> None:
        box = self.create(tools_config=["shell_executor"])
        assert box.get_info().status == SandboxStatus.CREATED
        async with box:
            info = box.get_info()
            assert info.id == box.id
            assert info.status == SandboxStatus.RUNNING
            assert info.type == box.sandbox_type
            assert info.available_tools == ["shell_executor"]
            assert info.created_at.tzinfo is not None
            assert info.updated_at >= info.created_at

    async def test_it_says_what_stands_around_it(self) -> None:
        async with self.create() as box:
            report = box.isolation
            assert report.tier
            assert set(report.guards.values()) <= {"on", "off", "n/a"}
            assert (await box.execute_command("true")).isolation == report.tier

    @pytest.mark.parametrize(
        "config",
        [
            {"no_such_key": 1},
            {"memory_limit": -1},
            {"memory_limit": "lots"},
            {"pids_limit": -1},
            {"timeout": -1},
            {"disk_limit": "-5m"},
            {"env_vars": {"A": 1}},
        ],
    )
    def test_a_wrong_config_is_the_callers_mistake(self, config: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            self.create(**config)

    async def test_a_tool_there_is_not_fails_the_start(self) -> None:
        box = self.create(tools_config=["no_such_tool"])
        with pytest.raises(UnknownTypeError, match="no_such_tool"):
            await box.start()
        assert box.status == SandboxStatus.ERROR
        assert "no_such_tool" in box.metadata["error"]
        await box.stop()

    def test_old_views_can_be_read(self) -> None:
        box: Sandbox = self.create()
        assert hasattr(box, "client")
        assert hasattr(box, "container")
