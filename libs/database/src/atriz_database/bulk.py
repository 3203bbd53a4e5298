"""Many rows into one table, through COPY."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import partial
from operator import itemgetter
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy
from psycopg.types.json import Json, Jsonb
from sqlalchemy import Column, Connection, DateTime, Table, text
from sqlalchemy.exc import DBAPIError, NoInspectionAvailable
from sqlalchemy.util import await_, greenlet_spawn

from atriz_database.errors import TransactionError

Rows = Iterable[Mapping[str, Any] | Sequence[Any] | object]
AsyncRows = AsyncIterable[Mapping[str, Any] | Sequence[Any] | object]

_Values = Sequence[Any]
_NONE = object()


@dataclass(frozen=True, slots=True)
class _Field:
    """A column that is copied."""

    key: str
    """What rows call it."""
    column: Column[Any]


def copy(connection: Connection, table: Table | type, rows: Rows | AsyncRows) -> int:
    """Copy `rows` into `table` and return how many the server took.

    Raise `TypeError` or `ValueError` if a row does not fit the table, and SQLAlchemy's errors if the server refuses.
    """
    fields = _fields(table)
    if isinstance(rows, AsyncIterable):
        return await_(_copy_async(connection, fields, aiter(rows)))
    if connection.dialect.is_async:
        return await_(_copy_async(connection, fields, _as_async(iter(rows))))
    return _copy(connection, fields, iter(rows))


def _copy(connection: Connection, fields: list[_Field], rows: Iterator[object]) -> int:
    row = next(rows, _NONE)
    if row is _NONE:
        return 0
    plan = _plan(connection, fields, row)
    driver: Any = connection.connection.driver_connection
    convert, count = plan.convert, 0
    try:
        values: Any = convert(row)
        for binary in plan.formats:
            fits = plan.fits if binary else _always
            if not fits(values):
                continue
            with driver.cursor() as cursor:
                with cursor.copy(plan.statement(binary)) as stream, _in_copy(driver):
                    if binary:
                        stream.set_types(plan.types)
                    write = stream.write_row
                    write(values)
                    for row in rows:
                        values = convert(row)
                        if not fits(values):
                            break
                        write(values)
                    else:
                        values = _NONE
                count += cursor.rowcount
            if values is _NONE:
                break
        return count
    except psycopg.Error as error:
        raise _as_sqlalchemys(connection, plan.statement(False), error) from error
    except OverflowError as error:
        raise ValueError(f"a number is out of the range of its column in {plan.table}") from error


async def _copy_async(connection: Connection, fields: list[_Field], rows: AsyncIterator[object]) -> int:
    row = await anext(rows, _NONE)
    if row is _NONE:
        return 0
    # The one question to the server that a plan may need waits in the event loop as well.
    plan = await greenlet_spawn(_plan, connection, fields, row)
    driver: Any = connection.connection.driver_connection
    convert, count = plan.convert, 0
    try:
        values: Any = convert(row)
        for binary in plan.formats:
            fits = plan.fits if binary else _always
            if not fits(values):
                continue
            async with driver.cursor() as cursor:
                async with cursor.copy(plan.statement(binary)) as stream:
                    with _in_copy(driver):
                        if binary:
                            stream.set_types(plan.types)
                        write = stream.write_row
                        await write(values)
                        async for row in rows:
                            values = convert(row)
                            if not fits(values):
                                break
                            await write(values)
                        else:
                            values = _NONE
                count += cursor.rowcount
            if values is _NONE:
                break
        return count
    except psycopg.Error as error:
        raise _as_sqlalchemys(connection, plan.statement(False), error) from error
    except OverflowError as error:
        raise ValueError(f"a number is out of the range of its column in {plan.table}") from error


class _Refusal:
    """Stands in the place of psycopg's lock on a connection, for whom it would wait for ever: it is his own."""

    def __enter__(self) -> None:
        raise TransactionError(
            "The rows that copy_rows() reads use its connection, which is in COPY until the last of them is sent. Have "
            "them read what they need before, or from another Database."
        )

    def __exit__(self, *_error: object) -> None: ...

    async def acquire(self) -> None:
        self.__enter__()

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *_error: object) -> None: ...


@contextmanager
def _in_copy(driver: Any) -> Iterator[None]:
    """Refuse what the rows' own code asks of the connection while it is in COPY."""
    lock, driver.lock = driver.lock, _Refusal()
    try:
        yield
    finally:
        driver.lock = lock


async def _as_async(rows: Iterator[object]) -> AsyncIterator[object]:
    for row in rows:
        yield row


def _as_sqlalchemys(connection: Connection, statement: str, error: psycopg.Error) -> BaseException:
    """Return the error as SQLAlchemy gives those of its own statements, so that there is one way to catch it."""
    lost = bool(getattr(connection.connection.driver_connection, "closed", True))
    if lost:
        connection.invalidate(error)
    return DBAPIError.instance(
        statement,
        None,
        error,
        psycopg.Error,
        connection_invalidated=lost,
        dialect=connection.dialect,
    )


