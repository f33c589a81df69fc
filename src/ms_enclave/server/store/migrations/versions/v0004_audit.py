"""Who did what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["upgrade"]

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "audit",
        sa.Column("number", number, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("key", sa.String(12)),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("sandbox", sa.String(64)),
        sa.Column("detail", sa.JSON(none_as_null=True)),
        sa.Column("request", sa.String(64)),
        sa.Column("outcome", sa.String(64)),
        sa.Column("seconds", sa.Double),
    )
    op.create_index("audit_of_tenant", "audit", ["tenant", "number"])
    op.create_index("audit_at", "audit", ["at"])
