"""Revisions and servers that misbehave: status 1, one message with a way on, and a database that agrees with itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import second
from second import Second
from tree import Tree

from atriz_database.migrations.script import transaction_statement

_SLEEPS = """
    SELECT count(*) = 1 FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()
"""


def run_sql(tree: Tree, statement: str, package: str = "left") -> None:
    """Run a statement on a package's database."""
    with tree.connect(package) as connection:
        connection.execute(statement.encode())


def sql_revision(tree: Tree, number: int, up: str) -> Path:
    """Write left's revision `number` in plain SQL, and return the SQL file."""
    path = tree.revise("left", number)
    path.write_text(
        "from atriz_database.migrations import sql_file\n\n"
        f'revision = "left{number:04}"\ndown_revision = "left{number - 1:04}"\n\n'
        "upgrade, downgrade = sql_file(__file__)\n"
    )
    beside = path.with_suffix(".sql")
    beside.write_text(f"-- migrate:up\n{up}\n-- migrate:down\nDROP TABLE left_{number};\n")
    return beside


def agrees(tree: Tree, *applied: str) -> None:
    """Assert that left's tables, its version row and its history all say the same."""
    tables = tree.rows("left", "SELECT relname FROM pg_class WHERE relname ~ '^(left|half)' AND relkind = 'r'")
    assert sorted(row[0] for row in tables) == [f"left_{int(id_[-4:])}" for id_ in applied]
    assert tree.rows("left", "SELECT version_num FROM alembic_version") == [(applied[-1],)]
    history = tree.rows("left", "SELECT revision FROM atriz.history WHERE direction = 'upgrade' ORDER BY id")
    assert [row[0] for row in history] == list(applied)


def well_told(done: subprocess.CompletedProcess[str]) -> str:
    """Return what was said of a failure, which was neither a traceback nor a defect, and says how to go on."""
    assert done.returncode == 1, done.stdout + done.stderr
    for text in (done.stdout, done.stderr):
        assert "Traceback" not in text
        assert "defect" not in text
    assert "run `atriz migrate left` again" in done.stderr
    return done.stderr


_ENDERS = {
    "commit": "CREATE TABLE half (id int); COMMIT; CREATE TABLE half2 (id int)",
    "lower case": "create table half (id int); commit work",
    "after comments": "/* one /* two */ */ -- three\n COMMIT",
    "chained": "CREATE TABLE half (id int); COMMIT AND CHAIN",
    "rollback": "CREATE TABLE half (id int); ROLLBACK; CREATE TABLE half2 (id int)",
    "rollback chained": "CREATE TABLE half (id int); ROLLBACK AND CHAIN; CREATE TABLE half2 (id int)",
    "begin": "BEGIN; CREATE TABLE half (id int)",
    "begin in the middle": "CREATE TABLE half (id int); Begin; CREATE TABLE half2 (id int)",
    "start": "START   TRANSACTION",
    "end": "CREATE TABLE half (id int); END",
    "abort": "CREATE TABLE half (id int); abort",
    "prepare": "CREATE TABLE half (id int); PREPARE TRANSACTION 'x'",
    "after a string": "SELECT 'it''s; -- no comment'; COMMIT",
    "after a function": "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $f$ SELECT 1; $f$; COMMIT",
    "after a body": "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; END; COMMIT",
    "and an error": "CREATE TABLE half (id int); COMMIT; SELECT 1/0",
}
_INNOCENT = {
    "savepoints": "SAVEPOINT a; CREATE TABLE gone (id int); ROLLBACK TO a; RELEASE a",
    "savepoints, spelled out": "SAVEPOINT a; CREATE TABLE gone (id int); rollback work to savepoint a",
    "function": "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END; $$",
    "block": "DO $x$ BEGIN PERFORM 1; EXCEPTION WHEN others THEN NULL; END $x$",
    "procedure": "CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN COMMIT; END'",
    "strings": "SELECT 'COMMIT; COMMIT', E'\\'; COMMIT', $q$; COMMIT;$q$, 1 AS \"; COMMIT;\"",
    "comments": "/* ; COMMIT; /* ; */ ; COMMIT */ SELECT 1; -- ; COMMIT",
    "names": 'CREATE TABLE gone (begin_at int, commit_id int, "end" int); DROP TABLE gone',
    "case": "SELECT CASE WHEN true THEN 1 END",
    "rule": "CREATE TABLE gone (id int); CREATE RULE r AS ON DELETE TO gone DO ALSO (NOTIFY a; NOTIFY b);"
    " DROP TABLE gone",
    "prepared statement": "PREPARE s AS SELECT 1; DEALLOCATE s",
}


