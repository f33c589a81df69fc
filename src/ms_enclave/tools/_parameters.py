"""Checks what a model sent against a tool's parameters. Pure.

The part of JSON Schema that tools use, and no more: `type`, `enum`, `const`, `anyOf`, `oneOf`,
`allOf`, `items`, `properties`, `required`, `additionalProperties`, bounds and lengths. A keyword
that is not known here is not checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

__all__ = ["check", "settle", "strict_parameters"]

Schema = Mapping[str, Any]

_UNSUPPORTED_STRICT = {
    "default",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
    "examples",
    "title",
}
"""Keywords that OpenAI's strict mode refuses."""


def settle(schema: Schema, values: Mapping[str, Any]) -> dict[str, Any]:
    """The given values without what means “not given”, and with pairs folded into maps.

    In strict mode every parameter is sent: one that is not required and not wanted is `null`, and
    a map is a list of `{"name": …, "value": …}`.
    """
    properties = cast("Mapping[str, Schema]", schema.get("properties", {}))
    required = set(cast("Sequence[str]", schema.get("required", ())))
    settled: dict[str, Any] = {}
    for name, value in values.items():
        field = properties.get(name)
        if field is None:
            settled[name] = value
        elif value is not None or name in required or not check(field, None, name):
            settled[name] = _fold(field, value)
    return settled


def strict_parameters(schema: Schema) -> dict[str, Any]:
    """The same parameters as OpenAI's strict mode wants them.

    Every property is required, one that was optional may be `null`, objects are closed, and a map
    with free names becomes a list of pairs, since strict objects must name their properties.
    """
    if _is_map(schema):
        pair = {"name": {"type": "string"}, "value": schema["additionalProperties"]}
        mapped = {key: schema[key] for key in ("description",) if key in schema}
        closed = {"type": "object", "properties": pair, "required": ["name", "value"]}
        return {"type": "array", **mapped, "items": strict_parameters(closed)}
    strict = {key: value for key, value in schema.items() if key not in _UNSUPPORTED_STRICT}
    for keyword in ("anyOf", "oneOf"):
        if keyword in strict:
            strict["anyOf"] = [strict_parameters(option) for option in strict.pop(keyword)]
    if isinstance(strict.get("items"), Mapping):
        strict["items"] = strict_parameters(strict["items"])
    if strict.get("type") == "object":
        properties = cast("Mapping[str, Schema]", strict.get("properties") or {})
        required = set(cast("Sequence[str]", strict.get("required") or ()))
        strict["properties"] = {
            name: strict_parameters(field) if name in required else _nullable(field)
            for name, field in properties.items()
        }
        strict["required"] = list(properties)
        strict["additionalProperties"] = False
    return strict


def _nullable(field: Schema) -> dict[str, Any]:
    strict = strict_parameters(field)
    if "anyOf" in strict:
        return {**strict, "anyOf": [*strict["anyOf"], {"type": "null"}]}
    if "enum" in strict:
        strict["enum"] = [*strict["enum"], None]
    declared = strict.get("type")
    if declared is None:
        return strict
    names = [declared] if isinstance(declared, str) else list(declared)
    return {**strict, "type": names if "null" in names else [*names, "null"]}


def _is_map(schema: Schema) -> bool:
    """Whether it is an object with free names, all values of one kind."""
    return schema.get("type") == "object" and isinstance(
        schema.get("additionalProperties"), Mapping
    )


def _fold(field: Schema, value: Any) -> Any:
    if not _is_map(field) or not isinstance(value, list):
        return value
    pairs = cast("list[Any]", value)
    if any(not isinstance(pair, dict) or pair.keys() != {"name", "value"} for pair in pairs):
        return pairs
    return {str(pair["name"]): pair["value"] for pair in pairs}


def check(schema: Schema, value: Any, where: str) -> list[str]:
    """What is wrong with a value, in words that name the place; empty where nothing is."""
    problems = _check_type(schema, value, where)
    if not problems:
        for rule in _RULES:
            problems += rule(schema, value, where)
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_TYPES: dict[str, Callable[[object], bool]] = {
    "string": lambda value: isinstance(value, str),
    "number": _is_number,
    "integer": lambda value: _is_number(value) and float(cast("float", value)).is_integer(),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, (list, tuple)),
    "object": lambda value: isinstance(value, Mapping),
    "null": lambda value: value is None,
}


