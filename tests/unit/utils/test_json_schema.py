"""JSON schemas of Python types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, Optional, TypedDict, Union

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from ms_enclave.utils.json_schema import (
    JSONSchema,
    cls_json_schema,
    json_schema,
    python_type_to_json_type,
    resolve_schema_references,
)

OPTIONAL = Optional[int]  # noqa: UP045 - the old spelling is another object
UNION = Union[int, str]  # noqa: UP007


class Colour(str, Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: int
    y: float = 0.0
    tags: list[str] = dataclasses.field(default_factory=list)
    made: int = dataclasses.field(init=False, default=0)


class Options(TypedDict, total=False):
    """A typed dictionary."""

    deep: bool
    name: str


class Inner(BaseModel):
    """Part of a model."""

    x: int = Field(description="Where.")


class Model(BaseModel):
    """A model."""

    inner: Inner
    more: list[Inner] = []


class Node(BaseModel):
    """A model that contains itself."""

    child: Optional[Node] = None  # noqa: UP045


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (datetime, {"type": "string", "format": "date-time"}),
        (date, {"type": "string", "format": "date"}),
        (list, {"type": "array", "items": {}}),
        (dict, {"type": "object", "additionalProperties": {}}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (Sequence[str], {"type": "array", "items": {"type": "string"}}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, str],
            {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}},
        ),
        (set[bool], {"type": "array", "items": {"type": "boolean"}}),
        (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (Mapping[str, Any], {"type": "object", "additionalProperties": {}}),
        (OPTIONAL, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (UNION, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal["a", 1], {"enum": ["a", 1]}),
        (Colour, {"type": "string", "enum": ["red", "blue"]}),
        (Annotated[int, "How many."], {"type": "integer", "description": "How many."}),
        (Annotated[int, Field(description="Many.")], {"type": "integer", "description": "Many."}),
        (Any, {}),
        (object, {}),
        ([], {}),
    ],
)
def test_an_annotation_has_a_schema(kind: Any, schema: dict[str, Any]) -> None:
    made = json_schema(kind).to_schema()
    assert made == schema
    Draft202012Validator.check_schema(made)


def test_classes_have_schemas_of_their_fields() -> None:
    point = cls_json_schema(Point).to_schema()
    assert point["required"] == ["x"]
    assert list(point["properties"]) == ["x", "y", "tags"]
    assert point["additionalProperties"] is False
    options = json_schema(Options).to_schema()
    assert options["required"] == []
    assert options["properties"]["deep"] == {"type": "boolean"}
    for schema in (point, options):
        Draft202012Validator.check_schema(schema)


def test_a_models_references_are_written_out() -> None:
    schema = json_schema(Model).to_schema()
    assert schema["properties"]["inner"]["properties"]["x"]["description"] == "Where."
    assert schema["properties"]["more"]["items"]["properties"]["x"]["type"] == "integer"
    assert "$ref" not in str(schema)
    assert "$defs" not in schema
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate({"inner": {"x": 1}})


def test_a_schema_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="contains itself"):
        cls_json_schema(Node)
    with pytest.raises(ValueError, match="leads nowhere"):
        resolve_schema_references({"$ref": "#/$defs/Gone"})


def test_a_class_that_has_no_fields_is_refused() -> None:
    with pytest.raises(TypeError, match="Colour"):
        cls_json_schema(Colour)


def test_unknown_keywords_are_kept() -> None:
    given: dict[str, Any] = {"type": "string", "pattern": "^a", "minLength": 1}
    assert JSONSchema.model_validate(given).to_schema() == given


def test_a_schema_is_the_callers_to_change() -> None:
    json_schema(str).description = "changed"
    assert json_schema(str).description is None


@pytest.mark.parametrize(
    ("python", "json_type"),
    [
        *(("str", "string"), ("int", "integer"), ("float", "number"), ("bool", "boolean")),
        *(("list", "array"), ("dict", "object"), ("None", "null"), (None, "null")),
    ],
)
def test_pythons_names_have_names_in_json(python: str | None, json_type: str) -> None:
    assert python_type_to_json_type(python) == json_type


def test_a_type_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="Unsupported type: complex"):
        python_type_to_json_type("complex")
