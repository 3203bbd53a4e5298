"""What tasks wait with: greenlets that are kept, and one look at all the sockets of an event loop."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from event_loop import in_loop
from psycopg.errors import UniqueViolation
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, MissingGreenlet, OperationalError, StatementError
from sqlalchemy.util import await_

from atriz_database import AsyncDatabase, adapter, tasks
from atriz_database.url import DatabaseURL

PID = "SELECT pg_backend_pid()"


@pytest.fixture(params=["ours", "psycopg's", "psycopg's cursors", "no epoll", "no room"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have the connections wait here, or as where psycopg's private names or the system are others than today's."""
    if request.param == "psycopg's":
        monkeypatch.setattr(adapter, "_OF_CONNECTIONS", ("_renamed",))
    if request.param == "psycopg's cursors":
        monkeypatch.setattr(adapter, "_OF_CURSORS", ("_renamed",))
    if request.param == "no epoll":
        monkeypatch.delattr(select, "epoll", raising=False)  # asyncio has it already
    if request.param == "no room":
        monkeypatch.setattr(select, "epoll", NoRoom)
    return str(request.param)


class NoRoom:
    """An epoll that takes no more descriptors."""

    def __init__(self) -> None:
        self.mine, self.other = os.pipe()

    def fileno(self) -> int:
        """Return a descriptor that nothing comes to."""
        return self.mine

    def modify(self, _descriptor: int, _events: int) -> None:
        """Know none."""
        raise FileNotFoundError

    def register(self, _descriptor: int, _events: int) -> None:
        """Take none."""
        raise OSError(errno.ENOSPC, "no room")

    def __del__(self) -> None:
        os.close(self.mine)
        os.close(self.other)


def test_both_ways_bring_the_same(empty: DatabaseURL, way: str) -> None:
    """Rows, counts, errors and commits, of our own calls and of SQLAlchemy's."""

    async def test() -> None:
        async with AsyncDatabase(empty) as db:
            await db.execute("CREATE TABLE notes (id int PRIMARY KEY)")
            async with db.transaction(isolation="SERIALIZABLE") as connection:
                driver = (await connection.get_raw_connection()).dbapi_connection
                assert isinstance(driver, adapter.Connection) == (way in ("ours", "no room"))
                assert await db.execute("INSERT INTO notes VALUES (1), (2)") == 2
                assert (await connection.execute(text("SELECT id FROM notes ORDER BY id"))).all() == [(1,), (2,)]
                assert await connection.scalar(text("SHOW transaction_isolation")) == "serializable"
                with pytest.raises(IntegrityError) as caught:
                    async with db.transaction():
                        await db.execute("INSERT INTO notes VALUES (1)")
                assert isinstance(caught.value.orig, UniqueViolation)
                streamed = await connection.stream(text("SELECT id FROM notes ORDER BY id"))
                assert [row.id async for row in streamed] == [1, 2]
            with pytest.raises(ZeroDivisionError):
                async with db.transaction():
                    await db.execute("DELETE FROM notes")
                    raise ZeroDivisionError
            assert await db.query("SELECT count(*) FROM notes") == [(2,)]

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_a_statement_longer_than_the_sockets_buffers_is_sent_whole(empty: DatabaseURL) -> None:
    """And an answer that long is read whole."""

    async def test() -> None:
        async with AsyncDatabase(empty) as db:
            long = "long " * 4_000_000
            async with db.transaction():
                ((answer,),) = await db.query("SELECT CAST(:long AS text)", long=long)
            assert answer == long

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_what_the_server_says_before_it_answers_is_no_answer(empty: DatabaseURL) -> None:
    async def test() -> None:
        async with AsyncDatabase(empty) as db:
            async with db.transaction() as connection:
                raw: Any = (await connection.get_raw_connection()).driver_connection
                heard: list[str | None] = []
                raw.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
                await db.execute(
                    "DO $$ BEGIN FOR i IN 1..3 LOOP RAISE NOTICE 'note %', i; PERFORM pg_sleep(0.02); END LOOP; END $$"
                )
                assert heard == ["note 1", "note 2", "note 3"]
            assert await db.query("SELECT 1") == [(1,)]

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_a_cancelled_statement_is_ended_on_the_server(empty: DatabaseURL) -> None:
    """By the time that the task hears of it; the next statement has an answer of its own."""

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db, AsyncDatabase(empty) as other:
            ((pid,),) = await db.query(PID)
            task = asyncio.create_task(db.query("SELECT pg_sleep(20)"))
            asks = "SELECT 1 FROM pg_stat_activity WHERE pid = :pid AND wait_event = 'PgSleep'"
            while not await other.query(asks, pid=pid):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not await other.query(asks, pid=pid)
            assert await db.query("SELECT 1") == [(1,)]

    in_loop(test)