def _check_type(schema: Schema, value: Any, where: str) -> list[str]:
    declared = schema.get("type")
    if declared is None:
        return []
    names = [declared] if isinstance(declared, str) else list(cast("Sequence[str]", declared))
    if any(_TYPES[name](value) for name in names if name in _TYPES):
        return []
    return [f"{where} must be {_article(' or '.join(names))}, not {_describe(value)}"]


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _describe(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return "null" if value is None else type(value).__name__


def _check_choice(schema: Schema, value: Any, where: str) -> list[str]:
    if "const" in schema and value != schema["const"]:
        return [f"{where} must be {schema['const']!r}"]
    allowed = cast("Sequence[Any] | None", schema.get("enum"))
    if allowed is None or value in allowed:
        return []
    return [f"{where} must be one of {', '.join(map(repr, allowed))}, not {_short(value)}"]


def _check_options(schema: Schema, value: Any, where: str) -> list[str]:
    every = cast("Sequence[Schema]", schema.get("allOf") or ())
    problems = [problem for option in every for problem in check(option, value, where)]
    options = cast("Sequence[Schema]", schema.get("anyOf") or schema.get("oneOf") or ())
    found = [check(option, value, where) for option in options]
    if not options or not all(found):
        return problems
    # The option of the right type says best what is wrong; else all say what they want.
    fitting = [
        wrong
        for option, wrong in zip(options, found, strict=True)
        if not _check_type(option, value, where)
    ]
    return problems + (fitting[0] if fitting else [" or ".join(wrong[0] for wrong in found)])


def _check_items(schema: Schema, value: Any, where: str) -> list[str]:
    items = schema.get("items")
    if not isinstance(value, (list, tuple)) or not isinstance(items, Mapping):
        return []
    return [
        problem
        for number, item in enumerate(cast("Sequence[Any]", value))
        for problem in check(cast("Schema", items), item, f"{where}[{number}]")
    ]


def _check_properties(schema: Schema, value: Any, where: str) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    given = cast("Mapping[Any, Any]", value)
    properties = cast("Mapping[str, Schema]", schema.get("properties") or {})
    problems = [
        problem
        for name, field in properties.items()
        if name in given
        for problem in check(field, given[name], _inside(where, name))
    ]
    extra = schema.get("additionalProperties")
    for name in given:
        if not isinstance(name, str):
            problems.append(f"{where} has a name that is no string: {name!r}")
        elif name in properties or extra is None or extra is True:
            continue
        elif isinstance(extra, Mapping):
            problems += check(cast("Schema", extra), given[name], _inside(where, name))
        else:
            known = ", ".join(properties) or "none"
            problems.append(f"{_inside(where, name)} is unknown (known: {known})")
    return problems


def _check_required(schema: Schema, value: Any, where: str) -> list[str]:
    if not isinstance(value, Mapping):
        return []
    names = cast("Sequence[str]", schema.get("required") or ())
    return [f"{_inside(where, name)} is missing" for name in names if name not in value]


def _inside(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_bounds(schema: Schema, value: Any, where: str) -> list[str]:
    if not _is_number(value):
        return []
    tests: list[tuple[str, str, Callable[[float, float], bool]]] = [
        ("minimum", "at least", lambda given, bound: given >= bound),
        ("maximum", "at most", lambda given, bound: given <= bound),
        ("exclusiveMinimum", "above", lambda given, bound: given > bound),
        ("exclusiveMaximum", "below", lambda given, bound: given < bound),
    ]
    return [
        f"{where} must be {words} {schema[keyword]}, not {value}"
        for keyword, words, holds in tests
        if keyword in schema and not holds(value, schema[keyword])
    ]


def _check_length(schema: Schema, value: Any, where: str) -> list[str]:
    if isinstance(value, str):
        low, high, unit = "minLength", "maxLength", "characters"
    elif isinstance(value, (list, tuple)):
        low, high, unit = "minItems", "maxItems", "items"
    else:
        return []
    size = len(cast("Sequence[Any]", value))
    if size < schema.get(low, 0):
        return [f"{where} must have at least {schema[low]} {unit}"]
    if size > schema.get(high, size):
        return [f"{where} must have at most {schema[high]} {unit}"]
    return []


def _check_text(schema: Schema, value: Any, where: str) -> list[str]:
    pattern = cast("str | None", schema.get("pattern"))
    if pattern is None or not isinstance(value, str) or re.search(pattern, value):
        return []
    return [f"{where} must match {pattern}"]


_RULES: tuple[Callable[[Schema, Any, str], list[str]], ...] = (
    _check_choice,
    _check_options,
    _check_items,
    _check_required,
    _check_properties,
    _check_bounds,
    _check_text,
    _check_length,
)
