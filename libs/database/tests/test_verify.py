"""verify: each revision up, down and up again in a scratch database; and revisions that say they cannot be undone."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from tree import Tree

from atriz_database import databases, revisions
from atriz_database.errors import RevisionError
from atriz_database.url import DatabaseURL


@pytest.fixture
def name(tree: Tree) -> str:
    """Return the name of a package with one good revision, which no other test has: scratch databases are named so."""
    name = f"p{tree.suffix}"
    tree.add(name, requires=(), revisions=1)
    return name


def revise(tree: Tree, name: str, number: int, up: str, down: str) -> Path:
    """Write a revision with SQL of its own for the way down."""
    path = tree.revise(name, number, up)
    path.write_text(path.read_text().replace(f"'DROP TABLE {name}_{number}'", repr(down)))
    return path


def keep(path: Path, reason: str = "the old values are gone") -> None:
    """Let a revision say that it cannot be undone."""
    path.write_text(f"{path.read_text()}\n\nirreversible = {reason!r}\n")


def verify(tree: Tree, *arguments: str, **environ: str) -> tuple[int, list[tuple[str, str, str]], str]:
    """Return the status of `verify`, what it did as (what, subject, detail), and what it wrote on stderr."""
    done = tree.atriz("verify", "--json", *arguments, **environ)
    assert "Traceback" not in done.stderr
    acts = [act for row in json.loads(done.stdout) for act in row["acts"]]
    return done.returncode, [(act["what"], act["subject"], act["detail"]) for act in acts], done.stderr


def scratches(tree: Tree, name: str) -> list[str]:
    """Return the scratch databases of a package that are on the server."""
    with databases.maintenance(tree.target(name)) as connection:
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
        return [row[0] for row in connection.execute(query, [f"atriz_scratch_{name}_"])]


def test_good_revisions_are_verified_without_any_database(fleet: Tree) -> None:
    """Each is named, the status is 0, and no package's database is made."""
    done = fleet.atriz("verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  verified  ") == 6
    assert "0002_left0002" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("6 revisions verified")
    assert not any(fleet.exists(each) for each in fleet.folders)


def test_a_package_brings_what_it_depends_on_unless_told_not_to(fleet: Tree) -> None:
    """As migrate does."""
    assert len(verify(fleet, "left")[1]) == 4
    assert len(verify(fleet, "left", "--only")[1]) == 2


# In an order in which each can be done after those before it, {t} being the table of the first revision.
_LEFT_BEHIND = [
    ("CREATE TABLE u (id int)", "DROP TABLE u; DROP TABLE {t}", "table {t} is gone and was there: TABLE"),
    ("CREATE TABLE t (id int, n int); COMMENT ON TABLE t IS 'x'", "SELECT", "table t is there and was not"),
    ("ALTER TABLE {t} ADD n int", "SELECT", "column {t}.n is there and was not"),
    ("ALTER TABLE {t} ALTER n TYPE bigint", "SELECT", "column {t}.n is bigint and was integer"),
    ("ALTER TABLE {t} ALTER id SET DEFAULT 1", "SELECT", "column {t}.id is integer DEFAULT 1 and was integer"),
    ("ALTER TABLE {t} ADD CONSTRAINT c CHECK (id > 0)", "SELECT", "constraint {t}.c is there and was not"),
    ("CREATE INDEX i ON {t} (id)", "SELECT", "index i is there and was not"),
    ("COMMENT ON COLUMN {t}.id IS 'x'", "SELECT", "comment column {t}.id is there and was not"),
    ("CREATE SEQUENCE s", "SELECT", "sequence s is there and was not"),
    ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "SELECT", "function f() is there and was not"),
    (
        "CREATE TRIGGER g BEFORE UPDATE ON {t} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "SELECT",
        "trigger {t}.g is there and was not",
    ),
    ("GRANT SELECT ON {t} TO PUBLIC", "SELECT", "grant table {t} to PUBLIC is there and was not"),
    ("CREATE TYPE e AS ENUM ('a')", "SELECT", "enum e is there and was not"),
    ("CREATE VIEW v AS SELECT id FROM {t}", "SELECT", "view v is there and was not"),
    ("ALTER TABLE {t} ENABLE ROW LEVEL SECURITY", "SELECT", "setting {t} is there and was not"),
    ("CREATE POLICY p ON {t}", "SELECT", "policy {t}.p is there and was not"),
]


