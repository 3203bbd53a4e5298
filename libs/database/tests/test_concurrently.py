"""Revisions with statements that run outside a transaction: built, killed in the middle, and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest
from tree import Tree

_HEAD = (
    '"""Revision 2."""\n'
    "from alembic import op\n"
    "import sqlalchemy as sa\n"
    "from atriz_database.migrations import (\n"
    "    create_index_concurrently, drop_index_concurrently, outside_transaction\n)\n"
    'revision: str = "left0002"\n'
    'down_revision: str | None = "left0001"\n\n\n'
)
_CREATE = 'create_index_concurrently("ix_left", "left_1", ["id"])'
_DROP = 'drop_index_concurrently("ix_left", "left_1")'
_VALID = "SELECT indisvalid AND indisready FROM pg_index WHERE indexrelid = to_regclass('ix_left')"
_BUILDING = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'CREATE%INDEX CONCURRENTLY%' AND state = 'active'
      AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


def second(tree: Tree, up: str = _CREATE, down: str = _DROP) -> None:
    """Write the second revision of left, with these bodies."""
    path = tree.revise("left", 2)
    path.write_text(f"{_HEAD}def upgrade() -> None:\n    {up}\n\n\ndef downgrade() -> None:\n    {down}\n")


def recorded(tree: Tree) -> list[tuple[str, str]]:
    """Return the version and the directions of the second revision's history rows."""
    return tree.rows(
        "left",
        "SELECT (SELECT string_agg(version_num, ',') FROM alembic_version), direction FROM atriz.history "
        "WHERE revision = 'left0002' ORDER BY id",
    )


def migrated(tree: Tree) -> str:
    """Migrate, see that the index is valid and the revision recorded once, and return what was said."""
    done = tree.atriz("migrate")
    assert done.returncode == 0, done.stderr
    assert tree.rows("left", _VALID) == [(True,)]
    assert recorded(tree) == [("left0002", "upgrade")]
    return done.stdout


def indexes(tree: Tree) -> list[tuple[str, ...]]:
    """Return the names and definitions of left_1's indexes."""
    return tree.rows("left", "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'left_1'")


@pytest.fixture
def left(tree: Tree) -> Tree:
    """Return a repository with one package, whose table has three rows."""
    tree.add("left", requires=(), revisions=0)
    tree.revise("left", 1, "CREATE TABLE left_1 (id int, note text); INSERT INTO left_1 VALUES (1), (2), (2)")
    tree.at_head()
    return tree


def test_it_is_built_under_a_short_lock_timeout_while_a_writer_is_at_work(left: Tree) -> None:
    """It waits for the old transaction for longer than the limits, and gives the limits back."""
    second(
        left,
        f"op.execute('SET lock_timeout = 50; SET statement_timeout = 300000'); {_CREATE}; "
        "assert op.get_bind().exec_driver_sql('SHOW lock_timeout').scalar() == '50ms'; "
        "assert op.get_bind().exec_driver_sql('SHOW statement_timeout').scalar() == '5min'",
    )
    with left.connect("left") as writer:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO left_1 VALUES (4)")
        process = left.start("migrate")
        (pid,) = _builder(left, process)
        # For as long as several times the limit, by the server's own clock.
        left.rows("left", "SELECT pg_sleep(0.3)")
        assert left.rows("left", _BUILDING) == [(pid,)]
        writer.execute("COMMIT")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert left.rows("left", _VALID) == [(True,)]
    assert recorded(left) == [("left0002", "upgrade")]
    # The time of the build is in the history.
    assert left.rows("left", "SELECT seconds > 0.3 FROM atriz.history WHERE revision = 'left0002'") == [(True,)]


def _builder(tree: Tree, process: subprocess.Popen[str]) -> tuple[int]:
    """Return the backend that builds, once it waits for the writer."""
    while not (rows := tree.rows("left", _BUILDING)):
        assert process.poll() is None, process.communicate()
    return (rows[0][0],)


