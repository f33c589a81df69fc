"""Every sandbox keeps each promise of forks, checkpoints and atomic cells, or says it has none."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from ms_enclave.testing import CheckpointContract, ForkContract
from tests.contract.boxes import (
    Cold,
    Landlock,
    NoGroups,
    NoLayers,
    Process,
    Subprocess,
    needs_process,
)
from tests.support.interpreters import bare_python
from tests.support.served import OverHttp


@needs_process
class TestProcess(Process, ForkContract, CheckpointContract):
    config: ClassVar[dict[str, Any]] = {"python": bare_python()}


@needs_process
class TestIPython(Process, ForkContract, CheckpointContract):
    config: ClassVar[dict[str, Any]] = {"python": sys.prefix}


@needs_process
class TestProcessOverHttp(OverHttp, Process, ForkContract, CheckpointContract):
    config: ClassVar[dict[str, Any]] = {"python": bare_python()}


@needs_process
class TestNoGroups(NoGroups, ForkContract, CheckpointContract):
    config: ClassVar[dict[str, Any]] = {"python": bare_python()}


class TestSubprocess(Subprocess, ForkContract, CheckpointContract):
    pass


@needs_process
class TestCold(Cold, ForkContract, CheckpointContract):
    pass


@needs_process
class TestNoLayers(NoLayers, ForkContract, CheckpointContract):
    pass


class TestLandlock(Landlock, ForkContract, CheckpointContract):
    pass
