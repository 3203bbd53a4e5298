"""The connection that revisions run on: its limits, and what it refuses."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy
from psycopg import errors, generators, pq, sql

from atriz_database import databases, interrupt, lock
from atriz_database.errors import MigrationError
from atriz_database.migrations.journal import Journal
from atriz_database.migrations.script import transaction_statement
from atriz_database.settings import Target

# What may change a setting of the session, which the next revision would then run with, or forget what it has prepared.
_SETTING = re.compile(r"\b(?:SET|RESET|SET_CONFIG|DISCARD|DEALLOCATE)\b", re.IGNORECASE)
_ENDS = ("COMMIT", "PREPARE TRANSACTION")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a revision may take, and wait."""

    lock_timeout: float = 5.0
    """Seconds that a statement waits for a lock: whoever comes after it waits behind it. 0 is without end."""
    statement_timeout: float | None = None
    """Seconds that a statement may take; 0 is without end, `None` what the server says."""


class _Cursor(psycopg.Cursor[Any]):
    """Runs a revision's statements, unless they begin or end its transaction."""

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        connection = self.connection
        assert isinstance(connection, Session)
        text = _text(query, self)
        if _SETTING.search(text):
            connection.journal.session_changed = True
        if connection.autocommit:
            return super().execute(query, *args, **kwargs)
        if found := transaction_statement(text):
            raise errors.InvalidTransactionTermination(
                f"a revision is one transaction, which the run begins and ends, and this one says {found}. "
                "Take such statements out; what cannot run in a transaction goes through outside_transaction."
            )
        done = super().execute(query, *args, **kwargs)
        _refuse_commit(self)
        return done


class Session(psycopg.Connection[Any]):
    """A connection that tells the journal of its commits, and spends few round trips on each revision."""

    journal: Journal
    _commit_is_sent = False

    def commit(self) -> None:
        """Commit the revision with its rows. SQLAlchemy's own event comes before it is known to have happened."""
        if self.autocommit:
            return  # The end of an autocommit block: its revision goes on, and so does its time.
        self.settle()
        if self.journal.is_in_revision:
            raise errors.InvalidTransactionTermination(
                "a revision is one transaction, which the run begins and ends, and this one calls commit(). Take "
                "the call out; what cannot run in a transaction goes through outside_transaction."
            )
        self.journal.before_commit()
        # Signals wait: what is committed is also told.
        with interrupt.blocked():
            if rows := self.journal.take_rows():
                self._send(rows + b"; COMMIT")
                self.pgconn.flush()
                self._commit_is_sent = True
                self.journal.sent()
            else:
                super().commit()
                self.journal.committed()
        if not self.journal.overlaps:
            self.settle()

    def join_lock(self) -> None:
        """Work in the name of the database's lock, which this process holds."""
        self.autocommit = True
        lock.join(self)
        self.autocommit = False

    def settle(self) -> None:
        """Hear the server's answer to the last commit, before anything else is asked of it.

        While the server commits, the next revision's files are read and its statements made.

        Raise `MigrationError` if that revision was not committed.
        """
        if not self._commit_is_sent:
            return
        self._commit_is_sent = False
        # Signals wait: what is committed is also told.
        with interrupt.blocked():
            try:
                self._receive()
            except psycopg.Error as error:
                # By libpq alone: psycopg's own lock may be held by the statement that is to come next.
                self.pgconn.exec_(b"ROLLBACK")
                raise self.journal.failed(error) from error
            self.journal.settled()

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Go on with something that psycopg asks of the server, whatever it is."""
        self.settle()
        return super().wait(*args, **kwargs)

    def rollback(self) -> None:
        """Roll back, and have the journal forget."""
        # Where that one was not committed there is nothing else to roll back; the journal knows.
        with contextlib.suppress(MigrationError):
            self.settle()
        self.journal.rolled_back()
        try:
            super().rollback()
        except psycopg.OperationalError:
            # With the connection gone all is rolled back; SQLAlchemy would log this with a traceback.
            if not self.closed:
                raise

    def run_ddl(self, statement: str) -> None:
        """Run a statement that SQLAlchemy has made, which has no parameters and no result.

        Raise `sqlalchemy.exc.DBAPIError`, as SQLAlchemy's own way to the server would.
        """
        try:
            # SQLAlchemy doubles the percent signs for a driver that looks for parameters.
            self._send(statement.replace("%%", "%").encode())
            self._receive()
        except psycopg.Error as error:
            raise sqlalchemy.exc.DBAPIError.instance(statement, None, error, psycopg.Error) from error

    def _send(self, statements: bytes) -> None:
        """Send statements for the revision's transaction, which begins with them if it has not yet."""
        self.settle()
        idle = self.pgconn.transaction_status == pq.TransactionStatus.IDLE
        self.pgconn.send_query(b"BEGIN;" + statements if idle else statements)

    def _receive(self) -> None:
        *_, last = super().wait(generators.execute(self.pgconn))
        if last.status == pq.ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(last)