@pytest.mark.parametrize("script", _ENDERS.values(), ids=_ENDERS)
def test_the_end_of_a_transaction_is_found_anywhere_in_a_script(script: str) -> None:
    """Whatever its letters, and whatever stands before it."""
    assert transaction_statement(script)


@pytest.mark.parametrize("script", _INNOCENT.values(), ids=_INNOCENT)
def test_what_only_looks_like_one_is_not(script: str) -> None:
    """Strings, comments, bodies of functions, names, savepoints."""
    assert transaction_statement(script) == ""


def test_a_function_in_sql_with_a_body_of_its_own_is_not_an_end() -> None:
    """BEGIN ATOMIC … END holds semicolons and an END that end nothing."""
    body = "SELECT CASE x WHEN 1 THEN 2 END; SELECT 1;"
    script = f"CREATE OR REPLACE FUNCTION f(x int) RETURNS int LANGUAGE sql BEGIN ATOMIC {body} END; SELECT 1"
    assert transaction_statement(script) == ""


@pytest.mark.parametrize("number", range(0, len(_ENDERS), 4))
@pytest.mark.parametrize("plain", [False, True], ids=["op.execute", "sql file"])
def test_a_revision_that_ends_its_transaction_is_refused_before_it_runs(fleet: Tree, number: int, plain: bool) -> None:
    """Nothing of the script has been done, whether it is op.execute's or a file's; what is wrong is named."""
    script = list(_ENDERS.values())[number]
    fleet.at_head("core")
    if plain:
        sql_revision(fleet, 3, script)
    else:
        fleet.revise("left", 3, script)
    told = well_told(fleet.atriz("migrate", "left"))
    assert "a revision is one transaction, which the run begins and ends, and this one says" in told
    assert f"0003_left0003.{'sql' if plain else 'py'}, line " in told
    agrees(fleet, "left0001", "left0002")


@pytest.mark.parametrize("plain", [False, True], ids=["op.execute", "sql file"])
def test_savepoints_and_bodies_of_functions_pass_untouched(fleet: Tree, plain: bool) -> None:
    """All that only looks like the end of a transaction runs as one script."""
    script = ";\n".join([*(each for name, each in _INNOCENT.items() if name != "comments"), "CREATE TABLE left_3 ()"])
    fleet.at_head("core")
    if plain:
        sql_revision(fleet, 3, script)
    else:
        fleet.revise("left", 3, body=f"op.get_bind().exec_driver_sql({script!r})")
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 0, done.stderr
    agrees(fleet, "left0001", "left0002", "left0003")


