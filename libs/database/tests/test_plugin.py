"""The fixtures as a test takes them, and what a test's end does to its databases."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from textwrap import dedent
from typing import Any

import psycopg
import pytest
import second
import sqlalchemy
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from tree import Tree, forked

from atriz_database import AsyncDatabase, Database, databases, workspace
from atriz_database.databases import Connection
from atriz_database.settings import Target
from atriz_database.testing import template
from atriz_database.testing.clone import Clones, target_of
from atriz_database.testing.leak import leaks
from atriz_database.testing.run import Run
from atriz_database.url import DatabaseURL
from atriz_database.workspace import Package

# Runs of pytest, which are started for most of them.
pytestmark = pytest.mark.gate

COUNT = "SELECT count(*) FROM shelf_1"
OTHER = date(2031, 5, 17)


@pytest.fixture
def shelf(tree: Tree, server_url: object) -> Iterator[Tree]:
    """Yield a repository with `base`, and `shelf`, which depends on it; what the tests in it make goes in the end."""
    tree.add(f"base{tree.suffix}", requires=())
    folder = tree.add(f"shelf{tree.suffix}", requires=(f"base{tree.suffix}",))
    for name in ("shelf", "base"):
        tree.revise(f"{name}{tree.suffix}", 1, f"CREATE TABLE {name}_1 (id int PRIMARY KEY)")
    tree.seed(folder.name, "001_three.py", 'connection.execute("INSERT INTO shelf_1 VALUES (1), (2), (3)")')
    server = dict(tree.server.parameters)
    # A server that the environment names, so that the runs in the repository share the one of this run.
    tree.environ |= {"PGHOST": server["host"], "PGPORT": server.get("port", "5432"), "PGUSER": server["user"]}
    tree.environ |= {"PGPASSWORD": server.get("password", "unasked-for"), "PYTHONDONTWRITEBYTECODE": "1"}
    yield tree
    remove(tree)


def remove(tree: Tree) -> None:
    """Drop what test runs in the repository have on the server."""
    with psycopg.connect(**dict(tree.server.parameters), autocommit=True) as connection:
        for name in made(tree):
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            connection.execute(f'ALTER DATABASE "{name}" IS_TEMPLATE false'.encode())
            connection.execute(f'DROP DATABASE "{name}"'.encode())


@pytest.fixture
def package(shelf: Tree) -> Package:
    """Return the package that this file's own fixtures are of."""
    return workspace.load(shelf.root).package(f"shelf{shelf.suffix}")


def made(tree: Tree, kind: str = "") -> list[str]:
    """Return the databases that test runs in the repository have on the server."""
    query = "SELECT datname FROM pg_database WHERE datname ~ %s ORDER BY datname"
    with psycopg.connect(**dict(tree.server.parameters)) as connection:
        return [row[0] for row in connection.execute(query, [f"^atriz_{kind}.*{tree.suffix}_"])]


def write(tree: Tree, text: str) -> Path:
    """Write a file of tests of `shelf`."""
    path = tree.root / "apps" / f"shelf{tree.suffix}" / "tests" / "test_shelf.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dedent(text))
    return path


def words(tree: Tree, *arguments: str) -> list[str]:
    return ["pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tree.root}", *arguments, str(tree.root / "apps")]


