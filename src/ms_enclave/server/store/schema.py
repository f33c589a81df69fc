"""The tables, as the last migration leaves them. Moments are seconds since 1970, in UTC."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    false,
)

__all__ = ["audit", "keys", "metadata", "sandboxes", "tenants"]

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("made_at", Double, nullable=False),
    Column("policy", JSON(none_as_null=True)),  # None: the server's own
    Column("quotas", JSON(none_as_null=True)),  # the same
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("tenant", String(64), ForeignKey("tenants.name"), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("note", String(200), nullable=False),
    Column("made_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("is_admin", Boolean, nullable=False, server_default=false()),
    Index("keys_of_tenant", "tenant"),
)

NUMBER = BigInteger().with_variant(Integer, "sqlite")

sandboxes = Table(
    "sandboxes",
    metadata,
    Column("number", NUMBER, primary_key=True),  # an id may be taken again
    Column("node", String(32), nullable=False),  # the server that has it, of those with this store
    Column("tenant", String(64), ForeignKey("tenants.name"), nullable=False),
    Column("id", String(64), nullable=False),
    Column("type", String(64), nullable=False),
    Column("made_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("ended_at", Double),
    Column("lost", String(500)),  # why, where it did not end by anybody's wish
    Index("sandboxes_of_tenant", "node", "tenant", "ended_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("number", NUMBER, primary_key=True),
    Column("at", Double, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("key", String(12)),  # None: who runs the server, by a command
    Column("action", String(64), nullable=False),
    Column("sandbox", String(64)),
    Column("detail", JSON(none_as_null=True)),
    Column("request", String(64)),
    Column("outcome", String(64)),  # None: the server ended meanwhile
    Column("seconds", Double),
    Index("audit_of_tenant", "tenant", "number"),
    Index("audit_at", "at"),
)
