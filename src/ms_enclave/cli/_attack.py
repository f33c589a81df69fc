"""The scorecard of `ms-enclave doctor --attack`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from ms_enclave.attack import Finding
    from ms_enclave.model.diagnosis import Diagnosis

    Scores = dict[str, list[Finding]]

__all__ = ["as_json", "attack", "is_open", "show"]

_MARKS = {
    "held": "[green]held[/]", "bounded": "[yellow]bounded[/]",
    "open": "[bold red]OPEN[/]", "vacuous": "[bold red]not tried[/]",
}  # fmt: skip


async def attack(found: Sequence[Diagnosis], console: Console, *, exhaust: bool) -> Scores:
    """Run every case against every type, and every weaker tier, that works; and every bomb.

    Raises:
        CapabilityError: nothing outside holds what a bomb would use up.
    """
    from rich.progress import Progress

    from ms_enclave.attack import BOMBS, CASES, run_cases
    from ms_enclave.boxes.factory import SandboxFactory

    kinds: list[tuple[str, str, dict[str, Any]]] = []
    for each in found:
        if each.works and each.tier != "none":
            kinds.append((each.sandbox_type, each.sandbox_type, {}))
        name = each.sandbox_type
        kinds += [(f"{name}, {tier}", name, {"isolation": tier}) for tier in each.by_name]
    scores: Scores = {}
    cases = (*CASES, *BOMBS) if exhaust else CASES
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("attacking", total=len(kinds) * len(cases))
        for title, name, config in kinds:
            rows = scores[title] = []
            async for finding in run_cases(
                lambda limits, name=name, config=config: SandboxFactory.create_sandbox(
                    name, {**config, **limits}
                ),
                cases,
            ):
                rows.append(finding)
                progress.advance(task)
    return scores


def is_open(scores: Scores) -> bool:
    """Whether anything went through that is not to, or could not be tried."""
    return any(row.outcome in ("open", "vacuous") for rows in scores.values() for row in rows)


def as_json(scores: Scores) -> dict[str, list[dict[str, Any]]]:
    """The same for programs."""
    return {
        title: [
            {
                "number": row.case.number,
                "case": row.case.name,
                "outcome": row.outcome,
                "tried": row.tried,
                "went": dict(row.went),
                "detail": row.detail,
            }
            for row in rows
        ]
        for title, rows in scores.items()
    }


def show(console: Console, scores: Scores) -> None:
    """Print a table, and what went through."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title="What sandboxes withstand here", title_justify="left")
    table.add_column("", justify="right", style="dim")
    table.add_column("an attempt to")
    for title in scores:
        table.add_column(escape(title))
    for rows in zip(*scores.values(), strict=True):
        case = rows[0].case
        table.add_row(str(case.number), case.tries, *(_MARKS[row.outcome] for row in rows))
    console.print(table)
    for title, rows in scores.items():
        for row in rows:
            what = "; ".join(row.went) or row.detail
            if row.outcome != "held":
                text = f"{title}: {row.case.tries}: {_MARKS[row.outcome]}, {escape(what)}"
                console.print(text, highlight=False)
    if any(row.outcome == "bounded" for rows in scores.values() for row in rows):
        console.print(
            "bounded: what went through is what a guard holds that is off there (above), or was "
            "answered by a kernel of the sandbox's own"
        )
