"""Transactions of tasks that begin with their first statement, in one round trip."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from event_loop import in_loop
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.types.string import StrDumper
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from atriz_database import AsyncDatabase, adapter, tasks
from atriz_database.url import DatabaseURL

# More often than psycopg wants to see a statement before it has the server prepare it.
OFTEN = range(8)
OURS = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'"


@pytest.fixture(params=["together", "psycopg's way"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have transactions begin with their first statement, or as where psycopg's private names are others."""
    if request.param != "together":
        monkeypatch.setattr(adapter, "_OF_CONNECTIONS", ("_renamed",))
    return str(request.param)


async def raw_of(connection: Any) -> Any:
    return (await connection.get_raw_connection()).driver_connection


def test_a_transaction_begins_in_the_round_trip_of_its_first_statement(
    empty: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once that is prepared: two are left of three, and one more for each statement behind it."""
    waits: list[int] = []
    wait = tasks.readable
    monkeypatch.setattr(tasks, "readable", lambda descriptor: (waits.append(descriptor), wait(descriptor)))

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db:
            for statements in (1, 1, 1, 1, 1, 1, 1, 2):
                waits.clear()
                async with db.transaction() as connection:
                    for _ in range(statements):
                        assert (await connection.execute(text("SELECT 1"))).all() == [(1,)]
                took.append(len(waits))

    took: list[int] = []
    in_loop(test)
    assert (took[1], took[-2:]) == (3, [2, 3])


def test_transactions_are_what_they_are_begun_as(empty: DatabaseURL, way: str) -> None:
    """Their isolation, whether they may write, and that each is one of its own; committed, and rolled back."""

    async def test() -> None:
        asked = "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')"
        async with AsyncDatabase(empty, pool_size=1) as db:
            await db.execute("CREATE TABLE notes (id int, number xid8)")
            for _ in OFTEN:
                async with db.transaction() as connection:
                    assert await db.query(asked) == [("read committed", "off")]
                    assert ((await raw_of(connection)).cursor_factory is adapter._DriverCursor) == (way == "together")
                async with db.transaction(isolation="SERIALIZABLE"):
                    assert await db.query(asked) == [("serializable", "off")]
                async with db.transaction(read_only=True):
                    assert await db.query(asked) == [("read committed", "on")]
            # Apart, because psycopg has the server forget what is prepared with each rollback.
            for dry in (False, True):
                for _ in OFTEN:
                    async with db.transaction(force_rollback=dry):
                        await db.execute("INSERT INTO notes VALUES (:id, pg_current_xact_id())", id=int(dry))
                        await db.execute("INSERT INTO notes VALUES (:id, pg_current_xact_id())", id=int(dry))
            ids = "SELECT count(*), count(DISTINCT number), max(id) FROM notes"
            assert await db.query(ids) == [(2 * len(OFTEN), len(OFTEN), 0)]

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_a_first_statement_that_fails_leaves_nothing_behind(empty: DatabaseURL) -> None:
    """Its error is what it always is, its transaction is over, and the connection begins the next one."""

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db:
            await db.execute("CREATE TABLE notes (id int PRIMARY KEY)")
            await db.execute("INSERT INTO notes VALUES (0)")
            for number in OFTEN:
                async with db.transaction():
                    await db.execute("INSERT INTO notes VALUES (:id)", id=number + 1)
            for _ in OFTEN:
                with pytest.raises(IntegrityError, match="duplicate key") as caught:
                    async with db.transaction() as connection:
                        raw = await raw_of(connection)
                        await connection.execute(text("INSERT INTO notes VALUES (:id)"), {"id": 0})
                assert caught.value.orig.sqlstate == "23505"  # type: ignore[union-attr]
                assert raw.pgconn.transaction_status == TransactionStatus.IDLE
                assert raw.pgconn.pipeline_status == PipelineStatus.OFF
            assert await db.query("SELECT count(*) FROM notes") == [(len(OFTEN) + 1,)]

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_a_value_that_cannot_be_sent_leaves_nothing_behind(empty: DatabaseURL) -> None:
    """Its error is the driver's, and the connection, which has begun by then, serves the next transaction."""

    class Broken(StrDumper):
        def dump(self, obj: str) -> Any:
            return obj if obj == "broken" else super().dump(obj)

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db:
            async with db.transaction() as connection:
                raw = await raw_of(connection)
                raw.adapters.register_dumper(str, Broken)
            for _ in OFTEN:
                async with db.transaction():
                    assert await db.query("SELECT CAST(:word AS text)", word="whole") == [("whole",)]
            with pytest.raises(TypeError):
                async with db.transaction():
                    await db.query("SELECT CAST(:word AS text)", word="broken")
            assert raw.pgconn.pipeline_status == PipelineStatus.OFF
            assert raw.pgconn.transaction_status == TransactionStatus.IDLE
            async with db.transaction() as connection:
                assert await raw_of(connection) is raw
                assert await db.query("SELECT CAST(:word AS text)", word="whole") == [("whole",)]

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_a_first_statement_longer_than_the_sockets_buffers_is_sent_whole(empty: DatabaseURL) -> None:
    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db:
            for number in OFTEN:
                long = "long " * (2_000_000 if number > 5 else 1)
                async with db.transaction():
                    ((answer,),) = await db.query("SELECT CAST(:long AS text)", long=long)
                assert answer == long

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_notices_and_notifications_come_with_a_first_statement(empty: DatabaseURL) -> None:
    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db:
            heard: list[str | None] = []
            await db.execute(
                "CREATE FUNCTION speak() RETURNS int LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE NOTICE 'spoken'; PERFORM pg_notify('words', 'said'); RETURN 1; END $$"
            )
            async with db.transaction() as connection:
                raw = await raw_of(connection)
                raw.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
                raw.add_notify_handler(lambda notification: heard.append(notification.payload))
                await connection.execute(text("LISTEN words"))
            for _ in OFTEN:
                async with db.transaction():
                    assert await db.query("SELECT speak()") == [(1,)]
            await db.query("SELECT 1")
            assert sorted(heard, key=str) == sorted(["spoken", "said"] * len(OFTEN))

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_a_first_statement_that_is_cancelled_is_ended_on_the_server(empty: DatabaseURL) -> None:
    """Its transaction is rolled back, and the connection serves the next one."""

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db, AsyncDatabase(empty) as other:
            sleep = "SELECT pg_sleep(:seconds), 'cancelled'"

            async def slept(seconds: float) -> None:
                async with db.transaction():
                    await db.query(sleep, seconds=seconds)

            for _ in OFTEN:
                await slept(0.0)
            for _ in range(3):
                task = asyncio.create_task(slept(600.0))
                active = f"SELECT count(*) FROM {OURS} AND query LIKE '%''cancelled'''"
                while await other.query(active) != [(1,)]:
                    await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert await other.query(active) == [(0,)]
                await slept(0.0)
            assert db.pool.in_use == 0

    in_loop(test)


@pytest.mark.parametrize("whose", ["its own", "another's"])
def test_a_server_that_ends_the_connection_in_a_first_statement_is_heard(
    empty: DatabaseURL, way: str, whose: str
) -> None:
    """Its words are told, and the next transaction has a new connection."""

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db, AsyncDatabase(empty) as other:
            end = (
                "SELECT CASE WHEN :last THEN pg_terminate_backend(pg_backend_pid()) END, 'ended'"
                if whose == "its own"
                else "SELECT CASE WHEN :last THEN pg_sleep(600) END, 'ended'"
            )

            async def ended(last: bool) -> None:
                async with db.transaction():
                    await db.query(end, last=last)

            for _ in OFTEN:
                await ended(False)
            task = asyncio.create_task(ended(True))
            killing = f"SELECT count(pg_terminate_backend(pid)) FROM {OURS} AND query LIKE '%''ended'''"
            while whose == "another's" and await other.query(killing) != [(1,)]:
                await asyncio.sleep(0.01)
            with pytest.raises(DBAPIError, match="terminating connection due to administrator command") as caught:
                await task
            assert isinstance(caught.value, OperationalError)
            assert isinstance(caught.value.orig, psycopg.errors.AdminShutdown)
            assert caught.value.connection_invalidated
            await ended(False)
            assert db.pool.in_use == 0

    in_loop(test)