@contextlib.contextmanager
def opened(target: Target, journal: Journal, limits: Limits) -> Iterator[sqlalchemy.Connection]:
    """Connect to a database for its revisions, and yield the connection, which tells the journal of its commits."""

    def connect() -> Session:
        # A statement that is prepared fails once a revision has changed its table.
        given = {**databases.parameters(target, "migrate"), "prepare_threshold": None}
        made = Session.connect(**given, autocommit=True)
        made.journal = journal
        journal.reset = _limit(made, limits)
        made.autocommit = False
        made.cursor_factory = _Cursor
        return made

    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=connect, poolclass=sqlalchemy.NullPool, use_native_hstore=False
    )
    connection = engine.connect()
    try:
        yield connection
    finally:
        # A signal that came in here SQLAlchemy would log with a traceback.
        with interrupt.blocked():
            connection.close()


def _limit(connection: psycopg.Connection[Any], limits: Limits) -> str:
    """Set the run's limits, and return the statements that take a session back to them."""
    settings = {
        "lock_timeout": f"{limits.lock_timeout * 1000:.0f}",
        # A revision may compute for longer than a web request may be idle.
        "idle_in_transaction_session_timeout": "0",
        # Only the end of the run waits for the disk (`Journal.flush`). Commits become durable in their order, so that a
        # loss of power before takes the last revisions whole, version row and all, and the next run applies them again.
        "synchronous_commit": "off",
    }
    if limits.statement_timeout is not None:
        settings["statement_timeout"] = f"{limits.statement_timeout * 1000:.0f}"
    set_all = "; ".join(f"SET {name} = {value}" for name, value in settings.items())
    connection.execute(set_all.encode())
    if connection.info.server_version >= 140000:
        # So that the server ends the statement of a client that was killed, and lets go of its locks. Where the
        # server's own system has no way to tell, it refuses the setting.
        with contextlib.suppress(errors.InvalidParameterValue):
            checked = "SET client_connection_check_interval = 1000"
            connection.execute(checked.encode())
            set_all = f"{set_all}; {checked}"
    return f"SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; {set_all}"


def _text(query: object, cursor: psycopg.Cursor[Any]) -> str:
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    return query.as_string(cursor) if isinstance(query, sql.Composable) else str(query)


def _refuse_commit(cursor: psycopg.Cursor[Any]) -> None:
    """Raise an error where a script has ended the transaction in its middle: the server says what it did."""
    tags = [cursor.statusmessage or ""]
    if cursor.nextset():
        tags += [each.statusmessage or "" for each in cursor.results()]
        cursor.set_result(0)
    ended = any(tag in _ENDS for tag in tags)
    idle = cursor.connection.info.transaction_status == pq.TransactionStatus.IDLE
    # ROLLBACK is also what a savepoint's is called, after which the transaction goes on.
    if ended or ("ROLLBACK" in tags and (idle or "BEGIN" in tags)):
        raise errors.InvalidTransactionTermination(
            "the revision ended its own transaction. What it did until there is committed, and not recorded: undo it "
            "by hand. Then take COMMIT and ROLLBACK out of the revision, which is one transaction as it is."
        )
