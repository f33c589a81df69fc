"""Runs the rows of the table in turns, and keeps what they measured."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ms_enclave.bench import containers, programs
from ms_enclave.bench.context import WARM_UP, Round, open_context
from ms_enclave.bench.figures import USUAL_START, Line, Series, lines_of
from ms_enclave.boxes.factory import SandboxFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ms_enclave.bench.context import Context, Scale
    from ms_enclave.bench.programs import Environment
    from ms_enclave.bench.table import Row

__all__ = ["Measured", "measure"]

_MORE_ROUNDS = 3
_STARTS = 5
_MOST_TEXT = 300


@dataclass
class Measured:
    """What a whole run gave: samples by row and name, and what was left out."""

    rows: list[Row]
    scale: Scale
    environment: Environment | None = None
    taken: dict[str, dict[str, Series]] = field(default_factory=dict[str, dict[str, Series]])
    notes: list[str] = field(default_factory=list[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    """Rows whose measurement broke off, and why."""
    starts: list[float] = field(default_factory=list[float])
    """Milliseconds that a plain Python took to start, over the whole run."""

    @property
    def pace(self) -> float:
        """How many times as long this machine takes as the one that the promises were made on."""
        return max(1.0, statistics.median(self.starts) / USUAL_START) if self.starts else 1.0

    def lines(self, row: Row) -> list[Line]:
        """The lines of one row of the table; the other baselines stand beside its first figure."""
        taken = self.taken.get(row.name, {})
        return [
            replace(line, pace=self.pace)
            for number, figure in enumerate(row.figures)
            for line in lines_of(figure, taken, row.baselines if number == 0 else ())
        ]

    def add(self, row: Row, once: Round) -> None:
        """Keep a round of a row."""
        taken = self.taken.setdefault(row.name, {})
        for name, samples in once.taken.items():
            taken.setdefault(name, Series()).rounds.append(samples)


async def measure(
    rows: Sequence[Row],
    scale: Scale,
    told: Callable[[str, int, int], object],
    doubted: Callable[[Measured, Row], bool] | None = None,
) -> Measured:
    """Measure these rows; `told` hears of each step: its name, its number, and of how many.

    Every round measures every row, so that a machine that becomes slower meanwhile does so for
    all of them. The first round only warms up. Rows that are `doubted` in the end get up to three
    rounds more, because another program on the machine may have been the reason. A row that fails
    is not measured again. Raises what the start of a sandbox raises.
    """
    measured = Measured(list(rows), scale)
    ready = [row for row in rows if _has_what_it_needs(row, measured)]
    async with AsyncExitStack() as stack:
        engine = None
        if any(row.sandbox_type != "process" for row in ready):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="enclave-bench-"))
            engine = containers.find(Path(folder), measured.notes.append)
        ready = [row for row in ready if _has_its_containers(row, engine, measured)]
        steps = [
            (number, row)
            for number in range(scale.rounds + 1)
            for row in ready
            if number <= 1 or not row.once
        ]
        told("starting", 0, len(steps))
        context = await stack.enter_async_context(
            open_context(scale, measured.notes.append, engine)
        )
        measured.environment = context.environment
        for done, (number, row) in enumerate(steps):
            told(row.name if number else f"{row.name} (warming up)", done, len(steps))
            if row.name not in measured.failed:
                await _round(context, row, measured, warming_up=number == 0)
            if number:
                _note_pace(context, measured)
        for _ in range(_MORE_ROUNDS if doubted else 0):
            for row in [row for row in ready if doubted and doubted(measured, row)]:
                told(f"{row.name} (once more)", len(steps), len(steps))
                if row.name not in measured.failed:
                    await _round(context, row, measured, warming_up=False)
                _note_pace(context, measured)
    told("done", len(steps), len(steps))
    return measured


async def _round(context: Context, row: Row, measured: Measured, *, warming_up: bool) -> None:
    taken = Round()
    try:
        await row.measure(replace(context, scale=WARM_UP) if warming_up else context, taken)
    except Exception as error:  # noqa: BLE001 - the other rows still have something to tell
        measured.failed[row.name] = _first_cause(error)
        return
    if not warming_up:
        measured.add(row, taken)


def _note_pace(context: Context, measured: Measured) -> None:
    line = [context.environment.python, "-c", "print(1)"]
    measured.starts += [programs.start(line) for _ in range(_STARTS)]


def _first_cause(error: BaseException) -> str:
    while (inner := getattr(error, "exceptions", None)) is not None:  # a group of a task group
        error = inner[0]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _MOST_TEXT else f"{text[:100]} ... {text[100 - _MOST_TEXT :]}"


def _has_what_it_needs(row: Row, measured: Measured) -> bool:
    missing = [name for name in row.needs if importlib.util.find_spec(name) is None]
    if missing:
        measured.notes.append(f"{row.name}: {', '.join(missing)} is not installed, left out")
    known = row.sandbox_type in SandboxFactory.get_available_types()
    if not known:
        measured.notes.append(f"{row.name}: there is no type {row.sandbox_type}, left out")
    return known and not missing


def _has_its_containers(row: Row, engine: containers.Engine | None, measured: Measured) -> bool:
    if row.sandbox_type == "process":
        return True
    if engine is None:  # of which it was said why
        return False
    missing = row.image is not None and not engine.has(row.image)
    if missing:
        measured.notes.append(f"{row.name}: there is no image {row.image}, left out")
    return not missing