def run(tree: Tree, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of the repository in a process of their own."""

    def main() -> None:
        sys.exit(pytest.main(words(tree, *arguments)[1:]))

    return forked(main, ["pytest"], tree.root, {**tree.environ, **environ})


def start(tree: Tree, *arguments: str) -> subprocess.Popen[str]:
    """Start the tests of the repository, and return the process."""
    return subprocess.Popen(
        [sys.executable, "-m", *words(tree, *arguments)],
        cwd=tree.root,
        env=tree.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_database_is_the_tests_own(database: Database, target: Target, package: Package) -> None:
    """It is migrated, what is committed stays for as long as the test, and the server shows whose connections are."""
    with database.transaction() as connection:
        connection.execute(sqlalchemy.text("INSERT INTO shelf_1 VALUES (1)"))
    with databases.connect(target) as other:
        assert other.execute(COUNT).fetchone() == (1,)
        assert other.execute("SELECT environment FROM atriz.label").fetchone() == ("test",)
    assert [tuple(row) for row in database.query("SHOW application_name")] == [(package.name,)]
    assert database.url.database == target.database


def test_rolled_back_tests_share_a_database_and_leave_nothing(shelf: Tree) -> None:
    """Each of three ways to change a row is undone before the next test; a commit is refused."""
    write(
        shelf,
        """
        import psycopg, pytest, sqlalchemy

        def count(connection):
            return connection.execute("SELECT count(*) FROM shelf_1").fetchone()

        def test_connection(connection):
            assert count(connection) == (0,)
            connection.execute("INSERT INTO shelf_1 VALUES (1)")
            with pytest.raises(psycopg.ProgrammingError, match="commit"):
                connection.commit()

        def test_session(session, connection):
            assert count(connection) == (0,)
            session.execute(sqlalchemy.text("INSERT INTO shelf_1 VALUES (1)"))
            session.commit()
            session.rollback()
            assert count(connection) == (1,)

        def test_failed_statement(connection):
            assert count(connection) == (0,)
            with pytest.raises(psycopg.errors.UndefinedTable):
                connection.execute("SELECT FROM missing")

        def test_ended_backend(connection, target):
            assert count(connection) == (0,)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        @pytest.mark.seeded
        def test_seeded(connection):
            assert count(connection) == (3,)

        def test_unseeded(connection):
            assert count(connection) == (0,)
        """,
    )
    done = run(shelf)
    assert "6 passed" in done.stdout, done.stdout
    assert made(shelf, "test") == []


def test_session_and_connection_are_in_one_transaction(connection: Connection, session: Session) -> None:
    """What one has done the other sees; SQLAlchemy's connection is the session's own."""
    connection.execute("INSERT INTO shelf_1 VALUES (1)")
    assert session.connection().execute(sqlalchemy.text(COUNT)).scalar() == 1
    with session.begin_nested():
        session.execute(sqlalchemy.text("INSERT INTO shelf_1 VALUES (2)"))
    session.rollback()
    assert connection.execute(COUNT).fetchone() == (1,)


def test_async_fixtures_take_no_plugin(
    async_database: AsyncDatabase,
    async_connection: psycopg.AsyncConnection[Any],
    async_session: AsyncSession,
    database: Database,
) -> None:
    """They are opened outside of the test's event loop, used in it, and closed after it."""

    async def use() -> None:
        await async_database.execute("INSERT INTO shelf_1 VALUES (1), (2)")
        await async_connection.execute("INSERT INTO shelf_1 VALUES (9)")
        assert (await async_session.execute(sqlalchemy.text(COUNT))).scalar() == 1
        await async_session.execute(sqlalchemy.text("INSERT INTO shelf_1 VALUES (10)"))
        await async_session.commit()
        assert await (await async_connection.execute(COUNT)).fetchone() == (2,)
        # Waiting for one another binds a lock to this loop.
        await asyncio.gather(*(async_connection.execute("SELECT 1") for _ in range(3)))

    asyncio.run(use())
    assert [tuple(row) for row in database.query(COUNT)] == [(2,)]


def test_fleet_has_what_the_package_depends_on(shelf: Tree) -> None:
    """By name, each migrated and seeded with its own; the package's is the one of `database`."""
    write(
        shelf,
        f"""
        import pytest

        @pytest.mark.seeded
        def test_fleet(fleet, database):
            assert list(fleet) == ["base{shelf.suffix}", "shelf{shelf.suffix}"]
            assert fleet["shelf{shelf.suffix}"] is database
            assert len(database.query("SELECT FROM shelf_1")) == 3
            assert fleet["base{shelf.suffix}"].query("SELECT FROM base_1") == []
        """,
    )
    done = run(shelf)
    assert "1 passed" in done.stdout, done.stdout
    assert made(shelf, "test") == []


def test_failed_test_keeps_its_database_and_the_next_run_drops_it(shelf: Tree) -> None:
    """The report says how to look into it, without the password; a passed one's is gone; the next run tells."""
    path = write(
        shelf,
        """
        def test_fails(database):
            database.execute("INSERT INTO shelf_1 VALUES (7)")
            assert False, "as it should"

        def test_passes(database):
            pass
        """,
    )
    done = run(shelf, PGPASSWORD=shelf.environ["PGPASSWORD"])
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    (kept,) = made(shelf, "test")
    (url,) = re.findall(r"^psql '(.*)'$", done.stdout, re.MULTILINE)
    assert shelf.environ["PGPASSWORD"] not in done.stdout
    path.write_text("def test_passes(database): pass\n")
    with psycopg.connect(url, password=shelf.environ["PGPASSWORD"]) as looking:
        assert looking.info.dbname == kept
        assert looking.execute("SELECT id FROM shelf_1").fetchall() == [(7,)]
        # Somebody is connected: it stays.
        assert "Dropped" not in run(shelf).stdout
        assert made(shelf, "test") == [kept]
    done = run(shelf)
    assert "Dropped the test databases that an earlier run had kept for " in done.stdout
    assert "test_shelf.py::test_fails" in done.stdout
    assert made(shelf, "test") == []


def test_only_so_many_databases_are_kept(shelf: Tree) -> None:
    """A mistake that fails every test doesn't fill the disk."""
    write(
        shelf,
        """
        import pytest

        @pytest.mark.parametrize("number", range(12))
        def test_fails(target, number):
            assert False
        """,
    )
    done = run(shelf)
    assert "12 failed" in done.stdout, done.stdout
    assert len(made(shelf, "test")) == 10
    assert done.stdout.count("Dropped: this run has kept the databases of 10 other tests.") == 2


def test_leaked_connection_is_named_and_ended(shelf: Tree) -> None:
    """It is an error of the test, with pid, application and query; the database goes all the same."""
    write(
        shelf,
        """
        from pathlib import Path

        import psycopg

        kept = []

        def test_leaks(database):
            url = database.url.text(secrets=True)
            kept.append(psycopg.connect(url, application_name="forgotten", autocommit=True))
            kept[0].execute("SELECT 'the last thing it did'")
            Path("pid").write_text(str(kept[0].info.backend_pid))

        def test_closes(database):
            with psycopg.connect(database.url.text(secrets=True)) as connection:
                connection.execute("SELECT 1")
        """,
    )
    done = run(shelf)
    assert "2 passed, 1 error" in done.stdout, done.stdout
    pid = (shelf.root / "pid").read_text()
    assert f"pid {pid} (forgotten, idle): SELECT 'the last thing it did'" in done.stdout
    assert made(shelf, "test") == []


@pytest.fixture
def clones(shelf: Tree, server_url: object, _run: Run) -> Iterator[Clones]:
    """Yield what makes databases for another run."""
    other = Run(_run.server, shelf.root)
    yield Clones(other)
    other.close()


def test_settings_and_grants_of_the_database_are_carried_into_clones(
    shelf: Tree, package: Package, clones: Clones
) -> None:
    """What ALTER DATABASE and ALTER ROLE have set holds in a clone, lists and odd characters included; so do grants."""
    role = f"reader_{shelf.suffix}"
    do = f"""
        CREATE ROLE {role};
        CREATE SCHEMA "odd, name";
        DO $do$ DECLARE name text := current_database(); BEGIN
            EXECUTE format('ALTER DATABASE %I SET search_path = "odd, name", public', name);
            EXECUTE format('ALTER DATABASE %I SET application.motto = %L', name, 'it''s, "quoted" = yes');
            EXECUTE format('ALTER DATABASE %I SET statement_timeout = ''7s''', name);
            EXECUTE format('ALTER ROLE {role} IN DATABASE %I SET work_mem = ''3MB''', name);
            EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', name);
            EXECUTE format('GRANT CREATE ON DATABASE %I TO {role} WITH GRANT OPTION', name);
        END $do$
    """
    shelf.revise(package.name, 2, do)
    clone = clones.make(package)
    query = """
        SELECT current_setting('search_path'), current_setting('application.motto'), current_schema(),
               current_setting('statement_timeout'), has_database_privilege('public', current_database(), 'CONNECT'),
               has_database_privilege('public', current_database(), 'TEMPORARY'),
               has_database_privilege(%(role)s, current_database(), 'CREATE WITH GRANT OPTION'),
               (SELECT setconfig FROM pg_db_role_setting JOIN pg_roles r ON r.oid = setrole
                JOIN pg_database d ON d.oid = setdatabase WHERE rolname = %(role)s AND datname = current_database())
    """
    with databases.connect(clone) as connection:
        row = connection.execute(query, {"role": role}).fetchone()
    assert row == (
        *('"odd, name", public', 'it\'s, "quoted" = yes', "odd, name", "7s"),
        *(False, True, True, ["work_mem=3MB"]),
    )
    clones.drop(clone)
    remove(shelf)
    with databases.maintenance(clone) as connection:
        connection.execute(f"DROP ROLE {role}".encode())


def test_another_month_means_another_template(shelf: Tree, package: Package, clones: Clones) -> None:
    """What revisions make for the month they run in is made again; a run over its end uses both, the next drops one."""
    shelf.revise(package.name, 2, "DO $$ BEGIN EXECUTE format('CREATE TABLE %I ()', 'made_' || now()::date); END $$")
    first = template.name_of(package, date(2031, 5, 1))
    assert first == template.name_of(package, date(2031, 5, 31)) != template.name_of(package, date(2031, 6, 1))
    for day in (date(2031, 5, 31), date(2031, 6, 1)):
        clones.drop(clones.make(package, today=day))
    assert len(made(shelf, "template")) == 2
    write(shelf, "def test_now(target): pass\n")
    assert "1 passed" in run(shelf).stdout
    assert set(made(shelf, "template")) > {first}, "the other run still uses it"


def test_template_is_made_anew_when_a_revision_changes(shelf: Tree) -> None:
    """Two runs of the same revisions make it once, one after an edit makes another and drops the first."""
    name, log = f"shelf{shelf.suffix}", shelf.root / "migrated"
    write(shelf, "def test_it(connection): connection.execute('SELECT id FROM shelf_1')\n")
    body = f"open({str(log)!r}, 'a').write('x'); op.execute('CREATE TABLE shelf_1 (id int, number int)')"
    shelf.revise(name, 1, body=body)
    for _ in range(2):
        assert "1 passed" in run(shelf).stdout
    assert log.read_text() == "x"
    before = made(shelf, "template")
    shelf.revise(name, 1, body=body.replace("number", "title"))
    write(shelf, "def test_it(connection): connection.execute('SELECT title FROM shelf_1')\n")
    assert "1 passed" in run(shelf).stdout
    assert log.read_text() == "xx"
    after = made(shelf, "template")
    assert (len(before), len(after)) == (1, 1)
    assert before != after


def test_broken_revision_is_tried_once(shelf: Tree) -> None:
    """Every test says what is wrong with it, and the server is asked once; mended, it leaves nothing behind."""
    name, log = f"shelf{shelf.suffix}", shelf.root / "migrated"
    body = f"open({str(log)!r}, 'a').write('x'); op.execute('CREATE NONSENSE')"
    shelf.revise(name, 1, body=body)
    write(shelf, "def test_one(target): pass\n\ndef test_two(target): pass\n")
    done = run(shelf)
    assert "2 errors" in done.stdout
    assert done.stdout.count("MigrationError: ") >= 2, done.stdout
    assert log.read_text() == "x"
    shelf.revise(name, 1)
    assert "2 passed" in run(shelf).stdout
    assert len(made(shelf)) == 1


def test_production_is_refused(shelf: Tree) -> None:
    """Where APP_ENV says production no database is made, whatever server is named."""
    write(shelf, "def test_it(target): pass\n")
    done = run(shelf, APP_ENV="production")
    assert "APP_ENV is production" in done.stdout
    assert made(shelf) == []


def test_project_that_does_not_use_it_pays_nothing(tmp_path: Path, tree: Tree) -> None:
    """Without a workspace around, tests run, and nothing of ours is loaded but the plugin and what loads the rest."""
    path = tmp_path / "test_alone.py"
    path.write_text(
        "import sys\n\ndef test_it():\n"
        "    ours = {name for name in sys.modules if name.startswith('atriz_database')}\n"
        "    assert ours == {'atriz_database', 'atriz_database.lazy', 'atriz_database.pytest_plugin'}\n"
        "    assert not {'psycopg', 'sqlalchemy'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=tree.environ, capture_output=True, text=True)
    assert "1 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(("manifest", "says"), [("", "no workspace"), ("[tool.uv.workspace]", "none of the")])
def test_test_outside_of_any_package_is_told_what_it_needs(shelf: Tree, manifest: str, says: str) -> None:
    """Beside a workspace's packages, and in a project that is none."""
    path = shelf.root.parent / "elsewhere" / "test_alone.py"
    path.parent.mkdir()
    (path.parent / "pyproject.toml").write_text(f"{manifest}\n")
    path.write_text("def test_it(connection): pass\n")
    done = forked(
        lambda: sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(path)])),
        ["pytest"],
        path.parent,
        shelf.environ,
    )
    assert f"{path} lies in {says}" in done.stdout, done.stdout
    assert "Give it a fixture `package` that returns one" in done.stdout


