"""The page of dependencies is about those that there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
MOST = 5
"""So many are installed always; one more wants a better reason than this one."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("reads TOML with the standard library of Python 3.11 and later")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement, maxsplit=1)[0]


def test_what_is_always_installed_has_its_reason(project: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ([^`|][^|]+) \| ([^|]+) \|$", PAGE, flags=re.MULTILINE)
    assert {name for name, *_ in rows} == {name_of(each) for each in project["dependencies"]}
    assert len(rows) <= MOST


def test_what_an_extra_installs_has_its_reason(project: dict[str, Any]) -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| `([\w-]+)` \| ([^|]+) \|$", PAGE, flags=re.MULTILINE)
    extras = {
        (extra, name_of(requirement))
        for extra, requirements in project["optional-dependencies"].items()
        for requirement in requirements
        if name_of(requirement) != project["name"]
    }
    assert {(extra, name) for extra, name, _ in rows} == extras
