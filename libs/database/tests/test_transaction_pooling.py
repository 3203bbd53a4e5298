"""Many clients through a real PgBouncer in transaction mode, where each transaction may get another backend."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import place as places
import pooler
import pytest
import worlds
from place import Place
from pooler import Pooler
from second import Second
from sqlalchemy import Column, MetaData, Table, Text, text
from sqlalchemy.exc import DataError, OperationalError
from worlds import World

from atriz_database.errors import OutcomeUnknownError
from atriz_database.url import DatabaseURL

_BACKENDS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Second]:
    """Yield a server."""
    pooler.program()
    with places.server() as running:
        yield running


@pytest.fixture
def place(server: Second) -> Iterator[Place]:
    """Yield a database of the test's own."""
    with places.made(server) as made:
        yield made


@pytest.fixture
def middle(place: Place) -> Iterator[Pooler]:
    """Yield a PgBouncer in transaction mode with few backends, which hands them out in turn."""
    with pooler.running(
        DatabaseURL.parse(place.direct()),
        pool_mode="transaction",
        default_pool_size=_BACKENDS,
        server_round_robin=1,
        max_client_conn=500,
    ) as running:
        yield running


def url(middle: Pooler, place: Place) -> str:
    """Return the URL of an application behind the pooler."""
    return f"{middle.url(place.database)}?pooler=transaction"


def repeat(world: World, clients: list[Any], rounds: int) -> list[tuple[int, int]]:
    """Have each client run the same few statements again and again, more often than psycopg needs to prepare them."""

    def work(number: int) -> int:
        db = clients[number % len(clients)]
        for turn in range(rounds):
            with db.transaction() as connection:
                # Of its own kind for each client, so that one name means different statements on one backend.
                row = connection.execute(text(f"SELECT CAST(:n AS int), {number}, pg_backend_pid()"), {"n": turn}).one()
                assert row[:2] == (turn, number)
                connection.execute(text("INSERT INTO notes VALUES (:name)"), {"name": f"{number}"})
        return rounds

    works = [world.start(lambda number=number: work(number)) for number in range(len(clients) * 4)]  # type: ignore[misc]
    world.until(lambda: all(each.done for each in works), seconds=600)
    return [(number, each.result()) for number, each in enumerate(works)]


@pytest.mark.gate
@worlds.both
def test_statements_that_repeat_are_never_prepared(world: World, place: Place, middle: Pooler) -> None:
    """Ten pools with four threads or tasks each on three backends: nothing is lost, every answer is one's own."""
    clients = [world.open(url(middle, place), pool_size=4) for _ in range(10)]
    done = repeat(world, clients, rounds=12)
    assert place.rows("SELECT count(*) FROM notes") == [(sum(rounds for _, rounds in done),)]
    assert place.rows("SELECT count(*), max(n) FROM (SELECT count(*) n FROM notes GROUP BY text) x") == [(40, 12)]
    assert len(place.backends()) <= _BACKENDS
    assert all(client.pool.in_use == 0 for client in clients)
    (prepared,) = {tuple(client.query("SELECT count(*) FROM pg_prepared_statements")) for client in clients}
    assert prepared == ((0,),)


@pytest.mark.soak
@worlds.both
def test_a_hundred_clients_and_fifty_thousand_transactions(world: World, place: Place, middle: Pooler) -> None:
    """The same with twenty-five pools, longer."""
    clients = [world.open(url(middle, place), pool_size=4) for _ in range(25)]
    done = repeat(world, clients, rounds=500)
    assert place.rows("SELECT count(*) FROM notes") == [(sum(rounds for _, rounds in done),)]
    assert len(place.backends()) <= _BACKENDS


