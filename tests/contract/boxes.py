"""The backends that the suites run over: one class and one mark here for a further one."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

import ms_enclave
from tests.support import subprocess_box

__all__ = ["Process", "Subprocess", "needs_process"]

subprocess_box.install()

_THERE = (Path(ms_enclave.__file__).parent / "boxes" / "process_sandbox.py").exists()


class Subprocess:
    """The guest as a plain child: everything but the walls."""

    sandbox_type: ClassVar[str] = "subprocess"
    isolated: ClassVar[bool] = False
    bounded: ClassVar[frozenset[str]] = frozenset()


class Process:
    """The embedded sandbox."""

    sandbox_type: ClassVar[str] = "process"


def needs_process(suite: type) -> type:
    """Mark a suite that runs over the embedded sandbox."""
    there = pytest.mark.skipif(not _THERE, reason="this tree has no process sandbox yet")
    return there(pytest.mark.namespaces(suite))
