"""Emptying a database: what goes, what stays, by which statement, and that a seed works right after it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors

from atriz_database import databases, truncate
from atriz_database.databases import Connection
from atriz_database.settings import Target
from atriz_database.testing.run import Run
from atriz_database.truncate import Emptied, ReferencedError, empty
from atriz_database.url import DatabaseURL
from atriz_database.workspace import Package

# One more than DELETE is chosen for.
MANY = 101


@pytest.fixture(scope="module")
def target(
    server_url: DatabaseURL,
    new_database_name: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    _run: Run,
) -> Iterator[Target]:
    """Yield a database that the tests of this file share."""
    folder: Path = tmp_path_factory.getbasetemp()
    package = Package("own", folder, folder, "own_db", "DATABASE_URL", ("public",), ())
    url = server_url.with_database(new_database_name("truncate"))
    made = Target(package, url, "the test run", "test", "the test run")
    databases.create(made)
    yield made
    _run.drop(made.database)


@pytest.fixture
def connection(target: Target) -> Iterator[Connection]:
    """Yield a connection to the shared database, its schemas `public` and `other` made anew."""
    with databases.connect(target, purpose="test") as opened:
        renew(opened)
        yield opened


def renew(connection: Connection) -> None:
    run(
        connection,
        """
        SET client_min_messages = warning;
        DROP SCHEMA IF EXISTS public, other, atriz CASCADE;
        CREATE SCHEMA public; CREATE SCHEMA other;
        """,
    )


def run(connection: Connection, text: str) -> list[tuple[Any, ...]]:
    """Run SQL that a test has put together; return the last statement's rows."""
    cursor = connection.execute(cast("LiteralString", text))
    while cursor.nextset():
        pass
    return cursor.fetchall() if cursor.description else []


def count(connection: Connection, table: str) -> int:
    return int(run(connection, f"SELECT count(*) FROM {table}")[0][0])


def truncated(connection: Connection, *tables: str) -> set[str]:
    """Empty `public`; return those of the tables that were given new files, which TRUNCATE does and DELETE does not."""
    query = "SELECT " + ", ".join(f"pg_relation_filenode('{table}')" for table in tables)
    before = run(connection, query)[0]
    empty(connection, ["public"])
    after = run(connection, query)[0]
    assert all(count(connection, table) == 0 for table in tables)
    return {table for table, old, new in zip(tables, before, after, strict=True) if old != new}


def test_empties_its_schemas_and_nothing_else(connection: Connection) -> None:
    """Version row, schema atriz, other people's schemas, an extension's tables and sequences keep what they hold."""
    run(
        connection,
        """
        CREATE SCHEMA atriz;
        CREATE TABLE one (id serial); CREATE TABLE many (id serial);
        CREATE TABLE alembic_version (version_num text); CREATE TABLE extended (id serial);
        CREATE TABLE other.theirs (id serial); CREATE TABLE atriz.label (id serial);
        ALTER EXTENSION plpgsql ADD TABLE extended;
        ALTER EXTENSION plpgsql ADD SEQUENCE extended_id_seq;
        INSERT INTO one DEFAULT VALUES; INSERT INTO alembic_version VALUES ('a');
        INSERT INTO many SELECT FROM generate_series(1, 1000);
        INSERT INTO extended DEFAULT VALUES; INSERT INTO other.theirs DEFAULT VALUES;
        INSERT INTO atriz.label DEFAULT VALUES;
        """,
    )
    try:
        assert empty(connection, ["public", "atriz"]) == [Emptied("many", 1000, True), Emptied("one", 1, True)]
        for kept in ("alembic_version", "extended", "other.theirs", "atriz.label"):
            assert count(connection, kept) == 1
        sequences = ("one_id_seq", "many_id_seq", "extended_id_seq", "other.theirs_id_seq", "atriz.label_id_seq")
        assert [run(connection, f"SELECT nextval('{name}')")[0][0] for name in sequences] == [1, 1, 2, 2, 2]
    finally:
        run(
            connection,
            "ALTER EXTENSION plpgsql DROP SEQUENCE extended_id_seq; ALTER EXTENSION plpgsql DROP TABLE extended",
        )


