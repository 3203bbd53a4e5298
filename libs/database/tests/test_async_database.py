"""AsyncDatabase: the same words, for tasks."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy import Column, DateTime, Integer, MetaData, Table, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from atriz_database import AsyncDatabase, DatabaseClosedError, PoolTimeoutError, TransactionError
from atriz_database.url import DatabaseURL


class Base(DeclarativeBase):
    """The tables of these tests."""


class Item(Base):
    """One row."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)


def running(url: DatabaseURL, test: Callable[[AsyncDatabase], Awaitable[None]], pool_size: int = 2) -> None:
    """Run a test in an event loop of its own, on a database with a table of items."""

    async def main() -> None:
        async with asyncio.timeout(30), AsyncDatabase(url, name="shop", pool_size=pool_size, pool_timeout=10) as db:
            await db.execute("CREATE TABLE items (id int PRIMARY KEY)")
            await test(db)
            assert (db.pool.in_use, db.pool.waiting) == (0, 0)
        assert db.pool.open == 0

    asyncio.run(main())
    gc.collect()  # so that a connection that nobody closed is found in its own test


async def add(connection: AsyncConnection, number: int) -> None:
    await connection.execute(text("INSERT INTO items VALUES (:id)"), {"id": number})


async def ids(db: AsyncDatabase) -> list[int]:
    return [row.id for row in await db.query("SELECT id FROM items ORDER BY id")]


PID = "SELECT pg_backend_pid()"


def test_block_commits_and_rolls_back(empty: DatabaseURL) -> None:
    """At its end, and when an error leaves it; a nested one is a savepoint."""

    async def test(db: AsyncDatabase) -> None:
        async with db.transaction() as connection:
            assert isinstance(connection, AsyncConnection)
            await add(connection, 1)
            with pytest.raises(IntegrityError):
                async with db.transaction() as inner:
                    await add(inner, 2)
                    await add(inner, 1)
            async with db.transaction(force_rollback=True) as inner:
                await add(inner, 3)
        with pytest.raises(ValueError, match="out"):
            async with db.transaction() as connection:
                await add(connection, 4)
                raise ValueError("out")
        assert await ids(db) == [1]

    running(empty, test)


def test_everything_in_a_block_takes_part_in_it(empty: DatabaseURL) -> None:
    async def test(db: AsyncDatabase) -> None:
        async with db.transaction(force_rollback=True):
            assert await db.execute("INSERT INTO items VALUES (1)") == 1
            assert await db.copy_rows(Item, [{"id": 2}]) == 1
            async with db.session() as session:
                assert isinstance(session, AsyncSession)
                session.add(Item(id=3))
            await db.run(lambda connection: add(connection, 4))
            assert await ids(db) == [1, 2, 3, 4]
            assert db.pool.in_use == 1
        assert await ids(db) == []

    running(empty, test)


def test_options_are_the_same(empty: DatabaseURL) -> None:
    """Given to the outermost, refused in a nested one."""

    async def test(db: AsyncDatabase) -> None:
        async with db.transaction(isolation="REPEATABLE READ", read_only=True, statement_timeout=2, lock_timeout=1):
            shown = "SELECT current_setting(name) FROM unnest(CAST(:names AS text[])) AS name"
            names = ["transaction_isolation", "transaction_read_only", "statement_timeout", "lock_timeout"]
            assert [row[0] for row in await db.query(shown, names=names)] == ["repeatable read", "on", "2s", "1s"]
            with pytest.raises(TransactionError, match="no isolation: only the outermost"):
                await db.transaction(isolation="SERIALIZABLE").__aenter__()

    running(empty, test)


def test_child_task_has_a_transaction_of_its_own(empty: DatabaseURL) -> None:
    """Though it got a copy of its parent's context."""

    async def test(db: AsyncDatabase) -> None:
        async with db.transaction() as connection:
            await add(connection, 1)
            mine = await db.query(PID)
            async with asyncio.TaskGroup() as group:
                others, seen = group.create_task(db.query(PID)), group.create_task(ids(db))
            assert others.result() != mine
            assert seen.result() == []
            assert await db.query(PID) == mine

    running(empty, test)