_DRIVER = "op.get_bind().connection.driver_connection"
_BREAKERS = {
    "commits": ("op.get_bind().commit()", "this one calls commit()"),
    "commits by the driver": (f"{_DRIVER}.commit()", "this one calls commit()"),
    "commits by a cursor": (f"{_DRIVER}.execute('COMMIT')", "this one says COMMIT"),
    "rolls back": ("op.get_bind().rollback()", "rolled back its own transaction"),
    "rolls back by the driver": (f"{_DRIVER}.rollback()", "rolled back its own transaction"),
    "closes the connection": ("op.get_bind().close()", "rolled back its own transaction"),
    "closes the driver's": (f"{_DRIVER}.close()", "the connection is closed"),
    "ends its session": ("op.execute('SELECT pg_terminate_backend(pg_backend_pid())')", "ended by an administrator"),
    "passes over an error": (
        "try:\n        op.execute('SELECT 1/0')\n    except Exception:\n        pass",
        "passed over the error",
    ),
    "leaves the transaction": (f"{_DRIVER}.autocommit = True", "can't change 'autocommit' now"),
    "turns it read-only": ("op.execute('SET TRANSACTION READ ONLY')", "read-only"),
    "deletes the version": ("op.execute('DELETE FROM alembic_version')", "has changed alembic_version"),
    "adds a version": ("op.execute(\"INSERT INTO alembic_version VALUES ('x')\")", "has changed alembic_version"),
    "drops the version table": ("op.execute('DROP TABLE alembic_version')", '"alembic_version" does not exist'),
    "drops the history": ("op.execute('DROP TABLE atriz.history')", '"atriz.history" does not exist'),
    "ends its process": ("import os; os._exit(7)", "exit status 7"),
}


@pytest.mark.parametrize(("statement", "words"), _BREAKERS.values(), ids=_BREAKERS)
def test_a_revision_that_breaks_what_it_runs_on_is_undone(fleet: Tree, statement: str, words: str) -> None:
    """The message says what it did; the revision before is kept, the next one not begun, and mended it goes on."""
    fleet.at_head("core")
    fleet.revise("left", 3, body=f"op.execute('CREATE TABLE half (id int)')\n    {statement}")
    fleet.revise("left", 4)
    told = well_told(fleet.atriz("migrate", "left"))
    assert words in told
    assert "left0003" in told or "exit status" in told
    agrees(fleet, "left0001", "left0002")
    fleet.revise("left", 3)
    assert fleet.atriz("migrate", "left").returncode == 0
    agrees(fleet, "left0001", "left0002", "left0003", "left0004")


@pytest.mark.parametrize(
    "statement",
    [
        "SET search_path = pg_catalog",
        "SELECT set_config('search_path', '', false)",
        "SET ROLE pg_monitor",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SET lock_timeout = 1",
        "RESET ALL",
        "DEALLOCATE ALL",
    ],
)
def test_what_a_revision_sets_ends_with_it(fleet: Tree, statement: str) -> None:
    """The next revision begins as in a run of its own: search path, role, isolation and limits are the run's."""
    see = (
        "SELECT current_setting('search_path') AS path, current_user::text AS who, current_setting('lock_timeout') "
        "AS lock, current_setting('default_transaction_read_only') AS read, current_setting('synchronous_commit')"
    )
    fleet.at_head("core")
    fleet.revise("left", 3, f"CREATE TABLE left_3 AS {see}")
    fleet.revise("left", 4, f"CREATE TABLE left_4 (id int); {statement}")
    fleet.revise("left", 5, f"CREATE TABLE left_5 AS {see}")
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 0, done.stderr
    assert fleet.rows("left", "SELECT * FROM left_3") == fleet.rows("left", "SELECT * FROM left_5")
    agrees(fleet, *(f"left000{number}" for number in range(1, 6)))


def test_one_that_takes_forever_ends_on_ctrl_c(fleet: Tree) -> None:
    """The statement is cancelled, the revision undone, and what is pending is said with the command to go on."""
    fleet.revise("left", 3, "CREATE TABLE half (id int); SELECT pg_sleep(600)")
    fleet.at_head("core")
    assert fleet.atriz("create", "left").returncode == 0
    process = fleet.start("migrate", "left")
    fleet.wait_until("left", _SLEEPS, process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=20)
    told = well_told(subprocess.CompletedProcess([], process.returncode, output, errors))
    assert "now at left0002  2 applied, 1 pending" in told
    agrees(fleet, "left0001", "left0002")


