"""SQLAlchemy's engine for a database: from a URL and the settings of a pool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import psycopg
import sqlalchemy
from sqlalchemy import Engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from atriz_database import driver, libpq
from atriz_database.pool import AsyncSlotPool, SlotPool
from atriz_database.url import DatabaseURL

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class PoolOptions(TypedDict, total=False):
    """What `from_environment` passes on; see `PoolSettings`."""

    pool_size: int
    pool_timeout: float
    recycle: float
    pre_ping: bool


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool behaves."""

    pool_size: int = 10
    """Connections it makes at most."""
    pool_timeout: float = 30.0
    """Seconds to wait for a connection while all are in use."""
    recycle: float = 1800.0
    """Seconds after which a connection is replaced by a new one, when it is next asked for."""
    pre_ping: bool = True
    """Whether to look at a connection before it goes out, and replace a broken one."""

    def __post_init__(self) -> None:
        if self.pool_size < 1:
            raise ValueError(f"pool_size must be 1 or more, not {self.pool_size}")
        if not 0 <= self.pool_timeout <= threading.TIMEOUT_MAX:
            raise ValueError(f"pool_timeout must be 0 seconds or more, not {self.pool_timeout:g}")
        if not self.recycle >= 0:
            raise ValueError(f"recycle must be 0 seconds or more, not {self.recycle:g}; inf is never")


def create_engine(url: DatabaseURL, *, name: str, settings: PoolSettings) -> Engine:
    """Return an engine whose connections are made as they are needed.

    :param name: what the server and our messages call it.
    """
    engine = sqlalchemy.create_engine(**_arguments(url, name, settings), poolclass=SlotPool)
    _finish(engine, url, driver.Connection.connect)
    return engine


def create_async_engine(url: DatabaseURL, *, name: str, settings: PoolSettings) -> AsyncEngine:
    """Return the like for tasks."""
    from sqlalchemy.ext.asyncio import create_async_engine

    from atriz_database.adapter import connected

    arguments = _arguments(url, name, settings)
    arguments["connect_args"]["async_creator_fn"] = _connect
    engine = create_async_engine(**arguments, poolclass=AsyncSlotPool)
    connect = engine.dialect.connect
    _finish(engine.sync_engine, url, lambda *words, **parameters: connected(connect(*words, **parameters)))
    return engine


async def _connect(**parameters: Any) -> psycopg.AsyncConnection[Any]:
    try:
        return await psycopg.AsyncConnection.connect(**parameters)
    except asyncio.CancelledError as error:
        # The frames of psycopg's in its traceback hold what is connected by half, and SQLAlchemy's hold the error in
        # a cycle: the server would keep a client until garbage is next collected.
        raise error.with_traceback(None) from None


def _arguments(url: DatabaseURL, name: str, settings: PoolSettings) -> dict[str, Any]:
    connect: dict[str, Any] = dict(libpq.parameters(url, name))
    if url.pooler:
        # A statement that one of the pooler's connections has prepared is not known to the next.
        connect["prepare_threshold"] = None
    return {
        # Shown by repr() and in logs, and so without anything that is secret: libpq gets it all by keywords.
        "url": sqlalchemy.URL.create("postgresql+psycopg", database=url.database),
        "connect_args": connect,
        "pool_size": settings.pool_size,
        "pool_timeout": settings.pool_timeout,
        "pool_recycle": settings.recycle,
        "pool_pre_ping": settings.pre_ping,
        "pool_logging_name": name,
    }


def _finish(engine: Engine, url: DatabaseURL, connect: Callable[..., Any]) -> None:
    def connect_quietly(_dialect: object, _slot: object, words: Any, parameters: Any) -> Any:
        try:
            return connect(*words, **parameters)
        except psycopg.Error as error:
            # The frames of psycopg's in its traceback hold the password, and pytest shows the last one's arguments.
            raise error.with_traceback(None) from None

    event.listen(engine, "do_connect", connect_quietly)
    if not url.pooler:
        event.listen(engine, "connect", _mind_pooler)


def _mind_pooler(dbapi_connection: Any, slot: ConnectionPoolEntry) -> None:
    """Have nothing prepared on a new connection that a pooler turns out to stand before.

    Each client of psycopg calls its prepared statements ``_pg3_0``, ``_pg3_1`` and so on. In transaction mode it meets
    those of others on the backends that it gets, and would run them in place of its own: wrong rows, and no error. A
    server tells a client the backend's pid when they connect, a pooler something that it made up.
    """
    driver: Any = slot.driver_connection
    dbapi_connection.autocommit = True  # One round trip; a transaction around it would take two more.
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute("SELECT pg_backend_pid()")
        if cursor.fetchone()[0] != driver.info.backend_pid:
            driver.prepare_threshold = None
    finally:
        cursor.close()
    dbapi_connection.autocommit = False
