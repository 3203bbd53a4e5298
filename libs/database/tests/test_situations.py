"""Every verb in every situation ends as the table of docs/situations.md says."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from tree import Tree

from atriz_database import databases

pytestmark = pytest.mark.gate

_DOCUMENT = Path(__file__).parents[3] / "docs" / "situations.md"
# In an order in which one does not spoil the next: those that only look first, drop last.
_VERBS = (
    "status", "plan", "check", "verify", "env", "label", "graph", "repair left", "new left words",
    "new left words --empty", "create", "migrate", "seed", "setup", "grant", "stamp left head", "clean", "reset --yes",
    "rollback left", "drop --yes",
)  # fmt: skip
_CHANGED = """
    SELECT (SELECT array_agg(version_num) FROM alembic_version), (SELECT count(*) FROM atriz.history),
           (SELECT count(*) FROM left_1), (SELECT environment FROM atriz.label)
"""


def documented() -> dict[str, dict[str, str]]:
    """Return the table: for each situation what each verb exits with."""
    rows = [
        [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        for line in _DOCUMENT.read_text().splitlines()
        if line.startswith("|")
    ]
    header, _, *body = rows
    return {situation: {row[0]: row[i] for row in body} for i, situation in enumerate(header) if i > 0}


def prepare(tree: Tree, situation: str) -> None:
    """Bring the repository and its databases into a situation."""
    if situation == "databases missing":
        return
    tree.at_head()
    if situation == "server down":
        tree.environ |= {"PGHOST": "127.0.0.1", "PGPORT": "1"}
    if situation in ("production", "another environment"):
        for name in tree.folders:
            if situation == "production":
                with tree.connect(name) as connection:
                    connection.execute("UPDATE atriz.label SET environment = 'production'")
            variable = "SHARED_DATABASE_URL" if name == "core" else "DATABASE_URL"
            url = tree.server.with_database(tree.database(name)).text(secrets=True)
            tree.environ[f"{name.upper()}_{variable}"] = url
        tree.environ["APP_ENV"] = "production" if situation == "production" else "test"
    if situation == "broken revision":
        path = tree.revise("left", 3)
        path.write_text(path.read_text() + "\ndef broken(:\n")


def take_away(tree: Tree) -> None:
    """Remove every database, and what the verb before has written into the repository."""
    for name, folder in tree.folders.items():
        databases.drop(tree.target(name), force_connections=True)
        shutil.rmtree(folder / "migrations" / "versions")
        (folder / "migrations" / "versions").mkdir()
        for number in (1, 2):
            tree.revise(name, number)


@pytest.mark.parametrize(
    "situation",
    [
        "databases missing", "at head", "second run", "server down", "another environment", "production",
        "broken revision",
    ],
)  # fmt: skip
def test_every_verb_ends_as_documented(fleet: Tree, situation: str) -> None:
    """The exit status is the table's, --json prints one document, --quiet nothing, and there is no traceback."""
    prepare(fleet, situation)
    expected = documented()[situation]
    found = {}
    for verb in _VERBS:
        if situation == "databases missing":
            take_away(fleet)
        if situation == "second run":
            quiet = fleet.atriz(*verb.split(), "--quiet")
            assert (quiet.returncode, quiet.stdout) == (0, ""), (verb, quiet.stderr)
        done = fleet.atriz(*verb.split(), "--json")
        found[verb] = str(done.returncode)
        assert "Traceback" not in done.stderr, (verb, done.stderr)
        assert "defect" not in done.stderr, (verb, done.stderr)
        json.loads(done.stdout)
        if done.returncode in (1, 2):
            assert done.stderr.strip(), verb
    if os.environ.get("ATRIZ_SHOW"):
        print(situation, found)  # noqa: T201
    assert found == expected


