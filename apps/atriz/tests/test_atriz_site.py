"""What the tables of atriz refuse and keep true, and what a seeded database holds."""

from __future__ import annotations

import runpy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors, sql

from atriz_core.development import USERS, user_id
from atriz_database.model import references
from atriz_website.models import Base

Connection = psycopg.Connection[Any]

SEEDS = Path(__file__).parents[1] / "seeds"
TABLES = ("user_profiles", "user_preferences")
LONG_AGO = datetime(2020, 2, 29, 12, tzinfo=UTC)


def add_profile(connection: Connection, user: UUID, **values: object) -> None:
    """Insert a profile of `user` with `values` in further columns."""
    columns = {"user_id": user, "display_name": "Somebody", **values}
    connection.execute(
        sql.SQL("INSERT INTO user_profiles ({}) VALUES ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join([sql.Placeholder()] * len(columns))
        ),
        list(columns.values()),
    )


def content(connection: Connection) -> dict[str, list[Any]]:
    """Return every row of every table."""
    return {
        table: connection.execute(f"SELECT row::text FROM {table} AS row ORDER BY 1").fetchall() for table in TABLES
    }


def test_user_has_one_profile(connection: Connection) -> None:
    """A second profile of one user is refused, and that of another is not."""
    user = uuid4()
    add_profile(connection, user)
    add_profile(connection, uuid4())
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        add_profile(connection, user)


def test_user_has_one_row_of_preferences(connection: Connection) -> None:
    """A second row of preferences of one user is refused."""
    user = uuid4()
    connection.execute("INSERT INTO user_preferences (user_id) VALUES (%s)", [user])
    with pytest.raises(errors.UniqueViolation), connection.transaction():
        connection.execute("INSERT INTO user_preferences (user_id) VALUES (%s)", [user])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("display_name", " "),
        ("bio", "x" * 2001),
        ("avatar_url", "javascript:alert(1)"),
        ("website_url", "ftp://example.com"),
    ],
)
def test_profile_refuses(connection: Connection, column: str, value: str) -> None:
    """A blank name, a book for a biography, and links that are not to the web are refused."""
    with pytest.raises(errors.CheckViolation), connection.transaction():
        add_profile(connection, uuid4(), **{column: value})


@pytest.mark.parametrize(
    ("column", "value"), [("theme", "neon"), ("language", "english"), ("language", "EN"), ("time_zone", "")]
)
def test_preferences_refuse(connection: Connection, column: str, value: str) -> None:
    """A theme, language or time zone that cannot be is refused."""
    statement = sql.SQL("INSERT INTO user_preferences (user_id, {}) VALUES (%s, %s)").format(sql.Identifier(column))
    with pytest.raises(errors.CheckViolation), connection.transaction():
        connection.execute(statement, [uuid4(), value])


def test_preferences_begin_quiet(connection: Connection) -> None:
    """Who has chosen nothing gets the system's colours, English, UTC, and no newsletter."""
    row = connection.execute(
        "INSERT INTO user_preferences (user_id) VALUES (%s)"
        " RETURNING theme, language, time_zone, email_notifications, newsletter",
        [uuid4()],
    ).fetchone()
    assert row == ("system", "en", "UTC", True, False)


def test_profile_is_not_public_unless_made_so(connection: Connection) -> None:
    """A new profile is for people who are signed in."""
    user = uuid4()
    add_profile(connection, user)
    assert connection.execute("SELECT is_public FROM user_profiles WHERE user_id = %s", [user]).fetchone() == (False,)


@pytest.mark.seeded
@pytest.mark.parametrize("table", TABLES)
def test_updated_at_on_the_site_follows_each_change(connection: Connection, table: str) -> None:
    """A change sets updated_at to now, also against a writer who says otherwise."""
    statement = sql.SQL("UPDATE {} SET updated_at = %s WHERE user_id = %s RETURNING updated_at = now()")
    changed = connection.execute(statement.format(sql.Identifier(table)), [LONG_AGO, user_id(USERS[0].email)])
    assert changed.fetchone() == (True,)


def test_user_ids_of_the_site_are_declared_as_references() -> None:
    """Every user_id is declared as a user of core, so that tools can follow it."""
    assert [str(reference) for reference in references(Base.metadata)] == [
        "user_preferences.user_id -> core.users.id",
        "user_profiles.user_id -> core.users.id",
    ]


@pytest.mark.seeded
@pytest.mark.parametrize("table", TABLES)
def test_site_knows_every_development_user(connection: Connection, table: str) -> None:
    """Each development user of core has a profile and preferences, under the id that core gives them."""
    rows = connection.execute(f"SELECT user_id FROM {table}").fetchall()
    assert {row[0] for row in rows} == {user_id(user.email) for user in USERS}


@pytest.mark.seeded
def test_development_time_zones_exist(connection: Connection) -> None:
    """The time zones that the seeds name are known to PostgreSQL."""
    unknown = connection.execute(
        "SELECT time_zone FROM user_preferences WHERE time_zone NOT IN (SELECT name FROM pg_timezone_names)"
    ).fetchall()
    assert unknown == []


@pytest.mark.seeded
def test_site_seeds_twice_change_nothing(connection: Connection) -> None:
    """A second run of the seeds inserts nothing and changes nothing."""
    before = content(connection)
    for path in sorted(SEEDS.glob("*.py")):
        runpy.run_path(str(path))["seed"](connection)
    assert content(connection) == before
