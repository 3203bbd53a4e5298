"""A repository of one's own for each test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg import sql
from tree import Heads, Tree, clean_environment

from atriz_database import roles, settings
from atriz_database.testing.run import Run
from atriz_database.url import DatabaseURL


@pytest.fixture(scope="session")
def heads(_run: Run) -> Iterator[Heads]:
    """Yield what trees clone their databases from."""
    made = Heads(_run)
    yield made
    made.drop()


@pytest.fixture
def tree(
    tmp_path: Path, request: pytest.FixtureRequest, new_database_name: Callable[[str], str], _run: Run, heads: Heads
) -> Iterator[Tree]:
    """Yield an empty repository, its databases on the server of the test run."""
    root = tmp_path / "repository"
    root.mkdir()
    (root / "pyproject.toml").write_text('[tool.uv.workspace]\nmembers = ["packages/*", "apps/*"]\n')
    environ = clean_environment(tmp_path)
    if settings.named_server() is None:
        environ["ATRIZ_SERVER_HOME"] = str(request.getfixturevalue("server_home"))
    else:
        environ |= {name: value for name, value in os.environ.items() if name.startswith("PG")}
    made = Tree(root, environ, new_database_name, heads)
    yield made
    left = []
    for name in made.folders:
        # A failed test may have left a process that is still at work.
        _run.drop(made.database(name))
        # Those of the whole server, which `grant` has named after the database.
        names = sql.SQL(", ").join(map(sql.Identifier, roles.of(made.database(name)).names))
        left.append(sql.SQL("DROP ROLE IF EXISTS {}").format(names))
    for statement in left:
        _run.execute(statement)


@pytest.fixture
def fleet(tree: Tree) -> Tree:
    """Return a repository with core and two apps, two revisions each."""
    for name in ("core", "left", "right"):
        tree.add(name, revisions=2)
    return tree


@pytest.fixture
def empty(server_url: DatabaseURL, new_database_name: Callable[[str], str], _run: Run) -> Iterator[DatabaseURL]:
    """Yield the URL of an empty database of the test's own."""
    name = new_database_name("empty")
    _run.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    yield server_url.with_database(name)
    _run.drop(name)
