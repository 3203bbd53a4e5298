"""What a seeded database of core holds."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from atriz_core.development import USERS, user_id

Connection = psycopg.Connection[Any]

SEEDS = Path(__file__).parents[1] / "seeds"
TABLES = ("users", "auth_tokens", "roles", "user_roles", "user_metadata")


def content(connection: Connection) -> dict[str, list[Any]]:
    """Return every row of every table."""
    return {
        table: connection.execute(f"SELECT row::text FROM {table} AS row ORDER BY 1").fetchall() for table in TABLES
    }


@pytest.mark.seeded
def test_development_users_are_there_with_their_roles(connection: Connection) -> None:
    """Each development user is there, under the id that other packages know, with their roles."""
    rows = connection.execute(
        "SELECT users.id, email, users.name, array_agg(roles.name ORDER BY roles.name)"
        " FROM users JOIN user_roles ON user_id = users.id JOIN roles ON roles.id = role_id GROUP BY users.id"
    ).fetchall()
    assert {row[0]: (row[1], row[2], tuple(row[3])) for row in rows} == {
        user_id(user.email): (user.email, user.name, user.roles) for user in USERS
    }


@pytest.mark.seeded
def test_development_passwords_are_argon2id_hashes(connection: Connection) -> None:
    """No password stands in the database, only an encoded argon2id hash."""
    hashes = connection.execute("SELECT DISTINCT password_hash FROM users").fetchall()
    assert hashes
    assert all(row[0].startswith("$argon2id$v=19$") for row in hashes)


@pytest.mark.seeded
def test_core_seeds_twice_change_nothing(connection: Connection) -> None:
    """A second run of the seeds inserts nothing and changes nothing."""
    before = content(connection)
    for path in sorted(SEEDS.glob("*.py")):
        runpy.run_path(str(path))["seed"](connection)
    assert content(connection) == before


def test_core_seeds_leave_a_developers_own_rows_alone(connection: Connection) -> None:
    """Where a developer has made a user of that address by hand, theirs stays and gets the roles."""
    connection.execute("INSERT INTO users (email, password_hash, name) VALUES ('ada@example.com', 'mine', 'Me')")
    for path in sorted(SEEDS.glob("*.py")):
        runpy.run_path(str(path))["seed"](connection)
    row = connection.execute(
        "SELECT password_hash, users.name, roles.name FROM users JOIN user_roles ON user_id = users.id"
        " JOIN roles ON roles.id = role_id WHERE email = 'ada@example.com'"
    ).fetchone()
    assert row == ("mine", "Me", "admin")


def test_development_ids_never_change() -> None:
    """An id follows from the address alone: databases seeded last year name the same people."""
    assert user_id("ada@example.com") == UUID("3d21f9ee-d85e-5a10-bda2-dff7da80567a")
    assert user_id("ADA@Example.com") == user_id("ada@example.com")


def test_development_users_are_distinct_and_nobodys() -> None:
    """Addresses and ids differ, and all addresses are at example.com, which is nobody's."""
    assert len({user_id(user.email) for user in USERS}) == len(USERS)
    assert all(user.email.endswith("@example.com") and user.email == user.email.lower() for user in USERS)
    assert all(user.roles == tuple(sorted(user.roles)) and user.roles for user in USERS)