def test_a_connection_that_another_task_closes_is_not_waited_for(empty: DatabaseURL) -> None:
    """Nor is what has the number of its socket then, whose answer comes to whoever asked it."""

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=2) as db:
            connection = await db.engine.connect()
            driver: Any = (await connection.get_raw_connection()).driver_connection
            descriptor = driver.pgconn.socket
            waits = asyncio.create_task(connection.execute(text("SELECT pg_sleep(20)")))
            while descriptor not in tasks._kept()._waiting:
                await asyncio.sleep(0)
            await driver.close()
            async with db.transaction() as other:
                raw: Any = (await other.get_raw_connection()).driver_connection
                assert raw.pgconn.socket == descriptor
                asks = asyncio.create_task(other.scalar(text("SELECT 7 FROM pg_sleep(0.1)")))
                while not raw.lock.locked():
                    await asyncio.sleep(0)
                with pytest.raises(OperationalError, match="the connection was closed"):
                    await waits
                assert await asks == 7
            await connection.close()

    in_loop(test)


def test_who_waits_for_a_connection_that_is_closed_hears_of_it(empty: DatabaseURL) -> None:
    """Where nothing else happens in the loop, too; and one that is cancelled then gets its cancellation."""

    async def test() -> None:
        async with AsyncDatabase(empty) as db:
            for cancelled in (False, True):
                async with db.engine.connect() as connection:
                    waits = asyncio.create_task(connection.execute(text("SELECT pg_sleep(20)")))
                    while not tasks._kept()._waiting:
                        await asyncio.sleep(0)
                    await connection.invalidate()
                    if cancelled:
                        waits.cancel()
                    with pytest.raises(asyncio.CancelledError if cancelled else OperationalError):
                        await waits

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_two_tasks_on_one_connection_wait_for_each_other(empty: DatabaseURL) -> None:
    async def test() -> None:
        async with AsyncDatabase(empty) as db, db.transaction() as connection:
            answers = await asyncio.gather(
                *(connection.scalar(text("SELECT :number"), {"number": number}) for number in range(20))
            )
            assert answers == list(range(20))

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_what_is_asked_where_nobody_can_wait_is_not_asked(empty: DatabaseURL) -> None:
    """As where an attribute of an ORM's object would have to be loaded: the server hears nothing, the block goes on."""

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=1) as db:
            await db.execute("CREATE TABLE notes (id int)")
            for _ in range(8):
                async with db.transaction() as connection:
                    await connection.execute(text(PID))
            with pytest.raises(ZeroDivisionError):
                async with db.transaction() as connection:
                    sync: Any = connection.sync_connection
                    for _ in range(2):  # with BEGIN, and without
                        with pytest.raises(
                            (MissingGreenlet, StatementError), match="greenlet_spawn has not been called"
                        ):
                            sync.execute(text(PID))
                        await db.execute("INSERT INTO notes VALUES (1)")
                    with pytest.raises((MissingGreenlet, StatementError), match="greenlet_spawn"):
                        sync.connection.dbapi_connection.commit()
                    raise ZeroDivisionError
            assert await db.query("SELECT id FROM notes") == []

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_an_error_tells_what_was_being_handled(empty: DatabaseURL) -> None:
    """In a greenlet as well, which has no errors but its own."""

    async def test() -> None:
        async with AsyncDatabase(empty) as db:
            with pytest.raises(DataError) as caught:
                try:
                    raise KeyError
                except KeyError:
                    await db.query("SELECT 1 / 0")
            error: Any = caught.value
            assert isinstance(error.orig.__context__, KeyError)
            assert not error.orig.__suppress_context__

    in_loop(test)


