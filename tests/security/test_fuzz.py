"""Hostile bytes, by a fuzzer led by the code it covers; `scripts/fuzz` does it for longer."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzz import TARGETS

SECONDS = 7
SEED = os.environ.get("MS_ENCLAVE_TEST_SEED", "1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None and os.environ.get("CI") != "true",
        reason="atheris is not there for this Python",
    ),
]


def fuzz(name: str, place: Path) -> tuple[int, str]:
    """Exit status and what it says. Its scratch folders lie below `place`."""
    place.joinpath("corpus").mkdir()
    options = [f"-max_total_time={SECONDS}", f"-seed={SEED}", "-print_final_stats=1"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.support.fuzz", name, *options),
            *(f"-artifact_prefix={place}/", str(place / "corpus")),
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=100,
    )
    return done.returncode, done.stderr + done.stdout


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "planted"])
def test_no_bytes_make_the_host_do_more_than_it_promises(name: str, tmp_path: Path) -> None:
    status, text = fuzz(name, tmp_path)
    assert status == 0, f"seed {SEED}\n{text[-4000:]}"
    tries = re.search(r"number_of_executed_units:\s*(\d+)", text)
    covered = [int(number) for number in re.findall(r"cov: (\d+)", text)]
    assert tries is not None
    assert int(tries[1]) > 200
    assert covered[-1] > covered[0], "it has found nothing that the first inputs had not"


def test_control_a_mistake_that_was_planted_is_found(tmp_path: Path) -> None:
    status, text = fuzz("planted", tmp_path)
    assert status != 0
    assert "the mistake that was planted" in text
