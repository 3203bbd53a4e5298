"""What the roles that `grant` makes may do and may not: each thing is tried, as that role, and the server answers."""

from __future__ import annotations

from collections.abc import Iterator

import granted
import psycopg
import pytest
import sqlalchemy
from granted import Granted
from psycopg import errors

from atriz_database.database import Database

APP, OWNER, OTHER = "left_db_app", "left_db_owner", "right_db_app"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Granted]:
    """Yield databases that nothing but their roles' rights protects."""
    with granted.running(tmp_path_factory.mktemp("granted") / "repository") as made:
        yield made


# What no application's role may do in any database.
_NOWHERE = (
    "CREATE TABLE mine (id int)",
    "CREATE TEMPORARY TABLE mine (id int)",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TYPE mine AS ENUM ('one')",
    "CREATE SEQUENCE mine",
    "CREATE EXTENSION hstore",
    "CREATE EXTENSION dblink",
    "CREATE PUBLICATION mine FOR ALL TABLES",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "ALTER ROLE left_db_app SUPERUSER",
    "ALTER ROLE left_db_app CREATEDB",
    "ALTER ROLE right_db_app PASSWORD 'mine'",
    "ALTER ROLE left_db_owner PASSWORD 'mine'",
    "SET ROLE left_db_owner",
    "SET ROLE core_db_owner",
    "SET ROLE core_db_app",
    "SET ROLE right_db_app",
    "SET ROLE core_db_dependents",
    "SET ROLE team",
    "SET SESSION AUTHORIZATION team",
    "GRANT left_db_owner TO left_db_app",
    "GRANT core_db_app TO left_db_app",
    "GRANT core_db_dependents TO right_db_app WITH ADMIN OPTION",
    "GRANT pg_read_all_data TO left_db_app",
    "ALTER DEFAULT PRIVILEGES FOR ROLE left_db_owner GRANT ALL ON TABLES TO left_db_app",
    "REASSIGN OWNED BY left_db_owner TO left_db_app",
    "DROP OWNED BY left_db_owner",
    "ALTER SYSTEM SET log_statement = 'none'",
    "SET log_statement = 'none'",
    "SELECT * FROM pg_authid",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'team'",
    "SELECT pg_reload_conf()",
    "SELECT pg_switch_wal()",
    "COPY (SELECT 1) TO PROGRAM 'cat'",
    "COPY (SELECT 1) TO '/tmp/mine'",
    "SELECT lo_export(1, '/tmp/mine')",
    "SELECT * FROM atriz.label",
    "SELECT * FROM atriz.history",
    "UPDATE atriz.label SET environment = 'test'",
    "INSERT INTO alembic_version VALUES ('mine')",
    "UPDATE alembic_version SET version_num = 'mine'",
    "DELETE FROM alembic_version",
    "DROP TABLE alembic_version",
)
_IN_CORE = (
    "SELECT password_hash FROM users",
    "SELECT * FROM users",
    "SELECT count(*) FROM users WHERE password_hash LIKE 's%'",
    "SELECT users FROM users",
    "TABLE users",
    "COPY users TO STDOUT",
    "COPY users (password_hash) TO STDOUT",
    "INSERT INTO users VALUES (2, 'eve@example.com', 'Eve', 'mine')",
    "UPDATE users SET password_hash = 'mine'",
    "UPDATE users SET is_active = false",
    "DELETE FROM users",
    "TRUNCATE users CASCADE",
    "SELECT id FROM users FOR UPDATE",
    "BEGIN; LOCK TABLE users",
    "SELECT * FROM user_roles",
    "INSERT INTO user_roles (user_id, role) VALUES (1, 'admin')",
    "UPDATE user_roles SET role = 'admin'",
    "DELETE FROM user_roles",
    "SELECT nextval('user_roles_id_seq')",
    "SELECT count_hashes()",
    "SELECT * FROM alembic_version",
    "ALTER TABLE users ADD mine text",
    "CREATE INDEX ON users (email)",
    "CREATE TRIGGER mine AFTER INSERT ON users EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE POLICY mine ON users",
    "COMMENT ON TABLE users IS 'mine'",
    "DROP TABLE users",
    "CREATE FUNCTION auth.credentials(wanted text, mine int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER FUNCTION auth.credentials(text) SECURITY INVOKER",
    "DROP FUNCTION auth.credentials(text)",
    "ALTER SCHEMA auth OWNER TO left_db_app",
    "ALTER DATABASE core_db SET search_path = auth",
)
_IN_ITS_OWN = (
    "TRUNCATE left_1",
    "ALTER TABLE left_1 ADD mine text",
    "ALTER TABLE left_1 DISABLE TRIGGER ALL",
    "DROP TABLE left_1",
    "DROP SCHEMA left_extra CASCADE",
    "DROP DATABASE left_db",
    "ALTER DATABASE left_db OWNER TO left_db_app",
    "CREATE INDEX ON left_1 (note)",
    "CREATE TABLE mine (id int REFERENCES left_1)",
    "CREATE TABLE left_3_mine PARTITION OF left_3 FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
    "CREATE OR REPLACE VIEW left_4 AS SELECT 'mine' AS note",
    "CREATE TABLE left_extra.mine (id int)",
    "ALTER SEQUENCE left_2_id_seq RESTART",
    "SELECT setval('left_2_id_seq', 1)",
    "ALTER FUNCTION left_twice(int) SECURITY DEFINER",
    "ALTER TYPE left_mood ADD VALUE 'mine'",
)
_OWNERS = (
    "CREATE ROLE mine",
    "ALTER ROLE left_db_owner SUPERUSER",
    "ALTER ROLE right_db_app PASSWORD 'mine'",
    "ALTER ROLE left_db_app PASSWORD 'mine'",
    "SET ROLE team",
    "SET ROLE core_db_owner",
    "GRANT left_db_app TO right_db_app",
    "COPY (SELECT 1) TO PROGRAM 'cat'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT * FROM pg_authid",
    "DROP DATABASE right_db",
    "DROP DATABASE core_db",
    "ALTER DATABASE core_db OWNER TO left_db_owner",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'team'",
)