SETTINGS = {
    "statement_timeout": ({"statement_timeout": 7.0}, "7s"),
    "lock_timeout": ({"lock_timeout": 3.0}, "3s"),
    "transaction_isolation": ({"isolation": "SERIALIZABLE"}, "serializable"),
    "transaction_read_only": ({"read_only": True}, "on"),
}
_SHOWN = ", ".join(f"current_setting('{name}')" for name in SETTINGS)
_DEFAULTS = ("0", "0", "read committed", "off")


@pytest.mark.gate
@worlds.both
def test_settings_of_one_client_are_never_seen_by_another(world: World, place: Place, middle: Pooler) -> None:
    """Each transaction has what it asked for, and the next on the same backend has the defaults: by the hundred."""
    strict = world.open(url(middle, place), pool_size=3, name="strict")
    plain = world.open(url(middle, place), pool_size=3, name="plain")
    options = {key: value for given, _ in SETTINGS.values() for key, value in given.items()}
    expected = tuple(shown for _, shown in SETTINGS.values())

    def with_settings(number: int) -> tuple[Any, ...]:
        # Half of them end in an error, after which nothing may be left, either.
        with suppress(DataError), strict.transaction(**options) as connection:
            row = tuple(connection.exec_driver_sql(f"SELECT {_SHOWN}").one())
            if number % 2:
                connection.exec_driver_sql("SELECT 1 / 0")
        return row

    def without(_number: int) -> tuple[Any, ...]:
        (row,) = plain.query(f"SELECT {_SHOWN}")
        return tuple(row)

    for _ in range(10):
        works = [world.start(lambda each=each: (with_settings, without)[each % 2](each // 2)) for each in range(12)]  # type: ignore[misc]
        assert [work.result() for work in works] == [expected, _DEFAULTS] * 6
    assert len(place.backends()) <= _BACKENDS


@pytest.mark.gate
@worlds.both
def test_each_setting_alone_is_gone_with_its_transaction(world: World, place: Place, middle: Pooler) -> None:
    """Seen on every backend, by a client without settings."""
    strict = world.open(url(middle, place), pool_size=1)
    plain = world.open(url(middle, place), pool_size=1)
    for given, _ in SETTINGS.values():
        for _ in range(_BACKENDS):
            with strict.transaction(**given) as connection:
                connection.exec_driver_sql("SELECT 1")
        for _ in range(_BACKENDS):
            assert [tuple(row) for row in plain.query(f"SELECT {_SHOWN}")] == [_DEFAULTS]


@pytest.mark.gate
@worlds.both
def test_without_the_option_the_pooler_is_noticed(world: World, place: Place, middle: Pooler) -> None:
    """Unnoticed, clients would run one another's prepared statements: the names are the same, and the rows wrong."""
    clients = [world.open(middle.url(place.database), pool_size=4) for _ in range(5)]
    done = repeat(world, clients, rounds=12)
    assert place.rows("SELECT count(*) FROM notes") == [(sum(rounds for _, rounds in done),)]
    assert place.rows("SELECT count(*), max(n) FROM (SELECT count(*) n FROM notes GROUP BY text) x") == [(20, 12)]
    assert clients[0].query("SELECT count(*) FROM pg_prepared_statements") == [(0,)]


@pytest.mark.gate
@worlds.both
def test_past_the_pooler_statements_are_prepared(world: World, place: Place) -> None:
    """What repeats is prepared where the server is reached itself."""
    db = world.open(place.url(), pool_size=1)
    for _ in range(10):
        db.query("SELECT 1")
    assert db.query("SELECT count(*) > 0 FROM pg_prepared_statements") == [(True,)]


@pytest.mark.gate
@worlds.both
def test_a_pooler_whose_server_is_killed_recovers(world: World, place: Place, middle: Pooler) -> None:
    """A backend that is killed behind it ends the transaction on it, and the next gets another one."""
    db = world.open(url(middle, place), pool_size=2)
    with pytest.raises(OperationalError), db.transaction() as connection:
        connection.execute(text("INSERT INTO notes VALUES ('never')"))
        place.kill(place.backends("%transaction%"))
        connection.execute(text("INSERT INTO notes VALUES ('never')"))
    assert db.pool.in_use == 0
    assert db.query("SELECT count(*) FROM notes") == [(0,)]


@pytest.mark.gate
@worlds.both
@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
@pytest.mark.parametrize("last", [b"COMMIT", b"INSERT"], ids=["COMMIT", "a single statement"])
def test_a_commit_cut_off_behind_the_pooler_is_unknown(
    world: World, place: Place, committed: bool, last: bytes
) -> None:
    """Between pooler and server the network breaks in COMMIT: the pooler ends the connection, and that is no answer."""
    through = DatabaseURL.parse(place.url())
    with pooler.running(through, pool_mode="transaction", default_pool_size=1) as middle:
        db = world.open(url(middle, place), pool_size=2)
        place.network.catch(last, answer=committed, drop=True)
        with pytest.raises(OutcomeUnknownError):
            if last == b"COMMIT":
                with db.transaction() as connection:
                    connection.execute(text("INSERT INTO notes VALUES ('once')"))
            else:
                db.execute("INSERT INTO notes VALUES ('once')")
        world.until(lambda: not place.backends("%transaction%"))
        assert place.notes() == (["once"] if committed else [])
        assert db.pool.in_use == 0
        assert len(db.query("SELECT * FROM notes")) == committed


@pytest.mark.gate
@worlds.both
def test_what_a_url_asks_of_the_session_is_refused_by_the_pooler_in_its_own_words(
    world: World, place: Place, middle: Pooler
) -> None:
    """`options` would be a setting of the backend: PgBouncer names the parameter that it does not take."""
    db = world.open(f"{url(middle, place)}&options=-csearch_path%3Dother", pool_size=1)
    with pytest.raises(OperationalError, match="unsupported startup parameter"):
        db.query("SELECT 1")
    assert db.pool.in_use == 0


@pytest.mark.gate
@worlds.both
def test_many_rows_are_copied_through_it(world: World, place: Place, middle: Pooler) -> None:
    """COPY by six clients at once, in transactions with other statements, and sessions of the ORM beside them."""
    clients = [world.open(url(middle, place), pool_size=2) for _ in range(6)]
    notes = Table("notes", MetaData(), Column("text", Text))

    def work(number: int) -> int:
        db = clients[number]
        with db.transaction():
            copied = db.copy_rows(notes, ({"text": f"{number} {row}"} for row in range(500)))
            db.execute("INSERT INTO notes VALUES (:text)", text=f"{number} last")
        with db.session() as session:
            session.execute(text("INSERT INTO notes VALUES (:text)"), {"text": f"{number} session"})
        return int(copied)

    works = [world.start(lambda number=number: work(number)) for number in range(6)]  # type: ignore[misc]
    assert [each.result() for each in works] == [500] * 6
    assert place.rows("SELECT count(*), count(DISTINCT text) FROM notes") == [(6 * 502, 6 * 502)]
    assert len(place.backends()) <= _BACKENDS


@pytest.mark.gate
@worlds.in_tasks
def test_a_cancelled_task_stops_its_own_statement_and_no_other(world: World, place: Place, middle: Pooler) -> None:
    """Through the pooler, too: the backend is free again, and statements of others on the rest go on."""
    db = world.open(url(middle, place), pool_size=4)
    for _ in range(5):
        work = world.start(lambda: db.query("SELECT pg_sleep(60)"))
        world.until(lambda: bool(place.sleeping()))
        others = [world.start(lambda: db.query("SELECT pg_sleep(0.2), 1")) for _ in range(_BACKENDS - 1)]
        world.until(lambda others=others: len(place.sleeping()) > 1 or any(other.done for other in others))  # type: ignore[misc]
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            work.result()
        assert [other.result()[0][1] for other in others] == [1] * (_BACKENDS - 1)
        world.until(lambda: not place.backends("active"))
    assert db.pool.in_use == 0
