"""Databases against their models and against their history, and the scratch databases that this takes."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa
from tree import Tree, add_column

from atriz_database import catalog, databases, drift, model, revisions
from atriz_database.errors import MigrationError, ServerError
from atriz_database.migrations import batch
from atriz_database.scratch import _NAME, _PREFIX, scratch
from atriz_database.settings import Target
from atriz_database.url import DatabaseURL


def run(target: Target, script: str) -> None:
    with databases.connect(target) as connection:
        connection.execute(script.encode())


def present(target: Target) -> set[str]:
    """Return the names of all databases on the target's server."""
    with databases.maintenance(target) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database")}


def of_core(tree: Tree, number: int) -> Target:
    """Return core's target in a tree with so many revisions, its database made and empty."""
    tree.add("core", revisions=number)
    target = tree.target("core")
    databases.create(target)
    return target


def models() -> sa.MetaData:
    """Return models with something of every kind that models can say."""
    metadata = sa.MetaData(naming_convention=model.NAMING_CONVENTION)
    sa.Table(
        "people",
        metadata,
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), primary_key=True),
        sa.Column("email", sa.Text(), nullable=False, unique=True, comment="Address."),
        sa.Column("age", sa.Integer(), sa.CheckConstraint("age > 0", name="age"), server_default=sa.text("1")),
        sa.Column("mood", sa.Enum("sad", "glad", name="mood")),
        sa.Column("twice", sa.Integer(), sa.Computed("age * 2", persisted=True)),
        comment="People.",
    )
    sa.Table(
        "pets",
        metadata,
        sa.Column("id", sa.Integer(), primary_key=True),  # serial
        sa.Column("owner", sa.ForeignKey("people.id"), index=True),
        sa.Column("number", sa.Integer(), sa.Sequence("numbers")),
    )
    return metadata


@pytest.fixture
def migrated(tree: Tree) -> Target:
    """Return a database with what `models` say, and with what only revisions can."""
    target = of_core(tree, 0)
    url = sa.URL.create("postgresql+psycopg", query={})
    engine = sa.create_engine(url, creator=lambda: databases.connect(target), poolclass=sa.NullPool)
    models().create_all(engine)
    run(
        target,
        """
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        COMMENT ON FUNCTION f() IS 'Nothing.';
        CREATE TRIGGER f BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION f();
        COMMENT ON TRIGGER f ON people IS 'Nothing.';
        CREATE VIEW adults AS SELECT id FROM people WHERE age > 17;
        COMMENT ON COLUMN adults.id IS 'Whose.';
        CREATE MATERIALIZED VIEW emails AS SELECT email FROM people;
        CREATE INDEX emails_email ON emails (email);
        CREATE SEQUENCE receipts;
        GRANT SELECT ON people TO PUBLIC;
        ALTER TABLE people ENABLE ROW LEVEL SECURITY;
        CREATE SCHEMA theirs;
        CREATE TABLE theirs.things (id int);
        """,
    )
    return target


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("SELECT", []),
        (
            "ALTER TABLE people DROP CONSTRAINT ck_people_age",
            ["constraint people.ck_people_age: CHECK ((age > 0)) -> missing"],
        ),
        (
            "ALTER TABLE people DROP CONSTRAINT ck_people_age, ADD CONSTRAINT ck_people_age CHECK (age > 1)",
            ["constraint people.ck_people_age: CHECK ((age > 0)) -> CHECK ((age > 1))"],
        ),
        ("COMMENT ON COLUMN people.email IS NULL", ["comment column people.email: Address. -> missing"]),
        ("COMMENT ON TABLE people IS 'Persons.'", ["comment table people: People. -> Persons."]),
        (
            "DROP INDEX ix_pets_owner",
            ["index ix_pets_owner: CREATE INDEX ix_pets_owner ON public.pets USING btree (owner) -> missing"],
        ),
        (
            "ALTER TABLE people ALTER age SET DEFAULT 2",
            ["column people.age: integer DEFAULT 1 -> integer DEFAULT 2"],
        ),
        ("ALTER TYPE mood ADD VALUE 'mad'", ["enum mood: ENUM ('sad', 'glad') -> ENUM ('sad', 'glad', 'mad')"]),
        (
            "CREATE TABLE strange (id int)",
            ["column strange.id: missing -> integer", "table strange: missing -> TABLE"],
        ),
        (
            "DROP SEQUENCE numbers",
            [
                "sequence numbers: SEQUENCE AS bigint START 1 INCREMENT 1 MINVALUE 1 MAXVALUE 9223372036854775807 "
                "CACHE 1 -> missing"
            ],
        ),
    ],
)
def test_models_differ_by_exactly_the_change(migrated: Target, change: str, found: list[str]) -> None:
    """What autogenerate doesn't see is found; what models cannot say is no difference."""
    run(migrated, change)
    assert [str(each) for each in drift.models(migrated, models())] == found


