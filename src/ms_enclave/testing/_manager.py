"""A manager: the same methods and the same results wherever its sandboxes run."""

# ruff: noqa: S101, ASYNC110 - these are tests

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import pytest

from ms_enclave.errors import (
    ConfigError,
    PoolEmptyError,
    PoolTimeoutError,
    SandboxNotFoundError,
    SandboxStateError,
    ToolNotFoundError,
    UnknownTypeError,
)
from ms_enclave.loop import call
from ms_enclave.manager import SandboxManagerFactory
from ms_enclave.model import ExecutionStatus, SandboxStatus, Verdict
from ms_enclave.testing._suite import needs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from ms_enclave.boxes import Sandbox
    from ms_enclave.manager import SandboxManager

__all__ = ["SandboxManagerContract"]


class SandboxManagerContract:
    """One manager over sandboxes of one type. Subclasses say which with class attributes."""

    manager_type: ClassVar[str] = "local"
    """The registered name of the manager."""

    brief: ClassVar[float] = 1.0
    """Seconds that a sandbox of the suite has surely started within, however busy the machine."""

    sandbox_type: ClassVar[str] = ""
    """The sandboxes it is tried with."""

    config: ClassVar[Mapping[str, Any]] = {}
    """What every sandbox is configured with."""

    @classmethod
    def make(cls, **options: Any) -> SandboxManager:
        """A manager that has not started; override it for one that the factory cannot make."""
        return SandboxManagerFactory.create_manager(cls.manager_type, **options)

    def opened(
        self, manager: SandboxManager, **config: Any
    ) -> AbstractAsyncContextManager[Sandbox]:
        """A sandbox of the manager, for the length of a block."""
        return manager.sandbox(self.sandbox_type, {**self.config, **config})

    async def create(self, manager: SandboxManager, **config: Any) -> str:
        """A sandbox of the manager, by id."""
        return await manager.create_sandbox(self.sandbox_type, {**self.config, **config})

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls) -> Iterator[SandboxManager]:
        """One running manager for all tests of the class that leave it as it was."""
        stack = AsyncExitStack()
        manager = call(stack.enter_async_context, cls.make())
        # What all sandboxes of a manager share is made with the first: before any test.
        first = call(manager.create_sandbox, cls.sandbox_type, dict(cls.config))
        call(manager.delete_sandbox, first)
        try:
            yield manager
        finally:
            call(stack.aclose)

    @pytest.fixture
    async def manager(self) -> AsyncIterator[SandboxManager]:
        """A running manager for one test."""
        async with self.make() as manager:
            yield manager

    # --- sandboxes by id ---

    async def test_a_sandbox_is_made_found_described_and_deleted(
        self, manager: SandboxManager
    ) -> None:
        sandbox_id = await self.create(manager)
        info = await manager.get_sandbox_info(sandbox_id)
        assert info is not None
        assert (info.id, info.type, info.status) == (sandbox_id, self.sandbox_type, "running")
        handle = await manager.get_sandbox(sandbox_id)
        assert handle is not None
        assert handle.id == sandbox_id
        assert (await handle.execute_command("echo hi")).stdout == "hi\n"
        assert [item.id for item in await manager.list_sandboxes()] == [sandbox_id]
        assert await manager.delete_sandbox(sandbox_id) is True
        assert await manager.get_sandbox(sandbox_id) is None
        assert await manager.list_sandboxes() == []

    async def test_keyword_calls_work(self, shared: SandboxManager) -> None:
        config = {**self.config, "tools_config": ["shell_executor"]}
        made = await shared.create_sandbox(sandbox_type=self.sandbox_type, config=config)
        result = await shared.execute_tool(
            sandbox_id=made, tool_name="shell_executor", parameters={"command": "echo hi"}
        )
        assert result.output is not None
        assert "hi" in str(result.output)
        await shared.delete_sandbox(made)

    async def test_an_id_can_be_given_once(self, shared: SandboxManager) -> None:
        made = await shared.create_sandbox(self.sandbox_type, dict(self.config), "my-own_1")
        assert made == "my-own_1"
        with pytest.raises((ConfigError, SandboxStateError)):
            await shared.create_sandbox(self.sandbox_type, dict(self.config), "my-own_1")
        await shared.delete_sandbox(made)

    @pytest.mark.parametrize("sandbox_id", ["../x", "a/b", "", "a b", "x" * 65])
    async def test_an_id_that_could_be_a_path_is_refused(
        self, shared: SandboxManager, sandbox_id: str
    ) -> None:
        with pytest.raises(ConfigError):
            await shared.create_sandbox(self.sandbox_type, dict(self.config), sandbox_id)

    async def test_a_stopped_sandbox_is_still_listed(self, manager: SandboxManager) -> None:
        made = await self.create(manager, tools_config=["shell_executor"])
        assert await manager.stop_sandbox(made) is True
        info = await manager.get_sandbox_info(made)
        assert info is not None
        assert info.status == SandboxStatus.STOPPED
        assert [item.id for item in await manager.list_sandboxes(SandboxStatus.STOPPED)] == [made]
        assert await manager.list_sandboxes("running") == []
        with pytest.raises(SandboxStateError):
            await manager.execute_tool(made, "shell_executor", {"command": "true"})

    async def test_what_is_unknown_is_said_so(self, shared: SandboxManager) -> None:
        assert await shared.get_sandbox("unknown1") is None
        assert await shared.get_sandbox_info("unknown1") is None
        assert await shared.stop_sandbox("unknown1") is False
        assert await shared.delete_sandbox("unknown1") is False
        for attempt in (
            shared.execute_tool("unknown1", "shell_executor", {}),
            shared.get_sandbox_tools("unknown1"),
            shared.put_archive("unknown1", "/", b""),
            shared.renew("unknown1", 5),
        ):
            with pytest.raises(SandboxNotFoundError, match="unknown1"):
                await attempt

    async def test_an_unknown_type_is_said_so(self, shared: SandboxManager) -> None:
        with pytest.raises(UnknownTypeError, match="Sandbox type no_such_type is not registered"):
            await shared.create_sandbox("no_such_type")
        assert await shared.list_sandboxes() == []

    async def test_a_wrong_config_leaves_nothing_behind(self, shared: SandboxManager) -> None:
        with pytest.raises(ConfigError):
            await self.create(shared, no_such_key=1)
        with pytest.raises(UnknownTypeError):
            await self.create(shared, tools_config=["no_such_tool"])
        assert await shared.list_sandboxes(SandboxStatus.RUNNING) == []

    async def test_a_cancelled_creation_leaves_nothing_behind(
        self, manager: SandboxManager
    ) -> None:
        with anyio.move_on_after(0.002):
            await self.create(manager)
        for info in await manager.list_sandboxes():
            assert info.status in (SandboxStatus.RUNNING, SandboxStatus.ERROR)
        await manager.cleanup_all_sandboxes()
        assert await manager.list_sandboxes() == []

    async def test_who_is_cancelled_already_can_delete(self, shared: SandboxManager) -> None:
        made = await self.create(shared)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await shared.delete_sandbox(made)
        assert await shared.get_sandbox(made) is None

    async def test_a_sandbox_for_a_block_ends_with_it(self, shared: SandboxManager) -> None:
        async with self.opened(shared) as box:
            made = box.id
            assert (await box.execute_command("true")).success
        assert await shared.get_sandbox(made) is None
        with pytest.raises(LookupError):  # noqa: PT012 - the block is what is tested
            async with self.opened(shared) as box:
                made = box.id
                raise LookupError
        assert await shared.get_sandbox(made) is None

    async def test_many_are_made_at_once(self, manager: SandboxManager) -> None:
        made: list[str] = []

        async def one() -> None:
            made.append(await self.create(manager))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(one)
        assert len(set(made)) == 5
        await manager.cleanup_all_sandboxes()
        assert await manager.list_sandboxes() == []

    async def test_a_stop_ends_every_sandbox(self) -> None:
        manager = self.make()
        await manager.start()
        made = await self.create(manager)
        handle = await manager.get_sandbox(made)
        await manager.stop()
        await manager.stop()
        assert handle is not None
        with pytest.raises((SandboxStateError, SandboxNotFoundError)):
            await handle.execute_command("true")

    # --- tools and files ---

    async def test_tools_are_listed_and_run(self, shared: SandboxManager) -> None:
        made = await self.create(
            shared, tools_config={"shell_executor": {}, "multi_code_executor": {}}
        )
        tools = await shared.get_sandbox_tools(made)
        assert set(tools) == {"shell_executor", "multi_code_executor"}
        assert tools["shell_executor"]["type"] == "function"
        result = await shared.execute_tool(
            made, "shell_executor", {"command": ["sh", "-c", "echo out; exit 3"], "timeout": 12.5}
        )
        assert (result.status, result.exit_code) == (ExecutionStatus.ERROR, 3)
        assert "exit code 3" in str(result.error)
        wrong = await shared.execute_tool(made, "shell_executor", {"no": 1})
        assert wrong.verdict == Verdict.INVALID_PARAMETERS
        with pytest.raises(ToolNotFoundError):
            await shared.execute_tool(made, "python_executor", {"code": "1"})
        await shared.delete_sandbox(made)

    async def test_folders_and_archives_go_in(self, shared: SandboxManager, tmp_path: Path) -> None:
        inner = anyio.Path(tmp_path) / "inner"
        await inner.mkdir()
        await (inner / "file").write_text("text")
        async with self.opened(shared) as box:
            needs(box, "files")
            await shared.put_dir(box.id, tmp_path, "copied")
            assert await box.files.read("copied/inner/file") == b"text"

    async def test_code_runs_in_a_sandbox_of_its_own(self, shared: SandboxManager) -> None:
        config = dict(self.config)
        result = await self.run_code(
            shared,
            "import helper, sys; print(helper.X, sys.stdin.read())",
            stdin="in",
            files={"helper.py": "X = 5", "data/b": b"\xff"},
            config=config,
        )
        assert result.stdout == "5 in\n"
        slow = await self.run_code(shared, "while True: pass", timeout=0.5, config=config)
        assert slow.verdict == Verdict.WALL_TIMEOUT
        assert await shared.list_sandboxes() == []

    async def run_code(self, manager: SandboxManager, code: str, **options: Any) -> Any:
        """`manager.run_code`; a manager whose `auto` is another type overrides it."""
        return await manager.run_code(code, **options)

    # --- lifetime ---

    async def test_a_sandbox_whose_time_is_over_is_removed(self, manager: SandboxManager) -> None:
        made = await self.create(manager, ttl=self.brief)
        with anyio.fail_after(10 + self.brief):
            while await manager.get_sandbox(made) is not None:
                await anyio.sleep(0.05)

    async def test_a_renewed_sandbox_lives_on(self, manager: SandboxManager) -> None:
        made = await self.create(manager, ttl=self.brief)
        await manager.renew(made, 60)
        await anyio.sleep(self.brief + 0.5)
        handle = await manager.get_sandbox(made)
        assert handle is not None
        assert handle.status == SandboxStatus.RUNNING

    async def test_a_renewal_is_for_some_time(self, shared: SandboxManager) -> None:
        async with self.opened(shared) as box:
            for ttl in (0, -1):
                with pytest.raises(ConfigError):
                    await shared.renew(box.id, ttl)

    async def test_statistics_count(self, manager: SandboxManager) -> None:
        made = await self.create(manager)
        await self.create(manager)
        await manager.stop_sandbox(made)
        stats = await manager.get_stats()
        assert stats["manager_type"] == self.manager_type
        assert stats["total_sandboxes"] == 2
        assert stats["status_counts"] == {"running": 1, "stopped": 1}
        assert stats["sandbox_types"] == {self.sandbox_type: 2}
        assert stats["running"] is True
        assert {"cleanup_interval", "pool_size", "pool_enabled", "pool_initialized"} <= set(stats)

    # --- the pool ---

    async def fill(self, manager: SandboxManager, size: int, **config: Any) -> list[str]:
        """A pool of the suite's sandboxes."""
        wanted = {**self.config, "tools_config": ["shell_executor"], **config}
        return await manager.initialize_pool(size, self.sandbox_type, wanted)

    async def test_without_a_pool_there_is_nothing_to_lend(self, manager: SandboxManager) -> None:
        with pytest.raises(PoolEmptyError, match="initialize_pool first"):
            await manager.execute_tool_in_pool("shell_executor", {"command": "true"})
        with pytest.raises(ValueError, match="pool is empty"):
            async with manager.borrow():
                pass

    async def test_a_pool_is_made_once(self, manager: SandboxManager) -> None:
        made = await self.fill(manager, 2)
        assert len(set(made)) == 2
        assert sorted(await self.fill(manager, 2)) == sorted(made)
        result = await manager.execute_tool_in_pool("shell_executor", {"command": "echo hi"})
        assert result.success
        assert (await manager.get_stats())["pool_size"] == 2

    async def test_nothing_of_one_loan_is_left_for_the_next(self, manager: SandboxManager) -> None:
        await self.fill(manager, 1)
        async with manager.borrow() as box:
            needs(box, "files")
            await box.files.write("left", "x")
            await box.execute_command("touch /tmp/left-by-loan; sleep 100 & true")
            folder = box.config.working_dir
        async with manager.borrow() as box:
            assert not await box.files.exists(f"{folder}/left")
            assert not await box.files.exists("left")

    async def test_a_loan_that_fails_costs_one_sandbox_and_no_more(
        self, manager: SandboxManager
    ) -> None:
        await self.fill(manager, 1)
        with pytest.raises(LookupError):
            async with manager.borrow() as box:
                raise LookupError
        async with manager.borrow(timeout=20) as box:
            assert (await box.execute_command("echo alive")).stdout == "alive\n"

    async def test_a_borrower_waits_for_a_while_only(self, manager: SandboxManager) -> None:
        await self.fill(manager, 1)
        async with manager.borrow():
            began = time.monotonic()
            with pytest.raises(PoolTimeoutError, match="Timeout waiting for available sandbox"):
                async with manager.borrow(timeout=0.2):
                    pass
            assert 0.15 < time.monotonic() - began < 5
            with pytest.raises(TimeoutError):
                await manager.execute_tool_in_pool("shell_executor", {"command": "true"}, 0.1)

    async def test_more_work_than_sandboxes_is_done_in_turn(self, manager: SandboxManager) -> None:
        await self.fill(manager, 2)
        printed: list[str] = []

        async def work(number: int) -> None:
            result = await manager.execute_tool_in_pool(
                "shell_executor", {"command": f"echo {number}"}
            )
            printed.append(str(result.output).strip())

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(work, number)
        assert sorted(printed) == [str(number) for number in range(8)]

    # --- any loop, any thread ---

    def test_it_works_across_event_loops(self) -> None:
        """Existing code starts in one `asyncio.run`, works in a second, stops in a third."""
        manager = self.make()
        asyncio.run(manager.start())
        made = asyncio.run(self.create(manager, tools_config=["shell_executor"]))
        for number in range(2):
            result = asyncio.run(
                manager.execute_tool(made, "shell_executor", {"command": f"echo {number}"})
            )
            assert str(result.output).strip() == str(number)
        asyncio.run(manager.stop())

    def test_it_works_from_two_threads_at_once(self) -> None:
        manager = self.make()
        asyncio.run(manager.start())
        asyncio.run(self.fill(manager, 2))
        printed: list[str] = []

        def work(name: str) -> None:
            async def use() -> None:
                for number in range(4):
                    result = await manager.execute_tool_in_pool(
                        "shell_executor", {"command": f"echo {name}{number}"}
                    )
                    printed.append(str(result.output).strip())

            asyncio.run(use())

        threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(manager.stop())
        assert sorted(printed) == sorted(f"{name}{n}" for name in "ab" for n in range(4))
