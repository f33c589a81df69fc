"""What a key is: `mse_`, the id by which it is found, and 256 random bits kept nowhere.

At rest there is its SHA-256. What is drawn from so many needs no slow hash: nobody guesses
it by trying.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

__all__ = ["NewKey", "digest_key", "make_key", "read_key"]

_BYTES = 32
_ID_BYTES = 6
_FORM = re.compile(r"mse_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class NewKey:
    """A key as it is once: when it is made."""

    id: str
    """By which it is listed and revoked; no secret."""
    text: str
    """What is sent in the header."""

    @property
    def digest(self) -> bytes:
        """What is kept."""
        return digest_key(self.text)


def make_key() -> NewKey:
    """A key that nobody has had."""
    name = secrets.token_hex(_ID_BYTES)
    return NewKey(name, f"mse_{name}_{secrets.token_urlsafe(_BYTES)}")


def read_key(text: str) -> str | None:
    """The id of a key; None where the text cannot be one."""
    found = _FORM.fullmatch(text)
    return None if found is None else found[1]


def digest_key(text: str) -> bytes:
    """Of one length whatever the text's is."""
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()
