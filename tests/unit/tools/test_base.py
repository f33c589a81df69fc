"""What every tool does by itself: describe, check, bound in time, be found by name."""

from __future__ import annotations

from typing import Any, ClassVar

import anyio
import jsonschema
import pytest

from ms_enclave.errors import ConfigError, SandboxLostError, UnknownTypeError
from ms_enclave.model import ExecutionStatus, SandboxType, ToolResult, Verdict
from ms_enclave.tools import (
    FileOperation,
    MultiCodeExecutor,
    PythonExecutor,
    SandboxTool,
    ShellExecutor,
    Tool,
    ToolFactory,
    ToolParams,
    register_tool,
)

BUILTIN: dict[str, type[Tool]] = {
    "python_executor": PythonExecutor,
    "shell_executor": ShellExecutor,
    "file_operation": FileOperation,
    "multi_code_executor": MultiCodeExecutor,
}

FUNCTION_TOOL: dict[str, Any] = {
    "type": "object",
    "required": ["type", "function"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                "description": {"type": "string"},
                "strict": {"type": ["boolean", "null"]},
                "parameters": {"type": "object"},
            },
        },
    },
}
"""The published shape of a function that a model may call."""

STRICT_KEYWORDS = {
    "type", "description", "properties", "required", "additionalProperties", "items", "enum",
    "const", "anyOf", "pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "minItems", "maxItems",
}  # fmt: skip
"""What strict mode takes in a schema."""

NO_BOX: Any = object()
"""For tools that ask nothing of their sandbox."""


class Echo(Tool):
    """Says what it was given."""

    _name = "echo"
    _description = "Say what it was given"
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = {
        "properties": {"text": {"type": "string"}, "timeout": {"type": "number"}},
        "required": ["text"],
    }

    async def execute(self, sandbox_context: Any, **kwargs: Any) -> Any:
        return dict(kwargs)


class Sleeper(Tool):
    """Never ends by itself, and knows of no time-out."""

    async def execute(self, sandbox_context: Any, **kwargs: Any) -> Any:
        await anyio.sleep_forever()


@pytest.mark.parametrize("name", BUILTIN)
def test_a_schema_has_the_published_shape(name: str) -> None:
    tool = ToolFactory.create_tool(name)
    jsonschema.validate(tool.schema, FUNCTION_TOOL)
    parameters = tool.schema["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    assert tool.schema["function"]["name"] == name
    assert parameters["additionalProperties"] is False
    for field in parameters["properties"].values():
        assert field["description"]


@pytest.mark.parametrize("name", BUILTIN)
def test_a_strict_schema_keeps_to_what_strict_mode_takes(name: str) -> None:
    tool = ToolFactory.create_tool(name)
    schema = tool.strict_schema
    jsonschema.validate(schema, FUNCTION_TOOL)
    assert schema["function"]["strict"] is True
    parameters = schema["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(parameters)
    _check_strict(parameters)


def _check_strict(schema: dict[str, Any]) -> None:
    assert set(schema) <= STRICT_KEYWORDS, schema
    if schema.get("type") == "object":
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])
    for inner in [
        *schema.get("properties", {}).values(),
        *schema.get("anyOf", []),
        *([schema["items"]] if "items" in schema else []),
    ]:
        _check_strict(inner)


def test_known_parameters_keep_their_names() -> None:
    def names(tool: str) -> set[str]:
        return set(ToolFactory.create_tool(tool).schema["function"]["parameters"]["properties"])

    program = {"timeout", "stdin", "cwd", "env", "user"}
    assert names("python_executor") >= {"code"} | program
    assert names("shell_executor") >= {"command"} | program
    assert names("file_operation") >= {"operation", "file_path", "content", "encoding"}
    assert names("multi_code_executor") >= {
        "language", "code", "files", "compile_timeout", "run_timeout"
    } | program  # fmt: skip


@pytest.mark.parametrize(("name", "tool_class"), BUILTIN.items())
def test_built_in_tools_are_found_by_name(name: str, tool_class: type[Tool]) -> None:
    assert name in ToolFactory.get_available_tools()
    assert type(ToolFactory.create_tool(name)) is tool_class


