"""`atriz grant`: what it makes, what it leaves alone, what it says, and what happens to it afterwards."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import granted
import psycopg
import pytest
import second
from granted import Granted
from hypothesis import given
from hypothesis import strategies as st
from psycopg import errors, sql
from second import Second
from tree import Tree

from atriz_database import databases, lock, passwords, roles, settings, workspace

_ADMINISTRATOR = ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD")

# A server of their own, which every process of the quick tests would start.
pytestmark = pytest.mark.gate


@pytest.fixture(scope="module")
def server() -> Iterator[Second]:
    """Yield a server that asks for passwords, and logs every statement."""
    with second.running(settings={"log_statement": "all"}) as running:
        yield running


@pytest.fixture
def world(server: Second, tmp_path: Path) -> Iterator[Granted]:
    """Yield a repository on it with databases at head, and no roles yet; both are gone afterwards."""
    made = granted.tree(tmp_path / "repository", server)
    assert made.atriz("setup").returncode == 0
    world = Granted(made, server)
    yield world
    forget(world)


def forget(world: Granted) -> None:
    """Remove the databases and every role but the server's own."""
    names = [name for (name,) in world.administer("postgres", "SELECT datname FROM pg_database WHERE datname ~ '_db$'")]
    for name in names:
        world.administer("postgres", f"DROP DATABASE {name} WITH (FORCE)")
    query = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'team'"
    for (name,) in world.administer("postgres", query):
        identifier = sql.Identifier(name).as_string()
        world.administer("postgres", f"DROP OWNED BY {identifier} CASCADE; DROP ROLE {identifier}")


def granting(world: Granted, *words: str, **environ: str) -> list[dict[str, object]]:
    """Run `atriz grant`, and return its outcomes."""
    done = world.tree.atriz("grant", *words, "--json", **environ)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def acts(outcomes: list[dict[str, object]]) -> list[str]:
    """Return what was done, a text each."""
    return [f"{act['what']} {act['subject']}: {act['detail']}" for each in outcomes for act in each["acts"]]  # type: ignore[attr-defined]


def found(world: Granted) -> list[dict[str, str]]:
    """Return what `atriz check` finds of rights."""
    done = world.tree.atriz("check", "--json")
    told = [each for each in json.loads(done.stdout) if each["kind"] == "rights"]
    assert done.returncode == 3 or not told
    return told


def forget_administrator(world: Granted) -> None:
    """Have nothing but ``.env`` files say where the databases are, and as whom to sign in."""
    for name in _ADMINISTRATOR:
        del world.tree.environ[name]
    (world.tree.root / ".env").unlink(missing_ok=True)


def written(world: Granted) -> Granted:
    """Grant, write the roles into the ``.env`` files, and forget the administrator."""
    granting(world)
    assert world.tree.atriz("env", "--write").returncode == 0
    forget_administrator(world)
    return world


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=63))
def test_names_fit_and_differ(database: str) -> None:
    """A role's name has 63 bytes at most, and databases with long names that begin alike have roles of their own."""
    names = roles.of(database).names
    assert len(set(names)) == 3
    assert all(len(name.encode()) <= 63 for name in names)
    assert not set(names) & set(roles.of(database + "x").names)


def test_the_second_run_has_nothing_to_do(world: Granted) -> None:
    """What is there is looked at, and nothing is said to be done to it."""
    first = acts(granting(world))
    assert "granted core_db_dependents: " in str(first)
    assert "left_db_dependents" not in str(first)
    assert set(acts(granting(world))) == {"up to date : "}
    done = world.tree.atriz("grant")
    assert "3 databases, nothing to do" in done.stdout
    assert found(world) == []


