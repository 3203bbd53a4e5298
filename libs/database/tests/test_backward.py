"""rollback, clean, drop, reset: what they undo, what they say, what they refuse."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess

import psycopg
import pytest
from tree import Tree


@pytest.fixture
def set_up(fleet: Tree) -> Tree:
    """Return a repository whose three databases are at head, left with a row."""
    fleet.seed("left", "001_rows.py", "connection.execute('INSERT INTO left_1 VALUES (1)')")
    fleet.at_head()
    assert fleet.atriz("seed").returncode == 0
    return fleet


def production(tree: Tree, name: str) -> dict[str, str]:
    """Make the database of a package production's, and return the settings that belong to it."""
    with tree.connect(name) as connection:
        connection.execute("UPDATE atriz.label SET environment = 'production'")
    prefix, variable = name.upper(), "SHARED_DATABASE_URL" if name == "core" else "DATABASE_URL"
    url = tree.server.with_database(tree.database(name)).text(secrets=True)
    return {"APP_ENV": "production", f"{prefix}_{variable}": url}


def test_rollback_names_what_it_undoes_and_undoes_one(set_up: Tree) -> None:
    """The newest revision is named first, then undone; the history has a row of it, and migrate applies it again."""
    done = set_up.atriz("rollback", "left")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "undoing 0002_left0002" in lines[0]
    assert "undone" in lines[1]
    assert set_up.status()["left"]["current"] == ["left0001"]
    newest = set_up.rows("left", "SELECT revision, direction FROM atriz.history ORDER BY id DESC LIMIT 1")
    assert newest == [("left0002", "downgrade")]
    assert set_up.atriz("migrate").returncode == 0
    assert set_up.status()["left"]["state"] == "up-to-date"


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (("--count", "2"), []),
        (("--to", "left0001"), ["left0001"]),
        (("--to", "left0002"), ["left0002"]),
        (("--to", "base"), []),
    ],
)
def test_rollback_goes_as_far_as_it_is_told(set_up: Tree, arguments: tuple[str, ...], left: list[str]) -> None:
    """By a count, to a revision, to the beginning; to where it is already is nothing to do."""
    done = set_up.atriz("rollback", "left", *arguments)
    assert done.returncode == 0, done.stderr
    assert set_up.status()["left"]["current"] == left


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "nox -s rollback:left"),
        (("left", "--count", "3"), 1, "There are 2 revisions to undo, not 3"),
        (("left", "--to", "nowhere"), 1, "--to nowhere means 0 revisions"),
        (("left", "--count", "0"), 2, "1 or more"),
    ],
)
def test_rollback_refuses_what_it_cannot_do(set_up: Tree, arguments: tuple[str, ...], status: int, says: str) -> None:
    """Without a package, further than there is, to somewhere unknown: nothing is undone."""
    done = set_up.atriz("rollback", *arguments)
    assert done.returncode == status
    assert says in done.stderr
    assert set_up.status()["left"]["state"] == "up-to-date"


@pytest.mark.parametrize("verb", ["rollback", "clean", "drop", "reset"])
def test_production_is_refused_unless_the_database_is_named(set_up: Tree, verb: str) -> None:
    """Each destructive verb wants --force with the exact name, and says so; another name does not do."""
    environ = production(set_up, "left")
    yes = ("--yes",) if verb in ("drop", "reset") else ()
    for force in ((), ("--force", set_up.database("right")), ("--force", "left")):
        refused = set_up.atriz(verb, "left", *yes, *force, **environ)
        assert refused.returncode == 2
        assert f"atriz {verb} left --force {set_up.database('left')}" in refused.stderr
        assert set_up.rows("left", "SELECT * FROM left_1") == [(1,)]
    allowed = set_up.atriz(verb, "left", *yes, "--force", set_up.database("left"), **environ)
    assert allowed.returncode == 0, allowed.stderr


def test_plain_alembic_does_not_downgrade_production(set_up: Tree) -> None:
    """The guard stands on that path too."""
    environ = production(set_up, "left")
    done = set_up.alembic("left", "downgrade", "-1", **environ)
    assert done.returncode != 0
    assert "rollback is refused" in done.stderr + done.stdout
    assert set_up.rows("left", "SELECT version_num FROM alembic_version") == [("left0002",)]


def test_clean_empties_and_seed_works_at_once(set_up: Tree) -> None:
    """It says how many rows went; structure, label and history stay."""
    done = set_up.atriz("clean", "left")
    assert done.returncode == 0, done.stderr
    assert "left_1 1" in done.stdout
    assert set_up.rows("left", "SELECT * FROM left_1") == []
    assert set_up.rows("left", "SELECT count(*) FROM atriz.history") == [(2,)]
    assert set_up.atriz("seed", "left").returncode == 0
    assert set_up.rows("left", "SELECT * FROM left_1") == [(1,)]


def test_clean_of_the_fleet_goes_core_last(set_up: Tree) -> None:
    """What depends on core is emptied before core is."""
    cleaned = [line.split()[0] for line in set_up.atriz("clean").stdout.splitlines() if "  cleaned  " in line]
    assert sorted(cleaned) == ["core", "left", "right"]
    assert cleaned[-1] == "core"


