"""The checker of what a model sent, held against the reference implementation of JSON Schema."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ms_enclave.tools._parameters import check, settle, strict_parameters

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "minLength": 1, "maxLength": 5},
        "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
        "count": {"type": "integer", "minimum": 1},
        "deep": {"type": "boolean"},
        "command": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        },
        "env": {"type": "object", "additionalProperties": {"type": "string"}},
        "mode": {"type": "string", "enum": ["a", "b"]},
        "name": {"type": ["string", "null"], "pattern": "^x"},
        "kind": {"const": "k"},
        "both": {"allOf": [{"type": "integer"}, {"maximum": 3}]},
    },
    "required": ["code"],
    "additionalProperties": False,
}

VALID: list[dict[str, Any]] = [
    {"code": "1"},
    {"code": "1", "timeout": 12.5, "count": 2, "deep": True, "command": "ls"},
    {"code": "1", "command": ["ls", "-l"], "env": {}, "mode": "b", "name": None},
    {"code": "1", "env": {"A": "b"}, "name": "xy", "kind": "k", "both": 3, "count": 2.0},
]

INVALID: list[tuple[dict[str, Any], str]] = [
    ({}, "code is missing"),
    ({"code": 1}, "code must be a string, not int"),
    ({"code": None}, "code must be a string, not null"),
    ({"code": ""}, "code must have at least 1 characters"),
    ({"code": "123456"}, "code must have at most 5 characters"),
    ({"code": "1", "timeout": "3"}, "timeout must be a number, not str"),
    ({"code": "1", "timeout": True}, "timeout must be a number, not bool"),
    ({"code": "1", "timeout": 0}, "timeout must be above 0, not 0"),
    ({"code": "1", "timeout": 101}, "timeout must be at most 100, not 101"),
    ({"code": "1", "count": 1.5}, "count must be an integer, not float"),
    ({"code": "1", "count": 0}, "count must be at least 1, not 0"),
    ({"code": "1", "deep": 1}, "deep must be a boolean, not int"),
    ({"code": "1", "command": 1}, "command must be a string, not int or command must be an array"),
    ({"code": "1", "command": ["a", 1]}, "command[1] must be a string, not int"),
    ({"code": "1", "command": []}, "command must have at least 1 items"),
    ({"code": "1", "env": {"A": 1}}, "env.A must be a string, not int"),
    ({"code": "1", "env": []}, "env must be an object, not list"),
    ({"code": "1", "mode": "c"}, "mode must be one of 'a', 'b', not 'c'"),
    ({"code": "1", "name": 1}, "name must be a string or null, not int"),
    ({"code": "1", "name": "y"}, "name must match ^x"),
    ({"code": "1", "kind": "q"}, "kind must be 'k'"),
    ({"code": "1", "both": 4}, "both must be at most 3, not 4"),
    ({"code": "1", "cod": "2"}, "cod is unknown (known: code, timeout"),
]


@pytest.mark.parametrize("values", VALID)
def test_what_fits_has_no_problems(values: dict[str, Any]) -> None:
    jsonschema.validate(values, SCHEMA)
    assert check(SCHEMA, values, "") == []


@pytest.mark.parametrize(("values", "problem"), INVALID)
def test_a_problem_names_the_place_and_what_was_wanted(
    values: dict[str, Any], problem: str
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)
    assert problem in "; ".join(check(SCHEMA, values, ""))


def test_every_problem_is_named_at_once() -> None:
    problems = check(SCHEMA, {"timeout": -1, "who": 1}, "")
    assert len(problems) == 3
    for name in ("code", "timeout", "who"):
        assert any(problem.startswith(name) for problem in problems)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_is_finite(value: float) -> None:
    assert check({"type": "number"}, value, "timeout") == [f"timeout must be a number, not {value}"]


def test_a_long_value_is_not_repeated_in_full() -> None:
    [problem] = check({"enum": ["a"]}, "x" * 10_000, "mode")
    assert len(problem) < 200


def test_a_name_that_is_no_string_is_a_problem() -> None:
    assert check({"type": "object"}, {1: 2}, "env")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from([*SCHEMA["properties"], "other"]),
        values.filter(lambda value: value not in {float("inf"), float("-inf")} if isinstance(
            value, float) else True),
        max_size=4,
    )
)  # fmt: skip
def test_it_agrees_with_the_reference(given_values: dict[str, Any]) -> None:
    if _holds_an_infinity(given_values):
        return  # JSON has none: the reference lets them pass, we do not
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(given_values)
    assert (check(SCHEMA, given_values, "") == []) == valid


def _holds_an_infinity(value: Any) -> bool:
    return "inf" in repr(value)


def test_null_means_not_given_where_a_parameter_is_optional() -> None:
    assert settle(SCHEMA, {"code": "1", "timeout": None, "env": None}) == {"code": "1"}


def test_null_stays_where_it_is_a_value_or_a_mistake() -> None:
    settled = settle(SCHEMA, {"code": None, "name": None, "other": None})
    assert settled == {"code": None, "name": None, "other": None}


def test_pairs_are_folded_into_a_map() -> None:
    pairs = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert settle(SCHEMA, {"code": "1", "env": pairs})["env"] == {"A": "1", "B": "2"}


def test_what_is_no_list_of_pairs_is_left_to_the_checker() -> None:
    settled = settle(SCHEMA, {"code": "1", "env": [{"name": "A"}]})
    assert check(SCHEMA, settled, "") == ["env must be an object, not list"]


def _objects(schema: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if isinstance(schema, dict):
        found += [schema] if schema.get("type") == "object" else []
        for value in schema.values():
            found += _objects(value)
    elif isinstance(schema, list):
        for value in schema:
            found += _objects(value)
    return found


def test_strict_objects_are_closed_and_require_everything() -> None:
    strict = strict_parameters(SCHEMA)
    objects = _objects(strict)
    assert len(objects) == 2  # the parameters, and one pair of `env`
    for schema in objects:
        assert schema["additionalProperties"] is False
        assert schema["required"] == list(schema["properties"])


def test_in_strict_mode_what_was_optional_may_be_null() -> None:
    strict = strict_parameters(SCHEMA)
    nothing: dict[str, Any] = dict.fromkeys(SCHEMA["properties"])
    sent = {**nothing, "code": "1", "kind": "k", "both": 1}
    jsonschema.validate(sent, strict)
    settled = settle(SCHEMA, sent)
    assert check(SCHEMA, settled, "") == []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**sent, "code": None}, strict)


def test_strict_mode_leaves_the_schema_it_is_given_alone() -> None:
    before = repr(SCHEMA)
    strict_parameters(SCHEMA)
    assert repr(SCHEMA) == before
