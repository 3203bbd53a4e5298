"""A look at databases: where each stands against the code. Needs neither Alembic nor SQLAlchemy, changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any, Literal

import psycopg
from psycopg import errors

from atriz_database import databases, interrupt, label, lock
from atriz_database.errors import AtrizError, DatabaseMissingError, ServerError
from atriz_database.label import Label
from atriz_database.revisions import Revisions
from atriz_database.settings import Target

_VERSIONS_AND_LABEL = b"""
    SELECT (SELECT array_agg(version_num ORDER BY version_num) FROM alembic_version), package, environment
    FROM atriz.label
"""

# How long an interrupted look tries to have its statements ended; and how long for each of them, though the time is up.
_CANCEL_SECONDS, _LEAST_SECONDS = 5.0, 0.1

State = Literal[
    "up-to-date", "pending", "missing", "unversioned", "diverged", "ahead", "mislabelled", "unreachable", "broken"
]
"""``broken`` are the revision files, which only `status` goes on without."""


@dataclass(frozen=True, slots=True)
class Look:
    """Where one database stands."""

    target: Target
    files: Revisions
    """The history it was held against."""
    state: State
    current: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()
    """Revisions the database lacks, oldest first."""
    edited: tuple[str, ...] = ()
    """Applied revisions whose files have changed since."""
    label: Label | None = None
    error: AtrizError | None = None
    """Why the database is missing, unreachable or mislabelled, or the files are broken."""
    is_busy: bool = False
    """Whether a run was at work on it, so that the state may be another one in a moment."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the files."""
        return self.files.heads


def look(
    targets: Sequence[Target], revisions: Sequence[Revisions], *, wait: float = 0.0, edited: bool = False
) -> list[Look]:
    """Return where each database stands against its revisions, all asked at once.

    :param revisions: the files' history for each target, in the same order.
    :param wait: for how many seconds to try again while a server is down.
    :param edited: whether to compare the files with what was applied.
    """
    if not targets:
        return []
    looks: list[Look | BaseException | None] = [None] * len(targets)
    connected: list[databases.Connection] = []
    given_up = Event()

    def begun(connection: databases.Connection) -> None:
        connected.append(connection)
        if given_up.is_set():
            connection.close()  # It came after those that were cancelled.

    def work(index: int) -> None:
        try:
            looks[index] = _look(targets[index], revisions[index], wait, edited, begun)
        except BaseException as error:  # handed to the caller's thread, which raises it
            looks[index] = error

    # Daemons, so that Ctrl-C need not wait for a server that does not answer.
    threads = [Thread(target=work, args=(index,), daemon=True) for index in range(1, len(targets))]
    try:
        # The first may be waiting already while the last is started: from here on an interrupt ends them all.
        for thread in threads:
            interrupt.start_deaf(thread)
        looks[0] = _look(targets[0], revisions[0], wait, edited, begun)
        for thread in threads:
            thread.join()
    except BaseException:
        # Interrupted: a statement that waits behind a lock would wait on, for nobody.
        given_up.set()
        _cancel(connected)
        raise
    return [_raised(look) for look in looks]


def _raised(look: Look | BaseException | None) -> Look:
    if isinstance(look, Look):
        return look
    assert look is not None, "every thread leaves a look or an error"
    raise look


def _cancel(connected: list[databases.Connection]) -> None:
    """Have the server end what the connections are at, until each is closed by whoever looks through it."""
    deadline = time.monotonic() + _CANCEL_SECONDS
    # Again, because a statement may only be on its way when it is cancelled, and another may follow it.
    while (at_work := [each for each in connected if not each.closed]) and time.monotonic() < deadline:
        for connection in at_work:
            with suppress(psycopg.Error):
                connection.cancel_safe(timeout=max(deadline - time.monotonic(), _LEAST_SECONDS))


def _look(
    target: Target, files: Revisions, wait: float, edited: bool, begun: Callable[[databases.Connection], None]
) -> Look:
    try:
        with databases.connect(target, purpose="look", wait=wait) as connection:
            begun(connection)
            busy, current, found = _read(connection)
            changed = _edited(connection, files, current) if edited and found else ()
            unversioned = not current and _has_tables(connection)
    except DatabaseMissingError as error:
        return Look(target, files, "missing", pending=files.pending(()), error=error)
    except ServerError as error:
        return Look(target, files, "unreachable", error=error)
    except psycopg.Error as error:
        said = databases.said(error)
        told = ServerError(
            f"{target.database} at {target.url} cannot be looked at (from {target.origin}): {said}. Give the role the "
            "right to read, or use the owner's."
        )
        return Look(target, files, "unreachable", error=told)
    try:
        label.check(target, found)
    except AtrizError as error:
        return Look(target, files, "mislabelled", current, label=found, error=error)
    if files.unknown(current):
        return Look(target, files, "ahead", current, label=found, edited=changed, is_busy=busy)
    pending = files.pending(current)
    # Several rows are a way to one head as well, a merge that has not been applied yet; but not if one of them stands
    # on another.
    if len(files.heads) > 1 or len(files.tips(current)) < len(current):
        state: State = "diverged"
    elif unversioned:
        state = "unversioned"
    else:
        # Never "nothing pending" unless the rows are the heads exactly.
        state = "up-to-date" if set(current) == set(files.heads) else "pending"
    return Look(target, files, state, current, pending, changed, found, is_busy=busy)


def _read(connection: databases.Connection) -> tuple[bool, tuple[str, ...], Label | None]:
    """Return whether a run is at work, the version rows and the label; in one round trip where both tables are there.

    Whoever is at work is asked for first, and with a snapshot of its own: what ends after that has been seen, what ends
    before it is in the rows.
    """
    try:
        cursor = connection.execute(b"; ".join((lock.IS_BUSY, _VERSIONS_AND_LABEL)))
        busy = _is_true(cursor)
        cursor.nextset()
        row = cursor.fetchone()
        if row is not None:
            return busy, tuple(row[0] or ()), Label(row[1], row[2])
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        pass
    busy = _is_true(connection.execute(lock.IS_BUSY))
    return busy, label.versions(connection), label.read(connection)


def _has_tables(connection: databases.Connection) -> bool:
    query = """
        SELECT EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
              AND n.nspname <> 'atriz' AND c.relname <> 'alembic_version'
              AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e'))
    """
    return _is_true(connection.execute(query))


def _is_true(cursor: psycopg.Cursor[tuple[Any, ...]]) -> bool:
    row = cursor.fetchone()
    return row is not None and bool(row[0])


def _edited(connection: databases.Connection, files: Revisions, current: Sequence[str]) -> tuple[str, ...]:
    recorded = label.recorded(connection)
    applied = files.ancestors(set(current) & files.by_id.keys())
    order = [id_ for id_ in files.pending(()) if id_ in applied]
    return tuple(id_ for id_ in order if id_ in recorded and recorded[id_] != files.by_id[id_].checksum())
