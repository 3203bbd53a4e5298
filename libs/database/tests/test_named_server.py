"""Any PostgreSQL, as soon as one is named: TCP, password authentication, a password full of special characters."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest
import second
from second import Second
from tree import Tree


@pytest.fixture(scope="module")
def team() -> Iterator[Second]:
    """Yield a server as a team has it."""
    with second.running() as server:
        yield server


def test_named_by_pg_variables_in_the_environment(fleet: Tree, team: Second) -> None:
    """The whole life works, and the password is nowhere in what is printed."""
    fleet.environ |= team.environ
    done = fleet.atriz("setup")
    assert done.returncode == 0, done.stderr
    shown = fleet.atriz("env")
    assert f"postgresql://team:***@127.0.0.1:{team.port}/" in shown.stdout
    for text in (done.stdout, done.stderr, shown.stdout, fleet.atriz("env", "--json").stdout):
        assert second.PASSWORD not in text
        assert quote(second.PASSWORD, safe="") not in text
    assert {row["state"] for row in fleet.status().values()} == {"up-to-date"}


def test_named_in_the_root_env_file(fleet: Tree, team: Second) -> None:
    """The root .env names the server for every package; quotes keep the password whole."""
    quoted = team.environ["PGPASSWORD"].replace("\\", "\\\\").replace("'", "\\'")
    lines = {**team.environ, "PGPASSWORD": f"'{quoted}'"}
    (fleet.root / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    done = fleet.atriz("setup")
    assert done.returncode == 0, done.stderr


def test_named_by_urls_for_each_package(fleet: Tree, team: Second) -> None:
    """A URL with the password percent-encoded, in .env and in the environment; plain alembic takes it too."""
    base = f"postgresql://{team.user}:{quote(team.password, safe='')}@127.0.0.1:{team.port}"
    for name, variable in (("core", "SHARED_DATABASE_URL"), ("left", "DATABASE_URL")):
        (fleet.folders[name] / ".env").write_text(f"{variable}='{base}/{fleet.database(name)}'\n")
    environ = {"RIGHT_DATABASE_URL": f"{base}/{fleet.database('right')}"}
    done = fleet.atriz("setup", **environ)
    assert done.returncode == 0, done.stderr
    assert fleet.alembic("left", "current").stdout.strip() == "left0002 (head)"


def test_a_wrong_password_is_told_and_not_shown(fleet: Tree, team: Second) -> None:
    """It is not taken for a missing database or a server that is down."""
    done = fleet.atriz("migrate", "core", **{**team.environ, "PGPASSWORD": "wr%ng@1"})
    assert done.returncode == 1
    assert "password authentication failed" in done.stderr
    assert "PGHOST in the process environment" in done.stderr
    assert "wr%ng" not in done.stderr


def test_a_missing_database_there_is_seen_as_missing(fleet: Tree, team: Second) -> None:
    """Libpq gives no code for it; the maintenance database is asked."""
    fleet.environ |= team.environ
    assert {row["state"] for row in fleet.status().values()} == {"missing"}