@pytest.mark.parametrize("server", ["goes on", "stops"])
def test_killed_in_the_build_the_next_run_finishes(left: Tree, server: str) -> None:
    """Whether the server goes on without its client or stops, the index is valid and recorded in the end."""
    second(left)
    with left.connect("left") as writer:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO left_1 VALUES (4)")
        process = left.start("migrate", start_new_session=True)
        (pid,) = _builder(left, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)
        if server == "stops":
            writer.execute("SELECT pg_cancel_backend(%s)", [pid])
        writer.execute("COMMIT")
        while writer.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone():
            pass
    assert recorded(left) == []
    valid = left.rows("left", _VALID) == [(True,)]
    said = migrated(left)
    assert ("accepted" in said) is valid
    assert ("built anew" in said) is not valid
    assert not (server == "stops" and valid)


def test_what_the_server_still_builds_is_waited_for_and_not_dropped(left: Tree) -> None:
    """The next run names who is at work, and accepts the very index that comes of it."""
    second(left)
    with left.connect("left") as writer, left.connect("left") as builder:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO left_1 VALUES (4)")
        work = threading.Thread(target=builder.execute, args=("CREATE INDEX CONCURRENTLY ix_left ON left_1 (id)",))
        work.start()
        try:
            while left.rows("left", _VALID) != [(False,)]:
                pass
            (oid,) = left.rows("left", "SELECT 'ix_left'::regclass::oid")
            process = left.start("migrate", start_new_session=True)
            assert process.stdout is not None
            deadline = threading.Timer(30, os.killpg, (process.pid, signal.SIGKILL))
            deadline.start()
            said = ""
            while "waiting for pid" not in said:
                line = process.stdout.readline()
                assert line, f"it ended, or said nothing for long: {said}"
                said += line
            deadline.cancel()
            assert f"waiting for pid {builder.info.backend_pid}" in said
            assert "CREATE INDEX CONCURRENTLY ix_left" in said
        finally:
            writer.execute("COMMIT")
            work.join()
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "accepted" in output
    assert left.rows("left", "SELECT 'ix_left'::regclass::oid") == [oid]
    assert recorded(left) == [("left0002", "upgrade")]


def test_duplicates_are_named_and_the_index_is_built_once_they_are_gone(left: Tree) -> None:
    """A unique build that fails leaves an INVALID index, which the next run drops and builds anew."""
    second(left, 'create_index_concurrently("ix_left", "left_1", ["id"], unique=True)')
    done = left.atriz("migrate")
    assert done.returncode == 1
    assert "Key (id)=(2) is duplicated" in done.stderr
    assert "0002_left0002.py, line 12" in done.stderr
    assert "builds the index anew" in done.stderr
    assert left.rows("left", _VALID) == [(False,)]
    assert recorded(left) == []
    left.rows("left", "DELETE FROM left_1 WHERE id = 2 RETURNING id")
    assert "built anew" in migrated(left)