def _fields(table: Table | type) -> list[_Field]:
    """Return the columns of a table that can be written, called as rows call them."""
    if isinstance(table, Table):
        return [_Field(column.key, column) for column in table.columns if column.computed is None]
    try:
        mapper: Any = sqlalchemy.inspect(table)
    except NoInspectionAvailable:
        mapper = None
    local = getattr(mapper, "local_table", None)
    if not isinstance(local, Table):
        raise TypeError(f"{table!r} is neither a Table nor a class that is mapped to one")
    if mapper.inherits is not None and mapper.inherits.local_table is not local:
        raise TypeError(f"{table.__name__} has its columns in several tables; copy into each of them")
    return [
        _Field(mapper.get_property_by_column(column).key, column) for column in local.columns if column.computed is None
    ]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How rows like the first are copied."""

    table: str
    """The table and its columns, as SQL."""
    convert: Callable[[object], _Values]
    """Makes a row's values of a row."""
    types: Sequence[int]
    """The columns' types on the server, where all of them can be sent in binary; else empty."""
    fits: Callable[[_Values], bool]
    """Whether a row's values are what these types take in binary."""

    @property
    def formats(self) -> tuple[bool, ...]:
        """Whether binary, in the order to try. Once a row does not fit the rest goes as text, in a second COPY."""
        return (True, False) if self.types else (False,)

    def statement(self, binary: bool) -> str:
        """Return the COPY statement."""
        return f"COPY {self.table} FROM STDIN" + (" (FORMAT binary)" if binary else "")


def _plan(connection: Connection, fields: list[_Field], first: object) -> _Plan:
    if isinstance(first, Mapping):
        chosen, convert = _from_mappings(fields, first)
    elif _is_tuple(first):
        chosen, convert = fields, _from_tuples(type(first))
    elif hasattr(first, "_sa_instance_state"):
        chosen, convert = _from_objects(fields, first)
    else:
        raise TypeError(f"a row is a mapping, a tuple or a mapped object, not {type(first).__name__}")
    convert = _bound(connection, chosen, convert)
    preparer = connection.dialect.identifier_preparer
    table = preparer.format_table(fields[0].column.table)
    names = ", ".join(preparer.quote(field.column.name) for field in chosen)
    types = _binary_types(connection, table, [field.column.name for field in chosen])
    return _Plan(f"{table} ({names})", convert, types, _fitting(types))


# What psycopg sends in binary for a type of the server's, by the exact type in Python. In binary the server takes a
# value for what the column's type says: whatever is not listed goes as text, which the server reads as it reads INSERT.
_BINARY: Mapping[str, tuple[type, ...]] = {
    "int2": (int,),
    "int4": (int,),
    "int8": (int,),
    "float8": (float, int),
    "numeric": (Decimal, int),
    "bool": (bool,),
    "text": (str,),
    "varchar": (str,),
    "bytea": (bytes,),
    "uuid": (UUID,),
    "date": (date,),
    "timestamp": (datetime,),
    "timestamptz": (datetime,),
    "interval": (timedelta,),
    "json": (Json,),
    "jsonb": (Jsonb,),
}
_BY_OID = {psycopg.postgres.types[name].oid: name for name in _BINARY}


def _binary_types(connection: Connection, table: str, names: Sequence[str]) -> Sequence[int]:
    """Return the columns' types, asked of the server, because the model may say another; empty unless all are known."""
    query = text("SELECT attname, atttypid FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attnum > 0")
    found: dict[str, int] = {row.attname: row.atttypid for row in connection.execute(query, {"table": table})}
    types = [found.get(name, 0) for name in names]
    return types if all(oid in _BY_OID for oid in types) else []


def _fitting(types: Sequence[int]) -> Callable[[_Values], bool]:
    """Return what says whether values fit the types in binary."""
    allowed = [{*_BINARY[_BY_OID[oid]], type(None)} for oid in types]
    zoned = [(place, _BY_OID[oid] == "timestamptz") for place, oid in enumerate(types) if _BY_OID[oid] in _STAMPS]
    bounded = [(place, *_BOUNDS[_BY_OID[oid]]) for place, oid in enumerate(types) if _BY_OID[oid] in _BOUNDS]
    # Rows are mostly alike: to look at each value once for a kind of row is enough.
    known: set[tuple[type, ...]] = set()

    def fits(values: _Values) -> bool:
        kinds = tuple(map(type, values))
        if kinds not in known:
            if len(kinds) != len(allowed) or not all(map(set.__contains__, allowed, kinds)):
                return False
            known.add(kinds)
        for place, least, most in bounded:
            number = values[place]
            if number is not None and not least <= number <= most:
                return False
        for place, aware in zoned:
            stamp = values[place]
            if stamp is not None and (stamp.tzinfo is not None) is not aware:
                return False
        return True

    return fits


_STAMPS = ("timestamp", "timestamptz")
# psycopg cuts off what does not fit into the bytes of these, which as text the server refuses; of int8 it refuses it.
_BOUNDS: Mapping[str, tuple[int, int]] = {
    "int2": (-(2**15), 2**15 - 1),
    "int4": (-(2**31), 2**31 - 1),
}


def _always(_values: _Values) -> bool:
    return True


