"""How long a sandbox may live, as arithmetic."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone

import pytest

from ms_enclave.manager._policy import Facts, Lifetimes, aware, make_clock, seconds_left

NOW = datetime(2026, 1, 10, tzinfo=timezone.utc)
LIFETIMES = Lifetimes()


def facts(*, ended: bool = False, age: float = 0, still: float = 0, **more: object) -> Facts:
    return Facts(
        ended=ended,
        created_at=NOW - timedelta(seconds=age),
        updated_at=NOW - timedelta(seconds=still),
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (facts(), 48 * 3600),
        (facts(age=48 * 3600), 0),
        (facts(age=49 * 3600, still=49 * 3600), -3600),
        (facts(ended=True, age=100 * 3600), 3600),
        (facts(ended=True, still=3601), -1),
        (facts(age=100 * 3600, expires_at=NOW + timedelta(seconds=5)), 5),
        (facts(age=1, expires_at=NOW - timedelta(seconds=5)), -5),
        (facts(idle_timeout=10, idle_seconds=4), 6),
        (facts(idle_timeout=10, idle_seconds=0, expires_at=NOW + timedelta(seconds=5)), 5),
        (facts(ended=True, idle_timeout=10, idle_seconds=999), 3600),
    ],
)
def test_what_is_left(given: Facts, left: float) -> None:
    assert seconds_left(given, LIFETIMES, NOW) == left


def test_without_a_clean_up_only_its_own_limits_end_a_sandbox() -> None:
    assert math.isinf(seconds_left(facts(age=1e9), Lifetimes.unlimited(), NOW))
    ttl = facts(expires_at=NOW)
    assert seconds_left(ttl, Lifetimes.unlimited(), NOW) == 0


def test_a_time_without_zone_is_local() -> None:
    local = datetime.now()
    assert abs(aware(local) - datetime.now(timezone.utc)) < timedelta(seconds=5)
    assert aware(NOW) is NOW


def test_the_clock_goes_on() -> None:
    clock = make_clock()
    first = clock()
    assert first.tzinfo is timezone.utc
    assert clock() >= first