@pytest.mark.parametrize(
    ("up", "by_hand"),
    [
        ('["id"]', "left_1 (id)"),
        ('["id", sa.text("lower(note) DESC")]', "left_1 (id, lower(note) DESC)"),
        (
            '["note"], postgresql_where=sa.text("note LIKE \'a%\' and id in (1,2)"), postgresql_include=["id"], '
            'postgresql_ops={"note": "text_pattern_ops"}, postgresql_with={"fillfactor": 70}',
            "left_1 (note text_pattern_ops) INCLUDE (id) WITH (fillfactor = 70) WHERE note LIKE 'a%' AND id IN (1, 2)",
        ),
    ],
)
def test_a_valid_index_that_was_not_recorded_is_accepted(left: Tree, up: str, by_hand: str) -> None:
    """However its definition was spelled, it is the same; it is not built again."""
    second(left, f'create_index_concurrently("ix_left", "left_1", {up})')
    with left.connect("left") as connection:
        connection.execute("ALTER TABLE left_1 ADD gone int; ALTER TABLE left_1 DROP gone")
        connection.execute(f"CREATE INDEX ix_left ON {by_hand}".encode())
    (oid,) = left.rows("left", "SELECT 'ix_left'::regclass::oid")
    assert "accepted" in migrated(left)
    assert left.rows("left", "SELECT 'ix_left'::regclass::oid") == [oid]
    assert left.rows("left", "SELECT count(*) FROM pg_class WHERE relname LIKE 'atriz_copy%'") == [(0,)]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ("CREATE INDEX ix_left ON left_1 (note)", "there:  USING btree (note)\n    wanted: USING btree (id)"),
        ("CREATE UNIQUE INDEX ix_left ON left_1 (id) WHERE id > 5", "there:  UNIQUE USING btree (id) WHERE (id > 5)"),
        ("CREATE INDEX ix_left ON left_1 (id) WITH (fillfactor = 50)", "(fillfactor='50')"),
        ("CREATE TABLE ix_left (id int)", "not an index"),
        ("CREATE TABLE other (id int); CREATE INDEX ix_left ON other (id)", "an index of another table"),
        ("DELETE FROM left_1; ALTER TABLE left_1 ADD CONSTRAINT ix_left UNIQUE (id)", "of constraint ix_left"),
    ],
)
def test_a_name_that_belongs_to_something_else_is_refused(left: Tree, there: str, said: str) -> None:
    """It shows both definitions, names the revision's line, and leaves what is there alone."""
    second(left)
    with left.connect("left") as connection:
        connection.execute(there.encode())
        (before,) = connection.execute("SELECT 'ix_left'::regclass::oid").fetchall()
    done = left.atriz("migrate")
    assert done.returncode == 1
    assert said in done.stderr
    assert "0002_left0002.py, line 12" in done.stderr
    assert left.rows("left", "SELECT 'ix_left'::regclass::oid") == [before]
    assert recorded(left) == []


def test_a_revision_that_changed_something_before_it_is_refused_whole(left: Tree) -> None:
    """The change is rolled back, nothing is built; a query before it is no change."""
    second(left, f"op.execute('CREATE TABLE early (id int)'); {_CREATE}")
    done = left.atriz("migrate")
    assert done.returncode == 1
    assert "in a revision of its own" in done.stderr
    assert left.rows("left", "SELECT to_regclass('early'), to_regclass('ix_left')") == [(None, None)]
    second(left, f"op.execute('SELECT count(*) FROM left_1'); {_CREATE}")
    migrated(left)


def test_down_it_is_dropped_and_gone_is_accepted(left: Tree) -> None:
    """Rollback drops it concurrently, says so where it was gone, and the way up works again."""
    second(left)
    migrated(left)
    assert left.atriz("rollback", "left").returncode == 0
    assert indexes(left) == []
    assert left.atriz("migrate").returncode == 0
    with left.connect("left") as connection:
        connection.execute("DROP INDEX ix_left")
    done = left.atriz("rollback", "left")
    assert done.returncode == 0, done.stderr
    assert "gone already" in done.stdout
    assert [direction for _, direction in recorded(left)] == ["upgrade", "downgrade", "upgrade", "downgrade"]


@pytest.mark.parametrize("name", ["left_1", "ix_other"])
def test_down_it_drops_nothing_else(left: Tree, name: str) -> None:
    """A table of the name, or another table's index, is left alone."""
    second(left, down=f'drop_index_concurrently("{name}", "left_1")')
    migrated(left)
    with left.connect("left") as connection:
        connection.execute("CREATE TABLE other (id int); CREATE INDEX ix_other ON other (id)")
    done = left.atriz("rollback", "left")
    assert done.returncode == 1
    assert "left as it is" in done.stderr
    assert left.rows("left", "SELECT count(*) FROM pg_class WHERE relname IN ('left_1', 'ix_other')") == [(2,)]


