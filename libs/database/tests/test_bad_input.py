"""Bad input: one message that says what to do, status 1 or 2, nothing lost."""

from __future__ import annotations

import json
import socket

import psycopg
import pytest
from tree import Tree

from atriz_database import databases
from atriz_database.errors import ServerError
from atriz_database.migrations import session
from atriz_database.migrations.journal import Journal


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_down_is_waited_for_and_then_named(fleet: Tree) -> None:
    """After --wait seconds: where it looked, where the setting came from, what to do."""
    port = free_port()
    fleet.environ = {name: value for name, value in fleet.environ.items() if not name.startswith("PG")}
    (fleet.root / ".env").write_text(f"PGHOST=127.0.0.1\nPGPORT={port}\nPGUSER=nobody\nPGPASSWORD='s3cr%t'\n")
    done = fleet.atriz("migrate", "--wait", "0.5")
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "for 0.5 s" in done.stderr
    assert "PGHOST in" in done.stderr
    assert "--wait" in done.stderr
    assert "s3cr" not in done.stdout + done.stderr
    assert done.stderr.count("not run: core failed") == 2


def test_status_shows_the_others_where_the_files_of_one_cannot_be_read(fleet: Tree) -> None:
    """A revision without an id is that package's trouble: it is `broken`, and the file is named."""
    fleet.at_head()
    next(fleet.folders["left"].rglob("0001*.py")).write_text("x = 1\n")
    assert {name: row["state"] for name, row in fleet.status().items()} == {
        "core": "up-to-date",
        "left": "broken",
        "right": "up-to-date",
    }
    assert "0001_left0001.py has no line revision" in fleet.atriz("status").stderr


def test_status_reports_a_server_that_is_down(fleet: Tree) -> None:
    """It is a state like any other, and with --exit-code a 3."""
    environ = {"PGHOST": "127.0.0.1", "PGPORT": str(free_port())}
    done = fleet.atriz("status", "--json", "--exit-code", **environ)
    assert done.returncode == 3
    assert done.stdout.count('"unreachable"') == 3


@pytest.mark.parametrize(
    ("mistyped", "meant"), [("lefft", "left"), ("Core", "core"), ("rihgt", "right")], ids=["letter", "case", "swapped"]
)
def test_an_unknown_package_is_answered_with_the_nearest(fleet: Tree, mistyped: str, meant: str) -> None:
    """A typing error costs one glance."""
    done = fleet.atriz("migrate", mistyped)
    assert done.returncode == 2
    assert f"Did you mean {meant}?" in done.stderr


def test_a_cycle_between_manifests_is_named(tree: Tree) -> None:
    """The message shows the circle and says how to break it."""
    tree.add("core", requires=("left",))
    tree.add("left")
    done = tree.atriz("migrate")
    assert done.returncode == 2
    assert "core -> left -> core" in done.stderr or "left -> core -> left" in done.stderr


def test_a_database_of_another_package_is_refused_before_anything_is_done(fleet: Tree) -> None:
    """A wrong URL touches neither that database nor any other of the run."""
    fleet.atriz("migrate", "left")
    fleet.revise("core", 3)
    wrong = fleet.server.with_database(fleet.database("left")).text(secrets=True)
    done = fleet.atriz("migrate", "right", RIGHT_DATABASE_URL=wrong)
    assert done.returncode == 2
    assert f"{fleet.database('left')}" in done.stderr
    assert "labelled left/development" in done.stderr
    assert "RIGHT_DATABASE_URL in the process environment" in done.stderr
    assert fleet.status()["core"]["state"] == "pending"


def test_another_environment_is_refused(fleet: Tree) -> None:
    """APP_ENV=production against a development database does nothing, and the message says both ways out."""
    fleet.at_head()
    done = fleet.atriz("seed", APP_ENV="test")
    assert done.returncode == 2
    assert "APP_ENV=development" in done.stderr
    assert "atriz label core --environment test --force" in done.stderr


def test_a_syntax_error_in_a_revision_is_shown_with_line_and_caret(fleet: Tree) -> None:
    """The file's other packages go on; its own database is not even created."""
    path = fleet.revise("left", 3)
    path.write_text(path.read_text() + "\n\ndef broken(:\n    pass\n")
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert f"{path}, line" in done.stderr
    assert "def broken(:" in done.stderr
    assert "Traceback" not in done.stderr
    assert not fleet.exists("left")
    path.unlink()
    assert fleet.status()["right"]["state"] == "up-to-date"


def test_an_unknown_down_revision_names_the_file(fleet: Tree) -> None:
    """A deleted or uncommitted file is the likely cause, and the message says so."""
    path = fleet.revise("left", 3, down="feedbeef")
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert f"{path} has down_revision 'feedbeef'" in done.stderr


def test_two_heads_name_both_files_and_the_edit_that_mends_them(fleet: Tree) -> None:
    """Doing what the message says makes the next run work."""
    fleet.revise("left", 3, id_="mine")
    path = fleet.revise("left", 4, id_="yours", down="left0002")
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert "0003_mine.py" in done.stderr
    assert 'in 0004_yours.py set down_revision = "mine"' in done.stderr
    path.write_text(path.read_text().replace("'left0002'", '"mine"'))
    assert fleet.atriz("migrate").returncode == 0


