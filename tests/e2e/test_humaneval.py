"""HumanEval, judged for real: what has to pass passes, and each failure is told from the others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "humaneval.py"


@pytest.mark.namespaces
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_solution_passes_and_every_broken_one_fails_for_its_own_reason() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--json"],
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr
    outcomes = json.loads(done.stdout)["outcomes"]
    wrong = [each for each in outcomes if each["found"] != each["expected"]]
    assert wrong == []
    assert done.returncode == 0
    assert Counter(each["found"] for each in outcomes) == {
        "passed": 164,
        "assertion": 41,
        "exception": 41,
        "time-out": 41,
        "memory": 41,
    }


@pytest.mark.namespaces
def test_the_summary_is_a_table_for_people() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--limit", "4"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "broken: memory" in done.stdout
    assert "8 programs in" in done.stdout
