"""What can be said of one type of sandbox on one machine: whether it works, and what there is."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Diagnosis", "FoundSandbox", "Problem"]


class Problem(BaseModel):
    """Something that this machine lacks, and what exactly would give it."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    what: str
    """What is missing and what for."""
    remedy: str
    """A command to run or a setting to change: complete, to be copied."""
    command: str | None = None
    """A line for a shell of this machine that does it, where one does; `sudo` in it as for an
    ordinary user."""
    blocks: bool = True
    """Whether nothing works without it; otherwise a guard is missing or weaker."""


class Diagnosis(BaseModel):
    """Whether a type of sandbox works here, how strong it is and what would make it better."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    sandbox_type: str
    works: bool
    tier: str | None = None
    """The isolation tier of a sandbox made just now; None where none could be made."""
    guards: dict[str, str] = Field(default_factory=dict[str, str])
    """Guards by name: `on`, `off` or `n/a`."""
    by_name: dict[str, dict[str, str]] = Field(default_factory=dict[str, dict[str, str]])
    """Weaker tiers that work here when they are asked for by name, with their guards."""
    problems: list[Problem] = Field(default_factory=list[Problem])


class FoundSandbox(BaseModel):
    """A sandbox, or what is left of one, as somebody sees it who did not make it."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    sandbox_type: str
    id: str
    """The sandbox's own."""
    place: str
    """What its backend calls it."""
    state: str
    """In the words of whoever has it: `running`, `created`, `exited`."""
    created: str = ""
    """When, as ISO 8601."""
    manager: str = ""
    owner: Literal["alive", "gone", "unknown"] = "unknown"
    """Whether the process that made it still lives; on another machine nobody here knows."""
    kept: bool = False
    """Whether it was to stay after its end."""
