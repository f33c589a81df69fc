"""The entry point of the command `ms-enclave`: makes starting cheap, then does as it is told."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ms_enclave.cli.main import app

__all__ = ["app", "run_cmd"]

_EXIT_BROKEN_PIPE = 141


def run_cmd() -> None:
    """Do what the command line of this process says, and end the process with its exit code."""
    # Imports make many objects and no garbage: looking for some takes a tenth of a cold start.
    gc.disable()
    # As much again goes into looking through every installed package for plug-ins of pydantic,
    # which have no business in a command of ours.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from ms_enclave.cli.main import main

    _leave(main(sys.argv[1:]))


def _leave(status: int) -> None:
    """End the process properly, but without taking the interpreter apart: a tenth of a cold run."""
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or _EXIT_BROKEN_PIPE
    sys.stderr.flush()
    os._exit(status)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ms_enclave.cli.main import app

    return app
