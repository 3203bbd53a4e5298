"""copy_rows: what comes out of COPY is what INSERT would have put in."""

from __future__ import annotations

import enum
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Double,
    Enum,
    ForeignKey,
    Identity,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import INET, INT4RANGE, JSONB, Range
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from atriz_database import Database, TransactionError
from atriz_database.url import DatabaseURL


class Colour(enum.Enum):
    """An enum of Python and of the database."""

    RED = "r"
    BLUE = "b"


class Reversed(TypeDecorator[str]):
    """A type with a conversion of its own."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        """Return the text backwards."""
        return None if value is None else value[::-1]

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """Return it forwards."""
        return None if value is None else value[::-1]


METADATA = MetaData()
# Every column can be sent in binary.
PLAIN = Table(
    "plain",
    METADATA,
    Column("place", Integer),
    Column("small", Integer),
    Column("big", BigInteger),
    Column("ratio", Double),
    Column("amount", Numeric),
    Column("flag", Boolean),
    Column("words", Text),
    Column("raw", LargeBinary),
    Column("key", Uuid),
    Column("day", Date),
    Column("local", DateTime),
    Column("at", DateTime(timezone=True)),
    Column("lasts", Interval),
    Column("document", JSONB),
    Column("older", JSON),
    Column("backwards", Reversed),
)
# These go as text.
RICH = Table(
    "rich",
    METADATA,
    Column("place", Integer),
    Column("colour", Enum(Colour, metadata=METADATA)),
    Column("numbers", ARRAY(Integer)),
    Column("names", ARRAY(Text)),
    Column("address", INET),
    Column("span", INT4RANGE),
    Column("clock", Time),
    Column("words", Text),
)
UTC_PLUS_5 = timezone(timedelta(hours=5, minutes=30))


@pytest.fixture
def db(empty: DatabaseURL) -> Iterator[Database]:
    """Yield a database with the tables."""
    with Database(empty) as made:
        METADATA.create_all(made.engine)
        yield made


def stored(db: Database, table: Table) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in db.query(select(table).order_by(table.columns[0]))]


def by_insert(db: Database, table: Table, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return what the table holds after INSERT of the rows, each with its place before it."""
    keys = table.columns.keys()
    with db.transaction(force_rollback=True) as connection:
        numbered = [dict(zip(keys, (place, *row), strict=True)) for place, row in enumerate(rows)]
        connection.execute(insert(table), numbered)
        return stored(db, table)


def by_copy(db: Database, table: Table, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    with db.transaction(force_rollback=True):
        assert db.copy_rows(table, ((place, *row) for place, row in enumerate(rows))) == len(rows)
        return stored(db, table)


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))  # noqa: DTZ001 - without a zone is one of the cases
documents = st.recursive(
    st.booleans() | st.integers(-(2**50), 2**50) | words, lambda inner: st.lists(inner) | st.dictionaries(words, inner)
)
values = (
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False) | st.integers(-(2**52), 2**52),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=6)
    | st.integers(-(10**20), 10**20)
    | st.floats(-1e9, 1e9, allow_nan=False).map(lambda value: round(value, 3)),
    st.booleans(),
    words,
    st.binary(),
    st.uuids(),
    st.dates(),
    moments,
    st.builds(lambda at, zone: at.replace(tzinfo=zone), moments, st.sampled_from([UTC, UTC_PLUS_5])),
    st.timedeltas(timedelta(days=-99999), timedelta(days=99999)),
    documents,
    documents,
    words,
)
plain_rows = st.tuples(*(st.none() | each for each in values))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(plain_rows, min_size=1, max_size=8))
def test_copied_rows_are_inserted_rows(db: Database, rows: list[tuple[Any, ...]]) -> None:
    """For any values, those that make binary give way to text in the middle among them."""
    assert by_copy(db, PLAIN, rows) == by_insert(db, PLAIN, rows)


