"""The tools of one sandbox."""

from __future__ import annotations

from typing import Any

import pytest

from ms_enclave.boxes._toolbox import Toolbox
from ms_enclave.errors import CapabilityError, ConfigError, ToolNotFoundError, UnknownTypeError
from ms_enclave.model import ExecutionStatus, ToolResult
from ms_enclave.tools import Tool
from tests.support.scripted_box import ScriptedSandbox


class Echo(Tool):
    _name = "echo"
    _description = "Says what it is told."

    async def execute(self, sandbox_context: Any, **kwargs: Any) -> ToolResult:
        return ToolResult(tool_name="echo", status=ExecutionStatus.SUCCESS, output=str(kwargs))


class DockerOnly(Echo):
    _name = "docker_only"
    _sandbox_types = ("docker",)


class NeedsKernel(DockerOnly):
    _name = "needs_kernel"
    _capabilities = frozenset({"kernel"})


def test_tools_come_from_the_config_with_their_options() -> None:
    box = Toolbox()
    box.load({"shell_executor": {"timeout": 5}, "python_executor": None})
    assert box.names() == ["shell_executor", "python_executor"]
    assert box.get("shell_executor").timeout == 5
    assert box.schemas()["shell_executor"]["type"] == "function"


def test_loading_twice_keeps_the_tools() -> None:
    box = Toolbox()
    box.load({"shell_executor": {}})
    first = box.get("shell_executor")
    box.load({"shell_executor": {}})
    assert box.get("shell_executor") is first


def test_unknown_tools_and_options_are_the_callers_mistake() -> None:
    with pytest.raises(UnknownTypeError, match="Tool name no_such is not registered"):
        Toolbox().load({"no_such": {}})
    with pytest.raises(ConfigError):
        Toolbox().load({"shell_executor": {"no_such": 1}})
    with pytest.raises(ConfigError, match="must be a dict"):
        Toolbox().load({"shell_executor": 5})


def test_a_tool_can_be_added_replaced_and_switched_off() -> None:
    box = Toolbox()
    tool = Echo()
    box.add(tool)
    assert box.get("echo") is tool
    box.add(Echo(description="another"))
    assert box.get("echo") is not tool
    box.get("echo").enabled = False
    assert box.names() == []
    assert box.find("echo") is not None
    with pytest.raises(ToolNotFoundError):
        box.get("echo")
    with pytest.raises(ConfigError):
        box.add("echo")  # type: ignore[arg-type]


async def test_a_tool_that_a_sandbox_cannot_serve_fails_its_start() -> None:
    box = ScriptedSandbox()
    box.add_tool(NeedsKernel())
    with pytest.raises(CapabilityError) as caught:
        await box.start()
    assert caught.value.capability == "kernel"
    assert box.did == ["+a", "+b", "-b", "-a"]
    other = ScriptedSandbox()
    other.add_tool(DockerOnly())
    with pytest.raises(ConfigError, match="only in: docker"):
        await other.start()


async def test_a_tool_of_somebody_elses_runs_in_a_sandbox() -> None:
    async with ScriptedSandbox() as box:
        box.add_tool(Echo())
        result = await box.execute_tool("echo", {"a": 1})
        assert result.output == "{'a': 1}"
        assert box.get_available_tools()["echo"]["function"]["name"] == "echo"
        with pytest.raises(ToolNotFoundError, match=r"no_such .*has: echo"):
            await box.execute_tool("no_such", {})
