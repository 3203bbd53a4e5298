"""SQLAlchemy's adapter of psycopg's asynchronous connection, whose round trips are waited for in the greenlet itself.

SQLAlchemy's own hands each of them to the event loop as a coroutine, and psycopg has the loop's selector learn and
forget the socket for it: see ``tasks.py``. And there is one round trip less in a transaction: BEGIN goes to the server
together with the first statement.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
from psycopg import errors
from psycopg._preparing import Prepare
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import READY_R, WAIT_R, WAIT_RW, Ready, Wait
from sqlalchemy.dialects.postgresql.psycopg import AsyncAdapt_psycopg_connection, AsyncAdapt_psycopg_cursor
from sqlalchemy.util import await_
from sqlalchemy.util.concurrency import in_greenlet

from atriz_database import tasks

# Private names of psycopg: where a release renames one, all goes its own way.
_OF_CONNECTIONS = (
    *("_commit_gen", "_rollback_gen", "_set_autocommit_gen"),
    *("_get_tx_start_command", "_pipeline", "_prepared"),
)
_OF_CURSORS = (
    "_execute_gen",
    "_get_prepared",
    "_convert_query",
    "_set_results",
    "_reset",
    "_make_row",
    "_tx",
    "_last_query",
)


class _DriverCursor(psycopg.AsyncCursor[Any]):
    """A cursor that begins a transaction and runs its first statement in one round trip, where that is prepared."""

    def _execute_gen(
        self, query: Any, params: Any = None, *, prepare: bool | None = None, binary: bool | None = None
    ) -> PQGen[None]:
        connection: Any = self._conn
        if self.closed or prepare is not None or binary is not None or not _begins(connection):
            return (yield from super()._execute_gen(query, params, prepare=prepare, binary=binary))
        # As psycopg does, but for BEGIN.
        self._reset()
        if self._last_query is not query:
            self._last_query = None
            self._tx = Transformer(self)
        statement = self._convert_query(query, params)
        is_prepared, name = self._get_prepared(statement)
        if is_prepared is not Prepare.YES:
            return (yield from super()._execute_gen(query, params))
        pgconn, sent = connection.pgconn, {"param_formats": statement.formats, "result_format": self.format}
        answers = yield from _together(
            pgconn,
            partial(pgconn.send_query_params, connection._get_tx_start_command(), None),
            partial(pgconn.send_query_prepared, name, statement.params, **sent),
        )
        for answer in answers:
            if answer.status == ExecStatus.FATAL_ERROR:
                raise errors.error_from_result(answer, encoding=connection.info.encoding)
        connection._prepared.maybe_add_to_cache(statement, is_prepared, name)
        self._set_results(answers[1:])
        self._last_query = query


def _begins(connection: Any) -> bool:
    """Whether a transaction begins with the next statement, which may be one that is prepared."""
    return (
        connection.pgconn.transaction_status == TransactionStatus.IDLE
        and not connection.autocommit
        and not connection._pipeline
        and connection.prepare_threshold is not None
    )


class Connection(AsyncAdapt_psycopg_connection):
    """SQLAlchemy's connection for tasks, whose round trips are waited for here."""

    __slots__ = ()

    def cursor(self, name: Any = None, /) -> Any:
        """Return a cursor, one of the server's if it has a name."""
        return super().cursor(name) if name else _Cursor(self)  # type: ignore[no-untyped-call]

    def commit(self) -> None:
        """Commit, if there is anything."""
        self.wait(self._connection._commit_gen())

    def rollback(self) -> None:
        """Roll back, if there is anything: SQLAlchemy asks for it after each commit as well."""
        if self._connection.pgconn.transaction_status != TransactionStatus.IDLE:
            self.wait(self._connection._rollback_gen())

    def set_autocommit(self, value: bool) -> None:
        """Have each statement be a transaction by itself, or not."""
        self.wait(self._connection._set_autocommit_gen(value))

    def wait(self, generator: PQGen[Any]) -> Any:
        """Return what a generator of psycopg's returns that talks to the server."""
        lock = self._connection.lock
        _acquire(lock)
        try:
            return _wait(self._connection, generator)
        except psycopg.Error as error:
            raise error.with_traceback(None)  # noqa: B904 -- as psycopg does: the frames hold parameters
        finally:
            lock.release()


