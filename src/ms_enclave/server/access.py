"""Who may ask: the one question that the server has about a key, and the answer without tenants."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ms_enclave.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from ms_enclave.manager import SandboxManager
    from ms_enclave.server.policy import Policy

__all__ = ["LEAST_KEY", "Access", "OneKey", "Principal"]

LEAST_KEY = 20
"""Characters that a key has at least."""


async def _always() -> bool:
    """What never changes."""
    return True


@dataclass(frozen=True)
class Principal:
    """Somebody who was let in. What they may do is what their manager lets them do."""

    name: str
    manager: SandboxManager
    """All that they see: no route has any other way to a sandbox."""
    policy: Policy | None = None
    """What they are held to; the server's where None."""
    key: str | None = None
    """The id of their key, for the audit log."""
    is_admin: bool = False
    """Whether they may read the audit log of all."""
    largest_body: int | None = None
    """Bytes of a request of theirs; the server's own bound where None."""
    turn: Callable[[], AbstractAsyncContextManager[object]] = nullcontext
    """What each request of theirs waits for and holds."""
    is_good: Callable[[], Awaitable[bool]] = _always
    """Whether their key is good still: asked while a request goes on. Raises
    StoreUnavailableError where nobody can say."""


class Access(Protocol):
    """Lets people in by their keys."""

    @property
    def needs_key(self) -> bool:
        """Whether nobody is let in without one."""
        ...

    async def authenticate(self, key: str | None) -> Principal | None:
        """Whose key it is; None where it is nobody's. Asked with every request.

        Args:
            key: what the header says; None where there is none.

        Raises:
            QuotaExceededError: they are somebody, and ask too often.
        """
        ...


class OneKey:
    """One manager for all, behind one key or none.

    Args:
        manager: what everybody sees.
        api_key: of 20 characters or more; None lets everybody in.

    Raises:
        ConfigError: the key is shorter, or none that a header can have.
    """

    def __init__(self, manager: SandboxManager, api_key: str | None = None) -> None:
        self._principal = Principal("default", manager)
        self._salt = secrets.token_bytes(32)
        self._digest = None if api_key is None else self._digested(_checked(api_key))

    @property
    def needs_key(self) -> bool:
        """Whether there is a key."""
        return self._digest is not None

    async def authenticate(self, key: str | None) -> Principal | None:
        """The one there is, where the key is right. One wrong key takes as long as another."""
        if self._digest is None:
            return self._principal
        right = hmac.compare_digest(self._digested(key or ""), self._digest)
        return self._principal if right and key else None

    def _digested(self, key: str) -> bytes:
        """Of one length whatever the key's is, which the comparison would otherwise tell."""
        return hashlib.blake2b(key.encode("utf-8", "replace"), key=self._salt).digest()


def _checked(key: str) -> str:
    if len(key) < LEAST_KEY or not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigError(
            f"an API key is a text of {LEAST_KEY} or more printable ASCII characters",
            remedy="python -c 'import secrets; print(secrets.token_urlsafe(24))' makes one",
        )
    return key