def test_a_database_ahead_of_the_code_is_left_alone(fleet: Tree) -> None:
    """An old checkout does not touch what a newer one has migrated."""
    path = fleet.revise("left", 3)
    fleet.at_head()
    path.unlink()
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert "ahead of this code" in done.stderr
    assert fleet.status()["left"]["state"] == "ahead"


def test_tables_without_a_version_are_not_migrated_over(fleet: Tree) -> None:
    """Somebody else's tables are not built upon; the message names the command that adopts them."""
    fleet.atriz("create")
    with fleet.connect("left") as connection:
        connection.execute("CREATE TABLE left_1 (id int)")
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert "`atriz stamp left` finds out which revision" in done.stderr
    assert fleet.status()["left"]["state"] == "unversioned"


def test_an_edited_revision_is_shown(fleet: Tree) -> None:
    """A file that was changed after it was applied is found by its checksum; line ends do not count."""
    fleet.at_head()
    first, second = sorted((fleet.folders["left"] / "migrations/versions").glob("*.py"))
    first.write_text(first.read_text() + "# changed\n")
    second.write_bytes(second.read_bytes().replace(b"\n", b"\r\n"))
    assert fleet.status()["left"]["edited"] == ["left0001"]
    assert fleet.atriz("status", "--exit-code").returncode == 3