def test_cancelled_task_rolls_back_and_gives_its_connection_back(empty: DatabaseURL) -> None:
    """Wherever it is: in a statement, between two, in the wait for a connection, in COPY."""

    async def test(db: AsyncDatabase) -> None:
        begun = asyncio.Event()

        async def in_statement() -> None:
            async with db.transaction() as connection:
                await add(connection, 1)
                begun.set()
                await db.query("SELECT pg_sleep(20)")

        async def between() -> None:
            async with db.transaction() as connection:
                await add(connection, 2)
                begun.set()
                await asyncio.Event().wait()

        async def in_copy() -> None:
            async def rows() -> AsyncIterator[tuple[int]]:
                yield (3,)
                begun.set()
                await asyncio.Event().wait()

            await db.copy_rows(Item, rows())

        for work in (in_statement, between, in_copy):
            begun.clear()
            task = asyncio.create_task(work())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await ids(db) == []
            assert db.pool.in_use == 0

        async with db.transaction():
            holder = asyncio.create_task(between())
            begun.clear()
            await begun.wait()
            waiter = asyncio.create_task(db.query("SELECT 1"))
            while db.pool.waiting == 0:
                await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert db.pool.waiting == 0
            holder.cancel()
            with pytest.raises(asyncio.CancelledError):
                await holder
        assert await ids(db) == []

    running(empty, test)


def test_connection_given_to_a_task_that_is_cancelled_at_that_moment_is_not_lost(empty: DatabaseURL) -> None:
    """It goes to the next in line."""

    async def test(db: AsyncDatabase) -> None:
        async with db.transaction():
            waiters = [asyncio.create_task(db.query("SELECT 1")) for _ in range(2)]
            while db.pool.waiting < 2:
                await asyncio.sleep(0)
        waiters[0].cancel()
        assert await waiters[1] == [(1,)]
        with pytest.raises(asyncio.CancelledError):
            await waiters[0]
        assert await db.query("SELECT 1") == [(1,)]

    running(empty, test, pool_size=1)


def test_failures_are_run_again(empty: DatabaseURL) -> None:
    """Two tasks that read and write the same row at the same time: no update is lost."""

    async def test(db: AsyncDatabase) -> None:
        await db.execute("INSERT INTO items VALUES (100)")
        attempts: list[int] = []
        both = asyncio.Barrier(2)

        async def withdraw(connection: AsyncConnection) -> str:
            attempts.append(1)
            balance = (await connection.execute(select(Item.id))).scalar_one()
            if len(attempts) <= 2:
                await both.wait()
            await connection.execute(text("UPDATE items SET id = :new"), {"new": balance - 10})
            return "done"

        calls = (db.run(withdraw, retries=10, isolation="SERIALIZABLE") for _ in range(2))
        assert await asyncio.gather(*calls) == ["done", "done"]
        assert len(attempts) >= 3
        assert await ids(db) == [80]

    running(empty, test)


def test_full_pool_names_tasks(empty: DatabaseURL) -> None:
    async def main() -> None:
        async with AsyncDatabase(empty, name="shop", pool_size=1, pool_timeout=0.05) as db:
            async with db.transaction():
                task = asyncio.current_task()
                assert task is not None
                task.set_name("the holder")
                with pytest.raises(PoolTimeoutError, match=r"Held the longest: task the holder for 0\."):
                    await asyncio.create_task(db.query("SELECT 1"))
            assert await db.query("SELECT 1") == [(1,)]

    asyncio.run(main())