@pytest.mark.parametrize(
    ("statement", "state", "words"),
    [
        ("UPDATE alembic_version SET version_num = 'zzz'", "ahead", "is at zzz, which no file in"),
        ("INSERT INTO alembic_version VALUES ('zzz')", "ahead", "is at left0002, zzz, which no file in"),
        ("INSERT INTO alembic_version VALUES ('left0001')", "diverged", "alembic stamp --purge left0002"),
        ("DELETE FROM alembic_version", "unversioned", "`atriz stamp left` finds out which revision"),
        ("DROP TABLE alembic_version", "unversioned", "`atriz stamp left` finds out which revision"),
    ],
    ids=["unknown", "two, one unknown", "two on one line", "no rows", "no table"],
)
def test_a_version_table_that_cannot_be_is_a_state_and_a_way_out(
    fleet: Tree, statement: str, state: str, words: str
) -> None:
    """`status` gives it a name, and `migrate` changes nothing and says what to do."""
    fleet.at_head()
    fleet.revise("left", 3)
    run_sql(fleet, statement)
    assert fleet.status()["left"]["state"] == state
    assert words in well_told(fleet.atriz("migrate", "left"))
    assert fleet.rows("left", "SELECT to_regclass('left_3')") == [(None,)]


def test_two_rows_on_one_line_are_mended_as_the_message_says(fleet: Tree) -> None:
    """After `alembic stamp --purge` the next run applies what is pending."""
    fleet.at_head()
    fleet.revise("left", 3)
    run_sql(fleet, "INSERT INTO alembic_version VALUES ('left0001')")
    assert fleet.alembic("left", "stamp", "--purge", "left0002").returncode == 0
    assert fleet.atriz("migrate", "left").returncode == 0
    assert fleet.rows("left", "SELECT version_num FROM alembic_version") == [("left0003",)]


def test_a_read_only_database_is_told_apart_from_a_bad_revision(fleet: Tree) -> None:
    """A standby, or a setting: the revision is not at fault, and the message says what is."""
    fleet.at_head()
    fleet.revise("left", 3)
    run_sql(fleet, f"ALTER DATABASE {fleet.database('left')} SET default_transaction_read_only = on")
    told = well_told(fleet.atriz("migrate", "left"))
    assert "(25006)" in told
    assert "the server is a standby, or default_transaction_read_only is on" in told
    agrees(fleet, "left0001", "left0002")


def test_a_read_only_server_without_any_database_is_told_as_well(fleet: Tree) -> None:
    """Nor can a database be made there."""
    options = "-c default_transaction_read_only=on"
    server = fleet.server.parameters
    environ = {"PGHOST": server["host"], "PGPORT": str(server.get("port", 5432)), "PGUSER": server["user"]}
    done = fleet.atriz("migrate", "core", **environ, PGOPTIONS=options)
    assert done.returncode == 1
    assert "read-only" in done.stderr
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr


def test_a_role_that_may_read_and_not_write_is_told(fleet: Tree) -> None:
    """What it lacks, and whose right it would take; nothing is changed."""
    fleet.at_head()
    fleet.revise("left", 3, "ALTER TABLE left_1 ADD COLUMN name text")
    server, role = fleet.server.parameters, f"reader_{fleet.suffix}"
    run_sql(fleet, f"CREATE ROLE {role} LOGIN PASSWORD 'reader'")
    try:
        for name in ("core", "left"):
            run_sql(
                fleet,
                f"GRANT USAGE ON SCHEMA atriz TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA atriz, public TO {role}",
                name,
            )
        environ = {"PGHOST": server["host"], "PGUSER": role, "PGPASSWORD": "reader"}
        done = fleet.atriz("migrate", "left", **environ, PGPORT=str(server.get("port", 5432)))
    finally:
        for name in ("core", "left"):
            run_sql(fleet, f"DROP OWNED BY {role}", name)
        run_sql(fleet, f"DROP ROLE {role}")
    told = well_told(done)
    assert "must be owner of table left_1 (42501)" in told
    assert "run as the role that owns the tables" in told
    agrees(fleet, "left0001", "left0002")


@pytest.fixture(scope="module")
def team() -> Iterator[Second]:
    """Yield a server that may be killed."""
    with second.running() as server:
        yield server


