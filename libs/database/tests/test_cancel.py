"""Tasks that are cancelled: wherever it meets them, nothing is half done and no connection is left in use."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Iterator
from typing import Any

import place as places
import pytest
import worlds
from place import Place, assert_whole, held
from second import Second
from sqlalchemy import text
from worlds import World

from atriz_database import AsyncDatabase


@pytest.fixture(scope="module")
def server() -> Iterator[Second]:
    """Yield a server."""
    with places.server() as running:
        yield running


@pytest.fixture
def place(server: Second) -> Iterator[Place]:
    """Yield a database of the test's own."""
    with places.made(server) as made:
        yield made


def two_notes(db: Any, then: str = "SELECT 1") -> None:
    """Write two notes that belong together, and run a statement before they are committed."""
    with db.transaction() as connection:
        connection.execute(text("INSERT INTO notes VALUES ('a')"))
        connection.execute(text("INSERT INTO notes VALUES ('b')"))
        connection.exec_driver_sql(then)


@worlds.in_tasks
def test_cancelled_during_a_statement_it_is_rolled_back(world: World, place: Place) -> None:
    """The server stops working on it at once, too."""
    db = world.open(place.url(), pool_size=2)
    work = world.start(lambda: two_notes(db, "SELECT pg_sleep(60)"))
    world.until(lambda: bool(place.sleeping()))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert db.pool.in_use == 0
    world.until(lambda: not place.backends("active"))
    assert place.notes() == []
    assert_whole(world, place, db)


@worlds.in_tasks
def test_cancelled_between_statements_it_is_rolled_back(world: World, place: Place) -> None:
    """The same where the task waits for something else inside its transaction."""
    db = world.open(place.url(), pool_size=2)
    begun = []

    def wait() -> None:
        with db.transaction() as connection:
            connection.execute(text("INSERT INTO notes VALUES ('never')"))
            begun.append(1)
            world.until(lambda: False)

    work = world.start(wait)
    world.until(lambda: bool(begun))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert place.notes() == []
    assert_whole(world, place, db)


def every_message(db: Any) -> None:
    """Send all that a transaction consists of, a dry run at last."""
    with db.transaction(statement_timeout=30.0, force_rollback=True) as connection:
        with db.transaction():
            connection.execute(text("INSERT INTO notes VALUES ('inner')"))
        with db.transaction(force_rollback=True):
            connection.execute(text("INSERT INTO notes VALUES ('dry')"))
        connection.exec_driver_sql("SELECT 'last'")


@worlds.in_tasks
@pytest.mark.parametrize(
    "message",
    [b"BEGIN", b"set_config", b"SAVEPOINT", b"INSERT", b"RELEASE", b"ROLLBACK TO", b"ROLLBACK\x00"],
    ids=lambda message: message.decode().rstrip("\0"),
)
def test_cancelled_at_any_message_the_transaction_is_taken_back(world: World, place: Place, message: bytes) -> None:
    """While its answer is on the way: the task gets its cancellation, and nothing is there."""
    db = world.open(place.url(), pool_size=1)
    seen = place.network.catch(message, answer=True)
    work = world.start(lambda: every_message(db))
    world.wait(seen)
    work.cancel()
    place.network.resume()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert place.notes() == []
    assert_whole(world, place, db)


