"""What a model sees of a kernel: `notebook_executor` and `python_executor(interactive=True)`."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from ms_enclave.boxes import SandboxFactory
from ms_enclave.loop import call
from ms_enclave.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ms_enclave.boxes import Sandbox
    from ms_enclave.model import ToolResult

pytestmark = pytest.mark.namespaces

CONFIG = {
    "python": sys.prefix,
    "tools_config": ["python_executor", "notebook_executor"],
}


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    stack = AsyncExitStack()
    opened = SandboxFactory.create_sandbox("process", CONFIG)
    call(stack.enter_async_context, opened)
    call(opened.files.exists, ".")
    call(opened.kernel)  # what they make on first use is there before any test
    try:
        yield opened
    finally:
        call(stack.aclose)


async def cell(box: Sandbox, code: str, **more: Any) -> ToolResult:
    return await box.execute_tool("notebook_executor", {"code": code, **more})


async def test_variables_stay_and_the_result_is_output(box: Sandbox) -> None:
    await cell(box, "x = 20")
    result = await cell(box, "print('so', end='')\nx + 1")
    assert (result.success, result.output, result.exit_code) == (True, "so\n21", 0)
    assert result.metadata["result"] == {"text/plain": "21"}
    assert "x" in str((await cell(box, "x", restart=True)).error)


async def test_python_executor_shares_the_kernel_when_asked_to(box: Sandbox) -> None:
    await cell(box, "x = 7")
    shared = await box.execute_tool("python_executor", {"code": "x", "interactive": True})
    assert shared.output == "7"
    fresh = await box.execute_tool("python_executor", {"code": "x"})
    assert "NameError" in str(fresh.error)


async def test_input_is_answered_by_lines_of_stdin(box: Sandbox) -> None:
    code = "[input('a'), input('b'), input('c')]"
    result = await box.execute_tool(
        "python_executor", {"code": code, "interactive": True, "stdin": "one\ntwo"}
    )
    assert result.output == "['one', 'two', '']"


async def test_an_error_reads_without_colours(box: Sandbox) -> None:
    result = await cell(box, "1/0")
    assert (result.status, result.exit_code) == ("error", 1)
    assert "ZeroDivisionError: division by zero" in str(result.error)
    assert "\x1b" not in str(result.error)


async def test_a_picture_is_in_the_metadata_and_named_in_the_output(box: Sandbox) -> None:
    result = await cell(box, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    assert "Figure size" in result.output
    assert result.metadata["displays"][0]["image/png"].startswith("iVBORw0KGgo")


async def test_a_timeout_keeps_the_variables(box: Sandbox) -> None:
    await cell(box, "x = 3")
    result = await cell(box, "while True: pass", timeout=0.3)
    assert (result.verdict, result.exit_code) == (Verdict.WALL_TIMEOUT, -1)
    assert "timed out after 0.3 seconds" in str(result.error)
    assert (await cell(box, "x")).output == "3"


async def test_a_dead_kernel_is_replaced_and_the_model_is_told(box: Sandbox) -> None:
    died = await cell(box, "import os; os._exit(1)")
    assert "The kernel died" in str(died.error)
    after = await cell(box, "1 + 1")
    assert (after.success, after.output) == (True, "2")
    assert "variables are lost" in str(after.error)
    assert "restarted" not in (await cell(box, "1")).metadata
