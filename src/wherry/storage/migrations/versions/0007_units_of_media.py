"""Meter characters and sound, besides tokens and rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the two units; nothing had cost any before."""
    for name in ("characters", "audio_ms"):
        op.add_column("ledger", sa.Column(name, BIG, server_default="0", nullable=False))
