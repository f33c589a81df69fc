"""A picture of a run for the documentation: bars, drawn as SVG by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from ms_enclave.bench.figures import Standing
from ms_enclave.bench.report import amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ms_enclave.bench.figures import Line
    from ms_enclave.bench.machine import Machine
    from ms_enclave.bench.run import Measured

__all__ = ["Bar", "Panel", "draw", "draw_panels"]

_WIDTH, _LEFT, _RIGHT = 920, 400, 160
_STEP, _HEAD = 24, 44
_OURS, _THEIRS, _MISSED = "#1565c0", "#b0bec5", "#c62828"
_COLOURS = {Standing.MET: "#2e7d32", Standing.CLOSE: "#f9a825", Standing.MISSED: _MISSED}


@dataclass(frozen=True)
class Bar:
    """A labelled length."""

    label: str
    value: float
    text: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """Bars on one logarithmic scale, under a heading; `mark` is where a line is drawn."""

    heading: str
    bars: Sequence[Bar]
    mark: float | None = None


def draw(measured: Measured, machine: Machine) -> str:
    """The SVG of a run: one isolated program, runs a second, and every promise."""
    footer = (
        f"{machine.processor}, {machine.processors} processors, Linux {machine.kernel}, "
        f"Python {machine.python}, load {machine.load} before. Logarithmic scales."
    )
    panels = [
        _compared(measured, "print(1) from its start to its end, ms", ("fresh", "cold")),
        _compared(measured, f"print(1) a second, {machine.processors} processors", ("rate",)),
        _promised(measured),
    ]
    return draw_panels([panel for panel in panels if panel.bars], footer)


def _compared(measured: Measured, heading: str, names: Sequence[str]) -> Panel:
    """Our figures of some rows and all their baselines, the best on top."""
    bars: dict[str, Bar] = {}
    for row in measured.rows:
        if row.name not in names or row.name not in measured.taken:
            continue
        own = {figure.name for figure in row.figures}
        unit, more = row.figures[0].unit, row.figures[0].more_is_better
        for name, series in measured.taken[row.name].items():
            value = series.best(more_is_better=more)
            colour = _OURS if name in own else _THEIRS
            bars.setdefault(name, Bar(name, value, amount(value, unit), colour))
    ordered = sorted(bars.values(), key=lambda bar: bar.value, reverse=names == ("rate",))
    return Panel(heading, ordered)


def _promised(measured: Measured) -> Panel:
    """Each promise as a part of what it allows: what is left of the line is kept."""
    lines = [line for row in measured.rows for line in measured.lines(row) if line.promise]
    bars = [bar for bar in map(_promise_bar, lines) if bar is not None]
    return Panel("Promises: measured, as a part of what was promised", bars, mark=1.0)


def _promise_bar(line: Line) -> Bar | None:
    promise, judged = line.promise, line.judged
    if promise is None or not judged or not promise.target:
        return None
    part = promise.target / judged if promise.at_least else judged / promise.target
    label = line.figure.name + (f" : {promise.against}" if promise.against else "")
    if promise.quantile != 0.5:
        label += f", p{promise.quantile * 100:.0f}"
    if promise.against is None:
        text = f"{amount(judged, line.figure.unit)} of {amount(promise.target, line.figure.unit)}"
    else:
        text = f"{judged:.3g} x of {promise.target:.3g} x"
    standing = line.standing()
    return Bar(label, part, text, _COLOURS.get(standing or Standing.UNKNOWN, _THEIRS))


# --- drawing ------------------------------------------------------------------------------------


def draw_panels(panels: Sequence[Panel], footer: str) -> str:
    """Panels below each other, as an SVG document."""
    height = sum(_HEAD + _STEP * len(panel.bars) + 12 for panel in panels) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img" aria-labelledby="title">',
        '  <title id="title">Measured by ms-enclave bench</title>',
        f'  <rect x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}" rx="10" fill="#fafafa" '
        'stroke="#cfd8dc"/>',
    ]
    top = 0
    for panel in panels:
        parts += _panel(panel, top)
        top += _HEAD + _STEP * len(panel.bars) + 12
    parts.append(_text(24, height - 16, footer, size=11, colour="#546e7a"))
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, top: int) -> Iterable[str]:
    yield _text(24, top + 30, panel.heading, weight=600, size=15)
    scale = _Scale([bar.value for bar in panel.bars] + ([panel.mark] if panel.mark else []))
    for number, bar in enumerate(panel.bars):
        y = top + _HEAD + _STEP * number
        yield _text(_LEFT - 10, y + 14, bar.label, anchor="end", size=12)
        width = scale.length(bar.value)
        yield (
            f'  <rect x="{_LEFT}" y="{y + 2}" width="{width:.1f}" height="16" rx="2" '
            f'fill="{bar.colour}"/>'
        )
        after = max(width, scale.length(panel.mark)) if panel.mark else width
        yield _text(_LEFT + after + 8, y + 14, bar.text, size=12, colour="#37474f")
    if panel.mark is not None:
        x = _LEFT + scale.length(panel.mark)
        bottom = top + _HEAD + _STEP * len(panel.bars)
        yield (
            f'  <line x1="{x:.1f}" y1="{top + _HEAD - 4}" x2="{x:.1f}" y2="{bottom}" '
            'stroke="#37474f" stroke-dasharray="4 3"/>'
        )


class _Scale:
    """Lengths of values on a logarithmic scale that begins a little below the smallest."""

    def __init__(self, values: Sequence[float]) -> None:
        self._low = math.log10(min(values)) - 0.15
        self._span = max(0.3, math.log10(max(values)) - self._low)

    def length(self, value: float) -> float:
        return (math.log10(value) - self._low) / self._span * (_WIDTH - _LEFT - _RIGHT)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 13,
    weight: int = 400,
    colour: str = "#263238",
) -> str:
    return (
        f'  <text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{colour}">{escape(text)}</text>'
    )
