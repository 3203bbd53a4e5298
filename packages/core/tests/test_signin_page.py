"""The examples of docs/signin.md are run, one after the other, as a reader would."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from atriz_core import accounts, errors
from atriz_database import Database

PAGE = Path(__file__).parents[3] / "docs" / "signin.md"


def test_examples_of_the_page_run(
    database: Database,
    outbox: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a module, with the settings in the variables that the page names, outside of any workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHARED_DATABASE_URL", database.url.text(secrets=True))
    monkeypatch.setenv("AUTH_KEYS", "2026-a:" + "k" * 43)
    monkeypatch.setattr(accounts, "ConsoleMail", lambda: outbox)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    (tmp_path / "signin_page.py").write_text("\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("signin_page")
    assert capsys.readouterr().out == f"{errors.SignInError()}\nreset ada@example.com\n"
    assert [message.kind for message in outbox.messages] == ["verify", "changed", "reset", "changed"]


def test_page_tells_the_limits_that_hold(database: Database) -> None:
    """The table of waits says what the database counts by."""
    rows = database.query("SELECT scope, burst, leak FROM auth.limits('sign-in', 'a', 'b')")
    assert [tuple(row) for row in rows] == [("both", 5, 900), ("account", 100, 3600), ("source", 50, 30)]
    text = PAGE.read_text()
    assert "| account and client address | 5 | 15 minutes |" in text
    assert "| account, from all addresses together | 100 | an hour |" in text
    assert "over all accounts | 50 | 30 seconds |" in text
    rows = database.query("SELECT burst, leak FROM auth.limits('mail', 'a', 'b')")
    assert [tuple(row) for row in rows] == [(3, 1200), (10, 3600), (20, 120)]
    assert "| 3; 10; 20 | 20 minutes; an hour; 2 minutes |" in text
