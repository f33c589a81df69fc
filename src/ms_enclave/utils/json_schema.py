"""JSON schemas of Python types, in the small dialect that function calling uses."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Mapping
from datetime import date, datetime, time
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pydantic import BaseModel, ConfigDict

__all__ = [
    "JSONSchema",
    "JSONType",
    "cls_json_schema",
    "json_schema",
    "python_type_to_json_type",
    "resolve_schema_references",
]

JSONType = Literal["string", "integer", "number", "boolean", "array", "object", "null"]


class JSONSchema(BaseModel):
    """A JSON schema. Keywords that have no field of their own are kept as they are."""

    model_config = ConfigDict(extra="allow", defer_build=True)

    type: JSONType | list[JSONType] | None = None
    format: str | None = None
    description: str | None = None
    default: Any = None
    enum: list[Any] | None = None
    items: JSONSchema | None = None
    properties: dict[str, JSONSchema] | None = None
    additionalProperties: JSONSchema | bool | None = None
    anyOf: list[JSONSchema] | None = None
    required: list[str] | None = None
    minimum: float | int | None = None
    maximum: float | int | None = None

    def to_schema(self) -> dict[str, Any]:
        """The plain dictionary, without what is not said."""
        return self.model_dump(mode="json", exclude_none=True)


_SCALARS: dict[Any, JSONSchema] = {
    str: JSONSchema(type="string"),
    bytes: JSONSchema(type="string"),
    int: JSONSchema(type="integer"),
    float: JSONSchema(type="number"),
    bool: JSONSchema(type="boolean"),
    type(None): JSONSchema(type="null"),
    None: JSONSchema(type="null"),
    datetime: JSONSchema(type="string", format="date-time"),
    date: JSONSchema(type="string", format="date"),
    time: JSONSchema(type="string", format="time"),
    list: JSONSchema(type="array", items=JSONSchema()),
    tuple: JSONSchema(type="array", items=JSONSchema()),
    set: JSONSchema(type="array", items=JSONSchema()),
    frozenset: JSONSchema(type="array", items=JSONSchema()),
    dict: JSONSchema(type="object", additionalProperties=JSONSchema()),
}


def json_schema(t: Any) -> JSONSchema:
    """The schema of an annotation. A type that JSON does not know gives one that allows anything.

    Knows the plain types, their generics, unions, literals, enums, dates, dataclasses, typed
    dictionaries and pydantic models.
    """
    try:
        if t in _SCALARS:
            return _SCALARS[t].model_copy(deep=True)
    except TypeError:  # it cannot be hashed: no type that the table could know
        return JSONSchema()
    origin = get_origin(t)
    if origin is Annotated:
        return _annotated(t)
    if origin is not None:
        return _generic(origin, get_args(t))
    if isinstance(t, type):
        return _class(cast("type[Any]", t))
    return JSONSchema()


def _annotated(t: Any) -> JSONSchema:
    base, *notes = get_args(t)
    schema = json_schema(base)
    described = [getattr(note, "description", note) for note in notes]
    texts = [text for text in described if isinstance(text, str)]
    return schema.model_copy(update={"description": texts[0]}) if texts else schema


def _generic(origin: Any, arguments: tuple[Any, ...]) -> JSONSchema:
    if origin in {Union, types.UnionType}:
        return JSONSchema(anyOf=[json_schema(each) for each in arguments])
    if origin is Literal:
        return _choice(arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return JSONSchema(type="object", additionalProperties=json_schema(arguments[-1]))
    if isinstance(origin, type) and issubclass(origin, Collection):
        return JSONSchema(type="array", items=_items(arguments))
    return JSONSchema()


def _items(arguments: tuple[Any, ...]) -> JSONSchema:
    kinds = [each for each in dict.fromkeys(arguments) if each is not Ellipsis]
    if len(kinds) == 1:
        return json_schema(kinds[0])
    return JSONSchema(anyOf=[json_schema(each) for each in kinds])


def _choice(values: tuple[Any, ...]) -> JSONSchema:
    kinds = {python_type_to_json_type(type(value).__name__) for value in values}
    schema = JSONSchema(enum=list(values))
    return schema.model_copy(update={"type": kinds.pop()}) if len(kinds) == 1 else schema


def _class(t: type[Any]) -> JSONSchema:
    if issubclass(t, Enum):
        return _choice(tuple(member.value for member in t))
    if dataclasses.is_dataclass(t) or is_typeddict(t) or issubclass(t, BaseModel):
        return cls_json_schema(t)
    return JSONSchema()


def cls_json_schema(cls: type[Any]) -> JSONSchema:
    """The schema of a dataclass, a typed dictionary or a pydantic model. It allows no other keys.

    Raises:
        TypeError: it is none of them.
    """
    if issubclass(cls, BaseModel):
        document = cls.model_json_schema(by_alias=False)
        schema = JSONSchema.model_validate(resolve_schema_references(document))
        return schema.model_copy(update={"additionalProperties": False})
    hints = get_type_hints(cls, include_extras=True)
    if dataclasses.is_dataclass(cls):
        fields = [each for each in dataclasses.fields(cls) if each.init]
        missing = dataclasses.MISSING
        required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
        names = [each.name for each in fields]
    elif is_typeddict(cls):
        names = list(hints)
        required = sorted(cast("frozenset[str]", cls.__required_keys__))
    else:
        raise TypeError(f"{cls.__name__} is no dataclass, typed dictionary or pydantic model")
    return JSONSchema(
        type="object",
        properties={name: json_schema(hints[name]) for name in names},
        required=required,
        additionalProperties=False,
    )


_NAMES: dict[str | None, JSONType] = {
    "str": "string",
    "bytes": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "frozenset": "array",
    "dict": "object",
    "None": "null",
    "NoneType": "null",
    None: "null",
}


def python_type_to_json_type(python_type: str | None) -> JSONType:
    """JSON's name of a type, by Python's.

    Raises:
        ValueError: JSON has no such type.
    """
    try:
        return _NAMES[python_type]
    except KeyError:
        raise ValueError(f"Unsupported type: {python_type}") from None


def resolve_schema_references(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema with every `$ref` into its own `$defs` replaced by what it refers to.

    Raises:
        ValueError: a reference leads nowhere, or into itself.
    """
    definitions: dict[str, Any] = {**schema.get("definitions", {}), **schema.get("$defs", {})}

    def resolve(node: Any, within: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [resolve(each, within) for each in cast("list[Any]", node)]
        if not isinstance(node, dict):
            return node
        given = cast("dict[str, Any]", node)
        plain = {
            key: resolve(value, within)
            for key, value in given.items()
            if key not in {"$ref", "$defs", "definitions"}
        }
        reference = given.get("$ref")
        if reference is None:
            return plain
        name = str(reference).rpartition("/")[2]
        if name not in definitions:
            raise ValueError(f"The reference {reference} leads nowhere")
        if name in within:
            raise ValueError(f"The schema of {name} contains itself")
        return {**resolve(definitions[name], (*within, name)), **plain}

    return cast("dict[str, Any]", resolve(schema, ()))
