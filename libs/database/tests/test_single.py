"""Text goes past SQLAlchemy, alone and in blocks, and nobody can tell."""

from __future__ import annotations

import resource
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.numeric import IntLoader
from psycopg.types.string import TextLoader
from sqlalchemy import event, text
from sqlalchemy.exc import InvalidRequestError

from atriz_database import Database
from atriz_database.url import DatabaseURL

_TABLE = "CREATE TABLE things (id int PRIMARY KEY, name text, at timestamptz, cost numeric, tags text[], more jsonb)"


@pytest.fixture
def both(empty: DatabaseURL) -> Iterator[tuple[Database, Database]]:
    """Two databases on the same one, of which the second has a listener, and so goes SQLAlchemy's way."""
    with Database(empty, pool_size=1) as straight, Database(empty, pool_size=1) as watched:
        event.listen(watched.engine, "before_cursor_execute", lambda *_: None)
        straight.execute(_TABLE)
        yield straight, watched


def outcome(database: Database, statement: str, parameters: dict[str, Any], verb: str) -> tuple[Any, ...]:
    """Return all that can be seen of what a statement did."""
    try:
        done = getattr(database, verb)(statement, **parameters)
    except Exception as error:
        words = str(error).replace("things_pkey1", "things_pkey")
        return type(error), words, getattr(error, "connection_invalidated", None), database.pool.in_use
    rows = done if isinstance(done, int) else [(tuple(row), [type(each) for each in row], row._fields) for row in done]
    return rows, database.pool.in_use, database.pool.open


_STATEMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("", {}),
    "a value": ("SELECT 1", {}),
    "no column": ("SELECT", {}),
    "types": ("SELECT 1.5::numeric AS a, now()::date - now()::date AS b, '{1,2}'::int[], '{\"a\": 1}'::jsonb", {}),
    "a name twice": ("SELECT 1 AS a, 2 AS a, 3 AS b", {}),
    "a parameter": ("SELECT :a::text AS a, :b::int AS b, :a::text", {"a": "x", "b": 3}),
    "a colon": (r"SELECT '10\:30' AS \:x, 'a'::text", {}),
    "percent": ("SELECT 5 % 3, '%s', '%(a)s', :a::int % 2", {"a": 3}),
    "one too few": ("SELECT :a::int, :b::int", {"a": 1}),
    "one too many": ("SELECT :a::int", {"a": 1, "b": 2}),
    "a value that the driver lacks": ("SELECT :a", {"a": object()}),
    "a NUL": ("SELECT :a::text", {"a": "\0"}),
    "half a character": ("SELECT :a::text", {"a": "\ud800"}),
    "no such table": ("SELECT * FROM nowhere", {}),
    "syntax": ("SELEC 1", {}),
    "a division": ("SELECT 1 / :a", {"a": 0}),
    "rows": ("INSERT INTO things SELECT n, 'a' FROM generate_series(1, 7) n", {}),
    "rows that come back": ("INSERT INTO things VALUES (8, 'b') RETURNING id, name", {}),
    "a value that is there": ("INSERT INTO things SELECT n, n::text FROM unnest(ARRAY[5, 5]) n", {}),
    "none": ("DELETE FROM things WHERE id < 0", {}),
    "no answer": ("SET application_name = 'x'", {}),
    "several": ("SELECT 1; SELECT 2", {}),
    "a transaction": ("BEGIN", {}),
    "a transaction that ends": ("BEGIN; SELECT 1; COMMIT", {}),
    "an end": ("ROLLBACK", {}),
    "its own end": ("SELECT pg_terminate_backend(pg_backend_pid())", {}),
    "a date that Python lacks": ("SELECT '5000 BC'::date", {}),
}


@pytest.mark.parametrize("verb", ["query", "execute"])
@pytest.mark.parametrize(("statement", "parameters"), _STATEMENTS.values(), ids=_STATEMENTS)
def test_a_statement_does_the_same_both_ways(
    both: tuple[Database, Database], statement: str, parameters: dict[str, Any], verb: str
) -> None:
    """Rows, names, types, counts, errors with their words, and the pool: all are SQLAlchemy's."""
    straight, watched = both
    first = outcome(straight, statement, parameters, verb)
    straight.execute("TRUNCATE things")
    second = outcome(watched, statement, parameters, verb)
    assert first == second
    for each in both:
        assert each.query("SELECT 1") == [(1,)]


