"""Servers and networks that fail: a clear error, nothing half done, and a pool that is whole again."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import place as places
import psycopg
import pytest
import worlds
from place import Place, assert_whole, held
from second import Second
from sqlalchemy import Column, MetaData, Table, Text, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from worlds import World

from atriz_database.errors import DatabaseClosedError, OutcomeUnknownError, PoolTimeoutError

NOTES = Table("notes", MetaData(), Column("text", Text))
_CONNECTIONS = 12
_TRIES = getattr(socket, "TCP_KEEPCNT", 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Second]:
    """Yield a server with few connections."""
    with places.server(max_connections=_CONNECTIONS, superuser_reserved_connections=5) as running:
        yield running


@pytest.fixture
def place(server: Second) -> Iterator[Place]:
    """Yield a database of the test's own."""
    with places.made(server) as made:
        yield made


def note(connection: Any, content: str) -> None:
    """Write a note."""
    connection.execute(text("INSERT INTO notes VALUES (:content)"), {"content": content})


def backend(connection: Any) -> int:
    """Return the pid of the backend that answers."""
    return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())


def in_transaction(db: Any, statement: str) -> None:
    """Run a statement in a transaction of its own, with a BEGIN and a COMMIT."""
    with db.transaction() as connection:
        connection.exec_driver_sql(statement)


# Backends and servers that go away


@worlds.both
def test_backends_killed_in_the_pool_are_replaced_unseen(world: World, place: Place) -> None:
    """Nobody gets an error for a connection that broke while nobody used it."""
    db = world.open(place.url(), pool_size=3)
    with held(world, db, 3) as before:
        pass
    place.kill(before)
    with held(world, db, 3) as after:
        assert not set(before) & set(after)
    assert_whole(world, place, db)


@worlds.both
def test_connections_dropped_in_the_pool_are_replaced_unseen(world: World, place: Place) -> None:
    """The same where the network drops them, and the server says nothing."""
    db = world.open(place.url(), pool_size=3)
    with held(world, db, 3):
        pass
    place.network.drop()
    world.until(lambda: place.network.connections == 0)
    assert db.query("SELECT 1") == [(1,)]
    assert_whole(world, place, db)


@worlds.both
def test_a_backend_killed_inside_a_transaction_takes_it_back(world: World, place: Place) -> None:
    """The next statement says who ended the connection, and nothing of the transaction is there."""
    db = world.open(place.url(), pool_size=2)
    with (
        pytest.raises(OperationalError, match="terminating connection due to administrator"),
        db.transaction() as connection,
    ):
        note(connection, "before")
        place.kill([backend(connection)])
        note(connection, "after")
    assert place.notes() == []
    assert_whole(world, place, db)


@worlds.both
def test_a_backend_killed_before_commit_is_no_unknown_outcome(world: World, place: Place) -> None:
    """COMMIT is not sent over a connection that is seen to be broken: it is known that nothing is committed."""
    db = world.open(place.url(), pool_size=2)
    with pytest.raises(OperationalError, match="terminating connection"), db.transaction() as connection:
        note(connection, "before")
        place.kill([backend(connection)])
    assert place.notes() == []
    assert_whole(world, place, db)


@worlds.both
def test_a_backend_killed_inside_a_savepoint_takes_the_whole_transaction_back(world: World, place: Place) -> None:
    """Both blocks end with the server's error, and the pool gets its place back."""
    db = world.open(place.url(), pool_size=2)
    with pytest.raises(OperationalError, match="terminating connection"), db.transaction() as connection:
        note(connection, "outer")
        with db.transaction():
            note(connection, "inner")
            place.kill([backend(connection)])
            db.query("SELECT 1")
    assert place.notes() == []
    assert_whole(world, place, db)


@worlds.both
def test_a_backend_killed_during_a_statement_ends_it(world: World, place: Place) -> None:
    """Who waits for the answer gets the server's reason at once."""
    db = world.open(place.url(), pool_size=2)
    work = world.start(lambda: db.query("SELECT pg_sleep(60)"))
    world.until(lambda: bool(place.sleeping()))
    place.kill(place.sleeping())
    with pytest.raises(OperationalError, match="terminating connection"):
        work.result()
    assert_whole(world, place, db)


