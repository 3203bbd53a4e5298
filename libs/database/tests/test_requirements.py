"""What a revision requires of another package's database, before it runs and before it is deployed."""

from __future__ import annotations

import json

import pytest
from tree import Tree


def require(tree: Tree, number: int, value: str) -> None:
    """Write left's revision `number`, which says ``requires = value``."""
    path = tree.revise("left", number)
    path.write_text(path.read_text().replace("depends_on = None", f"depends_on = None\nrequires = {value}"))


def test_what_is_there_or_comes_in_the_same_run_is_enough(fleet: Tree) -> None:
    """Core goes first, so that a revision of the same run may require its newest."""
    fleet.revise("core", 3)
    require(fleet, 3, '{"core": "core0003"}')
    done = fleet.atriz("migrate")
    assert done.returncode == 0, done.stderr
    assert fleet.status()["left"]["current"] == ["left0003"]


def test_without_it_the_revision_does_not_begin(fleet: Tree) -> None:
    """With --only: what is required, where the other database is, and the command; those before it stay applied."""
    assert fleet.atriz("migrate", "core").returncode == 0
    fleet.revise("core", 3)
    require(fleet, 3, '{"core": "core0003"}')
    done = fleet.atriz("migrate", "left", "--only", "--json")
    (row,) = json.loads(done.stdout)
    assert done.returncode == 1
    assert "0003_left0003 of left requires revision core0003 of core" in done.stderr
    assert f"{fleet.database('core')} is at core0002. Migrate it first: atriz migrate core" in done.stderr
    assert (row["applied"], row["pending"], row["at"]) == (["left0001", "left0002"], ["left0003"], ["left0002"])
    assert fleet.atriz("migrate", "core").returncode == 0
    assert fleet.atriz("migrate", "left", "--only").returncode == 0


def test_a_database_that_is_not_there_is_no_better(fleet: Tree) -> None:
    """The message names the command that makes it."""
    require(fleet, 1, '{"core": "core0001"}')
    done = fleet.atriz("migrate", "left", "--only")
    assert done.returncode == 1
    assert "atriz create core" in done.stderr
    assert "defect" not in done.stderr


def test_plain_alembic_asks_as_well(fleet: Tree) -> None:
    """`alembic upgrade head` stops before the revision, with the same words."""
    fleet.at_head()
    fleet.revise("core", 3)
    require(fleet, 3, '{"core": "core0003"}')
    done = fleet.alembic("left", "upgrade", "head")
    assert done.returncode != 0
    assert "requires revision core0003 of core" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert fleet.status()["left"]["current"] == ["left0002"]
    assert fleet.atriz("migrate", "core").returncode == 0
    assert fleet.alembic("left", "upgrade", "head").returncode == 0


def test_the_way_down_requires_nothing(fleet: Tree) -> None:
    """A revision is undone wherever the other database is by now."""
    fleet.revise("core", 3)
    require(fleet, 3, '{"core": "core0003"}')
    fleet.at_head()
    assert fleet.atriz("rollback", "core").returncode == 0
    assert fleet.atriz("rollback", "left").returncode == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"core": "feedbeef"}', "requires revision feedbeef of core, and no file in"),
        ('{"nobody": "core0001"}', "requires nobody, and there is no such package"),
        ('["core0001"]', 'requires is written as {"package": "revision"}'),
        ('{"core": 1}', 'requires is written as {"package": "revision"}'),
        ('dict(core="core0001")', "requires is read without running the file"),
    ],
    ids=["revision", "package", "list", "number", "computed"],
)
def test_a_mistaken_requirement_is_named_by_check_and_by_the_run(fleet: Tree, value: str, words: str) -> None:
    """`check` finds it before a deploy; a run fails at that revision, with its file."""
    fleet.at_head()
    require(fleet, 3, value)
    found = json.loads(fleet.atriz("check", "left", "--json").stdout)
    assert [(row["kind"], words in row["text"]) for row in found if row["kind"] == "requires"] == [("requires", True)]
    done = fleet.atriz("migrate", "left")
    assert done.returncode == 1
    assert words in done.stderr
    assert "0003_left0003.py" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_finds_what_the_package_does_not_depend_on(fleet: Tree) -> None:
    """Without the dependency no order says that the other one goes first."""
    fleet.at_head()
    require(fleet, 3, '{"right": "right0002"}')
    found = json.loads(fleet.atriz("check", "left", "--json").stdout)
    (row,) = (row for row in found if row["kind"] == "requires")
    assert row["subject"] == "0003_left0003"
    assert "it requires right, which left does not depend on" in row["text"]


def test_plan_shows_what_is_required_and_how_it_stands(fleet: Tree) -> None:
    """Met by what is there, in this run, or, where the run leaves the other out, unmet."""
    fleet.at_head()
    fleet.revise("core", 3)
    require(fleet, 3, '{"core": "core0002"}')
    require(fleet, 4, '{"core": "core0003"}')
    rows = json.loads(fleet.atriz("plan", "left", "--json").stdout)
    shown = [step["requires"] for step in rows[1]["pending"]]
    assert shown == [
        [{"package": "core", "revision": "core0002", "state": "met"}],
        [{"package": "core", "revision": "core0003", "state": "in this run"}],
    ]
    text = fleet.atriz("plan", "left", "--only").stdout
    assert "      requires core0002 of core: met\n" in text
    assert "      requires core0003 of core: unmet\n" in text
