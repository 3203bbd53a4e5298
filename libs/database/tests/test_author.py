"""new, plan, stamp, repair, label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tree import Tree


@pytest.fixture
def left(tree: Tree) -> Tree:
    """Return a repository with one package at head, whose models agree with its database."""
    tree.add("left", requires=(), revisions=2)
    tree.at_head()
    return tree


def written(tree: Tree, name: str) -> list[Path]:
    """Return the revision files that the tree did not have at first."""
    versions = tree.folders[name] / "migrations" / "versions"
    return sorted(path for path in versions.glob("[!0]*.*") if path.suffix in (".py", ".sql"))


def test_new_says_that_nothing_has_changed_and_writes_nothing(left: Tree) -> None:
    """No empty revision lands in the history by accident."""
    done = left.atriz("new", "left", "nothing")
    assert done.returncode == 0, done.stderr
    assert "models and database agree; nothing was written" in done.stdout
    assert written(left, "left") == []


def test_new_writes_the_difference_and_a_second_one_finds_none(left: Tree) -> None:
    """The written revision applies, and right after it there is no difference left; the head file has moved."""
    left.models("left", 3)
    done = left.atriz("new", "left", "add a third")
    assert done.returncode == 0, done.stderr
    (path,) = written(left, "left")
    assert "create_table('left_3'" in path.read_text()
    assert str(path.relative_to(left.root)) in done.stdout
    head = (left.folders["left"] / "migrations" / "head").read_text()
    assert head.split()[1] == path.stem
    assert left.atriz("migrate").returncode == 0
    assert "nothing was written" in left.atriz("new", "left", "again").stdout


def test_new_wants_the_database_at_head(left: Tree) -> None:
    """A difference from something older would write what is written already."""
    left.revise("left", 3)
    done = left.atriz("new", "left", "too early")
    assert done.returncode == 1
    assert "pending" in done.stderr
    assert "atriz migrate left" in done.stderr


def test_new_leaves_alone_a_table_that_no_revision_made(left: Tree) -> None:
    """A table of somebody else is named, not dropped; with --allow-drop it is."""
    with left.connect("left") as connection:
        connection.execute("CREATE TABLE theirs (id int)")
    done = left.atriz("new", "left", "nothing")
    assert "left alone: table theirs" in done.stdout
    assert written(left, "left") == []
    assert left.atriz("new", "left", "drop theirs", "--allow-drop").returncode == 0
    (path,) = written(left, "left")
    assert "drop_table('theirs')" in path.read_text()


def test_new_empty_and_sql_need_no_database(left: Tree) -> None:
    """An empty one has no body; a plain SQL one has a file of two parts beside it, and applies comments and all."""
    down = {"PGHOST": "127.0.0.1", "PGPORT": "1"}
    assert left.atriz("new", "left", "by hand", "--empty", **down).returncode == 0
    assert left.atriz("new", "left", "in SQL", "--sql", **down).returncode == 0
    assert sorted(path.suffix for path in written(left, "left")) == [".py", ".py", ".sql"]
    body = next(path for path in written(left, "left") if path.suffix == ".sql")
    body.write_text(
        "-- migrate:up\n-- 100% :kept\nCREATE TABLE in_sql (id int);\n-- migrate:down\nDROP TABLE in_sql;\n"
    )
    assert left.atriz("migrate").returncode == 0
    assert left.rows("left", "SELECT to_regclass('in_sql')::text") == [("in_sql",)]
    assert left.rows("left", "SELECT count(*) FROM atriz.history WHERE source LIKE '%-- 100\\% :kept%'") == [(1,)]
    assert left.atriz("rollback", "left").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "nox -s new:left"), (("left",), "needs a message"), (("lift", "x"), "Did you mean left?")],
)
def test_new_needs_a_package_and_a_message(left: Tree, arguments: tuple[str, ...], says: str) -> None:
    """Status 1 or 2 and a message that says what is missing."""
    done = left.atriz("new", *arguments)
    assert done.returncode in (1, 2)
    assert says in done.stderr


def test_plan_shows_every_pending_revision_with_its_operations(fleet: Tree) -> None:
    """In the order of migrate, over all databases, the SQL on --sql; nothing is changed, no lock is taken."""
    fleet.revise("left", 3, body="op.get_bind().execute(None)")
    done = fleet.atriz("plan", "--sql")
    assert done.returncode == 0, done.stderr
    order = [
        "0001_core0001",
        "CREATE TABLE core_1",
        "0002_core0002",
        "0001_left0001",
        "0003_left0003",
        "0002_right0002",
    ]
    places = [done.stdout.index(text) for text in order]
    assert places == sorted(places)
    assert "cannot be rendered without a database" in done.stdout
    assert {row["state"] for row in fleet.status().values()} == {"missing"}
    rows = json.loads(fleet.atriz("plan", "--json").stdout)
    assert [step["operations"] for step in rows[0]["pending"]] == [["CREATE TABLE core_1"], ["CREATE TABLE core_2"]]


def test_plan_on_what_is_at_head_is_empty(left: Tree) -> None:
    """Nothing pending is said, with status 0."""
    done = left.atriz("plan")
    assert done.returncode == 0
    assert "up-to-date" in done.stdout


def test_stamp_adopts_a_database_that_something_else_made(tree: Tree) -> None:
    """Afterwards migrate goes on from there, and the history says that it was stamped."""
    tree.add("left", requires=(), revisions=2)
    tree.atriz("create")
    with tree.connect("left") as connection:
        connection.execute("CREATE TABLE left_1 (id int)")
    assert tree.status()["left"]["state"] == "unversioned"
    done = tree.atriz("stamp", "left", "left0001")
    assert done.returncode == 0, done.stderr
    assert tree.atriz("migrate").returncode == 0
    rows = tree.rows("left", "SELECT revision, direction FROM atriz.history ORDER BY id")
    assert rows == [("left0001", "stamp"), ("left0002", "upgrade")]


def test_repair_shows_the_edit_and_accepts_it_on_yes(left: Tree) -> None:
    """The text that was applied is kept, so that the difference can be shown; status 3 until it is accepted."""
    path = left.folders["left"] / "migrations" / "versions" / "0001_left0001.py"
    path.write_text(path.read_text() + "# an afterthought\n")
    shown = left.atriz("repair", "left")
    assert shown.returncode == 3
    assert "+# an afterthought" in shown.stdout
    assert left.status()["left"]["edited"] == ["left0001"]
    assert left.atriz("repair", "left", "--yes").returncode == 0
    assert left.status()["left"]["edited"] == []
    assert left.atriz("repair", "left").returncode == 0


def test_label_shows_and_changes_with_the_exact_name(left: Tree) -> None:
    """A copy of production's data becomes development's, after naming the database."""
    assert "left/development" in left.atriz("label").stdout
    refused = left.atriz("label", "left", "--environment", "test")
    assert refused.returncode == 2
    assert f"--force {left.database('left')}" in refused.stderr
    done = left.atriz("label", "left", "--environment", "test", "--force", left.database("left"))
    assert done.returncode == 0, done.stderr
    assert "left/development -> left/test" in done.stdout
    assert left.atriz("migrate").returncode == 2
    assert left.atriz("migrate", APP_ENV="test").returncode == 0


def test_two_branches_that_each_add_a_revision_conflict_in_the_head_file(left: Tree) -> None:
    """Git itself says that two histories have to be put in order, where it would merge two new files in silence."""
    import subprocess

    def git(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=left.root, capture_output=True, text=True, check=check
        )

    left.atriz("new", "left", "common", "--empty")
    for arguments in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-qm", "start")):
        git(*arguments)
    for branch in ("one", "two"):
        git("checkout", "-q", "-b", branch, "main")
        assert left.atriz("new", "left", branch, "--empty").returncode == 0
        git("add", ".")
        git("commit", "-qm", branch)
    merged = git("merge", "one", check=False)
    assert merged.returncode != 0
    assert "CONFLICT (content): Merge conflict in apps/left/migrations/head" in merged.stdout
