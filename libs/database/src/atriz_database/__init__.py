"""Several PostgreSQL databases, one repository, one command.

Names are loaded when they are first used (PEP 562): an application never pays for Alembic, and a look at four
databases never for SQLAlchemy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atriz_database.errors import AtrizError
    from atriz_database.model import NAMING_CONVENTION, Reference, reference, references
    from atriz_database.settings import Target, resolve
    from atriz_database.url import DatabaseURL
    from atriz_database.workspace import Package, Workspace

__all__ = [
    "NAMING_CONVENTION",
    "AtrizError",
    "DatabaseURL",
    "Package",
    "Reference",
    "Target",
    "Workspace",
    "reference",
    "references",
    "resolve",
]

_MODULES = {
    "NAMING_CONVENTION": "model",
    "AtrizError": "errors",
    "DatabaseURL": "url",
    "Package": "workspace",
    "Reference": "model",
    "Target": "settings",
    "Workspace": "workspace",
    "reference": "model",
    "references": "model",
    "resolve": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