@pytest.mark.parametrize("name", BUILTIN)
def test_built_in_tools_are_made_for_docker_and_join_others_by_compatibility(name: str) -> None:
    tool = ToolFactory.create_tool(name)
    assert tool.required_sandbox_types == [SandboxType.DOCKER, SandboxType.VOLCENGINE]
    for sandbox_type in ("docker", "docker_notebook", "volcengine", "process"):
        assert tool.is_compatible_with_sandbox(sandbox_type)


class _Box:
    """As much of a sandbox as compatibility is about."""

    def __init__(self, sandbox_type: str, *capabilities: str) -> None:
        self.sandbox_type = sandbox_type
        self.capabilities = frozenset(capabilities)


def test_a_type_that_nobody_knows_is_served_by_what_it_can_do() -> None:
    python, shell = ToolFactory.create_tool("python_executor"), ShellExecutor()
    assert python.is_compatible_with(_Box("someones", "python"))  # type: ignore[arg-type]
    assert not python.is_compatible_with(_Box("someones"))  # type: ignore[arg-type]
    assert shell.is_compatible_with(_Box("someones"))  # type: ignore[arg-type]


def test_a_tool_of_one_type_is_for_that_type() -> None:
    only = type("Only", (SandboxTool,), {"_sandbox_types": ["someones"], "execute": Echo.execute})()
    assert only.is_compatible_with_sandbox("someones")
    assert not only.is_compatible_with_sandbox("docker")
    assert not only.is_compatible_with(_Box("docker", "python"))


def test_an_unknown_name_is_refused_in_the_known_words() -> None:
    with pytest.raises(UnknownTypeError, match="Tool name nothing is not registered"):
        ToolFactory.create_tool("nothing")
    with pytest.raises(ValueError, match="nothing"):
        ToolFactory.create_tool("nothing")


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="python_executor"):
        ToolFactory.create_tool("python_executor", speed=3)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_time_out_is_above_zero(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        ToolFactory.create_tool("python_executor", timeout=timeout)


def test_a_class_is_registered_by_decoration() -> None:
    @register_tool("unit_echo")
    class Registered(Echo):
        pass

    assert "unit_echo" in ToolFactory.get_available_tools()
    assert isinstance(ToolFactory.create_tool("unit_echo", timeout=3), Registered)


def test_a_tool_is_described_by_its_class_or_by_its_maker() -> None:
    assert Echo().name == "echo"
    other = Echo("parrot", "Repeat", ToolParams(), enabled=False, timeout=2.5)
    assert (other.name, other.description, other.enabled, other.timeout) == (
        "parrot", "Repeat", False, 2.5
    )  # fmt: skip
    assert other.schema["function"]["parameters"]["properties"] == {}
    assert Sleeper().description == "Never ends by itself, and knows of no time-out."


async def test_what_is_not_a_result_becomes_one() -> None:
    result = await Echo().call(NO_BOX, {"text": "a"})
    assert isinstance(result, ToolResult)
    assert result.success
    assert result.tool_name == "echo"
    assert result.output == {"text": "a"}
    assert result.execution_time is not None


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "text is missing"),
        ({"text": 1}, "text must be"),
        ({"text": "", "x": 1}, "x is unknown"),
    ],
)
async def test_a_wrong_parameter_is_a_result_for_a_model_and_an_error_for_a_caller(
    parameters: dict[str, Any], words: str
) -> None:
    tool = Echo()
    result = await tool.call(NO_BOX, parameters)
    assert result.status == ExecutionStatus.ERROR
    assert result.verdict == Verdict.INVALID_PARAMETERS
    assert words in str(result.error)
    with pytest.raises(ConfigError, match=words):
        tool.check_parameters(parameters)


@pytest.mark.parametrize("parameters", ["text", ["text"], 3])
async def test_parameters_that_are_no_object_are_a_result(parameters: Any) -> None:
    result = await Echo().call(NO_BOX, parameters)
    assert result.verdict == Verdict.INVALID_PARAMETERS


