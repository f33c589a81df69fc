"""The walls that `scripts/switches` takes away are there to be taken away, before it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.security.lines import REGIONS, Region, deletions_in
from tests.security.switches import SWITCHES, Switch

SOURCE = Path(__file__).parents[2] / "src" / "ms_enclave"


@pytest.mark.parametrize("switch", SWITCHES, ids=[each.name for each in SWITCHES])
def test_the_text_of_a_wall_stands_once_where_it_is_said_to(switch: Switch) -> None:
    text = (SOURCE / switch.file).read_text(encoding="utf-8")
    assert switch.without(text) not in (None, text)
    assert 1 <= len(switch.tests) <= 3


def test_no_two_walls_have_the_same_name() -> None:
    assert len({each.name for each in SWITCHES}) == len(SWITCHES) >= 45


@pytest.mark.parametrize("region", REGIONS, ids=[f"{each.file} {each.first}" for each in REGIONS])
def test_a_region_has_lines_and_what_is_left_out_of_it_is_there(region: Region) -> None:
    assert len(region.tests) <= 3
    text = (SOURCE / region.file).read_text(encoding="utf-8")
    assert all(f"    {words}" in text for words in region.harmless)
    first = next(deletions_in(SOURCE, region))
    assert first.without(text) not in (None, text)
    assert first.without(f"\n{text}") is None