def test_rows_may_be_one_object_that_changes(db: Database) -> None:
    """A list, a mapping, a buffer or a document that the caller uses again for each row is read before it changes."""
    numbers = Table("numbers", MetaData(), Column("id", Integer), Column("words", Text))
    files = Table("files", MetaData(), Column("id", Integer), Column("raw", LargeBinary))
    papers = Table("papers", MetaData(), Column("id", Integer), Column("paper", JSONB))

    def of_one(row: Any, *places: Any) -> Iterator[Any]:
        for number in range(250):
            for place in places:
                row[place] = number if not isinstance(row[place], str) else str(number)
            yield row

    def with_one(value: Any, place: Any) -> Iterator[Any]:
        for number in range(250):
            value[place] = number
            yield number, value

    cases: list[tuple[Table, Iterator[Any], Callable[[int], object]]] = [
        (numbers, of_one([0, "0"], 0, 1), str),
        (numbers, of_one({"id": 0, "words": "0"}, "id", "words"), str),
        (files, with_one(bytearray(1), 0), lambda number: bytes([number])),
        (papers, with_one({}, "page"), lambda number: {"page": number}),
        (numbers, with_one([0], 0), lambda number: f"{{{number}}}"),
    ]
    for table, rows, expected in cases:
        table.create(db.engine)
        assert db.copy_rows(table, rows) == 250
        assert stored(db, table) == [(number, expected(number)) for number in range(250)]
        table.drop(db.engine)


def test_types_that_go_as_text_are_stored_as_by_insert(db: Database) -> None:
    """Enums, arrays, addresses, ranges, times, and every character that COPY has a use for."""
    rows = [
        (Colour.RED, [1, None, 3], ["a", "", '"{,}\\"'], "10.0.0.1", Range(1, 5), time(1, 2, 3), "tab\tline\n\\N \\."),
        (None, [], [None], "::1", Range(None, 5), time(23, 59), ""),
        (Colour.BLUE, None, None, None, None, None, None),
    ]
    assert by_copy(db, RICH, rows) == by_insert(db, RICH, rows)


def test_value_that_binary_does_not_take_goes_as_text(db: Database) -> None:
    """Text for a number, a naive time for one with a zone: what INSERT takes is taken, in the middle of rows too."""
    table = Table("loose", MetaData(), Column("id", Integer), Column("at", DateTime(timezone=True)))
    table.create(db.engine)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [(1, at), (2, at), ("3", at), (4, at.replace(tzinfo=None)), (5, "2026-01-01 12:00+00"), (6, at)]
    assert db.copy_rows(table, rows) == 6
    assert [row[0] for row in stored(db, table)] == [1, 2, 3, 4, 5, 6]


def test_time_without_a_zone_is_read_as_insert_reads_it(db: Database) -> None:
    """In the session's zone, where the column has one."""
    table = Table("moments", MetaData(), Column("id", Integer), Column("at", DateTime(timezone=True)))
    table.create(db.engine)
    aware = datetime(2026, 7, 1, 12, tzinfo=UTC_PLUS_5)
    rows = [(1, aware), (2, aware.replace(tzinfo=None)), (3, aware)]
    with db.transaction(force_rollback=True) as connection:
        connection.execute(text("SET LOCAL timezone = 'America/New_York'"))
        db.copy_rows(table, rows)
        copied = stored(db, table)
        connection.execute(table.delete())
        connection.execute(insert(table), [{"id": number, "at": at} for number, at in rows])
        assert copied == stored(db, table)


@pytest.mark.parametrize("beside", [Integer(), INET()], ids=["binary", "text"])
def test_time_with_a_zone_is_refused_by_a_column_without_one(db: Database, beside: Any) -> None:
    """INSERT converts it to the session's zone, and COPY would cut the zone off: another time, and no error."""
    table = Table("moments", MetaData(), Column("at", DateTime()), Column("beside", beside))
    table.create(db.engine)
    with pytest.raises(ValueError, match=r"at has no time zone, and 2026-07-01 12:00:00\+05:30 has one"):
        db.copy_rows(table, [(datetime(2026, 7, 1, 12, tzinfo=UTC_PLUS_5), None)])
    assert stored(db, table) == []


