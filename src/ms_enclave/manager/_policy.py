"""How long a sandbox may live. Pure: facts and a time in, seconds out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

__all__ = ["Clock", "Facts", "Lifetimes", "aware", "make_clock", "moment_after", "seconds_left"]

Clock = Callable[[], datetime]

_LONGEST = 1e9
"""Seconds, 31 years: what is longer is for ever, and dates end before that of any number."""


@dataclass(frozen=True)
class Lifetimes:
    """What holds for every sandbox that asks for nothing else, in seconds."""

    max_age: float = 48 * 3600.0
    """From its creation, in whatever unfinished state."""
    retention: float = 3600.0
    """From the end of a STOPPED or ERROR one, which is listed until then."""

    @classmethod
    def unlimited(cls) -> Lifetimes:
        """Only what a sandbox asks for itself."""
        return cls(math.inf, math.inf)


@dataclass(frozen=True)
class Facts:
    """One sandbox as its lifetime is concerned."""

    ended: bool
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    """Given by its `ttl` or a renewal: takes the place of `max_age`."""
    idle_seconds: float = 0.0
    idle_timeout: float | None = None


def seconds_left(facts: Facts, lifetimes: Lifetimes, now: datetime) -> float:
    """How long it may still stay; 0 or less: its time is over. Infinite where nothing limits it."""
    if facts.ended:
        return lifetimes.retention - (now - facts.updated_at).total_seconds()
    if facts.expires_at is not None:
        left = (facts.expires_at - now).total_seconds()
    else:
        left = lifetimes.max_age - (now - facts.created_at).total_seconds()
    if facts.idle_timeout is not None:
        left = min(left, facts.idle_timeout - facts.idle_seconds)
    return left


def moment_after(now: datetime, seconds: float) -> datetime:
    """When so many seconds are over."""
    return now + timedelta(seconds=min(seconds, _LONGEST))


def make_clock() -> Clock:
    """The time of day as it is now, carried on by the monotonic clock: it never jumps."""
    start, ticks = datetime.now(timezone.utc), time.monotonic()
    return lambda: start + timedelta(seconds=time.monotonic() - ticks)


def aware(moment: datetime) -> datetime:
    """The same moment with its zone; one without is local time, as `datetime.now()` gives it."""
    return moment if moment.tzinfo is not None else moment.astimezone()
