"""Emptying a database: the rows go and the sequences start again; structure and migration history stay.

A table is emptied in whichever way costs less. DELETE pays for each row, TRUNCATE for each table: a new file for the
table, one for each of its indexes, and for its TOAST. DELETE is chosen only where the outcome is the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, LiteralString

from psycopg import sql

from atriz_database.databases import Connection
from atriz_database.errors import AtrizError

# Medians of 7 runs over 20 tables of 4 columns and 2 indexes, fsync on. TRUNCATE takes 0.7 ms (PostgreSQL 18) to 3 ms
# (15) a table; DELETE 0.3 us a row, and 6 us more for each foreign key that refers to the table, for it looks there for
# each row. With one such key they meet at 120 (18) to 500 rows (15), with none at 2,000 to 5,000. What 100 forgoes is
# 2 ms a table; what 300 would lose on 18, where two keys refer to a table, is 3 ms.
_FEW_ROWS = 100
# A few rows with much TOAST, or a table's many dead rows, make DELETE slow as well.
_FEW_BYTES = 1 << 20
# 64 MB, some 900,000 narrow rows, are counted in 50 ms where they are in memory (PostgreSQL 12 to 18).
_COUNTED_BYTES = 64 << 20

# A table is emptied as a whole with its partitions, wherever these lie. Where one of them is a foreign table, each of
# the others is emptied alone, for TRUNCATE of the whole goes on to the other server, or fails.
_OWN = sql.SQL("""
    WITH RECURSIVE own AS (
        SELECT c.oid, n.nspname, c.relname, c.relkind, c.relispartition, c.relispopulated
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = ANY(%(schemas)s) AND n.nspname <> 'atriz' AND c.relname <> 'alembic_version'
          AND NOT EXISTS (
              SELECT FROM pg_depend d
              WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
    ), part AS (
        SELECT c.oid, c.relkind, own.oid AS root, bool_or(c.relkind = 'f') OVER (PARTITION BY own.oid) AS mixed
        FROM own LEFT JOIN LATERAL pg_partition_tree(own.oid) tree ON true
        JOIN pg_class c ON c.oid = coalesce(tree.relid, own.oid)
        WHERE own.relkind IN ('r', 'p') AND NOT own.relispartition
    ), member AS (
        SELECT oid, CASE WHEN mixed THEN oid ELSE root END AS whole FROM part WHERE relkind = 'r' OR NOT mixed
    )
""")

# `plain`: DELETE does neither more nor less than TRUNCATE. A trigger or a rule sees it, also on a table that refers to
# this one (cascades run there, be it over no rows); a publication may lack the key that it needs to send deletes.
_TABLES = _OWN + sql.SQL("""
    , watched AS (
        SELECT tgrelid AS oid FROM pg_trigger WHERE NOT tgisinternal
        UNION SELECT ev_class FROM pg_rewrite
        UNION SELECT format('%%I.%%I', schemaname, tablename)::regclass FROM pg_publication_tables
    ), touched AS (
        SELECT oid FROM watched
        UNION SELECT k.confrelid FROM pg_constraint k JOIN watched ON watched.oid = k.conrelid WHERE k.contype = 'f'
    )
    SELECT c.oid, c.oid::regclass::text AS name, n.nspname, c.relname, c.relkind = 'p' AS partitioned,
           row_security_active(c.oid) AS hidden, NOT bool_or(m.oid IN (SELECT oid FROM touched)) AS plain,
           sum(pg_table_size(m.oid))::bigint AS bytes
    FROM member m JOIN pg_class c ON c.oid = m.whole JOIN pg_namespace n ON n.oid = c.relnamespace
    GROUP BY c.oid, n.nspname, c.relname, c.relkind ORDER BY name
""")

# Which table refers to which; or, in a sentence, what ties one to a table that is to stay: TRUNCATE would refuse, and
# DELETE cascade.
_REFERENCES = _OWN + sql.SQL("""
    SELECT DISTINCT child.whole, parent.whole,
           CASE WHEN child.oid IS NULL
                THEN format('%%s refers to %%s (%%s)', k.conrelid::regclass, k.confrelid::regclass, k.conname) END
    FROM pg_constraint k JOIN member parent ON parent.oid = k.confrelid LEFT JOIN member child ON child.oid = k.conrelid
    WHERE k.contype = 'f' AND (child.oid IS NOT NULL OR k.conparentid = 0)
    UNION
    SELECT NULL, own.oid, format('%%s is a partition of %%s', own.oid::regclass, root.oid::regclass)
    FROM own JOIN pg_class root ON root.oid = pg_partition_root(own.oid)
    JOIN pg_namespace n ON n.oid = root.relnamespace
    WHERE own.relkind IN ('r', 'p') AND n.nspname <> ALL(%(schemas)s)
    ORDER BY 3
""")

_SEQUENCES = _OWN + sql.SQL(
    "SELECT nspname, relname, seqstart FROM own JOIN pg_sequence ON seqrelid = oid ORDER BY 1, 2"
)

# The materialized views that show rows of ours, by way of whatever views, each after those it reads.
_VIEWS = _OWN + sql.SQL("""
    , reader AS (
        SELECT oid, 0 AS depth FROM member
        UNION
        SELECT r.ev_class, reader.depth + 1
        FROM reader JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = reader.oid
        JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        WHERE r.ev_class <> reader.oid AND reader.depth < 100  -- two views can be made to read each other
    )
    SELECT nspname, relname FROM own JOIN reader USING (oid) WHERE relkind = 'm' AND relispopulated
    GROUP BY oid, nspname, relname ORDER BY max(depth), nspname, relname
""")


class ReferencedError(AtrizError):
    """A table that would be emptied is tied to one that would not."""


@dataclass(frozen=True, slots=True)
class Emptied:
    """One table that holds no rows any more, its partitions with it."""

    table: str
    """Its name, with the schema where that is not on the connection's search path."""
    rows: int
    """How many it held."""
    exact: bool
    """False: the planner's estimate, for a table too large to count, or one whose policies hide rows from the role."""


@dataclass(frozen=True, slots=True)
class _Table:
    oid: int
    name: str
    schema: str
    relation: str
    partitioned: bool
    hidden: bool
    plain: bool
    bytes: int

    @property
    def rows(self) -> sql.Composable:
        """What a statement calls it: without the tables that inherit from it, which are others."""
        return sql.SQL("" if self.partitioned else "ONLY ") + sql.Identifier(self.schema, self.relation)


def empty(connection: Connection, schemas: Sequence[str]) -> list[Emptied]:
    """Empty the tables of `schemas` and restart the sequences, in one transaction. Return all the tables, by name.

    ``alembic_version``, foreign tables, schema ``atriz`` and what belongs to an extension stay. Materialized views of
    `schemas` that show these tables' rows are refreshed, unless they never were. From the first count to the commit
    nobody else reads or writes; how long to wait for that is the connection's ``lock_timeout``.

    Raise `ReferencedError` if a table that is to stay refers to one of these, and `psycopg.Error` if the server
    refuses. Then nothing has changed.
    """
    given = {"schemas": list(schemas)}
    with connection.transaction():
        # Whatever the role's default: the counts are to see what was committed before the lock was granted.
        connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        tables = {row[0]: _Table(*row) for row in connection.execute(_TABLES, given)}
        # At once and in the strongest mode: locks that are raised later are how deadlocks are made.
        _run(connection, "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.values())
        referring = _referring(connection, given)
        emptied = _counted(connection, tables)
        # DELETE for a few rows, unless foreign keys in a circle leave no order for it; nothing for none.
        few = {oid for oid, was in emptied.items() if was.exact and 0 < was.rows <= _FEW_ROWS}
        few = {oid for oid in few if tables[oid].plain and tables[oid].bytes <= _FEW_BYTES}
        truncated = _closed({oid for oid, was in emptied.items() if was.rows or not was.exact} - few, referring)
        order, circular = _children_first(few - truncated, referring)
        truncated |= _closed(circular, referring)
        _run(connection, "TRUNCATE {} RESTART IDENTITY", [tables[oid] for oid in truncated])
        for oid in [oid for oid in order if oid not in truncated]:
            _run(connection, "DELETE FROM {}", [tables[oid]])
        _restart_sequences(connection, given)
        for name in connection.execute(_VIEWS, given).fetchall():
            connection.execute(sql.SQL("REFRESH MATERIALIZED VIEW {}").format(sql.Identifier(*name)))
    return list(emptied.values())


def _referring(connection: Connection, given: Mapping[str, Any]) -> Mapping[int, set[int]]:
    """Return which other tables refer to each. Raise `ReferencedError` if one of them is to stay."""
    referring = defaultdict[int, set[int]](set)
    outside = []
    for child, parent, sentence in connection.execute(_REFERENCES, given):
        if child is None:
            outside.append(sentence)
        elif child != parent:
            referring[parent].add(child)
    if outside:
        raise ReferencedError(
            f"Nothing was emptied: only tables of {', '.join(given['schemas'])} would be, and {'; '.join(outside)}. "
            "Drop that link, or move the table."
        )
    return referring


def _counted(connection: Connection, tables: Mapping[int, _Table]) -> dict[int, Emptied]:
    """Return how many rows each table holds."""
    small = [oid for oid, table in tables.items() if table.bytes <= _COUNTED_BYTES and not table.hidden]
    counts = _values(connection, [sql.SQL("SELECT count(*) FROM {}").format(tables[oid].rows) for oid in small])
    exact = dict(zip(small, counts, strict=True))
    emptied = {}
    for oid, table in tables.items():
        rows = exact.get(oid)
        if rows is None:
            plan = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {}").format(table.rows)).fetchall()
            rows = int(plan[0][0][0]["Plan"]["Plan Rows"])
        emptied[oid] = Emptied(table.name, rows, exact=oid in exact)
    return emptied


def _closed(tables: Iterable[int], referring: Mapping[int, set[int]]) -> set[int]:
    """Return the tables and all that refer to them, directly or not: TRUNCATE takes them only together."""
    found, left = set[int](), list(tables)
    while left:
        oid = left.pop()
        if oid not in found:
            found.add(oid)
            left += referring[oid]
    return found


def _children_first(tables: Set[int], referring: Mapping[int, set[int]]) -> tuple[list[int], set[int]]:
    """Return the tables in an order that lets DELETE through, and those that have none."""
    order, left = list[int](), set(tables)
    while free := {oid for oid in left if not referring[oid] & left}:
        order += free
        left -= free
    return order, left


def _restart_sequences(connection: Connection, given: Mapping[str, Any]) -> None:
    """Restart the sequences that are not at their start: each gets a new file, and to look is cheaper."""
    sequences = [(sql.Identifier(*row[:2]), row[2]) for row in connection.execute(_SEQUENCES, given)]
    looks = [sql.SQL("SELECT is_called OR last_value <> {} FROM {}").format(start, name) for name, start in sequences]
    for (name, _), moved in zip(sequences, _values(connection, looks), strict=True):
        if moved:
            connection.execute(sql.SQL("ALTER SEQUENCE {} RESTART").format(name))


def _values(connection: Connection, queries: Sequence[sql.Composable]) -> list[Any]:
    """Return the one value that each query has, in one round trip."""
    if not queries:
        return []
    rows = connection.execute(sql.SQL("SELECT ARRAY[({})]").format(sql.SQL("), (").join(queries))).fetchall()
    return list(rows[0][0])


def _run(connection: Connection, statement: LiteralString, tables: Iterable[_Table]) -> None:
    if names := [table.rows for table in tables]:
        connection.execute(sql.SQL(statement).format(sql.SQL(", ").join(names)))
