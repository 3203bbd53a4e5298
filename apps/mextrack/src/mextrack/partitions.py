"""Make the monthly partitions of ``tracking_data``."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row

# To attach a partition, PostgreSQL locks the default partition and, for the foreign key, vehicles. Whoever waits for
# such a lock makes everybody who comes later wait as well; and an app that writes to the two in the other order
# deadlocks with us. So: wait far less than deadlock_timeout (1 s), so that it is us who give way and never an app in
# the middle of its work, let the others through, and try again soon.
_LOCK_TIMEOUT = "100ms"
_PAUSES = (0.02, 0.2)
_PATIENCE = 15.0


@dataclass(frozen=True, slots=True)
class Month:
    """One calendar month in UTC, as a partition of ``tracking_data``."""

    year: int
    month: int

    @property
    def name(self) -> str:
        """Return the name of the partition.

        >>> Month(2026, 11).name
        'tracking_data_y2026m11'
        """
        return f"tracking_data_y{self.year:04}m{self.month:02}"

    @property
    def start(self) -> datetime:
        """Return the first moment of the month."""
        return datetime(self.year, self.month, 1, tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """Return the first moment after the month."""
        return self.next().start

    def next(self) -> Month:
        """Return the month after.

        >>> Month(2026, 12).next()
        Month(year=2027, month=1)
        """
        return Month(self.year + self.month // 12, self.month % 12 + 1)


def months(today: date, ahead: int) -> Iterator[Month]:
    """Yield the month of `today` and the `ahead` months after it.

    Raise `ValueError` if `ahead` is negative.
    """
    if ahead < 0:
        raise ValueError(f"ahead is {ahead}, but months are made from today's on: give 0 or more")
    month = Month(today.year, today.month)
    for _ in range(ahead):
        yield month
        month = month.next()
    yield month


def make_months(connection: psycopg.Connection[Any], ahead: int, today: date) -> list[str]:
    """Make the partitions that are missing, of the month of `today` and of `ahead` months after; return their names.

    Rows of such a month that the default partition has taken meanwhile move over. All of it is one transaction, or
    one savepoint of the transaction that `connection` is in. Callers at the same time wait for one another. Readers
    and writers of months that have their partition go on; those of other months, and writers of vehicles, wait while
    rows move.

    Raise `ValueError` if `ahead` is negative, and `psycopg.errors.LockNotAvailable` if others hold on to the default
    partition or to vehicles for longer than some 15 seconds.
    """
    wanted = list(months(today, ahead))
    with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        # Conflicts with itself and with DDL, not with reading and writing. The catalog is read after it is granted,
        # so that a second caller sees what the first has made.
        cursor.execute("LOCK TABLE ONLY tracking_data IN SHARE UPDATE EXCLUSIVE MODE")
        cursor.execute(
            "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
            " WHERE inhparent = 'tracking_data'::regclass"
        )
        present = set(cursor.fetchall())
        missing = [month for month in wanted if month.name not in present]
        if missing:
            _lock(connection)
        for month in missing:
            _make(cursor, month)
    return [month.name for month in missing]


def _lock(connection: psycopg.Connection[Any]) -> None:
    """Take the locks that attaching needs, all at once and before any row moves."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
                before = cursor.execute("SELECT current_setting('lock_timeout')").fetchone()
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])
                cursor.execute("LOCK TABLE vehicles IN SHARE ROW EXCLUSIVE MODE")
                cursor.execute("LOCK TABLE tracking_data_default IN ACCESS EXCLUSIVE MODE")
                # What is set for a transaction outlives the savepoint: the caller's own setting comes back.
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [before])
            return
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise
        # Of random length, so as not to keep step with whoever is in the way.
        time.sleep(random.uniform(*_PAUSES))  # noqa: S311 - not a secret


def _make(cursor: psycopg.Cursor[Any], month: Month) -> None:
    """Make one partition: beside the table first, filled, then attached.

    CREATE TABLE … PARTITION OF would stop all reading and writing of all months, and fail on rows in the default
    partition; ATTACH does neither.
    """
    partition = sql.Identifier(month.name)
    cursor.execute(sql.SQL("CREATE TABLE {} (LIKE tracking_data INCLUDING ALL)").format(partition))
    cursor.execute(
        "SELECT EXISTS (SELECT FROM tracking_data_default WHERE recorded_at >= %s AND recorded_at < %s)",
        [month.start, month.end],
    )
    if cursor.fetchone():
        # By name: partitions may have their columns in another order than their parent.
        cursor.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'tracking_data'::regclass"
            " AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum"
        )
        columns = sql.SQL(", ").join(sql.Identifier(name) for name in cursor.fetchall())
        cursor.execute(
            sql.SQL(
                "WITH moved AS (DELETE FROM tracking_data_default WHERE recorded_at >= %s AND recorded_at < %s"
                " RETURNING {columns}) INSERT INTO {partition} ({columns}) SELECT {columns} FROM moved"
            ).format(partition=partition, columns=columns),
            [month.start, month.end],
        )
    cursor.execute(
        sql.SQL("ALTER TABLE tracking_data ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})").format(
            # With the offset written out, so that the time zone of the session has no say.
            partition,
            sql.Literal(month.start),
            sql.Literal(month.end),
        )
    )
