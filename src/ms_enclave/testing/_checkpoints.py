"""What checkpoints and atomic cells promise, whoever made the handle."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from ms_enclave.errors import CapabilityError, ConfigError, ForkRefusedError, SandboxStateError
from ms_enclave.model import Verdict
from ms_enclave.testing._suite import SandboxSuite, lacks, needs

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox
    from ms_enclave.model import ToolResult

__all__ = ["CheckpointContract"]

STATE = "x, open('text').read(), file.tell(), os.getcwd() == home"
BEGIN = (
    "import os\nx = [1]; open('text', 'w').write('one'); file = open('text'); part = file.read(1)\n"
    "home = os.getcwd()"
)
BEGUN = {"text/plain": "([1], 'one', 1, True)"}


async def begun(box: Sandbox) -> None:
    needs(box, "checkpoint")
    assert (await (await box.kernel()).run(BEGIN)).success


async def state(box: Sandbox) -> object:
    return (await (await box.kernel()).run(STATE)).result


class CheckpointContract(SandboxSuite):
    """Going back: each test has a sandbox of its own."""

    # --- rollback ---

    async def test_a_rollback_brings_back_memory_and_files(self, fresh: Sandbox) -> None:
        await begun(fresh)
        kernel, name = await fresh.kernel(), fresh.id
        kept = await fresh.checkpoint()
        assert (kept.memory, kept.parent) == (True, None)
        for _ in range(3):
            done = await kernel.run(
                "x.append(2); open('text', 'w').write('two'); rest = file.read(); os.chdir('/')\n"
                "open(home + '/more', 'w').write('m')"
            )
            assert done.success
            await fresh.rollback(kept)
            assert await state(fresh) == BEGUN
            assert not await fresh.files.exists("more")
        assert (fresh.id, (await fresh.kernel()).id) == (name, kernel.id)

    @pytest.mark.parametrize(
        "end", ["os._exit(3)", "os.kill(os.getpid(), 9)", "import ctypes; ctypes.string_at(0)"]
    )
    async def test_a_kernel_that_died_lives_again(self, fresh: Sandbox, end: str) -> None:
        await begun(fresh)
        kept = await fresh.checkpoint()
        kernel = await fresh.kernel()
        assert not (await kernel.run(f"x.append(2)\n{end}")).success
        assert kernel.status == "dead"
        await fresh.rollback(kept)
        assert kernel.status == "idle"
        assert await state(fresh) == BEGUN

    async def test_what_ran_since_then_is_gone_and_the_sandbox_works(self, fresh: Sandbox) -> None:
        await begun(fresh)
        await fresh.files.write("kept", "k")
        kept = await fresh.checkpoint()
        command = await fresh.start_command("sleep 1000")
        other = await fresh.kernel("other")
        await fresh.files.write("late", "l")
        await fresh.rollback(kept)
        with anyio.fail_after(10):
            assert not (await command.wait()).success
        assert (other.status, other.death) == ("dead", Verdict.CANCELLED)
        assert await fresh.files.read("kept") == b"k"
        assert not await fresh.files.exists("late")
        assert (await fresh.execute_command("cat kept; ps")).stdout.startswith("k")
        assert await state(fresh) == BEGUN

    async def test_checkpoints_are_a_tree_with_names(self, fresh: Sandbox) -> None:
        await begun(fresh)
        kernel = await fresh.kernel()
        first = await fresh.checkpoint("first")
        await kernel.run("x.append(2)")
        second = await fresh.checkpoint()
        await fresh.rollback("first")
        await kernel.run("x.append(3)")
        third = await fresh.checkpoint("first")
        assert [one.id for one in await fresh.tree()] == [first.id, second.id, third.id]
        parents = [one.parent for one in await fresh.tree()]
        assert parents == [None, first.id, first.id]
        for wanted, found in ((second.id, "[1, 2]"), ("first", "[1, 3]"), (first, "[1]")):
            await fresh.rollback(wanted)
            assert (await kernel.run("x")).result == {"text/plain": found}

    async def test_forks_can_be_made_of_a_checkpoint(self, fresh: Sandbox) -> None:
        await begun(fresh)
        kept = await fresh.checkpoint("then")
        await (await fresh.kernel()).run("x.append(2); open('text', 'w').write('two')")
        forks = await fresh.fork(2, at=kept) + await fresh.fork(1, at="then")
        try:
            assert [await state(fork) for fork in forks] == [BEGUN] * 3
        finally:
            for fork in forks:
                await fork.stop()
        assert (await (await fresh.kernel()).run("x")).result == {"text/plain": "[1, 2]"}

    async def test_the_last_ones_have_memory_and_older_ones_the_files(self, box: Sandbox) -> None:
        needs(box, "checkpoint")
        async with self.opened(max_checkpoints=2) as own:
            await begun(own)
            kernel = await own.kernel()
            for number in range(4):
                await kernel.run(f"x.append({number}); open('text', 'w').write('{number}')")
                await own.checkpoint(f"c{number}")
            assert [one.memory for one in await own.tree()] == [False] * 2 + [True] * 2
            await own.rollback("c1")
            assert await own.files.read("text") == b"1"
            assert kernel.status == "dead"
            with pytest.raises(SandboxStateError, match="rolled back"):
                await kernel.run("x")
            await kernel.restart()
            assert (await kernel.run("open('text').read()")).result == {"text/plain": "'1'"}
            await own.rollback("c2")
            assert (await kernel.run("x[-1]")).result == {"text/plain": "2"}

    async def test_there_can_be_one_before_every_tool(self, box: Sandbox) -> None:
        needs(box, "checkpoint")
        options = {"tools_config": ["shell_executor"], "auto_checkpoint": True}
        async with self.opened(**options, max_checkpoints=0) as own:
            for text in ("one", "two"):
                line = f"cat text; echo {text} > text"
                done = await own.execute_tool("shell_executor", {"command": line})
            (_, last) = await own.tree()
            assert (done.stdout, done.metadata["checkpoint"]) == ("one\n", last.id)
            assert (last.name, last.memory) == ("auto", False)
            await own.rollback("auto")
            assert await own.files.read("text") == b"one\n"
            await own.start_command("sleep 1000")
            done = await own.execute_tool("shell_executor", {"command": "cat text"})
            assert done.stdout == "one\n"
            assert "process" in done.metadata["checkpoint_refused"][0]
            assert len(await own.tree()) == 2

    async def test_a_sandbox_without_a_kernel_has_its_files(self, fresh: Sandbox) -> None:
        needs(fresh, "checkpoint")
        await fresh.files.write("text", "one")
        kept = await fresh.checkpoint()
        assert not kept.memory
        await fresh.files.write("text", "two")
        await fresh.rollback(kept)
        assert await fresh.files.read("text") == b"one"

    async def test_a_model_can_keep_and_go_back_by_tools(self, box: Sandbox) -> None:
        needs(box, "checkpoint")
        tools = ["checkpoint", "rollback", "notebook_executor", "background_command"]
        async with self.opened(tools_config=tools, auto_checkpoint=True) as own:

            async def say(tool: str, **parameters: str) -> ToolResult:
                return await own.execute_tool(tool, parameters)

            early = await say("rollback")
            assert (early.verdict, early.error) == (
                Verdict.INVALID_PARAMETERS, "Of checkpoints there is none yet",
            )  # fmt: skip
            await say("notebook_executor", code=BEGIN)
            kept = await say("checkpoint", name="before")
            assert kept.output == "Files and variables are kept as before"
            await say("notebook_executor", code="x.append(2)")
            for name in ({"checkpoint": "before"}, {}):
                back = await say("rollback", **name)
                assert back.output.startswith("Files and variables are as they were at ")
                assert await state(own) == BEGUN
            wrong = await say("rollback", checkpoint="nothing")
            assert wrong.verdict is Verdict.INVALID_PARAMETERS
            assert "before" in str(wrong.error)
            await say("background_command", operation="start", command="sleep 1000")
            refused = await say("checkpoint")
            assert (refused.success, "process" in str(refused.error)) == (False, True)

    async def test_what_differs_between_two_moments_is_told(self, fresh: Sandbox) -> None:
        needs(fresh, "checkpoint")
        work = (await fresh.execute_command("pwd")).stdout.strip()
        await fresh.execute_command(
            "mkdir d; echo 1 > d/same; echo 1 > d/text; echo 1 > mode; echo 1 > gone; ln -s a link;"
            "echo 1 > kind; truncate -s 1M holes; head -c 1M /dev/zero > zeros;"
            "mkdir shut; echo 1 > shut/text; chmod 0 shut/text shut"
        )
        first = await fresh.checkpoint("first")
        await fresh.execute_command(
            "echo 2 > d/text; touch -r d/same d/text; touch d/same; chmod 600 mode; rm gone;"
            "ln -sfn b link; rm kind; mkdir kind; echo 2 > kind/new; echo 2 > /tmp/new;"
            "cp --sparse=always zeros other; mv other zeros; printf x | "
            "dd of=holes bs=1 seek=500000 conv=notrunc 2>&1"
        )
        second = await fresh.checkpoint()
        expected = [
            ("/tmp/new", "added", "file"),  # noqa: S108 - inside
            (f"{work}/d/text", "changed", "file"),
            (f"{work}/gone", "removed", "file"),
            (f"{work}/holes", "changed", "file"),
            (f"{work}/kind", "changed", "directory"),
            (f"{work}/kind/new", "added", "file"),
            (f"{work}/link", "changed", "symlink"),
            (f"{work}/mode", "changed", "file"),
        ]
        for b in (second, None):
            found = [(one.path, one.change, one.type) for one in await fresh.diff("first", b)]
            assert found == sorted(expected)
        assert await fresh.diff(second) == []
        back = {one.path: one.change for one in await fresh.diff(second, first)}
        assert (back[f"{work}/gone"], back[f"{work}/kind/new"]) == ("added", "removed")
        for a, b in (("nothing", None), ("first", "nothing")):
            with pytest.raises(ConfigError):
                await fresh.diff(a, b)

    async def test_what_there_is_not_cannot_be_gone_back_to(self, fresh: Sandbox) -> None:
        await begun(fresh)
        for wrong in ("nothing", ""):
            with pytest.raises(ConfigError):
                await fresh.rollback(wrong)
        with pytest.raises(ConfigError):
            await fresh.fork(at="nothing")
        assert await state(fresh) == BEGUN

    # --- atomic cells ---

    @pytest.mark.parametrize(
        ("code", "verdict"),
        [
            ("1/0", Verdict.ERROR),
            ("os._exit(3)", Verdict.ERROR),
            ("os.kill(os.getpid(), 9)", Verdict.SIGNAL),
            ("import ctypes; ctypes.string_at(0)", Verdict.SIGNAL),
            ("while True: pass", Verdict.WALL_TIMEOUT),
            ("import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass",
             Verdict.WALL_TIMEOUT),
        ],
    )  # fmt: skip
    async def test_nothing_of_an_atomic_cell_that_fails_stays(
        self, fresh: Sandbox, code: str, verdict: Verdict
    ) -> None:
        await begun(fresh)
        kernel = await fresh.kernel()
        harm = "x.append(2); open('text', 'w').write('bad'); file.read(); os.chdir('/')"
        done = await kernel.run(f"{harm}\n{code}", atomic=True, timeout=1.5)
        assert done.verdict is verdict
        assert kernel.status == "idle"
        assert await state(fresh) == BEGUN
        assert await fresh.tree() == []

    async def test_all_of_an_atomic_cell_that_succeeds_stays(self, fresh: Sandbox) -> None:
        await begun(fresh)
        kernel = await fresh.kernel()
        done = await kernel.run("x.append(2); n = open('text', 'a').write('+'); x", atomic=True)
        assert done.result == {"text/plain": "[1, 2]"}
        assert await state(fresh) == {"text/plain": "([1, 2], 'one+', 1, True)"}

    async def test_cells_can_be_atomic_by_default(self, box: Sandbox) -> None:
        needs(box, "checkpoint")
        async with self.opened(atomic=True) as own:
            await begun(own)
            kernel = await own.kernel()
            for atomic, found in ((None, "[1]"), (False, "[1, 2]")):
                assert not (await kernel.run("x.append(2); 1/0", atomic=atomic)).success
                assert (await kernel.run("x")).result == {"text/plain": found}
            events = [e async for e in kernel.run_stream("x.append(3); 1/0")]
            assert events[-1].type == "execute_reply"
            assert (await kernel.run("x")).result == {"text/plain": "[1, 2]"}

    async def test_an_atomic_cell_tells_what_it_says(self, fresh: Sandbox) -> None:
        await begun(fresh)
        kernel = await fresh.kernel()
        events = [e async for e in kernel.run_stream("print('so'); x.append(2); 1/0", atomic=True)]
        assert "error" in [event.type for event in events]
        assert events[-1].execution is not None
        assert events[-1].execution.stdout == "so\n"
        assert await state(fresh) == BEGUN

    async def test_an_atomic_cell_that_is_abandoned_is_undone(self, fresh: Sandbox) -> None:
        await begun(fresh)
        kernel = await fresh.kernel()
        cell = "x.append(2)\nprint('begun', flush=True)\nimport time; time.sleep(60)"
        events = kernel.run_stream(cell, atomic=True)
        async for event in events:
            if event.type == "stream":
                break
        await events.aclose()
        assert await state(fresh) == BEGUN

    async def test_a_cell_that_cannot_be_atomic_does_not_run(self, fresh: Sandbox) -> None:
        await begun(fresh)
        kernel = await fresh.kernel()
        await kernel.run('ends = os.pipe(); os.write(ends[1], b"x")')
        with pytest.raises(ForkRefusedError, match="a pipe"):
            await kernel.run("x.append(2)", atomic=True)
        assert await state(fresh) == BEGUN

    # --- who cannot ---

    async def test_who_has_none_says_so(self, box: Sandbox) -> None:
        lacks(box, "checkpoint")
        for call in (box.checkpoint, box.tree, lambda: box.rollback("x"), lambda: box.diff("x")):
            with pytest.raises((CapabilityError, SandboxStateError)) as refused:
                await call()
            assert isinstance(refused.value, CapabilityError)
        for option in ({"atomic": True}, {"auto_checkpoint": True}, {"tools_config": ["rollback"]}):
            with pytest.raises(CapabilityError):
                async with self.opened(**option):
                    pass
        if "kernel" in box.capabilities:
            kernel = await box.kernel("atomic")
            try:
                with pytest.raises(CapabilityError):
                    await kernel.run("1", atomic=True)
                assert (await kernel.run("2")).result == {"text/plain": "2"}
            finally:
                await kernel.delete()