@worlds.in_tasks
def test_cancelled_while_it_waits_for_the_pool_it_takes_nothing(world: World, place: Place) -> None:
    """It leaves the queue, and who waits behind it moves up."""
    db = world.open(place.url(), pool_size=1)
    with held(world, db, 1):
        first = world.start(lambda: two_notes(db))
        world.until(lambda: db.pool.waiting == 1)
        second_ = world.start(lambda: two_notes(db))
        world.until(lambda: db.pool.waiting == 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            first.result()
        assert db.pool.waiting == 1
    second_.result()
    assert place.notes() == ["a", "b"]
    assert_whole(world, place, db)


def test_cancelled_as_its_turn_comes_the_turn_is_not_lost(place: Place) -> None:
    """Between a connection's return and the awakening of who waited for it: the next one gets it."""

    async def main() -> list[bool]:
        served = []
        async with AsyncDatabase(place.url(), pool_size=1, pool_timeout=5.0) as db:
            for turns in range(12):
                connection = await db.engine.connect()
                waiting = asyncio.create_task(db.query("SELECT 1"))
                while not db.pool.waiting:
                    await asyncio.sleep(0)
                returning = asyncio.create_task(connection.close())
                for _ in range(turns):
                    await asyncio.sleep(0)
                served.append(not db.pool.waiting)
                waiting.cancel()
                await asyncio.wait([waiting, returning])
                assert await db.query("SELECT 1") == [(1,)]
                assert (db.pool.in_use, db.pool.waiting) == (0, 0)
        return served

    # Cancelled before its turn had come, and after: the moments between the two are among them.
    assert set(asyncio.run(main())) == {True, False}


@worlds.in_tasks
def test_cancelled_while_it_connects_it_leaves_no_connection(world: World, place: Place) -> None:
    """The place in the pool is free again at once, and nothing is left at the server."""
    db = world.open(place.url(), pool_size=1)
    place.network.stall()
    work = world.start(lambda: db.query("SELECT 1"))
    world.until(lambda: place.network.connections == 1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert (db.pool.in_use, db.pool.open) == (0, 0)
    place.network.resume()
    place.until_left()
    assert_whole(world, place, db)


def test_cancelled_anywhere_on_its_way_to_the_server_it_leaves_no_connection(place: Place) -> None:
    """Nor one that is there until garbage is collected: at sixty moments of connecting."""

    async def main() -> None:
        for moment in range(60):
            async with AsyncDatabase(place.url(), pool_size=1) as db:
                task = asyncio.create_task(db.query("SELECT 1"))
                while not place.network.connections:
                    await asyncio.sleep(0)
                for _ in range(moment % 30):
                    await asyncio.sleep(0.0001)
                task.cancel()
                await asyncio.wait([task])
                assert db.pool.in_use == 0

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        place.until_left()
    finally:
        gc.enable()


@worlds.in_tasks
@pytest.mark.parametrize("committed", [True, False], ids=["committed", "under way"])
def test_cancelled_in_commit_all_of_it_is_there_or_nothing(world: World, place: Place, committed: bool) -> None:
    """The task gets its cancellation, the connection is thrown away, and what the server did it did as a whole."""
    db = world.open(place.url(), pool_size=2)
    seen = place.network.catch(b"COMMIT", answer=committed)
    work = world.start(lambda: two_notes(db))
    world.wait(seen)
    work.cancel()
    place.network.resume()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert db.pool.in_use == 0
    assert_whole(world, place, db)
    assert place.notes() in ([["a", "b"]] if committed else [["a", "b"], []])


@worlds.in_tasks
@pytest.mark.parametrize("committed", [True, False], ids=["committed", "under way"])
def test_cancelled_in_a_single_statement_it_is_done_or_not(world: World, place: Place, committed: bool) -> None:
    """The same for a statement that commits by itself."""
    db = world.open(place.url(), pool_size=2)
    seen = place.network.catch(b"INSERT", answer=committed)
    work = world.start(lambda: db.execute("INSERT INTO notes VALUES ('a'), ('b')"))
    world.wait(seen)
    work.cancel()
    place.network.resume()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert_whole(world, place, db)
    assert place.notes() in ([["a", "b"]] if committed else [["a", "b"], []])


@worlds.in_tasks
def test_run_is_not_repeated_after_a_cancellation(world: World, place: Place) -> None:
    """Cancelled is cancelled."""
    db = world.open(place.url(), pool_size=2)
    calls = []

    def slow(connection: Any) -> None:
        calls.append(1)
        connection.exec_driver_sql("SELECT pg_sleep(60)")

    work = world.start(lambda: db.run(slow))
    world.until(lambda: bool(place.sleeping()))
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert calls == [1]
    assert_whole(world, place, db)


@worlds.in_tasks
def test_cancelled_during_a_copy_no_row_is_left(world: World, place: Place) -> None:
    """COPY ends in the middle of its rows."""
    from sqlalchemy import Column, MetaData, Table, Text

    db = world.open(place.url(), pool_size=2)
    sent = []

    async def endless() -> Any:
        while True:
            sent.append(1)
            yield {"text": "never"}
            await asyncio.sleep(0)

    work = world.start(lambda: db.copy_rows(Table("notes", MetaData(), Column("text", Text)), endless()))
    world.until(lambda: len(sent) > 100)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert place.notes() == []
    assert_whole(world, place, db)


@pytest.mark.gate
@worlds.in_tasks
def test_cancelled_while_the_network_stalls_it_ends_after_a_while(world: World, place: Place) -> None:
    """Five seconds for the server to hear of it, five to answer; then the connection is given up."""
    db = world.open(place.url(), pool_size=1)
    assert db.query("SELECT 1") == [(1,)]
    place.network.stall()
    work = world.start(lambda: db.query("SELECT 2"))
    world.until(lambda: db.pool.in_use == 1)
    began = time.monotonic()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert time.monotonic() - began < 12
    assert (db.pool.in_use, db.pool.open) == (0, 0)
    place.network.drop()
    assert_whole(world, place, db)


@worlds.in_tasks
def test_cancelled_twice_while_the_network_stalls_it_ends_at_once(world: World, place: Place) -> None:
    """Whoever cannot wait for the server to hear of it cancels again."""
    db = world.open(place.url(), pool_size=1)
    assert db.query("SELECT 1") == [(1,)]
    place.network.stall()
    work = world.start(lambda: two_notes(db))
    world.until(lambda: db.pool.in_use == 1)
    work.cancel()
    # The request to cancel is a connection of its own.
    world.until(lambda: place.network.connections == 2)
    assert not work.done
    began = time.monotonic()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert time.monotonic() - began < 2
    assert (db.pool.in_use, db.pool.open) == (0, 0)
    place.network.drop()
    assert_whole(world, place, db)


@worlds.in_tasks
def test_cancelled_while_an_idle_connection_is_asked_it_takes_nothing(
    world: World, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ping over a network that stalls is given up with the task, and its place in the pool is free again."""
    monkeypatch.setattr("atriz_database.pool._PING_AFTER_SECONDS", 0.0)
    db = world.open(place.url(), pool_size=1)
    assert db.query("SELECT 1") == [(1,)]
    place.network.stall()
    work = world.start(lambda: db.query("SELECT 2"))
    world.until(lambda: db.pool.in_use == 1)
    work.cancel()
    world.until(lambda: place.network.connections == 2)
    place.network.drop()
    with pytest.raises(asyncio.CancelledError):
        work.result()
    assert_whole(world, place, db)


def cancelled_at_random(place: Place, tasks: int, seed: int) -> None:
    """Have many tasks write two notes each, and cancel half of them at moments that chance chooses."""
    chance = random.Random(seed)

    async def write(db: AsyncDatabase, name: int) -> None:
        async with db.transaction() as connection:
            await connection.execute(text("INSERT INTO notes VALUES (:name)"), {"name": str(name)})
            async with db.transaction():
                await connection.execute(text("INSERT INTO notes VALUES (:name)"), {"name": str(name)})

    async def main() -> None:
        async with AsyncDatabase(place.url(), pool_size=3) as db:
            running: dict[int, asyncio.Task[None]] = {}
            for name in range(tasks):
                running[name] = asyncio.create_task(write(db, name))
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                if chance.random() < 0.5:
                    running[chance.choice(list(running))].cancel()
                    await asyncio.sleep(chance.random() * 0.004)
            ended = await asyncio.gather(*running.values(), return_exceptions=True)
            assert {type(each) for each in ended} <= {asyncio.CancelledError, type(None)}
            assert (db.pool.in_use, db.pool.waiting) == (0, 0), db.pool
            notes = place.notes()
            for name, each in enumerate(ended):
                # Cancelled in COMMIT it may be there, as a whole; whoever was told nothing was not cancelled.
                assert notes.count(str(name)) in ((2,) if each is None else (0, 2)), (name, each)
            # All of the pool can be had at once.
            async with asyncio.timeout(20):
                await asyncio.gather(*(db.query("SELECT pg_sleep(0.05)") for _ in range(3)))

    asyncio.run(main())


def test_many_cancelled_at_random_leave_nothing_half_done(place: Place) -> None:
    """A hundred and fifty tasks on three connections: both notes of each or none, and the pool is whole."""
    cancelled_at_random(place, 150, seed=5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(20))
def test_many_more_cancelled_at_random_leave_nothing_half_done(place: Place, seed: int) -> None:
    """The same at thirty thousand moments."""
    cancelled_at_random(place, 1500, seed)
