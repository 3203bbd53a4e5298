"""Text that goes straight to the driver: a statement of a block, or one that is a transaction by itself.

The latter is one round trip, where a block takes three. What SQLAlchemy does around a statement takes longer than all
the rest, and under many threads three times as long. So text goes straight to the driver, on a connection of
SQLAlchemy's pool, and becomes SQLAlchemy's rows and errors again. Statements of SQLAlchemy's own go its way, and so
does everything as soon as somebody listens to the events of engine or connection.
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
from sqlalchemy import Connection, Dialect, Engine, Executable, Row
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.pool import PoolProxiedConnection

from atriz_database.driver import Connection as DriverConnection
from atriz_database.driver import ServerEndedError
from atriz_database.errors import OutcomeUnknownError, TransactionError
from atriz_database.transaction import said

T = TypeVar("T")
_Rows = Sequence[Row[*tuple[Any, ...]]]

# Options that hold for the transaction, which has begun with them.
_OF_TRANSACTIONS = {"isolation_level", "postgresql_readonly"}
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
            return _alone(engine, plain.sql, parameters, read)
        statement = text(statement)
    with engine.connect() as connection:
        # The driver's own, and not SQLAlchemy's isolation level AUTOCOMMIT, which takes twice as long to set.
        connection.connection.dbapi_connection.autocommit = True  # type: ignore[union-attr]
        with _single(connection):
            return read(connection.execute(statement, parameters))


def run_in(
    connection: Connection, statement: str | Executable, parameters: dict[str, Any], read: Callable[[Answer], T]
) -> T:
    """Do the same in the transaction that a connection is in.

    Raise SQLAlchemy's errors.
    """
    if isinstance(statement, str):
        plain = _plain(statement)
        # What must not go on SQLAlchemy refuses, in its own words.
        if plain.names == parameters.keys() and _goes_on(connection) and not _is_watched(connection.engine, connection):
            try:
                return _ask(connection.connection.dbapi_connection, plain.sql, parameters, read)
            except Error as error:
                connection._handle_dbapi_exception(error, plain.sql, parameters, None, None)
            except Exception:
                raise
            except BaseException as error:
                connection._handle_dbapi_exception(error, None, None, None, None)
        statement = text(statement)
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
    compiled = text(statement).compile(dialect=_dialect())  # type: ignore[attr-defined]
    sql, names = str(compiled), compiled.params.keys()
    return _Plain(sql if names else sql.replace("%%", "%"), names)


@lru_cache(maxsize=1)
def _dialect() -> Dialect:
    # Loaded with the first engine, and not when an application is imported: SQLAlchemy has one for each driver.
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    return PGDialect_psycopg()  # type: ignore[no-untyped-call]


def _is_watched(engine: Engine, connection: Connection | None = None) -> bool:
    """Whether somebody wants to know of each statement, a listener or the log, or has set how it is to be run."""
    if engine._has_events or engine.logger.isEnabledFor(logging.INFO):
        return True
    if connection is None:
        return False
    options = connection.get_execution_options()
    return connection._has_events or bool(options and options.keys() - _OF_TRANSACTIONS)


def _goes_on(connection: Connection) -> bool:
    """Whether the connection's transaction, and the block that it is in, may have another statement."""
    block = connection._trans_context_manager
    return connection.in_transaction() and (block is None or block._transaction_is_active())


def _alone(engine: Engine, sql: str, parameters: dict[str, Any], read: Callable[[Answer], T]) -> T:
    try:
        pooled = engine.pool.connect()
    except Error as error:
        Connection._handle_dbapi_exception_noconnection(error, engine.dialect, engine)
    driver: Any = pooled.dbapi_connection
    try:
        driver.autocommit = True
        done = _ask(driver, sql, parameters, read)
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


def _ask(driver: Any, sql: str, parameters: dict[str, Any], read: Callable[[Answer], T]) -> T:
    keeps = isinstance(driver, DriverConnection)  # SQLAlchemy's, for tasks, does not.
    cursor = driver.take_cursor() if keeps else driver.cursor()
    # Without parameters nothing is looked for in the text.
    cursor.execute(sql, parameters or None)
    done = read(_Fetched(cursor))
    if keeps:
        driver.give_cursor(cursor)
    else:
        cursor.close()
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
        # SQLAlchemy's cursor for tasks stands before the driver's.
        result = getattr(self._cursor, "_cursor", self._cursor).pgresult
        if not result.nfields and self._cursor.description is None:
            # SQLAlchemy's words.
            raise ResourceClosedError("This result object does not return rows. It has been closed automatically.")
        metadata = _metadata(tuple([result.fname(number) for number in range(result.nfields)]))
        if metadata is None:
            metadata = _named(tuple([column[0] for column in self._cursor.description]))
        index = metadata._key_to_index
        return [Row(metadata, None, index, row) for row in self._cursor.fetchall()]


@lru_cache(maxsize=_REMEMBERED)
def _metadata(names: tuple[bytes, ...]) -> SimpleResultMetaData | None:
    """Return what rows of columns with these names know of them, `None` if that takes the connection's encoding."""
    if not all(name.isascii() for name in names):
        return None
    return _named(tuple([name.decode() for name in names]))


def _named(names: tuple[str, ...]) -> SimpleResultMetaData:
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
    if isinstance(error.orig, ServerEndedError):
        return True  # Of a prepared statement, and behind a pooler none is.
    return isinstance(error.orig, Error) and error.orig.diag.source_function is not None
