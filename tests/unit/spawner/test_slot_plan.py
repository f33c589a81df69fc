"""What an init does, call by call, as it was looked at: what changes it changes this too.

A machine shows only what it has: a file that its /proc lacks needs no mask, a given root is a
special case. So the plan is written down as if everything were there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ms_enclave.spawner import slot
from ms_enclave.spawner.steps import EARLIER, Program

if TYPE_CHECKING:
    import pytest

    from ms_enclave.spawner.steps import Step

GOLDEN = Path(__file__).with_name("slot_plan.txt")
LAST_CAPABILITY = int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def words(step: Step) -> str:
    """The call with its arguments."""
    said = [
        "earlier" if argument is EARLIER
        else f"filter {argument.code.decode()}" if isinstance(argument, Program)
        else repr(argument)
        for argument in step.arguments
    ]  # fmt: skip
    return f"{step.title}: {step.call}({', '.join(said)})"


def plan(root_mode: bool, image: str) -> list[str]:
    steps = slot.init_steps(root_mode, "box", {0, 1}, ("file", "folder"), image, b"of an init", 6)
    return [words(step) for step in (*steps, *slot.network_steps())]


def test_the_plan_is_the_one_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    dropped = [
        f"give up capabilities: prctl(24, {number}, 0, 0, 0)"
        for number in range(LAST_CAPABILITY + 1)
    ]
    said: list[str] = []
    for root_mode, image in ((True, ""), (False, ""), (True, "/image")):
        rows = plan(root_mode, image)
        at = rows.index(dropped[0])
        assert rows[at : at + len(dropped)] == dropped
        rows[at : at + len(dropped)] = ["give up capabilities: every one that the kernel knows"]
        said += [f"# root_mode={root_mode} image={image!r}", *rows]
    if os.environ.get("WRITE_POLICY"):
        GOLDEN.write_text("\n".join(said) + "\n")
    assert said == GOLDEN.read_text().splitlines()
