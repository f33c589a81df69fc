"""Amounts of memory and disk as people write them."""

from __future__ import annotations

import re

__all__ = ["parse_size"]

_SIZE = re.compile(r"([0-9]+)([kmgt]?)(?:i?b)?\Z", re.ASCII | re.IGNORECASE)
_FACTORS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MAX = (1 << 63) - 1


def parse_size(value: int | str, what: str = "size") -> int:
    """Bytes of `512`, `"64k"`, `"512m"`, `"4g"`, `"1t"`; powers of 1024, case does not matter.

    Args:
        what: what the message calls it.

    Raises:
        ValueError: it is no such amount, negative, or more than 2**63 - 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"Invalid {what} format: {value!r} is neither a number nor text")  # noqa: TRY004 - one error for one mistake
    if isinstance(value, str):
        match = _SIZE.match(value.strip()) if len(value) <= 32 else None
        if match is None:
            raise ValueError(
                f"Invalid {what} format: {value!r} (use bytes, or like '512m' or '4g')"
            )
        size = int(match[1]) * _FACTORS[match[2].lower()]
    else:
        size = value
    if size < 0:
        raise ValueError(f"Invalid {what} format: {value!r} is negative")
    if size > _MAX:
        raise ValueError(f"Invalid {what} format: {value!r} is more than {_MAX} bytes")
    return size
