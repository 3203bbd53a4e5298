"""What a revision calls for statements that PostgreSQL runs outside a transaction only.

Such a statement is committed before the revision is recorded, so that a run that is killed in between leaves it done
and unrecorded, or half done. Each function therefore looks first, does what is missing, and looks again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import psycopg
from alembic import context, op
from alembic.operations.ops import CreateIndexOp
from psycopg import sql
from sqlalchemy import Column
from sqlalchemy.schema import CreateIndex
from sqlalchemy.types import NullType

from atriz_database.databases import Connection, Notify
from atriz_database.errors import MigrationError
from atriz_database.migrations.environment import RUN, logger
from atriz_database.migrations.explain import sql_message

_LONGEST_NAME = 63
_FIRST_POLL, _LONGEST_POLL = 0.05, 1.0
_NO_LIMITS = "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false)"

# Whoever holds or awaits this lock on the table is building an index on it, or keeps anybody else from it. Autovacuum
# holds it as well, and gives way. What a backend of a role is that this one is no member of the server does not say;
# autovacuum has none.
_AT_WORK = """
    SELECT a.pid, a.application_name, a.xact_start, left(a.query, 80)
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'relation' AND l.relation = %s AND l.mode = 'ShareUpdateExclusiveLock'
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND l.pid <> pg_backend_pid() AND coalesce(a.backend_type = 'client backend', a.usesysid IS NOT NULL)
    ORDER BY l.granted DESC, a.pid LIMIT 1
"""
_TABLE = """
    SELECT c.oid, n.nspname, c.relname, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
"""
_INDEX = """
    SELECT c.oid, c.relkind::text, i.indrelid, coalesce(i.indisvalid AND i.indisready AND i.indislive, false)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indexrelid = c.oid
    WHERE n.nspname = %s AND c.relname = %s
"""
# What the server makes of an index's definition, without its name and its table's. A constraint's index is another
# thing: its name belongs to the constraint.
_DEFINITION = """
    SELECT pg_get_indexdef(c.oid),
           format('CREATE %%sINDEX %%I ON %%s%%I.%%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' END, c.relname,
                  CASE WHEN c.relkind = 'I' THEN 'ONLY ' END, n.nspname, t.relname),
           concat(CASE WHEN i.indisunique THEN 'UNIQUE ' END),
           (SELECT format(' of constraint %%I', k.conname) FROM pg_constraint k
            WHERE k.conindid = c.oid AND k.contype IN ('p', 'u', 'x'))
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace n ON n.oid = t.relnamespace
    WHERE i.indexrelid = %s
"""
# Partitions whose own index is not yet a part of the partitioned one.
_UNATTACHED = (
    _TABLE
    + """
    JOIN pg_inherits p ON p.inhrelid = c.oid
    WHERE p.inhparent = %s AND c.relkind IN ('r', 'p') AND NOT EXISTS (
        SELECT FROM pg_inherits x JOIN pg_index i ON i.indexrelid = x.inhrelid
        WHERE x.inhparent = %s AND i.indrelid = c.oid)
    ORDER BY c.relname
"""
)


@dataclass(frozen=True, slots=True)
class _Table:
    oid: int
    schema: str
    name: str
    kind: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class _Index:
    """A relation that has the name of the index that is wanted."""

    oid: int
    kind: str
    table: int | None
    """The table's oid, `None` where it is no index at all."""
    valid: bool


_How = Literal["", "CONCURRENTLY", "ONLY"]
_Make = Callable[[str, str, str | None, _How], str]
"""Gives the statement for an index: its name, its table, the table's schema, and how it is made."""


def create_index_concurrently(
    index_name: str,
    table_name: str,
    columns: Sequence[Any],
    *,
    schema: str | None = None,
    unique: bool = False,
    **kw: Any,
) -> None:
    """Make an index while the table is read and written, in a revision that does nothing before it.

    Takes what ``op.create_index`` takes, so that what autogenerate wrote needs its first word changed::

        from atriz_database.migrations import create_index_concurrently, drop_index_concurrently


        def upgrade() -> None:
            create_index_concurrently("ix_sales_sold_at", "sales", ["sold_at"])


        def downgrade() -> None:
            drop_index_concurrently("ix_sales_sold_at", "sales")

    An index of that name that is INVALID, as a build that did not finish leaves it, is built anew. One that is valid
    and has this definition is accepted, as a run leaves it that was killed before it could record the revision. Where
    the server still works on it for such a run, that is waited for. On a partitioned table each partition gets its
    own index, one after the other, and they are attached.

    It waits for old transactions for as long as they take: without ``lock_timeout`` and ``statement_timeout``.

    Raise `MigrationError` if the revision did something before, the name belongs to something else or to another
    definition, or the build fails.
    """
    kw.pop("postgresql_concurrently", None)

    def make(name: str, table: str, in_schema: str | None, how: _How) -> str:
        return _create(CreateIndexOp(name, table, columns, schema=in_schema, unique=unique, **kw), how)

    with _outside_transaction() as connection:
        if connection is None:
            op.get_context().impl.static_output(make(index_name, table_name, schema, "CONCURRENTLY") + ";")
            return
        table = _find_table(connection, table_name, schema)
        _ensure(connection, make, table, index_name, index_name)


