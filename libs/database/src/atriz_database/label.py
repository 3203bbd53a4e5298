"""What a database says of itself: whose it is, and what has been applied to it.

Both are tables of schema ``atriz``, which neither ``clean`` nor autogenerate touches.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Collection
from dataclasses import dataclass

from atriz_database.databases import Connection
from atriz_database.errors import LabelError
from atriz_database.settings import ENVIRONMENTS, Target

SCHEMA = "atriz"

# Written to be run again on a database that has it: the run holds the database's lock.
TABLES = f"""
CREATE SCHEMA IF NOT EXISTS atriz;
CREATE TABLE IF NOT EXISTS atriz.label (
    one_row boolean PRIMARY KEY DEFAULT true CHECK (one_row),
    package text NOT NULL,
    environment text NOT NULL CHECK (environment IN ({", ".join(f"'{name}'" for name in ENVIRONMENTS)})),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE IF NOT EXISTS atriz.history (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    revision text NOT NULL,
    direction text NOT NULL CHECK (direction IN ('upgrade', 'downgrade', 'stamp', 'repair')),
    checksum text NOT NULL,
    source text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seconds double precision NOT NULL,
    applied_by text NOT NULL
);
CREATE INDEX IF NOT EXISTS ix_history_revision ON atriz.history (revision, id);
COMMENT ON SCHEMA atriz IS 'What the atriz command keeps about this database.';
COMMENT ON TABLE atriz.label IS 'Which package and environment this database belongs to; one row.';
COMMENT ON TABLE atriz.history IS 'Every revision applied here, written in the transaction that applied it.';
COMMENT ON COLUMN atriz.history.checksum IS 'SHA-256 of the revision file, and of the SQL file beside it.';
COMMENT ON COLUMN atriz.history.source IS 'The text that was applied.';
COMMENT ON COLUMN atriz.history.applied_by IS 'User and host of the run.';
"""


@dataclass(frozen=True, slots=True)
class Label:
    """The package and the environment that a database belongs to."""

    package: str
    environment: str

    def __str__(self) -> str:
        return f"{self.package}/{self.environment}"


def wanted(target: Target) -> Label:
    """Return the label that the target's database should carry."""
    return Label(target.package.name, target.environment)


def check(target: Target, found: Label | None) -> None:
    """Refuse a database that belongs to another package or another environment.

    :param found: the database's label, `None` where it has none or does not exist.

    Raise `LabelError` if the run must not touch it.
    """
    if found is None or found == wanted(target):
        return
    if found.package != target.package.name:
        mend = f"Correct the URL: this is the database of {found.package}."
    else:
        command = f"atriz label {target.package.name} --environment {target.environment} --force {target.database}"
        mend = f"Set APP_ENV={found.environment}, or, if this is a copy made for {target.environment}, run `{command}`."
    raise LabelError(
        f"{target.database} at {target.url} is labelled {found}, and this run is for {wanted(target)}. The URL is from "
        f"{target.origin}, the environment from {target.environment_origin or 'nowhere: the default'}. {mend}"
    )


def check_environment(target: Target, found: Label | None) -> None:
    """Refuse to label a database of another machine by default: what it is has to be said.

    Raise `LabelError` if the database has no label yet, is not on this machine, and APP_ENV is set nowhere.
    """
    if found is None and target.environment_origin is None and target.url is not None and not target.url.is_local:
        raise LabelError(
            f"{target.database} at {target.url} is not on this machine and carries no label yet, and APP_ENV is set "
            f"nowhere. Set APP_ENV to {', '.join(ENVIRONMENTS[:-1])} or {ENVIRONMENTS[-1]}, so that the label says "
            "what the database is."
        )


def protect(target: Target, found: Label | None, force: Collection[str], verb: str) -> None:
    """Refuse to destroy anything of production, unless the database is named.

    :param force: the databases that the user has named with ``--force``.
    :param verb: what is refused, for the message.

    Raise `LabelError` if APP_ENV or the label says production, and the name is not among them.
    """
    environments = {target.environment, found.environment if found else ""}
    if "production" in environments and target.database not in force:
        raise LabelError(
            f"{verb} is refused for {target.database} at {target.url}: it is production's (APP_ENV from "
            f"{target.environment_origin or 'nowhere'}, label {found or 'none'}). If you mean it, name the database: "
            f"atriz {verb} {target.package.name} --force {target.database}"
        )


def read(connection: Connection) -> Label | None:
    """Return the label of the connected database, `None` where it has none."""
    if not _has(connection, "atriz.label"):
        return None
    found = connection.execute("SELECT package, environment FROM atriz.label").fetchone()
    return Label(*found) if found else None


def who() -> str:
    """Return the user and the host of this run, for the history; a user without a name is one too."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def recorded(connection: Connection) -> dict[str, str]:
    """Return the checksum of each revision that the history holds as applied, accepted repairs counted."""
    if not _has(connection, "atriz.history"):
        return {}
    rows = connection.execute(
        "SELECT DISTINCT ON (revision) revision, checksum, direction FROM atriz.history ORDER BY revision, id DESC"
    ).fetchall()
    return {revision: checksum for revision, checksum, direction in rows if direction != "downgrade"}


def is_versioned(connection: Connection) -> bool:
    """Return whether the database has Alembic's version table."""
    return _has(connection, "alembic_version")


def versions(connection: Connection) -> tuple[str, ...]:
    """Return the rows of Alembic's version table, in order; none where it has none or no table."""
    if not is_versioned(connection):
        return ()
    rows = connection.execute("SELECT version_num FROM alembic_version ORDER BY 1").fetchall()
    return tuple(row[0] for row in rows)


def prepare(connection: Connection, target: Target) -> None:
    """Give the database its label and the tables of schema ``atriz``, where it lacks them.

    The caller holds the database's lock. Raise `LabelError` as :func:`check` does.
    """
    found = read(connection)
    check(target, found)
    check_environment(target, found)
    if found is not None:
        return
    write(connection, wanted(target))


def write(connection: Connection, label: Label) -> None:
    """Give the database a label, in place of the one it has, and the tables of schema ``atriz`` where it lacks them.

    The caller holds the database's lock.
    """
    with connection.transaction():
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute(TABLES.encode())
        connection.execute(
            "INSERT INTO atriz.label (package, environment) VALUES (%s, %s) "
            "ON CONFLICT (one_row) DO UPDATE SET package = excluded.package, environment = excluded.environment",
            [label.package, label.environment],
        )


def _has(connection: Connection, table: str) -> bool:
    row = connection.execute(f"SELECT to_regclass('{table}') IS NOT NULL".encode()).fetchone()
    return row is not None and bool(row[0])
