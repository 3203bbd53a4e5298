"""What a database says of itself: whose it is, and what has been applied to it.

Both are tables of schema ``atriz``, which neither ``clean`` nor autogenerate touches.
"""

from __future__ import annotations

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
    direction text NOT NULL CHECK (direction IN ('upgrade', 'downgrade', 'stamp')),
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


def read(connection: Connection) -> Label | None:
    """Return the label of the connected database, `None` where it has none."""
    row = connection.execute("SELECT to_regclass('atriz.label') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    found = connection.execute("SELECT package, environment FROM atriz.label").fetchone()
    return Label(*found) if found else None


def prepare(connection: Connection, target: Target) -> None:
    """Give the database its label and the tables of schema ``atriz``, where it lacks them.

    The caller holds the database's lock. Raise `LabelError` as :func:`check` does.
    """
    found = read(connection)
    check(target, found)
    check_environment(target, found)
    if found is not None:
        return
    with connection.transaction():
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute(TABLES.encode())
        label = wanted(target)
        connection.execute(
            "INSERT INTO atriz.label (package, environment) VALUES (%s, %s)", [label.package, label.environment]
        )
