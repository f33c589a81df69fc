"""What figures come to, and how they are held against what was promised."""

from __future__ import annotations

import pytest

from ms_enclave.bench.figures import (
    Figure,
    Line,
    Promise,
    Series,
    Standing,
    lines_of,
    quantile,
    stand,
)


@pytest.mark.parametrize(
    ("part", "expected"), [(0.0, 1), (0.5, 2), (0.75, 3), (0.76, 4), (0.99, 4), (1, 4)]
)
def test_a_quantile_is_the_smallest_sample_that_so_many_do_not_exceed(
    part: float, expected: float
) -> None:
    assert quantile([3, 1, 4, 2], part) == expected


def test_the_best_round_counts_by_its_median() -> None:
    series = Series([[9.0, 1.0, 5.0], [4.0, 4.0, 100.0], []])
    assert series.best() == 4.0
    assert series.best(more_is_better=True) == 5.0
    assert series.samples == [9.0, 1.0, 5.0, 4.0, 4.0, 100.0]


@pytest.mark.parametrize(
    ("measured", "promise", "slack", "expected"),
    [
        (3.0, Promise(3), 1, Standing.MET),
        (3.01, Promise(3), 1, Standing.CLOSE),
        (3.75, Promise(3), 1, Standing.CLOSE),
        (3.76, Promise(3), 1, Standing.MISSED),
        (4.5, Promise(3), 2, Standing.CLOSE),
        (4.51, Promise(3), 2, Standing.MISSED),
        (3.01, Promise(3), 0, Standing.MISSED),
        (3.5, Promise(3.5, at_least=True), 1, Standing.MET),
        (2.8, Promise(3.5, at_least=True), 1, Standing.CLOSE),
        (2.79, Promise(3.5, at_least=True), 1, Standing.MISSED),
        (2.79, Promise(3.5, at_least=True), 2, Standing.CLOSE),
        (0, Promise(0), 1, Standing.MET),
        (1, Promise(0), 100, Standing.MISSED),
        (None, Promise(3), 1, Standing.UNKNOWN),
    ],
)
def test_a_promise_is_missed_by_more_than_a_quarter_times_the_slack(
    measured: float | None, promise: Promise, slack: float, expected: Standing
) -> None:
    assert stand(measured, promise, slack) is expected


@pytest.mark.parametrize(
    ("unit", "promise", "measured", "expected"),
    [
        ("ms", Promise(3), 7.5, Standing.CLOSE),
        ("ms", Promise(3), 7.51, Standing.MISSED),
        ("ms", Promise(3), 3.0, Standing.MET),
        ("ms", Promise(3), 3.01, Standing.CLOSE),
        ("/s", Promise(5, at_least=True), 2.0, Standing.CLOSE),
        ("/s", Promise(5, at_least=True), 1.99, Standing.MISSED),
        ("MiB/s", Promise(5, at_least=True), 2.0, Standing.CLOSE),
        ("MiB", Promise(3), 3.76, Standing.MISSED),
    ],
)
def test_times_and_rates_may_be_missed_by_as_much_more_on_a_slower_machine(
    unit: str, promise: Promise, measured: float, expected: Standing
) -> None:
    line = Line(Figure("ours", unit), measured, promise=promise, pace=2.0)
    assert line.standing() is expected


def test_a_ratio_is_judged_alike_on_a_slower_machine() -> None:
    promise = Promise(2, "python")
    line = Line(Figure("ours"), 7.6, "python", 3.0, promise, pace=2.0)
    assert line.standing() is Standing.MISSED


def test_a_figure_has_a_line_for_itself_each_quantile_and_each_baseline() -> None:
    figure = Figure(
        "ours", promises=(Promise(3), Promise(9, quantile=0.99), Promise(1 / 2, "python"))
    )
    taken = {
        "ours": Series([[2.0, 2.0, 8.0]]),
        "python": Series([[4.0]]),
        "other": Series([[1.0]]),
    }
    lines = lines_of(figure, taken, ["other", "absent"])
    found = [(line.against, line.judged, line.standing()) for line in lines]
    assert found == [
        (None, 2.0, Standing.MET),
        (None, 8.0, Standing.MET),
        ("python", 0.5, Standing.MET),
        ("other", 2.0, None),
    ]


def test_a_promise_against_a_baseline_that_is_not_there_is_unknown() -> None:
    figure = Figure("ours", promises=(Promise(1 / 60, "docker"),))
    own, beside = lines_of(figure, {"ours": Series([[1.0]])})
    assert (own.measured, own.standing()) == (1.0, None)
    assert (beside.judged, beside.standing()) == (None, Standing.UNKNOWN)


def test_where_more_is_better_a_baselines_best_round_counts_as_ours_does() -> None:
    figure = Figure("rate", "/s", True, (Promise(3, "python", at_least=True),))
    taken = {"rate": Series([[300.0], [500.0]]), "python": Series([[100.0], [50.0]])}
    assert lines_of(figure, taken)[1].ratio == 5.0
