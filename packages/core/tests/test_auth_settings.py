"""Where the keys of tokens come from."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atriz_core import settings
from atriz_core.accounts import Accounts
from atriz_database import Database
from atriz_database.errors import SettingsError

KEY = "one:" + "k" * 32
AtOnce = Callable[[int, Callable[[int], Any]], list[Any]]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a workspace with a package core, in which one works; no variable says anything."""
    (tmp_path / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["packages/*"]\n')
    core = tmp_path / "packages" / "core"
    core.mkdir(parents=True)
    (core / "pyproject.toml").write_text(
        '[project]\nname = "c"\nversion = "1"\n[tool.atriz.database]\nname = "c"\nurl = "SHARED_DATABASE_URL"\n'
    )
    for name in ("AUTH_KEYS", "AUTH_ISSUER", "AUTH_AUDIENCE", "APP_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(core)
    return tmp_path


def test_process_wins_over_core_and_core_over_root(checkout: Path) -> None:
    """The process environment is first, then core's `.env`, then the root's; each variable by itself."""
    (checkout / ".env").write_text(f"AUTH_KEYS=root:{'r' * 32}\nAUTH_ISSUER=there\n")
    assert list(settings.keys({}).own) == ["root"]
    (checkout / "packages" / "core" / ".env").write_text(f"AUTH_KEYS=core:{'c' * 32}\n")
    assert list(settings.keys({}).own) == ["core"]
    keys = settings.keys({"AUTH_KEYS": KEY, "AUTH_AUDIENCE": "us"})
    assert (list(keys.own), keys.issuer, keys.audience) == (["one"], "there", "us")


def test_key_for_development_is_made_once_for_the_checkout(checkout: Path, at_once: AtOnce) -> None:
    """Eight apps that start at once have one key, in a file that only its owner reads, in a folder that git ignores."""
    made = at_once(8, lambda _: settings.keys({}))
    assert len({keys.own["development"].raw_value for keys in made}) == 1
    path = checkout / ".atriz" / "auth-keys"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["auth-keys"]
    again = settings.keys({"APP_ENV": "test"})
    assert again.own["development"].raw_value == made[0].own["development"].raw_value


def test_production_without_keys_is_refused_with_the_next_step(checkout: Path) -> None:
    """In production no key is made up, nor is the one for development used."""
    settings.keys({})
    with pytest.raises(SettingsError, match="token_urlsafe"):
        settings.keys({"APP_ENV": "production"})
    (checkout / ".env").write_text("APP_ENV=production\n")
    with pytest.raises(SettingsError, match="AUTH_KEYS is not set"):
        settings.keys({})
    assert settings.keys({"AUTH_KEYS": KEY})


def test_bad_keys_are_refused_without_showing_them(checkout: Path) -> None:
    """A secret that is too short is named by its id, and not shown."""
    with pytest.raises(SettingsError, match="the secret of one has fewer than 32 bytes") as caught:
        settings.keys({"AUTH_KEYS": "one:hunter2"})
    assert "hunter2" not in str(caught.value)


def test_outside_of_a_workspace_keys_have_to_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image with nothing but wheels has no checkout to keep a key in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="no workspace around"):
        settings.keys({})
    assert settings.keys({"AUTH_KEYS": KEY})


def test_app_signs_in_to_the_shared_database_with_its_own_role(
    checkout: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an app's own `.env` says of core's database goes before what core's says, and the process before both."""
    app = checkout / "packages" / "shop"
    app.mkdir()
    (app / "pyproject.toml").write_text(
        '[project]\nname = "s"\nversion = "1"\n[tool.atriz.database]\nname = "s"\nurl = "DATABASE_URL"\n'
    )
    assert settings.shared_url("shop", {}) is None
    url = database.url.text(secrets=True)
    (app / ".env").write_text(f"SHARED_DATABASE_URL='{url}'\n")
    (checkout / "packages" / "core" / ".env").write_text("SHARED_DATABASE_URL=postgresql://nobody@localhost/none\n")
    for name in ("SHARED_DATABASE_URL", "CORE_SHARED_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
        assert settings.shared_url("shop", {name: url}) is None
    with Accounts.from_environment("shop") as accounts:
        assert accounts.database.query("SELECT current_database()") == [(database.url.database,)]
    (app / ".env").write_text("SHARED_DATABASE_URL=hunter2\n")
    with pytest.raises(SettingsError, match="SHARED_DATABASE_URL in") as caught:
        Accounts.from_environment("shop")
    assert "hunter2" not in str(caught.value)


def test_unknown_environment_is_refused(checkout: Path) -> None:
    """A mistyped APP_ENV is not taken for development."""
    with pytest.raises(SettingsError, match="prod"):
        settings.keys({"APP_ENV": "prod"})


def test_app_that_stands_alone_is_in_production_by_its_own_file(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the `.env` of an app is the only one its APP_ENV holds: no key is made up, no mail goes to a log."""
    app = checkout / "packages" / "shop"
    app.mkdir()
    (app / "pyproject.toml").write_text(
        '[project]\nname = "s"\nversion = "1"\n[tool.atriz.database]\nname = "s"\nurl = "DATABASE_URL"\n'
    )
    url = "SHARED_DATABASE_URL=postgresql://app@db.example.com/atriz_shared\n"
    (app / ".env").write_text(f"APP_ENV=production\n{url}")
    for name in ("SHARED_DATABASE_URL", "CORE_SHARED_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match="AUTH_KEYS is not set"):
        Accounts.from_environment("shop")
    assert not (checkout / ".atriz").exists()
    (app / ".env").write_text(f"APP_ENV=production\nAUTH_KEYS={KEY}\n{url}")
    with pytest.raises(SettingsError, match="mail="):
        Accounts.from_environment("shop")


def test_production_needs_something_that_sends_mail(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of production are not written to a console because nobody said where mail goes."""
    monkeypatch.setenv("AUTH_KEYS", KEY)
    monkeypatch.setenv("APP_ENV", "production")
    monkeypatch.setenv("SHARED_DATABASE_URL", "postgresql://app@localhost/atriz_shared")
    with pytest.raises(SettingsError, match="mail="):
        Accounts.from_environment()
