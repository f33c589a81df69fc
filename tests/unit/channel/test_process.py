"""What a request for a program may be."""

from __future__ import annotations

from typing import Any

import pytest

from ms_enclave.channel import Exit, SpawnRequest


@pytest.mark.parametrize(
    "options",
    [{"argv": None}, {"argv": ()}, {"argv": ("a",), "code": "b"}, {"argv": (), "code": ""}],
)
def test_exactly_one_of_command_and_code(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"exactly one|empty command"):
        SpawnRequest(**options)


def test_empty_code_is_code() -> None:
    request = SpawnRequest(argv=None, code="")
    assert request.code == ""
    assert dict(request.env) == {}
    assert not request.stdin


def test_an_end_says_only_what_is_known() -> None:
    ended = Exit(exit_code=0)
    assert (ended.signal, ended.cause, ended.peak_memory, ended.processes) == (None,) * 4
