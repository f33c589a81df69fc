"""What a tenant may have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["upgrade"]

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column."""
    op.add_column("tenants", sa.Column("quotas", sa.JSON(none_as_null=True)))