def test_drop_and_reset_want_a_yes(set_up: Tree) -> None:
    """Where there is no terminal to ask on, --yes is needed; without it nothing is done."""
    for verb in ("drop", "reset"):
        refused = set_up.atriz(verb)
        assert refused.returncode == 2
        assert "--yes" in refused.stderr
    assert {row["state"] for row in set_up.status().values()} == {"up-to-date"}


def test_drop_removes_the_databases_core_last_and_twice_is_no_error(set_up: Tree) -> None:
    """Already gone is a result."""
    done = set_up.atriz("drop", "--yes")
    assert done.returncode == 0, done.stderr
    dropped = [line.split()[0] for line in done.stdout.splitlines() if "  dropped  " in line]
    assert dropped[-1] == "core"
    assert {row["state"] for row in set_up.status().values()} == {"missing"}
    again = set_up.atriz("drop", "--yes")
    assert again.returncode == 0
    assert again.stdout.count("not there") == 3


@pytest.mark.parametrize("verb", ["setup", "reset --yes", "drop --yes"])
def test_what_is_left_of_a_drop_that_was_cut_off_is_no_database(set_up: Tree, verb: str) -> None:
    """PostgreSQL marks it and lets nobody in: it counts as missing, and is made anew or goes."""
    with psycopg.connect(**dict(set_up.server.parameters), autocommit=True) as connection:
        query = "UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s"
        connection.execute(query, [set_up.database("left")])
    assert set_up.status()["left"]["state"] == "missing"
    done = set_up.atriz(*verb.split())
    assert done.returncode == 0, done.stderr
    assert set_up.exists("left") == (verb != "drop --yes")
    if verb == "drop --yes":
        with psycopg.connect(**dict(set_up.server.parameters)) as connection:
            query = "SELECT FROM pg_database WHERE datname = %s"
            assert connection.execute(query, [set_up.database("left")]).fetchone() is None
    else:
        assert set_up.rows("left", "SELECT count(*) > 0 FROM left_1") == [(True,)]


def test_drop_names_who_is_connected_and_ends_them_only_when_told(set_up: Tree) -> None:
    """Pid and application of each; --force-connections ends them."""
    parameters = {**set_up.target("left").url.parameters, "application_name": "a worried app"}
    with psycopg.connect(**parameters) as visitor:
        pid = visitor.info.backend_pid
        refused = set_up.atriz("drop", "left", "--yes")
        assert refused.returncode == 1
        assert f"pid {pid} (a worried app" in refused.stderr
        assert set_up.exists("left")
        done = set_up.atriz("drop", "left", "--yes", "--force-connections")
        assert done.returncode == 0, done.stderr
        assert f"ending the connections of pid {pid} (a worried app" in done.stdout
        with pytest.raises(psycopg.OperationalError):
            visitor.execute("SELECT 1")
    assert not set_up.exists("left")


def test_drop_waits_a_moment_for_those_who_are_leaving(set_up: Tree) -> None:
    """Whoever closes a connection just when somebody looks for others is no reason to refuse."""
    looking = """
        SELECT count(*) > 0 FROM pg_stat_activity
        WHERE application_name LIKE 'atriz drop%' AND query LIKE '%usesysid%'
    """
    with psycopg.connect(**dict(set_up.target("left").url.parameters)):
        process = set_up.start("drop", "left", "--yes")
        set_up.wait_until("core", looking, process)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "dropped" in output
    assert not set_up.exists("left")


def test_reset_leaves_a_new_seeded_database(set_up: Tree) -> None:
    """What was added by hand is gone, what the seeds give is there; the others are not touched."""
    with set_up.connect("left") as connection:
        connection.execute("INSERT INTO left_1 VALUES (2)")
    with set_up.connect("right") as connection:
        connection.execute("INSERT INTO right_1 VALUES (3)")
    done = set_up.atriz("reset", "left", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert [act["what"] for act in row["acts"]] == ["dropped", "created", "applied", "applied", "seeded"]
    assert set_up.rows("left", "SELECT * FROM left_1") == [(1,)]
    assert set_up.rows("right", "SELECT * FROM right_1") == [(3,)]


@pytest.mark.parametrize(("answer", "left"), [("n", True), ("", True), ("yes", False)])
def test_drop_asks_at_a_terminal(set_up: Tree, answer: str, left: bool) -> None:
    """The question names the database; only a yes drops it."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        set_up.command("drop", "left"),
        cwd=set_up.root,
        env={**set_up.environ, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = ""
    while "[y/N]" not in shown:
        shown += os.read(ours, 4096).decode()
    os.write(ours, f"{answer}\n".encode())
    with contextlib.suppress(OSError):  # The end of a terminal is an error on Linux.
        while os.read(ours, 4096):
            pass
    os.close(ours)
    process.wait(timeout=30)
    assert f"drop destroys all data of {set_up.database('left')}" in shown
    assert set_up.exists("left") is left
