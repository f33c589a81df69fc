"""The page that leads from a threat to its guard and its test names only what there is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from ms_enclave.attack import CASES
from ms_enclave.attack.bombs import BOMBS
from ms_enclave.boxes._docker_plan import Dialect, limits_of, plan_container
from ms_enclave.boxes._process_request import isolation_report, landlock_report
from ms_enclave.model import DockerSandboxConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+)(?:-(\d+))? \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)
ATTACK = re.compile(r"attack `(\w+)`")
NODE = re.compile(r"`([\w/]+\.py)::(\w+)`")
CODE = re.compile(r"`([^`]+)`")

TO_COME = {(60, 68): "egress and previews"}
ATTACKS = {case.name: case.number for case in (*CASES, *BOMBS)}
NO_GUARD = {"/proc", "/proc/sys", "/sys", "cgroup.kill", "require="}
"""What is set as code among the guards and is none: paths and an option."""


def rows() -> list[tuple[range, str, str]]:
    """The numbers of each row, its guards and its tests."""
    return [
        (range(int(first), int(last or first) + 1), guards, tests)
        for first, last, _, guards, tests in ROW.findall(PAGE)
    ]


@cache
def functions(path: str) -> frozenset[str]:
    """The functions of a file of the tests, or of the suites that are shipped."""
    places = [ROOT / "tests" / path, ROOT / "src" / "ms_enclave" / path]
    (place,) = [place for place in places if place.is_file()]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(place.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def guards() -> set[str]:
    """Every guard that a sandbox reports, on or off."""
    facts = {
        "root_mode": True, "controllers": (), "kills_by_group": True, "traced": True, "landlock": 6,
    }  # fmt: skip
    config = DockerSandboxConfig()
    container = plan_container(
        config, limits_of(config), {}, strict_user=20000, dialect=Dialect("")
    )
    reports = (isolation_report(facts, True), landlock_report(facts), container)
    return {name for report in reports for name in report.guards}


def test_every_number_of_the_list_has_one_row() -> None:
    numbers = [number for span, _, _ in rows() for number in span]
    assert numbers == list(range(1, 90))


def test_every_row_has_a_guard_and_a_test_or_says_what_it_comes_with() -> None:
    for span, held_by, tests in rows():
        if (span[0], span[-1]) in TO_COME:
            assert tests == f"to come with {TO_COME[span[0], span[-1]]}"
        else:
            assert len(span) == 1
            assert held_by.strip()
            assert ATTACK.search(tests) or NODE.search(tests), span[0]


def test_every_test_that_is_named_is_there() -> None:
    assert [node for node in NODE.findall(PAGE) if node[1] not in functions(node[0])] == []


def test_the_attacks_that_are_named_are_all_that_there_are() -> None:
    named = {(number, name) for span, _, tests in rows() for name in ATTACK.findall(tests)
             for number in span}  # fmt: skip
    assert {name for _, name in named} == set(ATTACKS)
    assert {(number, name) for name, number in ATTACKS.items()} <= named


def test_the_guards_that_are_named_are_reported() -> None:
    named = {word for _, held_by, _ in rows() for word in CODE.findall(held_by)}
    assert named - NO_GUARD <= guards()