def test_several_schemas_are_emptied_together(connection: Connection) -> None:
    """A foreign key between two of them is no obstacle, and a table is named as the connection would name it."""
    run(
        connection,
        """
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE other.child (parent int REFERENCES parent);
        INSERT INTO parent VALUES (1); INSERT INTO other.child VALUES (1), (1);
        """,
    )
    with pytest.raises(ReferencedError):
        empty(connection, ["public"])
    assert empty(connection, ["public", "other"]) == [Emptied("other.child", 2, True), Emptied("parent", 1, True)]


def test_an_empty_schema_and_a_second_run_are_nothing_to_do(connection: Connection) -> None:
    """Both are results; a run over empty tables gives no table and no sequence a new file."""
    assert empty(connection, ["public"]) == []
    run(connection, "CREATE TABLE rows (id serial); INSERT INTO rows SELECT FROM generate_series(1, 1000)")
    assert empty(connection, ["public"]) == [Emptied("rows", 1000, True)]
    query = "SELECT pg_relation_filenode('rows'), pg_relation_filenode('rows_id_seq')"
    before = run(connection, query)
    assert empty(connection, ["public"]) == [Emptied("rows", 0, True)]
    assert run(connection, query) == before


def test_names_that_need_quotes(connection: Connection) -> None:
    """Whatever a table, a sequence or a view is called, percent signs and braces included."""
    name = '"a ""b"" %s {} 🦜"'
    run(
        connection,
        f"""
        CREATE TABLE {name} (id int); INSERT INTO {name} SELECT generate_series(1, 1000);
        CREATE TABLE {name[:-1]}2" (id int); INSERT INTO {name[:-1]}2" VALUES (1);
        CREATE SEQUENCE {name[:-1]}3"; SELECT nextval('{name[:-1]}3"');
        CREATE MATERIALIZED VIEW {name[:-1]}4" AS SELECT * FROM {name};
        """,
    )
    assert [each.rows for each in empty(connection, ["public"])] == [1000, 1]
    assert count(connection, name) == count(connection, f'{name[:-1]}4"') == 0


def test_deletes_a_few_rows_and_truncates_many(connection: Connection) -> None:
    """A table keeps its file where a few rows go, and gets a new one where many do, or where few take much space."""
    run(
        connection,
        f"""
        CREATE TABLE none (id int); CREATE TABLE few (id int); CREATE TABLE many (id int);
        CREATE TABLE wide (data text); ALTER TABLE wide ALTER data SET STORAGE EXTERNAL;
        INSERT INTO few SELECT generate_series(1, {MANY - 1}); INSERT INTO many SELECT generate_series(1, {MANY});
        INSERT INTO wide SELECT repeat('x', 2000000);
        """,
    )
    assert truncated(connection, "none", "few", "many", "wide") == {"many", "wide"}


def test_tables_that_refer_to_a_truncated_one_are_truncated_with_it(connection: Connection) -> None:
    """However few rows they hold; a table that is referred to by a truncated one is not."""
    run(
        connection,
        f"""
        CREATE TABLE grandparent (id int PRIMARY KEY);
        CREATE TABLE parent (id int PRIMARY KEY, up int REFERENCES grandparent);
        CREATE TABLE child (id int PRIMARY KEY, up int REFERENCES parent);
        CREATE TABLE grandchild (id int PRIMARY KEY, up int REFERENCES child);
        INSERT INTO grandparent VALUES (1); INSERT INTO parent SELECT id, 1 FROM generate_series(1, {MANY}) id;
        INSERT INTO child VALUES (1, 1);
        """,
    )
    tables = ("grandparent", "parent", "child", "grandchild")
    assert truncated(connection, *tables) == {"parent", "child", "grandchild"}