def block(database: Database, statement: str, parameters: dict[str, Any], savepoint: bool) -> list[Any]:
    """Return all that can be seen of a block with a statement in it, of the statement after it, and of the end."""
    seen: list[Any] = []
    try:
        with database.transaction(), database.transaction() if savepoint else nullcontext():
            seen += [outcome(database, statement, parameters, "query"), outcome(database, "SELECT 1", {}, "query")]
    except Exception as error:
        seen += [type(error), str(error).partition("savepoint")[0], database.pool.in_use]
    return [*seen, outcome(database, "SELECT count(*) FROM things", {}, "query")]


@pytest.mark.parametrize("savepoint", [False, True])
@pytest.mark.parametrize(("statement", "parameters"), _STATEMENTS.values(), ids=_STATEMENTS)
def test_a_statement_of_a_block_does_the_same_both_ways(
    both: tuple[Database, Database], statement: str, parameters: dict[str, Any], savepoint: bool
) -> None:
    """What it brings, what the block may do after it, how the block ends, and what is committed."""
    straight, watched = both
    first = block(straight, statement, parameters, savepoint)
    straight.execute("TRUNCATE things")
    assert first == block(watched, statement, parameters, savepoint)


def test_a_block_that_is_over_takes_no_more_both_ways(both: tuple[Database, Database]) -> None:
    """Neither one that its user has ended by hand, nor a savepoint that is gone."""
    for each in both:
        with each.transaction() as connection:
            transaction = connection.get_transaction()
            assert transaction is not None
            transaction.rollback()
            with pytest.raises(InvalidRequestError, match="inside context manager"):
                each.query("SELECT 1")
        with each.transaction(), each.transaction() as connection:
            savepoint = connection.get_nested_transaction()
            assert savepoint is not None
            savepoint.rollback()
            with pytest.raises(InvalidRequestError, match="inside context manager"):
                each.query("SELECT 1")


