"""The same for tasks.

No logic stands here. A call runs the sync one in a greenlet that gives way to the event loop wherever it waits for
the server, as SQLAlchemy's own ``AsyncConnection`` does: see ``tasks.py`` and
``docs/decisions/0013-sync-and-async.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, CursorResult, Engine, Executable, Row, Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.asyncio.result import _ensure_sync_result
from sqlalchemy.util import await_

from atriz_database import tasks
from atriz_database.database import Database, locate
from atriz_database.engine import PoolOptions, PoolSettings, create_async_engine
from atriz_database.pool import PoolState
from atriz_database.transaction import Isolation
from atriz_database.url import DatabaseURL

if TYPE_CHECKING:
    from typing import Self, Unpack

    from sqlalchemy.ext.asyncio import AsyncSession

    from atriz_database.bulk import AsyncRows, Rows

T = TypeVar("T")


class AsyncDatabase:
    """A database and a pool of connections to it, for the tasks of an event loop.

    It takes what :class:`Database` takes, and does what that does.

    >>> database = AsyncDatabase("postgresql://ann@localhost/mextrack_db", pool_size=20)
    >>> database
    <AsyncDatabase mextrack_db at postgresql://ann@localhost/mextrack_db>
    >>> asyncio.run(database.close())
    """

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
        self._database = _Database(
            url,
            name=name,
            pool_size=pool_size,
            pool_timeout=pool_timeout,
            recycle=recycle,
            pre_ping=pre_ping,
            production=production,
        )
        self.engine: AsyncEngine = self._database.async_engine
        """SQLAlchemy's engine, for what is not here."""

    @classmethod
    def from_environment(cls, package: str, *, variable: str = "DATABASE_URL", **pool: Unpack[PoolOptions]) -> Self:
        """Return the database of a package, as :meth:`Database.from_environment` does.

        It reads files, and may start the embedded server: call it before the event loop has other things to do.
        """
        url, production = locate(package, variable)
        return cls(url, name=package, production=production, **pool)

    @property
    def url(self) -> DatabaseURL:
        """Where the database is; shown without its password."""
        return self._database.url

    @property
    def name(self) -> str:
        """What the server shows beside the connections, and what messages call the database."""
        return self._database.name

    async def query(self, statement: str | Executable, /, **parameters: Any) -> Sequence[Row[*tuple[Any, ...]]]:
        """Return the rows of a statement: :meth:`Database.query`."""
        return await tasks.run(partial(self._database.query, statement, **parameters))

    async def execute(self, statement: str | Executable, /, **parameters: Any) -> int:
        """Run a statement and return how many rows it affected: :meth:`Database.execute`."""
        return await tasks.run(partial(self._database.execute, statement, **parameters))

    def transaction(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        statement_timeout: float | None = None,
        lock_timeout: float | None = None,
        force_rollback: bool = False,
    ) -> AbstractAsyncContextManager[AsyncConnection]:
        """Return a block that commits at its end, or rolls back if an error leaves it: :meth:`Database.transaction`.

        A task that is cancelled inside it gets its `CancelledError`, and the transaction is rolled back. Cancelled
        while COMMIT is under way it gets the same, and may be committed.
        """
        block = self._database.transaction(
            read_only=read_only,
            isolation=isolation,
            statement_timeout=statement_timeout,
            lock_timeout=lock_timeout,
            force_rollback=force_rollback,
        )
        return _AsyncBlock(self.engine, block)

    @asynccontextmanager
    async def session(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        statement_timeout: float | None = None,
        lock_timeout: float | None = None,
        force_rollback: bool = False,
    ) -> AsyncIterator[AsyncSession]:
        """Yield a session of SQLAlchemy's ORM in a transaction: :meth:`Database.session`."""
        from sqlalchemy.ext.asyncio import AsyncSession

        block = self.transaction(
            read_only=read_only,
            isolation=isolation,
            statement_timeout=statement_timeout,
            lock_timeout=lock_timeout,
            force_rollback=force_rollback,
        )
        async with (
            block as connection,
            AsyncSession(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as session,
        ):
            yield session
            await session.commit()

    async def run(
        self,
        function: Callable[[AsyncConnection], Awaitable[T]],
        *,
        retries: int = 3,
        read_only: bool = False,
        isolation: Isolation | None = None,
        statement_timeout: float | None = None,
        lock_timeout: float | None = None,
        force_rollback: bool = False,
    ) -> T:
        """Return what `function` returns, run again where PostgreSQL asks for that: :meth:`Database.run`."""

        def inside(connection: Connection) -> T:
            return await_(function(_Connection(self.engine, connection)))

        return await tasks.run(
            partial(
                self._database.run,
                inside,
                retries=retries,
                read_only=read_only,
                isolation=isolation,
                statement_timeout=statement_timeout,
                lock_timeout=lock_timeout,
                force_rollback=force_rollback,
            )
        )

    async def copy_rows(self, table: Table | type, rows: Rows | AsyncRows) -> int:
        """Copy rows into a table through COPY and return their number: :meth:`Database.copy_rows`.

        :param rows: as there, or an async iterable of the same.
        """
        return await tasks.run(partial(self._database.copy_rows, table, rows))

    @property
    def pool(self) -> PoolState:
        """The pool in numbers."""
        return self._database.pool

    async def close(self) -> None:
        """Close the connections; one that is still in use is closed when it comes back. Closed already is fine."""
        await tasks.run(self._database.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return repr(self._database)


class _Database(Database):
    """The sync form, on an engine that waits in the event loop."""

    async_engine: AsyncEngine

    def _make(self, pool: PoolSettings) -> Engine:
        self.async_engine = create_async_engine(self.url, name=self.name, settings=pool)
        return self.async_engine.sync_engine

    @staticmethod
    def _sleep(seconds: float) -> None:
        await_(asyncio.sleep(seconds))

    def _drop(self) -> None:
        pass  # There may be no event loop any more; what the driver holds goes with it.

    def __repr__(self) -> str:
        return super().__repr__().replace("<_Database", "<AsyncDatabase")


class _Connection(AsyncConnection):
    """SQLAlchemy's, whose statements run in greenlets that are kept; `scalar` and `scalars` call `execute`."""

    async def execute(
        self, statement: Any, parameters: Any = None, *, execution_options: Any = None
    ) -> CursorResult[*tuple[Any, ...]]:
        run = partial(self._proxied.execute, statement, parameters, execution_options=execution_options)
        return await _ensure_sync_result(await tasks.run(run), self.execute)


class _AsyncBlock:
    """A block of ours, entered and left in greenlets."""

    __slots__ = ("_block", "_engine")

    def __init__(self, engine: AsyncEngine, block: Any) -> None:
        self._engine = engine
        self._block = block

    async def __aenter__(self) -> AsyncConnection:
        return _Connection(self._engine, await tasks.run(self._block.__enter__))

    async def __aexit__(self, *error: Any) -> None:
        await tasks.run(partial(self._block.__exit__, *error))
