"""How long a first sandboxed program takes, from nothing, against a plain Python.

The measured programs take turns, so that a machine that becomes slower meanwhile is as slow for
all of them. A machine's own start-up hooks (``.pth`` files that run code) would make plain Python
slower and flatter us: they are listed with the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

TOLERANCE = 1.25
"""A target counts as missed when it is missed by more than a quarter."""

BIN = Path(sys.executable).parent
PROGRAMS = {
    "python -I -S -c": [sys.executable, "-I", "-S", "-c", "print(1)"],
    "python -c": [sys.executable, "-c", "print(1)"],
    "import ms_enclave": [sys.executable, "-c", "import ms_enclave; print(1)"],
    "import ms_enclave.model": [sys.executable, "-c", "import ms_enclave.model; print(1)"],
    "ms-enclave run -c": [str(BIN / "ms-enclave"), "run", "-c", "print(1)"],
}


def once(argv: list[str]) -> float:
    """Milliseconds from the start of a program to its end."""
    begun = time.perf_counter()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    taken = (time.perf_counter() - begun) * 1000
    if done.stdout != "1\n":
        raise SystemExit(f"{argv} printed {done.stdout!r}: {done.stderr}")
    return taken


def measure(rounds: int) -> dict[str, float]:
    """The median of every program, in milliseconds."""
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(rounds + 1):
        for name, argv in PROGRAMS.items():
            milliseconds = once(argv)
            if number > 0:  # the first round only warms the page cache
                taken[name].append(milliseconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def hooks() -> list[str]:
    """The start-up files of this environment that run code."""
    folder = Path(sysconfig.get_path("purelib"))
    return sorted(
        path.name
        for path in folder.glob("*.pth")
        if any(line.startswith(("import ", "import\t")) for line in path.read_text().splitlines())
    )


def targets(median: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What is promised, as (measured, allowed) in milliseconds."""
    plain = median["python -c"]
    return {
        "a cold run, whole": (median["ms-enclave run -c"], 300.0),
        "import ms_enclave beyond Python": (median["import ms_enclave"] - plain, 20.0),
        "import ms_enclave.model beyond Python": (
            median["import ms_enclave.model"] - plain,
            300.0,
        ),
    }


def main() -> int:
    """Measure and print; with ``--check``, 1 where a target is missed by more than a quarter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()

    median = measure(options.rounds)
    plain = median["python -c"]
    promised = targets(median)
    missed = [name for name, (got, most) in promised.items() if got > most * TOLERANCE]
    if options.json:
        print(json.dumps({"median_ms": median, "targets_ms": promised, "hooks": hooks()}))
    else:
        for name, value in median.items():
            print(f"{name:26} {value:8.1f} ms   {value / plain:5.2f} x python -c")
        for name, (got, most) in promised.items():
            print(f"{name:40} {got:8.1f} ms of {most:.0f} ms")
        if hooks():
            print("start-up hooks in this environment:", ", ".join(hooks()))
    if options.check and missed:
        print("missed:", "; ".join(missed), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
