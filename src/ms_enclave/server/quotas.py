"""How much a tenant may have and do. Pure: figures in, a refusal or the same out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from ms_enclave.errors import QuotaExceededError
from ms_enclave.model.base import StrictModel
from ms_enclave.utils.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ms_enclave.model import SandboxConfig

__all__ = ["Quotas", "Rate", "Share"]

_RETRY_SECONDS = 5.0
"""After which a sandbox may have ended. Nobody knows."""
_ONE_CPU = 1.0
_ONE_MEMORY = 1 << 30


@dataclass(frozen=True)
class Share:
    """What one sandbox takes."""

    cpus: float = 0.0
    memory: int = 0
    disk: int = 0


class Quotas(StrictModel):
    """How much a tenant may have and do. None is no limit; what counts several sandboxes counts
    those that have not ended, and programs of `run_code` while they run.

    Raises:
        ConfigError: a field is unknown or has a value it cannot have.
    """

    what: ClassVar[str] = "quota"

    sandboxes: int | None = Field(default=1000, ge=0)
    """At a time."""
    cpus: float | None = Field(default=None, gt=0)
    """Cores of all together; a sandbox that says nothing of cores counts as one, and gets that."""
    memory: int | str | None = None
    """Bytes, or like `"64g"`, of all together; one without a limit of its own counts as 1 GiB, and
    gets that."""
    disk: int | str | None = None
    """The same for their files; every sandbox has such a limit."""
    snapshots: int | None = Field(default=100, ge=0)
    """That there are, of 1 GiB at most each."""
    ttl: float | None = Field(default=None, gt=0)
    """Seconds that a sandbox may live, and does where it asks for nothing; and that a program of
    `run_code` may run."""
    calls_per_second: float | None = Field(default=None, gt=0)
    """On average; as many as one second has may come at once."""
    calls_at_once: int = Field(default=256, gt=0)
    """Calls that are answered at a time; further ones wait for their turn."""
    body: int | str | None = None
    """Bytes of a request's largest body, or like `"1m"`, where the server's own bound is higher."""

    @field_validator("memory", "disk", "body", mode="after")
    @classmethod
    def _in_bytes(cls, value: Any) -> Any:
        return None if value is None else parse_size(value)

    def settle(self, config: SandboxConfig) -> SandboxConfig:
        """The same config with what holds where it says nothing.

        Raises:
            QuotaExceededError: it is to live too long.
        """
        limits, more = config.resolve_limits(), dict[str, Any]()
        if self.cpus is not None and limits.cpu is None:
            more["cpu_limit"] = min(_ONE_CPU, self.cpus)
        if self.memory is not None and limits.memory is None:
            more["memory_limit"] = min(_ONE_MEMORY, parse_size(self.memory))
        if self.ttl is not None and config.ttl is None:
            more["ttl"] = self.ttl
        elif config.ttl is not None:
            self.check_ttl(config.ttl)
        return config.model_copy(update=more) if more else config

    def check_ttl(self, seconds: float) -> None:
        """See that a sandbox may live so long.

        Raises:
            QuotaExceededError: it may not; waiting does not help.
        """
        if self.ttl is not None and seconds > self.ttl:
            raise QuotaExceededError(f"a sandbox of this tenant may live {self.ttl:g} s at most")

    def check(self, present: Iterable[Share], one: Share) -> None:
        """See that a tenant may have one more.

        Raises:
            QuotaExceededError: it may not; the message has the figures.
        """
        have = list(present)
        refused = list(self._refusals(have, one))
        if refused:
            alone = any(self._refusals([], one))
            raise QuotaExceededError(
                f"more than this tenant may have: {'; '.join(refused)}",
                retry_after=None if alone else _RETRY_SECONDS,
                remedy=None if alone else "end a sandbox, or wait until one ends",
            )

    def tell(self, present: Iterable[Share]) -> dict[str, dict[str, float | None]]:
        """What a tenant has of what it may have; None where there is no limit."""
        have = list(present)
        told: dict[str, dict[str, float | None]] = {
            "sandboxes": {"taken": len(have), "most": self.sandboxes}
        }
        for name in ("cpus", "memory", "disk"):
            taken = sum(getattr(each, name) for each in have)
            told[name] = {"taken": taken, "most": getattr(self, name)}
        return told

    def _refusals(self, have: list[Share], one: Share) -> Iterator[str]:
        if self.sandboxes is not None and len(have) >= self.sandboxes:
            yield f"sandboxes ({len(have)} of {self.sandboxes})"
        for name in ("cpus", "memory", "disk"):
            most: Any = getattr(self, name)
            taken, wanted = sum(getattr(each, name) for each in have), getattr(one, name)
            if most is not None and taken + wanted > most:
                yield f"{name} ({taken:g} of {most:g}, and {wanted:g} wanted)"


def share_of(config: SandboxConfig) -> Share:
    """What a sandbox of that config takes."""
    limits = config.resolve_limits()
    return Share(limits.cpu or 0.0, limits.memory or 0, limits.disk)


class Rate:
    """Calls that come too quickly, on a clock that never jumps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = clock()
        self._left: float | None = None

    def take(self, per_second: float | None) -> None:
        """One call is made.

        Raises:
            QuotaExceededError: it comes too early; it says when it may come.
        """
        now = self._clock()
        passed, self._at = now - self._at, now
        if per_second is None:
            self._left = None
            return
        most = max(1.0, per_second)
        left = most if self._left is None else min(most, self._left + passed * per_second)
        self._left = left
        if left < 1:
            raise QuotaExceededError(
                f"this tenant makes more than {per_second:g} calls a second",
                retry_after=(1 - left) / per_second,
            )
        self._left = left - 1
