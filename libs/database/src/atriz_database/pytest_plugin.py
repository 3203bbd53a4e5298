"""Fixtures for tests on real databases.

A package's tests get its migrated database, cloned from a template that each server migrates once. The server is the
one that PG* name in the environment, else an embedded one that lives as long as the test run.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # The plugin is loaded with every pytest of an environment, wanted or not.
    from atriz_database.databases import Connection
    from atriz_database.server import Server
    from atriz_database.settings import Target
    from atriz_database.url import DatabaseURL
    from atriz_database.workspace import Package

_HOME = pytest.StashKey[Path]()
_WORKER_KEY = "atriz_server_home"


def pytest_configure(config: pytest.Config) -> None:
    """Agree on where the run's server lives: xdist's workers share the one of their controller."""
    given = getattr(config, "workerinput", {}).get(_WORKER_KEY)
    # The folder is made when the server is first needed.
    config.stash[_HOME] = Path(given or f"{tempfile.gettempdir()}/atriz-tests-{uuid.uuid4().hex[:12]}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Tell an xdist worker where the server lives."""
    node.workerinput[_WORKER_KEY] = str(node.config.stash[_HOME])  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the run's server, and remove its data."""
    home = config.stash.get(_HOME, None)
    if home is None or hasattr(config, "workerinput") or not home.exists():
        return
    from atriz_database import server

    server.stop(_server_in(home))
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def server_home(request: pytest.FixtureRequest) -> Path:
    """Return the home of the run's own embedded server, for ATRIZ_SERVER_HOME; running, whatever PG* say."""
    import psycopg

    from atriz_database import server

    home = request.config.stash[_HOME]
    own = _server_in(home)
    if server.start(own):
        # It is thrown away with the run, so that nothing of it has to outlive a power failure.
        with psycopg.connect(own.url.text(secrets=True), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
    return home


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> DatabaseURL:
    """Return the server that tests run on: the one that PG* name, else the run's own."""
    from atriz_database import settings

    named = settings.named_server()
    return named if named is not None else _server_in(request.getfixturevalue("server_home")).url


@pytest.fixture
def package(request: pytest.FixtureRequest) -> Package:
    """Return the package whose folder the test lies in."""
    from atriz_database import workspace

    for each in workspace.load(request.path.parent).packages:
        if each.folder in request.path.parents:
            return each
    raise pytest.UsageError(f"{request.path} lies in no package that owns a database")


@pytest.fixture
def database(package: Package, server_url: DatabaseURL) -> Iterator[Target]:
    """Yield a migrated database of the test's own, dropped after it. Costs a clone; see `connection`."""
    target = _clone(package, server_url)
    yield target
    _drop(target)


@pytest.fixture(scope="session")
def _shared(request: pytest.FixtureRequest) -> Iterator[dict[str, Target]]:
    """Yield the databases that a worker's `connection` tests share, by package."""
    shared: dict[str, Target] = {}
    yield shared
    for target in shared.values():
        _drop(target)


@pytest.fixture
def connection(package: Package, server_url: DatabaseURL, _shared: dict[str, Target]) -> Iterator[Connection]:
    """Yield a connection to a migrated database, in a transaction that is rolled back after the test.

    Cheaper than `database`, for tests that commit nothing.
    """
    from atriz_database import databases

    if package.name not in _shared:
        _shared[package.name] = _clone(package, server_url)
    with (
        databases.connect(_shared[package.name], purpose="test") as opened,
        opened.transaction(force_rollback=True),
    ):
        yield opened


@pytest.fixture
def seeded(package: Package, connection: Connection) -> Connection:
    """Return `connection` with the package's seeds run in its transaction."""
    from atriz_database import seeds

    for path in seeds.files(package.folder / "seeds"):
        seeds.load(path)(connection)
    return connection


def _server_in(home: Path) -> Server:
    from atriz_database import server

    return server.Server(home, server.of(home).user)


def _clone(package: Package, server_url: DatabaseURL) -> Target:
    from psycopg import sql

    from atriz_database import databases

    template = _template(package, server_url)
    target = _target(package, server_url, f"atriz_test_{package.name}_{uuid.uuid4().hex[:12]}")
    with databases.maintenance(target, purpose="test") as maintenance:
        maintenance.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(target.database), sql.Identifier(template))
        )
    return target


def _template(package: Package, server_url: DatabaseURL) -> str:
    """Return the name of the package's template on the server, made if it isn't there."""
    from psycopg import sql

    from atriz_database import databases, label, lock, migrations, verbs

    digest = hashlib.sha256(Path(label.__file__).read_bytes())
    for revision in verbs.read(package).by_id.values():
        digest.update(revision.checksum().encode())
    name = f"atriz_template_{package.name}_{digest.hexdigest()[:12]}"
    unfinished = _target(package, server_url, f"{name}_unfinished")
    with lock.held(_target(package, server_url, server_url.database)) as maintenance:
        if maintenance.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            # What a killed run left is not trusted; the name is only given to what is whole.
            _drop(unfinished)
            databases.create(unfinished)
            migrations.upgrade(migrations.Run(unfinished))
            maintenance.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                    sql.Identifier(unfinished.database), sql.Identifier(name)
                )
            )
    return name


def _target(package: Package, server_url: DatabaseURL, name: str) -> Target:
    from atriz_database.settings import Target

    return Target(package, server_url.with_database(name), "the test run", "test", "the test run")


def _drop(target: Target) -> None:
    from psycopg import sql

    from atriz_database import databases

    with databases.maintenance(target, purpose="test") as maintenance:
        maintenance.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(target.database)))
