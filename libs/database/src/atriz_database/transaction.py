"""Transactions: begun, committed, rolled back, and what may be done again.

The logic of both worlds, written once in its sync form: see ``asynchronous.py``.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, MutableMapping
from dataclasses import dataclass, fields
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal, TypeVar, cast, get_args

from psycopg import Error, pq
from sqlalchemy import Connection, Engine
from sqlalchemy.engine import NestedTransaction, RootTransaction
from sqlalchemy.exc import DBAPIError

from atriz_database.errors import OutcomeUnknownError, TransactionError
from atriz_database.owner import Owner, owner
from atriz_database.pool import SlotPool, has_news

T = TypeVar("T")
Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

# Serialization failure and deadlock: PostgreSQL asks to run the transaction again as a whole.
_AGAIN = frozenset({"40001", "40P01"})
_FIRST_PAUSE_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 1.0
_LONGEST_TIMEOUT_SECONDS = (2**31 - 1) // 1000  # what PostgreSQL takes, in milliseconds


@dataclass(frozen=True, slots=True)
class Options:
    """How a transaction is begun and ended."""

    read_only: bool = False
    """Whether PostgreSQL refuses every change."""
    isolation: Isolation | None = None
    """The isolation level, `None` for the server's default."""
    statement_timeout: float | None = None
    """Seconds that one statement may take."""
    lock_timeout: float | None = None
    """Seconds that one statement may wait for a lock."""
    force_rollback: bool = False
    """Whether to roll back in any case: a dry run."""

    def __post_init__(self) -> None:
        if self.isolation is not None and self.isolation not in get_args(Isolation):
            # SQLAlchemy would take AUTOCOMMIT, in which nothing is rolled back.
            raise ValueError(f"isolation must be {', '.join(get_args(Isolation))} or None, not {self.isolation!r}")

    @property
    def of_outermost(self) -> list[str]:
        """Names of those that were given and hold for a transaction as a whole."""
        names = [field.name for field in fields(self) if field.name != "force_rollback"]
        return [name for name in names if getattr(self, name) not in (None, False)]


# Most blocks of a program are begun in the same few ways.
chosen = lru_cache(maxsize=64)(Options)


class Block:
    """One ``with`` block: a transaction where its thread or task has none yet on this engine, else a savepoint."""

    __slots__ = (
        *("_current", "_engine", "_is_open", "_options", "_outermost", "_owner", "_pid", "_transaction"),
        "connection",
    )

    connection: Connection

    def __init__(self, engine: Engine, current: MutableMapping[Owner, Block], options: Options) -> None:
        self._engine = engine
        self._current = current
        self._options = options
        self._is_open = False

    def __enter__(self) -> Connection:
        if self._is_open:
            raise TransactionError("This block is open already: each `with` needs a transaction() of its own.")
        self._owner = owner()
        self._pid = os.getpid()
        outer = _outermost(self._current, self._owner)
        if outer is not None:
            self._outermost = False
            self._transaction: RootTransaction | NestedTransaction = self._savepoint(outer)
        else:
            self._outermost = True
            self._transaction = self._begin()
            self._current[self._owner] = self
        self._transaction.__enter__()
        self._is_open = True
        return self.connection

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked process's copy of a block that its parent is in, and ends."""
        return os.getpid() != self._pid

    def _savepoint(self, outer: Block) -> NestedTransaction:
        if names := self._options.of_outermost:
            raise TransactionError(
                f"A nested transaction() is a savepoint, for which PostgreSQL has no {' and no '.join(names)}: only "
                "the outermost transaction() takes that. Give it there, or leave the outer block first."
            )
        self.connection = outer.connection
        return outer.connection.begin_nested()

    def _begin(self) -> RootTransaction:
        options = self._options
        self.connection = connection = self._engine.connect()
        try:
            if options.isolation is not None:
                connection.execution_options(isolation_level=options.isolation)
            if options.read_only:
                connection.execution_options(postgresql_readonly=True)
            transaction = connection.begin()
            timeouts = (options.statement_timeout, options.lock_timeout)
            if timeouts != (None, None):
                # As SET LOCAL: gone with the transaction, whoever gets the server's connection next.
                calls = ", ".join(
                    f"set_config('{name}', '{_milliseconds(name, value)}', true)"
                    for name, value in zip(("statement_timeout", "lock_timeout"), timeouts, strict=True)
                    if value is not None
                )
                connection.exec_driver_sql(f"SELECT {calls}")
        except BaseException:
            connection.close()
            raise
        return transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_inherited:
            return
        self._is_open = False
        try:
            if error is not None or self._options.force_rollback:
                self._roll_back(error)
            elif self._outermost:
                self._commit()
            else:
                self._transaction.__exit__(None, None, None)
        finally:
            if self._outermost:
                del self._current[self._owner]
                self.connection.close()

    def _roll_back(self, error: BaseException | None) -> None:
        try:
            # Any type but None means to roll back.
            self._transaction.__exit__(type(error), error, None)
        except DBAPIError:
            # The connection is gone, and the server rolls back what nobody commits. What is to be told is the error
            # that led here, if there is one.
            if not self._outermost and error is None:
                raise

    def _commit(self) -> None:
        connection = self.connection
        if not connection.invalidated:
            driver: Any = connection.connection.driver_connection
            if driver.pgconn.transaction_status == pq.TransactionStatus.INERROR:
                self._roll_back(None)
                raise TransactionError(
                    "A statement of this transaction failed and its error was caught, so PostgreSQL has nothing to "
                    "commit: all of it was rolled back. Put what may fail into a nested transaction(), which is rolled "
                    "back alone."
                )
            idle = time.monotonic() - getattr(driver, "answered", 0.0)
            if cast("SlotPool", self._engine.pool).is_worth_a_look(idle) and has_news(driver):
                # The server may have ended the connection. Then this fails, and COMMIT was never sent.
                connection.exec_driver_sql("SELECT 1")
        try:
            self._transaction.__exit__(None, None, None)
        except DBAPIError as error:
            if not error.connection_invalidated or self._options.read_only:
                raise
            raise OutcomeUnknownError(
                f"The connection to {self._engine.pool.logging_name} broke while COMMIT was under way, so it is not "
                "known whether the transaction is committed. It is so as a whole or not at all: look for what it "
                f"wrote before you run it again. The driver said: {said(error)}"
            ) from error


