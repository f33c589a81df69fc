"""One program in one language, in a sandbox of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.errors import ConfigError
from ms_enclave.manager import LocalSandboxManager, local_manager
from tests.support.subprocess_box import install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def manager(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalSandboxManager]:
    install()
    monkeypatch.setattr(local_manager, "BEST_FIRST", ("subprocess",))
    async with LocalSandboxManager() as manager:
        yield manager
        assert await manager.list_sandboxes() == []


async def test_python_with_input_and_files(manager: LocalSandboxManager) -> None:
    result = await manager.run_code(
        "import helper, sys; print(helper.X, open('data/raw', 'rb').read(), sys.stdin.read())",
        stdin=b"in",
        files={"helper.py": "X = 5", "data/raw": b"\xff"},
    )
    assert (result.stdout, result.exit_code, result.verdict) == ("5 b'\\xff' in\n", 0, "ok")


async def test_a_program_that_fails_is_a_result(manager: LocalSandboxManager) -> None:
    result = await manager.run_code("raise SystemExit(3)")
    assert (result.exit_code, result.status) == (3, "error")


async def test_a_time_out_is_a_result(manager: LocalSandboxManager) -> None:
    result = await manager.run_code("print(1, flush=True)\nwhile True: pass", timeout=0.5)
    assert (result.stdout, result.exit_code, result.verdict) == ("1\n", -1, "wall_timeout")


async def test_another_language_by_the_table(manager: LocalSandboxManager) -> None:
    result = await manager.run_code(
        "read line; echo $line; cat more; exit 4",
        language="bash",
        stdin="in\n",
        files={"more": "more\n"},
        timeout=10,
    )
    assert (result.stdout, result.exit_code) == ("in\nmore\n", 4)
    assert result.command == "read line; echo $line; cat more; exit 4"
    assert result.metadata["language"] == "bash"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"language": "klingon"}, "language must be one of"),
        ({"language": "bash", "files": {"x": b"\xff"}}, "file x must be text"),
        ({"language": "bash", "stdin": b"\xff"}, "stdin must be text"),
        ({"timeout": -1}, "timeout"),
        ({"language": "bash", "timeout": -1}, "timeout"),
    ],
)
async def test_what_cannot_be_run_is_refused(
    manager: LocalSandboxManager, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        await manager.run_code("x", **arguments)


async def test_parameters_that_a_model_got_wrong_are_a_result(manager: LocalSandboxManager) -> None:
    async with manager.sandbox(config={"tools_config": ["shell_executor"]}) as box:
        for wrong in ({"no": 1}, {}, None, ["x"], "x"):
            result = await manager.execute_tool(box.id, "shell_executor", wrong)  # type: ignore[arg-type]
            assert (result.status, result.verdict) == ("error", "invalid_parameters")
