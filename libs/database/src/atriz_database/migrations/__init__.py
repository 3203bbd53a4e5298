"""Alembic: what ``env.py`` calls, and its commands as the library's own verbs use them. The only part with Alembic."""

from atriz_database.migrations.commands import (
    differences,
    downgrade,
    load,
    new,
    read_revisions,
    stamp,
    step_through,
    upgrade,
)
from atriz_database.migrations.concurrently import (
    create_index_concurrently,
    drop_index_concurrently,
    outside_transaction,
)
from atriz_database.migrations.environment import Run, run
from atriz_database.migrations.journal import Applied
from atriz_database.migrations.session import Limits
from atriz_database.migrations.source import Rendered, excuses, load_metadata, metadata_of, render, unimported
from atriz_database.migrations.sqlfile import sql_file

__all__ = [
    "Applied",
    "Limits",
    "Rendered",
    "Run",
    "create_index_concurrently",
    "differences",
    "downgrade",
    "drop_index_concurrently",
    "excuses",
    "load",
    "load_metadata",
    "metadata_of",
    "new",
    "outside_transaction",
    "read_revisions",
    "render",
    "run",
    "sql_file",
    "stamp",
    "step_through",
    "unimported",
    "upgrade",
]