def test_a_role_without_the_right_to_create_databases_is_told_what_to_ask_for(fleet: Tree) -> None:
    """The message holds the two statements an administrator can run."""
    server = fleet.server
    role = f"poor_{fleet.suffix}"
    with psycopg.connect(**dict(server.parameters), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'poor'".encode())
        try:
            done = fleet.atriz("create", "core", PGHOST=server.parameters["host"], PGUSER=role, PGPASSWORD="poor")
        finally:
            connection.execute(f"DROP ROLE {role}".encode())
    assert done.returncode == 1
    assert f"ALTER ROLE {role} CREATEDB" in done.stderr


def test_a_missing_database_is_named_by_verbs_that_need_it(fleet: Tree) -> None:
    """`seed` on nothing says how to make it."""
    done = fleet.atriz("seed", "core")
    assert done.returncode == 1
    assert "atriz create core" in done.stderr


def test_a_python_error_in_a_revision_names_its_line(fleet: Tree) -> None:
    """Not a traceback through Alembic, but the line that is wrong."""
    fleet.revise("left", 3, body="op.create_tabel('x')")
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert "0003_left0003.py, line 11: AttributeError" in done.stderr
    assert "Traceback" not in done.stderr


def test_outside_a_repository_it_says_where_it_looked(fleet: Tree) -> None:
    """And that --root exists."""
    done = fleet.atriz("status", "--root", "/")
    assert done.returncode == 2
    assert "--root" in done.stderr


def test_an_unknown_verb_is_wrong_usage(fleet: Tree) -> None:
    """Status 2, and the verbs there are."""
    done = fleet.atriz("migrat")
    assert done.returncode == 2
    assert "migrate" in done.stderr


def test_a_server_that_is_too_old_is_refused(fleet: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version found, the version needed, and which server it is."""
    monkeypatch.setattr(databases, "OLDEST_VERSION", 99)
    with pytest.raises(ServerError, match=r"is on PostgreSQL \d\d \(postgresql://.*PostgreSQL 99 or newer is needed"):
        databases.maintenance(fleet.target("core"))


def test_a_fault_in_a_plain_sql_revision_names_the_line_of_the_sql_file(fleet: Tree) -> None:
    """Line and caret are those of the .sql file, comments counted; what stood before it is undone."""
    path = fleet.revise("left", 3)
    path.write_text(
        'from atriz_database.migrations import sql_file\n\nrevision = "left0003"\ndown_revision = "left0002"\n\n'
        "upgrade, downgrade = sql_file(__file__)\n"
    )
    body = "-- A comment: 100% literal, :name too.\nCREATE TABLE good (id int);\n\nSELECT 1 FROM nowhere;\n"
    path.with_suffix(".sql").write_text(f"-- migrate:up\n{body}-- migrate:down\nDROP TABLE good;\n")
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 1
    assert f"{path.with_suffix('.sql')}, line 5: relation" in done.stderr
    assert "    SELECT 1 FROM nowhere;\n                  ^" in done.stderr
    assert fleet.rows("left", "SELECT to_regclass('good')") == [(None,)]


def test_a_plain_sql_revision_without_its_file_is_named(fleet: Tree) -> None:
    """So is one whose file lacks a part."""
    path = fleet.revise("left", 3)
    path.write_text(
        'from atriz_database.migrations import sql_file\n\nrevision = "left0003"\ndown_revision = "left0002"\n\n'
        "upgrade, downgrade = sql_file(__file__)\n"
    )
    assert f"{path.with_suffix('.sql')}, the body" in fleet.atriz("migrate", "left").stderr
    path.with_suffix(".sql").write_text("CREATE TABLE x ()")
    assert "needs a line `-- migrate:up`" in fleet.atriz("migrate", "left").stderr


def test_broken_files_of_the_only_package_of_a_run_are_named(fleet: Tree) -> None:
    """Not only where another package of the run can be read."""
    path = fleet.revise("core", 3, down="feedbeef")
    for verb in ("migrate", "setup", "status"):
        done = fleet.atriz(verb, "core")
        assert done.returncode == (0 if verb == "status" else 1)
        assert f"{path} has down_revision 'feedbeef'" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_role_that_may_not_look_is_told(fleet: Tree) -> None:
    """A missing right on schema atriz is a state and a message, not a traceback."""
    fleet.atriz("migrate", "core")
    server, role = fleet.server, f"blind_{fleet.suffix}"
    with psycopg.connect(**dict(server.parameters), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'blind'".encode())
        try:
            environ = {"PGHOST": server.parameters["host"], "PGUSER": role, "PGPASSWORD": "blind"}
            status = fleet.atriz("status", "core", "--json", **environ)
            done = fleet.atriz("migrate", "core", **environ)
        finally:
            connection.execute(f"DROP ROLE {role}".encode())
    assert (status.returncode, done.returncode) == (0, 1)
    assert '"unreachable"' in status.stdout
    assert "permission denied" in done.stderr
    assert "Traceback" not in status.stderr + done.stderr


def test_a_database_without_an_encoding_works(fleet: Tree) -> None:
    """In SQL_ASCII psycopg gives bytes for text, unless it is told what to expect."""
    name = fleet.database("core")
    with psycopg.connect(**dict(fleet.server.parameters), autocommit=True) as connection:
        statement = f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        try:
            connection.execute(statement.encode())
        except psycopg.Error:
            connection.execute(f"{statement} LOCALE_PROVIDER libc".encode())
    done = fleet.atriz("migrate", "core", PGCLIENTENCODING="SQL_ASCII")
    assert done.returncode == 0, done.stderr
    assert fleet.status()["core"]["state"] == "up-to-date"


def test_a_password_in_a_failing_statement_is_masked(fleet: Tree) -> None:
    """The caret still points to the right place."""
    fleet.revise("left", 3, "ALTER ROLE postgres PASSWORD 'top''secret' VALID UNTIL nowhere")
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 1
    assert "secret" not in done.stderr
    line, caret = next(
        pair for pair in zip(done.stderr.splitlines(), done.stderr.splitlines()[1:], strict=False) if "^" in pair[1]
    )
    assert line[caret.index("^") :].startswith("nowhere")


def test_percent_signs_do_not_move_the_caret(fleet: Tree) -> None:
    """The statement is shown as it was written."""
    fleet.revise("left", 3, "SELECT 5 % 2, 6 % 4, nosuchcol")
    done = fleet.atriz("migrate", "left")
    lines = done.stderr.splitlines()
    at = lines.index("    SELECT 5 % 2, 6 % 4, nosuchcol")
    assert lines[at][lines[at + 1].index("^") :] == "nosuchcol"


@pytest.mark.parametrize(
    "variable", ["PGREQUIREAUTH=scram-sha-256", "PGTARGETSESSIONATTRS=standby", "PGOPTIONS=-csearch_path=nowhere"]
)
def test_settings_for_another_server_do_not_reach_the_embedded_one(fleet: Tree, variable: str) -> None:
    """What PG* in the process environment ask of a team's server is nothing to it."""
    if "PGHOST" in fleet.environ:
        pytest.skip("on a server that is named they hold")
    name, _, value = variable.partition("=")
    done = fleet.atriz("migrate", **{name: value})
    assert done.returncode == 0, done.stderr


def test_a_revision_that_exits_is_named(fleet: Tree) -> None:
    """quit() in a revision is a failure of that revision."""
    fleet.revise("left", 3, body="raise SystemExit(0)")
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 1
    assert "0003_left0003.py, line 11: SystemExit" in done.stderr


def test_what_revisions_and_seeds_print_does_not_spoil_the_document(fleet: Tree) -> None:
    """--json stays one document."""
    fleet.seed("left", "001_talks.py", "print('hello')")
    done = fleet.atriz("setup", "left", "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "hello" in done.stderr


def test_a_mistyped_verb_is_answered_with_the_nearest(fleet: Tree) -> None:
    """As a package is."""
    assert "Did you mean migrate?" in fleet.atriz("migrat").stderr


def test_server_that_goes_away_unnoticed_leaves_no_traceback(fleet: Tree, caplog: pytest.LogCaptureFixture) -> None:
    """As when the lock's connection is found ended first: the revision's own is closed without a word."""
    target = fleet.target("core")
    databases.create(target)
    with session.opened(target, Journal(), session.Limits()) as connection:
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with fleet.connect("core") as other:
            other.execute("SELECT pg_terminate_backend(%s)", [pid])
        fleet.wait_until("core", f"SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid})")
    assert caplog.records == []
