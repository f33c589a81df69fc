"""Real guests, on the Python of the tests and on the oldest and newest that one must run on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.guests import local_guest
from tests.support.interpreters import NEWEST, OLDEST, find_python

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.guests import Guest


@pytest.fixture(params=["this", OLDEST, NEWEST], ids=["this", "oldest", "newest"])
def python(request: pytest.FixtureRequest) -> str:
    """An interpreter to run a guest with."""
    if request.param == "this":
        return sys.executable
    found = find_python(request.param)
    if found is None:
        pytest.skip(f"there is no Python {'.'.join(map(str, request.param))} on this machine")
    return found


@pytest.fixture
async def guest(python: str) -> AsyncGenerator[Guest]:
    """A connected guest with a folder of its own."""
    async with local_guest(python) as started:
        yield started