@pytest.mark.parametrize("action", ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"])
def test_circles_and_references_to_oneself(connection: Connection, action: str) -> None:
    """A circle of foreign keys is truncated, and so is what refers to it; a tree in one table is deleted."""
    run(
        connection,
        f"""
        CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON DELETE {action});
        CREATE TABLE hen (id int PRIMARY KEY, egg int); CREATE TABLE egg (id int PRIMARY KEY, hen int);
        ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg ON DELETE {action};
        ALTER TABLE egg ADD FOREIGN KEY (hen) REFERENCES hen ON DELETE {action} DEFERRABLE INITIALLY DEFERRED;
        CREATE TABLE feather (hen int REFERENCES hen ON DELETE {action});
        INSERT INTO tree VALUES (1, 1), (2, 1), (3, 2); INSERT INTO hen VALUES (1); INSERT INTO egg VALUES (1, 1);
        UPDATE hen SET egg = 1; INSERT INTO feather VALUES (1);
        """,
    )
    assert truncated(connection, "tree", "hen", "egg", "feather") == {"hen", "egg", "feather"}


def test_no_trigger_and_no_rule_sees_the_rows_go(connection: Connection) -> None:
    """Not even by a cascade over no rows; where there are none, TRUNCATE is not needed either."""
    run(
        connection,
        """
        CREATE TABLE other.log (what text);
        CREATE FUNCTION other.log() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO other.log VALUES (TG_TABLE_NAME || TG_OP); RETURN OLD; END$$;
        CREATE TABLE logged (id int); CREATE TABLE blank (id int); CREATE TABLE ruled (id int);
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int, parent int REFERENCES parent ON DELETE CASCADE);
        CREATE TRIGGER log AFTER DELETE ON logged FOR EACH ROW EXECUTE FUNCTION other.log();
        CREATE TRIGGER log AFTER DELETE ON blank FOR EACH STATEMENT EXECUTE FUNCTION other.log();
        CREATE TRIGGER log AFTER DELETE ON child FOR EACH STATEMENT EXECUTE FUNCTION other.log();
        CREATE RULE keep AS ON DELETE TO ruled DO INSTEAD NOTHING;
        INSERT INTO logged VALUES (1); INSERT INTO ruled VALUES (1); INSERT INTO parent VALUES (1);
        """,
    )
    tables = ("logged", "blank", "ruled", "parent", "child")
    assert truncated(connection, *tables) == {"logged", "ruled", "parent", "child"}
    assert count(connection, "other.log") == 0


def test_a_published_table_without_a_key_is_truncated(connection: Connection) -> None:
    """PostgreSQL refuses to delete from it, having no way to tell a subscriber which row."""
    run(connection, "CREATE TABLE rows (id int); INSERT INTO rows VALUES (1)")
    run(connection, "SET client_min_messages = error; CREATE PUBLICATION news FOR TABLE rows")
    try:
        with pytest.raises(errors.ObjectNotInPrerequisiteState):
            run(connection, "DELETE FROM rows")
        assert truncated(connection, "rows") == {"rows"}
    finally:
        run(connection, "DROP PUBLICATION news")


@pytest.mark.parametrize("action", ["NO ACTION", "CASCADE"])
@pytest.mark.parametrize("rows", [1, MANY])
def test_a_table_outside_that_refers_to_one_inside_is_an_error(connection: Connection, action: str, rows: int) -> None:
    """It names both, and changes neither, whether the rows would be deleted or truncated."""
    run(
        connection,
        f"""
        CREATE TABLE inside (id serial PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF inside DEFAULT;
        CREATE TABLE other.outside (id int REFERENCES inside ON DELETE {action}) PARTITION BY RANGE (id);
        CREATE TABLE other.outside_part PARTITION OF other.outside DEFAULT;
        INSERT INTO inside SELECT FROM generate_series(1, {rows}); INSERT INTO other.outside VALUES (1);
        """,
    )
    with pytest.raises(ReferencedError, match=r"and other\.outside refers to inside \(outside_id_fkey\)\. Drop"):
        empty(connection, ["public"])
    assert (count(connection, "inside"), count(connection, "other.outside")) == (rows, 1)
    assert run(connection, "SELECT nextval('inside_id_seq')") == [(rows + 1,)]


def test_a_partition_of_a_table_outside_is_an_error(connection: Connection) -> None:
    """Its rows are the other table's."""
    run(
        connection,
        """
        CREATE TABLE other.whole (id int) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF other.whole DEFAULT;
        INSERT INTO other.whole VALUES (1);
        """,
    )
    with pytest.raises(ReferencedError, match=r"part is a partition of other\.whole"):
        empty(connection, ["public"])
    assert count(connection, "part") == 1


def test_partitions_are_emptied_through_their_root_and_stay(connection: Connection) -> None:
    """On every level, and where a partition lies in another schema; the root is counted, its partitions are not."""
    run(
        connection,
        """
        CREATE TABLE whole (id serial, at int) PARTITION BY RANGE (at);
        CREATE TABLE low PARTITION OF whole FOR VALUES FROM (0) TO (10) PARTITION BY LIST (at);
        CREATE TABLE low_1 PARTITION OF low FOR VALUES IN (1);
        CREATE TABLE other.high PARTITION OF whole FOR VALUES FROM (10) TO (20);
        CREATE TABLE bare (id int) PARTITION BY RANGE (id);
        """,
    )
    for rows in (2, 2 * MANY):
        run(connection, f"INSERT INTO whole (at) SELECT 1 + 10 * (i % 2) FROM generate_series(1, {rows}) i")
        assert empty(connection, ["public"]) == [Emptied("bare", 0, True), Emptied("whole", rows, True)]
        run(connection, "INSERT INTO whole (at) VALUES (1), (11)")
        assert (count(connection, "low_1"), count(connection, "other.high")) == (1, 1)
        assert empty(connection, ["public"])[1].rows == 2


def test_a_trigger_on_one_partition_counts_for_the_whole(connection: Connection) -> None:
    """It would see the rows go that are deleted through the root."""
    run(
        connection,
        """
        CREATE TABLE whole (id int) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF whole DEFAULT;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'seen'; END$$;
        CREATE TRIGGER refuse BEFORE DELETE ON part FOR EACH ROW EXECUTE FUNCTION refuse();
        INSERT INTO whole VALUES (1);
        """,
    )
    assert truncated(connection, "part") == {"part"}


def test_foreign_tables_are_left(connection: Connection) -> None:
    """Also as a partition: the others of that table are emptied one by one, and so are counted."""
    run(
        connection,
        f"""
        DROP FOREIGN DATA WRAPPER IF EXISTS nowhere CASCADE;
        CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER far FOREIGN DATA WRAPPER nowhere;
        CREATE FOREIGN TABLE alone (id int) SERVER far;
        CREATE TABLE whole (id int) PARTITION BY RANGE (id);
        CREATE TABLE few PARTITION OF whole FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
        CREATE TABLE few_all PARTITION OF few DEFAULT;
        CREATE TABLE many PARTITION OF whole FOR VALUES FROM (10) TO (1000);
        CREATE FOREIGN TABLE away PARTITION OF whole FOR VALUES FROM (1000) TO (2000) SERVER far;
        INSERT INTO whole SELECT 1; INSERT INTO whole SELECT generate_series(10, {MANY + 9});
        """,
    )
    assert empty(connection, ["public"]) == [Emptied("few_all", 1, True), Emptied("many", MANY, True)]
    run(connection, "DROP FOREIGN DATA WRAPPER nowhere CASCADE")


def test_what_merely_inherits_is_a_table_of_its_own(connection: Connection) -> None:
    """It is counted alone, and stays where it lies in another schema."""
    run(
        connection,
        f"""
        CREATE TABLE parent (id int);
        CREATE TABLE ours () INHERITS (parent); CREATE TABLE other.theirs () INHERITS (parent);
        INSERT INTO parent SELECT generate_series(1, {MANY}); INSERT INTO ours VALUES (1);
        INSERT INTO other.theirs VALUES (1);
        """,
    )
    assert empty(connection, ["public"]) == [Emptied("ours", 1, True), Emptied("parent", MANY, True)]
    assert count(connection, "parent") == count(connection, "other.theirs") == 1


def test_every_sequence_gives_its_start_value_again(connection: Connection) -> None:
    """Owned by a column or not, going up or down, called or only set, of a table that was empty or not."""
    run(
        connection,
        """
        CREATE SEQUENCE alone; CREATE SEQUENCE down INCREMENT -1 START -5; CREATE SEQUENCE from_9 START 9;
        CREATE TABLE one (a serial, b int GENERATED ALWAYS AS IDENTITY (START 100));
        CREATE TABLE none (id serial); CREATE TABLE many (id serial);
        INSERT INTO one DEFAULT VALUES; INSERT INTO many SELECT FROM generate_series(1, 1000);
        SELECT nextval('none_id_seq'), nextval('alone'), nextval('down'), nextval('down'), setval('from_9', 50, false);
        """,
    )
    empty(connection, ["public"])
    starts = {"alone": 1, "down": -5, "from_9": 9, "one_a_seq": 1, "one_b_seq": 100, "none_id_seq": 1, "many_id_seq": 1}
    assert {name: run(connection, f"SELECT nextval('{name}')")[0][0] for name in starts} == starts


def test_materialized_views_show_no_old_rows(connection: Connection) -> None:
    """They are refreshed in the order in which they read each other; one that was never populated stays so."""
    run(
        connection,
        """
        CREATE TABLE rows (id int); INSERT INTO rows VALUES (1);
        CREATE TABLE other.theirs AS SELECT 1 AS id;
        CREATE MATERIALIZED VIEW z AS SELECT * FROM rows;
        CREATE VIEW between_them AS SELECT * FROM z;
        CREATE MATERIALIZED VIEW a AS SELECT * FROM between_them UNION ALL SELECT * FROM rows;
        CREATE MATERIALIZED VIEW later AS SELECT * FROM a WITH NO DATA;
        CREATE MATERIALIZED VIEW foreign_rows AS SELECT * FROM other.theirs;
        INSERT INTO other.theirs VALUES (2);
        CREATE MATERIALIZED VIEW other.copy AS SELECT * FROM rows;
        """,
    )
    assert empty(connection, ["public"]) == [Emptied("rows", 1, True)]
    assert [count(connection, name) for name in ("z", "a", "foreign_rows", "other.copy")] == [0, 0, 1, 1]
    assert run(connection, "SELECT relispopulated FROM pg_class WHERE relname = 'later'") == [(False,)]


@pytest.mark.parametrize("analyzed", [True, False])
def test_a_large_table_is_estimated(connection: Connection, monkeypatch: pytest.MonkeyPatch, analyzed: bool) -> None:
    """The planner's figure, which needs no statistics, and covers all partitions; it is marked as an estimate."""
    monkeypatch.setattr(truncate, "_COUNTED_BYTES", 100_000)
    run(
        connection,
        """
        CREATE TABLE small (id int); CREATE TABLE large (id int, name text) PARTITION BY HASH (id);
        CREATE TABLE large_0 PARTITION OF large FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE large_1 PARTITION OF large FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO small VALUES (1); INSERT INTO large SELECT i, 'the name of ' || i FROM generate_series(1, 20000) i;
        """,
    )
    if analyzed:
        run(connection, "ANALYZE")
    large, small = empty(connection, ["public"])
    assert small == Emptied("small", 1, True)
    assert (large.table, large.exact) == ("large", False)
    assert large.rows == pytest.approx(20_000, rel=0.01 if analyzed else 0.5)
    assert count(connection, "large") == 0


def test_an_owner_who_is_no_superuser_and_sees_no_rows(connection: Connection, target: Target) -> None:
    """Policies forced on the owner hide rows from SELECT and DELETE: the table is truncated, the count estimated."""
    role = f"atriz_test_{uuid.uuid4().hex[:12]}"
    run(
        connection,
        f"""
        CREATE ROLE {role}; ALTER SCHEMA public OWNER TO {role}; SET ROLE {role};
        CREATE TABLE plain (id serial); CREATE TABLE secret (id serial);
        ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
        CREATE POLICY none ON secret USING (false) WITH CHECK (true);
        CREATE MATERIALIZED VIEW shown AS SELECT * FROM plain;
        INSERT INTO plain DEFAULT VALUES; INSERT INTO secret DEFAULT VALUES;
        ALTER TABLE secret FORCE ROW LEVEL SECURITY;
        """,
    )
    try:
        plain, secret = empty(connection, ["public"])
        assert plain == Emptied("plain", 1, True)
        assert not secret.exact
        run(connection, "RESET ROLE")
        assert count(connection, "secret") == 0
        assert run(connection, "SELECT nextval('plain_id_seq'), nextval('secret_id_seq')") == [(1, 1)]
    finally:
        run(
            connection, f"RESET ROLE; ALTER SCHEMA public OWNER TO CURRENT_USER; DROP OWNED BY {role}; DROP ROLE {role}"
        )


def test_a_failure_changes_nothing(connection: Connection) -> None:
    """A trigger that refuses TRUNCATE keeps the rows of all tables and the place of all sequences."""
    run(
        connection,
        """
        CREATE SEQUENCE alone; CREATE TABLE few (id serial); CREATE TABLE kept (id serial);
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'the audit stays'; END$$;
        CREATE TRIGGER refuse BEFORE TRUNCATE ON kept EXECUTE FUNCTION refuse();
        INSERT INTO few DEFAULT VALUES; INSERT INTO kept DEFAULT VALUES; SELECT nextval('alone');
        """,
    )
    with pytest.raises(errors.RaiseException, match="the audit stays"):
        empty(connection, ["public"])
    assert (count(connection, "few"), count(connection, "kept")) == (1, 1)
    assert run(connection, "SELECT nextval('alone'), nextval('few_id_seq')") == [(2, 2)]


def test_waits_for_others_as_long_as_lock_timeout_says(connection: Connection, target: Target) -> None:
    """The connection's own setting holds; nothing is changed when it runs out."""
    run(connection, "CREATE TABLE rows (id int); INSERT INTO rows VALUES (1); SET lock_timeout = '100ms'")
    with databases.connect(target) as reader, reader.transaction():
        assert count(reader, "rows") == 1
        with pytest.raises(errors.LockNotAvailable):
            empty(connection, ["public"])
        assert count(reader, "rows") == 1
    assert empty(connection, ["public"]) == [Emptied("rows", 1, True)]


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
def test_rows_that_were_committed_while_it_waited_go_too(connection: Connection, target: Target, level: str) -> None:
    """And are counted, whatever isolation the role has by default."""
    run(connection, f"CREATE TABLE rows (id int); SET default_transaction_isolation = '{level}'")
    done: list[Emptied] = []
    thread = threading.Thread(target=lambda: done.extend(empty(connection, ["public"])))
    with databases.connect(target) as writer:
        with writer.transaction():
            run(writer, "INSERT INTO rows VALUES (1), (2)")
            thread.start()
            query = f"SELECT 1 FROM pg_locks WHERE pid = {connection.info.backend_pid} AND NOT granted"
            deadline = time.monotonic() + 10
            while not run(writer, query):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        thread.join()
        assert done == [Emptied("rows", 2, True)]
        assert count(writer, "rows") == 0


@dataclass(frozen=True)
class Drawn:
    """One table of a random schema."""

    partitioned: bool
    rows: int
    references: tuple[tuple[int, str, bool], ...]
    """Table, what happens on delete, and whether it is checked only at the end."""
    trigger: str


@st.composite
def schemas(draw: st.DrawFn) -> list[Drawn]:
    """Draw up to five tables that refer to each other and to themselves as chance will have it."""
    size = draw(st.integers(1, 5))
    actions = st.sampled_from(["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"])
    reference = st.tuples(st.integers(0, size - 1), actions, st.booleans())
    triggers = [f"{event} ON {{}} FOR EACH {each}" for event in ("DELETE", "UPDATE") for each in ("ROW", "STATEMENT")]
    table = st.builds(
        Drawn,
        partitioned=st.booleans(),
        rows=st.sampled_from([0, 1, 7, MANY]),
        references=st.lists(reference, max_size=2).map(tuple),
        trigger=st.sampled_from(["", "", *triggers]),
    )
    return draw(st.lists(table, min_size=size, max_size=size))


def fill(connection: Connection, tables: list[Drawn]) -> None:
    """Insert as a seed would: by defaults, expecting the first key to be 1."""
    for i, table in enumerate(tables):
        run(connection, f"INSERT INTO t{i} (name) SELECT 'row' FROM generate_series(1, {table.rows})")
    for i, table in enumerate(tables):
        for j, (parent, _, _) in enumerate(table.references):
            if tables[parent].rows:
                run(connection, f"UPDATE t{i} SET r{j} = 1 + id % {tables[parent].rows}")
    run(connection, "SELECT nextval('alone')")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables=schemas())