def test_models_may_use_what_revisions_make(tree: Tree) -> None:
    """A function in a default, a type of an extension and a schema are there when the models are made."""
    target = of_core(tree, 0)
    target = replace(target, package=replace(target.package, schemas=("public", "more")))
    run(
        target,
        """
        CREATE EXTENSION citext;
        CREATE SCHEMA more;
        CREATE FUNCTION next_code() RETURNS text LANGUAGE sql AS $$ SELECT 'x' || count(*) FROM more.things $$;
        """.replace("FROM more.things", "FROM pg_class"),
    )
    metadata = sa.MetaData()
    things = sa.Table(
        "things", metadata, sa.Column("code", sa.Text(), server_default=sa.text("next_code()")), schema="more"
    )
    things.append_column(sa.Column("name", sa.dialects.postgresql.CITEXT()))
    run(target, "CREATE TABLE more.things (name citext, code text DEFAULT next_code())")
    assert drift.models(target, metadata) == []


def test_models_that_cannot_be_made_are_an_error(tree: Tree) -> None:
    """The message says what is missing, and the scratch database is gone."""
    target = of_core(tree, 0)
    metadata = sa.MetaData()
    sa.Table("things", metadata, sa.Column("code", sa.Text(), server_default=sa.text("no_such()")))
    with pytest.raises(MigrationError, match=r"models of core can't be made.*no_such"):
        drift.models(target, metadata)


def test_finds_the_revision_that_a_database_matches(tree: Tree) -> None:
    """A database that something else made is that of the second revision of three, its history untouched."""
    target = of_core(tree, 3)
    run(target, "CREATE TABLE core_2 (id int); CREATE TABLE core_1 (id int); GRANT SELECT ON core_1 TO PUBLIC")
    match = drift.matching(target, revisions.read(tree.folders["core"] / "migrations" / "versions"))
    assert match == drift.Match(("core0002",), "core0002", ())
    assert tree.rows("core", "SELECT to_regclass('alembic_version'), to_regclass('atriz.history')") == [(None, None)]


