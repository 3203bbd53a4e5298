"""Every verb in every situation ends as the table of docs/situations.md says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tree import Tree

_DOCUMENT = Path(__file__).parents[3] / "docs" / "situations.md"
# In an order in which one does not spoil the next: those that only look first, drop last.
_VERBS = (
    "status", "plan", "check", "env", "label", "graph", "repair left", "new left words", "new left words --empty",
    "create", "migrate", "seed", "setup", "stamp left head", "clean", "reset --yes", "rollback left", "drop --yes",
)  # fmt: skip


def documented() -> dict[str, dict[str, str]]:
    """Return the table: for each situation what each verb exits with."""
    rows = [
        [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        for line in _DOCUMENT.read_text().splitlines()
        if line.startswith("|")
    ]
    header, _, *body = rows
    return {situation: {row[0]: row[i] for row in body} for i, situation in enumerate(header) if i > 0}


def prepare(tree: Tree, situation: str) -> None:
    """Bring the repository and its databases into a situation."""
    if situation == "nothing there":
        return
    assert tree.atriz("setup").returncode == 0
    if situation == "server down":
        tree.environ |= {"PGHOST": "127.0.0.1", "PGPORT": "1"}
    if situation in ("production", "another environment"):
        for name in tree.folders:
            if situation == "production":
                with tree.connect(name) as connection:
                    connection.execute("UPDATE atriz.label SET environment = 'production'")
            variable = "SHARED_DATABASE_URL" if name == "core" else "DATABASE_URL"
            url = tree.server.with_database(tree.database(name)).text(secrets=True)
            tree.environ[f"{name.upper()}_{variable}"] = url
        tree.environ["APP_ENV"] = "production" if situation == "production" else "test"
    if situation == "broken revision":
        path = tree.revise("left", 3)
        path.write_text(path.read_text() + "\ndef broken(:\n")


@pytest.mark.parametrize(
    "situation",
    ["nothing there", "at head", "second run", "server down", "another environment", "production", "broken revision"],
)
def test_every_verb_ends_as_documented(fleet: Tree, situation: str) -> None:
    """The exit status is the table's, --json prints one document, --quiet nothing, and there is no traceback."""
    prepare(fleet, situation)
    expected = documented()[situation]
    found = {}
    for verb in _VERBS:
        if situation == "second run":
            quiet = fleet.atriz(*verb.split(), "--quiet")
            assert (quiet.returncode, quiet.stdout) == (0, ""), (verb, quiet.stderr)
        done = fleet.atriz(*verb.split(), "--json")
        found[verb] = str(done.returncode)
        assert "Traceback" not in done.stderr, (verb, done.stderr)
        assert "defect" not in done.stderr, (verb, done.stderr)
        json.loads(done.stdout)
        if done.returncode in (1, 2):
            assert done.stderr.strip(), verb
    if os.environ.get("ATRIZ_SHOW"):
        print(situation, found)  # noqa: T201
    assert found == expected