def drop_index_concurrently(index_name: str, table_name: str | None = None, *, schema: str | None = None) -> None:
    """Remove an index while its table is read and written, in a revision that does nothing before it.

    One that is gone is accepted, as a run leaves it that was killed before it could record the revision. PostgreSQL
    has no such way for the index of a partitioned table: that is dropped at once, under the run's ``lock_timeout``.

    :param table_name: the index's table, if it is to be made sure of.

    Raise `MigrationError` if the revision did something before, or the name belongs to something else.
    """
    name = sql.Identifier(*filter(None, (schema, index_name)))
    with _outside_transaction() as connection:
        if connection is None:
            op.get_context().impl.static_output(f"DROP INDEX CONCURRENTLY {name.as_string()};")
            return
        found = _relation(connection, name.as_string())
        if found is None:
            _say(f"index {index_name} is gone already: accepted")
            return
        index = _find(connection, found.schema, found.name)
        if index is None or index.table is None:
            _refuse(f"{index_name} is not an index, and was left as it is.")
        if table_name is not None and index.table != _find_table(connection, table_name, schema).oid:
            _refuse(f"{index_name} is an index of another table than {table_name}, and was left as it is.")
        if index.kind == "I":
            _execute(connection, f"DROP INDEX {name.as_string()}")
        else:
            _drop(connection, found.schema, found.name)
        if _relation(connection, name.as_string()) is not None:
            _refuse(f"index {index_name} is still there. Run the same command again.")


def outside_transaction(statement: str, *, done: str) -> None:
    """Run one statement outside a transaction, unless it is done already, in a revision that does nothing before it.

    For what has no function of its own here::

        outside_transaction(
            "ALTER TABLE positions DETACH PARTITION positions_2025 CONCURRENTLY",
            done="SELECT NOT relispartition FROM pg_class WHERE oid = 'positions_2025'::regclass",
        )

    A statement with CONCURRENTLY waits for old transactions for as long as they take; any other keeps the run's time
    limits.

    :param done: a query for one boolean: whether the statement's effect is there. It is asked before and after.

    Raise `MigrationError` if the revision did something before, the statement fails, or `done` is not true after it.
    """

    def is_done(connection: Connection) -> bool:
        try:
            row = connection.execute(done.encode()).fetchone()
        except psycopg.Error as error:
            raise MigrationError(sql_message(_place(), done, error, error.diag)) from None
        if row is None or len(row) != 1 or not isinstance(row[0], bool | None):
            _refuse(f"the query for whether it is done must give one boolean, and gave {row}: {done}")
        return bool(row[0])

    with _outside_transaction() as connection:
        if connection is None:
            op.get_context().impl.static_output(statement.strip().rstrip(";") + ";")
            return
        if is_done(connection):
            _say(f"done already, and accepted: {' '.join(statement.split())}")
            return
        limits = _patience(connection) if re.search(r"\bCONCURRENTLY\b", statement, re.I) else contextlib.nullcontext()
        try:
            with limits:
                _execute(connection, statement)
        except MigrationError:
            # It may have waited for the server, which finished it for a run that was killed.
            if connection.closed or not is_done(connection):
                raise
        if not is_done(connection):
            _refuse(f"it ran, and its effect is not there by {done}\n    {statement}")