# What keeps each verb waiting, in the middle of what it does: one that only looks at the version table, one that
# changes something at its last statement. Verbs that are not here ask no server.
_HELD_UP = {
    "status": "LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE",
    "plan": "LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE",
    "check": "LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE",
    "label": "LOCK TABLE atriz.label IN ACCESS EXCLUSIVE MODE",
    "label left --environment test --force DATABASE": "LOCK TABLE atriz.label IN SHARE MODE",
    "repair left": "LOCK TABLE atriz.history IN ACCESS EXCLUSIVE MODE",
    "repair left --yes": "LOCK TABLE atriz.history IN SHARE MODE",
    "new left words": "LOCK TABLE alembic_version IN ACCESS EXCLUSIVE MODE",
    "migrate": "LOCK TABLE left_1 IN ACCESS SHARE MODE",
    "seed": "LOCK TABLE left_1 IN SHARE MODE",
    "setup": "LOCK TABLE left_1 IN ACCESS SHARE MODE",
    "grant": "LOCK TABLE left_1 IN ACCESS SHARE MODE",
    "stamp left head": "LOCK TABLE alembic_version IN SHARE MODE",
    "clean": "LOCK TABLE left_1 IN ACCESS SHARE MODE",
    "rollback left": "LOCK TABLE left_2 IN ACCESS SHARE MODE",
}
_ON_DATABASES = ("create", "drop --yes", "reset --yes")


def test_every_verb_that_asks_a_server_is_shown_interrupted() -> None:
    """The table's column names the verbs that the two tests below interrupt, and no other."""
    expected = {verb for verb, status in documented()["interrupted"].items() if status == "1"}
    # That verify takes its own databases away is shown in test_verify.py.
    assert {*_HELD_UP, *_ON_DATABASES, "verify"} >= expected
    assert set(documented()["interrupted"].values()) == {"1", "-"}


@pytest.mark.parametrize("verb", [*_HELD_UP])
def test_every_verb_can_be_interrupted(fleet: Tree, verb: str) -> None:
    """SIGTERM while a statement of it waits: cancelled, undone, said as one JSON document, and no session left."""
    fleet.seed("left", "001_rows.py", "connection.execute('INSERT INTO left_1 VALUES (1)')")
    fleet.at_head()
    if verb in ("migrate", "setup", "stamp left head"):
        fleet.revise("left", 3, "ALTER TABLE left_1 ADD note text")
    if verb.startswith("repair"):
        path = next(fleet.folders["left"].rglob("0001*.py"))
        path.write_text(path.read_text() + "\n# Edited.\n")
    if verb.startswith("new"):
        fleet.models("left", 3)
    before = fleet.rows("left", _CHANGED)
    files = sorted(fleet.root.rglob("versions/*.py"))
    with fleet.connect("left") as holder, ExitStack() as held:
        held.enter_context(holder.transaction())
        holder.execute(_HELD_UP[verb].encode())
        process = fleet.start(*verb.replace("DATABASE", fleet.database("left")).split(), "--json")
        waiting = f"""
            SELECT count(*) > 0 FROM pg_stat_activity
            WHERE datname = '{fleet.database("left")}' AND application_name LIKE 'atriz%' AND wait_event_type = 'Lock'
        """
        fleet.wait_until("core", waiting, process)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
        at_work = f"""
            SELECT count(*) = 0 FROM pg_stat_activity
            WHERE datname = '{fleet.database("left")}' AND application_name LIKE 'atriz%' AND state = 'active'
        """
        fleet.wait_until("core", at_work)
    assert process.returncode == 1
    assert "interrupted" in errors
    assert "Traceback" not in errors
    json.loads(output)
    assert fleet.rows("left", _CHANGED) == before
    assert sorted(fleet.root.rglob("versions/*.py")) == files


@pytest.mark.parametrize("verb", _ON_DATABASES)
def test_verbs_on_whole_databases_can_be_interrupted(fleet: Tree, verb: str) -> None:
    """SIGTERM while the server makes or drops a database: it is whole or it is not there, and it is said."""
    if verb == "create":
        assert fleet.atriz("create", "core").returncode == 0
    else:
        fleet.at_head()
    maintenance = databases.maintenance(fleet.target("core"))
    with maintenance as holder, ExitStack() as held:
        held.enter_context(holder.transaction())
        # The catalog of databases can be read and not changed: nobody on this server makes or drops one meanwhile.
        holder.execute("LOCK TABLE pg_database IN SHARE MODE")
        process = fleet.start(*verb.replace("--yes", "left --yes").split(), "--json")
        waiting = f"""
            SELECT count(*) > 0 FROM pg_stat_activity
            WHERE query LIKE '%DATABASE%{fleet.database("left")}%' AND wait_event_type = 'Lock'
        """
        fleet.wait_until("core", waiting, process)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "interrupted" in errors
    assert "Traceback" not in errors
    json.loads(output)
    if verb == "create":
        assert not fleet.exists("left")
    else:
        assert fleet.rows("left", "SELECT count(*) FROM alembic_version") == [(1,)]
