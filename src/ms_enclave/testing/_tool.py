"""A tool: described truly, checked before it runs, seeing nothing but its context."""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from ms_enclave.context import SandboxContext
from ms_enclave.errors import ConfigError, ToolNotFoundError
from ms_enclave.loop import call
from ms_enclave.model import ExecutionStatus, ToolResult, Verdict
from ms_enclave.testing._suite import SandboxSuite, use_first
from ms_enclave.tools import Tool, ToolFactory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from ms_enclave.boxes import Sandbox

__all__ = ["ToolContract"]


class _OnlyContext:
    """A sandbox of which only that can be seen which a tool may ask for."""

    def __init__(self, box: Sandbox) -> None:
        self._box = box

    def __getattr__(self, name: str) -> Any:
        if name not in _CONTEXT:
            raise AssertionError(f"a tool asked its sandbox for {name!r}, which is not its to know")
        return getattr(self._box, name)


_CONTEXT = frozenset(name for name in vars(SandboxContext) if not name.startswith("_"))


class ToolContract(SandboxSuite):
    """One tool in sandboxes of one type. The subclass gives its name and what it is called with."""

    tool_name: ClassVar[str] = ""
    """The registered name."""

    works: ClassVar[Mapping[str, Any]] = {}
    """Parameters with which the tool succeeds in an empty sandbox."""

    wrong: ClassVar[Mapping[str, Any]] = {}
    """Some parameters of which one has a value it cannot have."""

    @pytest.fixture
    def tool(self) -> Tool:
        """The tool, made as a sandbox makes it."""
        return ToolFactory.create_tool(self.tool_name)

    @pytest.fixture(scope="class")
    @classmethod
    def box(cls) -> Iterator[Sandbox]:
        """A running sandbox that has the tool."""
        stack = AsyncExitStack()
        opened = call(stack.enter_async_context, cls.opened(tools_config=[cls.tool_name]))
        call(use_first, opened)
        try:
            yield opened
        finally:
            call(stack.aclose)

    @pytest.fixture
    async def fresh(self) -> AsyncIterator[Sandbox]:
        """Another one."""
        async with self.opened(tools_config=[self.tool_name]) as opened:
            yield opened

    def test_its_schema_is_an_openai_function(self, tool: Tool) -> None:
        schema = tool.schema
        assert set(schema) == {"type", "function"}
        assert schema["type"] == "function"
        function = schema["function"]
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", function["name"])
        assert function["name"] == tool.name == self.tool_name
        assert function["description"].strip()
        parameters = function["parameters"]
        assert parameters["type"] == "object"
        assert set(parameters.get("required", [])) <= set(parameters["properties"])
        assert all(prop.get("description") for prop in parameters["properties"].values())

    async def test_a_sandbox_lists_it(self, box: Sandbox, tool: Tool) -> None:
        assert box.list_tools() == [self.tool_name]
        assert box.get_available_tools() == {self.tool_name: tool.schema}
        found = box.get_tool(self.tool_name)
        assert found is not None
        assert found.name == self.tool_name
        assert box.get_tool("no_such_tool") is None

    async def test_it_works(self, box: Sandbox) -> None:
        result = await box.execute_tool(self.tool_name, dict(self.works))
        assert isinstance(result, ToolResult)
        assert result.tool_name == self.tool_name
        assert result.status == ExecutionStatus.SUCCESS, result.error
        assert result.success
        assert result.verdict == Verdict.OK
        assert result.execution_time is not None
        assert result.execution_time > 0
        assert result.timestamp.tzinfo is not None

    async def test_it_sees_nothing_but_its_context(self, box: Sandbox, tool: Tool) -> None:
        context: Any = _OnlyContext(box)
        result = await tool.call(context, dict(self.works))
        assert result.success, result.error

    async def test_it_can_be_called_directly(self, box: Sandbox, tool: Tool) -> None:
        result = await tool.execute(sandbox_context=box, **self.works)
        assert result.success, result.error

    async def test_an_unknown_parameter_is_a_result(self, box: Sandbox) -> None:
        await self._refuses(box, {**self.works, "no_such_parameter": 1}, "no_such_parameter")

    async def test_a_missing_parameter_is_a_result(self, box: Sandbox, tool: Tool) -> None:
        for name in tool.schema["function"]["parameters"].get("required", []):
            rest = {key: value for key, value in self.works.items() if key != name}
            await self._refuses(box, rest, name)

    async def test_a_wrong_parameter_is_a_result(self, box: Sandbox) -> None:
        await self._refuses(box, self.wrong, "")

    async def test_parameters_that_are_no_object_are_a_result_too(self, box: Sandbox) -> None:
        result = await box.execute_tool(self.tool_name, {"": None})
        assert not result.success

    async def test_called_directly_a_wrong_parameter_raises(self, box: Sandbox, tool: Tool) -> None:
        with pytest.raises((ConfigError, TypeError)):
            await tool.execute(sandbox_context=box, **self.wrong)

    async def test_an_unknown_tool_is_the_callers_mistake(self, box: Sandbox) -> None:
        with pytest.raises(ToolNotFoundError, match="no_such_tool"):
            await box.execute_tool("no_such_tool", {})

    async def test_a_disabled_one_is_not_there(self, fresh: Sandbox) -> None:
        found = fresh.get_tool(self.tool_name)
        assert found is not None
        found.enabled = False
        assert fresh.list_tools() == []
        with pytest.raises(ToolNotFoundError):
            await fresh.execute_tool(self.tool_name, dict(self.works))

    def test_options_it_does_not_take_are_refused(self) -> None:
        with pytest.raises(ConfigError):
            ToolFactory.create_tool(self.tool_name, no_such_option=1)

    async def _refuses(self, box: Sandbox, parameters: Mapping[str, Any], names: str) -> None:
        result = await box.execute_tool(self.tool_name, dict(parameters))
        assert result.status == ExecutionStatus.ERROR
        assert result.verdict == Verdict.INVALID_PARAMETERS
        assert names in str(result.error)
