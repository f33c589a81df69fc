from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from ms_enclave.manager.local_manager import LocalSandboxManager
from tests.unit.manager.nothing import Script, installed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(timezone.utc) + self.ahead

    def pass_(self, **amount: float) -> None:
        self.ahead += timedelta(**amount)


@pytest.fixture
def script() -> Iterator[Script]:
    with installed() as script:
        yield script


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def manager(script: Script, time: Time) -> AsyncIterator[LocalSandboxManager]:
    async with LocalSandboxManager(clock=time) as manager:
        yield manager