@worlds.both
def test_run_does_not_repeat_what_a_broken_connection_cut_off(world: World, place: Place) -> None:
    """Only what PostgreSQL asks to be run again is; the error comes out."""
    db = world.open(place.url(), pool_size=2)
    calls = []

    def cut_off(connection: Any) -> None:
        calls.append(1)
        place.kill([backend(connection)])
        note(connection, "never")

    with pytest.raises(OperationalError, match="terminating connection"):
        db.run(cut_off)
    assert (calls, place.notes()) == ([1], [])
    assert_whole(world, place, db)


@worlds.both
def test_a_restarted_server_is_found_again(world: World, place: Place) -> None:
    """While it is down the error says so; when it is back every connection is made anew, and nobody sees an error."""
    db = world.open(place.direct(), pool_size=3)
    with held(world, db, 3):
        pass
    place.server.kill()
    try:
        for _ in range(4):
            with pytest.raises(OperationalError, match="Connection refused"):
                db.query("SELECT 1")
        assert db.pool.in_use == 0
    finally:
        place.server.start()
    assert_whole(world, place, db)


@worlds.both
def test_a_restart_takes_back_what_was_open(world: World, place: Place) -> None:
    """A transaction that was open fails, and the next one works."""
    db = world.open(place.direct(), pool_size=3)
    with (
        pytest.raises(OperationalError, match=r"terminating connection|closed the connection"),
        db.transaction() as connection,
    ):
        note(connection, "lost")
        place.server.kill()
        place.server.start()
        note(connection, "never")
    db.execute("INSERT INTO notes VALUES ('after')")
    assert place.notes() == ["after"]
    assert_whole(world, place, db)


# Too many at once


@worlds.both
def test_a_full_pool_says_its_numbers_and_lets_in_the_next_when_it_can(world: World, place: Place) -> None:
    """How many, for how long, who holds them; afterwards it is as if nothing had been."""
    db = world.open(place.url(), pool_size=2, pool_timeout=0.2, name="notes of mine")
    with (
        held(world, db, 2),
        pytest.raises(
            PoolTimeoutError,
            match=r"All 2 connections of notes of mine were in use for 0\.2 s, and 0 others wait\. Held the longest: "
            r"(thread|task) \S+ .*for 0\.\d s, (thread|task)",
        ),
    ):
        db.query("SELECT 1")
    assert (db.pool.timeouts, db.pool.waits) == (1, 1)
    assert db.pool.wait_seconds >= 0.2
    assert_whole(world, place, db)


@worlds.both
def test_those_who_wait_are_let_in_as_connections_come_back(world: World, place: Place) -> None:
    """Twenty at once on two connections: all are served, none is lost, and no third connection is made."""
    db = world.open(place.url(), pool_size=2)
    with held(world, db, 2):
        works = [world.start(lambda: db.query("SELECT pg_backend_pid()")) for _ in range(20)]
        world.until(lambda: db.pool.waiting == 20)
    assert len({tuple(work.result()) for work in works}) <= 2
    assert db.pool.waits == 20
    assert_whole(world, place, db)


@worlds.both
def test_those_who_wait_while_it_is_closed_are_told(world: World, place: Place) -> None:
    """Nobody gets a connection of a closed database, not even who stood in line; the last one back is closed, too."""
    db = world.open(place.url(), pool_size=1, name="notes of mine")
    with held(world, db, 1):
        works = [world.start(lambda: db.query("SELECT 1")) for _ in range(3)]
        world.until(lambda: db.pool.waiting == 3)
        db.close()
        # Whoever comes now does not stand in line.
        with pytest.raises(DatabaseClosedError):
            db.query("SELECT 1")
    for work in works:
        with pytest.raises(DatabaseClosedError, match="notes of mine has been closed"):
            work.result()
    assert (db.pool.open, db.pool.in_use, db.pool.waiting) == (0, 0, 0)
    world.until(lambda: not place.backends())