BLOCKED = """
    def test_waits(database):
        database.execute("INSERT INTO shelf_1 VALUES (1)")
        print("waiting", flush=True)
        input()
"""


def test_killed_run_disturbs_no_other_and_is_cleaned_up(shelf: Tree) -> None:
    """A later run drops what a killed one has left, and leaves alone what a living one works on."""
    write(shelf, BLOCKED)
    killed, living = (start(shelf, "-s") for _ in range(2))
    for process in (killed, living):
        assert process.stdout is not None
        assert any("waiting" in line for line in process.stdout)
    assert len(made(shelf, "test")) == 2
    killed.kill()
    killed.communicate()
    write(shelf, "def test_counts(connection): pass\n")
    wait_until_gone(shelf, "atriz_test", 1)
    assert "1 passed" in run(shelf).stdout
    assert len(made(shelf, "test")) == 1
    output, _ = living.communicate("go on\n", timeout=30)
    assert "1 passed" in output
    assert made(shelf, "test") == []


def wait_until_gone(tree: Tree, what: str, left: int) -> None:
    """Return when no more than `left` processes of test runs are connected to databases of the repository."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname ~ %s"
    with psycopg.connect(**dict(tree.server.parameters), autocommit=True) as connection:
        while connection.execute(query, [f"^{what}.*{tree.suffix}_"]).fetchone() > (left,):
            pass


def test_run_killed_while_it_makes_the_template_is_made_up_for(shelf: Tree) -> None:
    """Its unfinished template is never cloned: the next run makes it anew, and nothing is left."""
    name, begun = f"shelf{shelf.suffix}", shelf.root / "begun"
    write(
        shelf,
        """
        def test_it(connection):
            connection.execute("SELECT FROM shelf_1, shelf_2")
            assert connection.execute("SELECT to_regclass('leftover')").fetchone() == (None,)
        """,
    )
    # The first to come here stays here.
    wait = f"import pathlib, time; p = pathlib.Path({str(begun)!r}); p.exists() or p.touch() or time.sleep(60); "
    shelf.revise(name, 2, body=f"{wait} op.execute('CREATE TABLE shelf_2 ()')")
    killed = start(shelf)
    while not begun.exists():
        assert killed.poll() is None, killed.communicate()
    killed.kill()
    killed.communicate()
    (unfinished,) = made(shelf)
    assert unfinished.endswith("_unfinished")
    with psycopg.connect(**{**shelf.server.parameters, "dbname": unfinished}, autocommit=True) as connection:
        connection.execute("CREATE TABLE leftover ()")
    assert "1 passed" in run(shelf).stdout
    (finished,) = made(shelf)
    assert finished == unfinished.removesuffix("_unfinished")


@pytest.mark.parametrize("arguments", [pytest.param(["-n2"], marks=pytest.mark.gate), []], ids=["workers", "alone"])
def test_runs_and_workers_at_once_make_one_template(shelf: Tree, arguments: list[str]) -> None:
    """Two runs from nothing, with workers or without: each test finds its own rows alone, and one process migrates."""
    log = shelf.root / "migrated"
    body = f"open({str(log)!r}, 'a').write('x'); op.execute('CREATE TABLE shelf_1 (id int)')"
    shelf.revise(f"shelf{shelf.suffix}", 1, body=body)
    write(
        shelf,
        """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_alone(database, connection, number):
            assert database.query("SELECT FROM shelf_1") == []
            database.execute("INSERT INTO shelf_1 VALUES (1)")
            assert connection.execute("SELECT count(*) FROM shelf_1").fetchone() == (0,)
        """,
    )
    outputs = [process.communicate(timeout=60)[0] for process in [start(shelf, *arguments) for _ in range(2)]]
    assert ["4 passed" in output for output in outputs] == [True, True], outputs
    assert log.read_text() == "x"
    assert len(made(shelf)) == 1


@pytest.fixture
def poor() -> Iterator[dict[str, str]]:
    """Yield the variables of a server on TCP, for a role with a password that may make databases and nothing else."""
    with second.running(settings={"autovacuum_naptime": 1}) as server:
        parameters = {name.removeprefix("PG").lower(): text for name, text in server.environ.items()}
        with psycopg.connect(dbname="postgres", **parameters, autocommit=True) as connection:
            connection.execute("CREATE ROLE poor LOGIN CREATEDB PASSWORD 'poor%40@/'")
        yield {**server.environ, "PGUSER": "poor", "PGPASSWORD": "poor%40@/"}


@pytest.mark.gate
def test_named_server_takes_no_more_than_the_right_to_make_databases(shelf: Tree, poor: dict[str, str]) -> None:
    """Template, clones, settings, kept database and sweep do without a superuser; the password shows nowhere."""
    do = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''3MB''', current_database()); END $$"
    shelf.revise(f"shelf{shelf.suffix}", 2, do)
    path = write(
        shelf,
        """
        def test_fails(database):
            assert database.query("SHOW work_mem")[0][0] == "3MB"
            assert False
        """,
    )
    done = run(shelf, **poor)
    assert "E       assert False" in done.stdout, done.stdout
    (url,) = re.findall(r"^psql '(.*)'$", done.stdout, re.MULTILINE)
    assert "poor%40" not in done.stdout
    path.write_text("def test_passes(connection): pass\n")
    with psycopg.connect(url, password=poor["PGPASSWORD"]) as looking:
        assert looking.execute("SELECT count(*) FROM shelf_1").fetchone() == (0,)
    assert "Dropped the test databases" in run(shelf, **poor).stdout


@pytest.mark.gate
def test_database_in_which_autovacuum_is_at_work_is_dropped(package: Package, poor: dict[str, str]) -> None:
    """Which only a superuser may end, and DROP asks to go."""
    parameters = {name.removeprefix("PG").lower(): text for name, text in poor.items()}
    run = Run(target_of(package, DatabaseURL({**parameters, "dbname": "postgres"}), "the test"), package.root)
    name = run.new_name("vacuumed")
    run.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    slow = "autovacuum_vacuum_cost_limit = 1, autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_threshold = 1"
    with psycopg.connect(**parameters, dbname=name, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE rows WITH ({slow}) AS SELECT generate_series(1, 100000) AS id".encode())
        connection.execute("DELETE FROM rows")
    at_work = "SELECT FROM pg_stat_activity WHERE datname = %s AND usesysid IS NULL"
    deadline = time.monotonic() + 30
    while run.connection.execute(at_work, [name]).fetchone() is None:
        assert time.monotonic() < deadline, "autovacuum has not come"
    assert leaks(run.connection, name, patience=0) == databases._visitors(run.connection, name) == []
    run.drop(name)
    assert run.connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is None
    run.close()
