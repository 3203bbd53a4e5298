"""Plain `alembic` in a package's folder: the same URL, label check, lock, transactions and history as `atriz`."""

from __future__ import annotations

import pytest
from tree import Tree

from atriz_database import lock


@pytest.fixture
def created(fleet: Tree) -> Tree:
    """Return the repository with core and left created, nothing migrated."""
    assert fleet.atriz("create").returncode == 0
    return fleet


def test_upgrade_finds_the_url_and_writes_history(created: Tree) -> None:
    """`alembic upgrade head` needs no setting, and leaves what `atriz migrate` would."""
    done = created.alembic("left", "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert "upgrade 0002_left0002" in done.stdout
    rows = created.rows("left", "SELECT revision, direction FROM atriz.history ORDER BY id")
    assert rows == [("left0001", "upgrade"), ("left0002", "upgrade")]
    assert created.status()["left"]["state"] == "up-to-date"


def test_downgrade_and_stamp_are_in_the_history(created: Tree) -> None:
    """Every way to move a database's version leaves a row that says which way."""
    for arguments in (("upgrade", "head"), ("downgrade", "-1"), ("stamp", "head")):
        done = created.alembic("left", *arguments)
        assert done.returncode == 0, done.stderr
    rows = created.rows("left", "SELECT revision, direction FROM atriz.history ORDER BY id")
    assert rows[2:] == [("left0002", "downgrade"), ("left0002", "stamp")]


def test_current_history_and_check_change_nothing(created: Tree) -> None:
    """The reading commands work and write no history."""
    created.alembic("left", "upgrade", "head")
    assert "left0002 (head)" in created.alembic("left", "current").stdout
    assert "left0001 -> left0002" in created.alembic("left", "history").stdout
    check = created.alembic("left", "check")
    assert "No new upgrade operations detected" in check.stdout
    assert created.rows("left", "SELECT count(*) FROM atriz.history") == [(2,)]


def test_refuses_a_database_of_another_environment(created: Tree) -> None:
    """The label is checked on this path too, in one line and without a traceback."""
    done = created.alembic("left", "upgrade", "head", APP_ENV="test")
    assert done.returncode != 0
    assert "labelled left/development" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert created.rows("left", "SELECT to_regclass('left_1')") == [(None,)]


def test_waits_for_the_lock_of_the_database(created: Tree) -> None:
    """While another run holds the lock, plain alembic waits, and goes on when it is free."""
    import subprocess
    import sys

    with lock.held(created.target("left")):
        process = subprocess.Popen(
            [sys.executable, "-m", "alembic", "upgrade", "head"],
            cwd=created.folders["left"],
            env=created.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with created.connect("left") as connection:
            query = """
                SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND application_name LIKE 'atriz lock%'
            """
            while connection.execute(query).fetchone() != (2,):
                assert process.poll() is None, process.communicate()
        assert process.poll() is None
        assert created.rows("left", "SELECT to_regclass('left_1')") == [(None,)]
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "upgrade 0002_left0002" in output


def test_shows_a_failed_revision_in_one_message(created: Tree) -> None:
    """File, line and caret, as with atriz."""
    created.revise("left", 3, "SELECT 1 FROM nowhere")
    done = created.alembic("left", "upgrade", "head")
    assert done.returncode != 0
    assert "0003_left0003.py, line 11" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("labelled", [True, False])
def test_offline_sql_holds_the_history_rows(created: Tree, labelled: bool) -> None:
    """SQL for a DBA (`--sql`) needs no server, runs on an empty database too, and records what it does."""
    if not labelled:
        with created.connect("left") as connection:
            connection.execute("DROP SCHEMA atriz CASCADE")
    done = created.alembic("left", "upgrade", "head", "--sql", PGHOST="192.0.2.1")
    assert done.returncode == 0, done.stderr
    assert "CREATE TABLE left_1" in done.stdout
    assert done.stdout.count("INSERT INTO atriz.history") == 2
    with created.connect("left") as connection:
        connection.execute(done.stdout.encode())
    assert created.status()["left"]["state"] == "up-to-date"
    assert created.status()["left"]["edited"] == []
