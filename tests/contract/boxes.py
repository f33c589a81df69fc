"""The backends that the suites run over: one class and one mark here for a further one."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tests.support import subprocess_box

__all__ = ["Process", "Subprocess", "needs_process"]

subprocess_box.install()


class Subprocess:
    """The guest as a plain child: everything but the walls."""

    sandbox_type: ClassVar[str] = "subprocess"
    isolated: ClassVar[bool] = False
    bounded: ClassVar[frozenset[str]] = frozenset()


class Process:
    """The embedded sandbox."""

    sandbox_type: ClassVar[str] = "process"


needs_process = pytest.mark.namespaces
"""Marks a suite that runs over the embedded sandbox."""
