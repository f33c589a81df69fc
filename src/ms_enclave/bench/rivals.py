"""Other Python libraries that do the same over the same engine, each in an environment of its own.

They are measured where their environments are there; `make` makes them, which takes a network and a
minute. Their import names may be ours, so each runs in a process and an interpreter of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ms_enclave.bench.programs import clean

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LLM_SANDBOX", "OLDER", "Rival", "find", "folder", "make"]

LLM_SANDBOX, OLDER = "llm-sandbox", "older ms-enclave"
_WANTED = {LLM_SANDBOX: "llm-sandbox[docker]", OLDER: "ms-enclave[docker]<0.1"}
_SCRIPT = str(Path(__file__).with_name("_rival.py"))
_PATIENCE = 120.0
_INSTALL = 600.0
_MOST_TEXT = 200


@dataclass
class Rival:
    """One of them that is installed. It says once why it could not be measured, and is left out, or
    only its notebooks are."""

    name: str
    python: str
    note: Callable[[str], object]
    _failed: set[str] = field(default_factory=set[str])

    def measure(self, what: str, image: str, count: int) -> list[float]:
        """Milliseconds, one a sample; none where it does not work here."""
        part = "its notebook" if what == "notebook" else "it"
        if part in self._failed:
            return []
        words = [self.python, _SCRIPT, self.name, what, image, str(count)]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=_PATIENCE, check=False, env=clean(),
                cwd="/",
            )  # fmt: skip
            samples = json.loads(done.stdout) if done.returncode == 0 else None
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return self._fail(part, str(error))
        if samples is None:
            return self._fail(part, done.stderr)
        return [float(sample) for sample in samples]

    def _fail(self, part: str, text: str) -> list[float]:
        self._failed.add(part)
        said = " ".join(text.split())[-_MOST_TEXT:]
        self.note(f"{self.name}: {part} does not work here, left out: {said}")
        return []


def folder() -> Path:
    """Where their environments are."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ms-enclave" / "bench-rivals"


def _place(name: str) -> Path:
    return folder() / name.replace(" ", "-")


def find(note: Callable[[str], object]) -> list[Rival]:
    """Those whose environments are there."""
    found: list[Rival] = []
    for name in _WANTED:
        python = _place(name) / "bin" / "python"
        if python.exists():
            found.append(Rival(name, str(python), note))
        else:
            note(f"{name}: not measured; --rivals installs it for that")
    return found


def make(say: Callable[[str], object]) -> None:
    """Make the environments that are not there. What cannot be had is said and left out."""
    for name, package in _WANTED.items():
        place = _place(name)
        if (place / "bin" / "python").exists():
            continue
        say(f"installing {name} into {place}")
        unfinished = place.with_name(place.name + f".{os.getpid()}")
        try:
            venv.create(unfinished, symlinks=True, with_pip=False)
            _install(unfinished, package)
            unfinished.rename(place)
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            text = getattr(error, "stderr", None) or str(error)
            say(f"{name} cannot be installed: {' '.join(str(text).split())[-_MOST_TEXT:]}")


def _install(place: Path, package: str) -> None:
    """By our own interpreter's pip, for the interpreter of that place."""
    words = [sys.executable, "-m", "pip", "--python", str(place), "install", "-q", package]
    subprocess.run(words, capture_output=True, text=True, timeout=_INSTALL, check=True)