async def test_a_time_out_is_the_parameters_then_the_requests_then_the_tools() -> None:
    tool = Echo(timeout=3)
    for parameters, request, seconds in [
        ({"text": "", "timeout": 1.5}, 2, 1.5),
        ({"text": ""}, 2, 2),
        ({"text": ""}, None, 3),
    ]:
        result = await tool.call(NO_BOX, parameters, timeout=request)
        assert result.output["timeout"] == seconds
    result = await Echo().call(NO_BOX, {"text": ""})
    assert "timeout" not in result.output  # the sandbox's own


async def test_a_request_with_an_impossible_time_out_is_the_callers_mistake() -> None:
    with pytest.raises(ConfigError, match="timeout"):
        await Echo().call(NO_BOX, {"text": ""}, timeout=-1)


async def test_a_tool_that_knows_no_time_out_is_ended_by_it_all_the_same() -> None:
    result = await Sleeper(timeout=0.05).call(NO_BOX, {})
    assert result.status == ExecutionStatus.TIMEOUT
    assert result.verdict == Verdict.WALL_TIMEOUT
    assert "timed out after 0.05 seconds" in str(result.error)


async def test_a_failing_sandbox_is_no_result() -> None:
    class Lost(Tool):
        async def execute(self, sandbox_context: Any, **kwargs: Any) -> Any:
            raise SandboxLostError("gone")

    with pytest.raises(SandboxLostError):
        await Lost().call(NO_BOX, {})


async def test_a_bug_in_a_tool_is_not_blamed_on_the_parameters() -> None:
    class Broken(Tool):
        async def execute(self, sandbox_context: Any, **kwargs: Any) -> Any:
            return int("x")

    with pytest.raises(ValueError, match="invalid literal"):
        await Broken().call(NO_BOX, {})


class TestToolsOfThirdParties:
    """Classes as people wrote them for the package that is installed today."""

    async def test_a_sandbox_tool_described_by_class_attributes(self) -> None:
        class Greeter(SandboxTool):
            _name = "greeter"
            _sandbox_types = [SandboxType.DOCKER]  # noqa: RUF012
            _description = "Greet somebody"
            _parameters = ToolParams(
                type="object",
                properties={"who": {"type": "string", "description": "Whom"}},  # type: ignore[dict-item]
                required=["who"],
            )

            async def execute(  # type: ignore[override]
                self, sandbox_context: Any, who: str, timeout: int | None = 30
            ) -> ToolResult:
                return ToolResult(
                    tool_name=self.name,
                    status=ExecutionStatus.SUCCESS,
                    output=f"hello {who}",
                    error=None,
                )

        tool = Greeter()
        assert tool.schema["function"]["parameters"]["required"] == ["who"]
        assert tool.required_sandbox_types == [SandboxType.DOCKER]
        assert tool.is_compatible_with_sandbox(SandboxType.DOCKER_NOTEBOOK)
        assert (await tool.call(NO_BOX, {"who": "you"})).output == "hello you"
        assert (await tool.execute(NO_BOX, who="me")).output == "hello me"
        assert (await tool.call(NO_BOX, {})).verdict == Verdict.INVALID_PARAMETERS

    async def test_a_sandbox_tool_described_by_its_maker(self) -> None:
        class Plain(SandboxTool):
            async def execute(self, sandbox_context: Any, **kwargs: Any) -> Any:
                return "done"

        tool = Plain(
            name="plain",
            sandbox_types=["docker"],
            description="Do it",
            parameters=ToolParams(),
            timeout=5,
        )
        assert (tool.name, tool.required_sandbox_types) == ("plain", ["docker"])
        assert (await tool.call(NO_BOX)).output == "done"

    async def test_a_tool_with_properties_of_its_own(self) -> None:
        class Own(Tool):
            def __init__(self) -> None:
                super().__init__(name="own", description="Its own", parameters=None, timeout=10)

            @property
            def required_sandbox_types(self) -> list[str]:
                return []

            async def execute(self, sandbox_context: Any, **kwargs: Any) -> Any:
                return kwargs

        tool = Own()
        assert tool.is_compatible_with_sandbox("docker")
        assert tool.is_compatible_with_sandbox("someones")
        assert (await tool.call(NO_BOX, {"anything": 1})).output == {"anything": 1}