def test_each_revision_is_compared_before_the_next_begins(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick they are, which go to the server several in one string where nothing is to happen between them."""
    target = of_core(tree, 1)
    for number in range(2, 41):
        tree.revise("core", number, body=add_column("core_1", f"c{number}"))
    columns = ", ".join(f"ADD c{number} text" for number in range(2, 31))
    run(target, f"CREATE TABLE core_1 (id int); ALTER TABLE core_1 {columns}")
    monkeypatch.setattr(batch, "_QUICK_SECONDS", 60.0)
    match = drift.matching(target, revisions.read(tree.folders["core"] / "migrations" / "versions"))
    assert match == drift.Match(("core0030",), "core0030", ())


def test_a_revision_that_changes_only_data_matches_as_well(tree: Tree) -> None:
    """Both are named, oldest first: only a person knows whether the data has been changed."""
    target = of_core(tree, 1)
    tree.revise("core", 2, "INSERT INTO core_1 VALUES (1)")
    run(target, "CREATE TABLE core_1 (id int)")
    match = drift.matching(target, revisions.read(tree.folders["core"] / "migrations" / "versions"))
    assert (match.equal, match.nearest) == (("core0001", "core0002"), "core0002")


def test_where_no_revision_matches_the_nearest_is_shown(tree: Tree) -> None:
    """With what it has and the database has not, and the other way round."""
    target = of_core(tree, 3)
    run(target, "CREATE TABLE core_1 (id int); CREATE TABLE core_2 (id bigint)")
    match = drift.matching(target, revisions.read(tree.folders["core"] / "migrations" / "versions"))
    assert (match.equal, match.nearest) == ((), "core0002")
    assert [str(each) for each in match.differences] == ["column core_2.id: integer -> bigint"]


def test_branches_are_compared_once_they_are_merged(tree: Tree) -> None:
    """The state with one branch and not all before it is no revision's, so it is offered for none."""
    target = of_core(tree, 1)
    tree.revise("core", 2, id_="left", down="core0001")
    tree.revise("core", 3, id_="right", down="core0001")
    path = tree.revise("core", 4, "SELECT 1", id_="merged")
    path.write_text(
        path.read_text().replace("down_revision: str | None = 'core0003'", "down_revision = ('left', 'right')")
    )
    run(target, "CREATE TABLE core_1 (id int); CREATE TABLE core_2 (id int); CREATE TABLE core_3 (id int)")
    match = drift.matching(target, revisions.read(tree.folders["core"] / "migrations" / "versions"))
    assert match.equal == ("merged",)


def test_without_revisions_there_is_nothing_to_match(tree: Tree) -> None:
    """No revision, no answer, no error."""
    target = of_core(tree, 0)
    match = drift.matching(target, revisions.read(tree.folders["core"] / "migrations" / "versions"))
    assert match == drift.Match((), None, ())


def test_a_scratch_database_is_empty_and_gone_afterwards(tree: Tree) -> None:
    """Its name is short enough and nobody else's; what goes wrong, and who is still connected, does not keep it."""
    tree.add("core" + "é" * 40, revisions=0)
    target = tree.target("core" + "é" * 40)
    with scratch(target) as one, scratch(target) as other:
        assert one.database != other.database
        assert len(one.database.encode()) <= 63
        assert one.database.startswith("atriz_scratch_coreé")
        assert one.environment == "test"
        with databases.connect(one) as connection:
            assert {each.kind for each in catalog.read(connection)} <= {"schema", "extension", "comment", "grant"}
    with pytest.raises(ZeroDivisionError), scratch(target) as failed:
        left_open = databases.connect(failed)
        1 / 0  # noqa: B018
    left_open.close()
    assert not {one.database, other.database, failed.database} & present(target)


def test_scratch_databases_of_killed_runs_go_after_a_day(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one is dropped by the next run; a young one, one in use and whatever has another name stay."""
    tree.add("core", revisions=0)
    target = tree.target("core")
    assert target.url is not None
    # Not what they are really called: other tests that run meanwhile would clean up as well.
    prefix = f"scratch_{tree.suffix}_"
    monkeypatch.setattr("atriz_database.scratch._PREFIX", prefix)
    monkeypatch.setattr("atriz_database.scratch._NAME", re.compile(_NAME.pattern.replace(_PREFIX, prefix)))
    now = int(time.time())
    old, used, young = (f"{prefix}core_{made:08x}00000000" for made in (now - 90_000, now - 90_001, now - 80_000))
    other = f"{prefix}core_00000000"
    names = {old, used, young, other}
    with databases.maintenance(target) as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        try:
            with databases.connect(replace(target, url=target.url.with_database(used))), scratch(target) as made:
                assert made.database.startswith(prefix)
                assert present(target) & names == {used, young, other}
            with scratch(target):
                assert present(target) & names == {young, other}
        finally:
            for name in names:
                connection.execute(f'DROP DATABASE IF EXISTS "{name}"'.encode())


def test_a_role_that_may_not_create_databases_is_told_so(tree: Tree) -> None:
    """The message names the role, the server and what to do."""
    tree.add("core", revisions=0)
    target = tree.target("core")
    role = f"nobody_{tree.suffix}"
    assert target.url is not None
    with databases.maintenance(target) as connection:
        connection.execute(f"CREATE ROLE {role}".encode())
        try:
            url = DatabaseURL({**target.url.parameters, "options": f"-c role={role}"})
            told = pytest.raises(ServerError, match=f"role {role} has no right.*ALTER ROLE {role} CREATEDB")
            with told, scratch(replace(target, url=url)):
                raise AssertionError
        finally:
            connection.execute(f"DROP ROLE {role}".encode())