def test_column_that_is_another_type_on_the_server_is_not_misread(db: Database) -> None:
    """The model says bigint and the server has a time: refused, and not eight bytes taken for a time."""
    db.execute("CREATE TABLE drifted (value timestamptz, number bigint)")
    with pytest.raises(DBAPIError, match="timestamp with time zone"):
        db.copy_rows(Table("drifted", MetaData(), Column("value", BigInteger)), [(5,)])
    db.copy_rows(Table("drifted", MetaData(), Column("number", Integer)), [(2**40,)])
    assert db.query("SELECT * FROM drifted") == [(None, 2**40)]


class Base(DeclarativeBase):
    """The mapped tables of these tests."""


class Part(Base):
    """A row with every kind of default."""

    __tablename__ = "Parts"
    __table_args__ = ({"schema": "Stock room"},)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    label: Mapped[str] = mapped_column("the label", default="unnamed")
    code: Mapped[str] = mapped_column(default=lambda context: context.get_current_parameters()["label"].upper())
    key: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)
    made_on: Mapped[date] = mapped_column(server_default=func.current_date())
    size: Mapped[int | None]
    area: Mapped[int | None] = mapped_column(Computed("size * size", persisted=True))


@pytest.fixture
def parts(db: Database) -> Database:
    """Return a database with the mapped tables."""
    db.execute('CREATE SCHEMA "Stock room"')
    Base.metadata.create_all(db.engine)
    return db


def test_mappings_get_the_defaults_of_what_they_leave_out(parts: Database) -> None:
    """Of Python, also where only a later row leaves it out, and of the server; keys are the model's names."""
    rows = [{"label": "bolt", "code": "X", "size": 3}, {"label": "nut", "size": None}]
    assert parts.copy_rows(Part, rows) == 2
    with parts.session() as session:
        bolt, nut = session.scalars(select(Part).order_by(Part.id))
    assert (bolt.id, bolt.label, bolt.code, bolt.size, bolt.area) == (1, "bolt", "X", 3, 9)
    assert (nut.id, nut.code, nut.size, nut.area) == (2, "NUT", None, None)
    assert bolt.key != nut.key
    assert nut.made_on == parts.query("SELECT current_date")[0][0]


def test_objects_are_copied_by_their_attributes(parts: Database) -> None:
    """The objects are not touched: an identity that the server gave is not known to them."""
    objects = [Part(label="bolt", code="B", size=2), Part(code="N", size=3)]
    assert parts.copy_rows(Part, objects) == 2
    assert parts.query('SELECT id, "the label", size FROM "Stock room"."Parts" ORDER BY id') == [
        (1, "bolt", 2),
        (2, "unnamed", 3),
    ]
    assert objects[0].id is None


def test_tuples_are_in_the_order_of_the_columns(parts: Database) -> None:
    """The generated column is left out; rows of a query are tuples."""
    key = uuid.uuid4()
    parts.copy_rows(Part, [(7, "bolt", "B", key, date(2026, 1, 2), 5)])
    query = 'SELECT id, "the label", code, key, made_on, size, area FROM "Stock room"."Parts"'
    assert parts.query(query) == [(7, "bolt", "B", key, date(2026, 1, 2), 5, 25)]
    copied = parts.query('SELECT id + 1, "the label", code, key, made_on, size FROM "Stock room"."Parts"')
    assert parts.copy_rows(Part, copied) == 1


