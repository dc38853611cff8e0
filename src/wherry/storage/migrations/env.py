"""What Alembic runs; `upgrade.py` hands it the connection, within a transaction."""

from __future__ import annotations

from alembic import context

from wherry.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite cannot alter most of a table in place
)
context.run_migrations()
