"""Runs very many atomic cells, a third of which are killed, and compares what there is with a model
after each: `python -m tests.support.atomic_cells [COUNT] [SEED]` prints
what was seen as JSON. docs/measurements/atomic-cells.json is one such run.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from ms_enclave.manager import LocalSandboxManager
from tests.e2e.test_checkpoints import BEGIN, LOOK, Model, some_change
from tests.e2e.test_forks import opened, run

if TYPE_CHECKING:
    from ms_enclave.boxes import Sandbox

__all__ = ["main"]

KILLED = {
    "signal 9": "os.kill(os.getpid(), 9)",
    "memory": "hoard = b'x' * (1 << 30)",
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "endless loop": "while True: pass",
}
ENDLESS = 0.3
"""Seconds that a cell without end has."""


async def see(count: int, seed: int) -> dict[str, Any]:
    """Run so many cells; what became of them."""
    chance, model = random.Random(seed), Model()
    wrong: list[str] = []
    taken: dict[str, list[float]] = {}
    async with LocalSandboxManager() as manager:
        box = await opened(manager)
        await run(box, BEGIN)
        for number in range(1, count + 1):
            end = chance.choice([*KILLED]) if number % 3 == 0 else ""
            begun = time.perf_counter()
            if await one(box, chance, number, model, end):
                wrong.append(f"cell {number} ({end or 'success'}) ended otherwise")
            taken.setdefault(end or "success", []).append((time.perf_counter() - begun) * 1000)
            found = await run(box, LOOK)
            if found != str(model):
                wrong.append(f"after cell {number} ({end or 'success'}): {found}, not {model}")
                break
    return {
        "cells": sum(map(len, taken.values())), "seed": seed, "wrong": wrong,
        "ends": {name: len(each) for name, each in taken.items()},
        "ms_p50": {name: round(statistics.median(each), 2) for name, each in taken.items()},
        "ms_p50_last_hundred": round(statistics.median(taken["success"][-100:]), 2),
    }  # fmt: skip


async def one(box: Sandbox, chance: random.Random, number: int, model: Model, end: str) -> bool:
    """Run a cell, which is to end so; whether it did not."""
    code = "; ".join(some_change(chance, number, model.copy() if end else model) for _ in range(2))
    if end:
        code = f"{code}\n{KILLED[end]}"
    timeout = ENDLESS if end == "endless loop" else 60
    done = await (await box.kernel()).run(code, atomic=True, timeout=timeout)
    return done.success is bool(end)


def main() -> None:
    """Print it; exits with 1 where anything was wrong."""
    given = [int(word) for word in sys.argv[1:]]
    count, seed = given + [1000, 1][len(given) :]
    seen = asyncio.run(see(count, seed))
    print(json.dumps(seen, indent=1))
    sys.exit(bool(seen["wrong"]))


if __name__ == "__main__":
    main()