def _ensure(connection: Connection, make: _Make, table: _Table, name: str, whole: str) -> None:
    """Make the index unless it is there, valid and as wanted.

    :param whole: the name of the index that it is, or that it is a part of.
    """
    if table.kind == "p":
        _ensure_partitioned(connection, make, table, name, whole)
        return
    _await_others(connection, table)
    found = _find(connection, table.schema, name)
    if found is not None:
        _require_table(found, table, name)
        if found.valid:
            _require_same(connection, make, table, name, found)
            _say(f"index {name} on {table} is there already, valid and as wanted: accepted")
            return
        _say(f"index {name} on {table} is INVALID, left by a build that did not finish: built anew")
        _drop(connection, table.schema, name)
    with _patience(connection):
        _execute(connection, make(name, table.name, table.schema, "CONCURRENTLY"), after=_after_failure(table, name))
    _require_valid(connection, table, name)


def _ensure_partitioned(connection: Connection, make: _Make, table: _Table, name: str, whole: str) -> None:
    """Make the index of a partitioned table: an empty one, then each partition's, which make it valid together.

    A partition that comes while this is at work gets its index from the server.
    """
    found = _find(connection, table.schema, name)
    if found is None:
        # There is nothing to build, so that the lock is held for an instant, and waited for no longer than the run's
        # lock_timeout.
        _execute(connection, make(name, table.name, table.schema, "ONLY"))
        found = _find(connection, table.schema, name)
    else:
        _require_table(found, table, name)
        _require_same(connection, make, table, name, found)
        if found.valid:
            _say(f"index {name} on {table} is there already, valid and as wanted: accepted")
            return
        _say(f"index {name} on {table} is not whole: what is missing is built")
    assert found is not None, "it was made, and the database's lock is held"
    for row in connection.execute(_UNATTACHED.encode(), [table.oid, found.oid]).fetchall():
        partition = _Table(*row)
        part = _part_name(partition.name, whole)
        _ensure(connection, make, partition, part, whole)
        attach = sql.SQL("ALTER INDEX {} ATTACH PARTITION {}").format(
            sql.Identifier(table.schema, name), sql.Identifier(partition.schema, part)
        )
        _execute(connection, attach.as_string())
    _require_valid(connection, table, name)


def _part_name(partition: str, whole: str) -> str:
    """Return the name of a partition's index: the same every time, so that another run finds it."""
    name = f"{partition}_{whole}".encode()
    if len(name) <= _LONGEST_NAME:
        return name.decode()
    digest = hashlib.sha256(name).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9].decode(errors='ignore')}_{digest}"


def _create(operation: CreateIndexOp, how: _How) -> str:
    """Return the statement that makes an index, as SQLAlchemy writes it for ``op.create_index``."""
    migration = op.get_context()
    index = operation.to_index(migration)
    assert index.table is not None
    for column in index.dialect_kwargs.get("postgresql_include") or ():
        if isinstance(column, str) and column not in index.table.c:
            # Alembic's table has the columns it was given as the index's own.
            index.table.append_column(Column(column, NullType()))
    # Compiled statements have their percent signs doubled for the driver, which gets these without parameters.
    text = str(CreateIndex(index).compile(dialect=migration.dialect)).strip().replace("%%", "%")
    prepare = migration.dialect.identifier_preparer
    name, table = prepare.quote(str(index.name)), prepare.format_table(index.table)
    wanted = {"": "", "CONCURRENTLY": "CONCURRENTLY ", "ONLY": ""}[how], "ONLY " if how == "ONLY" else ""
    return text.replace(f"INDEX {name} ON {table}", f"INDEX {wanted[0]}{name} ON {wanted[1]}{table}", 1)


@contextlib.contextmanager
def _outside_transaction() -> Iterator[Connection | None]:
    """Yield the migration's connection in autocommit; `None` where SQL is written instead of run."""
    migration = op.get_context()
    if not migration.as_sql:
        connection = _connection()
        # Only what writes is given an id: a revision may well have looked at something.
        row = connection.execute("SELECT txid_current_if_assigned()").fetchone()
        if row is not None and row[0] is not None:
            _refuse(
                "this runs outside a transaction, and the revision changed something before it, which would be "
                "committed without being recorded. Put it in a revision of its own."
            )
    with migration.autocommit_block():
        yield None if migration.as_sql else _connection()


def _connection() -> Connection:
    connection = op.get_bind().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    return connection


@contextlib.contextmanager
def _patience(connection: Connection) -> Iterator[None]:
    """Take away the time limits: CONCURRENTLY waits for old transactions, and keeps nobody waiting meanwhile."""
    query = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    before = connection.execute(query).fetchone()
    assert before is not None
    connection.execute(_NO_LIMITS, ["0", "0"])
    try:
        yield
    finally:
        with contextlib.suppress(psycopg.Error):  # Whatever broke the connection is what the caller should hear of.
            connection.execute(_NO_LIMITS, before)


