"""What figures and promises are, and how one is held against the other. Nothing here measures."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "TOLERANCE",
    "USUAL_START",
    "Figure",
    "Line",
    "Promise",
    "Series",
    "Standing",
    "lines_of",
    "quantile",
    "stand",
]

TOLERANCE = 0.25
"""The part of a target by which it may be missed before `--check` says so."""

USUAL_START = 11.0
"""Milliseconds in which the machine that the promises were made on starts a plain Python."""

_TIMES = ("ms",)
_RATES = ("/s",)


class Standing(str, Enum):
    """How a measured figure stands to what was promised."""

    MET = "met"
    CLOSE = "close"
    """Missed, but by no more than is tolerated."""
    MISSED = "missed"
    UNKNOWN = "unknown"
    """It was not measured here."""


@dataclass(frozen=True)
class Promise:
    """A bound for a figure, or for its ratio to a baseline of the same run."""

    target: float
    against: str | None = None
    """The baseline; None for the figure itself."""
    at_least: bool = False
    quantile: float = 0.5


@dataclass(frozen=True)
class Figure:
    """Something that is measured: its name, its unit, which side is good, what is promised."""

    name: str
    unit: str = "ms"
    more_is_better: bool = False
    promises: tuple[Promise, ...] = ()


@dataclass
class Series:
    """What was measured of one figure or baseline: samples by round."""

    rounds: list[list[float]] = field(default_factory=list[list[float]])

    @property
    def samples(self) -> list[float]:
        """All of them."""
        return [sample for each in self.rounds for sample in each]

    def best(self, *, more_is_better: bool = False) -> float:
        """The median of the best round: what else runs on a machine only ever makes it worse."""
        medians = [statistics.median(each) for each in self.rounds if each]
        return max(medians) if more_is_better else min(medians)


def quantile(samples: Sequence[float], part: float) -> float:
    """The smallest sample that at least this part of all samples does not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def stand(
    measured: float | None, promise: Promise, slack: float = 1.0, pace: float = 1.0
) -> Standing:
    """Hold a figure against a promise.

    `slack` multiplies what is tolerated; on a machine that takes `pace` times as long for the same,
    a figure that is a time or a rate may be missed by as much more.
    """
    if measured is None:
        return Standing.UNKNOWN
    most = (1 + TOLERANCE * slack) * pace
    if promise.at_least:
        met, close = measured >= promise.target, measured * most >= promise.target
    else:
        met, close = measured <= promise.target, measured <= promise.target * most
    return Standing.MET if met else Standing.CLOSE if close else Standing.MISSED


@dataclass(frozen=True)
class Line:
    """One line of the table: a figure, what it stands beside, and what was promised of it."""

    figure: Figure
    measured: float | None
    against: str | None = None
    baseline: float | None = None
    promise: Promise | None = None
    pace: float = 1.0
    """How many times as long this machine takes as the one that the promises were made on."""

    @property
    def ratio(self) -> float | None:
        """The figure in terms of the baseline; None without one."""
        if self.measured is None or self.baseline is None or self.baseline <= 0:
            return None
        return self.measured / self.baseline

    @property
    def judged(self) -> float | None:
        """What the promise is about: the ratio, or the figure itself."""
        return self.measured if self.against is None else self.ratio

    def standing(self, slack: float = 1.0) -> Standing | None:
        """How it stands; None where nothing is promised."""
        if self.promise is None:
            return None
        # A ratio to what ran on the same machine has the machine's pace in it already.
        timed = self.against is None and self.figure.unit.endswith((*_TIMES, *_RATES))
        return stand(self.judged, self.promise, slack, self.pace if timed else 1.0)


def lines_of(figure: Figure, taken: dict[str, Series], baselines: Sequence[str] = ()) -> list[Line]:
    """A figure's lines: the figure itself, its other quantiles, and each baseline of it.

    A baseline that was not measured has a line only where something is promised against it.
    """
    own = [promise for promise in figure.promises if promise.against is None]
    middle = next((promise for promise in own if promise.quantile == 0.5), None)
    value = _value(taken.get(figure.name), figure)
    lines: list[Line] = []
    if middle is not None or len(own) == 0:
        lines.append(Line(figure, value, promise=middle))
    for promise in own:
        if promise is not middle:
            measured = _value(taken.get(figure.name), figure, promise.quantile)
            lines.append(Line(figure, measured, promise=promise))
    promised = {promise.against: promise for promise in figure.promises if promise.against}
    for name in dict.fromkeys([*promised, *baselines]):
        if name in promised or name in taken:
            beside = _value(taken.get(name), figure)
            lines.append(Line(figure, value, name, beside, promised.get(name)))
    return lines


def _value(series: Series | None, figure: Figure, part: float = 0.5) -> float | None:
    if series is None or not series.samples:
        return None
    if part != 0.5:
        return quantile(series.samples, part)
    return series.best(more_is_better=figure.more_is_better)