def test_whatever_the_schema(connection: Connection, tables: list[Drawn]) -> None:
    """Tables are empty, sequences at their start, other schemas as they were, no trigger has fired, a seed works."""
    renew(connection)
    run(
        connection,
        """
        CREATE TABLE other.log (what text); CREATE TABLE other.theirs (id serial);
        INSERT INTO other.theirs DEFAULT VALUES; CREATE SEQUENCE alone START 5;
        CREATE FUNCTION other.log() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO other.log VALUES (TG_TABLE_NAME || TG_OP); RETURN NULL; END$$;
        """,
    )
    for i, table in enumerate(tables):
        columns = "".join(f", r{j} int" for j in range(len(table.references)))
        how = "PARTITION BY RANGE (id)" if table.partitioned else ""
        run(connection, f"CREATE TABLE t{i} (id serial PRIMARY KEY, name text{columns}) {how}")
        if table.partitioned:
            run(connection, f"CREATE TABLE t{i}_1 PARTITION OF t{i} FOR VALUES FROM (1) TO (4)")
            run(connection, f"CREATE TABLE t{i}_default PARTITION OF t{i} DEFAULT")
    for i, table in enumerate(tables):
        for j, (parent, action, deferred) in enumerate(table.references):
            when = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
            run(connection, f"ALTER TABLE t{i} ADD FOREIGN KEY (r{j}) REFERENCES t{parent} ON DELETE {action} {when}")
    fill(connection, tables)
    for i, table in enumerate(tables):
        if table.trigger:
            run(connection, f"CREATE TRIGGER log AFTER {table.trigger.format(f't{i}')} EXECUTE FUNCTION other.log()")

    assert empty(connection, ["public"]) == [Emptied(f"t{i}", table.rows, True) for i, table in enumerate(tables)]

    assert all(count(connection, f"t{i}") == 0 for i in range(len(tables)))
    assert count(connection, "other.log") == 0
    assert run(connection, "SELECT last_value, is_called FROM other.theirs_id_seq") == [(1, True)]
    assert count(connection, "other.theirs") == 1
    fill(connection, tables)
    assert run(connection, "SELECT last_value FROM alone") == [(5,)]
    assert [count(connection, f"t{i}") for i in range(len(tables))] == [table.rows for table in tables]