@pytest.mark.usefixtures("way")
def test_a_database_serves_several_loops_in_turn(empty: DatabaseURL) -> None:
    """By the same connection, whichever thread a loop runs in."""
    db = AsyncDatabase(empty, pool_size=1)

    async def pids() -> list[int]:
        return [(await db.query(PID))[0][0] for _ in range(2)]

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as executor:
        seen = {pid for loop in (first, second, first) for pid in loop.run_until_complete(pids())}
        seen |= set(executor.submit(first.run_until_complete, pids()).result(20))
        seen |= set(first.run_until_complete(pids()))
        assert len(seen) == 1
        first.run_until_complete(db.close())
    first.close()
    second.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors as Linux shows them")
def test_nothing_is_left_of_loops_and_connections_that_are_gone(empty: DatabaseURL) -> None:
    """No descriptor, no greenlet; and a connection with the number of one that broke is waited for all the same."""

    async def test() -> None:
        async with AsyncDatabase(empty, pool_size=3) as db:
            for _ in range(3):
                await asyncio.gather(*(db.query(PID) for _ in range(9)))
                others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                while await db.query(f"SELECT pg_terminate_backend(pid) {others}"):
                    await asyncio.sleep(0)

    def left() -> tuple[int, int]:
        gc.collect()
        workers = sum(isinstance(each, tasks._Worker) for each in gc.get_objects())
        return len(os.listdir("/proc/self/fd")), workers  # noqa: PTH208

    in_loop(test)
    before = left()
    for _ in range(5):
        in_loop(test)
    assert left() == before


def test_a_function_runs_in_the_context_of_its_task() -> None:
    """In whichever greenlet, and what it sets there stays the task's own."""
    variable: ContextVar[int] = ContextVar("variable")

    async def test() -> None:
        async def one(number: int) -> None:
            variable.set(number)

            def function() -> int:
                await_(asyncio.sleep(0))
                seen = variable.get()
                variable.set(seen + 1000)
                await_(asyncio.sleep(0))
                return seen

            assert await tasks.run(function) == number
            assert variable.get() == number + 1000
            assert await tasks.run(variable.get) == number + 1000

        await asyncio.gather(*(one(number) for number in range(3 * tasks._KEPT_GREENLETS)))
        assert len(tasks._kept().greenlets) == tasks._KEPT_GREENLETS

    in_loop(test)


def test_an_error_comes_out_of_a_greenlet_and_one_goes_in() -> None:
    """With its own traceback; and what waits inside hears of what it waited for."""

    async def test() -> None:
        async def fail() -> None:
            raise KeyError("inside")

        def hears() -> str:
            try:
                await_(fail())
            except KeyError as error:
                return f"heard {error}"
            return "heard nothing"

        assert await tasks.run(hears) == "heard 'inside'"
        with pytest.raises(KeyError) as through:
            await tasks.run(lambda: await_(fail()))
        assert 'raise KeyError("inside")' in str(through.traceback[-1].statement)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError) as caught:
                await tasks.run(lambda: 1 // 0)
            assert "1 // 0" in str(caught.traceback[-1].statement)
            assert await tasks.run(lambda: 2) == 2

    in_loop(test)


def test_nothing_of_a_caller_is_kept_when_it_has_been_served() -> None:
    """Not its function, not what that returned, and not its context."""

    class Thing:
        pass

    async def test() -> None:
        things: weakref.WeakSet[Thing] = weakref.WeakSet()
        variable: ContextVar[Any] = ContextVar("variable")

        async def hold() -> None:
            held, returned, in_context = Thing(), Thing(), Thing()
            things.update((held, returned, in_context))
            variable.set(in_context)
            await tasks.run(lambda: (held, returned)[1])

        await asyncio.create_task(hold())
        await asyncio.sleep(0)  # What wakes this task holds the other one.
        assert len(tasks._kept().greenlets) == 1
        gc.collect()
        assert list(things) == []

    in_loop(test)


def test_greenlets_of_a_thread_that_is_gone_are_not_used() -> None:
    """Nor where the next thread has its number, as most systems give it."""
    loop = asyncio.new_event_loop()

    async def ran() -> int:
        return await tasks.run(threading.get_ident)

    ran_in = []
    for _ in range(5):
        thread = threading.Thread(target=lambda: ran_in.append(loop.run_until_complete(ran())))
        thread.start()
        thread.join()
    assert len(ran_in) == 5
    assert loop.run_until_complete(ran()) == threading.get_ident()
    loop.close()
