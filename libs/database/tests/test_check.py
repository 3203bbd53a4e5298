"""check, and stamp without a revision: what they find."""

from __future__ import annotations

import json

import pytest
from tree import Tree


@pytest.fixture
def left(tree: Tree) -> Tree:
    """Return a repository with one package at head, in which nothing is wrong."""
    tree.add("left", requires=(), revisions=2)
    tree.at_head()
    assert tree.atriz("check").returncode == 0
    return tree


def findings(tree: Tree) -> list[tuple[str, str]]:
    """Return kind and subject of what `check` finds, after its status has been held against it."""
    done = tree.atriz("check", "--json")
    rows = json.loads(done.stdout)
    assert done.returncode == (3 if rows else 0), done.stderr
    return [(row["kind"], f"{row['subject']} {row['text']}") for row in rows]


def test_a_dropped_check_constraint_is_seen(tree: Tree) -> None:
    """Autogenerate does not see it; the comparison with what the models alone would make does."""
    tree.add("left", requires=(), revisions=1)
    tree.revise("left", 1, "CREATE TABLE left_1 (id int CONSTRAINT ck_left_1_positive CHECK (id > 0))")
    (tree.root / "models_left.py").write_text(
        "from sqlalchemy import CheckConstraint, Column, Integer, MetaData, Table\n\nMETADATA = MetaData()\n"
        'Table("left_1", METADATA, Column("id", Integer), CheckConstraint("id > 0", name="ck_left_1_positive"))\n'
    )
    assert tree.atriz("migrate").returncode == 0
    assert findings(tree) == []
    with tree.connect("left") as connection:
        connection.execute("ALTER TABLE left_1 DROP CONSTRAINT ck_left_1_positive")
    (found,) = findings(tree)
    assert found[0] == "drift"
    assert "ck_left_1_positive" in found[1]


def test_a_table_without_a_model_and_a_model_without_a_table_are_drift(left: Tree) -> None:
    """Each is found, by its name."""
    left.models("left", 3)
    with left.connect("left") as connection:
        connection.execute("CREATE TABLE theirs (id int)")
    kinds, texts = zip(*findings(left), strict=True)
    assert set(kinds) == {"drift"}
    assert any("left_3" in text for text in texts)
    assert any("theirs" in text for text in texts)


def test_a_stale_head_file_is_found(left: Tree) -> None:
    """It says how to write it anew; migrate never trusts it."""
    path = left.folders["left"] / "migrations" / "head"
    path.write_text("left0001 0001_left0001\n")
    ((kind, text),) = findings(left)
    assert kind == "head file"
    assert "left0002 0002_left0002" in text
    assert left.atriz("migrate").returncode == 0


def test_edited_and_deleted_revisions_are_found(left: Tree) -> None:
    """One was changed after it was applied, one is gone."""
    left.revise("left", 3)
    assert left.atriz("migrate").returncode == 0
    first, _, third = sorted((left.folders["left"] / "migrations" / "versions").glob("*.py"))
    first.write_text(first.read_text() + "# later\n")
    third.unlink()
    kinds = [kind for kind, _ in findings(left)]
    assert "edited" in kinds
    assert "deleted" in kinds


def test_an_unsafe_statement_is_found_and_may_be_excused_with_a_reason(left: Tree) -> None:
    """An index that blocks writers is one; without a reason it is not excused."""
    path = left.revise("left", 3, "CREATE INDEX ix_left_1_id ON left_1 (id)")
    ((kind, text), (pending, _)) = findings(left)
    assert (kind, pending) == ("unsafe", "not at head")
    assert "require-concurrent-index-creation" in text
    written = path.read_text()
    path.write_text(written + '\nunsafe = {"require-concurrent-index-creation": ""}\n')
    assert [kind for kind, _ in findings(left)] == ["broken"]
    path.write_text(written + '\nunsafe = {"require-concurrent-index-creation": "small table"}\n')
    assert [kind for kind, _ in findings(left)] == ["not at head"]


def test_several_heads_are_found(left: Tree) -> None:
    """With the edit that mends them."""
    left.revise("left", 3, id_="mine")
    left.revise("left", 4, id_="yours", down="left0002")
    kind, text = findings(left)[0]
    assert kind == "heads"
    assert "set down_revision" in text


def test_models_that_nothing_imports_are_found(left: Tree) -> None:
    """Their tables would be missing from every revision."""
    package = left.root / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text((left.root / "models_left.py").read_text())
    (package / "forgotten.py").write_text('class Forgotten:\n    __tablename__ = "forgotten"\n')
    env = left.folders["left"] / "migrations" / "env.py"
    env.write_text(env.read_text().replace("models_left:", "shop.models:"))
    ((kind, text),) = findings(left)
    assert kind == "drift"
    assert "shop/forgotten.py" in text
    assert "never imported" in left.atriz("new", "left", "nothing").stderr


def test_stamp_finds_out_which_revision_a_database_is_at(tree: Tree) -> None:
    """By comparing catalogs; it stamps on --yes, and says what is nearest where none is equal."""
    tree.add("left", requires=(), revisions=3)
    tree.atriz("create")
    with tree.connect("left") as connection:
        connection.execute("CREATE TABLE left_1 (id int); CREATE TABLE left_2 (id int)")
    asked = tree.atriz("stamp", "left")
    assert asked.returncode == 3
    assert "left0002 leaves a database just like this one" in asked.stderr
    assert tree.status()["left"]["current"] == []
    assert tree.atriz("stamp", "left", "--yes").returncode == 0
    assert tree.status()["left"]["current"] == ["left0002"]
    with tree.connect("left") as connection:
        connection.execute("DELETE FROM alembic_version; ALTER TABLE left_2 ADD COLUMN extra int")
    unlike = tree.atriz("stamp", "left", "--yes")
    assert unlike.returncode == 3
    assert "left0002 comes nearest" in unlike.stderr
    assert "extra" in unlike.stdout
