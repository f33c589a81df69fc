"""The little program that starts another by a loader: run here, and elsewhere by an emulator."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from ms_enclave.boxes._starter import MACHINES, starter

if TYPE_CHECKING:
    from pathlib import Path


def runner(machine: str) -> list[str]:
    """What runs a program of that machine."""
    if machine == platform.machine():
        return []
    found = shutil.which(f"qemu-{machine}") or shutil.which(f"qemu-{machine}-static")
    if found is None:
        pytest.skip(f"no qemu-{machine} (package qemu-user) to run programs of {machine}")
    return [found]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_it_becomes_the_loader_with_more_words(tmp_path: Path, machine: str, count: int) -> None:
    words = [f"word {number}" for number in range(count)]
    # A shell instead of a loader: it shows what it was given.
    script = ["-c", 'for word; do echo "$word"; done; echo "$NAME"; exit 5', "name", *words]
    program = tmp_path / "program"
    program.write_bytes(starter("/bin/sh", script, machine))
    program.chmod(0o755)
    done = subprocess.run(
        [*runner(machine), str(program), "one", "", "three"],
        env={"NAME": "value"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (5, "")
    assert done.stdout.splitlines() == [*words, "one", "", "three", "value"]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_loader_that_is_not_there_is_an_exit_code(tmp_path: Path, machine: str) -> None:
    program = tmp_path / "program"
    program.write_bytes(starter("/nowhere/loader", ["x"], machine))
    program.chmod(0o755)
    done = subprocess.run([*runner(machine), str(program)], check=False)
    assert done.returncode == 126
