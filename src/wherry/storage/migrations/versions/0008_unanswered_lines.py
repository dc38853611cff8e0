"""Count the lines of a batch that were never answered apart from those that were refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the count; it is not known of batches that have ended."""
    op.add_column(
        "batches", sa.Column("unanswered", sa.Integer(), server_default="0", nullable=False)
    )
