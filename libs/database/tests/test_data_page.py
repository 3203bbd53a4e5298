"""The examples of docs/data.md are run, one after the other, as a reader would."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from atriz_database import Database
from atriz_database.url import DatabaseURL

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def test_examples_of_the_page_run(
    empty: DatabaseURL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a module, with the URL in the variable that the page names, outside of any workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEXTRACK_DATABASE_URL", empty.text(secrets=True))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    (tmp_path / "data_page.py").write_text("\n".join(blocks))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("data_page")
    assert capsys.readouterr().out == "[(3,)]\n0 of 20 in use, 0 wait; 0.0 s waited so far\n"
    with Database(empty) as db:
        assert db.query("SELECT * FROM accounts ORDER BY name") == [("ann", 85), ("ben", 15), ("eve", 5)]


def test_page_names_every_public_error() -> None:
    """So that one that is added is told of."""
    import atriz_database

    text = PAGE.read_text()
    for name in ("DatabaseClosedError", "OutcomeUnknownError", "PoolTimeoutError", "TransactionError"):
        assert name in atriz_database.__all__
        assert f"`{name}`" in text
