"""The frame of an app: what it says when it starts, and when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from atriz_core import application
from atriz_core.accounts import Accounts
from atriz_database import Database
from atriz_database.url import DatabaseURL


def test_app_starts_on_a_good_database_without_a_word(
    accounts: Accounts, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """There is nothing to say where nothing is wrong."""
    with TestClient(application.create("core", "core", accounts=accounts, database=database)):
        assert caplog.messages == []


def test_app_says_at_its_start_what_is_wrong_and_starts(
    accounts: Accounts, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each database that cannot be used; it answers 503 until it can, and then as if nothing had been."""
    database.execute("ALTER SCHEMA auth RENAME TO once")
    away = DatabaseURL({**database.url.parameters, "host": "127.0.0.1", "port": "1"})
    with Database(away, name="mextrack", production=False) as own:
        app = application.create("mextrack", "mextrack", accounts=accounts, database=own)
        with TestClient(app) as client:
            first, second = caplog.messages
            assert first.startswith("core: the database is behind the code")
            assert first.endswith("Run `atriz migrate core`.")
            assert second.startswith("mextrack: the database cannot be used")
            sent = {"email": "ada@example.com", "password": "not the password"}
            assert client.post("/auth/login", json=sent).status_code == 503
            database.execute("ALTER SCHEMA once RENAME TO auth")
            assert client.post("/auth/login", json=sent).status_code == 401


def test_wrong_settings_end_it_with_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is missing in production, at once, and no traceback for who serves the factory."""
    monkeypatch.chdir(tmp_path)
    for name in ("AUTH_KEYS", "SHARED_DATABASE_URL", "CORE_SHARED_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("APP_ENV", "production")
    with pytest.raises(SystemExit) as caught:
        application.create("mextrack", "mextrack")
    text = str(caught.value)
    for part in ("AUTH_KEYS is not set", "Accounts.from_environment", "SHARED_DATABASE_URL", "MEXTRACK_DATABASE_URL"):
        assert part in text