def test_everything_belongs_to_the_owner(world: Granted) -> None:
    """Tables, sequences, views, functions, types and schemas of the packages and our own, and the databases."""
    granting(world)
    assert world.administer(
        "postgres", "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'left_db'"
    ) == [("left_db_owner",)]
    query = """
        SELECT pg_get_userbyid(owner), count(*) FROM (
            SELECT relowner, relnamespace FROM pg_class
            UNION ALL SELECT proowner, pronamespace FROM pg_proc
            UNION ALL SELECT typowner, typnamespace FROM pg_type
            UNION ALL SELECT nspowner, oid FROM pg_namespace WHERE nspname <> 'public'
        ) AS thing (owner, schema) JOIN pg_namespace n ON n.oid = schema
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' GROUP BY 1
    """
    ((owner, _),) = world.administer("left_db", query)
    assert owner == "left_db_owner"


def test_other_roles_keep_what_the_administrator_gave_them(world: Granted) -> None:
    """A role that is not ours, with rights in our databases, is left alone."""
    world.administer("left_db", "CREATE ROLE reporting; GRANT SELECT ON left_1 TO reporting")
    granting(world)
    assert world.administer("left_db", "SELECT has_table_privilege('reporting', 'left_1', 'SELECT')") == [(True,)]


def test_passwords_are_for_their_owner_and_nowhere_else(world: Granted) -> None:
    """They are in files of mode 0600, and neither in what is printed nor in the server's log, which has verifiers."""
    printed = [world.tree.atriz("grant", *words) for words in ([], ["--rotate"], ["--rotate", "--json"])]
    folder = world.tree.root / ".atriz" / "passwords"
    files = [path for path in folder.rglob("*_db_*") if path.is_file()]
    assert {path.name for path in files} == {
        f"{name}_db_{role}" for name in world.tree.folders for role in ("owner", "app")
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert (folder / ".gitignore").read_text() == "*\n"
    log = (world.server.data / "server.log").read_text(errors="replace")
    assert log.count("PASSWORD 'SCRAM-SHA-256$") >= 18
    everything = log + "".join(done.stdout + done.stderr for done in printed)
    for path in files:
        assert len(path.read_text()) == 32
        assert path.read_text() not in everything


def test_env_write_takes_the_roles(world: Granted) -> None:
    """The application's role as the runtime URL, here and in core's database, and the owner as DIRECT_."""
    written(world)
    space = workspace.load(world.tree.root)
    left = world.tree.folders["left"] / ".env"
    urls = {
        name: settings.DatabaseURL.parse(value.text)
        for name, value in settings.read_file(left).items()
        if "URL" in name
    }
    assert {name: (url.parameters["user"], url.database) for name, url in urls.items()} == {
        "DATABASE_URL": ("left_db_app", "left_db"),
        "DIRECT_DATABASE_URL": ("left_db_owner", "left_db"),
        "SHARED_DATABASE_URL": ("left_db_app", "core_db"),
    }
    for url in urls.values():
        psycopg.connect(url.text(secrets=True)).close()
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    (target,) = settings.resolve(space, [space.package("left")], world.tree.environ, administrative=False)
    assert target.url is not None
    assert target.url.parameters["user"] == "left_db_app"
    assert "lacks nothing" in world.tree.atriz("env", "--write", "left").stdout


def test_a_file_that_gets_a_password_is_closed_to_everybody_else(world: Granted) -> None:
    """A copy of .env.example can be read by all on the machine, until there is something to read; its group stays."""
    granting(world)
    for before, after in ((0o644, 0o640), (0o666, 0o660), (0o600, 0o600)):
        path = world.tree.folders["left"] / ".env"
        path.write_text("# mine\n")
        path.chmod(before)
        assert world.tree.atriz("env", "--write", "left").returncode == 0
        assert "left_db_owner:" in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == after


def test_env_write_keeps_a_url_of_somebody_else(world: Granted) -> None:
    """A value that is there is not replaced, and it is said that it is not the role's."""
    path = world.tree.folders["left"] / ".env"
    line = f"DATABASE_URL='{world.server.url('left_db')}'\n"
    path.write_text(line)
    granting(world)
    done = world.tree.atriz("env", "--write", "left")
    assert path.read_text().startswith(line)
    assert "keeps DATABASE_URL" in done.stderr


def test_a_role_that_somebody_had_made_gets_a_password_of_ours(world: Granted) -> None:
    """Who knows the old one is turned away, and `env --write` has one to write, not the administrator's."""
    world.administer("postgres", "CREATE ROLE left_db_app LOGIN PASSWORD 'known'")
    assert "rotated left_db_app: `atriz env --write` takes the new passwords" in acts(granting(world))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://left_db_app:known@127.0.0.1:{world.server.port}/left_db")
    world.connect("left_db_app", "left_db").close()
    assert world.tree.atriz("env", "--write", "left").returncode == 0
    assert "//left_db_app:" in (world.tree.folders["left"] / ".env").read_text()
    assert set(acts(granting(world))) == {"up to date : "}


def test_rotate_gives_new_passwords(world: Granted) -> None:
    """The old ones are refused, env --write puts the new ones in place of the old, and changes nothing else."""
    written(world)
    path = world.tree.folders["left"] / ".env"
    path.write_text("# mine\nexport OTHER='it is'\n" + path.read_text() + "# the end")
    before = path.read_text()
    old = settings.read_file(path)
    others = [world.url("core_db_owner", "core_db"), world.url("right_db_app", "core_db")]
    world.tree.environ |= world.server.environ
    granting(world, "left", "--rotate")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(old["DATABASE_URL"].text)
    done = world.tree.atriz("env", "--write", "left")
    assert "a new password in SHARED_DATABASE_URL, DATABASE_URL, DIRECT_DATABASE_URL" in done.stdout
    new = settings.read_file(path)
    for name in ("DATABASE_URL", "DIRECT_DATABASE_URL", "SHARED_DATABASE_URL"):
        psycopg.connect(new[name].text).close()
        before = before.replace(old[name].text, new[name].text)
    assert path.read_text() == before
    assert others == [world.url("core_db_owner", "core_db"), world.url("right_db_app", "core_db")]


def test_what_fails_changes_no_password(world: Granted) -> None:
    """A run that is rolled back leaves the passwords as they were, on the server and in the files."""
    granting(world)
    url = world.url("left_db_app", "left_db")
    world.administer("left_db", "CREATE TABLE held (id int)")
    with psycopg.connect(world.server.url("left_db")) as holder:
        holder.execute("LOCK TABLE held IN ACCESS SHARE MODE")
        code = (
            "import sys; from pathlib import Path; from atriz_database import verbs, workspace; "
            "options = verbs.Options(only=True, lock_timeout=0.1, retries=1); "
            "[each] = verbs.grant(workspace.load(Path('.')), 'left', options, rotate=True); sys.exit(each.error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=world.tree.root, env=world.tree.environ, capture_output=True, text=True
        )
    assert "lock timeout" in done.stderr
    assert world.url("left_db_app", "left_db") == url
    psycopg.connect(url).close()


@pytest.mark.gate
def test_every_verb_works_as_the_owner(world: Granted) -> None:
    """With nothing but what env --write wrote: look, go forth and back, empty, drop and make anew."""
    written(world)
    tree = world.tree
    for verb in (
        "status --exit-code", "plan --sql", "check", "verify", "label", "migrate", "setup", "seed", "clean",
        "create", "repair left", "stamp left head", "reset left --yes", "check", "drop right --yes", "setup", "check",
        "reset --yes", "check", "rollback left", "migrate", "new left words --empty",
    ):  # fmt: skip
        if verb == "rollback left":
            tree.revise("left", 2, "CREATE TABLE left_5 (id int)")
            migrations = tree.folders["left"] / "migrations" / "versions" / "0002_left0002.py"
            migrations.write_text(migrations.read_text().replace("DROP TABLE left_2", "DROP TABLE left_5"))
            assert tree.atriz("migrate").returncode == 0
        done = tree.atriz(*verb.split())
        expected = 3 if verb in ("check",) and "drift" in done.stdout else 0
        assert done.returncode == expected, (verb, done.stdout, done.stderr)
        assert "rights" not in done.stdout, (verb, done.stdout)
    assert tree.alembic("left", "downgrade", "-1").returncode == 0
    assert tree.alembic("left", "upgrade", "head").returncode == 0


@pytest.mark.parametrize("who", ["owner", "administrator"])
def test_what_later_revisions_make_is_covered(world: Granted, who: str) -> None:
    """Tables, sequences, functions and schemas, for the application; for dependents what the manifest names."""
    granting(world)
    if who == "owner":
        assert world.tree.atriz("env", "--write").returncode == 0
        forget_administrator(world)
    world.tree.revise(
        "left",
        2,
        "CREATE TABLE late (id serial PRIMARY KEY); CREATE SCHEMA later; CREATE TABLE later.things (id serial); "
        "CREATE FUNCTION later.answer() RETURNS int LANGUAGE sql AS 'SELECT 42'",
    )
    world.tree.revise(
        "core",
        2,
        "DROP FUNCTION auth.credentials; CREATE FUNCTION auth.late() RETURNS int LANGUAGE sql AS 'SELECT 42'; "
        "CREATE FUNCTION late() RETURNS int LANGUAGE sql AS 'SELECT 42'",
    )
    done = world.tree.atriz("migrate")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    world.tree.environ |= world.server.environ
    with world.connect("left_db_app", "left_db") as connection:
        connection.execute("INSERT INTO late DEFAULT VALUES; INSERT INTO later.things DEFAULT VALUES")
        assert connection.execute("SELECT later.answer()").fetchone() == (42,)
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("ALTER TABLE late ADD mine int")
    with world.connect("left_db_app", "core_db") as connection:
        assert connection.execute("SELECT auth.late()").fetchone() == (42,)
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SELECT late()")
    assert set(acts(granting(world))) == {"up to date : "}


@pytest.mark.gate
@pytest.mark.parametrize("words", [["clean"], ["reset", "--yes"], ["drop", "--yes"]], ids=lambda words: words[0])
def test_rights_survive(world: Granted, words: list[str]) -> None:
    """Emptied, or dropped and made anew by the administrator, a database protects what it did before."""
    granting(world)
    assert world.tree.atriz(*words).returncode == 0
    if words[0] == "drop":
        assert world.tree.atriz("create").returncode == 0
        again = {act.partition(" ")[0] for act in acts(granting(world))}
        assert not again & {"granted", "revoked", "owned", "made"}
    assert world.tree.atriz("setup").returncode == 0
    assert set(acts(granting(world))) == {"up to date : "}
    with world.connect("left_db_app", "left_db") as connection:
        connection.execute("INSERT INTO left_1 (note) VALUES ('one')")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        world.connect("left_db_app", "right_db")


# What somebody did by hand, where, and what `check` says of it. Each on objects of its own.
_DRIFT = (
    ("left_db", "GRANT CONNECT ON DATABASE left_db TO PUBLIC", "PUBLIC", "has CONNECT on the database"),
    ("left_db", "GRANT CONNECT ON DATABASE left_db TO right_db_app", "right_db_app", "has CONNECT on the database"),
    ("left_db", "GRANT CREATE ON SCHEMA public TO PUBLIC", "PUBLIC", "CREATE on schema public"),
    ("left_db", "GRANT CREATE ON SCHEMA left_extra TO left_db_app", "left_db_app", "CREATE on schema left_extra"),
    ("left_db", "GRANT TRUNCATE ON left_1 TO left_db_app", "left_db_app", "TRUNCATE on table left_1"),
    ("left_db", "GRANT SELECT ON left_2 TO left_db_app WITH GRANT OPTION", "left_db_app",
     "SELECT on table left_2 WITH GRANT OPTION"),
    ("left_db", "REVOKE INSERT ON left_3 FROM left_db_app", "left_db_app", "lacks INSERT on table left_3"),
    ("left_db", "GRANT UPDATE (note) ON left_4 TO right_db_app", "right_db_app", "UPDATE (note) on table left_4"),
    ("left_db", "GRANT SELECT ON atriz.history TO left_db_app", "left_db_app", "SELECT on table atriz.history"),
    ("left_db", "GRANT UPDATE ON alembic_version TO left_db_app", "left_db_app", "UPDATE on table alembic_version"),
    ("left_db", "REVOKE USAGE ON SCHEMA public FROM left_db_app", "left_db_app", "USAGE on schema public"),
    ("left_db", "REVOKE EXECUTE ON FUNCTION left_twice FROM left_db_app", "left_db_app", "EXECUTE on function"),
    ("left_db", "GRANT EXECUTE ON PROCEDURE left_note TO PUBLIC", "PUBLIC", "EXECUTE on function"),
    ("left_db", "ALTER TABLE left_3_default OWNER TO team", "table public.left_3_default", "belongs to team"),
    ("left_db", "ALTER TYPE left_mood OWNER TO team", "type public.left_mood", "belongs to team"),
    ("right_db", "ALTER DATABASE right_db OWNER TO team", "database right_db", "belongs to team"),
    ("left_db", "ALTER DEFAULT PRIVILEGES FOR ROLE left_db_owner REVOKE SELECT ON TABLES FROM left_db_app",
     "left_db_app", "SELECT on tables that are made later"),
    ("left_db", "ALTER DEFAULT PRIVILEGES FOR ROLE left_db_owner GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
     "PUBLIC", "EXECUTE on functions that are made later"),
    ("left_db", "ALTER ROLE left_db_app CREATEDB", "left_db_app", "is NOCREATEDB now"),
    ("left_db", "ALTER ROLE left_db_owner SUPERUSER", "left_db_owner", "is NOSUPERUSER now"),
    ("left_db", "GRANT pg_read_all_stats TO left_db_app", "left_db_app", "is no member of pg_read_all_stats any more"),
    ("left_db", "GRANT right_db_owner TO left_db_app", "left_db_app", "is no member of right_db_owner any more"),
    ("core_db", "GRANT core_db_owner TO core_db_dependents", "core_db_dependents",
     "is no member of core_db_owner any more"),
    ("core_db", "GRANT pg_monitor TO core_db_dependents", "core_db_dependents",
     "is no member of pg_monitor any more"),
    ("core_db", "GRANT SELECT (password_hash) ON users TO core_db_dependents", "core_db_dependents", "(password_hash)"),
    ("core_db", "GRANT INSERT ON user_roles TO left_db_app", "left_db_app", "INSERT on table user_roles"),
    ("core_db", "REVOKE SELECT (email) ON users FROM core_db_dependents", "core_db_dependents", "lacks SELECT (email)"),
    ("core_db", "REVOKE core_db_dependents FROM left_db_app", "left_db_app", "is a member of core_db_dependents"),
    ("core_db", "GRANT core_db_dependents TO right_db_app WITH ADMIN OPTION", "right_db_app",
     "lets nobody else into core_db_dependents"),
)  # fmt: skip


def test_check_finds_what_was_done_by_hand_and_grant_mends_it(world: Granted) -> None:
    """Check exits with 3 and names each thing, grant undoes them all, and check finds nothing."""
    granting(world)
    for database, statement, _, _ in _DRIFT:
        world.administer(database, statement)
    told = found(world)
    for _, statement, subject, text in _DRIFT:
        assert any(each["subject"] == subject and text in each["text"] for each in told), (statement, told)
    changed = acts(granting(world))
    assert "revoked PUBLIC: CONNECT on the database" in str(changed)
    assert found(world) == []
    assert set(acts(granting(world))) == {"up to date : "}


def test_a_right_on_a_table_goes_and_those_on_its_columns_stay(world: Granted) -> None:
    """To revoke a right on a table takes those on its columns along; they are given again in the same run."""
    granting(world)
    world.administer("core_db", "GRANT SELECT ON users TO core_db_dependents")
    assert "core_db_dependents: SELECT on table users" in str(acts(granting(world)))
    with world.connect("left_db_app", "core_db") as connection:
        connection.execute("SELECT id, email, name, is_active FROM users")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SELECT password_hash FROM users")


@pytest.mark.gate
def test_any_number_of_runs_at_once(world: Granted) -> None:
    """Roles belong to the server: all runs end well, and one of them has made each."""
    processes = [world.tree.start("grant", "--json") for _ in range(6)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, said
    made = [act for output, _ in said for act in acts(json.loads(output)) if act.startswith("made")]
    assert len(made) == 3, made
    for role, database in (("left_db_app", "left_db"), ("right_db_owner", "right_db"), ("core_db_app", "core_db")):
        world.connect(role, database).close()


@pytest.mark.gate
def test_an_administrator_who_is_no_superuser(world: Granted) -> None:
    """CREATEROLE and CREATEDB are enough for whoever has made the databases."""
    forget(world)
    world.administer("postgres", "CREATE ROLE chief LOGIN CREATEROLE CREATEDB PASSWORD 'chief'")
    world.tree.environ |= {"PGUSER": "chief", "PGPASSWORD": "chief"}
    assert world.tree.atriz("setup").returncode == 0
    granting(world)
    assert set(acts(granting(world))) == {"up to date : "}
    granting(world, "--rotate")
    world.tree.revise("left", 2, "CREATE TABLE late (id serial PRIMARY KEY)")
    done = world.tree.atriz("migrate")
    assert (done.returncode, done.stderr) == (0, "")
    with world.connect("left_db_app", "left_db") as connection:
        connection.execute("INSERT INTO late DEFAULT VALUES")
    assert world.tree.atriz("reset", "--yes").returncode == 0
    assert found(world) == []


def test_who_may_not_is_told_what_it_takes(world: Granted) -> None:
    """A role without CREATEROLE changes nothing, and the message names who could."""
    granting(world)
    world.administer("postgres", "CREATE ROLE nobody LOGIN PASSWORD 'nobody'; GRANT left_db_owner TO nobody")
    world.administer("postgres", "ALTER ROLE left_db_app CREATEDB")
    done = world.tree.atriz("grant", "left", "--only", PGUSER="nobody", PGPASSWORD="nobody")
    assert done.returncode == 1
    assert "CREATEROLE" in done.stderr
    assert "Nothing was changed" in done.stderr


def test_the_administrator_is_found_behind_the_owner(world: Granted) -> None:
    """After env --write the URL in force is the owner's; PG* name who may do more on the same server."""
    written(world)
    world.administer("left_db", "ALTER ROLE left_db_app CREATEDB")
    assert world.tree.atriz("grant").returncode == 1
    assert acts(granting(world, **world.server.environ)) != []
    assert set(acts(granting(world))) == {"up to date : "}


def test_production_owners_make_no_databases(world: Granted) -> None:
    """CREATEDB is for development; in production the owner has none."""
    for name in world.tree.folders:
        world.administer(f"{name}_db", "UPDATE atriz.label SET environment = 'production'")
    granting(world, APP_ENV="production")
    query = "SELECT bool_or(rolcreatedb) FROM pg_roles WHERE rolname ~ '_db_owner$'"
    assert world.administer("postgres", query) == [(False,)]


def test_a_production_owner_checks_what_it_can(world: Granted) -> None:
    """Without CREATEDB models are not compared in a database of their own, and check says so."""
    for name in world.tree.folders:
        world.administer(f"{name}_db", "UPDATE atriz.label SET environment = 'production'")
    world.tree.environ["APP_ENV"] = "production"
    written(world)
    done = world.tree.atriz("check", "--json")
    assert done.returncode == 3
    (told,) = [each for each in json.loads(done.stdout) if each["kind"] == "not checked" and each["package"] == "left"]
    assert "left_db_owner has no right to create databases" in told["text"]


def test_a_right_that_somebody_else_handed_on_is_told(world: Granted) -> None:
    """Only who gave it can take it: grant fails on it, and does not say that it was revoked."""
    granting(world)
    world.administer("left_db", "CREATE ROLE reporting; GRANT SELECT ON atriz.label TO reporting WITH GRANT OPTION")
    world.administer("left_db", "GRANT USAGE ON SCHEMA atriz TO reporting")
    world.administer("left_db", "SET ROLE reporting; GRANT SELECT ON atriz.label TO left_db_app")
    done = world.tree.atriz("grant")
    assert done.returncode == 1
    assert 'REVOKE SELECT ON TABLE atriz.label FROM "left_db_app"' in done.stderr
    assert "revoked" not in done.stdout


def test_a_typo_in_the_manifest_is_told(world: Granted) -> None:
    """Functions, tables and columns that the database does not have: grant fails on them, and check finds them."""
    manifest = world.tree.folders["core"] / "pyproject.toml"
    text = manifest.read_text().replace('"auth.*"', '"auth.*", "auth.credential", "aut.*"')
    manifest.write_text(text.replace('"is_active"', '"isactive"').replace("users =", "user = ['id'], users ="))
    done = world.tree.atriz("grant")
    assert done.returncode == 1
    for name in ("function auth.credential", "function aut.*", "table user", "column users.isactive"):
        assert name in done.stderr
    assert "not run" not in done.stderr
    subjects = {each["subject"] for each in found(world)}
    assert subjects == {"function auth.credential", "function aut.*", "table user", "column users.isactive"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("insert = []", "takes functions and select"),
        ("functions = 'auth.*'", "should be a list"),
        ("select = ['users']", "should be a table"),
        ("select = { users = [] }", "no column of users"),
        ("select = { users = 'id' }", "should be a list"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """Before any server is asked."""
    tree = Tree(
        tmp_path, {"PATH": os.environ["PATH"], "PYTHONPATH": "", "HOME": str(tmp_path)}, lambda name: f"{name}_db"
    )
    (tmp_path / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["packages/*"]\n')
    manifest = tree.add("core") / "pyproject.toml"
    manifest.write_text(f"{manifest.read_text()}[tool.atriz.database.dependents]\n{text}\n")
    done = tree.atriz("status")
    assert done.returncode == 2
    assert said in done.stderr


def test_a_database_that_is_not_migrated_can_be_granted(world: Granted) -> None:
    """The administrator creates and grants; the owner, who needs no more than that, migrates."""
    forget(world)
    assert world.tree.atriz("create").returncode == 0
    done = world.tree.atriz("grant")
    assert done.returncode == 0, done.stderr
    assert "once that is migrated" in done.stderr
    assert world.tree.atriz("env", "--write").returncode == 0
    forget_administrator(world)
    done = world.tree.atriz("migrate")
    assert (done.returncode, done.stderr) == (0, "")
    world.tree.environ |= world.server.environ
    assert set(acts(granting(world))) == {"up to date : "}


def test_one_package_comes_with_what_it_depends_on(world: Granted) -> None:
    """Its application can sign people in; the other app has no roles yet, and is not touched."""
    granting(world, "left")
    with world.connect("left_db_app", "core_db") as connection:
        connection.execute("SELECT id FROM users")
    query = "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'right%'"
    assert world.administer("postgres", query) == [(0,)]
    assert found(world) == []
    granting(world)
    world.connect("right_db_app", "core_db").close()


def test_it_tells_which_other_databases_are_open(world: Granted) -> None:
    """PUBLIC may connect to postgres and template1 unless the server is said to be ours alone."""
    done = world.tree.atriz("grant")
    assert "postgres, template1 on the same server: PUBLIC has CONNECT there" in done.stderr
    closed = acts(granting(world, "--whole-server"))
    try:
        assert "revoked PUBLIC: CONNECT, TEMPORARY on database postgres" in closed
        assert world.tree.atriz("grant").stderr == ""
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            world.connect("left_db_app", "postgres")
    finally:
        world.administer("postgres", "GRANT CONNECT, TEMPORARY ON DATABASE postgres, template1 TO PUBLIC")


def test_what_is_for_dependents_is_nobodys_until_they_have_a_role(world: Granted) -> None:
    """A manifest that begins to grant something gives it to no other role meanwhile, PUBLIC least of all."""
    granting(world)
    manifest = world.tree.folders["left"] / "pyproject.toml"
    manifest.write_text(f'{manifest.read_text()}[tool.atriz.database.dependents]\nfunctions = ["left_twice"]\n')
    world.tree.revise("left", 2, "CREATE TABLE late (id int)")
    assert world.tree.atriz("migrate").returncode == 0
    query = "SELECT proacl::text FROM pg_proc WHERE proname = 'left_twice'"
    rights = "left_db_owner=X/left_db_owner,left_db_app=X/left_db_owner"
    assert world.administer("left_db", query) == [(f"{{{rights}}}",)]
    assert {each["subject"] for each in found(world)} == {"left_db_dependents"}
    granting(world)
    assert world.administer("left_db", query) == [(f"{{{rights},left_db_dependents=X/left_db_owner}}",)]
    assert found(world) == []


@pytest.mark.gate
def test_core_on_a_server_of_its_own(world: Granted, tmp_path: Path) -> None:
    """An application has a role and a password on each of the servers that it signs in to."""
    forget(world)
    with second.running() as elsewhere:
        world.tree.environ["CORE_SHARED_DATABASE_URL"] = elsewhere.url("core_db")
        assert world.tree.atriz("setup").returncode == 0
        for _ in range(2):
            granting(world, "left", "--rotate")
            assert world.tree.atriz("env", "--write", "left").returncode == 0
            urls = settings.read_file(world.tree.folders["left"] / ".env")
            with psycopg.connect(urls["SHARED_DATABASE_URL"].text) as connection:
                connection.execute("SELECT id FROM users")
                assert connection.info.port == elsewhere.port
            with psycopg.connect(urls["DATABASE_URL"].text) as connection:
                connection.execute("SELECT * FROM left_1")
                assert connection.info.port == world.server.port
        assert set(acts(granting(world, "left"))) == {"up to date : "}


def test_who_holds_the_lock_is_told_as_far_as_the_server_says(world: Granted) -> None:
    """Of another role's connection a role that is no member of it learns the pid and the role, and the run goes on."""
    written(world)
    with psycopg.connect(world.server.url("left_db"), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", [lock.KEY])
        done = world.tree.atriz("clean", "left", "--lock-wait", "0.1")
    assert done.returncode == 1
    assert "of role team" in done.stderr
    assert "defect" not in done.stderr


def test_the_owner_sees_what_the_application_is_at_and_may_end_it(world: Granted) -> None:
    """Who keeps a migration waiting is told with the statement, and `drop --force-connections` ends the app's."""
    written(world)
    tree = world.tree
    tree.revise("left", 2, "ALTER TABLE left_1 ADD more int")
    with psycopg.connect(settings.read_file(tree.folders["left"] / ".env")["DATABASE_URL"].text) as application:
        application.execute("SELECT 'the application' FROM left_1")
        done = tree.atriz("migrate", "left", "--lock-timeout", "1", "--retries", "0")
        assert done.returncode == 1
        assert "SELECT 'the application' FROM left_1" in done.stderr
        dropped = tree.atriz("drop", "left", "--yes", "--force-connections")
        assert dropped.returncode == 0, dropped.stderr
        with pytest.raises(psycopg.OperationalError):
            application.execute("SELECT 1")


def test_on_the_embedded_server_roles_have_no_passwords(fleet: Tree) -> None:
    """The kernel says who is at the other end of its socket, and nothing is written; rights hold all the same."""
    if settings.named_server(fleet.environ) is not None:
        pytest.skip("the test run is on a named server")
    assert fleet.atriz("setup").returncode == 0
    done = fleet.atriz("grant", "--rotate")
    assert done.returncode == 0, done.stderr
    assert "password" not in done.stdout
    assert done.stderr.count("the embedded server asks nobody for one") == 1
    assert fleet.atriz("grant").stderr == ""
    assert not (fleet.root / ".atriz" / "passwords").exists()
    assert fleet.atriz("env", "--write").returncode == 0
    assert (fleet.folders["left"] / ".env").read_text() == "APP_ENV=development\n"
    url = fleet.server.with_database(fleet.database("left"))
    app = roles.of(fleet.database("left")).app
    with psycopg.connect(url.signing_in(app, "").text(secrets=True), autocommit=True) as connection:
        connection.execute("INSERT INTO left_1 VALUES (1)")
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("DROP TABLE left_1")
    assert databases.exists(fleet.target("left"))
    assert passwords.read(fleet.root, fleet.server, app) is None