def test_a_server_that_goes_away_in_the_middle_is_told_and_the_next_run_finishes(fleet: Tree, team: Second) -> None:
    """Killed while a revision runs, as by a loss of power: one message, and when it is back the rest is applied."""
    fleet.environ |= team.environ
    fleet.revise("left", 3, "CREATE TABLE half (id int); SELECT pg_sleep(60)")
    assert fleet.atriz("migrate", "core").returncode == 0
    assert fleet.atriz("create", "left").returncode == 0
    process = fleet.start("migrate", "left")
    fleet.wait_until("left", _SLEEPS, process)
    team.kill()
    try:
        output, errors = process.communicate(timeout=30)
        down = fleet.atriz("migrate", "left")
    finally:
        team.start()
    told = well_told(subprocess.CompletedProcess([], process.returncode, output, errors))
    assert "0003_left0003.py" in told
    assert "No server answers" in down.stderr
    fleet.revise("left", 3)
    done = fleet.atriz("migrate", "left", "--wait", "10")
    assert done.returncode == 0, done.stderr
    agrees(fleet, "left0001", "left0002", "left0003")


def test_a_standby_is_told_and_the_primary_takes_what_is_pending(fleet: Tree, team: Second) -> None:
    """`status` works there; `migrate` says that nothing can be changed, and has changed nothing once it is primary."""
    fleet.environ |= team.environ
    assert fleet.atriz("migrate", "left").returncode == 0
    fleet.revise("left", 3)
    mark = team.data / "standby.signal"
    team.kill()
    mark.touch()
    try:
        team.start()
        state = fleet.status()["left"]["state"]
        done = fleet.atriz("migrate", "left")
    finally:
        team.kill()
        mark.unlink(missing_ok=True)
        team.start()
    assert state == "pending"
    told = well_told(done)
    assert "the server is a standby" in told
    assert "Name the primary" in told
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 0, done.stderr
    agrees(fleet, "left0001", "left0002", "left0003")


@pytest.fixture
def small_disk(team: Second) -> Iterator[Path]:
    """Yield an empty folder on a disk of 24 MB, the server's own."""
    # Not below pytest's: each pytest that starts closes that to all but its own user.
    folder = Path(tempfile.mkdtemp(prefix="atriz-disk-"))
    folder.chmod(0o755)
    options = f"size=24m,uid={team.owner},mode=0700"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk_undoes_the_revision_and_room_lets_it_finish(fleet: Tree, team: Second, small_disk: Path) -> None:
    """The message is the server's, with what to do; with room made, the same command goes on."""
    fleet.environ |= team.environ
    assert fleet.atriz("migrate", "core").returncode == 0
    name, space = fleet.database("left"), f"small_{fleet.suffix}"
    given = {"host": "127.0.0.1", "port": team.port, "user": team.user, "password": team.password}
    with psycopg.connect(**given, dbname="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE TABLESPACE {space} LOCATION '{small_disk}'".encode())
        try:
            connection.execute(f"CREATE DATABASE {name} TABLESPACE {space}".encode())
            big = "SELECT n AS id, repeat('x', 1000) AS text FROM generate_series(1, 100000) n"
            fleet.revise("left", 3, f"CREATE TABLE left_3 AS {big}")
            told = well_told(fleet.atriz("migrate", "left"))
            assert "No space left on device" in told
            assert "the server's disk is full: make room there" in told
            agrees(fleet, "left0001", "left0002")
            room = subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], capture_output=True)
            assert room.returncode == 0, room.stderr
            done = fleet.atriz("migrate", "left")
            assert done.returncode == 0, done.stderr
            agrees(fleet, "left0001", "left0002", "left0003")
        finally:
            connection.execute(f"DROP DATABASE IF EXISTS {name}".encode())
            connection.execute(f"DROP TABLESPACE {space}".encode())


