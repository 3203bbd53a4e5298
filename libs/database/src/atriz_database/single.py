"""One statement that is a transaction by itself: one round trip, where a block takes three.

What SQLAlchemy does around a statement takes longer than all the rest, and under many threads three times as long. So
text goes straight to the driver, on a connection of SQLAlchemy's pool, and becomes SQLAlchemy's rows and errors again.
Statements of SQLAlchemy's own go its way, and so does everything as soon as somebody listens to the engine's events.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn, Protocol, TypeVar

import sqlalchemy
from psycopg import Error, ProgrammingError
from sqlalchemy import Connection, Engine, Executable, Row
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.pool import PoolProxiedConnection

from atriz_database.errors import OutcomeUnknownError, TransactionError
from atriz_database.transaction import said

T = TypeVar("T")
_Rows = Sequence[Row[*tuple[Any, ...]]]

_EVENTS = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")
_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]
_REMEMBERED = 512


class Answer(Protocol):
    """What a statement brought; a result of SQLAlchemy's is one."""

    @property
    def rowcount(self) -> int:
        """How many rows it affected; below 0 where nothing is counted."""

    def all(self) -> _Rows:
        """Return its rows.

        Raise `ResourceClosedError` if it has none, as INSERT.
        """


def run(engine: Engine, statement: str | Executable, parameters: dict[str, Any], read: Callable[[Answer], T]) -> T:
    """Return what `read` makes of the answer to a statement.

    Raise SQLAlchemy's errors, `TransactionError` if the statement began a transaction, and `OutcomeUnknownError` if
    the connection broke and the server didn't say why: it may have committed.
    """
    if isinstance(statement, str):
        plain = _plain(statement)
        # Where names are missing or too many SQLAlchemy has its own words for that.
        if plain.names == parameters.keys() and not _is_watched(engine):
            return _straight(engine, plain.sql, parameters, read)
        statement = text(statement)
    with engine.connect() as connection:
        # The driver's own, and not SQLAlchemy's isolation level AUTOCOMMIT, which takes twice as long to set.
        connection.connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]
        with _single(connection):
            return read(connection.execute(statement, parameters))


@lru_cache(maxsize=_REMEMBERED)
def text(statement: str) -> Executable:
    """Return SQLAlchemy's form of a statement; the same text means the same for ever."""
    return sqlalchemy.text(statement)


@dataclass(frozen=True, slots=True)
class _Plain:
    """A statement as the driver takes it."""

    sql: str
    names: Set[str]
    """Of its parameters."""


@lru_cache(maxsize=_REMEMBERED)
def _plain(statement: str) -> _Plain:
    compiled = text(statement).compile(dialect=_DIALECT)  # type: ignore[attr-defined]
    return _Plain(str(compiled), compiled.params.keys())


def _is_watched(engine: Engine) -> bool:
    """Whether somebody wants to know of each statement: a listener, or the log."""
    return any(getattr(engine.dispatch, name) for name in _EVENTS) or engine.logger.isEnabledFor(logging.INFO)


def _straight(engine: Engine, sql: str, parameters: dict[str, Any], read: Callable[[Answer], T]) -> T:
    try:
        pooled = engine.pool.connect()
    except Error as error:
        Connection._handle_dbapi_exception_noconnection(error, engine.dialect, engine)
    driver: Any = pooled.dbapi_connection
    try:
        driver.autocommit = True
        cursor = driver.cursor()
        cursor.execute(sql, parameters)
        done = read(_Fetched(cursor))
        cursor.close()
    except Exception as error:
        if isinstance(error, Error):
            _fail(engine, pooled, error, sql, parameters)
        _end(pooled, driver)
        pooled.close()
        raise
    except BaseException as error:
        _fail(engine, pooled, error, None, None)
    _end(pooled, driver)
    pooled.close()
    return done


def _fail(
    engine: Engine,
    pooled: PoolProxiedConnection,
    error: BaseException,
    sql: str | None,
    parameters: dict[str, Any] | None,
) -> NoReturn:
    """Go on in SQLAlchemy's way: what an error means for the connection and for the pool, and its own error."""
    with Connection(engine, pooled) as connection, _single(connection):
        connection._handle_dbapi_exception(error, sql, parameters, None, None)


class _Fetched:
    """The answer in a cursor of the driver's."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    @property
    def rowcount(self) -> int:
        """How many rows it affected."""
        count: int = self._cursor.rowcount
        return count

    def all(self) -> _Rows:
        """Return its rows."""
        columns = self._cursor.description
        if columns is None:
            # SQLAlchemy's words.
            raise ResourceClosedError("This result object does not return rows. It has been closed automatically.")
        metadata = _metadata(tuple([column[0] for column in columns]))
        return IteratorResult(metadata, iter(self._cursor.fetchall())).all()


@lru_cache(maxsize=_REMEMBERED)
def _metadata(names: tuple[str, ...]) -> SimpleResultMetaData:
    # A name that two columns have is an error where it is used, and not one of the two.
    several = frozenset(name for name in names if names.count(name) > 1)
    return SimpleResultMetaData(names, _ambiguous_keys=several)


@contextmanager
def _single(connection: Connection) -> Iterator[None]:
    """Run one statement on a connection whose driver is in autocommit, and take it out of that."""
    name = connection.engine.pool.logging_name
    driver = connection.connection.dbapi_connection
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated and not _by_server(error):
            raise OutcomeUnknownError(
                f"The connection to {name} broke while a statement was under way. If it was to change something, it is "
                f"not known whether it has: look before you run it again. The driver said: {said(error)}"
            ) from error
        raise
    finally:
        if not connection.invalidated:
            _end(connection, driver)


def _end(pooled: Connection | PoolProxiedConnection, driver: Any) -> None:
    try:
        driver.autocommit = False
    except BaseException as error:
        pooled.invalidate(error)
        if isinstance(error, ProgrammingError):
            raise TransactionError(
                "The statement began a transaction, which was rolled back: use transaction() for more than one."
            ) from None
        raise


def _by_server(error: DBAPIError) -> bool:
    """Whether the server itself said why it ended the connection, and so rolled back.

    A pooler says something as well, when it has lost the server, and knows no more than we do. Only PostgreSQL says
    where in its source an error was raised.
    """
    return isinstance(error.orig, Error) and error.orig.diag.source_function is not None