@worlds.both
def test_a_server_out_of_connections_is_named_and_found_again(world: World, place: Place) -> None:
    """What the server says comes out, the pool's place is free again at once, and the next connection works."""
    db = world.open(place.url(), pool_size=2)
    with ExitStack() as others:
        with pytest.raises(psycopg.OperationalError):
            for _ in range(_CONNECTIONS + 1):
                others.enter_context(psycopg.connect(place.direct(), connect_timeout=5))
        for _ in range(5):
            with pytest.raises(OperationalError, match=r"too many clients|remaining connection slots are reserved"):
                db.query("SELECT 1")
        assert (db.pool.in_use, db.pool.open) == (0, 0)
    place.until_left()
    assert_whole(world, place, db)


# The server's own limits


@worlds.both
@pytest.mark.parametrize("then", ["statement", "commit"])
def test_an_idle_transaction_that_the_server_ends_says_so(world: World, place: Place, then: str) -> None:
    """By the next statement or by the end of the block: the server's reason, and nothing is committed."""
    place.rows(f"ALTER DATABASE {place.database} SET idle_in_transaction_session_timeout = '50ms'")
    db = world.open(place.url(), pool_size=1)
    with pytest.raises(DBAPIError, match="idle-in-transaction timeout"), db.transaction() as connection:
        note(connection, "never")
        world.until(lambda: not place.backends() and place.network.connections == 0)
        if then == "statement":
            note(connection, "never")
    assert place.notes() == []
    place.rows(f"ALTER DATABASE {place.database} RESET idle_in_transaction_session_timeout")
    assert_whole(world, place, db)


# A network that stalls, is slow, or drops


@worlds.both
def test_a_network_that_stalls_holds_up_who_uses_it_and_no_more(world: World, place: Place) -> None:
    """The others get the pool's error after its timeout; when the network gives up so does who was stuck."""
    db = world.open(place.url(), pool_size=1, pool_timeout=0.2)
    assert db.query("SELECT 1") == [(1,)]
    place.network.stall()
    stuck = world.start(lambda: in_transaction(db, "SELECT 2"))
    world.until(lambda: db.pool.in_use == 1)
    with pytest.raises(PoolTimeoutError, match="All 1 connections"):
        db.query("SELECT 3")
    assert not stuck.done
    place.network.drop()
    with pytest.raises(OperationalError, match=r"closed the connection|reset by peer"):
        stuck.result()
    assert_whole(world, place, db)


@worlds.both
def test_a_network_that_stalls_and_goes_on_loses_nothing(world: World, place: Place) -> None:
    """What was under way is finished."""
    db = world.open(place.url(), pool_size=1)
    assert db.query("SELECT 1") == [(1,)]
    seen = place.network.catch(b"late", answer=False)
    work = world.start(lambda: db.execute("INSERT INTO notes VALUES ('late')"))
    world.wait(seen)
    assert place.notes() == []
    place.network.resume()
    assert work.result() == 1
    assert place.notes() == ["late"]
    assert_whole(world, place, db)


@worlds.both
def test_statement_timeout_holds_while_the_network_stalls(world: World, place: Place) -> None:
    """The server counts for itself: its locks are gone with the rollback, and who waits hears of it afterwards."""
    db = world.open(place.url(), pool_size=1)

    def slow() -> None:
        with db.transaction(statement_timeout=0.1) as connection:
            connection.exec_driver_sql("SELECT pg_sleep(60)")

    answered = place.network.catch(b"pg_sleep", answer=True)
    work = world.start(slow)
    world.wait(answered)
    world.until(lambda: len(place.backends("idle in transaction (aborted)")) == 1)
    place.network.resume()
    with pytest.raises(OperationalError, match="canceling statement due to statement timeout"):
        work.result()
    assert_whole(world, place, db)


@worlds.both
def test_a_connection_that_is_not_answered_ends_after_connect_timeout(world: World, place: Place) -> None:
    """A server behind a network that swallows everything is given up, and its place in the pool is free again."""
    db = world.open(place.url(connect_timeout="2"), pool_size=1)
    place.network.stall()
    with pytest.raises(OperationalError, match="timeout"):
        db.query("SELECT 1")
    assert (db.pool.in_use, db.pool.open) == (0, 0)
    place.network.drop()
    assert_whole(world, place, db)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other names for it")
