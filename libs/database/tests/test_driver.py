"""What threads ask, waiting in libpq, brings what it brings the main thread, which waits in psycopg."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg.adapt import Dumper
from psycopg.errors import DataError
from psycopg.types.json import Jsonb
from sqlalchemy.exc import DBAPIError, OperationalError

from atriz_database import Database, driver
from atriz_database.url import DatabaseURL


@pytest.fixture(params=["main thread", "thread", "renamed"])
def calling(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Yield what calls a function, here or in a thread, there also where psycopg's private names are others."""
    if request.param == "renamed":
        monkeypatch.setattr(driver, "_OF_CURSORS", ("_renamed",))
        for where, name in ((driver.Cursor, "_execute"), (driver.Connection, "answer")):
            monkeypatch.setattr(where, name, lambda *_: pytest.fail("used all the same"))
    if request.param == "main thread":
        yield lambda function: function()
        return
    with ThreadPoolExecutor(1) as executor:
        yield lambda function: executor.submit(function).result(20)


def test_what_is_committed_is_there_and_what_is_rolled_back_is_not(
    empty: DatabaseURL, calling: Callable[[Callable[[], Any]], Any]
) -> None:
    """With the options of the transaction in its BEGIN."""
    with Database(empty) as db:
        db.execute("CREATE TABLE notes (body text)")

        def write(body: str, error: type[Exception] | None) -> None:
            with db.transaction(isolation="SERIALIZABLE"):
                assert db.query("SHOW transaction_isolation") == [("serializable",)]
                db.execute("INSERT INTO notes VALUES (:body)", body=body)
                if error is not None:
                    raise error

        calling(lambda: write("kept", None))
        with pytest.raises(ZeroDivisionError):
            calling(lambda: write("lost", ZeroDivisionError))
        assert db.query("SELECT body FROM notes") == [("kept",)]


def test_a_commit_that_the_server_refuses_says_why(
    empty: DatabaseURL, calling: Callable[[Callable[[], Any]], Any]
) -> None:
    """With the server's code and words, nothing is committed, and the connection serves the next."""
    with Database(empty, pool_size=1) as db:
        db.execute("CREATE TABLE own (id int PRIMARY KEY, other int REFERENCES own DEFERRABLE INITIALLY DEFERRED)")

        def write() -> None:
            with db.transaction():
                db.execute("INSERT INTO own VALUES (1, 2)")

        with pytest.raises(DBAPIError, match="is not present in table") as caught:
            calling(write)
        assert getattr(caught.value.orig, "sqlstate", None) == "23503"
        assert db.query("SELECT count(*) FROM own") == [(0,)]
        assert db.pool.open == 1


_PREPARED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rows": ("SELECT n, n::text || :a FROM generate_series(1, 3) n", {"a": "x"}, {"a": "y"}),
    "no row": ("SELECT 1 WHERE CAST(:a AS int) = 1", {"a": 1}, {"a": 2}),
    "a value of another type": ("SELECT CAST(:a AS text)", {"a": 1}, {"a": "b"}),
    "a division": ("SELECT 1 / CAST(:a AS int)", {"a": 1}, {"a": 0}),
    "a value that the driver lacks": ("SELECT CAST(:a AS text)", {"a": "x"}, {"a": object()}),
    "NULL": ("SELECT CAST(:a AS text)", {"a": "x"}, {"a": None}),
    "a change": ("INSERT INTO kept VALUES (:a)", {"a": 1}, {"a": 2}),
    "a changed table": ("SELECT * FROM kept WHERE :a", {"a": False}, {"a": True}),
}


@pytest.mark.parametrize(("statement", "first", "last"), _PREPARED.values(), ids=_PREPARED)
def test_a_prepared_statement_does_the_same_in_every_thread(
    empty: DatabaseURL, statement: str, first: dict[str, Any], last: dict[str, Any]
) -> None:
    """What it brings, its errors with their codes, and the transaction after it."""

    def outcome(db: Database) -> list[Any]:
        seen: list[Any] = []
        for _ in range(8):
            db.query(statement, **first) if statement.startswith("SELECT") else db.execute(statement, **first)
        if "kept" in statement:
            db.execute("ALTER TABLE kept ADD more int")
        try:
            with db.transaction():
                seen.append(
                    db.query(statement, **last) if statement.startswith("SELECT") else db.execute(statement, **last)
                )
        except DBAPIError as error:
            seen += [type(error), str(error), getattr(error.orig, "sqlstate", None)]
        return [*seen, db.query("SELECT count(*) FROM kept"), db.pool.open, db.pool.in_use]

    def fresh() -> list[Any]:
        with Database(empty, pool_size=1) as db:
            db.execute("DROP TABLE IF EXISTS kept")
            db.execute("CREATE TABLE kept (id int)")
            return outcome(db)

    here = fresh()
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(fresh).result(20) == here


