"""The contract of a tool: what a model may call in a sandbox.

A tool is described by an OpenAI function schema, checks what it is given against that schema, and
does its work through a `SandboxContext` alone. `call` is how a sandbox uses a tool: a parameter
problem there is a result, because a model wrote it. `execute` is the tool itself: called directly
from Python, a parameter problem raises.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import anyio

from ms_enclave.errors import ConfigError, EnclaveError
from ms_enclave.model import ExecutionStatus, SandboxType, ToolResult, Verdict
from ms_enclave.registry import TOOLS, Registry
from ms_enclave.tools._parameters import check, settle, strict_parameters
from ms_enclave.tools.tool_info import ToolParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ms_enclave.context import SandboxContext

__all__ = ["Tool", "ToolFactory", "register_tool"]


class Tool(ABC):
    """One thing that a model may do in a sandbox.

    A subclass gives `_name`, `_description` and `_parameters` as class attributes or hands them to
    the constructor, and writes `execute`. A tool holds no state of a run: one object serves any
    number of calls at once. Cancelling a call cancels what it awaits in the sandbox.
    """

    _name: ClassVar[str | None] = None
    _description: ClassVar[str | None] = None
    _parameters: ClassVar[ToolParams | dict[str, Any] | None] = None
    _sandbox_types: ClassVar[Sequence[str] | None] = None
    _capabilities: ClassVar[frozenset[str] | None] = None
    """Names of what a sandbox must be able to do; None where only the listed types will do."""
    has_checkpoints: ClassVar[bool] = False
    """Whether it is about checkpoints itself: then none is made before it by itself."""

    def __init__(
        self,
        name: str | None = None,
        description: str | None = None,
        parameters: ToolParams | Mapping[str, Any] | None = None,
        enabled: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Make a tool; what is not given comes from the class.

        Args:
            parameters: None for a tool that takes what its `execute` takes, unchecked.
            timeout: seconds for a call that names none itself; None for the sandbox's own.

        Raises:
            ConfigError: the timeout is no number above zero.
        """
        self.name = name or self._name or type(self).__name__
        self.description = description or self._description or _first_line(type(self).__doc__)
        given = self._parameters if parameters is None else parameters
        self.parameters: ToolParams | None = (
            given if given is None or isinstance(given, ToolParams) else ToolParams(**given)
        )
        self.enabled = enabled
        self.timeout = _seconds(f"timeout of {self.name}", timeout)

    @property
    def required_sandbox_types(self) -> list[str]:
        """The sandbox types that the tool was made for; empty where any will do."""
        return list(self._sandbox_types or ())

    @property
    def required_capabilities(self) -> frozenset[str] | None:
        """What a sandbox of any other type must be able to do, or None if no other type will do."""
        return self._capabilities

    @property
    def schema(self) -> dict[str, Any]:
        """The tool in OpenAI's function-calling form."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self._parameter_schema(),
            },
        }

    @property
    def strict_schema(self) -> dict[str, Any]:
        """The same for OpenAI's strict mode: all parameters are sent, unwanted ones as null."""
        function = self.schema["function"]
        strict = strict_parameters(function["parameters"])
        return {"type": "function", "function": {**function, "strict": True, "parameters": strict}}

    def is_compatible_with_sandbox(self, sandbox_type: str) -> bool:
        """Whether sandboxes of that type may serve the tool, as far as the name tells.

        A tool that goes by what a sandbox can do is told by `is_compatible_with` for sure.
        """
        return self._is_made_for(sandbox_type) or self.required_capabilities is not None

    def is_compatible_with(self, context: SandboxContext) -> bool:
        """Whether this sandbox can serve the tool: by its type, or by what it can do."""
        if self._is_made_for(context.sandbox_type):
            return True
        required = self.required_capabilities
        return required is not None and required <= context.capabilities

    def _is_made_for(self, sandbox_type: str) -> bool:
        required = self.required_sandbox_types
        return not required or any(
            SandboxType.is_compatible(sandbox_type, name) for name in required
        )

    @abstractmethod
    async def execute(self, sandbox_context: Any, **kwargs: Any) -> Any:
        """Do the work in a sandbox (a `SandboxContext`).

        Raises:
            ConfigError: a parameter is wrong, missing or unknown.
            EnclaveError: the sandbox failed; what the program did is a result.
        """

    def check_parameters(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as `execute` takes them: without the optional ones that are null.

        Raises:
            ConfigError: one is wrong, missing or unknown. The message names all of them.
        """
        if not isinstance(parameters, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"parameters must be an object, not {type(parameters).__name__}")
        if self.parameters is None:
            return dict(parameters)
        schema = self._parameter_schema()
        settled = settle(schema, parameters)
        problems = check(schema, settled, "")
        if problems:
            raise ConfigError("; ".join(problems))
        return settled

    async def call(
        self,
        context: SandboxContext,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> ToolResult:
        """Run the tool for a sandbox, on parameters that a model may have written.

        Args:
            timeout: seconds, of the request; a `timeout` parameter goes before it, the tool's own
                after it, the sandbox's last.

        Raises:
            ConfigError: `timeout` is no number above zero. (Wrong parameters are a result.)
            EnclaveError: the sandbox failed.
        """
        seconds = _seconds("timeout", timeout) or self.timeout
        started = time.monotonic()
        try:
            arguments = self.check_parameters({} if parameters is None else parameters)
            outcome = await self._execute_within(context, arguments, seconds)
        except ConfigError as error:
            outcome = ToolResult(
                tool_name=self.name,
                status=ExecutionStatus.ERROR,
                verdict=Verdict.INVALID_PARAMETERS,
                output="",
                error=str(error),
            )
        if not isinstance(outcome, ToolResult):
            outcome = ToolResult(
                tool_name=self.name, status=ExecutionStatus.SUCCESS, output=outcome
            )
        if not outcome.execution_time:
            outcome.execution_time = time.monotonic() - started
        return outcome

    async def _execute_within(
        self, context: SandboxContext, arguments: dict[str, Any], seconds: float | None
    ) -> Any:
        if seconds is None or "timeout" in arguments:
            return await self.execute(sandbox_context=context, **arguments)
        if self.parameters is not None and "timeout" in self.parameters.properties:
            return await self.execute(sandbox_context=context, **arguments, timeout=seconds)
        with anyio.move_on_after(seconds):
            return await self.execute(sandbox_context=context, **arguments)
        return ToolResult(
            tool_name=self.name,
            status=ExecutionStatus.TIMEOUT,
            verdict=Verdict.WALL_TIMEOUT,
            output="",
            error=f"{self.name} timed out after {seconds:g} seconds",
            exit_code=-1,
        )

    def _parameter_schema(self) -> dict[str, Any]:
        return (self.parameters or ToolParams()).to_schema()


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _seconds(what: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{what} must be a number of seconds above 0, not {value}")
    return value


_registry: Registry[Tool] = Registry("Tool", "ms_enclave.tools", TOOLS)

_ToolClass = TypeVar("_ToolClass", bound=type[Tool])


class ToolFactory:
    """Makes tools by name: registered here, built in, or from an installed package."""

    @classmethod
    def register_tool(cls, name: str, tool_class: type[Tool]) -> None:
        """Make a tool known under a name, in this process."""
        _registry.register(name, tool_class)

    @classmethod
    def create_tool(cls, tool_name: str, **options: Any) -> Tool:
        """A new tool.

        Args:
            options: what the class's constructor takes (`timeout`, `enabled`, …).

        Raises:
            UnknownTypeError: nothing has that name.
            ConfigError: the tool does not take such options.
        """
        tool_class = _registry.get(tool_name)
        try:
            return tool_class(**options)
        except (TypeError, ValueError) as error:
            if isinstance(error, EnclaveError):
                raise
            raise ConfigError(f"options of {tool_name}: {error}") from error

    @classmethod
    def get_available_tools(cls) -> list[str]:
        """The names that `create_tool` takes."""
        return list(_registry.names())


def register_tool(name: str) -> Callable[[_ToolClass], _ToolClass]:
    """Decorate a `Tool` class to make it known under a name."""

    def register(tool_class: _ToolClass) -> _ToolClass:
        ToolFactory.register_tool(name, tool_class)
        return tool_class

    return register