def test_each_partition_gets_its_index_and_a_run_that_failed_in_between_is_finished(tree: Tree) -> None:
    """Two levels of partitions: a duplicate stops the second; the next run builds what is missing, and no more."""
    tree.add("left", requires=(), revisions=0)
    tree.revise(
        "left",
        1,
        "CREATE TABLE left_1 (id int, at int) PARTITION BY RANGE (at); "
        "CREATE TABLE left_1_a PARTITION OF left_1 FOR VALUES FROM (0) TO (10); "
        "CREATE TABLE left_1_b PARTITION OF left_1 FOR VALUES FROM (10) TO (30) PARTITION BY RANGE (at); "
        "CREATE TABLE left_1_b_1 PARTITION OF left_1_b FOR VALUES FROM (10) TO (20); "
        "INSERT INTO left_1 VALUES (1, 1), (1, 11), (1, 11)",
    )
    second(tree, 'create_index_concurrently("ix_left", "left_1", ["id", "at"], unique=True)')
    done = tree.atriz("migrate")
    assert done.returncode == 1
    assert "is duplicated" in done.stderr
    (oid,) = tree.rows("left", "SELECT 'left_1_a_ix_left'::regclass::oid")
    tree.rows("left", "DELETE FROM left_1 WHERE at = 11 RETURNING 1")
    migrated(tree)
    assert tree.rows("left", "SELECT 'left_1_a_ix_left'::regclass::oid") == [oid]
    partitions = "SELECT relid::text, isleaf FROM pg_partition_tree('ix_left') ORDER BY 1"
    assert tree.rows("left", partitions) == [
        ("ix_left", False),
        ("left_1_a_ix_left", True),
        ("left_1_b_1_ix_left", True),
        ("left_1_b_ix_left", False),
    ]
    assert tree.rows("left", "SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid > 16384") == [(True,)]
    done = tree.atriz("rollback", "left")
    assert done.returncode == 0, done.stderr
    assert tree.rows("left", "SELECT count(*) FROM pg_class WHERE relname LIKE '%ix_left'") == [(0,)]


def test_any_statement_is_run_unless_it_is_done(left: Tree) -> None:
    """What a killed run has done already is accepted; what has no effect is an error."""
    done_query = "SELECT EXISTS (SELECT FROM pg_enum WHERE enumlabel = 'b')"
    second(left, f'outside_transaction("ALTER TYPE mood ADD VALUE \'b\'", done="{done_query}")', "pass")
    with left.connect("left") as connection:
        connection.execute("CREATE TYPE mood AS ENUM ('a')")
    assert left.atriz("migrate").returncode == 0
    left.atriz("rollback", "left")
    again = left.atriz("migrate")
    assert again.returncode == 0, again.stderr
    assert "done already" in again.stdout
    left.atriz("rollback", "left")
    second(left, 'outside_transaction("VACUUM left_1", done="SELECT false")', "pass")
    failed = left.atriz("migrate")
    assert failed.returncode == 1
    assert "its effect is not there" in failed.stderr


def test_plain_alembic_takes_it_as_well_and_says_what_it_accepted(left: Tree) -> None:
    """The same helper, the same lines."""
    second(left)
    with left.connect("left") as connection:
        connection.execute("CREATE INDEX ix_left ON left_1 (id)")
    done = left.alembic("left", "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert "accepted" in done.stderr
    assert recorded(left) == [("left0002", "upgrade")]


def test_written_as_sql_it_stands_between_two_transactions(left: Tree) -> None:
    """`alembic --sql` commits before it; `plan --sql` shows it alone; both directions work."""
    second(left, 'create_index_concurrently("ix_left", "left_1", ["id"], postgresql_where=sa.text("note LIKE \'a%\'"))')
    statement = "CREATE INDEX CONCURRENTLY ix_left ON left_1 (id) WHERE note LIKE 'a%';"
    written = left.alembic("left", "upgrade", "left0001:head", "--sql")
    assert written.returncode == 0, written.stderr
    lines = [line for line in written.stdout.splitlines() if line]
    at = lines.index(statement)
    assert (lines[at - 1], lines[at + 1]) == ("COMMIT;", "BEGIN;")
    down = left.alembic("left", "downgrade", "left0002:left0001", "--sql").stdout
    assert "COMMIT;\n\nDROP INDEX CONCURRENTLY ix_left;" in down.replace('"', "")
    planned = left.atriz("plan", "left", "--sql").stdout
    assert statement in planned
    assert "COMMIT" not in planned
    assert "CREATE INDEX CONCURRENTLY ix_left" in left.atriz("plan", "left").stdout
    check = left.atriz("check", "--json").stdout
    assert '"unsafe"' not in check
    assert '"not checked"' not in check
