# ruff: noqa: E402 - what is to be rewritten must be named before it is imported
"""The contract suites: every promise of a sandbox, a tool and a manager, once, for any of them.

They are plain pytest classes, to be run with anyio's plug-in (`anyio_mode = "auto"` and a fixture
`anyio_backend` that returns "asyncio"). Somebody who writes a backend subclasses a suite in a test
file and says how to make one:

    class TestMyBox(SandboxContract, SandboxLifeContract):
        sandbox_type = "my_box"

A suite asks a sandbox only for what it says it can do (`capabilities`) and for what the subclass
says its machine can hold (`isolated`, `bounded`).
"""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as error:
    if error.name != "pytest":
        raise
    # Who uses the package needs no test runner; who tests a backend is told.
    raise ModuleNotFoundError(
        "ms_enclave.testing needs pytest; what to do: pip install pytest", name="pytest"
    ) from None

# Else a failing assert of a suite would not say what the values were.
_SUITES = """
    _background _bounds _checkpoints _code _commands _files _forks _kernels _life _manager _pause
    _ports _shells _suite _terminals _tool _watch
"""
for _name in _SUITES.split():
    pytest.register_assert_rewrite(f"{__name__}.{_name}")

from ms_enclave.testing._background import BackgroundContract
from ms_enclave.testing._bounds import SandboxBoundsContract
from ms_enclave.testing._checkpoints import CheckpointContract
from ms_enclave.testing._code import CodeContract
from ms_enclave.testing._commands import CommandContract
from ms_enclave.testing._files import FilesContract
from ms_enclave.testing._forks import ForkContract
from ms_enclave.testing._kernels import KernelContract
from ms_enclave.testing._life import SandboxLifeContract
from ms_enclave.testing._manager import SandboxManagerContract
from ms_enclave.testing._pause import PauseContract
from ms_enclave.testing._ports import PortsContract
from ms_enclave.testing._shells import ShellContract
from ms_enclave.testing._suite import SandboxSuite
from ms_enclave.testing._terminals import TerminalContract
from ms_enclave.testing._tool import ToolContract
from ms_enclave.testing._watch import WatchContract

__all__ = [
    "BackgroundContract",
    "CheckpointContract",
    "CodeContract",
    "CommandContract",
    "FilesContract",
    "ForkContract",
    "KernelContract",
    "PauseContract",
    "PortsContract",
    "SandboxBoundsContract",
    "SandboxContract",
    "SandboxLifeContract",
    "SandboxManagerContract",
    "SandboxSuite",
    "ShellContract",
    "TerminalContract",
    "ToolContract",
    "WatchContract",
]


class SandboxContract(
    CommandContract,
    BackgroundContract,
    CodeContract,
    FilesContract,
    WatchContract,
    PortsContract,
    PauseContract,
    SandboxBoundsContract,
    TerminalContract,
    ShellContract,
):
    """Everything that is promised about a running sandbox, whoever made the handle."""
