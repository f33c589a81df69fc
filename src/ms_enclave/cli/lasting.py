"""For commands that stay."""

from __future__ import annotations

import gc

__all__ = ["stay"]


def stay() -> None:
    """Look for garbage from now on, though not among what was imported: who starts quickly does
    without, and who stays would keep every sandbox that ever was, with all of its output."""
    gc.freeze()
    gc.enable()