ATTEMPTS = (
    *((APP, database, statement) for database in ("left_db", "core_db") for statement in _NOWHERE),
    *((APP, "core_db", statement) for statement in _IN_CORE),
    *((APP, "left_db", statement) for statement in _IN_ITS_OWN),
    *((OWNER, "left_db", statement) for statement in _OWNERS),
    *(("core_db_app", "core_db", statement) for statement in _NOWHERE if statement != "SET ROLE core_db_app"),
)


@pytest.mark.parametrize(("role", "database", "statement"), ATTEMPTS, ids=lambda word: word[:60])
def test_the_server_refuses(world: Granted, role: str, database: str, statement: str) -> None:
    """With 42501, insufficient privilege, and nothing else."""
    with psycopg.connect(world.server.url("postgres")), world.connect(role, database) as connection:
        # Refused is the statement, not for what it would meet if it were not.
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute(statement.encode())


@pytest.mark.parametrize(
    ("role", "database"),
    [
        (APP, "right_db"), (APP, "postgres"), (APP, "template1"),
        (OTHER, "left_db"),
        (OWNER, "right_db"), (OWNER, "template1"),
        ("core_db_app", "left_db"), ("core_db_app", "right_db"), ("core_db_app", "postgres"),
        ("core_db_owner", "left_db"),
    ],
)  # fmt: skip
def test_the_server_lets_nobody_into_a_database_of_others(world: Granted, role: str, database: str) -> None:
    """An app's role signs in to its own database and to those it depends on, an owner to its own."""
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        world.connect(role, database)


def test_the_group_of_dependents_signs_in_nowhere(world: Granted) -> None:
    """It has rights and no password, and may not sign in."""
    world.administer("postgres", "ALTER ROLE core_db_dependents PASSWORD 'known'")
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        psycopg.connect(f"postgresql://core_db_dependents:known@127.0.0.1:{world.server.port}/core_db")


