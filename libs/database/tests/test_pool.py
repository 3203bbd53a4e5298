"""The pool: who gets a connection, who waits, and what it says of itself."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

from atriz_database import AsyncDatabase, Database, PoolState, PoolTimeoutError
from atriz_database.url import DatabaseURL


def test_numbers_are_those_of_the_moment(empty: DatabaseURL) -> None:
    """Connections are made as they are needed; a wait is counted while it lasts and afterwards."""
    with Database(empty, pool_size=2) as db:
        assert db.pool == PoolState(size=2, open=0, in_use=0, waiting=0, waits=0, wait_seconds=0.0, timeouts=0)
        release, holding = threading.Event(), threading.Barrier(3)

        def hold() -> None:
            with db.transaction():
                holding.wait(20)
                release.wait(20)

        with ThreadPoolExecutor(3) as executor:
            holders = [executor.submit(hold) for _ in range(2)]
            holding.wait(20)
            waiter = executor.submit(db.query, "SELECT 1")
            while db.pool.waiting == 0:
                pass
            now = db.pool
            assert (now.open, now.in_use, now.waiting, now.waits) == (2, 2, 1, 1)
            release.set()
            assert waiter.result(20) == [(1,)]
            assert [each.result(20) for each in holders] == [None, None]
        after = db.pool
        assert (after.open, after.in_use, after.waiting, after.waits, after.timeouts) == (2, 0, 0, 1, 0)
        assert after.wait_seconds > 0


def test_full_pool_says_who_holds_what(empty: DatabaseURL) -> None:
    """By the names of threads and tasks, with the numbers and what to do; the pool goes on."""
    with Database(empty, name="shop", pool_size=1, pool_timeout=0.05) as db:
        with db.transaction(), ThreadPoolExecutor(1) as executor, pytest.raises(PoolTimeoutError) as caught:
            executor.submit(db.query, "SELECT 1").result(20)
        message = str(caught.value)
        assert "All 1 connections of shop were in use for 0.05 s, and 0 others wait." in message
        assert "Held the longest: thread MainThread for 0." in message
        assert "larger pool_size" in message
        assert db.query("SELECT 1") == [(1,)]
        assert (db.pool.timeouts, db.pool.waiting) == (1, 0)


def test_those_who_wait_are_served_in_turn(empty: DatabaseURL) -> None:
    """First come, first served, also past one that asks at the moment of return."""
    with Database(empty, pool_size=1) as db:
        served: list[int] = []

        def take(number: int) -> None:
            with db.transaction():
                served.append(number)

        with ThreadPoolExecutor(5) as executor:
            with db.transaction():
                for number in range(5):
                    executor.submit(take, number)
                    while db.pool.waiting <= number:
                        pass
            db.query("SELECT 1")
        assert served == [0, 1, 2, 3, 4]


class _Sleeper:
    """Waits for a slot, and is slow to wake up."""

    def __init__(self) -> None:
        self.slot: ConnectionPoolEntry | None = None
        self.is_called = False
        self.awake = threading.Event()

    def block(self, seconds: float) -> None:
        self.awake.wait(seconds)

    def wake(self) -> None:
        pass


def test_the_first_in_line_is_passed_over_for_a_moment_only(
    empty: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks while it wakes up may come first; after half a millisecond the connection is handed over to it."""
    with Database(empty, pool_size=1) as db, ThreadPoolExecutor(1) as executor:
        sleeper = _Sleeper()
        monkeypatch.setattr(db.engine.pool, "_waiter", lambda: sleeper)
        monkeypatch.setattr(db.engine.pool, "_served", math.inf)
        with db.transaction():
            waiting = executor.submit(db.query, "SELECT 1")
            while db.pool.waiting == 0:
                pass
        assert db.query("SELECT 2") == [(2,)]
        assert (db.pool.waiting, db.pool.in_use) == (1, 0)
        monkeypatch.setattr(db.engine.pool, "_served", time.monotonic() - 0.001)
        assert db.query("SELECT 2") == [(2,)]
        assert db.pool.waiting == 0
        sleeper.awake.set()
        assert waiting.result(20) == [(1,)]


