"""Figures that callers import by name."""

from __future__ import annotations

__all__ = ["DEFAULT_POOL_EXECUTION_TIMEOUT"]

DEFAULT_POOL_EXECUTION_TIMEOUT = 3600
"""Seconds that a pooled execution may wait for its sandbox where the caller names none."""
