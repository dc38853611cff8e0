"""Every table of the database, in one place.

Times are Unix seconds (float), ids are text made by `wherry.storage.database.new_id`, and columns
said to hold JSON are text that msgspec wrote. A change here needs a step in `migrations/versions`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    false,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Big = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits everywhere; SQLite counts up an id only when its type is called INTEGER."""

teams = Table(
    "teams",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),  # HMAC-SHA-256 of the secret, hex
    Column("scopes", Text, nullable=False, server_default="[]"),  # JSON list
    Column("deployments", Text, nullable=False, server_default="[]"),  # JSON list, empty = all
    Column("limits", Text, nullable=False, server_default="{}"),  # JSON of schema.KeyLimits
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("changed_revision", Big, nullable=False, server_default="0"),
)

models = Table(
    "models",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("last_number", Integer, nullable=False, server_default="0"),  # never given out twice
    Column("created_at", Float, nullable=False),
    UniqueConstraint("team_id", "name"),
)

versions = Table(
    "versions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model_id", Text, ForeignKey("models.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", Text, nullable=False, index=True),  # `sha256:…` of the bundle
    Column("manifest", Text, nullable=False),  # TOML
    Column("files", Text, nullable=False),  # JSON list of {path, size, sha256}
    Column("size_bytes", Big, nullable=False),
    Column("memory_mib", Integer, nullable=False, server_default="0"),
    Column("load_seconds", Float, nullable=False, server_default="0"),
    Column("environment", Text, nullable=False, server_default=""),  # digest of its Python venv
    Column("created_at", Float, nullable=False),
    UniqueConstraint("model_id", "number"),
    UniqueConstraint("model_id", "digest"),
)

version_blobs = Table(
    "version_blobs",
    metadata,
    Column("version_id", Text, ForeignKey("versions.id", ondelete="CASCADE"), nullable=False),
    Column("sha256", Text, nullable=False, index=True),
    PrimaryKeyConstraint("version_id", "sha256"),
)
"""Which blobs a version needs, so that the last user of a blob can be found."""

aliases = Table(
    "aliases",
    metadata,
    Column("model_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version_number", Integer, nullable=False),
    PrimaryKeyConstraint("model_id", "name"),
    ForeignKeyConstraint(
        ["model_id", "version_number"],
        ["versions.model_id", "versions.number"],
        ondelete="CASCADE",
    ),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("spec", Text, nullable=False),  # JSON of schema.DeploymentSpec
    Column("generation", Integer, nullable=False, server_default="1"),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("team_id", "name"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column(
        "deployment_id",
        Text,
        ForeignKey("deployments.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("state", Text, nullable=False),  # JSON of control.versions.Versions
    Column("updated_at", Float, nullable=False),
)
"""Which versions a deployment serves, served before and refuses, and how a canary is."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("request", Text, nullable=False, server_default="{}"),  # JSON
    Column("progress", Text, nullable=False, server_default="{}"),  # JSON of schema.Progress
    Column("result", Text, nullable=False, server_default="{}"),  # JSON
    Column("error", Text, nullable=False, server_default=""),
    Column("hint", Text, nullable=False, server_default=""),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Index(None, "team_id", "created_at"),
    Index(None, "state"),
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("size_bytes", Big, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, index=True),
    Index(None, "team_id", "id"),
)
"""Files of teams (`/v1/files`); what is in them lies in the data folder."""

file_uploads = Table(
    "file_uploads",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False, index=True),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("size_bytes", Big, nullable=False),  # as announced; all parts together
    Column("kept_seconds", Float),  # of the file that it becomes
    Column("state", Text, nullable=False),  # pending, completed or cancelled
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("file_id", Text),
)
"""Files that come in parts (`/v1/uploads`)."""

file_parts = Table(
    "file_parts",
    metadata,
    Column("id", Text, primary_key=True),
    Column(
        "upload_id",
        Text,
        ForeignKey("file_uploads.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    Column("size_bytes", Big, nullable=False),
    Column("created_at", Float, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False),
    Column("key_id", Text, nullable=False),  # whose limits hold, and who pays
    Column("job_id", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),  # OpenAI's names
    Column("input_file_id", Text, nullable=False),
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("kept_seconds", Float),  # of the files that it makes
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("times", Text, nullable=False, server_default="{}"),  # JSON: state -> when it began
    Column("faults", Text, nullable=False, server_default="[]"),  # JSON of batches.Fault
    Column("metadata", Text, nullable=False, server_default="{}"),  # JSON, the client's own
    Column("total", Integer, nullable=False, server_default="0"),
    Column("completed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("unanswered", Integer, nullable=False, server_default="0"),  # of those that failed
    Index(None, "team_id", "id"),
)
"""Requests in a file that are answered when there is time (`/v1/batches`)."""

events = Table(
    "events",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("team_id", Text, nullable=False),
    Column("topic", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("what", Text, nullable=False),
    Column("data", Text, nullable=False, server_default="{}"),  # JSON
    Index(None, "team_id", "id"),
    sqlite_autoincrement=True,  # an id is never used again: clients resume after the last they saw
)

ledger_tracks = Table(
    "ledger_tracks",
    metadata,
    Column("id", Big, primary_key=True, autoincrement=False),
    Column("team_id", Text, nullable=False, index=True),
    Column("key_id", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("door", Text, nullable=False),
    Column("task", Text, nullable=False),
)
"""What very many rows of the ledger have in common; the id is made from it (`wherry.accounts.ledger`)."""

ledger = Table(
    "ledger",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("at", Float, nullable=False),
    Column("day", Text, nullable=False),  # UTC, YYYY-MM-DD
    Column("track_id", Big, nullable=False),
    Column("status", Integer, nullable=False),
    Column("code", Text, nullable=False),
    Column("input_tokens", Big, nullable=False),
    Column("output_tokens", Big, nullable=False),
    Column("rows", Big, nullable=False),
    Column("queued_ms", Float, nullable=False),
    Column("run_ms", Float, nullable=False),
    Column("total_ms", Float, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("characters", Big, nullable=False, server_default="0"),
    Column("audio_ms", Big, nullable=False, server_default="0"),
    # one index: each costs every request
    Index(None, "track_id", "day"),
    sqlite_with_rowid=False,
)
"""What each request used; rows outlive the keys and deployments they name."""

ledger_offsets = Table(
    "ledger_offsets",
    metadata,
    Column("gateway", Text, nullable=False),
    Column("segment", Text, nullable=False),
    Column("offset", Big, nullable=False),
    PrimaryKeyConstraint("gateway", "segment"),
)
"""How far each journal segment has been read, written with the rows that came from it."""

stored_responses = Table(
    "stored_responses",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team_id", Text, ForeignKey("teams.id"), nullable=False),
    Column("deployment", Text, nullable=False),
    Column("previous_id", Text, nullable=False, server_default=""),
    Column("state", Text, nullable=False),
    Column("is_background", Boolean, nullable=False, server_default=false()),
    Column("error", Text, nullable=False, server_default=""),  # JSON
    Column("sha256", Text, nullable=False, index=True),  # of the file that holds the rest
    Column("size_bytes", Big, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False, index=True),
    Column("lease_until", Float, index=True),  # of one that runs in the background
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Index(None, "team_id", "expires_at", "size_bytes"),
)
"""Responses that clients can read again or go on from (`wherry.storage.responses`)."""

revisions = Table(
    "revisions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Big, nullable=False, server_default="0"),
)
"""Counters that grow with every change of `keys`, `deployments`, `models`, `jobs`: cheap to poll."""
