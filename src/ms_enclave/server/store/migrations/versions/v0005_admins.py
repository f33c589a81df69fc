"""Which keys may read the audit log of all."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["upgrade"]

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column."""
    no = sa.Column("is_admin", sa.Boolean, nullable=False, server_default=sa.false())
    op.add_column("keys", no)