def test_a_server_that_ends_the_connection_is_heard(
    empty: DatabaseURL, calling: Callable[[Callable[[], Any]], Any]
) -> None:
    """In a prepared statement, too: it said why, so nothing is committed, and the outcome is known."""
    with Database(empty, pool_size=1) as db:
        end = "SELECT CASE WHEN :end THEN pg_terminate_backend(pg_backend_pid()) END"
        for _ in range(8):
            calling(lambda: db.query(end, end=False))
        with pytest.raises(OperationalError, match="terminating connection"):
            calling(lambda: db.query(end, end=True))
        assert db.query("SELECT 1") == [(1,)]


def test_a_copy_that_is_under_way_is_not_cut_off_by_commit(
    empty: DatabaseURL, calling: Callable[[Callable[[], Any]], Any]
) -> None:
    """A call of libpq's own would end it; psycopg refuses, and nothing of it is committed."""
    with Database(empty) as db:
        db.execute("CREATE TABLE numbers (value int)")

        def write() -> None:
            with db.transaction() as connection:
                driver: Any = connection.connection.driver_connection
                driver.pgconn.exec_(b"COPY numbers FROM STDIN")

        with pytest.raises(DBAPIError):
            calling(write)
        assert db.query("SELECT count(*) FROM numbers") == [(0,)]


def test_a_commit_that_waits_lets_the_other_threads_run(empty: DatabaseURL) -> None:
    """Here for a lock that only another thread lets go, which would never come to it."""
    with Database(empty) as db:
        db.execute("CREATE TABLE late (id int)")
        db.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$"
        )
        db.execute(
            "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON late DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION wait()"
        )
        committing = threading.Event()

        def write() -> None:
            with db.transaction():
                db.execute("INSERT INTO late VALUES (1)")
                committing.set()

        with ThreadPoolExecutor(1) as executor:
            with db.transaction():
                db.query("SELECT pg_advisory_xact_lock(7)")
                writing = executor.submit(write)
                committing.wait(20)
                waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                while db.query(waiting) != [(1,)]:
                    pass
            writing.result(20)
        assert db.query("SELECT id FROM late") == [(1,)]


def test_what_is_not_used_any_more_does_not_stay_prepared(
    empty: DatabaseURL, calling: Callable[[Callable[[], Any]], Any]
) -> None:
    """A connection keeps a hundred statements, and the server is told of those that make room for others."""
    with Database(empty, pool_size=1) as db:

        def ask() -> int:
            for number in range(120):
                for _ in range(7):
                    assert db.query(f"SELECT {number}") == [(number,)]
            return int(db.query("SELECT count(*) FROM pg_prepared_statements")[0][0])

        assert calling(ask) <= 101  # The one that makes room is there already when they are counted.


def test_statements_that_executemany_puts_out_do_not_stay_prepared(
    empty: DatabaseURL, calling: Callable[[Callable[[], Any]], Any]
) -> None:
    """The server is told of them with the next statement, also with one that is prepared."""

    def prepared(connection: driver.Connection) -> bytes | None:
        connection.prepared_max, connection.prepare_threshold = 2, 1
        often = "SELECT %s::int"
        for number in range(3):
            connection.execute(often, [number])
        for number in range(6):
            connection.cursor().executemany(f"SELECT %s::int + {number}", [[1], [2]])
            connection.execute(often, [number])
        return connection.pgconn.exec_(b"SELECT count(*) FROM pg_prepared_statements").get_value(0, 0)

    with driver.Connection.connect(empty.text(secrets=True), autocommit=True) as connection:
        assert calling(lambda: prepared(connection)) == b"2"


def test_a_value_is_converted_once(empty: DatabaseURL, calling: Callable[[Callable[[], Any]], Any]) -> None:
    """Whether the statement is prepared or not: it may be large, and may be another one the next time."""
    seen: list[object] = []

    def dumps(value: object) -> str:
        seen.append(value)
        return "{}"

    with Database(empty) as db:
        for number in range(8):
            calling(lambda number=number: db.query("SELECT :value", value=Jsonb(number, dumps=dumps)))
    assert seen == list(range(8))


class _Strange:
    """A value that has no form."""


class _StrangeDumper(Dumper):
    def dump(self, _value: object) -> bytes:
        raise DataError("it has no form") from ValueError("the reason")


def test_an_error_tells_what_it_came_of(empty: DatabaseURL, calling: Callable[[Callable[[], Any]], Any]) -> None:
    """Its reason, and the error that was being handled when it came up."""

    def error(statement: str, value: object) -> Any:
        with Database(empty) as db, db.transaction() as connection:
            driver_connection: Any = connection.connection.driver_connection
            driver_connection.adapters.register_dumper(_Strange, _StrangeDumper)
            for _ in range(8):
                db.query("SELECT 1 / CAST(:value AS int)", value=1)
            with pytest.raises(DBAPIError) as caught, db.transaction():
                try:
                    raise KeyError
                except KeyError:
                    db.query(statement, value=value)
            return caught.value.orig

    strange = calling(lambda: error("SELECT CAST(:value AS text)", _Strange()))
    assert (type(strange), str(strange)) == (DataError, "it has no form")
    assert repr(strange.__cause__) == "ValueError('the reason')"
    division = calling(lambda: error("SELECT 1 / CAST(:value AS int)", 0))
    assert isinstance(division.__context__, KeyError)
    assert not division.__suppress_context__