@worlds.both
def test_a_machine_that_is_gone_is_noticed_within_a_minute(world: World, place: Place) -> None:
    """The kernel asks after an idle server, and gives up on data that nobody acknowledges: no proxy can show it."""
    db = world.open(place.url(), pool_size=1)
    with db.transaction() as connection:
        driver = world.driver(connection)
        with socket.socket(fileno=os.dup(driver.pgconn.socket)) as used:
            assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            seconds, tries = (used.getsockopt(socket.IPPROTO_TCP, name) for name in (socket.TCP_KEEPINTVL, _TRIES))
            assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) + seconds * tries <= 60
            assert used.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000  # milliseconds


@worlds.both
def test_a_slow_network_is_only_slow(world: World, place: Place) -> None:
    """Ten at once on two connections, each piece of data late by ten milliseconds: all come through."""
    db = world.open(place.url(), pool_size=2)
    place.network.slow(0.01)
    works = [world.start(lambda each=each: db.query("SELECT :n", n=each)) for each in range(10)]  # type: ignore[misc]
    assert [work.result() for work in works] == [[(each,)] for each in range(10)]
    place.network.slow(0)
    assert_whole(world, place, db)


@worlds.both
def test_a_network_that_drops_takes_the_transaction_back(world: World, place: Place) -> None:
    """The next statement fails, and the server rolls back what nobody commits."""
    db = world.open(place.url(), pool_size=2)
    with pytest.raises(OperationalError, match=r"closed the connection|reset by peer"), db.transaction() as connection:
        note(connection, "before")
        place.network.drop()
        note(connection, "after")
    assert place.notes() == []
    assert_whole(world, place, db)


def every_message(db: Any) -> None:
    """Send all that a transaction consists of but its COMMIT."""
    with db.transaction(statement_timeout=30.0) as connection:
        note(connection, "outer")
        with db.transaction():
            note(connection, "inner")
        with db.transaction(force_rollback=True):
            note(connection, "dry")
        note(connection, "last")
        raise KeyError("of the program's own")


MESSAGES = [b"BEGIN", b"set_config", b"INSERT", b"SAVEPOINT", b"RELEASE", b"ROLLBACK TO"]


@worlds.both
@pytest.mark.parametrize("answer", [False, True], ids=["before the server", "after the server"])
@pytest.mark.parametrize("message", MESSAGES, ids=bytes.decode)
def test_dropped_at_any_message_the_transaction_is_taken_back(
    world: World, place: Place, message: bytes, answer: bool
) -> None:
    """Each of them ends in the network's error, and nothing is there."""
    db = world.open(place.url(), pool_size=1)
    dropped = place.network.catch(message, answer=answer, drop=True)
    with pytest.raises(OperationalError):
        every_message(db)
    assert dropped.is_set()
    assert place.notes() == []
    assert_whole(world, place, db)


@worlds.both
@pytest.mark.parametrize("answer", [False, True], ids=["before the server", "after the server"])
def test_dropped_at_rollback_the_error_that_led_there_is_told(world: World, place: Place, answer: bool) -> None:
    """The server rolls back what nobody commits; what matters is why."""
    db = world.open(place.url(), pool_size=1)
    with pytest.raises(KeyError, match="of the program's own"), db.transaction() as connection:
        note(connection, "never")
        dropped = place.network.catch(b"ROLLBACK", answer=answer, drop=True)
        raise KeyError("of the program's own")
    assert dropped.is_set()
    assert_whole(world, place, db)
    assert place.notes() == []


@worlds.both
@pytest.mark.parametrize("answer", [False, True], ids=["before the server", "after the server"])
def test_a_copy_that_is_cut_off_leaves_no_row(world: World, place: Place, answer: bool) -> None:
    """COPY fails as a whole, wherever the network breaks."""
    db = world.open(place.url(), pool_size=2)
    place.network.catch(b"COPY", answer=answer, drop=True)
    with pytest.raises(OperationalError):
        db.copy_rows(NOTES, [{"text": str(number)} for number in range(1000)])
    assert place.notes() == []
    assert_whole(world, place, db)


