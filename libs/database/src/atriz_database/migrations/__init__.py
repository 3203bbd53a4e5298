"""Alembic: what ``env.py`` calls, and its commands as the library's own verbs use them. The only part with Alembic.

Names are loaded when they are first used (PEP 562): a run over revisions never pays for what writes or reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atriz_database.lazy import loading

if TYPE_CHECKING:
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

_MODULES = {
    "Applied": "migrations.journal",
    "Limits": "migrations.session",
    "Rendered": "migrations.source",
    "Run": "migrations.environment",
    "create_index_concurrently": "migrations.concurrently",
    "differences": "migrations.commands",
    "downgrade": "migrations.commands",
    "drop_index_concurrently": "migrations.concurrently",
    "excuses": "migrations.source",
    "load": "migrations.commands",
    "load_metadata": "migrations.source",
    "metadata_of": "migrations.source",
    "new": "migrations.commands",
    "outside_transaction": "migrations.concurrently",
    "read_revisions": "migrations.commands",
    "render": "migrations.source",
    "run": "migrations.environment",
    "sql_file": "migrations.sqlfile",
    "stamp": "migrations.commands",
    "step_through": "migrations.commands",
    "unimported": "migrations.source",
    "upgrade": "migrations.commands",
}

__getattr__ = loading(__name__, _MODULES)


def __dir__() -> list[str]:
    return __all__
