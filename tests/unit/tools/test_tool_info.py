"""Tools described by the functions they wrap."""

from __future__ import annotations

from typing import Any, Optional

import pytest

from ms_enclave.tools.tool_info import ToolInfo, ToolParams, parse_docstring, parse_tool_info


def google(path: str, depth: int = 2, pattern: Optional[str] = None, *args: Any) -> str:  # noqa: UP045
    """Find files.

    Goes down from a folder.

    Args:
        path: Where to
            start looking.
        depth (int): How deep.
        pattern (Optional[str]): What they are called.

    Returns:
        One path a line.
    """
    return ""


def sphinx(path: str, depth: int) -> str:
    """Find files.

    :param path: Where to start
        looking.
    :param int depth: How deep.
    :returns: paths
    """
    return ""


def numpy(path: str, depth: int) -> str:
    """Find files.

    Parameters
    ----------
    path : str
        Where to start
        looking.
    depth : int
        How deep.

    Returns
    -------
    str
    """
    return ""


@pytest.mark.parametrize("function", [google, sphinx, numpy])
def test_every_style_of_docstring_is_read(function: Any) -> None:
    assert parse_docstring(function.__doc__, "path")["description"] == "Where to start looking."
    assert parse_docstring(function.__doc__, "depth") == {
        "description": "How deep.",
        "docstring_type": "int",
    }
    assert parse_docstring(function.__doc__, "nothing") == {}


def test_no_docstring_says_nothing() -> None:
    assert parse_docstring(None, "path") == {}
    assert parse_docstring("", "path") == {}


def test_a_function_becomes_a_tool() -> None:
    info = parse_tool_info(google)
    assert isinstance(info, ToolInfo)
    assert info.name == "google"
    assert info.description == "Find files.\n\nGoes down from a folder."
    schema = info.parameters.to_schema()
    assert schema["required"] == ["path"]
    assert list(schema["properties"]) == ["path", "depth", "pattern"]
    assert schema["properties"]["path"] == {
        "type": "string",
        "description": "Where to start looking.",
    }
    assert schema["properties"]["depth"]["type"] == "integer"
    assert schema["properties"]["depth"]["default"] == 2
    assert schema["additionalProperties"] is False


def test_a_type_may_come_from_the_docstring() -> None:
    def untyped(path):  # type: ignore[no-untyped-def]
        """Look.

        Args:
            path (str): Where.
        """

    info = parse_tool_info(untyped)
    assert info.parameters.to_schema()["properties"]["path"]["type"] == "string"


def test_a_parameter_of_no_known_type_is_refused() -> None:
    def untyped(path):  # type: ignore[no-untyped-def]
        """Look."""

    with pytest.raises(ValueError, match="path"):
        parse_tool_info(untyped)


def test_parameters_can_be_given_as_plain_dictionaries() -> None:
    parameters: dict[str, Any] = {
        "type": "object",
        "properties": {
            "code": {"type": "string", "description": "Code"},
            "timeout": {"type": "integer", "default": 30},
        },
        "required": ["code"],
    }
    schema = ToolParams(**parameters).to_schema()
    assert schema["properties"]["code"] == {"type": "string", "description": "Code"}
    assert schema["properties"]["timeout"] == {"type": "integer", "default": 30}
