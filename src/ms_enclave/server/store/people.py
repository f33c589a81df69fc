"""Tenants and their keys in the store. Each function is what one transaction does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from ms_enclave.errors import ConfigError
from ms_enclave.server.store.schema import keys, tenants

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from ms_enclave.server.store.keys import NewKey

__all__ = [
    "KeyRow",
    "KnownKey",
    "TenantRow",
    "add_key",
    "ensure_tenant",
    "find_key",
    "list_keys",
    "list_tenants",
    "revoke_key",
    "set_tenant",
]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class KeyRow:
    """A key as it is listed."""

    id: str
    tenant: str
    note: str
    made_at: float
    expires_at: float | None
    revoked_at: float | None
    is_admin: bool


@dataclass(frozen=True)
class KnownKey:
    """A key as it is checked, and what holds for whoever has it."""

    tenant: str
    digest: bytes
    expires_at: float | None
    revoked_at: float | None
    is_admin: bool
    policy: dict[str, Any] | None
    quotas: dict[str, Any] | None


@dataclass(frozen=True)
class TenantRow:
    """A tenant, and what holds for it in the place of what holds for all."""

    name: str
    made_at: float
    policy: dict[str, Any] | None
    quotas: dict[str, Any] | None


def ensure_tenant(connection: Connection, name: str, now: float) -> None:
    """Have a tenant of that name.

    Raises:
        ConfigError: none can have it.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("a tenant's name is 1 to 64 letters, digits, `_` or `-`")
    if connection.execute(select(tenants.c.name).where(tenants.c.name == name)).first() is None:
        connection.execute(insert(tenants).values(name=name, made_at=now))


def set_tenant(
    connection: Connection, name: str, now: float, **what: dict[str, Any] | None
) -> None:
    """Have a tenant held to something of its own from its next request on.

    Args:
        what: `policy`, `quotas` or both; None for what holds for all.

    Raises:
        ConfigError: no tenant can have that name.
    """
    ensure_tenant(connection, name, now)
    if what:
        connection.execute(update(tenants).where(tenants.c.name == name).values(**what))


def list_tenants(connection: Connection) -> list[TenantRow]:
    """All tenants, by name."""
    columns = (tenants.c.name, tenants.c.made_at, tenants.c.policy, tenants.c.quotas)
    return [TenantRow(*row) for row in connection.execute(select(*columns).order_by(columns[0]))]


def add_key(
    connection: Connection,
    key: NewKey,
    tenant: str,
    *,
    now: float,
    note: str = "",
    seconds: float | None = None,
    is_admin: bool = False,
) -> None:
    """Remember a key, and its tenant where that is new.

    Args:
        seconds: how long it is good for; None for until it is revoked.
        is_admin: whether it may read the audit log of all tenants, beside what its tenant may.

    Raises:
        ConfigError: no tenant can have that name, or the note has more than 200 characters.
    """
    if len(note) > 200:
        raise ConfigError("a key's note has 200 characters at most")
    ensure_tenant(connection, tenant, now)
    connection.execute(
        insert(keys).values(
            id=key.id, tenant=tenant, digest=key.digest, note=note, made_at=now,
            expires_at=None if seconds is None else now + seconds, is_admin=is_admin,
        )
    )  # fmt: skip


def list_keys(connection: Connection, tenant: str | None = None) -> list[KeyRow]:
    """The keys of a tenant, or of all, oldest first."""
    columns = (
        keys.c.id, keys.c.tenant, keys.c.note, keys.c.made_at, keys.c.expires_at, keys.c.revoked_at,
        keys.c.is_admin,
    )  # fmt: skip
    query = select(*columns).order_by(keys.c.made_at, keys.c.id)
    if tenant is not None:
        query = query.where(keys.c.tenant == tenant)
    return [KeyRow(*row) for row in connection.execute(query)]


def revoke_key(connection: Connection, key_id: str, now: float) -> bool:
    """Have a key refused from now on; False where there is none of that id. Again is no matter."""
    if connection.execute(select(keys.c.id).where(keys.c.id == key_id)).first() is None:
        return False
    unrevoked = (keys.c.id == key_id) & keys.c.revoked_at.is_(None)
    connection.execute(update(keys).where(unrevoked).values(revoked_at=now))
    return True


_KNOWN = select(
    keys.c.tenant,
    keys.c.digest,
    keys.c.expires_at,
    keys.c.revoked_at,
    keys.c.is_admin,
    tenants.c.policy,
    tenants.c.quotas,
).join(tenants)


def find_key(connection: Connection, key_id: str) -> KnownKey | None:
    """A key by its id."""
    found = connection.execute(_KNOWN.where(keys.c.id == key_id)).first()
    return None if found is None else KnownKey(*found)