def test_what_a_down_leaves_behind_is_named(tree: Tree, name: str) -> None:
    """Package, revision and object; what belongs to a forgotten table is not told of beside it."""
    table = f"{name}_1"
    for number, (up, down, _) in enumerate(_LEFT_BEHIND, 2):
        revise(tree, name, number, up.replace("{t}", table), down.replace("{t}", table))
    status, (first, *acts), errors = verify(tree)
    assert (status, first) == (3, ("verified", f"0001_{name}0001", ""))
    for number, (act, (_, _, says)) in enumerate(zip(acts, _LEFT_BEHIND, strict=True), 2):
        what, subject, detail = act
        assert (what, subject) == ("found", f"{number:04}_{name}{number:04}")
        assert detail.startswith(f"after up, down: {says.replace('{t}', table)}")
    assert f"{len(acts)} of {len(acts) + 1} revisions did not go up, down and up again" in errors
    assert scratches(tree, name) == []


def test_a_changed_function_is_shown_as_a_difference(tree: Tree, name: str) -> None:
    """Which lines are others than before."""
    function = "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT {}'"
    revise(tree, name, 2, function.format(1), "DROP FUNCTION f()")
    revise(tree, name, 3, function.format(2), "SELECT")
    _, acts, _ = verify(tree)
    (text,) = [detail for what, _, detail in acts if what == "found"]
    assert text.startswith("after up, down: function f() is another\n")
    assert "\n    -AS $function$SELECT 1$function$\n    +AS $function$SELECT 2$function$" in text


def test_every_revision_is_tried_whatever_is_wrong_with_those_below(tree: Tree, name: str) -> None:
    """A down that fails is a finding with the server's message; the next revision begins from a clean database."""
    revise(tree, name, 2, f"CREATE TABLE {name}_2 (id int)", "DROP TABLE nowhere")
    revise(tree, name, 3, f"CREATE TABLE {name}_3 (id int); CREATE TABLE forgotten (id int)", f"DROP TABLE {name}_3")
    revise(tree, name, 4, f"ALTER TABLE {name}_3 ADD n int", f"ALTER TABLE {name}_3 DROP n")
    status, acts, errors = verify(tree)
    assert status == 3
    assert [what for what, _, _ in acts] == ["verified", "found", "found", "verified"]
    assert acts[1][2].startswith(f"down: {tree.folders[name]}")
    assert 'table "nowhere" does not exist (42P01)' in acts[1][2]
    assert acts[2][2] == "after up, down: table forgotten is there and was not"
    assert "2 of 4 revisions did not" in errors


def test_what_stands_above_a_revision_that_cannot_be_applied_is_not_tried(tree: Tree, name: str) -> None:
    """It says how many those are."""
    tree.revise(name, 2, "SELECT 1/0")
    tree.revise(name, 3)
    status, acts, errors = verify(tree)
    assert status == 3
    assert [what for what, _, _ in acts] == ["verified", "found"]
    assert acts[1][2].startswith("up: ")
    assert "division by zero" in acts[1][2]
    assert "1 of 3 revisions did not" in errors
    assert "; 1 above the last of them could not be tried" in errors


def test_a_second_way_up_that_makes_something_else_or_fails_is_found(tree: Tree, name: str) -> None:
    """As where it depends on rows that the way down has left."""
    table = f"{name}_1"
    make = "IF EXISTS (SELECT FROM {0}) THEN CREATE INDEX i ON {0} (id); END IF; INSERT INTO {0} VALUES (1)"
    revise(tree, name, 2, f"DO $$ BEGIN {make.format(table)}; END $$", "DROP INDEX IF EXISTS i")
    once = f"INSERT INTO {table} VALUES (7); ALTER TABLE {table} ADD CONSTRAINT u UNIQUE (id)"
    revise(tree, name, 3, once, f"ALTER TABLE {table} DROP CONSTRAINT u")
    status, acts, _ = verify(tree)
    assert status == 3
    assert acts[1] == ("found", f"0002_{name}0002", "after up, down, up: index i is there and was not")
    assert acts[2][2].startswith("up again: ")
    assert "could not create unique index" in acts[2][2]


def test_revisions_are_loaded_once_however_many_there_are(tree: Tree, name: str, tmp_path: Path) -> None:
    """Each way up and down of each revision is one step of one run."""
    path = tree.revise(name, 2)
    count = tmp_path / "loaded"
    path.write_text(f"{path.read_text()}\n\nwith open({str(count)!r}, 'a') as file:\n    file.write('x')\n")
    tree.revise(name, 3)
    assert verify(tree)[0] == 0
    assert count.read_text() == "x"


def test_branches_and_their_merge_are_verified(tree: Tree, name: str) -> None:
    """A merge that is undone leaves both branches, and each branch the others."""
    tree.revise(name, 2, id_="one", down=f"{name}0001")
    tree.revise(name, 3, id_="two", down=f"{name}0001")
    path = revise(tree, name, 4, "SELECT 1", "SELECT 1")
    path.write_text(path.read_text().replace(f"= '{name}0003'", "= ('one', 'two')"))
    status, acts, errors = verify(tree)
    assert (status, len(acts)) == (0, 4), errors


