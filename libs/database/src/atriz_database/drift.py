"""Databases held against what they should be: against the models, and against each revision of their history.

Both make a scratch database on the same server and compare the catalogs: so PostgreSQL itself, and in one version,
writes the expressions on both sides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import sqlalchemy

from atriz_database import catalog, databases
from atriz_database.catalog import Catalog, Difference, Identity
from atriz_database.errors import MigrationError
from atriz_database.revisions import Revisions
from atriz_database.scratch import scratch
from atriz_database.settings import Target

_OF_MODELS = frozenset({"table", "column", "constraint", "index", "sequence", "enum", "domain", "comment"})
# Grants depend on who owns the database, and partitions on how long it has been in use.
_OF_REVISIONS = catalog.KINDS - {"grant", "partition"}


@dataclass(frozen=True, slots=True)
class Match:
    """Which revisions a database without a version corresponds to."""

    equal: tuple[str, ...]
    """Revisions that leave a database just like it, oldest first; more than one where a revision changes only data."""
    nearest: str | None
    """The revision that comes nearest, the newest of such; `None` where there are no revisions."""
    differences: tuple[Difference, ...]
    """What the nearest has (left) and the database has (right); empty where they are equal."""


def models(target: Target, metadata: sqlalchemy.MetaData) -> list[Difference]:
    """Return how the database (right) differs from what its models alone would make (left).

    Compared is what models can say: tables, columns, constraints, indexes, enums, domains, the comments on them, and
    sequences, but for those that belong to no column and that no model has. Partitions aren't compared.

    Raise `MigrationError` if the models can't be made in an empty database, and what :func:`scratch` raises.
    """
    with databases.connect(target, purpose="check") as connection:
        found = catalog.read(connection, target.package.schemas)
    with scratch(target) as empty:
        _prepare(empty, found)
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(**databases.parameters(empty, "check")),
            poolclass=sqlalchemy.NullPool,
        )
        try:
            metadata.create_all(engine)
        except sqlalchemy.exc.SQLAlchemyError as error:
            said = getattr(error, "orig", None) or error
            raise MigrationError(
                f"The models of {target.package.name} can't be made in an empty database: {str(said).strip()}. "
                "Models may use the functions, extensions and schemas that revisions make, and nothing else."
            ) from None
        with databases.connect(empty, purpose="check") as connection:
            wanted = catalog.read(connection, target.package.schemas)
    return [each for each in catalog.compare(wanted, found, _OF_MODELS) if _models_can_say(each)]


def matching(target: Target, files: Revisions) -> Match:
    """Return which revisions of the package's history the database corresponds to, grants and partitions aside.

    The whole history is run in a scratch database, and the catalogs compared after each revision. Of branches side by
    side none is compared before they are merged. One call per process at a time, as :func:`migrations.step_through`.

    :param files: the package's history.

    Raise what :func:`migrations.step_through` and :func:`scratch` raise.
    """
    from atriz_database import migrations

    with databases.connect(target, purpose="stamp") as connection:
        found = catalog.read(connection, target.package.schemas)
    equal: list[str] = []
    nearest: tuple[str, list[Difference]] | None = None
    done: set[str] = set()
    with scratch(target) as empty, databases.connect(empty, purpose="stamp") as looking:

        def steps() -> Iterator[tuple[str, bool]]:
            nonlocal nearest
            for id_ in files.pending(()):
                yield id_, True
                # Of this revision and no later one: the next is not begun before it is asked for.
                done.add(id_)
                if done != files.ancestors([id_]):
                    continue
                differences = catalog.compare(catalog.read(looking, target.package.schemas), found, _OF_REVISIONS)
                if not differences:
                    equal.append(id_)
                if nearest is None or len(differences) <= len(nearest[1]):
                    nearest = id_, differences

        migrations.step_through(migrations.Run(empty), steps())
    return Match(tuple(equal), *((nearest[0], tuple(nearest[1])) if nearest else (None, ())))


def _prepare(empty: Target, found: Catalog) -> None:
    """Make what models may use and cannot make: extensions, other schemas, functions in defaults and checks."""
    with databases.connect(empty, purpose="check") as connection:
        connection.execute("SET check_function_bodies = off")
        for kind in ("schema", "extension", "function"):
            for identity in sorted(found):
                if identity.kind == kind:
                    # What fails here, and is needed, shows when the models are made.
                    with contextlib.suppress(psycopg.Error):
                        connection.execute(found[identity].encode())


def _models_can_say(difference: Difference) -> bool:
    identity = difference.identity
    if identity.kind == "comment":
        return Identity(*identity.name.split(" ", 1)).kind in _OF_MODELS
    if identity.kind == "sequence" and difference.left is None:
        return " OWNED BY " in (difference.right or "")
    return True