def test_no_rows_are_no_statement(db: Database) -> None:
    assert db.copy_rows(Table("nowhere", MetaData(), Column("id", Integer)), []) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"label": "a", "colour": 1}], "Stock room.Parts has no column to write that is called colour"),
        ([{"label": "a", "area": 1}], "no column to write that is called area"),
        ([{"label": "a"}, {"label": "b", "size": 1}], "a row has size, which the first one lacks"),
        ([{"label": "a", "size": 1}, {"label": "b"}], "a row lacks size, which the first one has"),
        ([Part(label="a", code="A"), Part(label="b", code="B", size=1)], "an object has size, which the first"),
    ],
)
def test_row_that_does_not_fit_is_refused_and_nothing_is_copied(
    parts: Database, rows: list[object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parts.copy_rows(Part, rows)
    assert parts.query('SELECT * FROM "Stock room"."Parts"') == []
    assert parts.pool.in_use == 0


@pytest.mark.parametrize("row", ["text", b"bytes", 5, None])
def test_row_that_is_none_is_refused(db: Database, row: object) -> None:
    with pytest.raises(TypeError, match="a row is a mapping, a tuple or a mapped object, not"):
        db.copy_rows(PLAIN, [row])


@pytest.mark.parametrize("table", [int, "plain", Base])
def test_what_is_no_table_is_refused(db: Database, table: Any) -> None:
    with pytest.raises(TypeError, match="is neither a Table nor a class that is mapped to one"):
        db.copy_rows(table, [(1,)])


def test_default_of_sql_is_refused_where_rows_leave_it_out(db: Database) -> None:
    """COPY cannot compute it, and the server would write NULL."""
    table = Table("stamped", MetaData(), Column("id", Integer), Column("at", DateTime, default=func.now()))
    table.create(db.engine)
    with pytest.raises(ValueError, match=r"the default of stamped\.at is SQL.*make it a server_default"):
        db.copy_rows(table, [{"id": 1}])
    assert db.copy_rows(table, [{"id": 1, "at": None}]) == 1


def test_class_in_several_tables_is_refused(db: Database) -> None:
    """Joined inheritance: a row of one table would lack its other half."""

    class Local(DeclarativeBase):
        pass

    class Animal(Local):
        __tablename__ = "animals"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Dog(Animal):
        __tablename__ = "dogs"
        id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)

    with pytest.raises(TypeError, match="Dog has its columns in several tables"):
        db.copy_rows(Dog, [(1,)])


def test_error_of_the_server_undoes_all_and_is_sqlalchemys(db: Database) -> None:
    """It says which line; the transaction around it fails, and a nested block contains that."""
    table = Table("numbers", MetaData(), Column("id", Integer, primary_key=True))
    table.create(db.engine)
    with pytest.raises(IntegrityError, match="COPY numbers, line 3"):
        db.copy_rows(table, [(1,), (2,), (1,)])
    with pytest.raises(DataError, match="invalid input syntax"):
        db.copy_rows(table, [(1,), ("x",)])
    with db.transaction():
        db.copy_rows(table, [(1,)])
        with pytest.raises(IntegrityError), db.transaction():
            db.copy_rows(table, [(2,), (1,)])
        db.copy_rows(table, [(3,)])
    assert stored(db, table) == [(1,), (3,)]
    with pytest.raises(ProgrammingError, match="does not exist"):
        db.copy_rows(Table("nowhere", MetaData(), Column("id", Integer)), [(1,)])


@pytest.mark.parametrize(
    ("column", "number"),
    [(SmallInteger, 2**15), (SmallInteger, -(2**32) - 1), (Integer, 2**31), (Integer, -(2**31) - 1), (Integer, 2**70)],
)
def test_number_out_of_its_columns_range_is_refused(db: Database, column: type[Integer], number: int) -> None:
    """As by INSERT; psycopg alone would cut off its upper bytes and store another number."""
    table = Table("numbers", MetaData(), Column("id", column))
    table.create(db.engine)
    for rows in ([(number,)], [(1,), (None,), (number,)]):
        with pytest.raises(DataError, match="is out of range for type"):
            db.copy_rows(table, rows)
    least, most = (-(2**15), 2**15 - 1) if column is SmallInteger else (-(2**31), 2**31 - 1)
    assert db.copy_rows(table, [(least,), (most,)]) == 2
    assert stored(db, table) == [(least,), (most,)]


def test_number_that_no_column_holds_is_refused(db: Database) -> None:
    """More than eight bytes."""
    table = Table("numbers", MetaData(), Column("id", BigInteger))
    table.create(db.engine)
    with pytest.raises(ValueError, match="a number is out of the range of its column in numbers"):
        db.copy_rows(table, [(1,), (2**63,)])
    assert stored(db, table) == []


@pytest.mark.parametrize("row", [{"a": "x", "b": "y"}, "xy", b"xy", {"x", "y"}, None])
def test_row_of_another_kind_is_not_taken_apart(db: Database, row: object) -> None:
    """A mapping behind tuples would be copied as its keys, a text as its letters."""
    table = Table("pairs", MetaData(), Column("a", Text), Column("b", Text))
    table.create(db.engine)
    with pytest.raises(TypeError, match="the first row is a tuple, and this one a"):
        db.copy_rows(table, [("x", "y"), row])
    assert db.copy_rows(table, [("x", "y"), ["x", "y"], db.query("SELECT 'x' AS a, 'y' AS b")[0]]) == 3


@pytest.mark.parametrize("rows", [[(1, "a", 2)], [(1, "a"), (2, "b", 3)], [(1, "a"), (2,)]])
def test_tuple_of_another_length_is_refused_in_the_servers_words(db: Database, rows: list[object]) -> None:
    """Among others as well as alone: nothing is cut off, and nothing is NULL that nobody gave."""
    table = Table("pairs", MetaData(), Column("a", Integer), Column("b", Text))
    table.create(db.engine)
    with pytest.raises(DBAPIError, match=r"(extra data after last expected|missing data for) column"):
        db.copy_rows(table, rows)
    assert stored(db, table) == []


def test_rows_that_use_the_connection_they_are_sent_on_are_refused(db: Database) -> None:
    """It is in COPY, and whoever waits for it waits for himself; another database is free."""
    table = Table("numbers", MetaData(), Column("id", Integer))
    table.create(db.engine)

    def numbers(ask: Callable[[], object]) -> Iterator[tuple[int]]:
        yield (1,)
        ask()
        yield (2,)

    asks: list[Callable[[], object]] = [
        lambda: db.query("SELECT 1"),
        lambda: db.transaction().__enter__(),
        lambda: db.copy_rows(table, [(3,)]),
    ]
    for ask in asks:
        with pytest.raises(TransactionError, match=r"The rows that copy_rows\(\) reads use its connection"):
            db.copy_rows(table, numbers(ask))
        assert (db.pool.in_use, stored(db, table)) == (0, [])
    with db.transaction() as connection:
        streamed = connection.execute(text("SELECT generate_series(1, 9)").execution_options(yield_per=1))
        with pytest.raises(TransactionError, match="is in COPY until the last of them is sent"), db.transaction():
            db.copy_rows(table, streamed)
        streamed.close()
    with Database(db.url) as other:
        assert db.copy_rows(table, numbers(lambda: other.query("SELECT 1"))) == 2


def test_error_of_the_generator_undoes_all(db: Database) -> None:
    table = Table("numbers", MetaData(), Column("id", Integer, primary_key=True))
    table.create(db.engine)

    def rows() -> Iterator[tuple[int]]:
        yield (1,)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        db.copy_rows(table, rows())
    assert stored(db, table) == []
    assert db.pool.in_use == 0


def test_count_is_the_servers(db: Database) -> None:
    """A trigger that drops rows is heeded."""
    table = Table("numbers", MetaData(), Column("id", Integer))
    table.create(db.engine)
    db.execute(
        "CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.id % 2 = 0 THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    db.execute("CREATE TRIGGER odd BEFORE INSERT ON numbers FOR EACH ROW EXECUTE FUNCTION odd()")
    assert db.copy_rows(table, [(number,) for number in range(10)]) == 5


def test_memory_does_not_grow_with_the_rows(db: Database) -> None:
    """A generator of 100,000 wide rows takes less than a megabyte."""
    table = Table("wide", MetaData(), Column("id", Integer), Column("words", Text))
    table.create(db.engine)
    db.copy_rows(table, [(0, "warm")])
    tracemalloc.start()
    try:
        assert db.copy_rows(table, ((number, "w" * 200) for number in range(100_000))) == 100_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_decimals_are_exact(db: Database) -> None:
    amount = Decimal("12345678901234567890.123456789")
    table = Table("amounts", MetaData(), Column("amount", Numeric))
    table.create(db.engine)
    db.copy_rows(table, [(amount,), (Decimal("NaN"),)])
    assert db.query("SELECT amount::text FROM amounts") == [(str(amount),), ("NaN",)]
