"""What a sandbox can go back to."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ms_enclave.model.results import UtcTime

__all__ = ["MOST_CHECKPOINTS", "Checkpoint", "FileChange"]

MOST_CHECKPOINTS = 32
"""Those of a sandbox that there are at all; older ones are forgotten."""


class Checkpoint(BaseModel, defer_build=True):
    """How a sandbox was at one moment."""

    id: str
    name: str | None = None
    parent: str | None = None
    """The id of the checkpoint that the sandbox had been at, or gone on from, before."""
    memory: bool
    """Whether it has the kernel as it was, and not the files alone."""
    created_at: UtcTime


class FileChange(BaseModel, defer_build=True):
    """One thing that is not the same in the files of a sandbox at two moments."""

    path: str
    change: Literal["added", "changed", "removed"]
    """`changed`: its contents, type, mode, owner or attributes, or where it leads; times do not
    count."""
    type: Literal["file", "directory", "symlink", "other"]
    """What it became, or was."""