def _is_tuple(row: object) -> bool:
    return isinstance(row, Sequence) and not isinstance(row, str | bytes)


def _from_tuples(kind: type) -> Callable[[Any], _Values]:
    def convert(row: _Values) -> _Values:
        # A mapping, or a text, has a length as well, and would be copied as its keys, or its letters.
        if type(row) is not kind and not _is_tuple(row):
            raise TypeError(f"the first row is a tuple, and this one a {type(row).__name__}; they are all of one kind")
        return row

    return convert


def _from_mappings(fields: list[_Field], first: Mapping[str, Any]) -> tuple[list[_Field], Callable[[Any], _Values]]:
    known = {field.key for field in fields}
    if unknown := [str(key) for key in first if key not in known]:
        raise ValueError(f"{_name(fields)} has no column to write that is called {', '.join(unknown)}")
    chosen, defaults = _chosen(fields, first)
    get, given = _getter(chosen), len(first)

    def convert(row: Mapping[str, Any]) -> _Values:
        if len(row) == given:
            try:
                return get(row)
            except KeyError:
                pass
        if extra := row.keys() - {field.key for field in chosen}:
            raise ValueError(
                f"a row has {', '.join(sorted(extra))}, which the first one lacks. The first row says what is copied."
            )
        return get(_completed(row, chosen, defaults))

    return chosen, convert


def _from_objects(fields: list[_Field], first: object) -> tuple[list[_Field], Callable[[Any], _Values]]:
    chosen, defaults = _chosen(fields, vars(first))
    get = _getter(chosen)
    left_out = {field.key for field in fields} - {field.key for field in chosen}

    def convert(row: object) -> _Values:
        values = vars(row)
        if not left_out.isdisjoint(values):
            extra = ", ".join(sorted(left_out & values.keys()))
            raise ValueError(f"an object has {extra}, which the first one lacks. The first one says what is copied.")
        try:
            return get(values)
        except KeyError:
            return get(_completed(values, chosen, defaults))

    return chosen, convert


def _chosen(fields: list[_Field], first: Mapping[str, Any]) -> tuple[list[_Field], dict[str, Any]]:
    """Return what is copied, the columns of the first row and those with a default of Python's; and these defaults.

    The other columns are left to the server's defaults.
    """
    defaults = {field.key: field.column.default for field in fields if field.column.default is not None}
    for key, default in defaults.items():
        if key not in first and not (default.is_scalar or default.is_callable):
            raise ValueError(
                f"the default of {_name(fields)}.{key} is SQL, which COPY cannot compute: give each row a value, or "
                "make it a server_default"
            )
    chosen = [field for field in fields if field.key in first or field.key in defaults]
    if not chosen:
        raise ValueError(f"the first row gives no column of {_name(fields)} a value")
    return chosen, defaults


def _completed(row: Mapping[str, Any], chosen: list[_Field], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with the defaults of what it lacks."""
    completed = {field.key: row[field.key] for field in chosen if field.key in row}
    for field in chosen:
        if field.key in completed:
            continue
        default = defaults.get(field.key)
        if default is None:
            raise ValueError(f"a row lacks {field.key}, which the first one has. The first row says what is copied.")
        completed[field.key] = default.arg(_Context(row)) if default.is_callable else default.arg
    return completed


@dataclass(frozen=True, slots=True)
class _Context:
    """What SQLAlchemy gives to a default that is computed from other columns."""

    current_parameters: Mapping[str, Any]

    def get_current_parameters(self, isolate_multiinsert_groups: bool = True) -> Mapping[str, Any]:
        """Return the row."""
        return self.current_parameters


def _getter(chosen: list[_Field]) -> Callable[[Mapping[str, Any]], _Values]:
    if len(chosen) == 1:
        (key,) = (field.key for field in chosen)
        return lambda row: (row[key],)
    return itemgetter(*(field.key for field in chosen))


def _bound(
    connection: Connection, chosen: list[_Field], convert: Callable[[object], _Values]
) -> Callable[[object], _Values]:
    """Return `convert` with each value made into what the driver takes, by the types of the model."""
    processors = []
    for position, field in enumerate(chosen):
        implementation = field.column.type.dialect_impl(connection.dialect)
        if getattr(implementation, "_has_bind_expression", False):
            raise ValueError(f"{field.key} is written through an SQL function, which COPY cannot call")
        if (processor := implementation.bind_processor(connection.dialect)) is not None:
            processors.append((position, processor))
        elif isinstance(implementation, DateTime) and not implementation.timezone:
            processors.append((position, partial(_without_zone, field.key)))
    if not processors:
        return convert

    def bound(row: object) -> _Values:
        values = list(convert(row))
        for position, processor in processors:
            values[position] = processor(values[position])
        return values

    return bound


def _without_zone(key: str, value: Any) -> Any:
    """Refuse what INSERT would convert to the session's time zone, and COPY would cut the zone off of."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        raise ValueError(f"{key} has no time zone, and {value} has one: convert it, or declare DateTime(timezone=True)")
    return value


def _name(fields: list[_Field]) -> str:
    return str(fields[0].column.table.fullname)
