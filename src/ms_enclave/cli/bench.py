"""`ms-enclave bench`: measures on this machine what the documentation promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ms_enclave.cli.report import complain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ms_enclave.bench.context import Scale
    from ms_enclave.bench.machine import Machine
    from ms_enclave.bench.run import Measured
    from ms_enclave.bench.table import Row

__all__ = ["bench"]

_EXIT_MISSED = 1


def bench(
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 where a promise is missed by over 25 %.")
    ] = False,
    slack: Annotated[
        float, typer.Option(min=0.0, metavar="FACTOR", help="Multiplies those 25 %.")
    ] = 1.0,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw them into an SVG file as well.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Measure this row only; may be repeated."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave this row out; may be repeated."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rounds; the best one counts (5).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Half a minute: fewer and smaller rounds.")
    ] = False,
    rivals: Annotated[
        bool,
        typer.Option(
            "--rivals",
            help="Install other libraries that do this over Docker, each into an environment of "
            "its own, and measure them beside us.",
        ),
    ] = False,
) -> None:
    """Measure what is promised about speed and size, each beside what you would do instead.

    Takes about two minutes, and a machine that does nothing else.
    """
    import gc

    gc.enable()  # a program that uses us collects, too
    from ms_enclave.bench import machine, report

    rows = _choose(only or [], without or [])
    if rivals:
        from ms_enclave.bench.rivals import make

        make(lambda text: typer.echo(text, err=True))
    facts = machine.look()
    measured = _measure(rows, _scale(rounds, quick), slack if check else None)
    if json:
        from json import dumps

        typer.echo(dumps(report.as_data(measured, facts, slack), indent=2))
    else:
        from rich.console import Console

        report.show(Console(), measured, facts, slack)
    if plot is not None:
        _draw(plot, measured, facts)
    bad = report.missed(measured, slack) if check else []
    bad += [f"could not measure {name}: {text}" for name, text in measured.failed.items()]
    for text in bad:
        complain(text)
    raise typer.Exit(_EXIT_MISSED if bad else 0)


def _choose(names: Sequence[str], without: Sequence[str]) -> list[Row]:
    from ms_enclave.bench.table import ROWS

    known = [row.name for row in ROWS]
    for option, given in (("--only", names), ("--without", without)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise typer.BadParameter(
                f"{option}: no row {', '.join(unknown)}; there are {', '.join(known)}"
            )
    return [row for row in ROWS if (not names or row.name in names) and row.name not in without]


def _scale(rounds: int | None, quick: bool) -> Scale:
    from dataclasses import replace

    from ms_enclave.bench.context import DEFAULT, QUICK

    scale = QUICK if quick else DEFAULT
    return scale if rounds is None else replace(scale, rounds=rounds)


def _measure(rows: Sequence[Row], scale: Scale, slack: float | None) -> Measured:
    """With a slack, what is missed is measured again."""
    import anyio
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ms_enclave.bench import report
    from ms_enclave.bench.run import measure

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # A person sees the bar; it must not take processor time away from what is measured.
    with Progress(
        *columns, console=Console(stderr=True), transient=True, auto_refresh=False
    ) as bar:
        task = bar.add_task("")

        def missed(measured: Measured, row: Row) -> bool:
            return bool(report.missed_of(measured, row, slack or 0.0))

        def told(step: str, done: int, total: int) -> None:
            bar.update(task, description=step, completed=done, total=total, refresh=True)

        return anyio.run(measure, rows, scale, told, None if slack is None else missed)


def _draw(path: str, measured: Measured, facts: Machine) -> None:
    from pathlib import Path

    from ms_enclave.bench.plot import draw

    try:
        Path(path).write_text(draw(measured, facts), encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--plot: cannot write {path}: {error.strerror}") from None
