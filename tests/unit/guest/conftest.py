"""Real guests, on the Python of the tests and on the oldest that a guest must run on."""

from __future__ import annotations

import glob
import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.guests import local_guest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.guests import Guest


def oldest_python() -> str | None:
    """A CPython 3.8, from the path or from where pyenv keeps them."""
    root = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    candidates = sorted(glob.glob(f"{root}/versions/3.8.*/bin/python3.8"))
    found = shutil.which("python3.8")
    # The launcher of pyenv is there for every version, installed or not.
    if found and "shims" not in found:
        candidates.append(found)
    return candidates[0] if candidates else None


@pytest.fixture(params=["this", "3.8"])
def python(request: pytest.FixtureRequest) -> str:
    """An interpreter to run a guest with."""
    if request.param == "this":
        return sys.executable
    found = oldest_python()
    if found is None:
        pytest.skip("there is no Python 3.8 on this machine")
    return found


@pytest.fixture
async def guest(python: str) -> AsyncGenerator[Guest]:
    """A connected guest with a folder of its own."""
    async with local_guest(python) as started:
        yield started