# A commit whose answer was cut off


def by_transaction(db: Any, calls: list[int]) -> None:
    with db.transaction() as connection:
        calls.append(1)
        note(connection, "a")
        with db.transaction():
            note(connection, "b")


def by_run(db: Any, calls: list[int]) -> None:
    def write(connection: Any) -> None:
        calls.append(1)
        note(connection, "a")
        note(connection, "b")

    db.run(write, retries=5, isolation="SERIALIZABLE")


def by_session(db: Any, calls: list[int]) -> None:
    with db.session() as session:
        calls.append(1)
        note(session, "a")
        session.commit()
        note(session, "b")


def by_execute(db: Any, calls: list[int]) -> None:
    calls.append(1)
    db.execute("INSERT INTO notes VALUES ('a'), ('b')")


def by_copy(db: Any, calls: list[int]) -> None:
    calls.append(1)
    db.copy_rows(NOTES, [("a",), ("b",)])


@worlds.both
@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
@pytest.mark.parametrize(
    ("write", "last"),
    [
        (by_transaction, b"COMMIT"),
        (by_run, b"COMMIT"),
        (by_session, b"COMMIT"),
        (by_execute, b"INSERT"),  # It commits by itself.
        (by_copy, b"COMMIT"),
    ],
)
def test_a_commit_whose_answer_was_cut_off_is_unknown_and_never_repeated(
    world: World, place: Place, write: Callable[[Any, list[int]], None], last: bytes, committed: bool
) -> None:
    """Whether the server had committed or not the error is the same; all is there exactly once, or nothing is."""
    db = world.open(place.url(), pool_size=2, name="notes of mine")
    calls: list[int] = []
    cut = place.network.catch(last, answer=committed, drop=True)
    with pytest.raises(OutcomeUnknownError, match=r"connection to notes of mine broke while .* was under way"):
        write(db, calls)
    assert cut.is_set()
    assert_whole(world, place, db)
    assert (calls, place.notes()) == ([1], ["a", "b"] if committed else [])


@worlds.both
def test_a_server_that_dies_in_commit_leaves_the_outcome_unknown(world: World, place: Place) -> None:
    """A backend that is killed while it works on a COMMIT is not trusted to have undone it."""
    place.rows(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION late()"
    )
    db = world.open(place.url(), pool_size=2)
    work = world.start(lambda: in_transaction(db, "INSERT INTO notes VALUES ('never')"))
    world.until(lambda: place.rows("SELECT count(*) FROM pg_stat_activity WHERE query = 'COMMIT'") == [(1,)])
    place.kill(place.backends("active"))
    with pytest.raises(OutcomeUnknownError, match="terminating connection"):
        work.result()
    assert place.notes() == []
    assert_whole(world, place, db)


@worlds.both
def test_a_commit_that_the_server_refuses_is_known_to_be_rolled_back(world: World, place: Place) -> None:
    """A deferred constraint fails in COMMIT: the server's error, and the connection is as good as before."""
    place.rows("ALTER TABLE notes ADD CONSTRAINT once UNIQUE (text) DEFERRABLE INITIALLY DEFERRED")
    db = world.open(place.url(), pool_size=1)
    (before,) = db.query("SELECT pg_backend_pid()")
    with pytest.raises(IntegrityError, match="once"), db.transaction() as connection:
        note(connection, "twice")
        note(connection, "twice")
    assert place.notes() == []
    assert db.query("SELECT pg_backend_pid()") == [before]
    assert_whole(world, place, db)


@worlds.both
def test_a_read_only_commit_that_is_cut_off_is_no_unknown_outcome(world: World, place: Place) -> None:
    """Where nothing can have been written there is nothing not to know."""
    db = world.open(place.url(), pool_size=2)
    place.network.catch(b"COMMIT", answer=False, drop=True)
    with pytest.raises(OperationalError), db.transaction(read_only=True) as connection:
        connection.exec_driver_sql("SELECT 1")
    assert_whole(world, place, db)
