"""Keep once what very many rows of the ledger have in common: each row costs a request less."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ALIKE = ("team_id", "key_id", "deployment", "model", "version", "digest", "door", "task")
OWN = (
    "request_id", "at", "day", "track_id", "status", "code", "input_tokens", "output_tokens",
    "rows", "queued_ms", "run_ms", "total_ms", "attempts",
)  # fmt: skip


def upgrade() -> None:
    """Move what rows have in common to a table of its own."""
    op.create_table(
        "ledger_tracks",
        sa.Column("id", BIG, autoincrement=False, nullable=False),
        sa.Column("team_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("door", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_tracks")),
    )
    op.drop_index(op.f("ix_ledger_team_id_day"), table_name="ledger")
    op.rename_table("ledger", "ledger_before")
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":  # the name of its index must be free
        op.drop_constraint(op.f("pk_ledger"), "ledger_before")
    op.create_table(
        "ledger",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("track_id", BIG, nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("input_tokens", BIG, nullable=False),
        sa.Column("output_tokens", BIG, nullable=False),
        sa.Column("rows", BIG, nullable=False),
        sa.Column("queued_ms", sa.Float(), nullable=False),
        sa.Column("run_ms", sa.Float(), nullable=False),
        sa.Column("total_ms", sa.Float(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_ledger")),
        sqlite_with_rowid=False,
    )
    before = sa.table("ledger_before", *(sa.column(name) for name in (*ALIKE, *OWN)))
    tracks = sa.table("ledger_tracks", *(sa.column(name) for name in ("id", *ALIKE)))
    alike = [before.c[name] for name in ALIKE]
    for row in connection.execute(sa.select(*alike).distinct()).all():
        # as the ledger makes it from then on
        digest = sha256(msgspec.msgpack.encode(tuple(row))).digest()
        track = int.from_bytes(digest[:8], "big") >> 1
        fields = dict(zip(ALIKE, row, strict=True))
        connection.execute(tracks.insert().values(id=track, **fields))
    same = sa.and_(*(before.c[name] == tracks.c[name] for name in ALIKE))
    columns = [tracks.c.id if name == "track_id" else before.c[name] for name in OWN]
    ledger = sa.table("ledger", *(sa.column(name) for name in OWN))
    moved = sa.select(*columns).select_from(before.join(tracks, same))
    connection.execute(ledger.insert().from_select(list(OWN), moved))
    op.drop_table("ledger_before")
    op.create_index(op.f("ix_ledger_track_id_day"), "ledger", ["track_id", "day"], unique=False)
    # last: with it, SQLite would look for each row's track among all of its team
    op.create_index(op.f("ix_ledger_tracks_team_id"), "ledger_tracks", ["team_id"], unique=False)
