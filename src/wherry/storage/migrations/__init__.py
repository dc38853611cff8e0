"""Steps of the database's schema, oldest first; Alembic runs those that are missing."""

from __future__ import annotations

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008")
"""Every revision up to this Wherry's; a test compares it with the files in `versions`."""

HEAD = REVISIONS[-1]