def test_a_slot_that_somebody_was_told_of_who_got_another_goes_to_the_next(
    empty: DatabaseURL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits beside an idle connection."""
    with Database(empty, pool_size=2) as db, ThreadPoolExecutor(2) as executor:
        pool: Any = db.engine.pool
        sleeper, may_end = _Sleeper(), threading.Event()
        waiters = iter([sleeper, pool._waiter()])
        monkeypatch.setattr(pool, "_waiter", lambda: next(waiters))

        def hold() -> None:
            with db.transaction():
                may_end.wait(20)

        one, other = db.engine.connect(), db.engine.connect()
        first = executor.submit(hold)
        while db.pool.waiting < 1:
            pass
        second = executor.submit(db.query, "SELECT 1")
        while db.pool.waiting < 2:
            pass
        monkeypatch.setattr(pool, "_served", math.inf)
        one.close()  # The first is told of it.
        monkeypatch.setattr(pool, "_served", time.monotonic() - 0.001)
        other.close()  # It is handed over to him.
        sleeper.awake.set()
        try:
            assert second.result(5) == [(1,)]
        finally:
            may_end.set()
        first.result(20)


def test_a_slot_that_a_cancelled_task_was_told_of_goes_to_the_next(empty: DatabaseURL) -> None:
    """Its call is passed on, so that nobody waits beside an idle connection."""

    async def main() -> None:
        async with AsyncDatabase(empty, pool_size=1, pool_timeout=20) as db:
            async with db.transaction():
                first, second = (asyncio.create_task(db.query("SELECT 1")) for _ in range(2))
                while db.pool.waiting < 2:
                    await asyncio.sleep(0)
                # As if somebody had been served this moment: the connection is told of, and not handed over.
                db._database.engine.pool._served = math.inf  # type: ignore[attr-defined]
            first.cancel()
            assert await asyncio.wait_for(second, 5) == [(1,)]
            with pytest.raises(asyncio.CancelledError):
                await first

    asyncio.run(main())


def test_a_slot_that_comes_back_in_the_moment_of_a_cancellation_goes_to_the_next(empty: DatabaseURL) -> None:
    """The first in line is told of it, and has left the line before anybody looks."""

    async def main() -> None:
        async with AsyncDatabase(empty, pool_size=1, pool_timeout=20) as db:
            connection = await db.engine.connect()
            first, second = (asyncio.create_task(db.query("SELECT 1")) for _ in range(2))
            while db.pool.waiting < 2:
                await asyncio.sleep(0)
            db._database.engine.pool._served = math.inf  # type: ignore[attr-defined]
            first.cancel()
            await connection.close()  # It has nothing to say to the server, and so nobody else runs meanwhile.
            assert await asyncio.wait_for(second, 5) == [(1,)]
            with pytest.raises(asyncio.CancelledError):
                await first

    asyncio.run(main())


def test_no_connection_is_lost_where_threads_give_up(empty: DatabaseURL) -> None:
    """However many wait in vain, just when one comes back as well."""
    with Database(empty, pool_size=3, pool_timeout=0.0005) as db, ThreadPoolExecutor(24) as executor:

        def work(_: int) -> bool:
            try:
                db.query("SELECT 1")
            except PoolTimeoutError:
                return False
            return True

        done = list(executor.map(work, range(6000)))
        assert {*done} == {True, False}
        assert (db.pool.in_use, db.pool.waiting, db.pool.timeouts) == (0, 0, done.count(False))
        assert len({id(slot) for slot in db.engine.pool._idle}) == 3  # type: ignore[attr-defined]


def test_no_connection_is_lost_where_tasks_are_cancelled(empty: DatabaseURL) -> None:
    """Whether they wait, were told of a connection, were handed one, or ask something through it."""

    async def main() -> None:
        async with AsyncDatabase(empty, pool_size=3) as db:
            random = Random(7)

            async def work(longest: float) -> bool:
                try:
                    async with asyncio.timeout(random.uniform(0, longest)):
                        await db.query("SELECT 1")
                except TimeoutError:
                    return False
                return True

            longest, seen = 0.02, set()
            for _ in range(15):
                done = await asyncio.gather(*(work(longest) for _ in range(40)))
                seen.update(done)
                if not any(done):
                    longest *= 2  # A machine with much to do connects to nobody in that time.
            assert seen == {True, False}
            assert (db.pool.in_use, db.pool.waiting) == (0, 0)
            assert len({id(slot) for slot in db._database.engine.pool._idle}) == 3  # type: ignore[attr-defined]
            assert await asyncio.gather(*(db.query("SELECT 1") for _ in range(9))) == [[(1,)]] * 9

    asyncio.run(main())


def test_server_that_cannot_be_reached_is_told_to_all_at_once(empty: DatabaseURL) -> None:
    """Nobody waits for a connection that nobody holds: each who waits tries for itself, and gets the true error."""
    nowhere = DatabaseURL({**empty.parameters, "host": "127.0.0.1", "port": "1"})
    with Database(nowhere, pool_size=1, pool_timeout=20) as db, ThreadPoolExecutor(8) as executor:
        for each in [executor.submit(db.query, "SELECT 1") for _ in range(8)]:
            with pytest.raises(OperationalError):
                each.result(20)
        assert (db.pool.in_use, db.pool.waiting, db.pool.timeouts) == (0, 0, 0)


def test_old_connection_is_replaced(empty: DatabaseURL) -> None:
    with Database(empty, pool_size=1, recycle=0) as db:
        query = "SELECT pg_backend_pid()"
        assert db.query(query) != db.query(query)
        assert db.pool.open == 1


def test_connection_that_was_forgotten_comes_back(empty: DatabaseURL) -> None:
    """With what it left undone rolled back."""
    with Database(empty, pool_size=1, pool_timeout=1) as db:
        db.execute("CREATE TABLE left_behind (id int)")
        connection = db.engine.connect()
        connection.exec_driver_sql("INSERT INTO left_behind VALUES (1)")
        del connection
        gc.collect()
        assert db.query("SELECT * FROM left_behind") == []
        assert db.pool.in_use == 0


def test_dispose_of_the_engine_begins_anew(empty: DatabaseURL) -> None:
    """SQLAlchemy's own way to drop idle connections works on this pool as well."""
    with Database(empty, pool_size=2) as db:
        first = db.query("SELECT pg_backend_pid()")
        db.engine.dispose()
        assert (db.pool.size, db.pool.open) == (2, 0)
        assert db.query("SELECT pg_backend_pid()") != first
        assert "in_use=0" in db.engine.pool.status()