def _await_others(connection: Connection, table: _Table) -> None:
    """Wait until nobody else works on the table's indexes.

    The server goes on for a client that was killed. To drop what it builds would wait for it all the same, and then
    throw away what it has just finished.
    """
    pause, told = _FIRST_POLL, 0
    while row := connection.execute(_AT_WORK, [table.oid]).fetchone():
        pid, application, since, query = row
        if pid != told:
            started = f" since {since:%Y-%m-%d %H:%M:%S}" if since else ""
            _say(
                f"waiting for pid {pid} ({application or 'no application name'}), at work on {table}{started}: "
                f"{' '.join(query.split())}"
            )
            told = pid
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_POLL)


def _drop(connection: Connection, schema: str, name: str) -> None:
    with _patience(connection):
        _execute(connection, sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(schema, name)).as_string())


def _find_table(connection: Connection, name: str, schema: str | None) -> _Table:
    found = _relation(connection, sql.Identifier(*filter(None, (schema, name))).as_string())
    if found is None:
        _refuse(f"there is no table {name}.")
    return found


def _relation(connection: Connection, quoted: str) -> _Table | None:
    row = connection.execute((_TABLE + "WHERE c.oid = to_regclass(%s)").encode(), [quoted]).fetchone()
    return None if row is None else _Table(*row)


def _find(connection: Connection, schema: str, name: str) -> _Index | None:
    row = connection.execute(_INDEX, [schema, name]).fetchone()
    return None if row is None else _Index(*row)


def _require_table(found: _Index, table: _Table, name: str) -> None:
    if found.table != table.oid:
        what = "an index of another table" if found.table is not None else "not an index"
        _refuse(f"{name} is there already, and is {what} than {table}'s. Give the new one another name.")


def _require_same(connection: Connection, make: _Make, table: _Table, name: str, found: _Index) -> None:
    """Refuse an index of another definition. The server itself says what the wanted one would be, on an empty copy."""
    have = _definition(connection, found.oid)
    copy = f"atriz_copy_{connection.info.backend_pid}"
    with connection.transaction(force_rollback=True):
        _execute(
            connection,
            sql.SQL("CREATE TABLE {} (LIKE {})")
            .format(sql.Identifier(table.schema, copy), sql.Identifier(table.schema, table.name))
            .as_string(),
        )
        _execute(connection, make(f"{copy}_index", copy, table.schema, ""))
        made = _find(connection, table.schema, f"{copy}_index")
        assert made is not None
        want = _definition(connection, made.oid)
    if have != want:
        _refuse(
            f"index {name} on {table} is there already, with another definition, and was left as it is.\n"
            f"    there:  {have}\n    wanted: {want}\n"
            "    Give the new one another name, or drop the old one in a revision before this."
        )


def _definition(connection: Connection, oid: int) -> str:
    row = connection.execute(_DEFINITION.encode(), [oid]).fetchone()
    assert row is not None
    whole, prefix, unique, constraint = row
    return f"{unique}{whole.removeprefix(prefix)}{constraint or ''}"


def _require_valid(connection: Connection, table: _Table, name: str) -> None:
    found = _find(connection, table.schema, name)
    if found is None or not found.valid:
        state = "not there" if found is None else "INVALID"
        _refuse(f"index {name} on {table} is {state} after its build. Run the same command again: it builds it anew.")


def _after_failure(table: _Table, name: str) -> str:
    drop = sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(table.schema, name)).as_string()
    return (
        f"    A build that failed leaves an INVALID index, which no query uses and every write pays for. Mend the "
        f"cause and run the same command again: it builds the index anew. If that takes long: {drop}"
    )


def _execute(connection: Connection, statement: str, *, after: str = "") -> None:
    """Run a statement as it stands; what the server says against it names the revision's line."""
    try:
        connection.execute(statement.encode())
    except psycopg.Error as error:
        told = sql_message(_place(), statement, error, error.diag)
        raise MigrationError("\n".join(filter(None, (told, after)))) from None


def _refuse(text: str) -> NoReturn:
    raise MigrationError(f"{_place()}: {text}")


def _place() -> str:
    """Return the line of the revision that called."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename not in (__file__, contextlib.__file__)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}"


def _say(text: str) -> None:
    run = context.config.attributes.get(RUN)
    notify: Notify = run.notify if run is not None else logger.warning
    notify(text)
