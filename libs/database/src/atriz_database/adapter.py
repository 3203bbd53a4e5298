"""SQLAlchemy's adapter of psycopg's asynchronous connection, whose round trips are waited for in the greenlet itself.

SQLAlchemy's own hands each of them to the event loop as a coroutine, and psycopg has the loop's selector learn and
forget the socket for it: see ``tasks.py``.
"""

from __future__ import annotations

import select
from collections import deque
from typing import Any

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.waiting import READY_R, WAIT_R, Ready, Wait
from sqlalchemy.dialects.postgresql.psycopg import AsyncAdapt_psycopg_connection, AsyncAdapt_psycopg_cursor
from sqlalchemy.util import await_

from atriz_database import tasks

# Private names of psycopg: where a release renames one, all goes its own way.
_GENERATORS = ("_commit_gen", "_rollback_gen", "_set_autocommit_gen")
_OF_CURSORS = "_execute_gen"


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
        await_(lock.acquire())
        try:
            return _wait(self._connection, generator)
        except psycopg.Error as error:
            raise error.with_traceback(None) from None  # As psycopg does: the frames hold parameters.
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
            self._rows = deque(await_(cursor.fetchall()))


def connected(connection: Any) -> Any:
    """Return a connection that waits here in the place of SQLAlchemy's, if system and psycopg have what that takes."""
    driver = connection.driver_connection
    has_all = all(hasattr(driver, name) for name in _GENERATORS) and hasattr(driver.cursor_factory, _OF_CURSORS)
    if hasattr(select, "epoll") and has_all:
        return Connection(connection.dbapi, driver)
    return connection


def _wait(connection: psycopg.AsyncConnection[Any], generator: PQGen[Any]) -> Any:
    try:
        state = next(generator)
        while state == WAIT_R:
            try:
                tasks.readable(connection.pgconn.socket)
                if connection.closed:  # By another task. The generator would read memory that is libpq's no more.
                    raise psycopg.OperationalError("the connection was closed while a statement was under way")
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