def test_rows_are_copied_from_any_iterable(empty: DatabaseURL) -> None:
    """An async one as well, binary giving way to text in the middle; an error undoes all."""

    async def test(db: AsyncDatabase) -> None:
        table = Table("stamps", MetaData(), Column("id", Integer), Column("at", DateTime(timezone=True)))
        await db.execute("CREATE TABLE stamps (id int, at timestamptz)")
        at = datetime(2026, 1, 1, tzinfo=UTC)

        async def rows() -> AsyncIterator[tuple[int, object]]:
            for number in range(5):
                await asyncio.sleep(0)
                yield number, "2026-01-01 00:00+00" if number == 3 else at

        assert await db.copy_rows(table, rows()) == 5
        assert await db.copy_rows(table, ((number, at) for number in range(5))) == 5
        assert await db.query("SELECT id, count(*) FROM stamps WHERE at = :at GROUP BY id ORDER BY id", at=at) == [
            (number, 2) for number in range(5)
        ]
        with pytest.raises(IntegrityError, match="COPY items, line 2"):
            await db.copy_rows(Item, [{"id": 1}, {"id": 1}])
        assert await ids(db) == []

    running(empty, test)


def test_rows_that_use_the_connection_they_are_sent_on_are_refused(empty: DatabaseURL) -> None:
    """The task would wait for itself."""

    async def test(db: AsyncDatabase) -> None:
        async def rows() -> AsyncIterator[tuple[int]]:
            yield (1,)
            await db.query("SELECT 1")

        with pytest.raises(TransactionError, match=r"The rows that copy_rows\(\) reads use its connection"):
            await db.copy_rows(Item, rows())
        assert await ids(db) == []

    running(empty, test)


def test_parameters_may_have_any_name(empty: DatabaseURL) -> None:
    """Those of what carries the call to its greenlet among them."""

    async def test(db: AsyncDatabase) -> None:
        names = {"fn": 1, "self": 2, "statement": 3, "_require_await": 4}
        assert await db.query("SELECT :fn, :self, :statement, :_require_await", **names) == [(1, 2, 3, 4)]
        assert await db.execute("INSERT INTO items VALUES (:fn)", fn=1) == 1

    running(empty, test)


def test_broken_connections_are_replaced_unnoticed(empty: DatabaseURL) -> None:
    """One that breaks in use is an error, and is thrown away."""

    async def test(db: AsyncDatabase) -> None:
        async with AsyncDatabase(empty) as other:
            end = "SELECT pg_terminate_backend(:pid, 5000)"
            for _ in range(2):
                await other.query(end, pid=(await db.query(PID))[0][0])
                await db.query(PID)
            with pytest.raises(OperationalError, match="terminating connection"):
                async with db.transaction():
                    await other.query(end, pid=(await db.query(PID))[0][0])
                    await db.query("SELECT 1")
            assert await ids(db) == []

    running(empty, test)


def test_many_tasks_lose_and_leak_nothing(empty: DatabaseURL) -> None:
    async def test(db: AsyncDatabase) -> None:
        await db.execute("INSERT INTO items VALUES (0)")

        async def work() -> None:
            for _ in range(10):
                async with db.transaction() as connection:
                    await connection.execute(text("UPDATE items SET id = id + 1"))

        await asyncio.gather(*(work() for _ in range(20)))
        assert await ids(db) == [200]

    running(empty, test)


def test_use_after_close_is_refused_and_dropping_unclosed_warns(empty: DatabaseURL) -> None:
    async def main() -> None:
        db = AsyncDatabase(empty, name="shop")
        await db.query("SELECT 1")
        await db.close()
        with pytest.raises(DatabaseClosedError, match="shop has been closed"):
            await db.query("SELECT 1")
        made = [AsyncDatabase(empty, name="shop")]
        with pytest.warns(ResourceWarning, match=r"<AsyncDatabase shop at .*> was dropped without close"):
            made.clear()

    asyncio.run(main())


def test_error_of_the_server_is_sqlalchemys(empty: DatabaseURL) -> None:
    async def test(db: AsyncDatabase) -> None:
        with pytest.raises(DBAPIError, match="does not exist"):
            await db.query("SELECT * FROM nowhere")
        with pytest.raises(TransactionError, match="use transaction"):
            await db.execute("BEGIN")

    running(empty, test)
