"""What must hold of every package with a database, whichever there are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest
import sqlalchemy
from clone import copy_tree
from tree import alembic_main, forked

from atriz_database import databases, drift, model, server, verbs, workspace
from atriz_database.__main__ import main as atriz_main
from atriz_database.settings import Target
from atriz_database.url import DatabaseURL
from atriz_database.workspace import Package

ROOT = Path(__file__).parent.parent
PACKAGES = workspace.load(ROOT).packages


@pytest.fixture(params=PACKAGES, ids=lambda package: package.name)
def package(request: pytest.FixtureRequest) -> Package:
    """Return each package in turn."""
    return request.param


def environment(package: Package, url: DatabaseURL) -> dict[str, str]:
    """Return a process environment with the package's URL, and no other variable of ours."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "ATRIZ", "APP_ENV"))}
    return {**environ, f"{package.prefix}_{package.variable}": url.text(secrets=True), "APP_ENV": "test"}


def alembic(target: Target, *arguments: str, folder: Path | None = None) -> str:
    """Run plain ``alembic`` in the package's folder, or a copy of it, and return what it printed."""
    package = target.package
    environ = environment(package, target.url)
    done = forked(alembic_main, ["alembic", *arguments], folder or package.folder, environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metadata(package: Package) -> sqlalchemy.MetaData:
    """Return the package's models, by the name that its env.py gives."""
    text = (package.folder / "migrations" / "env.py").read_text()
    return resolve_name(text.partition('run("')[2].partition('"')[0])


def test_has_one_head(package: Package) -> None:
    """Two branches that each added a revision are found here, before they are deployed."""
    assert verbs.read(package).single_head()


def test_every_revision_goes_up_down_and_up(package: Package, server_url: DatabaseURL) -> None:
    """Each down leaves the catalog as it was before its up, and the second way up ends where the first did."""
    environ = environment(package, server_url.with_database(package.database))
    done = forked(atriz_main, ["atriz", "verify", package.name, "--only"], ROOT, environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  verified  ") == len(verbs.read(package).by_id)


def test_models_and_database_agree(package: Package, target: Target) -> None:
    """`alembic check` finds no drift, partitions made since included."""
    if package.name == "mextrack":
        from datetime import date

        from mextrack.partitions import make_months

        with databases.connect(target) as connection:
            assert make_months(connection, 2, date(2026, 11, 23))
    assert "No new upgrade operations detected" in alembic(target, "check")
    assert drift.models(target, metadata(package)) == []


def test_plain_alembic_reads_and_writes(package: Package, target: Target, tmp_path: Path) -> None:
    """Current and history answer; a revision from the difference, right after a migration, is empty."""
    head = verbs.read(package).single_head()
    assert f"{head} (head)" in alembic(target, "current")
    assert head in alembic(target, "history")
    # In a copy: other tests read the folder at the same time.
    folder = tmp_path / package.folder.relative_to(ROOT)
    shutil.copytree(package.folder, folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    versions = folder / "migrations" / "versions"
    present = set(versions.glob("*.py"))
    alembic(target, "revision", "--autogenerate", "-m", "nothing new", folder=folder)
    (written,) = set(versions.glob("*.py")) - present
    assert written.name.endswith("_nothing_new.py")
    assert written.name[:12].isdigit()
    assert "op." not in written.read_text().replace("import op", "")


def test_every_table_and_column_has_a_comment(package: Package) -> None:
    """Whoever looks into the database with psql finds what a thing means."""
    for table in metadata(package).tables.values():
        assert table.comment, table
        assert [column.name for column in table.columns if not column.comment] == [], table


def test_every_user_id_of_an_app_is_a_declared_and_indexed_reference(package: Package) -> None:
    """What refers to a user across databases can be listed by tools, and looked up by an index."""
    if package.name == "core":
        return
    models = metadata(package)
    declared = {(each.table, each.column): each for each in model.references(models)}
    for table in models.tables.values():
        for column in table.columns:
            if column.name == "user_id":
                target = declared[table.name, column.name]
                assert (target.target_package, target.target_table, target.target_column) == ("core", "users", "id")
                first = [next(iter(index.columns)) for index in table.indexes]
                first += [next(iter(key.columns)) for key in table.constraints if getattr(key, "columns", ())]
                assert column in first, f"{table}.{column.name} is not indexed"
    assert declared or package.name not in ("atriz", "pshop", "mextrack")


@pytest.fixture
def plain_copy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a copy of the tree whose embedded server is where it is by itself; no variable says anything."""
    for name in [name for name in os.environ if name.startswith(("PG", "ATRIZ", "APP_ENV"))]:
        monkeypatch.delenv(name)
    root = tmp_path_factory.mktemp("plain") / "clone"
    copy_tree(root)
    yield root
    own = server.of(root)
    server.stop(own)
    shutil.rmtree(own.home)


@pytest.mark.gate
def test_plain_alembic_does_everything_with_no_variable_set(plain_copy: Path) -> None:
    """In each package's folder: upgrade, downgrade, current, history, check, stamp, revision, merge, the head file."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(plain_copy.parent)}

    def run(program: str, folder: Path, *arguments: str) -> str:
        main = {"alembic": alembic_main, "atriz": atriz_main}[program]
        done = forked(main, [program, *arguments], folder, environ)
        assert done.returncode == 0, (folder.name, arguments, done.stdout, done.stderr)
        return done.stdout

    run("atriz", plain_copy, "setup", "--quiet")
    for package in workspace.load(plain_copy).packages:
        head = verbs.read(package).single_head()
        folder = package.folder
        assert f"{head} (head)" in run("alembic", folder, "current")
        assert str(head) in run("alembic", folder, "history")
        assert "downgrade" in run("alembic", folder, "downgrade", "-1")
        assert "upgrade" in run("alembic", folder, "upgrade", "head")
        assert "No new upgrade operations" in run("alembic", folder, "check")
        run("alembic", folder, "stamp", "head")
        run("alembic", folder, "revision", "--autogenerate", "-m", "one")
        run("alembic", folder, "revision", "--splice", "--head", str(head), "-m", "two")
        assert len(verbs.read(package).heads) == 2
        run("alembic", folder, "merge", "heads", "-m", "both")
        merged = verbs.read(package).single_head()
        assert (folder / "migrations" / "head").read_text().split()[0] == merged
        run("alembic", folder, "upgrade", "head")
        assert f"{merged} (head)" in run("alembic", folder, "current")
        assert "No new upgrade operations" in run("alembic", folder, "check")
    rows = json.loads(run("atriz", plain_copy, "status", "--json"))
    assert {row["state"] for row in rows} == {"up-to-date"}
    assert [row["edited"] for row in rows] == [[]] * len(rows)
