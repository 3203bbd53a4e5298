"""One transaction for all of a test, rolled back after it, in which psycopg's connection and the ORM's session are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import psycopg
import sqlalchemy

from atriz_database import databases
from atriz_database.settings import Target

if TYPE_CHECKING:  # What it takes is not everywhere, and only the async fixtures need it.
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_T = TypeVar("_T")
_DIALECT = "postgresql+psycopg://"

Both = tuple[sqlalchemy.Connection, psycopg.Connection[Any]]
"""One connection, as SQLAlchemy's and as psycopg's."""
AsyncBoth: TypeAlias = "tuple[AsyncConnection, psycopg.AsyncConnection[Any]]"


@dataclass(frozen=True)
class Shared:
    """The database that a process's rolled-back tests of a package share; each connects anew."""

    target: Target

    @contextmanager
    def rolled_back(self) -> Iterator[Both]:
        """Yield a connection in a transaction of which nothing is kept.

        The transaction is psycopg's, which refuses ``commit()`` and ``rollback()`` inside: no test keeps by mistake
        what the next one would find. What SQLAlchemy's sessions end in it are savepoints.
        """
        with self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection), "the engine's driver is psycopg"
            with driver.transaction(force_rollback=True):
                connection.begin()
                yield connection, driver

    @asynccontextmanager
    async def async_rolled_back(self) -> AsyncIterator[AsyncBoth]:
        """Do as :meth:`rolled_back`, for asyncio."""
        async with self._async_engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            assert isinstance(driver, psycopg.AsyncConnection), "the engine's driver is psycopg"
            async with driver.transaction(force_rollback=True):
                await connection.begin()
                yield connection, driver

    @cached_property
    def _engine(self) -> sqlalchemy.Engine:
        def connect() -> psycopg.Connection[Any]:
            try:
                return psycopg.connect(**self._parameters)
            except psycopg.Error as error:
                raise error.with_traceback(None) from None  # Its frames hold the password.

        return sqlalchemy.create_engine(_DIALECT, creator=connect, poolclass=sqlalchemy.NullPool)

    @cached_property
    def _async_engine(self) -> AsyncEngine:
        from sqlalchemy.ext.asyncio import create_async_engine

        async def connect() -> psycopg.AsyncConnection[Any]:
            try:
                return await psycopg.AsyncConnection.connect(**self._parameters)
            except psycopg.Error as error:
                raise error.with_traceback(None) from None

        return create_async_engine(_DIALECT, async_creator=connect, poolclass=sqlalchemy.NullPool)

    @cached_property
    def _parameters(self) -> dict[str, Any]:
        return databases.parameters(self.target, "test")


@contextmanager
def outside_loop(entered: AbstractAsyncContextManager[_T]) -> Iterator[_T]:
    """Enter and leave an asynchronous context from plain code, around a test with an event loop of its own.

    psycopg's connections belong to no loop: one may be opened, used and closed in three.
    """
    # Nobody's current loop is touched, and Windows' default one doesn't do for psycopg.
    loop = asyncio.SelectorEventLoop()
    try:
        made = loop.run_until_complete(entered.__aenter__())
        try:
            yield made
        finally:
            loop.run_until_complete(entered.__aexit__(None, None, None))
    finally:
        loop.close()
