"""A revision that did not get its lock, or met a deadlock, and is tried again."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

import psycopg
import sqlalchemy
from psycopg import errors

from atriz_database import databases, interrupt
from atriz_database.databases import Notify
from atriz_database.errors import MigrationError
from atriz_database.migrations.explain import without_passwords
from atriz_database.migrations.journal import Journal
from atriz_database.settings import Target

TRANSIENT = (errors.LockNotAvailable, errors.DeadlockDetected, errors.SerializationFailure)
"""What may go well the next time, nothing having been done: 55P03, 40P01, 40001."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_LOOK_EVERY = 1.0
_LONGEST_QUERY = 120

_BLOCKERS = """
    SELECT b.pid, a.application_name, coalesce(a.client_hostname, host(a.client_addr), 'this machine'), a.state,
           coalesce(a.xact_start, a.query_start), left(a.query, 1000), a.usename
    FROM unnest(pg_blocking_pids(%s)) b (pid) LEFT JOIN pg_stat_activity a USING (pid)
    GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 5, 1
"""


class Blockers:
    """Who keeps a connection waiting, asked every second on a connection of its own while it is watched."""

    def __init__(self, target: Target, every: float) -> None:
        self._target = target
        self._every = every
        self._seen: tuple[str, ...] = ()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def watching(self, pid: int) -> Iterator[None]:
        """Watch the backend `pid` while the block runs; a short block costs a thread and no connection."""
        # A daemon: nobody waits for a server that does not answer.
        thread = threading.Thread(target=self._watch, args=(pid,), daemon=True)
        interrupt.start_deaf(thread)
        try:
            yield
        finally:
            self._ended.set()
            thread.join(timeout=1)

    def take(self) -> str:
        """Return who was last seen in the way, and forget it."""
        seen, self._seen = self._seen, ()
        return "; ".join(seen)

    def _watch(self, pid: int) -> None:
        # What it cannot find out it leaves unsaid: the run has troubles of its own then.
        with contextlib.suppress(psycopg.Error, Exception):
            if self._ended.wait(self._every):
                return
            with databases.connect(self._target, purpose="watch") as connection:
                while not self._ended.wait(self._every):
                    if rows := connection.execute(_BLOCKERS, [pid]).fetchall():
                        self._seen = tuple(_described(*row) for row in rows)


def _described(
    pid: int, application: str | None, host: str, state: str | None, since: object, query: str | None, role: str | None
) -> str:
    if state is None or since is None:
        # Of a role that this one is no member of the server says no more.
        return (
            f"pid {pid}{f', of role {role}' if role else ''}"
            if pid
            else "a prepared transaction (see pg_prepared_xacts)"
        )
    text = without_passwords(" ".join((query or "").split()))
    short = text if len(text) <= _LONGEST_QUERY else f"{text[:_LONGEST_QUERY]}…"
    return f"pid {pid} ({application or 'no application name'} from {host}, {state} since {since:%H:%M:%S}): {short}"


def retried(
    work: Callable[[], None], journal: Journal, blockers: Blockers, *, retries: int, notify: Notify, limit: float
) -> None:
    """Do `work`, which goes on from where the database is, and again where its revision may go well the next time.

    A revision that committed in its middle is not tried again: it need not bear it.

    :param retries: how often one revision is tried again.
    :param limit: the lock_timeout in seconds, for the message.

    Raise what `work` raises, with who was in the way where it did not get its lock.
    """
    failed_at, attempts = None, count(1)
    while True:
        try:
            return work()
        except (sqlalchemy.exc.DBAPIError, psycopg.Error, MigrationError) as error:
            cause = _cause(error)
            if cause is None or journal.current is None:
                raise
            if journal.current.id != failed_at:
                failed_at, attempts = journal.current.id, count(1)
            attempt = next(attempts)
            who = blockers.take()
            held = f", held by {who}" if who else ""
            what = _said(cause, limit) + held
            if not journal.is_whole:
                error.add_note(f"It {what}, after it had committed something in its middle: it is not tried again.")
                raise
            if attempt > retries:
                times = "once" if attempt == 1 else f"{attempt} times"
                error.add_note(f"It {what}; tried {times}. Let that end, or end it, and run again.")
                raise
            pause = min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE) * random.uniform(0.5, 1)  # noqa: S311
            notify(f"{journal.current.title} {what}; rolled back, again in {pause:.1f} s ({attempt} of {retries})")
            time.sleep(pause)


def _cause(error: BaseException) -> psycopg.Error | None:
    """Return the server's error behind one of SQLAlchemy's or ours, if it is one that may not come again."""
    seen: BaseException | None = error.orig if isinstance(error, sqlalchemy.exc.DBAPIError) else error
    while seen is not None and not isinstance(seen, psycopg.Error):
        seen = seen.__cause__ or seen.__context__
    return seen if isinstance(seen, TRANSIENT) else None


def _said(cause: psycopg.Error, limit: float) -> str:
    if isinstance(cause, errors.LockNotAvailable):
        return f"did not get a lock within {limit:g} s"
    if isinstance(cause, errors.DeadlockDetected):
        return "met a deadlock"
    return "met a serialization failure"
