"""One contender of the topic data: do some work in a database and print how long it took.

``python -m benchmarks.application CASE CONTENDER URL COUNT``. The clock begins when all is imported, connected and
warm, and stops when the last transaction has ended. Prints seconds, seconds of a core, and peak memory in bytes.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    Executable,
    MetaData,
    Sequence,
    Table,
    Text,
    Uuid,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from atriz_database import AsyncDatabase, Database

STATEMENT = "SELECT nextval('counted')"
WORKERS = 64
POOL_SIZE = 10
WARM_UP = 64
POSITIONS = Table(
    "positions",
    MetaData(),
    Column("id", BigInteger),
    Column("vehicle", Uuid),
    Column("at", DateTime(timezone=True)),
    Column("latitude", Double),
    Column("longitude", Double),
    Column("note", Text),
)
_BINARY = ("int8", "uuid", "timestamptz", "float8", "float8", "text")
_ONE = text(STATEMENT)
_SELECT = select(Sequence("counted").next_value())  # the same as a statement of SQLAlchemy's own

Work = Callable[[], object]
AsyncWork = Callable[[], Awaitable[object]]


def main(case: str, contender: str, url: str, count: int) -> dict[str, float]:
    """Do the work of a contender and return what it took."""
    if case == "tasks":
        return asyncio.run(_in_tasks(_TASKS[contender], url, count))
    if case == "copy":
        with _COPIES[contender](url) as copy:
            return _timed(lambda: copy(count))
    with _TRANSACTIONS[contender](url) as work:
        if case == "threads":
            _in_threads(work, WARM_UP)
            return _timed(lambda: _in_threads(work, count))
        for _ in range(WARM_UP):
            work()
        return _timed(lambda: [work() for _ in range(count)] and None)


def _timed(work: Callable[[], object]) -> dict[str, float]:
    began, used = time.perf_counter(), time.process_time()
    work()
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "processor": processor,
        "biggest": kilobytes * (1 if sys.platform == "darwin" else 1024),
    }


def _shares(count: int) -> list[int]:
    return [count // WORKERS + (number < count % WORKERS) for number in range(WORKERS)]


def _in_threads(work: Work, count: int) -> None:
    def many(share: int) -> None:
        for _ in range(share):
            work()

    threads = [threading.Thread(target=many, args=[share]) for share in _shares(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _in_tasks(contender: Callable[[str], Any], url: str, count: int) -> dict[str, float]:
    async def many(work: AsyncWork, share: int) -> None:
        for _ in range(share):
            await work()

    async with contender(url) as work:
        await asyncio.gather(*(many(work, share) for share in _shares(WARM_UP)))
        began, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(many(work, share) for share in _shares(count)))
        seconds, processor = time.perf_counter() - began, time.process_time() - used
    return {**_timed(lambda: None), "seconds": seconds, "processor": processor}


@contextmanager
def _psycopg(url: str) -> Iterator[Work]:
    with psycopg.connect(url, autocommit=True) as connection:

        def work() -> None:
            with connection.transaction():
                connection.execute(STATEMENT).fetchall()

        yield work


@contextmanager
def _psycopg_pool(url: str) -> Iterator[Work]:
    with ConnectionPool(url, min_size=POOL_SIZE, max_size=POOL_SIZE, open=True) as pool:
        pool.wait()

        def work() -> None:
            with pool.connection() as connection:
                connection.execute(STATEMENT).fetchall()

        yield work


@contextmanager
def _sqlalchemy(url: str) -> Iterator[Work]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), pool_size=POOL_SIZE, max_overflow=0)

    def work() -> None:
        with engine.begin() as connection:
            connection.execute(_ONE).all()

    yield work
    engine.dispose()


@contextmanager
def _sqlalchemy_on_psycopg_pool(url: str) -> Iterator[Work]:
    with ConnectionPool(url, min_size=POOL_SIZE, max_size=POOL_SIZE, open=True, close_returns=True) as pool:
        pool.wait()
        engine = create_engine("postgresql+psycopg://", creator=pool.getconn, poolclass=NullPool)

        def work() -> None:
            with engine.begin() as connection:
                connection.execute(_ONE).all()

        yield work


@contextmanager
def _transaction(url: str, statement: Executable = _ONE) -> Iterator[Work]:
    with Database(url, pool_size=POOL_SIZE) as database:

        def work() -> None:
            with database.transaction() as connection:
                connection.execute(statement).all()

        yield work
        assert database.pool.in_use == database.pool.waiting == 0


@contextmanager
def _text(url: str) -> Iterator[Work]:
    with Database(url, pool_size=POOL_SIZE) as database:

        def work() -> None:
            with database.transaction():
                database.query(STATEMENT)

        yield work
        assert database.pool.in_use == database.pool.waiting == 0


@contextmanager
def _query(url: str) -> Iterator[Work]:
    with Database(url, pool_size=POOL_SIZE) as database:
        yield lambda: database.query(STATEMENT)
        assert database.pool.in_use == database.pool.waiting == 0


_TRANSACTIONS = {
    "psycopg": _psycopg,
    "psycopg_pool": _psycopg_pool,
    "SQLAlchemy engine.begin()": _sqlalchemy,
    "SQLAlchemy on psycopg_pool": _sqlalchemy_on_psycopg_pool,
    "atriz transaction()": _transaction,
    "atriz transaction(), select() in it": lambda url: _transaction(url, _SELECT),
    "atriz transaction(), query() in it": _text,
    "atriz query()": _query,
}


class _AsyncPool:
    def __init__(self, url: str) -> None:
        self._pool = AsyncConnectionPool(url, min_size=POOL_SIZE, max_size=POOL_SIZE, open=False)

    async def __aenter__(self) -> AsyncWork:
        await self._pool.open(wait=True)
        return self._work

    async def _work(self) -> None:
        async with self._pool.connection() as connection:
            await (await connection.execute(STATEMENT)).fetchall()

    async def __aexit__(self, *_error: object) -> None:
        await self._pool.close()


class _AsyncEngine:
    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(
            url.replace("postgresql:", "postgresql+psycopg:"), pool_size=POOL_SIZE, max_overflow=0
        )

    async def __aenter__(self) -> AsyncWork:
        return self._work

    async def _work(self) -> None:
        async with self._engine.begin() as connection:
            (await connection.execute(_ONE)).all()

    async def __aexit__(self, *_error: object) -> None:
        await self._engine.dispose()


class _AsyncEngineOnPool(_AsyncEngine):
    def __init__(self, url: str) -> None:
        self._pool = AsyncConnectionPool(url, min_size=POOL_SIZE, max_size=POOL_SIZE, open=False, close_returns=True)
        self._engine = create_async_engine(
            "postgresql+psycopg://", async_creator=self._pool.getconn, poolclass=NullPool
        )

    async def __aenter__(self) -> AsyncWork:
        await self._pool.open(wait=True)
        return self._work

    async def __aexit__(self, *_error: object) -> None:
        await self._pool.close()


class _AsyncTransaction:
    _statement: Executable = _ONE

    def __init__(self, url: str) -> None:
        self._database = AsyncDatabase(url, pool_size=POOL_SIZE)

    async def __aenter__(self) -> AsyncWork:
        return self._work

    async def _work(self) -> None:
        async with self._database.transaction() as connection:
            (await connection.execute(self._statement)).all()

    async def __aexit__(self, *_error: object) -> None:
        assert self._database.pool.in_use == self._database.pool.waiting == 0
        await self._database.close()


class _AsyncSelect(_AsyncTransaction):
    _statement = _SELECT


class _AsyncText(_AsyncTransaction):
    async def _work(self) -> None:
        async with self._database.transaction():
            await self._database.query(STATEMENT)


class _AsyncQuery(_AsyncTransaction):
    async def _work(self) -> None:
        await self._database.query(STATEMENT)


_TASKS = {
    "psycopg_pool": _AsyncPool,
    "SQLAlchemy engine.begin()": _AsyncEngine,
    "SQLAlchemy on psycopg_pool": _AsyncEngineOnPool,
    "atriz transaction()": _AsyncTransaction,
    "atriz transaction(), select() in it": _AsyncSelect,
    "atriz transaction(), query() in it": _AsyncText,
    "atriz query()": _AsyncQuery,
}


def _positions(count: int) -> Iterator[tuple[object, ...]]:
    """Yield the rows, each made when it is asked for: what making them takes is the same for all."""
    vehicle, began, step = UUID(int=7), datetime(2026, 1, 1, tzinfo=UTC), timedelta(seconds=1)
    for number in range(count):
        yield number, vehicle, began + number * step, 52.5 + number * 1e-6, 13.4 + number * 1e-6, "on the way"


@contextmanager
def _copy_psycopg(url: str, types: tuple[str, ...] = ()) -> Iterator[Callable[[int], None]]:
    with psycopg.connect(url) as connection:

        def copy(count: int) -> None:
            form = " (FORMAT binary)" if types else ""
            with connection.cursor() as cursor, cursor.copy(f"COPY positions FROM STDIN{form}".encode()) as stream:
                if types:
                    stream.set_types(types)
                for row in _positions(count):
                    stream.write_row(row)
            connection.commit()

        yield copy


@contextmanager
def _copy_atriz(url: str, mappings: bool = False) -> Iterator[Callable[[int], None]]:
    names = POSITIONS.columns.keys()

    def copy(count: int) -> None:
        rows: Any = _positions(count)
        if mappings:
            rows = (dict(zip(names, row, strict=True)) for row in rows)
        database.copy_rows(POSITIONS, rows)

    with Database(url) as database:
        database.query("SELECT 1")
        yield copy


@contextmanager
def _insert(url: str) -> Iterator[Callable[[int], None]]:
    names = POSITIONS.columns.keys()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))

    def copy(count: int) -> None:
        with engine.begin() as connection:
            connection.execute(insert(POSITIONS), [dict(zip(names, row, strict=True)) for row in _positions(count)])

    engine.connect().close()
    yield copy
    engine.dispose()


_COPIES: dict[str, Callable[[str], Any]] = {
    "psycopg": _copy_psycopg,
    "psycopg binary": lambda url: _copy_psycopg(url, _BINARY),
    "SQLAlchemy insert()": _insert,
    "atriz copy_rows, tuples": _copy_atriz,
    "atriz copy_rows, mappings": lambda url: _copy_atriz(url, mappings=True),
}


if __name__ == "__main__":
    _case, _contender, _url, _count = sys.argv[1:]
    print(json.dumps(main(_case, _contender, _url, int(_count))))
