"""What all our configs have in common: strict, mutable, and saying clearly what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

__all__ = ["StrictModel", "say_what_is_invalid"]


class StrictModel(BaseModel):
    """A model that refuses unknown keys and checks what is assigned to it.

    None for a field that cannot be None means its default, when made and when assigned.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        # Built on first use, here and in all our models: a start pays for what it uses only.
        defer_build=True,
    )

    what: ClassVar[str] = "config"
    """What messages call a key of it."""

    @classmethod
    def upgrade(cls, values: dict[str, Any]) -> None:
        """Turn what earlier versions called otherwise into today's keys, in place."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = dict(cast("Mapping[str, Any]", values))
        cls.upgrade(given)
        unknown = [key for key in given if key not in cls.model_fields]
        if unknown:
            raise ValueError(_unknown_keys(cls.what, unknown, list(cls.model_fields)))
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _settle_value(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[cast("str", info.field_name)]
        choices = get_args(field.annotation)
        if value is None and field.annotation is not Any and type(None) not in choices:
            return field.get_default(call_default_factory=True)
        if isinstance(value, bool) and (field.annotation is float or float in choices):
            raise ValueError("must be a number, not a truth value")
        return value


def say_what_is_invalid(error: ValueError) -> str:
    """Each field that is wrong and why, on one line, of what a model raised."""
    if not isinstance(error, ValidationError):
        return str(error)
    problems: list[str] = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(map(str, problem["loc"]))
        text = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{place}: {text}" if place else text)
    return "; ".join(problems)


def _unknown_keys(what: str, unknown: list[str], known: list[str]) -> str:
    texts: list[str] = []
    for key in unknown:
        near = get_close_matches(str(key), known, n=1)
        texts.append(f"{key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return f"Unknown {what} key{'s'[: len(unknown) > 1]} {', '.join(texts)}"
