"""One database of an application: queries, transactions, sessions, and the pool behind them."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Engine, Executable, Row, Table

from atriz_database import libpq, settings, single, transaction, workspace
from atriz_database.engine import PoolOptions, PoolSettings, create_engine
from atriz_database.errors import WorkspaceError
from atriz_database.owner import Owner
from atriz_database.pool import PoolState, SlotPool
from atriz_database.single import Answer
from atriz_database.transaction import Block, Isolation, chosen
from atriz_database.url import DatabaseURL

if TYPE_CHECKING:
    from typing import Self, Unpack

    from sqlalchemy.orm import Session

    from atriz_database.bulk import AsyncRows, Rows

T = TypeVar("T")


class Database:
    """A database and a pool of connections to it, for all threads of a program.

    Made once for as long as the program runs, and closed once. The first connection is made when it is needed.

    :param url: where the database is. ``?pooler=transaction`` says that PgBouncer, or the like, stands before it in
        transaction mode.
    :param name: what the server shows beside the connections, and what messages call the database; the database's
        name where not given.
    :param pool_size: connections that are made at most.
    :param pool_timeout: seconds to wait for a connection while all are in use.
    :param recycle: seconds after which a connection is replaced, when it is next asked for; ``inf`` is never.
    :param pre_ping: whether to look at a connection before it is handed out, and replace a broken one.
    :param production: whether to refuse a URL that leads to another host without TLS, `None` to ask APP_ENV in the
        process environment.

    Raise `SettingsError` if the URL cannot be used, and `ValueError` if there cannot be such a pool.

    >>> database = Database("postgresql://ann@db.example.com/mextrack_db?sslmode=verify-full", pool_size=20)
    >>> database
    <Database mextrack_db at postgresql://ann@db.example.com/mextrack_db?sslmode=verify-full>
    >>> database.pool.size, database.pool.open
    (20, 0)
    >>> database.close()
    """

    _closed = True  # until there is something to close

    def __init__(
        self,
        url: str | DatabaseURL,
        *,
        name: str = "",
        pool_size: int = 10,
        pool_timeout: float = 30.0,
        recycle: float = 1800.0,
        pre_ping: bool = True,
        production: bool | None = None,
    ) -> None:
        self.url = settings.usable(url, production=production)
        """Where the database is; shown without its password."""
        self.name = name or self.url.database
        self._pid = os.getpid()
        self._current: dict[Owner, Block] = {}
        self.engine = self._make(PoolSettings(pool_size, pool_timeout, recycle, pre_ping))
        """SQLAlchemy's engine, for what is not here."""
        self._closed = False

    def _make(self, pool: PoolSettings) -> Engine:
        return create_engine(self.url, name=self.name, settings=pool)

    @classmethod
    def from_environment(cls, package: str, *, variable: str = "DATABASE_URL", **pool: Unpack[PoolOptions]) -> Self:
        """Return the database of a package, found as the ``atriz`` command finds it.

        That is by the process environment, ``.env`` files and the embedded server, in the workspace around the
        working directory. Where there is none, as in an image with nothing but wheels, by the process environment
        alone: ``MEXTRACK_DATABASE_URL``, then ``DATABASE_URL``.

        :param package: the package's name, its folder's: ``mextrack``.
        :param variable: the variable of its URL, needed only where no manifest is there to say it.
        :param pool: the settings of the pool, as the class itself takes them.

        Raise `SettingsError` if no setting leads to a database, `WorkspaceError` if there is no such package, and
        `ServerError` if the embedded server does not start.
        """
        url, production = locate(package, variable)
        return cls(url, name=package, production=production, **pool)

    def query(self, statement: str | Executable, /, **parameters: Any) -> Sequence[Row[*tuple[Any, ...]]]:
        """Return the rows of a statement, in the current transaction or in one of its own.

        :param statement: SQL with ``:name`` for parameters, or a statement of SQLAlchemy's.

        Raise SQLAlchemy's errors, and what :meth:`transaction` raises.
        """
        return self._execute(statement, parameters, _rows)

    def execute(self, statement: str | Executable, /, **parameters: Any) -> int:
        """Run a statement, in the current transaction or in one of its own, and return how many rows it affected.

        :param statement: as in :meth:`query`.

        Raise SQLAlchemy's errors, and what :meth:`transaction` raises.
        """
        return self._execute(statement, parameters, _count)

    def _execute(self, statement: str | Executable, parameters: dict[str, Any], read: Callable[[Answer], T]) -> T:
        block = transaction.current(self._current)
        if block is None:
            return single.run(self.engine, statement, parameters, read)
        return single.run_in(block.connection, statement, parameters, read)

    def transaction(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        statement_timeout: float | None = None,
        lock_timeout: float | None = None,
        force_rollback: bool = False,
    ) -> AbstractContextManager[Connection]:
        """Return a block that commits at its end, or rolls back if an error leaves it.

        Inside another one of the same thread (or task) it is a savepoint. A thread or a task that is started inside
        it has a transaction of its own.

        :param read_only: whether PostgreSQL refuses every change.
        :param isolation: the isolation level, where it isn't the server's default.
        :param statement_timeout: seconds that one statement may take.
        :param lock_timeout: seconds that one statement may wait for a lock.
        :param force_rollback: whether to roll back in any case: a dry run.

        Raise `ValueError` if an option has no such value, `PoolTimeoutError` if no connection becomes free,
        `DatabaseClosedError` after :meth:`close`, `TransactionError` if options do not fit or a failed statement was
        passed over, and `OutcomeUnknownError` if the connection breaks during COMMIT.
        """
        options = chosen(read_only, isolation, statement_timeout, lock_timeout, force_rollback)
        return Block(self.engine, self._current, options)

    @contextmanager
    def session(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        statement_timeout: float | None = None,
        lock_timeout: float | None = None,
        force_rollback: bool = False,
    ) -> Iterator[Session]:
        """Yield a session of SQLAlchemy's ORM in a :meth:`transaction`.

        What it holds is flushed and committed at the end of the block, as a whole. Inside it ``session.commit()`` and
        ``session.rollback()`` mean what was done since the last of them; nothing is committed before the block ends.
        Its objects can be read after it.
        """
        from sqlalchemy.orm import Session

        options = chosen(read_only, isolation, statement_timeout, lock_timeout, force_rollback)
        block = Block(self.engine, self._current, options)
        with block as connection:
            session = Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
            try:
                yield session
                if not block.is_inherited:
                    session.commit()
            finally:
                if not block.is_inherited:
                    session.close()

    def run(
        self,
        function: Callable[[Connection], T],
        *,
        retries: int = 3,
        read_only: bool = False,
        isolation: Isolation | None = None,
        statement_timeout: float | None = None,
        lock_timeout: float | None = None,
        force_rollback: bool = False,
    ) -> T:
        """Return what `function` returns for a connection in a transaction, run again where PostgreSQL asks for that.

        That is after a serialization failure or a deadlock, of which it has rolled everything back. What the function
        does beside the database is done again, too, and what it has used up is gone: rows to copy are made in it.
        Inside another transaction it is a savepoint, and not run again: the outermost must be.

        :param retries: how often it is run again at most.

        Raise `TypeError` if `function` returns a generator or a coroutine, whose work would come too late, and what it
        and :meth:`transaction` raise.
        """
        options = chosen(read_only, isolation, statement_timeout, lock_timeout, force_rollback)

        def attempt() -> T:
            with Block(self.engine, self._current, options) as connection:
                return transaction.finished(function(connection))

        nested = transaction.current(self._current) is not None
        return transaction.repeat(attempt, 0 if nested else retries, self._sleep)

    _sleep: Callable[[float], object] = staticmethod(time.sleep)

    def copy_rows(self, table: Table | type, rows: Rows | AsyncRows) -> int:
        """Copy rows into a table through COPY, in the current transaction or in one of its own; return their number.

        :param table: a `Table` or a mapped class.
        :param rows: mappings, mapped objects, or tuples in the order of the table's columns (generated ones left out),
            all of one kind. They are read as they are sent, so that a generator of any length takes constant memory;
            it cannot use this database meanwhile, whose connection is in COPY. The first says what is copied: other
            columns get their defaults, of Python or of the server.

        Raise `TypeError` or `ValueError` if rows do not fit the table, SQLAlchemy's errors if the server refuses them,
        `TransactionError` if reading them uses the connection, and what :meth:`transaction` raises.
        """
        from atriz_database import bulk

        with self.transaction() as connection:
            return bulk.copy(connection, table, rows)

    @property
    def pool(self) -> PoolState:
        """The pool in numbers."""
        return self._pool.state()

    @property
    def _pool(self) -> SlotPool:
        pool = self.engine.pool
        assert isinstance(pool, SlotPool)
        return pool

    def close(self) -> None:
        """Close the connections; one that is still in use is closed when it comes back. Closed already is fine."""
        self._closed = True
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A forked process has a copy, and nothing to close.
        if not self._closed and self._pid == os.getpid():
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, source=self, stacklevel=2)
            self._drop()

    def _drop(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} at {self.url}>"


def locate(package: str, variable: str) -> tuple[DatabaseURL, bool]:
    """Return where an application finds a package's database, and whether this is production.

    The embedded server is started if no setting names another.

    Raise what :meth:`Database.from_environment` raises.
    """
    try:
        root = workspace.find_root(Path.cwd())
    except WorkspaceError:
        return settings.without_workspace(package, variable)
    space = workspace.load(root)
    (target,) = settings.resolve(space, [space.package(package)], administrative=False)
    production = target.environment == "production"
    if target.url is not None:
        return target.url, production
    from atriz_database import server

    embedded = server.of(root)
    server.start(embedded)
    url = embedded.url.with_database(target.database)
    return DatabaseURL({**libpq.known(libpq.PLAIN), **url.parameters}), production


def _rows(answer: Answer) -> Sequence[Row[*tuple[Any, ...]]]:
    return answer.all()


def _count(answer: Answer) -> int:
    # The driver says -1 where nothing is counted, as of CREATE TABLE.
    return max(answer.rowcount, 0)