class _Cursor(AsyncAdapt_psycopg_cursor):
    __slots__ = ()

    def _aenter_cursor(self, cursor: Any) -> Any:
        return cursor  # There is nothing to enter.

    def execute(self, operation: Any, parameters: Any = None) -> None:
        cursor: Any = self._cursor
        connection: Any = self._adapt_connection
        connection.wait(cursor._execute_gen(operation, parameters, prepare=None, binary=None))
        if cursor.pgresult and cursor.pgresult.status == ExecStatus.TUPLES_OK:
            self._rows = deque(cursor._tx.load_rows(0, cursor.pgresult.ntuples, cursor._make_row))


def connected(connection: Any) -> Any:
    """Return a connection that waits here in the place of SQLAlchemy's, if system and psycopg have what that takes."""
    driver = connection.driver_connection
    has_all = all(hasattr(driver, name) for name in _OF_CONNECTIONS) and all(
        hasattr(driver.cursor_factory, name) for name in _OF_CURSORS
    )
    if hasattr(select, "epoll") and has_all and psycopg.Pipeline.is_supported():
        driver.cursor_factory = _DriverCursor
        return Connection(connection.dbapi, driver)
    return connection


def _wait(connection: Any, generator: PQGen[Any]) -> Any:
    try:
        state = next(generator)
        while state == WAIT_R:
            try:
                tasks.readable(connection.pgconn.socket)
                if connection.closed:  # By another task. The generator would read memory that is libpq's no more.
                    raise psycopg.OperationalError("the connection was closed while a statement was under way")
                connection.answered = time.monotonic()
            except OSError:
                break  # The system has no room for one more; the loop's selector may.
            except BaseException as error:
                if connection.closed:
                    raise  # There is no statement to end any more.
                # A task that is cancelled, most of all: psycopg ends the statement then, and hears it out.
                return _go_on(connection, _Rest(generator, state, error))
            state = generator.send(READY_R)
    except StopIteration as end:
        return end.value
    # Most of all a statement that is too long to be sent at once.
    return _go_on(connection, _Rest(generator, state, None))


def _together(pgconn: PGconn, *sends: Callable[[], None]) -> PQGen[list[PGresult]]:
    """Send several statements at once and return their answers, of which those behind one that fails say nothing.

    Raise `psycopg.OperationalError` if the connection breaks, and the server has not said why.
    """
    answers: list[PGresult] = []
    unsent: Exception | None = None
    pgconn.enter_pipeline_mode()
    try:
        try:
            for send in sends:
                send()
        except Exception as error:
            # A value that cannot be sent, most of all. What was sent before is heard out, or it would be in the way.
            unsent = error
        pgconn.pipeline_sync()
        while pgconn.flush():
            if (yield WAIT_RW) & READY_R:
                pgconn.consume_input()
        while True:
            while pgconn.is_busy():
                yield WAIT_R
                pgconn.consume_input()
            answer = pgconn.get_result()
            if answer is None:
                if pgconn.status == ConnStatus.BAD:
                    raise psycopg.OperationalError(pgconn.get_error_message())
            elif answer.status == ExecStatus.PIPELINE_SYNC:
                break
            else:
                answers.append(answer)
    except psycopg.OperationalError:
        # What the server said before it ended the connection says more.
        if not any(each.status == ExecStatus.FATAL_ERROR for each in answers):
            raise
    finally:
        with suppress(psycopg.Error):  # The connection is gone, or whoever waited has given up.
            pgconn.exit_pipeline_mode()
    if unsent is not None:
        raise unsent
    return answers


def _acquire(lock: asyncio.Lock) -> None:
    """Take a lock, without a round through the event loop where nobody has it.

    Raise `MissingGreenlet` where nobody could wait for an answer: before anything is sent, or it would be in the way.
    """
    if in_greenlet():
        taking = lock.acquire()
        try:
            taking.send(None)
        except StopIteration:
            return
        taking.close()
    await_(lock.acquire())


def _go_on(connection: psycopg.AsyncConnection[Any], rest: Any) -> Any:
    return await_(connection.wait(rest))


class _Rest:
    """A generator that has begun as one that has not; where somebody was interrupted, it begins with that."""

    def __init__(self, generator: PQGen[Any], state: Wait, error: BaseException | None) -> None:
        self._generator = generator
        self._state = state
        self._error = error

    def __next__(self) -> Wait:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._state

    def send(self, ready: Ready) -> Wait:
        return self._generator.send(ready)
