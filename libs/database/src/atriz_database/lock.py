"""The lock that a run holds on each database it changes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg import pq

from atriz_database import databases, interrupt, pooler
from atriz_database.errors import LockTimeoutError
from atriz_database.settings import Target

KEY = int.from_bytes(b"atriz", "big")
"""The advisory lock's key. Advisory locks belong to one database, so all packages use the same."""
_WORK_KEY = KEY + 1
"""What each connection shares that works under the lock: one whose process was killed may still have a commit to do."""
DEFAULT_WAIT = 600.0
"""How long a run waits for another one, in seconds, unless told otherwise."""
_FIRST_POLL, _LONGEST_POLL = 0.02, 1.0

# The setting exists from PostgreSQL 14.
_PREPARE = """
    SELECT pg_backend_pid(), CASE
        WHEN pg_backend_pid() = %s AND current_setting('idle_session_timeout', true) IS NOT NULL
        THEN set_config('idle_session_timeout', '0', false) END
"""
_HELD = b"""
    SELECT l.pid, l.objid FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32) + l.objid::bigint BETWEEN %d AND %d
"""
_WORKERS, _ANYBODY = _HELD % (_WORK_KEY, _WORK_KEY), _HELD % (KEY, _WORK_KEY)
# CASE, because it alone promises an order: who has the lock is alone only if nobody works on after the one before.
_TRY = b"SELECT CASE WHEN pg_try_advisory_lock(%d) THEN NOT EXISTS (%s) ELSE false END" % (KEY, _WORKERS)
_HOLDER = (
    b"""
    SELECT a.pid, a.application_name, coalesce(a.client_hostname, host(a.client_addr), 'this machine'),
           a.backend_start, a.usename
    FROM (%s) AS held JOIN pg_stat_activity a USING (pid)
    ORDER BY held.objid LIMIT 1
"""
    % _ANYBODY
)
IS_BUSY = b"SELECT EXISTS (%s)" % _ANYBODY
"""A query: whether some run is at work on the database, or what is left of one."""


@contextlib.contextmanager
def held(
    target: Target, *, wait: float = DEFAULT_WAIT, notify: Callable[[str], None] = lambda text: None
) -> Iterator[databases.Connection]:
    """Hold the lock of a database on a connection of its own, and yield that connection.

    On the migration's connection it would break autocommit blocks. It is polled, never waited for inside the server:
    a waiter there deadlocks with the holder's CREATE INDEX CONCURRENTLY (flyway/flyway#1654). Whatever ends the
    holder's process ends its connection, and with it the lock.

    :param wait: for how many seconds to wait for another holder.
    :param notify: gets one line naming the holder, if there is a wait.

    Raise `LockTimeoutError` if another run holds it for longer than that, and `SettingsError` if the connection leads
    through a pooler in transaction mode, where the lock would be lost.
    """
    with connect(target) as connection:
        acquire(connection, target, wait=wait, notify=notify)
        yield connection


def connect(target: Target) -> databases.Connection:
    """Return a connection that can hold the lock of a database, for :func:`acquire`.

    Raise `SettingsError` if it leads through a pooler in transaction mode.
    """
    connection = databases.connect(target, purpose="lock")
    try:
        told_pid = connection.info.backend_pid
        if _prepare(connection, told_pid) != told_pid:
            _prepare(connection, pooler.backend(target, connection))
    except BaseException:
        connection.close()
        raise
    return connection


def acquire(connection: databases.Connection, target: Target, *, wait: float, notify: Callable[[str], None]) -> None:
    """Take the lock of a database; it is free again when the connection is closed. Otherwise as :func:`held`."""
    deadline = time.monotonic() + wait
    pause, told = _FIRST_POLL, ""
    while not _try(connection):
        holder = _holder(connection)
        if holder and holder != told:
            notify(f"waiting for {holder}")
            told = holder
        if time.monotonic() >= deadline:
            raise LockTimeoutError(
                f"{target.database} is locked by {holder or 'another run'}, and did not come free in {wait:g} s. "
                "Let that run finish, or wait longer with --lock-wait SECONDS."
            )
        time.sleep(min(pause, max(deadline - time.monotonic(), 0)))
        pause = min(pause * 1.5, _LONGEST_POLL)
    # What a killed run has left behind must not begin once another run has looked and found nobody at work.
    interrupt.stop_orphan()


def join(connection: psycopg.Connection[Any]) -> None:
    """Let a connection work in the name of the lock: until it is gone too, the lock is not free.

    :param connection: one in autocommit, of the process that holds the lock.
    """
    connection.execute(f"SELECT pg_advisory_lock_shared({_WORK_KEY})".encode())


def check(connection: databases.Connection) -> None:
    """Raise `LockTimeoutError` if the connection that holds the lock has been ended. Costs no round trip.

    :param connection: what :func:`held` yielded.
    """
    if not is_open(connection):
        raise LockTimeoutError(
            "The connection that held the database's lock was ended (by an administrator, a time limit, a firewall?), "
            "so that another run may be at work. What was under way is rolled back; run the same command again."
        )


def is_open(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server has not ended the connection, as far as it is known here. Costs no round trip."""
    try:
        # Once for the server's last words, if there are any, and once for the end of the line behind them.
        connection.pgconn.consume_input()
        connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return False
    return connection.pgconn.status == pq.ConnStatus.OK


def _prepare(connection: databases.Connection, pid: int) -> int:
    """Return the pid of the backend that answers, made ready if it is the one that is expected.

    The lock's connection does nothing for as long as the run takes, and must not be ended for that. Another backend
    than the server told of is a pooler's: it may be somebody else's a moment later, and is left as it is.
    """
    row = connection.execute(_PREPARE, [pid]).fetchone()
    assert row is not None
    return int(row[0])


def _try(connection: databases.Connection) -> bool:
    row = connection.execute(_TRY).fetchone()
    return row is not None and bool(row[0])


def _holder(connection: databases.Connection) -> str:
    row = connection.execute(_HOLDER).fetchone()
    if row is None:
        return ""
    pid, application, host, since, role = row
    if since is None:
        # Of a role that this one is no member of the server says no more.
        return f"pid {pid}, of role {role}"
    return f"pid {pid} ({application or 'no application name'}) from {host} since {since:%Y-%m-%d %H:%M:%S}"