def test_an_extension_may_stay(tree: Tree, name: str) -> None:
    """What else has come to need it would go with it."""
    revise(tree, name, 2, "CREATE EXTENSION IF NOT EXISTS citext", "SELECT")
    assert verify(tree)[0] == 0


def test_own_transactions_are_verified_as_well(tree: Tree, name: str) -> None:
    """CREATE INDEX CONCURRENTLY goes up, down, and up again."""
    block = "with op.get_context().autocommit_block():\n        op.execute('{} INDEX CONCURRENTLY {}')"
    path = tree.revise(name, 2, body=block.format("CREATE", f"i ON {name}_1 (id)"))
    path.write_text(path.read_text().replace(f"op.execute('DROP TABLE {name}_2')", block.format("DROP", "i")))
    status, acts, errors = verify(tree)
    assert (status, len(acts)) == (0, 2), errors


def test_a_revision_that_cannot_be_undone_is_not_taken_down(tree: Tree, name: str) -> None:
    """Its reason is said, and those below and above it are verified all the same."""
    keep(revise(tree, name, 2, f"ALTER TABLE {name}_1 ALTER id TYPE bigint", "SELECT 1/0"))
    tree.revise(name, 3)
    status, acts, errors = verify(tree)
    assert status == 0, errors
    assert acts == [
        ("verified", f"0001_{name}0001", ""),
        ("verified", f"0002_{name}0002", "not taken down: the old values are gone"),
        ("verified", f"0003_{name}0003", ""),
    ]


@pytest.mark.parametrize("reason", ["", "  ", 7, ["x"]])
def test_irreversible_without_a_reason_is_an_error(tmp_path: Path, reason: object) -> None:
    """A word of why is asked for, as text that can be read without running the file."""
    path = tmp_path / "1.py"
    path.write_text(f"irreversible = {reason!r}\n")
    with pytest.raises(RevisionError, match=r'1\.py needs a reason why it cannot be undone: irreversible = "reason"'):
        revisions.irreversible(revisions.Revision("1", (), str(path)))
    path.write_text("irreversible = str(1)\n")
    with pytest.raises(RevisionError, match="read without running the file"):
        revisions.irreversible(revisions.Revision("1", (), str(path)))


@pytest.mark.parametrize("how", ["atriz", "alembic", "alembic --sql"])
@pytest.mark.parametrize("far", ["onto", "through"])
def test_nothing_is_undone_if_one_of_them_cannot_be(tree: Tree, name: str, how: str, far: str) -> None:
    """Neither by rollback nor by plain alembic: the message has the reason, and what stands above it stays."""
    keep(revise(tree, name, 2, f"ALTER TABLE {name}_1 ALTER id TYPE bigint", "SELECT"))
    top = 2
    if far == "through":
        tree.revise(name, 3)
        top = 3
    assert tree.atriz("migrate").returncode == 0
    if how == "atriz":
        done = tree.atriz("rollback", name, "--count", str(top))
        assert done.returncode == 1
        assert "undoing" not in done.stdout
    elif how == "alembic":
        done = tree.alembic(name, "downgrade", "base")
        assert done.returncode == 255
    else:
        done = tree.alembic(name, "downgrade", f"{name}{top:04}:base", "--sql")
        assert done.returncode == 255
        assert "DELETE" not in done.stdout
    said = done.stdout + done.stderr
    assert f"0002_{name}0002 ({name}0002) cannot be undone: the old values are gone. Nothing was undone." in said
    assert tree.status()[name]["current"] == [f"{name}{top:04}"]


def test_what_stands_above_it_can_be_undone(tree: Tree, name: str) -> None:
    """Down to the revision that stays."""
    keep(revise(tree, name, 2, "SELECT", "SELECT"))
    tree.revise(name, 3)
    assert tree.atriz("migrate").returncode == 0
    assert tree.atriz("rollback", name).returncode == 0
    assert tree.status()[name]["current"] == [f"{name}0002"]
    assert tree.alembic(name, "upgrade", "head").returncode == 0
    assert tree.alembic(name, "downgrade", f"{name}0002").returncode == 0


def test_a_sql_revision_without_a_down_part_is_applied_and_not_undone(tree: Tree, name: str) -> None:
    """What to do about it is in the finding; with a reason all is well. An empty part is a down that does nothing."""
    path = tree.revise(name, 2)
    path.write_text(
        f'from atriz_database.migrations import sql_file\n\nrevision = "{name}0002"\ndown_revision = "{name}0001"\n\n'
        "upgrade, downgrade = sql_file(__file__)\n"
    )
    script = path.with_suffix(".sql")
    script.write_text("-- migrate:up\nCREATE TABLE t (id int);\n")
    status, acts, _ = verify(tree)
    assert status == 3
    assert acts[1][2].startswith(f"down: {script} has no line `-- migrate:down`, and so no way down.")
    assert 'irreversible = "reason"' in acts[1][2]
    script.write_text("-- migrate:up\nCREATE TABLE t (id int);\n\n-- migrate:down\n-- What takes them back.\n")
    assert verify(tree)[1][1][2] == "after up, down: table t is there and was not"
    script.write_text("-- migrate:up\nCREATE TABLE t (id int);")
    keep(path)
    assert verify(tree)[0] == 0


