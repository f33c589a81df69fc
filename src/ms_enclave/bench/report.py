"""What was measured, as data and as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ms_enclave.bench.figures import TOLERANCE, Standing, quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ms_enclave.bench.figures import Figure, Line, Series
    from ms_enclave.bench.machine import Machine
    from ms_enclave.bench.run import Measured
    from ms_enclave.bench.table import Row

__all__ = ["SCHEMA", "amount", "as_data", "missed", "missed_of", "show"]

SCHEMA = 1
"""Goes up when what `--json` prints changes its meaning."""

_COLOURS = {
    Standing.MET: "green", Standing.CLOSE: "yellow", Standing.MISSED: "red",
    Standing.UNKNOWN: "dim",
}  # fmt: skip


def missed(measured: Measured, slack: float) -> list[str]:
    """The promises that `--check` complains about, in words."""
    return [text for row in measured.rows for text in missed_of(measured, row, slack)]


def missed_of(measured: Measured, row: Row, slack: float) -> list[str]:
    """Those of one row."""
    return [
        f"{line.figure.name}: {_measured_of(line)}, promised {_target_of(line)}"
        for line in measured.lines(row)
        if line.standing(slack) is Standing.MISSED
    ]


# --- as data ------------------------------------------------------------------------------------


def as_data(measured: Measured, machine: Machine, slack: float) -> dict[str, Any]:
    """The whole of it; docs/bench.md says what each field means."""
    environment = measured.environment
    return {
        "schema": SCHEMA,
        "machine": asdict(machine),
        "environment": {
            "python": environment.python if environment else None,
            "start_up_hooks": list(environment.hooks) if environment else [],
        },
        "scale": asdict(measured.scale),
        "tolerance": TOLERANCE * slack,
        "pace": measured.pace,
        "rows": [_row_as_data(row, measured, slack) for row in measured.rows],
        "left_out": measured.notes,
        "failed": measured.failed,
    }


def _row_as_data(row: Row, measured: Measured, slack: float) -> dict[str, Any]:
    taken = measured.taken.get(row.name, {})
    own = {figure.name: figure for figure in row.figures}
    first = row.figures[0]
    lines = measured.lines(row)
    return {
        "name": row.name,
        "series": [
            {"name": name, "of": "us" if name in own else "baseline"}
            | _series_as_data(series, own.get(name, first))
            for name, series in taken.items()
        ],
        "ratios": [
            {"figure": line.figure.name, "against": line.against, "ratio": line.ratio}
            for line in lines
            if line.against is not None
        ],
        "promises": [
            {
                "figure": line.figure.name,
                "against": line.against,
                "quantile": line.promise.quantile,
                "bound": "at least" if line.promise.at_least else "at most",
                "target": line.promise.target,
                "measured": line.judged,
                "standing": str((line.standing(slack) or Standing.UNKNOWN).value),
            }
            for line in lines
            if line.promise is not None
        ],
    }


def _series_as_data(series: Series, figure: Figure) -> dict[str, Any]:
    samples = series.samples
    return {
        "unit": figure.unit,
        "count": len(samples),
        "best": series.best(more_is_better=figure.more_is_better),
        "min": min(samples),
        "p50": quantile(samples, 0.5),
        "p95": quantile(samples, 0.95),
        "p99": quantile(samples, 0.99),
        "max": max(samples),
        "rounds": [[round(sample, 4) for sample in each] for each in series.rounds],
    }


# --- for a person -------------------------------------------------------------------------------


def show(console: Console, measured: Measured, machine: Machine, slack: float) -> None:
    """Print the table, the machine, and what was left out."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("what", "measured", "ratio", "target", "met?", box=SIMPLE_HEAD, padding=(0, 1))
    for column in table.columns[1:]:
        column.no_wrap = True
    for row in measured.rows:
        for line in measured.lines(row):
            table.add_row(*_cells(line, slack))
        table.add_section()
    console.print(table)
    _show_machine(console, measured, machine, slack)


def _cells(line: Line, slack: float) -> Sequence[str]:
    standing = line.standing(slack)
    part = line.promise.quantile if line.promise else 0.5
    name = line.figure.name
    if line.against is not None:
        name = f"  {line.against}"
    elif part == 1:
        name += ", worst"
    elif part != 0.5:
        name += f", p{part * 100:.0f}"
    return (
        name,
        amount(line.measured if line.against is None else line.baseline, line.figure.unit),
        _times(line.ratio),
        _target_of(line),
        "" if standing is None else f"[{_COLOURS[standing]}]{standing.value}[/]",
    )


def _show_machine(console: Console, measured: Measured, machine: Machine, slack: float) -> None:
    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    say(
        f"{machine.processor}, {machine.processors} processors, turbo {machine.turbo}, Linux "
        f"{machine.kernel}, Python {machine.python}, load {machine.load}"
    )
    if measured.environment is not None:
        say(f"baselines run {machine.interpreter} in a clean virtual environment")
        for hook in measured.environment.hooks:
            say(f"this runs at the start of every Python here: {hook}", "yellow")
    share = f"{TOLERANCE * slack:.0%}"
    say(f"figures: median of the best round; close: missed by no more than {share}")
    if measured.pace > 1:
        say(
            f"a Python starts {measured.pace:.2f} x as slowly here as where promises were made: "
            "times and rates may be missed by as much more"
        )
    for text in machine.warnings():
        say(text, "yellow")
    for text in measured.notes:
        say(text, "dim")
    for name, text in measured.failed.items():
        say(f"{name}: {text}", "red")


def amount(value: float | None, unit: str) -> str:
    """A figure with its unit, no more exact than it is."""
    if value is None:
        return "-"
    digits = 0 if value >= 100 or value == 0 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}".rstrip()


def _times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.2f} x" if ratio > 0.1 else f"1/{1 / ratio:.0f}"


def _measured_of(line: Line) -> str:
    if line.against is None or line.ratio is None:
        return amount(line.measured, line.figure.unit)
    return f"{line.ratio:.3g} x {line.against}"


def _target_of(line: Line) -> str:
    promise = line.promise
    if promise is None:
        return ""
    sign = "≥" if promise.at_least else "≤"
    if promise.against is None:
        return f"{sign} {amount(promise.target, line.figure.unit)}"
    inverse = 1 / promise.target if promise.target else 0
    if promise.target < 1 and abs(inverse - round(inverse)) < 1e-9:
        return f"{sign} 1/{inverse:.0f}"
    return f"{sign} {promise.target:g} x"