def current(blocks: Mapping[Owner, Block]) -> Block | None:
    """Return the outermost block of the thread or task that asks."""
    return _outermost(blocks, owner())


def _outermost(blocks: Mapping[Owner, Block], who: Owner) -> Block | None:
    block = blocks.get(who)
    # A forked process has a copy of its parent's transaction, which stays the parent's.
    return block if block is not None and not block.is_inherited else None


def repeat(attempt: Callable[[], T], retries: int, sleep: Callable[[float], object]) -> T:
    """Return what `attempt` returns, called again where PostgreSQL asks for that.

    :param retries: how often it is called again at most.
    :param sleep: waits for a number of seconds.
    """
    for number in range(retries):
        try:
            return attempt()
        except (DBAPIError, Error) as error:
            if sqlstate(error) not in _AGAIN:
                raise
        # Any time up to the longest: those who met once do not meet again.
        sleep(random.uniform(0, min(_FIRST_PAUSE_SECONDS * 2**number, _LONGEST_PAUSE_SECONDS)))  # noqa: S311
    return attempt()


def finished(result: T) -> T:
    """Return what a function returned, which has done its work.

    Raise `TypeError` if calling it was only the beginning: by the time that somebody goes on with a generator or a
    coroutine its transaction is over.
    """
    if isinstance(result, Generator | Coroutine | AsyncGenerator):
        if not isinstance(result, AsyncGenerator):
            result.close()
        raise TypeError(
            f"run() takes a function that does its work when it is called, and this one returned a "
            f"{type(result).__name__}. Database.run() takes a plain function, AsyncDatabase.run() an async one, and "
            "neither one with yield."
        )
    return result


def sqlstate(error: BaseException) -> str | None:
    """Return the server's code of an error, of SQLAlchemy's or of psycopg's."""
    state: str | None = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state


def said(error: DBAPIError) -> str:
    """Return what the driver said, on one line."""
    return " / ".join(line.strip() for line in str(error.orig).splitlines() if line.strip())


def _milliseconds(name: str, seconds: float) -> int:
    if not 0 < seconds <= _LONGEST_TIMEOUT_SECONDS:
        raise ValueError(
            f"{name} must be more than 0 and at most {_LONGEST_TIMEOUT_SECONDS} seconds, not {seconds:g}; leave it out "
            "for no limit"
        )
    return max(1, round(seconds * 1000))
