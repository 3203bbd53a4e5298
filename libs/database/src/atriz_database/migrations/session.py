"""The connection that revisions run on: its limits, and what it refuses."""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy
from psycopg import errors, generators, pq, sql, waiting

from atriz_database import databases, interrupt, lock
from atriz_database.errors import AtrizError
from atriz_database.migrations import dialect
from atriz_database.migrations.batch import Batch, Sent, Statement, Transaction
from atriz_database.migrations.journal import IN_TRANSACTION, Journal
from atriz_database.migrations.script import transaction_statement
from atriz_database.settings import Target

# What may change a setting of the session, which the next revision would then run with, or forget what it has prepared.
_SETTING = re.compile(r"\b(?:SET|RESET|SET_CONFIG|DISCARD|DEALLOCATE)\b", re.IGNORECASE)
_ENDS = ("COMMIT", "PREPARE TRANSACTION")
_CANCEL_SECONDS = 5.0
# How many revisions go to the server in one string at most: what the first of them has done is told with the last.
_TOGETHER = 16


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
    """A connection that tells the journal of its commits, and spends one round trip on most revisions.

    What SQLAlchemy has made of a revision's operations is held until something asks for an answer, and after that no
    more: there may be a savepoint. Where nothing asks, it goes in one string with the revision's rows and its COMMIT,
    and the next ones are prepared while the server works. Those that are ready when it is done go together, each a
    transaction of its own still: of a string the server runs nothing behind what fails.
    """

    journal: Journal
    schema: str | None = None
    """The schema that what is made goes to, if there is one."""
    isolation = ""
    """The level that transactions have, as SQLAlchemy writes it."""
    _held: tuple[Statement, ...] = ()
    """Statements of the revision under way that the server has not been sent yet."""
    _ready: tuple[Transaction, ...] = ()
    """Revisions that the server has not been sent yet."""
    _sent: Sent | None = None
    """Revisions that the server has been sent, and has not answered all of."""
    _together = 1
    """How many revisions may go in the next string."""

    @property
    def follows(self) -> bool:
        """Whether the revision under way will go behind another in one string."""
        return bool(self._ready)

    def commit(self) -> None:
        """Commit the revision with its rows. SQLAlchemy's own event comes before it is known to have happened."""
        if self.autocommit:
            return  # The end of an autocommit block: its revision goes on, and so does its time.
        if self.journal.is_in_revision:
            self.settle()
            raise errors.InvalidTransactionTermination(
                "a revision is one transaction, which the run begins and ends, and this one calls commit(). Take "
                "the call out; what cannot run in a transaction goes through outside_transaction."
            )
        # Signals wait: what is committed is also told.
        with interrupt.blocked():
            if rows := self.journal.take_rows():
                self._ready = (*self._ready, (*self._take_held(), *map(Statement, rows), Statement("COMMIT")))
                self.journal.set_apart()
            else:
                super().commit()
                self.journal.committed()
            if self.journal.overlaps:
                self._go_on()
            else:
                self.settle()

    def join_lock(self) -> None:
        """Work in the name of the database's lock, which this process holds."""
        self.autocommit = True
        lock.join(self)
        self.autocommit = False

    def hold(self, statement: Statement) -> None:
        """Have a statement run that SQLAlchemy has made, which has no parameters and no result.

        Raise `sqlalchemy.exc.DBAPIError` if one that was held fails, which need not be this one.
        """
        statement.sql.encode()  # What cannot be sent is an error of this revision, and not of those it goes with.
        self._held = (*self._held, statement)
        if self.pgconn.transaction_status in IN_TRANSACTION or ";" in statement.sql:
            # With a semicolon it may be several, and the one that failed is found by its number.
            self._send_held()

    def settle(self) -> None:
        """Send what is ready and hear the server's answers, before anything else is asked of it.

        Raise `MigrationError` if a revision was not committed, and `LockTimeoutError` if the lock is gone.
        """
        # Signals wait: what is committed is also told.
        with interrupt.blocked():
            while self._sent or self._ready:
                self._hear()
                self._send_ready()

    def _go_on(self) -> None:
        """Send what is ready if the server is done with what it has, and wait for that only if enough is ready."""
        while self._ready and (len(self._ready) >= self._together or self._may_hear()):
            self._hear()
            self._send_ready()

    def _send_ready(self) -> None:
        if not self._ready:
            return
        now, later = self._ready[: self._together], self._ready[self._together :]
        self._ready = ()
        self.journal.check_lock()
        self._sent, self._ready = Sent(now, self._send(*itertools.chain.from_iterable(now))), later

    def _hear(self) -> None:
        """Hear the answer to what was sent, and tell of what is committed."""
        if self._sent is None:
            return
        sent, since = self._sent, time.perf_counter()
        interrupts: list[KeyboardInterrupt] = []
        try:
            if not self._is_answered():
                super().wait(self._answering(sent, interrupts))
            _refuse_failure(sent.answers)
        except psycopg.Error as error:
            # By libpq alone: psycopg's own lock may be held by the statement that is to come next. With the connection
            # gone there is nothing to roll back.
            with contextlib.suppress(psycopg.Error):
                self.pgconn.exec_(b"ROLLBACK")
            if sent.is_unread and self.pgconn.status == pq.ConnStatus.OK:
                # The server reads a string as a whole first. What stands before the fault is not to suffer for it.
                self._sent, self._ready, self._together = None, (*sent.revisions, *self._ready), 1
                return
            self._sent, self._ready = None, ()
            self.journal.settled(sent.committed)
            failed = self.journal.failed(error, sent.batch.failed(len(sent.answers), error))
            raise (*interrupts, failed)[0] from error
        self._sent = None
        self.journal.settled(sent.committed, time.perf_counter() - since)
        self._together = min(self._together * 2, _TOGETHER) if sent.was_quick else 1
        for interrupted in interrupts:
            raise interrupted

    def _may_hear(self) -> bool:
        try:
            return self._is_answered()
        except psycopg.OperationalError:
            return True  # The connection is gone, and what that means is found where it is heard.

    def _is_answered(self) -> bool:
        """Whether the server has answered all that it was sent; what there is of its answers is taken."""
        if self._sent is None:
            return True
        self.pgconn.flush()
        self.pgconn.consume_input()
        while not self.pgconn.is_busy():
            answer = self.pgconn.get_result()
            if answer is None:
                return True
            self._sent.answers.append(answer)
        return False

    def _answering(
        self, sent: Sent, interrupts: list[KeyboardInterrupt]
    ) -> Generator[waiting.Wait, waiting.Ready | int, None]:
        """Have psycopg wait for the answers to what was sent.

        Each time it has waited in vain a signal may come in. It is added to `interrupts`, and the server is to end what
        it is at.
        """
        while not self._is_answered():
            if sent.is_unwanted:
                # Again, because what was sent may only be on its way when it is cancelled, and nothing comes of that.
                self._cancel()
            ready = yield waiting.WAIT_RW if self.pgconn.flush() else waiting.WAIT_R
            if not ready:
                try:
                    with interrupt.unblocked():
                        pass
                except KeyboardInterrupt as error:
                    interrupts.append(error)
                    sent.is_unwanted = True

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Go on with something that psycopg asks of the server, whatever it is."""
        self.settle()
        self._send_held()
        self._begins()
        return super().wait(*args, **kwargs)

    def rollback(self) -> None:
        """Roll back, and have the journal forget."""
        self._held = ()
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            # Nobody waits for the revisions before either; what is committed all the same is told.
            self._ready = ()
            if self._sent:
                self._sent.is_unwanted = True
        # Where one of those was not committed there is nothing else to roll back; the journal knows.
        with contextlib.suppress(AtrizError):
            self.settle()
        self.journal.rolled_back()
        try:
            super().rollback()
        except psycopg.OperationalError:
            # With the connection gone all is rolled back; SQLAlchemy would log this with a traceback.
            if not self.closed:
                raise

    def _send_held(self) -> None:
        if not self._held:
            return
        self.settle()
        batch = self._send(*self._take_held())
        answers: list[pq.abc.PGresult] = []
        try:
            answers += super().wait(generators.execute(self.pgconn))
            _refuse_failure(answers)
        except psycopg.Error as error:
            failed = batch.failed(len(answers), error)
            statement = failed.sql if failed else batch.sql
            told = sqlalchemy.exc.DBAPIError.instance(statement, None, error, psycopg.Error)
            if failed:
                told.place = failed.place  # type: ignore[attr-defined]
            raise told from error

    def close(self) -> None:
        """Close the connection; what it is still at ends before, and what is committed all the same is told.

        SQLAlchemy closes it without a word where Ctrl-C comes in as a commit ends.
        """
        self._held, self._ready = (), ()
        with interrupt.blocked():
            if self._sent:
                self._sent.is_unwanted = True
            with contextlib.suppress(AtrizError):
                self.settle()
        super().close()

    def _take_held(self) -> tuple[Statement, ...]:
        """Return the statements that are held, with what begins the revision's transaction if it has not begun."""
        held, self._held = self._held, ()
        return (Statement("BEGIN"), *held) if self._begins() else held

    def _send(self, *statements: Statement) -> Batch:
        batch = Batch(statements)
        self.pgconn.send_query(batch.sql.encode())
        self.pgconn.flush()
        return batch

    def _begins(self) -> bool:
        """Whether a transaction begins with what is asked next; the journal is told."""
        begins = self._sent is not None or self.pgconn.transaction_status not in IN_TRANSACTION
        if begins:
            self.journal.begins()
        return begins

    def _cancel(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self.cancel_safe(timeout=_CANCEL_SECONDS)


def _refuse_failure(answers: list[pq.abc.PGresult]) -> None:
    if answers and answers[-1].status == pq.ExecStatus.FATAL_ERROR:
        raise errors.error_from_result(answers.pop())


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
        "postgresql+atriz://", creator=connect, poolclass=sqlalchemy.NullPool, use_native_hstore=False
    )
    connection = engine.connect()
    try:
        yield connection
    finally:
        # A signal that came in here SQLAlchemy would log with a traceback.
        with interrupt.blocked():
            connection.close()


def _limit(connection: Session, limits: Limits) -> str:
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
    # So that the server ends the statement of a client that was killed, and lets go of its locks.
    checked = {"client_connection_check_interval": "1000"} if connection.info.server_version >= 140000 else {}
    try:
        set_all = _set(connection, settings | checked)
    except errors.InvalidParameterValue:
        # The server's own system has no way to tell.
        set_all = _set(connection, settings)
    return f"SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; {set_all}"


def _set(connection: Session, settings: dict[str, str]) -> str:
    """Set `settings`, and return the statements; what SQLAlchemy wants to know is asked in the same round trip."""
    set_all = "; ".join(f"SET {name} = {value}" for name, value in settings.items())
    cursor = connection.execute(f"{set_all}; {dialect.ASK}".encode())
    while cursor.nextset():
        pass
    connection.schema, isolation = cursor.fetchone() or (None, "")
    connection.isolation = isolation.upper()
    return set_all


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
