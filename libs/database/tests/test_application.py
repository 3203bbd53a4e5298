"""Where an application finds its database: the settings of the command, or in an image the variables alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tree import Tree

from atriz_database import AsyncDatabase, Database, settings
from atriz_database.errors import SettingsError, WorkspaceError
from atriz_database.url import DatabaseURL

ELSEWHERE = "postgresql://ann:secret@db.example.com/shop"


def enter(monkeypatch: pytest.MonkeyPatch, folder: Path, environ: dict[str, str]) -> None:
    """Go to a folder, with a process environment that says no more of databases than `environ`."""
    import os

    monkeypatch.chdir(folder)
    for name in os.environ:
        if name.startswith("PG") or name.endswith("DATABASE_URL") or name in ("APP_ENV", "ATRIZ_SERVER_HOME"):
            monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_application_finds_what_the_command_finds(fleet: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder of the workspace, the embedded server included; named as the package."""
    fleet.at_head()
    enter(monkeypatch, fleet.root / "apps" / "left", fleet.environ)
    query = "SELECT current_database(), current_setting('application_name')"
    with Database.from_environment("left", pool_size=2) as db:
        assert db.query(query) == [(fleet.database("left"), "left")]
        assert db.pool.size == 2

    async def main() -> None:
        async with AsyncDatabase.from_environment("core") as other:
            assert await other.query(query) == [(fleet.database("core"), "core")]

    asyncio.run(main())
    with pytest.raises(WorkspaceError, match="There is no package 'lift'"):
        Database.from_environment("lift")


def test_application_never_takes_the_direct_url(fleet: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """That one is for administration, past a pooler."""
    urls = {"LEFT_DIRECT_DATABASE_URL": "postgresql://here/direct", "LEFT_DATABASE_URL": "postgresql://here/pooled"}
    enter(monkeypatch, fleet.root, {**fleet.environ, **urls})
    with Database.from_environment("left") as db:
        assert db.url.database == "pooled"


@pytest.mark.parametrize(
    ("environ", "database"),
    [
        ({"SHOP_DATABASE_URL": "postgresql://here/own", "DATABASE_URL": "postgresql://here/plain"}, "own"),
        ({"DATABASE_URL": "postgresql://here/plain"}, "plain"),
    ],
)
def test_without_a_workspace_the_variables_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], database: str
) -> None:
    """As in an image that has nothing but wheels."""
    enter(monkeypatch, tmp_path, environ)
    with Database.from_environment("shop") as db:
        assert (db.url.database, db.name) == (database, "shop")


def test_without_a_workspace_another_variable_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, tmp_path, {"SHARED_DATABASE_URL": "postgresql://here/shared"})
    with Database.from_environment("core", variable="SHARED_DATABASE_URL") as db:
        assert db.url.database == "shared"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "No database is named for shop. Looked for SHOP_DATABASE_URL and DATABASE_URL in the process environment"),
        ({"DATABASE_URL": "here"}, "DATABASE_URL in the process environment is not a URL"),
        ({"DATABASE_URL": ELSEWHERE, "APP_ENV": "live"}, "APP_ENV in the process environment is 'live'"),
        ({"DATABASE_URL": ELSEWHERE, "APP_ENV": "production"}, "leads to another host in production"),
    ],
)
def test_without_a_workspace_what_is_wrong_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], message: str
) -> None:
    enter(monkeypatch, tmp_path, environ)
    with pytest.raises(SettingsError) as caught:
        Database.from_environment("shop")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mode", ["", "?sslmode=allow", "?sslmode=prefer"])
def test_production_refuses_to_go_without_tls_to_another_host(mode: str) -> None:
    """The message names the mode and the ways out, and no password."""
    with pytest.raises(SettingsError, match=r"sslmode=verify-full .* sslmode=disable") as caught:
        settings.usable(ELSEWHERE + mode, production=True, environ={})
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError):
        settings.usable(ELSEWHERE + mode, production=None, environ={"APP_ENV": "production"})
    settings.usable(ELSEWHERE + mode, production=None, environ={"APP_ENV": "test"})
    settings.usable(ELSEWHERE + mode, production=False, environ={"APP_ENV": "production"})


@pytest.mark.parametrize(
    ("url", "environ"),
    [
        *((f"{ELSEWHERE}?sslmode={mode}", {}) for mode in ("disable", "require", "verify-ca", "verify-full")),
        (ELSEWHERE, {"PGSSLMODE": "require"}),
        (f"{ELSEWHERE}?gssencmode=require", {}),
        ("postgresql://localhost/shop", {}),
        ("postgresql:///shop?host=/run/postgresql", {}),
    ],
)
def test_production_takes_what_is_safe_or_said(url: str, environ: dict[str, str]) -> None:
    assert settings.usable(url, production=True, environ=environ) == DatabaseURL.parse(url)


def test_verbs_are_held_to_the_same(fleet: Tree) -> None:
    """Before anything is connected to; status 2."""
    done = fleet.atriz("status", "left", APP_ENV="production", LEFT_DATABASE_URL=ELSEWHERE)
    assert done.returncode == 2
    assert "LEFT_DATABASE_URL in the process environment) leads to another host in production" in done.stderr
