"""Alembic: what ``env.py`` calls, and its commands as the library's own verbs use them. The only part with Alembic.

Names are loaded when they are first used (PEP 562): a run over revisions never pays for what writes or reads them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
    "Applied": "journal",
    "Limits": "session",
    "Rendered": "source",
    "Run": "environment",
    "create_index_concurrently": "concurrently",
    "differences": "commands",
    "downgrade": "commands",
    "drop_index_concurrently": "concurrently",
    "excuses": "source",
    "load": "commands",
    "load_metadata": "source",
    "metadata_of": "source",
    "new": "commands",
    "outside_transaction": "concurrently",
    "read_revisions": "commands",
    "render": "source",
    "run": "environment",
    "sql_file": "sqlfile",
    "stamp": "commands",
    "step_through": "commands",
    "unimported": "source",
    "upgrade": "commands",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
