"""Statements of Alembic's operations, which are held until something asks for an answer, and go with the commit."""

from __future__ import annotations

import signal

import pytest
from blocker import WAITING, holding
from tree import Tree, add_column


def history(tree: Tree) -> list[tuple[str, float]]:
    """Return the revisions of left's history, and how long each is said to have taken."""
    return tree.rows("left", "SELECT revision, seconds FROM atriz.history ORDER BY id")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (add_column("nowhere", "b"), 'relation "nowhere" does not exist (42P01)\n    ALTER TABLE nowhere ADD COLUMN b'),
        (add_column("left_1", "a"), 'column "a" of relation "left_1" already exists (42701)\n    ALTER TABLE left_1'),
        (
            "op.execute(__import__('sqlalchemy').DDL('ALTER TABLE left_1 ADD x nothing'))",
            'type "nothing" does not exist',
        ),
        ("op.create_check_constraint('c', 'left_1', '1 = = 1')", 'syntax error at or near "="'),
        ("op.create_table_comment('nowhere', 'a; b')", 'relation "nowhere" does not exist (42P01)\n    COMMENT ON'),
    ],
    ids=["a place in it", "no place in it", "text", "syntax", "a semicolon"],
)
@pytest.mark.parametrize("last", ["pass", "op.get_bind().exec_driver_sql('SELECT 1')"], ids=["commit", "question"])
def test_the_operation_that_fails_is_told_by_its_own_line(fleet: Tree, line: str, words: str, last: str) -> None:
    """Among several, whoever had them sent, though the next revision has begun; and nothing of the revision stays."""
    assert fleet.atriz("migrate").returncode == 0
    before, after = add_column("left_1", "a"), add_column("left_1", "é")
    path = fleet.revise(
        "left", 3, body=f"{before}\n    {after}\n    {line}\n    {add_column('left_1', 'd')}\n    {last}"
    )
    fleet.revise("left", 4, body="op.get_bind().exec_driver_sql('SELECT 1')")
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 1
    (*_, number) = [number for number, each in enumerate(path.read_text().splitlines(), 1) if each == f"    {line}"]
    assert f"{path}, line {number}: " in done.stderr
    assert words in done.stderr
    if "^" in done.stderr:
        text, caret = next(
            (above, below)
            for above, below in zip(done.stderr.splitlines(), done.stderr.splitlines()[1:], strict=False)
            if below.strip() == "^"
        )
        assert text[caret.index("^") :].startswith(("nowhere", "nothing", "= 1"))
    assert [row[0] for row in history(fleet)] == ["left0001", "left0002"]
    columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'left_1'::regclass AND attnum > 0"
    assert fleet.rows("left", columns) == [(1,)]


def test_an_operation_may_fail_within_a_savepoint(fleet: Tree) -> None:
    """The error comes before the savepoint is left, so that the revision can pass over it, and all else stays."""
    assert fleet.atriz("migrate").returncode == 0
    body = f"""
    from sqlalchemy.exc import ProgrammingError
    {add_column("left_1", "a")}
    try:
        with op.get_bind().begin_nested():
            {add_column("left_1", "b")}
            {add_column("left_1", "a")}
    except ProgrammingError:
        {add_column("left_1", "c")}"""
    fleet.revise("left", 3, body=body)
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 0, done.stderr
    query = "SELECT attname FROM pg_attribute WHERE attrelid = 'left_1'::regclass AND attnum > 1 AND NOT attisdropped"
    assert fleet.rows("left", query) == [("a",), ("c",)]


def test_what_a_revision_asks_sees_what_it_did(fleet: Tree) -> None:
    """A question is answered after all that stands above it, through SQLAlchemy and through the driver alike."""
    assert fleet.atriz("migrate").returncode == 0
    body = f"""
    driver = op.get_bind().connection.driver_connection
    for number, ask in enumerate((op.get_bind().exec_driver_sql, driver.execute)):
        op.add_column("left_1", __import__("sqlalchemy").Column(f"c{{number}}", __import__("sqlalchemy").Text()))
        assert ask(f"SELECT count(c{{number}}) FROM left_1").fetchone()[0] == 0
    {add_column("left_1", "d")}
    with driver.cursor() as cursor, cursor.copy("COPY left_1 (d) FROM STDIN") as copy:
        copy.write_row(["copied"])"""
    fleet.revise("left", 3, body=body)
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 0, done.stderr
    assert fleet.rows("left", "SELECT d FROM left_1") == [("copied",)]


@pytest.mark.parametrize("next_one", ["", "import time; time.sleep(60)"], ids=["waits for it", "is in the next one"])
def test_ctrl_c_ends_an_operation_that_waits(fleet: Tree, next_one: str) -> None:
    """Though it went to the server with its COMMIT: it is undone and not told, and the lock is free at once."""
    assert fleet.atriz("migrate").returncode == 0
    fleet.revise("left", 3)
    fleet.revise("left", 4, body=add_column("left_1", "a"))
    fleet.revise("left", 5, body=next_one)
    with holding(fleet, "LOCK TABLE left_1 IN ACCESS SHARE MODE"):
        process = fleet.start("migrate", "left", "--lock-timeout", "0")
        fleet.wait_until("left", WAITING, process)
        process.send_signal(signal.SIGINT)
        # Somebody is in its way still; nothing but the signal can have ended it.
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 1, errors
        assert "0003_left0003" in output
        assert "0004_left0004" not in output
        assert "interrupted" in output + errors
    assert [row[0] for row in history(fleet)] == ["left0001", "left0002", "left0003"]
    fleet.revise("left", 5)
    assert fleet.atriz("migrate", "left").returncode == 0
    assert len(history(fleet)) == 5


def test_ctrl_c_ends_the_wait_for_the_version_table(fleet: Tree) -> None:
    """The rows that go with a commit may wait as well, for whoever holds their table."""
    assert fleet.atriz("migrate").returncode == 0
    fleet.revise("left", 3)
    with holding(fleet, "LOCK TABLE alembic_version IN SHARE MODE"):
        process = fleet.start("migrate", "left", "--lock-timeout", "0")
        fleet.wait_until("left", WAITING, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    assert "interrupted" in output + errors
    assert [row[0] for row in history(fleet)] == ["left0001", "left0002"]


def test_a_revision_s_time_is_that_of_its_statements(fleet: Tree) -> None:
    """In the history and in what is told, though its code was through before the server had begun."""
    assert fleet.atriz("migrate").returncode == 0
    fleet.revise("left", 3, body=add_column("left_1", "a"))
    fleet.revise("left", 4)
    with holding(fleet, "LOCK TABLE left_1 IN ACCESS SHARE MODE") as holder:
        process = fleet.start("migrate", "left", "--lock-timeout", "0")
        fleet.wait_until("left", WAITING, process)
        holder.execute("SELECT pg_sleep(0.5)")
        holder.rollback()
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    (_, third), (_, fourth) = history(fleet)[2:]
    assert third >= 0.5
    assert fourth < third
    (line,) = [each for each in output.splitlines() if "0003_left0003" in each]
    assert f"{third:.2f} s" in line
