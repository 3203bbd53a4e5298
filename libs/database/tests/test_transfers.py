"""Money moved between accounts by many, while servers and networks fail at random: none is lost, none is made."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import place as places
import pytest
import worlds
from place import Place, assert_whole
from second import Second
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from worlds import World

from atriz_database.errors import OutcomeUnknownError

_ACCOUNTS = 6
_BALANCE = 1000


@pytest.fixture(scope="module")
def server() -> Iterator[Second]:
    """Yield a server."""
    with places.server() as running:
        yield running


@pytest.fixture
def place(server: Second) -> Iterator[Place]:
    """Yield a database with accounts, and a journal of what was moved."""
    with places.made(server) as made:
        made.rows(
            "CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL);"
            "CREATE TABLE journal (transfer int NOT NULL, amount int NOT NULL);"
            f"INSERT INTO accounts SELECT n, {_BALANCE} FROM generate_series(1, {_ACCOUNTS}) n;"
            f"GRANT ALL ON accounts, journal TO {places.APPLICATION}"
        )
        yield made


def transfer(connection: Any, number: int, chance: random.Random) -> None:
    """Move an amount, in an order of rows that leads to deadlocks, and write it down."""
    debit, credit = chance.sample(range(1, _ACCOUNTS + 1), 2)
    amount = chance.randrange(1, 50)
    change = text("UPDATE accounts SET balance = balance + :amount WHERE id = :id")
    connection.execute(change, {"amount": -amount, "id": debit})
    connection.execute(change, {"amount": amount, "id": credit})
    connection.execute(
        text("INSERT INTO journal VALUES (:number, :amount)"),
        [{"number": number, "amount": -amount}, {"number": number, "amount": amount}],
    )


def move_while_it_fails(world: World, place: Place, clients: int, transfers: int, seed: int) -> Counter[str]:
    """Let clients make transfers while connections are dropped and backends killed; return how transfers ended."""
    place.rows("ALTER SYSTEM SET deadlock_timeout = '20ms'")
    place.rows("SELECT pg_reload_conf()")
    db = world.open(place.url(), pool_size=4)
    ends: dict[int, str] = {}

    def client(which: int) -> None:
        chance = random.Random(f"{seed} {which}")
        for turn in range(transfers):
            number = which * transfers + turn
            isolation = chance.choice([None, "REPEATABLE READ", "SERIALIZABLE"])
            try:
                db.run(lambda connection: transfer(connection, number, chance), retries=50, isolation=isolation)  # noqa: B023
                ends[number] = "done"
            except OutcomeUnknownError:
                ends[number] = "unknown"
            except OperationalError:
                ends[number] = "failed"

    stop = threading.Event()
    fail = threading.Thread(target=fail_at_random, args=(place, stop, random.Random(seed)))
    fail.start()
    try:
        works = [world.start(lambda which=which: client(which)) for which in range(clients)]  # type: ignore[misc]
        world.until(lambda: all(work.done for work in works), seconds=300)
        for work in works:
            work.result()
    finally:
        stop.set()
        fail.join()
    # What was killed at the end has been heard of by then.
    place.network.drop()
    world.until(lambda: place.network.connections == 0)
    assert_whole(world, place, db)
    assert place.rows("SELECT sum(balance) FROM accounts") == [(_ACCOUNTS * _BALANCE,)]
    written = {number: (rows, total) for number, rows, total in place.rows(_JOURNAL)}
    assert len(ends) == clients * transfers
    for number, end in ends.items():
        # Once where it is said to be done, never where it failed, and once or never where that is not known.
        possible = {"done": [(2, 0)], "failed": [None], "unknown": [(2, 0), None]}[end]
        assert written.get(number) in possible, (number, end, written.get(number))
    return Counter(ends.values())


_JOURNAL = "SELECT transfer, count(*), sum(amount) FROM journal GROUP BY transfer"


def fail_at_random(place: Place, stop: threading.Event, chance: random.Random) -> None:
    """Let something break every few milliseconds: connections, backends, and answers to COMMIT."""
    while not stop.wait(chance.uniform(0.005, 0.03)):
        what = chance.choice(["drop", "kill", "cut before", "cut after", "stall"])
        if what == "drop":
            place.network.drop()
        elif what == "kill":
            place.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE usename = '{places.APPLICATION}' AND datname = current_database() LIMIT 1"
            )
        elif what == "stall":
            place.network.stall()
            stop.wait(0.005)
            place.network.resume()
        else:
            place.network.catch(b"COMMIT", answer=what == "cut after", drop=True).wait(0.5)


@worlds.both
def test_transfers_while_everything_fails(world: World, place: Place) -> None:
    """Eight clients on four connections: each transfer is there as a whole or not at all, as it was reported."""
    ends = move_while_it_fails(world, place, clients=8, transfers=15, seed=5)
    # Of each kind there were some, or nothing was shown.
    assert min(ends["done"], ends["failed"], ends["unknown"]) > 0, ends


@pytest.mark.soak
@worlds.both
@pytest.mark.parametrize("seed", range(int(os.environ.get("ATRIZ_FAULTS", "5"))))
def test_many_transfers_while_everything_fails(world: World, place: Place, seed: int) -> None:
    """The same with more clients, for longer."""
    move_while_it_fails(world, place, clients=20, transfers=100, seed=seed)
