"""SQLAlchemy's engine for a database: from a URL and the settings of a pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import sqlalchemy
from sqlalchemy import Engine

from atriz_database import libpq
from atriz_database.pool import AsyncSlotPool, SlotPool, ping_idle
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


def create_engine(url: DatabaseURL, *, name: str, settings: PoolSettings) -> Engine:
    """Return an engine whose connections are made as they are needed.

    :param name: what the server and our messages call it.
    """
    engine = sqlalchemy.create_engine(**_arguments(url, name, settings), poolclass=SlotPool)
    _finish(engine, settings)
    return engine


def create_async_engine(url: DatabaseURL, *, name: str, settings: PoolSettings) -> AsyncEngine:
    """Return the like for tasks."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(**_arguments(url, name, settings), poolclass=AsyncSlotPool)
    _finish(engine.sync_engine, settings)
    return engine


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
        "pool_logging_name": name,
    }


def _finish(engine: Engine, settings: PoolSettings) -> None:
    if settings.pre_ping:
        assert isinstance(engine.pool, SlotPool)
        ping_idle(engine.pool)