_VALUES = st.one_of(
    st.none(),
    st.integers(-(2**31), 2**31 - 1),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    st.decimals(allow_nan=False, allow_infinity=False, places=3),
    st.datetimes(timezones=st.just(UTC)),
    st.uuids(),
    st.binary(),
    st.lists(st.integers(0, 9)),
    st.booleans(),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(values=st.lists(_VALUES, max_size=4))
def test_values_are_the_same_both_ways(both: tuple[Database, Database], values: list[Any]) -> None:
    """Whatever is given, and whether there are any."""
    parameters = {f"p{number}": value for number, value in enumerate(values)}
    types = {int: "int8", str: "text", Decimal: "numeric", datetime: "timestamptz", UUID: "uuid", bytes: "bytea"}
    columns = [
        f":p{n}::{types.get(type(each), 'int[]' if isinstance(each, list) else 'bool')}"
        for n, each in enumerate(values)
    ]
    first, second = (outcome(each, f"SELECT {', '.join(columns)}", parameters, "query") for each in both)
    assert first == second


def test_rows_are_read_by_name(both: tuple[Database, Database]) -> None:
    """As attributes and as mappings; a name that two columns have is refused where it is used."""
    straight, _ = both
    (row,) = straight.query("SELECT 1 AS a, 'x' AS b")
    assert (row.a, row.b, dict(row._mapping)) == (1, "x", {"a": 1, "b": "x"})
    (row,) = straight.query("SELECT 1 AS a, 2 AS a")
    with pytest.raises(Exception, match="Ambiguous"):
        _ = row._mapping["a"]


def test_whoever_listens_hears_of_each_statement(both: tuple[Database, Database]) -> None:
    """From the moment that they begin to, and no longer than they do."""
    straight, _ = both
    heard: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        heard.append(statement)

    straight.query("SELECT 1")
    event.listen(straight.engine, "after_cursor_execute", hear)
    straight.query("SELECT 2")
    event.remove(straight.engine, "after_cursor_execute", hear)
    straight.query("SELECT 3")
    assert heard == ["SELECT 2"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for what is resident")
def test_a_large_answer_is_not_held_once_it_was_returned(both: tuple[Database, Database]) -> None:
    """A pool that is idle keeps neither the rows that were last read nor what was asked for with them."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    class Secret(str):
        """A text that can be watched."""

    db, _ = both
    db.query("SELECT 1")
    before, size = resident(), 50_000_000
    secret = Secret("the password")
    watched = weakref.ref(secret)
    ((row, _),) = db.query("SELECT repeat('x', :size), cast(:secret AS text)", size=size, secret=secret)
    assert len(row) == size
    del row, secret
    # libpq keeps a buffer that the largest message fits in.
    assert resident() - before < size * 1.5
    assert watched() is None


def test_types_that_are_registered_later_are_read_as_such(both: tuple[Database, Database]) -> None:
    """On a connection that has run the same statement before; and in a block, where SQLAlchemy's statements see it."""

    class Loud(TextLoader):
        def load(self, data: Any) -> str:
            return str(super().load(data)).upper()

    db, _ = both
    statement = "SELECT 'quiet'::text"
    with db.transaction() as connection:
        assert db.query(statement) == [("quiet",)]
        driver: Any = connection.connection.driver_connection
        driver.adapters.register_loader("text", Loud)
        assert db.query(statement) == [("QUIET",)]
        assert connection.execute(text(statement)).all() == [("QUIET",)]


def test_a_statement_may_be_run_while_another_ones_answer_is_read(both: tuple[Database, Database]) -> None:
    """As by whoever reads a type: each has a cursor of its own."""

    class Asking(IntLoader):
        def load(self, data: Any) -> int:
            ((answer,),) = db.query("SELECT 40::bigint")
            return int(answer) + int(super().load(data))

    db, _ = both
    with db.transaction() as connection:
        assert db.query("SELECT 1::bigint") == [(1,)]
        driver: Any = connection.connection.driver_connection
        driver.adapters.register_loader("int4", Asking)
        assert db.query("SELECT 2::int4 AS a, 'b' AS b UNION ALL SELECT 3, 'c' ORDER BY 1") == [(42, "b"), (43, "c")]


@pytest.mark.parametrize(
    ("setting", "statement", "expected"),
    [
        ("timezone = 'Asia/Tokyo'", "SELECT '2026-01-01 00:00+00'::timestamptz", "+09:00"),
        ("datestyle = 'SQL, DMY'", "SELECT '2026-03-04'::date", "2026-03-04"),
        ("client_encoding = 'latin1'", "SELECT CAST(:word AS text)", "\u00e4"),
    ],
)
def test_a_setting_holds_for_its_transaction_alone(
    empty: DatabaseURL, setting: str, statement: str, expected: str
) -> None:
    """Values are read and written as the connection has it now, though the same statement came before."""
    given = {"word": "\u00e4"} if ":word" in statement else {}
    with Database(empty, pool_size=1) as db:
        before = db.query(statement, **given)
        with db.transaction():
            db.execute(f"SET LOCAL {setting}")
            if "DMY" not in setting:  # psycopg reads no other dates.
                assert expected in str(db.query(statement, **given)[0][0])
            else:
                db.query("SELECT 1")
        assert db.query(statement, **given) == before


def test_types_that_are_registered_count_for_the_next_statement(empty: DatabaseURL) -> None:
    """Also where a statement was under way when they were."""
    with Database(empty, pool_size=1) as db, db.transaction() as connection:
        raw: Any = connection.connection.driver_connection
        assert db.query("SELECT 1") == [(1,)]
        cursor = raw.take_cursor()
        raw.adapters.register_loader("int4", TextLoader)
        cursor.execute("SELECT 1")
        raw.give_cursor(cursor)
        assert db.query("SELECT 1") == [("1",)]
