"""What a program may use, as callers say it and as a sandbox enforces it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from ms_enclave.model.base import StrictModel
from ms_enclave.utils.sizes import parse_size

__all__ = ["DEFAULT_LIMITS", "Limits", "ResolvedLimits", "resolve"]


class Limits(StrictModel):
    """Limits of one call. What is None is left to the sandbox's config.

    A call may take longer than the config says, but never use more of anything else.
    """

    what: ClassVar[str] = "limit"

    timeout: float | None = Field(default=None, gt=0)
    """Seconds of wall time."""
    cpu_time_limit: float | None = Field(default=None, gt=0)
    """Seconds of processor time."""
    memory_limit: int | str | None = None
    """Bytes, or like `"512m"`."""
    disk_limit: int | str | None = None
    """Bytes that the sandbox's files may take, or like `"512m"`."""
    file_size_limit: int | str | None = None
    """Bytes of the largest file, or like `"512m"`."""
    cpu_limit: float | None = None
    """Processor cores."""
    pids_limit: int | None = Field(default=None, gt=0)
    """Processes and threads at a time."""
    nofile_limit: int | None = Field(default=None, gt=0)
    """Open files of each process."""
    output_limit: int | None = Field(default=None, ge=0)
    """Bytes kept of each output stream."""
    output_action: Literal["truncate", "kill"] | None = None
    """What happens beyond that: the rest is drained and counted, or the program is killed."""

    @field_validator("memory_limit", "disk_limit", "file_size_limit", mode="before")
    @classmethod
    def _check_size(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return None
        name = (info.field_name or "").replace("_", " ")
        if parse_size(value, name) == 0:
            raise ValueError(f"{name[0].upper()}{name[1:]} must be positive")
        return value

    @field_validator("output_limit", "pids_limit", "nofile_limit", mode="before")
    @classmethod
    def _check_count(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a number, not a truth value")  # noqa: TRY004 - pydantic's way
        if isinstance(value, str) and info.field_name == "output_limit":
            return parse_size(value, "output limit")
        return value

    @field_validator("cpu_limit", mode="after")
    @classmethod
    def _check_cpu(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError("CPU limit must be positive")
        return value


@dataclass(frozen=True)
class ResolvedLimits:
    """The limits that hold for one call: all of them, as plain figures."""

    timeout: float = 30.0
    """Seconds."""
    cpu_time: float | None = None
    """Seconds; None for no limit."""
    memory: int | None = None
    """Bytes; None for no limit."""
    disk: int = 256 << 20
    file_size: int = 256 << 20
    cpu: float | None = None
    """Cores; None for no limit."""
    pids: int = 128
    nofile: int = 1024
    output: int = 10 << 20
    """Bytes of each stream."""
    output_action: str = "truncate"


DEFAULT_LIMITS = ResolvedLimits()
"""What holds where nobody says anything. A sandbox always has a bound on time, disk, processes,
open files and output."""


def resolve(
    config: Limits, per_call: Limits | None = None, timeout: float | None = None
) -> ResolvedLimits:
    """The limits of one call. Pure.

    Args:
        timeout: seconds; goes before the `timeout` of `per_call`, and that before the config's.
    """
    call = per_call or _none()
    disk = _least(_size(config.disk_limit), _size(call.disk_limit)) or DEFAULT_LIMITS.disk
    file_size = _least(_size(config.file_size_limit), _size(call.file_size_limit), disk)
    return ResolvedLimits(
        timeout=timeout or call.timeout or config.timeout or DEFAULT_LIMITS.timeout,
        cpu_time=_least(config.cpu_time_limit, call.cpu_time_limit),
        memory=_least(_size(config.memory_limit), _size(call.memory_limit)),
        disk=disk,
        file_size=disk if file_size is None else file_size,
        cpu=_least(config.cpu_limit, call.cpu_limit),
        pids=_bounded(config.pids_limit, call.pids_limit, DEFAULT_LIMITS.pids),
        nofile=_bounded(config.nofile_limit, call.nofile_limit, DEFAULT_LIMITS.nofile),
        output=_bounded(config.output_limit, call.output_limit, DEFAULT_LIMITS.output),
        output_action=call.output_action or config.output_action or DEFAULT_LIMITS.output_action,
    )


@functools.cache
def _none() -> Limits:
    """No limits; made once, when they are asked for first, since making some takes longer than all
    the rest of `resolve`."""
    return Limits()


def _size(value: int | str | None) -> int | None:
    return None if value is None else parse_size(value)


def _least(*values: Any) -> Any:
    given = [value for value in values if value is not None]
    return min(given) if given else None


def _bounded(config: int | None, call: int | None, default: int) -> int:
    own = default if config is None else config
    return own if call is None else min(own, call)
