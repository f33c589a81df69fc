"""What happens to sandboxes, as others are told of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ms_enclave.model.results import UtcTime

__all__ = ["SandboxEvent"]


class SandboxEvent(BaseModel, defer_build=True):
    """One thing that happened to one sandbox."""

    event: Literal["started", "stopped", "failed", "deleted"]
    """`deleted` is the last: its manager has forgotten it."""
    sandbox_id: str
    sandbox_type: str
    at: UtcTime
    reason: str | None = None
    """Why it failed."""