ALLOWED = (
    (APP, "left_db", "INSERT INTO left_1 (note) VALUES ('one') RETURNING id"),
    (APP, "left_db", "INSERT INTO left_2 (at) VALUES (now())"),
    (APP, "left_db", "INSERT INTO left_3 VALUES (1, '2026-01-01')"),
    (APP, "left_db", "UPDATE left_1 SET note = 'two'"),
    (APP, "left_db", "SELECT * FROM left_1 FOR UPDATE"),
    (APP, "left_db", "SELECT * FROM left_4"),
    (APP, "left_db", "DELETE FROM left_1"),
    (APP, "left_db", "SELECT left_twice(2)"),
    (APP, "left_db", "CALL left_note('three')"),
    (APP, "left_db", "SELECT 'good'::left_mood, 'Ada'::left_name"),
    (APP, "left_db", "INSERT INTO left_extra.things VALUES (1)"),
    (APP, "left_db", "LOCK TABLE left_1 IN ROW EXCLUSIVE MODE"),
    (APP, "left_db", "SELECT version_num FROM alembic_version"),
    (APP, "core_db", "SELECT id, email, name, is_active FROM users"),
    (APP, "core_db", "SELECT count(*) FROM users"),
    (APP, "core_db", "SELECT * FROM auth.credentials('ada@example.com')"),
    (OTHER, "core_db", "SELECT * FROM auth.credentials('ada@example.com')"),
    ("core_db_app", "core_db", "SELECT password_hash FROM users"),
    ("core_db_app", "core_db", "INSERT INTO user_roles (user_id, role) VALUES (1, 'member')"),
    (OWNER, "left_db", "CREATE TABLE new (id int); DROP TABLE new"),
    (OWNER, "left_db", "TRUNCATE left_1, left_2, left_3"),
    (OWNER, "left_db", "SELECT * FROM atriz.history"),
    (OWNER, "left_db", "ALTER TYPE left_mood ADD VALUE IF NOT EXISTS 'fair'"),
    (OWNER, "left_db", "CREATE SCHEMA new; DROP SCHEMA new"),
    (OWNER, "postgres", "SELECT 1"),
)


@pytest.mark.parametrize(("role", "database", "statement"), ALLOWED, ids=lambda word: word[:60])
def test_the_server_allows(world: Granted, role: str, database: str, statement: str) -> None:
    """What an application and its migrations need."""
    with (
        world.connect(role, database) as connection,
        connection.transaction(force_rollback="ALTER TYPE" not in statement),
    ):
        connection.execute(statement.encode())


def test_an_application_runs_on_its_role(world: Granted) -> None:
    """Transactions, savepoints and COPY of `Database` need no right that it lacks."""
    identity = sqlalchemy.Column("id", sqlalchemy.BigInteger, sqlalchemy.Identity(), primary_key=True)
    table = sqlalchemy.Table("left_1", sqlalchemy.MetaData(), identity, sqlalchemy.Column("note", sqlalchemy.Text))
    with Database(world.url(APP, "left_db")) as database:
        with database.transaction() as connection:
            connection.execute(table.delete())
            connection.execute(table.insert(), [{"note": "one"}, {"note": "two"}])
            with connection.begin_nested():
                connection.execute(table.update().values(note="three"))
        database.copy_rows(table, [{"note": "four"}, {"note": "five"}])
        with database.transaction() as connection:
            found = connection.execute(sqlalchemy.select(table.c.note)).scalars().all()
            connection.execute(table.delete())
    assert sorted(found) == ["five", "four", "three", "three"]


def test_a_view_of_the_owner_does_not_widen_what_dependents_read(world: Granted) -> None:
    """A view over all of users that core makes later is its own: dependents have what the manifest names."""
    world.administer("core_db", "SET ROLE core_db_owner; CREATE VIEW everyone AS SELECT * FROM users")
    try:
        with world.connect("core_db_app", "core_db") as connection:
            assert connection.execute("SELECT count(*) FROM everyone").fetchone() == (1,)
        with world.connect(APP, "core_db") as connection, pytest.raises(errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM everyone")
    finally:
        world.administer("core_db", "DROP VIEW everyone")
