"""Seed files: what they get, what is said of them, what a failure leaves."""

from __future__ import annotations

import pytest
from tree import Tree


@pytest.fixture
def left(tree: Tree) -> Tree:
    """Return a repository with one migrated package that has a table left_1."""
    tree.add("left", requires=())
    tree.at_head()
    return tree


def test_each_file_has_a_line_with_what_the_server_counted(left: Tree) -> None:
    """The counts are the server's own, whatever the file believes; a second run inserts nothing."""
    left.revise("left", 2, "CREATE TABLE named (name text UNIQUE)")
    left.atriz("migrate")
    left.seed(
        "left", "002_b.py", "connection.execute('INSERT INTO left_1 SELECT 1 WHERE NOT EXISTS (SELECT FROM left_1)')"
    )
    left.seed(
        "left",
        "001_a.py",
        "for name in ('x', 'y'):\n"
        "    connection.execute('INSERT INTO named VALUES (%s) ON CONFLICT DO NOTHING', [name])",
    )
    lines = [line for line in left.atriz("seed").stdout.splitlines() if "seeded" in line]
    assert "001_a: named 2" in lines[0]
    assert "002_b: left_1 1" in lines[1]
    again = left.atriz("seed").stdout
    assert again.count("nothing new") == 2


def test_a_failing_file_keeps_nothing_and_stops_the_later_ones(left: Tree) -> None:
    """One transaction a file: those before it stay, its own rows go, and the line is named."""
    left.seed("left", "001_good.py", "connection.execute('INSERT INTO left_1 VALUES (1)')")
    path = left.seed(
        "left", "002_bad.py", "connection.execute('INSERT INTO left_1 VALUES (2)')\nconnection.execute('SELEC 1')"
    )
    left.seed("left", "003_later.py", "connection.execute('INSERT INTO left_1 VALUES (3)')")
    done = left.atriz("seed")
    assert done.returncode == 1
    assert f"{path}, line 3: syntax error" in done.stderr
    assert left.rows("left", "SELECT id FROM left_1") == [(1,)]


def test_is_skipped_in_production_with_a_warning(tree: Tree) -> None:
    """Development users never reach production; status 0, and it says so on stderr."""
    tree.add("left", requires=())
    tree.seed("left", "001_rows.py", "connection.execute('INSERT INTO left_1 VALUES (1)')")
    environ = {
        "APP_ENV": "production",
        "LEFT_DATABASE_URL": tree.server.with_database(tree.database("left")).text(secrets=True),
    }
    assert tree.atriz("create", **environ).returncode == 0
    done = tree.atriz("setup", **environ)
    assert done.returncode == 0, done.stderr
    assert "warning: left: not seeded" in done.stderr
    assert tree.rows("left", "SELECT * FROM left_1") == []


def test_a_file_without_the_function_is_named(left: Tree) -> None:
    """So is one that cannot be imported."""
    path = left.seed("left", "001_empty.py", "pass")
    path.write_text("rows = 1\n")
    assert "has no function seed(connection)" in left.atriz("seed").stderr
    path.write_text("import nowhere\n")
    assert f"{path}, line 1: ModuleNotFoundError" in left.atriz("seed").stderr


def test_before_migrating_it_says_so(tree: Tree) -> None:
    """A missing table most often means that the database was not migrated."""
    tree.add("left", requires=())
    tree.seed("left", "001_rows.py", "connection.execute('INSERT INTO left_1 VALUES (1)')")
    tree.atriz("create")
    done = tree.atriz("seed")
    assert done.returncode == 1
    assert "Has the database been migrated?" in done.stderr
