"""Several PostgreSQL databases, one repository, one command.

Names are loaded when they are first used (PEP 562): an application never pays for Alembic, and a look at four
databases never for SQLAlchemy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atriz_database.lazy import loading

if TYPE_CHECKING:
    from atriz_database.asynchronous import AsyncDatabase
    from atriz_database.database import Database
    from atriz_database.errors import (
        AtrizError,
        DatabaseClosedError,
        OutcomeUnknownError,
        PoolTimeoutError,
        TransactionError,
    )
    from atriz_database.model import NAMING_CONVENTION, Reference, reference, references
    from atriz_database.pool import PoolState
    from atriz_database.settings import Target, resolve
    from atriz_database.url import DatabaseURL
    from atriz_database.workspace import Package, Workspace

__all__ = [
    "NAMING_CONVENTION",
    "AsyncDatabase",
    "AtrizError",
    "Database",
    "DatabaseClosedError",
    "DatabaseURL",
    "OutcomeUnknownError",
    "Package",
    "PoolState",
    "PoolTimeoutError",
    "Reference",
    "Target",
    "TransactionError",
    "Workspace",
    "reference",
    "references",
    "resolve",
]

_MODULES = {
    "NAMING_CONVENTION": "model",
    "AsyncDatabase": "asynchronous",
    "AtrizError": "errors",
    "Database": "database",
    "DatabaseClosedError": "errors",
    "DatabaseURL": "url",
    "OutcomeUnknownError": "errors",
    "Package": "workspace",
    "PoolState": "pool",
    "PoolTimeoutError": "errors",
    "Reference": "model",
    "Target": "settings",
    "TransactionError": "errors",
    "Workspace": "workspace",
    "reference": "model",
    "references": "model",
    "resolve": "settings",
}

__getattr__ = loading(__name__, _MODULES)


def __dir__() -> list[str]:
    return __all__
