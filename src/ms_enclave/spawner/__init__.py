"""Builds the walls and starts processes behind them: launcher, station, slots, carriers.

Whatever of it runs in those small processes (`python -I -S`) uses the standard library only.
"""

from __future__ import annotations

__all__: list[str] = []
