"""What a run's engine knows of the server without asking it, and where it finds Alembic's table."""

from __future__ import annotations

import psycopg
import pytest
import sqlalchemy
from tree import Tree

from atriz_database import databases
from atriz_database.migrations import session
from atriz_database.migrations.journal import Journal

_KNOWN = ("server_version_info", "default_schema_name", "default_isolation_level", "_backslash_escapes")


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("default_transaction_isolation = 'repeatable read'", "standard_conforming_strings = off"),
        ("search_path = nowhere",),
        ("search_path = nowhere, public",),
    ],
)
def test_it_knows_what_sqlalchemy_would_have_asked(fleet: Tree, settings: tuple[str, ...]) -> None:
    """Whatever the database sets: the version, the schema, the isolation level, and how strings are written."""
    target = fleet.target("core")
    databases.create(target)
    with fleet.connect("core") as connection:
        for each in settings:
            connection.execute(f"ALTER DATABASE {fleet.database('core')} SET {each}".encode())
    plain = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(**databases.parameters(target, "plain")),
        poolclass=sqlalchemy.NullPool,
    )
    with plain.connect(), session.opened(target, Journal(), session.Limits()) as ours:
        for name in _KNOWN:
            assert getattr(ours.dialect, name) == getattr(plain.dialect, name), name


def test_an_empty_version_table_is_used_wherever_the_search_path_finds_it(fleet: Tree) -> None:
    """It is not made a second time in the schema that comes first."""
    fleet.at_head()
    with fleet.connect("left") as connection:
        connection.execute("DROP TABLE left_1, left_2; DELETE FROM alembic_version; CREATE SCHEMA first")
        connection.execute(f"ALTER DATABASE {fleet.database('left')} SET search_path = first, public".encode())
    done = fleet.atriz("migrate")
    assert done.returncode == 0, done.stderr
    assert fleet.rows("left", "SELECT version_num FROM public.alembic_version") == [("left0002",)]
    found = "SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = "
    assert fleet.rows("left", f"{found}'alembic_version'") == [("public",)]
    assert fleet.rows("left", f"{found}'left_2'") == [("first",)]
