"""Containers whose labels lie: they are shown as they are, and none goes that is not left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes._docker_owner import CREATED, MANAGER, SANDBOX, STATE, labels
from ms_enclave.boxes._docker_plan import LABEL
from tests.support.engine import IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.docker]

PROGRAM = str(Path(sys.executable).with_name("ms-enclave"))
OWNER = f"{LABEL}owner"
ODD = f"odd-{os.getpid()}"
HOSTILE = f"{ODD}\x1b]0;title\x07\x1b[31m\nremoved docker all [/red][link=file:///]\u202e"
OURS = labels("x", "", datetime.now(timezone.utc))
HERE, _, _ = OURS[OWNER].split(":")
LABELS = {
    "odd": {**OURS, SANDBOX: HOSTILE, MANAGER: HOSTILE, CREATED: HOSTILE},
    "superscript": {**OURS, SANDBOX: f"{ODD}-2", OWNER: f"{HERE}:²:1"},
    "endless": {**OURS, SANDBOX: f"{ODD}-3", OWNER: f"{HERE}:{'9' * 5000}:1"},
    "elsewhere": {
        **OURS,
        SANDBOX: f"{ODD}-4",
        OWNER: "other/1:2:3",
        STATE: "../etc/passwd",
    },
    "living": {**OURS, SANDBOX: f"{ODD}-5", STATE: "/dev/zero/x"},
    "no-such-type": {**OURS, SANDBOX: f"{ODD}-6", f"{LABEL}type": "volcengine"},
    "notebook": {**OURS, SANDBOX: f"{ODD}-7", f"{LABEL}type": "docker_notebook"},
    "without": {OWNER: f"{HERE}:4194304:1", CREATED: ""},
}


@pytest.fixture
def made() -> Iterator[dict[str, str]]:
    """A container for each row of the table: its name to its id."""
    found: dict[str, str] = {}
    try:
        for name, given in LABELS.items():
            words = [f"--label={key}={value}" for key, value in given.items()]
            command = ["docker", "create", "--network=none", *words, IMAGE, "true"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name] = done.stdout.strip()
        yield found
    finally:
        subprocess.run(["docker", "rm", "-f", *found.values()], capture_output=True, check=True)


def ours(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "2000"}
    return subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, env=env, timeout=60, check=False
    )


def test_what_labels_say_is_shown_on_one_line_and_commands_nothing(made: dict[str, str]) -> None:
    shown = ours("ps")
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if ODD in line]
    assert len(lines) == len(LABELS) - 1
    assert not {c for c in shown.stdout if c != "\n" and not c.isprintable()}
    assert not any(line.startswith("removed") for line in shown.stdout.splitlines())
    assert "\\x1b[31m\\nremoved docker all [/red][link=file:///]\\u202e" in shown.stdout
    rows = json.loads(ours("ps", "--json").stdout)
    types = sorted((row["place"], row["sandbox_type"]) for row in rows if ODD in row["id"])
    shown_as = {"notebook": "docker_notebook"}
    expected = {place: shown_as.get(name, "docker") for name, place in made.items()}
    del expected[made["without"]]
    assert types == sorted(expected.items())
    assert HOSTILE in {row["id"] for row in rows}
    owners = {row["place"]: row["owner"] for row in rows}
    assert owners[made["superscript"]] == owners[made["endless"]] == "unknown"
    assert owners[made["elsewhere"]] == "unknown"
    assert owners[made["living"]] == owners[made["odd"]] == "alive"
    assert made["without"] not in owners


def test_what_is_not_left_by_a_dead_owner_stays(made: dict[str, str]) -> None:
    would = ours("clean", "--dry-run")
    assert would.returncode == 0, would.stderr
    assert ODD not in would.stdout
    everything = ours("clean", "--all", "--dry-run")
    assert made["without"] not in everything.stdout
    assert f"{ODD}-5" not in everything.stdout
    refused = ours("clean", f"{ODD}-5")
    assert refused.returncode != 0
    assert "its owner lives" in refused.stderr
    removed = ours("clean", HOSTILE, "--force")
    assert removed.returncode == 0, removed.stderr
    assert not {c for c in removed.stdout if c != "\n" and not c.isprintable()}
    assert len(removed.stdout.splitlines()) == 1
    ask = ["docker", "ps", "-aq", "--no-trunc"]
    left = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
    assert {name for name, place in made.items() if place not in left} == {"odd"}
