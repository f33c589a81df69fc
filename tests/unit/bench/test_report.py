"""A run as data, as a table and as a picture."""

from __future__ import annotations

import json
from io import StringIO
from xml.etree import ElementTree

import pytest
from rich.console import Console

from ms_enclave.bench import machine, report
from ms_enclave.bench.context import QUICK, Context, Round
from ms_enclave.bench.figures import Figure, Promise
from ms_enclave.bench.plot import Bar, Panel, draw, draw_panels
from ms_enclave.bench.programs import Environment
from ms_enclave.bench.run import Measured
from ms_enclave.bench.table import ROWS, Row


async def nothing(context: Context, into: Round) -> None:
    """The figures of these tests are given."""
    del context, into


FRESH = Row(
    "fresh",
    (
        Figure("ours", promises=(Promise(3), Promise(1 / 2, "python"), Promise(1 / 60, "docker"))),
        Figure("left", "", promises=(Promise(0, quantile=1),)),
    ),
    nothing,
    ("python", "bwrap"),
)


@pytest.fixture
def measured() -> Measured:
    whole = Measured([FRESH], QUICK, Environment("p", "f", ("c",), ("/x.pth",)), notes=["no bwrap"])
    for samples in ([4.0, 4.0, 9.0], [6.0, 5.0, 7.0]):
        whole.add(FRESH, Round({"ours": samples, "python": [10.0], "left": [0.0, 1.0]}))
    return whole


def test_what_is_missed_is_said_with_what_was_promised(measured: Measured) -> None:
    assert report.missed(measured, 1) == [
        "ours: 4.00 ms, promised ≤ 3.00 ms",
        "left: 1.00, promised ≤ 0",
    ]
    assert report.missed(measured, 2) == ["left: 1.00, promised ≤ 0"]


def test_the_data_holds_every_sample_ratio_and_promise(measured: Measured) -> None:
    data = json.loads(json.dumps(report.as_data(measured, machine.look(), 1)))
    assert data["schema"] == 1
    assert data["environment"]["start_up_hooks"] == ["/x.pth"]
    assert data["left_out"] == ["no bwrap"]
    (row,) = data["rows"]
    series = {each["name"]: each for each in row["series"]}
    assert series["ours"]["of"] == "us"
    assert series["ours"]["rounds"] == [[4.0, 4.0, 9.0], [6.0, 5.0, 7.0]]
    assert (series["ours"]["best"], series["ours"]["p50"], series["ours"]["max"]) == (4, 5, 9)
    assert series["python"]["of"] == "baseline"
    assert {"figure": "ours", "against": "python", "ratio": 0.4} in row["ratios"]
    standing = {(p["figure"], p["against"]): p["standing"] for p in row["promises"]}
    assert standing == {
        ("ours", None): "missed",
        ("ours", "python"): "met",
        ("ours", "docker"): "unknown",
        ("left", None): "missed",
    }


def test_the_table_fits_a_terminal_and_names_machine_and_omissions(measured: Measured) -> None:
    out = StringIO()
    report.show(Console(file=out, width=80), measured, machine.look(), 1)
    lines = out.getvalue().splitlines()
    cells = [line.split() for line in lines]
    assert ["ours", "4.00", "ms", "≤", "3.00", "ms", "missed"] in cells
    assert ["python", "10.0", "ms", "0.40", "x", "≤", "1/2", "met"] in cells
    assert ["docker", "-", "≤", "1/60", "unknown"] in cells
    assert "no bwrap" in lines
    assert any("/x.pth" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(None, "ms", "-"), (0, "", "0"), (1.234, "ms", "1.23 ms"), (12.34, "/s", "12.3 /s")],
)
def test_a_figure_is_shown_as_exactly_as_it_is_worth(
    value: float | None, unit: str, text: str
) -> None:
    assert report.amount(value, unit) == text


def test_the_picture_is_well_formed_and_shows_every_promise(measured: Measured) -> None:
    root = ElementTree.fromstring(draw(measured, machine.look()))
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"ours", "python", "ours : python", "4.00 ms of 3.00 ms"} <= texts


def test_bars_are_as_long_as_their_values_say_and_stay_in_the_picture() -> None:
    bars = [Bar("a", 1, "<1>", "#000"), Bar("b", 10, "10", "#000"), Bar("c", 100, "100", "#000")]
    root = ElementTree.fromstring(draw_panels([Panel("heading", bars, mark=10)], "foot"))
    frame, *found = [each for each in root if each.tag.endswith("rect")]
    widths = [float(each.attrib["width"]) for each in found]
    assert widths == sorted(widths)
    assert widths[1] - widths[0] == pytest.approx(widths[2] - widths[1], abs=0.2)
    ends = [float(each.attrib["x"]) + float(each.attrib["width"]) for each in found]
    assert max(ends) < float(frame.attrib["width"])


def test_rows_and_series_have_names_of_their_own() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        figures = [figure.name for figure in row.figures]
        assert len(set(figures)) == len(figures)
        assert not set(figures) & set(row.baselines)
