"""`python -m bench`: measures what the documentation promises; see the README beside this."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.environment import Environment, make_environment
from bench.measure import PLAIN, Figures, measure

if TYPE_CHECKING:
    from collections.abc import Sequence

TOLERANCE = 1.25
"""A target counts as missed when it is missed by more than a quarter."""


@dataclass(frozen=True)
class Target:
    """Something promised: what was measured, the figure promised, and which side is good."""

    name: str
    measured: float
    promised: float
    unit: str
    at_least: bool = False

    @property
    def missed(self) -> bool:
        """Whether it is missed by more than a quarter."""
        if self.at_least:
            return self.measured * TOLERANCE < self.promised
        return self.measured > self.promised * TOLERANCE


def targets(figures: Figures) -> list[Target]:
    """Every promise that this measures."""
    plain = figures.median(PLAIN)
    fresh = figures.median("fresh sandbox, print(1)")
    rate = figures.rate("stateless manager.run_code") / figures.rate(PLAIN)
    imported = figures.median("import ms_enclave") - plain
    model = figures.median("import ms_enclave.model") - plain
    return [
        Target("cold run, whole", figures.median("ms-enclave run -c"), 300, "ms"),
        Target("fresh sandbox, warm manager", fresh, 3, "ms"),
        Target("the same, of a python -c", fresh / plain, 1 / 3, "x"),
        Target("true in a running sandbox", figures.median("running sandbox, true"), 4, "ms"),
        Target("stateless runs a second, of python -c", rate, 3.5, "x", at_least=True),
        Target("import ms_enclave, beyond Python", imported, 20, "ms"),
        Target("import ms_enclave.model, beyond Python", model, 300, "ms"),
    ]


def as_data(figures: Figures, found: Sequence[Target], environment: Environment) -> dict[str, Any]:
    """All of it for `--json`: milliseconds, runs a second, ratios to `python -c` in this run."""
    plain = figures.median(PLAIN)
    return {
        "machine": {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "processors": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0],
            "start_up_hooks": environment.hooks,
        },
        "milliseconds": {
            name: {
                "count": len(values),
                "min": min(values),
                "median": figures.median(name),
                "p95": sorted(values)[int(len(values) * 0.95)],
                "of_python": figures.median(name) / plain,
            }
            for name, values in figures.milliseconds.items()
        },
        "per_second": {
            name: {
                "median": figures.rate(name),
                "of_python": figures.rate(name) / figures.rate(PLAIN),
            }
            for name in figures.per_second
        },
        "targets": [
            {"name": t.name, "measured": t.measured, "promised": t.promised, "missed": t.missed}
            for t in found
        ],
    }


def show(console: Console, data: dict[str, Any], found: Sequence[Target]) -> None:
    """Print it for a person."""
    times = Table("milliseconds", "min", "median", "p95", "x python -c", title_justify="left")
    for name, row in data["milliseconds"].items():
        figures = (f"{row[key]:.2f}" for key in ("min", "median", "p95", "of_python"))
        times.add_row(name, *figures)
    rates = Table("runs a second, all processors", "median", "x python -c")
    for name, row in data["per_second"].items():
        rates.add_row(name, f"{row['median']:.0f}", f"{row['of_python']:.2f}")
    promises = Table("promised", "measured", "target", "")
    for target in found:
        sign = "at least" if target.at_least else "at most"
        verdict = "[red]missed[/]" if target.missed else "[green]kept[/]"
        promises.add_row(
            target.name,
            f"{target.measured:.2f} {target.unit}",
            f"{sign} {target.promised:.2f} {target.unit}",
            verdict,
        )
    for table in (times, rates, promises):
        console.print(table)
    machine = data["machine"]
    console.print(
        f"Python {machine['python']}, Linux {machine['kernel']}, {machine['processors']} processors"
        f", load {machine['load']:.1f}. Kept: within a quarter of the target."
    )
    if machine["start_up_hooks"]:
        console.print(f"[red]Start-up hooks slow plain Python:[/] {machine['start_up_hooks']}")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures everything.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    check: Annotated[bool, typer.Option(help="Exit with 1 where a target is missed.")] = False,
) -> None:
    """Measure what is promised about time, each beside a plain `python -c` in the same run."""
    notes = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder, Progress(console=notes, transient=True) as bar:
        task = bar.add_task("measuring", total=rounds + 1)
        environment = make_environment(Path(folder) / "plain")
        figures = anyio.run(measure, rounds, environment, lambda: bar.advance(task))
    found = targets(figures)
    data = as_data(figures, found, environment)
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        show(Console(), data, found)
    missed = [target.name for target in found if target.missed]
    if check and missed:
        notes.print(f"missed: {'; '.join(missed)}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
