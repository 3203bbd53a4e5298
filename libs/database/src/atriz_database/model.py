"""What the models of all packages share: constraint names, and references across databases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import MetaData, Uuid
from sqlalchemy.orm import MappedColumn, mapped_column

# Every constraint gets a name that a down migration can rely on, whatever PostgreSQL would call it.
# The tokens are SQLAlchemy's, the pattern the one of the Alembic manual ("The Importance of Naming Constraints").
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

_INFO_KEY = "atriz.reference"
_TARGET = re.compile(r"(?P<package>[a-z][a-z0-9_-]*)\.(?P<table>[a-z_][a-z0-9_]*)\.(?P<column>[a-z_][a-z0-9_]*)")


@dataclass(frozen=True, slots=True)
class Reference:
    """One column that refers to a row of another package's database."""

    table: str
    column: str
    target_package: str
    target_table: str
    target_column: str

    def __str__(self) -> str:
        target = f"{self.target_package}.{self.target_table}.{self.target_column}"
        return f"{self.table}.{self.column} -> {target}"


def reference(target: str, *, index: bool = True, **options: Any) -> MappedColumn[Any]:
    """Declare a uuid column that refers to a row in another package's database.

    No foreign key spans databases, so PostgreSQL cannot keep such a column whole: the declaration is what lets
    software do it. It is indexed, because every tool that follows a reference looks rows up by it.

    :param target: ``package.table.column``, as in ``core.users.id``.
    :param index: pass ``False`` where another index already begins with this column (``unique=True``, say).
    :param options: whatever :func:`sqlalchemy.orm.mapped_column` takes.

    Raise `ValueError` if `target` is not of that form.

    >>> column = reference("core.users.id", nullable=False).column
    >>> column.index, column.info["atriz.reference"]
    (True, ('core', 'users', 'id'))
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ValueError(f"{target!r} is not of the form package.table.column, as in core.users.id")
    info = {**options.pop("info", {}), _INFO_KEY: match.groups()}
    return mapped_column(options.pop("type_", Uuid()), index=index or None, info=info, **options)


def references(metadata: MetaData) -> Iterator[Reference]:
    """Yield every column of `metadata` that was declared with :func:`reference`, tables in alphabetical order."""
    for table in sorted(metadata.tables.values(), key=lambda table: table.name):
        for column in table.columns:
            if _INFO_KEY in column.info:
                yield Reference(table.name, column.name, *column.info[_INFO_KEY])
