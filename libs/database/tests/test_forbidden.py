"""What the roles that `grant` makes may do and may not: each thing is tried, as that role, and the server answers."""

from __future__ import annotations

from collections.abc import Iterator

import granted
import psycopg
import pytest
import sqlalchemy
from attempts import ALLOWED, APP, ATTEMPTS, ELSEWHERE
from granted import Granted
from psycopg import errors

from atriz_database.database import Database

# A server of their own, which every process of the quick tests would start.
pytestmark = pytest.mark.gate


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Granted]:
    """Yield databases that nothing but their roles' rights protects."""
    with granted.running(tmp_path_factory.mktemp("granted") / "repository") as made:
        yield made


@pytest.mark.parametrize(("role", "database", "statement"), ATTEMPTS, ids=lambda word: word[:60])
def test_the_server_refuses(world: Granted, role: str, database: str, statement: str) -> None:
    """With 42501, insufficient privilege, and nothing else."""
    assert world.tried(role, database, statement) == "42501"


@pytest.mark.parametrize(("role", "database"), ELSEWHERE)
def test_the_server_lets_nobody_into_a_database_of_others(world: Granted, role: str, database: str) -> None:
    """An app's role signs in to its own database and to those it depends on, an owner to its own."""
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        world.connect(role, database)


def test_the_group_of_dependents_signs_in_nowhere(world: Granted) -> None:
    """It has rights and no password, and may not sign in."""
    world.administer("postgres", "ALTER ROLE core_db_dependents PASSWORD 'known'")
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        psycopg.connect(f"postgresql://core_db_dependents:known@127.0.0.1:{world.server.port}/core_db")


@pytest.mark.parametrize(("role", "database", "statement"), ALLOWED, ids=lambda word: word[:60])
def test_the_server_allows(world: Granted, role: str, database: str, statement: str) -> None:
    """What an application and its migrations need."""
    assert world.tried(role, database, statement) == ""


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
