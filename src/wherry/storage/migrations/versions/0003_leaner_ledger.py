"""Keep one index of the ledger: each costs every request, and usage is asked for by team and day."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Keep one index of the ledger: each costs every request, and usage is asked by team and day."""
    op.drop_index(op.f("ix_ledger_at"), table_name="ledger")
    op.drop_index(op.f("ix_ledger_team_id_deployment_at"), table_name="ledger")
    op.drop_index(op.f("ix_ledger_team_id_key_id_day"), table_name="ledger")
    op.drop_index(op.f("ix_ledger_team_id_model_day"), table_name="ledger")