@pytest.mark.parametrize("years", [-30, 30], ids=["past", "future"])
def test_a_clock_that_jumps_hides_no_revision(fleet: Tree, years: int) -> None:
    """Files of another age than the clock's are seen when they change, and so is a file put in one's place."""
    fleet.at_head()
    folder = fleet.folders["left"] / "migrations" / "versions"
    for path in folder.glob("*.py"):
        moment = path.stat().st_mtime + years * 365 * 86400
        os.utime(path, (moment, moment))
    assert fleet.status()["left"]["state"] == "up-to-date"
    path = fleet.revise("left", 3)
    os.utime(path, (moment, moment))
    assert fleet.status()["left"]["pending"] == ["left0003"]
    # The same size and the same time of modification: only the time of the change, which nobody sets, differs.
    path.write_text(path.read_text().replace("left0003", "left0009"))
    os.utime(path, (moment, moment))
    assert fleet.status()["left"]["pending"] == ["left0009"]


def test_the_order_of_revisions_is_theirs_and_no_clocks(fleet: Tree) -> None:
    """A file with a name and times from before its predecessor's is applied after it all the same."""
    path = fleet.revise("left", 3)
    early = path.with_name("0000_made_by_a_slow_clock.py")
    path.rename(early)
    os.utime(early, (1, 1))
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 0, done.stderr
    agrees(fleet, "left0001", "left0002", "left0003")


def test_the_history_is_ordered_by_its_rows_and_not_by_time(fleet: Tree) -> None:
    """With a server's clock that went back, what was applied last still counts: nothing is edited, nothing missing."""
    fleet.at_head()
    assert fleet.atriz("rollback", "left").returncode == 0
    assert fleet.atriz("migrate").returncode == 0
    path = next(fleet.folders["left"].rglob("0002*.py"))
    run_sql(fleet, "UPDATE atriz.history SET applied_at = now() - id * interval '1 year'")
    assert fleet.status()["left"]["state"] == "up-to-date"
    assert fleet.status()["left"]["edited"] == []
    path.write_text(path.read_text() + "# Edited.\n")
    assert fleet.status()["left"]["edited"] == ["left0002"]


_FAILS_AT_COMMIT = """
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    INSERT INTO child VALUES (1)
"""


@pytest.mark.parametrize(
    "next_one",
    [
        "op.execute('CREATE TABLE next (id int)')",
        "try:\n        op.execute('SELECT 1')\n    except Exception:\n        pass",
    ],
    ids=["goes on", "passes over every error"],
)
def test_a_commit_that_fails_is_the_failure_of_its_revision_and_not_of_the_next(fleet: Tree, next_one: str) -> None:
    """The next one may have begun before the server has answered: it is not recorded, and the right one is named."""
    fleet.at_head()
    path = fleet.revise("left", 3, _FAILS_AT_COMMIT)
    fleet.revise("left", 4, body=next_one)
    done = fleet.atriz("migrate", "left", "--json")
    assert done.returncode == 1
    row = json.loads(done.stdout)[1]
    assert (row["failed"], row["applied"], row["pending"]) == ("left0003", [], ["left0003", "left0004"])
    assert f"{path}: insert or update on table" in row["error"]
    assert fleet.status()["left"]["current"] == ["left0002"]
    assert fleet.rows("left", "SELECT to_regclass('parent'), to_regclass('next')") == [(None, None)]


def test_a_commit_that_may_go_well_the_next_time_is_tried_again(fleet: Tree) -> None:
    """A serialization failure that only the commit meets: that revision runs again, then the next, each once."""
    fleet.at_head()
    with fleet.connect("left") as connection:
        connection.execute("CREATE SEQUENCE tries")
    fleet.revise(
        "left",
        3,
        """
        CREATE TABLE checked (id int);
        CREATE FUNCTION once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('tries') = 1 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER once AFTER INSERT ON checked DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION once();
        INSERT INTO checked VALUES (1)
        """,
    )
    fleet.revise("left", 4)
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 0, done.stderr
    assert "0003_left0003 met a serialization failure; rolled back, again in" in done.stdout
    history = "SELECT revision FROM atriz.history WHERE revision > 'left0002' ORDER BY id"
    assert fleet.rows("left", history) == [("left0003",), ("left0004",)]
