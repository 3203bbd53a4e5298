"""run(): what is done again, and what is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError, OperationalError

from atriz_database import Database
from atriz_database.transaction import repeat
from atriz_database.url import DatabaseURL


@pytest.fixture
def db(empty: DatabaseURL) -> Iterator[Database]:
    """Yield a database with two accounts."""
    with Database(empty) as made:
        made.execute("CREATE TABLE accounts (name text PRIMARY KEY, balance int NOT NULL)")
        made.execute("INSERT INTO accounts VALUES ('ann', 100), ('ben', 100)")
        yield made


def test_serialization_failures_are_run_again(db: Database) -> None:
    """Threads that read and write the same row at the same time: no update is lost."""
    attempts: list[int] = []
    barrier = threading.Barrier(2)

    def withdraw(connection: Connection) -> None:
        attempts.append(1)
        balance = connection.execute(text("SELECT balance FROM accounts WHERE name = 'ann'")).scalar_one()
        if len(attempts) <= 2:
            barrier.wait(20)  # Both have read before either writes: one of them must fail.
        connection.execute(text("UPDATE accounts SET balance = :new WHERE name = 'ann'"), {"new": balance - 10})

    threads = [
        threading.Thread(target=lambda: db.run(withdraw, retries=10, isolation="SERIALIZABLE")) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attempts) >= 3
    assert db.query("SELECT balance FROM accounts WHERE name = 'ann'") == [(80,)]


def test_deadlocks_are_run_again(db: Database) -> None:
    """Two transfers that lock two rows in opposite order both come through."""
    db.execute(f"ALTER DATABASE {db.url.database} SET deadlock_timeout = '50ms'")
    attempts: list[str] = []
    barrier = threading.Barrier(2)

    def transfer(first: str, second: str) -> None:
        def move(connection: Connection) -> None:
            attempts.append(first)
            for name, amount in ((first, -10), (second, 10)):
                connection.execute(
                    text("UPDATE accounts SET balance = balance + :amount WHERE name = :name"),
                    {"name": name, "amount": amount},
                )
                if attempts.count(first) == 1 and name == first:
                    barrier.wait(20)

        with Database(db.url) as own:
            own.run(move)

    threads = [threading.Thread(target=transfer, args=names) for names in (("ann", "ben"), ("ben", "ann"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attempts) == 3
    assert db.query("SELECT balance FROM accounts ORDER BY name") == [(100,), (100,)]


def _always_fails(connection: Connection) -> None:
    connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$"))


def test_last_failure_comes_out(db: Database) -> None:
    """After as many repeats as were asked for."""
    calls: list[int] = []

    def function(connection: Connection) -> None:
        calls.append(1)
        _always_fails(connection)

    with pytest.raises(OperationalError, match="again"):
        db.run(function, retries=2)
    assert (len(calls), db.pool.in_use) == (3, 0)


def test_function_that_has_only_begun_is_refused(db: Database) -> None:
    """A generator's statements, and a coroutine's, would come when the transaction is over: nothing is committed."""
    change = "UPDATE accounts SET balance = 0"

    def generator(connection: Connection) -> Iterator[int]:
        yield connection.exec_driver_sql(change).rowcount

    async def coroutine(connection: Connection) -> None:
        connection.exec_driver_sql(change)

    def both(connection: Connection) -> Iterator[int]:
        connection.exec_driver_sql(change)
        return generator(connection)

    for function in (generator, coroutine, both):
        with pytest.raises(TypeError, match="function that does its work when it is called, and this one returned a"):
            db.run(function)
    assert db.query("SELECT sum(balance) FROM accounts") == [(200,)]
    assert db.pool.in_use == 0


def test_other_errors_are_not_run_again(db: Database) -> None:
    calls: list[int] = []

    def function(connection: Connection) -> None:
        calls.append(1)
        connection.execute(text("INSERT INTO accounts VALUES ('ann', 1)"))

    with pytest.raises(IntegrityError):
        db.run(function)
    assert len(calls) == 1


def test_nested_run_leaves_it_to_the_outermost(db: Database) -> None:
    """What failed is the transaction as a whole, so that is what runs again."""
    outer: list[int] = []
    inner: list[int] = []

    def nested(connection: Connection) -> None:
        inner.append(1)
        if len(inner) == 1:
            _always_fails(connection)

    def whole(connection: Connection) -> str:
        outer.append(1)
        db.run(nested)
        return "done"

    assert db.run(whole) == "done"
    assert (len(outer), len(inner)) == (2, 2)


def test_pauses_grow_and_differ() -> None:
    """Each is a random part of twice the last one's longest."""
    pauses: list[float] = []

    def fail() -> None:
        raise psycopg.errors.SerializationFailure

    with pytest.raises(psycopg.errors.SerializationFailure):
        repeat(fail, 200, pauses.append)
    assert len(pauses) == 200
    assert len(set(pauses)) == 200
    assert all(0 <= pause <= min(0.02 * 2**number, 1) for number, pause in enumerate(pauses))
    assert max(pauses[10:]) > 0.5