def test_databases_that_are_there_are_not_touched(tree: Tree, name: str) -> None:
    """Neither their rows nor their history, at whatever revision and of whatever environment they are."""
    assert tree.atriz("migrate").returncode == 0
    tree.revise(name, 2)
    look = "SELECT (SELECT array_agg(h.*::text) FROM atriz.history h), (SELECT array_agg(oid) FROM pg_class)"
    before = tree.rows(name, look)
    assert verify(tree, APP_ENV="test")[0] == 0
    assert tree.rows(name, look) == before
    assert scratches(tree, name) == []


def test_a_finding_in_one_package_keeps_no_other_from_being_verified(fleet: Tree) -> None:
    """Also where it is core's; the status of the whole is that of a check that found something."""
    revise(fleet, "core", 3, "CREATE TABLE forgotten (id int)", "SELECT")
    done = fleet.atriz("verify", "--json")
    assert done.returncode == 3
    rows = {row["package"]: row for row in json.loads(done.stdout)}
    assert {name: row["state"] for name, row in rows.items()} == {"core": "failed", "left": "done", "right": "done"}
    assert "1 of 3 revisions did not" in rows["core"]["error"]


def test_what_cannot_be_tried_is_a_failure_and_no_finding(fleet: Tree) -> None:
    """Status 1 for a file that does not parse, beside a finding of another package, and for a server that is down."""
    revise(fleet, "core", 3, "CREATE TABLE forgotten (id int)", "SELECT")
    path = fleet.revise("left", 3)
    path.write_text(path.read_text() + "\ndef broken(:\n")
    status, acts, errors = verify(fleet)
    assert status == 1
    assert "invalid syntax" in errors
    assert [what for what, _, _ in acts].count("found") == 1
    status, acts, errors = verify(fleet, "right", "--only", PGHOST="127.0.0.1", PGPORT="1")
    assert (status, acts) == (1, [])
    assert "No server answers" in errors


def test_quiet_says_only_what_is_wrong(tree: Tree, name: str) -> None:
    """Nothing where all is well; else the findings, on stderr."""
    done = tree.atriz("verify", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    revise(tree, name, 2, "CREATE TABLE forgotten (id int)", "SELECT")
    done = tree.atriz("verify", "--quiet")
    assert (done.returncode, done.stdout) == (3, "")
    assert (
        f"warning: {name}: found: 0002_{name}0002: after up, down: table forgotten is there and was not" in done.stderr
    )


def test_a_package_without_revisions_has_nothing_to_verify(tree: Tree) -> None:
    """It is said, and no error."""
    tree.add("left", requires=(), revisions=0)
    assert verify(tree) == (0, [("up to date", "", "it has no revisions")], "")


def test_a_role_that_may_not_create_databases_is_told_so(tree: Tree, name: str) -> None:
    """With the role and the command that lets it; status 1."""
    role = f"nobody_{tree.suffix}"
    with databases.maintenance(tree.target(name)) as connection:
        connection.execute(f"CREATE ROLE {role}".encode())
        try:
            url = DatabaseURL({**tree.target(name).url.parameters, "options": f"-c role={role}"})
            status, _, errors = verify(tree, **{f"{name.upper()}_DATABASE_URL": url.text(secrets=True)})
        finally:
            connection.execute(f"DROP ROLE {role}".encode())
    assert status == 1
    assert f"role {role} has no right to create databases" in errors
    assert f"ALTER ROLE {role} CREATEDB" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_scratch_database(tree: Tree, name: str, number: signal.Signals) -> None:
    """The statement is cancelled, the database dropped, the status 1."""
    revise(tree, name, 2, "SELECT pg_sleep(60)", "SELECT")
    process = tree.start("verify")
    with databases.maintenance(tree.target(name)) as connection:
        asleep = "SELECT FROM pg_stat_activity WHERE starts_with(datname, %s) AND wait_event = 'PgSleep'"
        while connection.execute(asleep, [f"atriz_scratch_{name}_"]).fetchone() is None:
            assert process.poll() is None, process.communicate()
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"verified    0001_{name}0001" in output
    assert f"{name} ({tree.database(name)}) interrupted" in errors
    assert "Traceback" not in errors
    assert scratches(tree, name) == []
