"""What a tool tells a model about itself: its parameters as a JSON schema.

`parse_tool_info` reads all of it from an annotated, documented function.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field

from ms_enclave.utils.json_schema import JSONSchema, json_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["ToolInfo", "ToolParam", "ToolParams", "parse_docstring", "parse_tool_info"]

ToolParam = JSONSchema
"""One parameter of a tool: a JSON schema, usually with a `description`."""


class ToolParams(BaseModel):
    """The parameters of a tool: a JSON schema of type `object`."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    type: Literal["object"] = "object"
    properties: dict[str, ToolParam] = Field(default_factory=dict)
    required: list[str] = Field(default_factory=list)
    additionalProperties: bool = False

    def to_schema(self) -> dict[str, Any]:
        """The plain dictionary that is sent to a model."""
        return self.model_dump(mode="json", exclude_none=True, exclude_defaults=False)


class ToolInfo(BaseModel, defer_build=True):
    """A function as a model sees it."""

    name: str
    description: str
    parameters: ToolParams = Field(default_factory=ToolParams)


_SECTION = re.compile(r"^(args|arguments|parameters|params|returns?|raises|yields|examples?)\s*:?$")
_GOOGLE = re.compile(
    r"^(?P<indent>\s+)\*{0,2}(?P<name>\w+)\s*(?:\((?P<type>.*?)\))?\s*:\s*(?P<text>.*)$"
)
_SPHINX = re.compile(
    r"^\s*:param\s+(?:(?P<type>[^:]+?)\s+)?\*{0,2}(?P<name>\w+)\s*:\s*(?P<text>.*)$"
)
_NUMPY = re.compile(r"^(?P<indent>\s*)\*{0,2}(?P<name>\w+)\s*:\s*(?P<type>[^:]*)$")


def parse_docstring(docstring: str | None, param_name: str) -> dict[str, str]:
    """What a docstring says about one parameter, in Google's, Sphinx's or NumPy's style.

    Gives `description`, and `docstring_type` where the text names a type; nothing where it does
    not mention the parameter.
    """
    if not docstring:
        return {}
    lines = inspect.cleandoc(docstring).splitlines()
    for find in (_find_sphinx, _find_numpy, _find_google):
        found = find(lines, param_name)
        if found is not None:
            text, type_name = found
            return {"description": text} | ({"docstring_type": type_name} if type_name else {})
    return {}


def parse_tool_info(func: Callable[..., Any]) -> ToolInfo:
    """A function's name, summary and parameters, from its annotations and its docstring.

    Raises:
        ValueError: a parameter has neither an annotation nor a type in the docstring.
    """
    docstring = inspect.getdoc(func)
    hints = get_type_hints(func)
    parameters = ToolParams()
    for name, parameter in inspect.signature(func).parameters.items():
        if name in {"self", "cls"} or parameter.kind in {
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        }:
            continue
        told = parse_docstring(docstring, name)
        parameters.properties[name] = _parameter_schema(func, name, hints, parameter, told)
        if parameter.default is inspect.Parameter.empty:
            parameters.required.append(name)
    return ToolInfo(
        name=getattr(func, "__name__", type(func).__name__),
        description=_summary(docstring),
        parameters=parameters,
    )


_DOCSTRING_TYPES: dict[str, type] = {
    "str": str,
    "string": str,
    "int": int,
    "integer": int,
    "float": float,
    "number": float,
    "bool": bool,
    "boolean": bool,
    "list": list,
    "array": list,
    "dict": dict,
    "object": dict,
}


def _parameter_schema(
    func: Callable[..., Any],
    name: str,
    hints: dict[str, Any],
    parameter: inspect.Parameter,
    told: dict[str, str],
) -> ToolParam:
    if name in hints:
        schema = json_schema(hints[name])
    else:
        type_name = told.get("docstring_type", "").split(",")[0].strip().lower()
        if type_name not in _DOCSTRING_TYPES:
            raise ValueError(f"{func!r}: the parameter {name} has no annotation")
        schema = json_schema(_DOCSTRING_TYPES[type_name])
    update: dict[str, Any] = {}
    if "description" in told:
        update["description"] = told["description"]
    if (
        parameter.default not in {inspect.Parameter.empty, None}
        if _hashable(parameter.default)
        else True
    ):
        update["default"] = parameter.default
    return schema.model_copy(update=update)


def _hashable(value: object) -> bool:
    return type(value).__hash__ is not None


def _summary(docstring: str | None) -> str:
    """The text before the first section."""
    kept: list[str] = []
    for line in (docstring or "").splitlines():
        if _SECTION.match(line.strip().lower()) or _SPHINX.match(line):
            break
        kept.append(line)
    return "\n".join(kept).strip()


def _continuation(lines: Iterable[str], indent: int) -> str:
    """The lines that go on a description: deeper than `indent`, up to the first that is not."""
    more: list[str] = []
    for line in lines:
        if not line.strip() or len(line) - len(line.lstrip()) <= indent:
            break
        more.append(line.strip())
    return " ".join(more)


def _find_sphinx(lines: list[str], name: str) -> tuple[str, str] | None:
    for number, line in enumerate(lines):
        match = _SPHINX.match(line)
        if match and match["name"] == name:
            indent = len(line) - len(line.lstrip())
            more = _continuation(lines[number + 1 :], indent)
            return " ".join(filter(None, [match["text"].strip(), more])), match["type"] or ""
    return None


def _find_numpy(lines: list[str], name: str) -> tuple[str, str] | None:
    for number, line in enumerate(lines[:-1]):
        if line.strip().lower() != "parameters" or set(lines[number + 1].strip()) != {"-"}:
            continue
        for inner in range(number + 2, len(lines)):
            match = _NUMPY.match(lines[inner])
            if match and match["name"] == name:
                text = _continuation(lines[inner + 1 :], len(match["indent"]))
                return text, match["type"].strip()
    return None


def _find_google(lines: list[str], name: str) -> tuple[str, str] | None:
    inside = False
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith(" "):
            inside = line.strip().lower() in {"args:", "arguments:", "parameters:", "params:"}
            continue
        match = _GOOGLE.match(line) if inside else None
        if match and match["name"] == name:
            more = _continuation(lines[number + 1 :], len(match["indent"]))
            return " ".join(filter(None, [match["text"].strip(), more])), match["type"] or ""
    return None
