"""What one test pays for its database, by each way to get one: tests that pytest runs, which times what they set up.

Run as a program: ``python -m benchmarks.clones ROUNDS FOLDER TABLE``, the folder a package's. It prints the seconds of
each way's turns as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg import sql

from atriz_database import Database, DatabaseURL, databases, workspace
from atriz_database.settings import Target
from atriz_database.testing.clone import Clones
from atriz_database.testing.template import name_of
from atriz_database.workspace import Package

RAW, COPIED = "floor A: CREATE DATABASE … TEMPLATE, DROP", "the same, STRATEGY file_copy"
CLONED, SHARED, ORM = "atriz: fixture database", "atriz: fixture connection", "atriz: fixture session"
MIGRATED, BY_ALEMBIC = "migrated for each test, in its process", "alembic upgrade head for each test"
WAYS = {
    RAW: "raw",
    COPIED: "copied",
    CLONED: "database",
    SHARED: "connection",
    ORM: "session",
    MIGRATED: "migrated",
    BY_ALEMBIC: "by_alembic",
}
# How the program tells the tests what to do.
_ROUNDS, _FOLDER, _TABLE = "ATRIZ_BENCH_ROUNDS", "ATRIZ_BENCH_FOLDER", "ATRIZ_BENCH_TABLE"


@pytest.fixture(scope="session")
def package() -> Package:
    """Return the package whose database the tests get."""
    folder = Path(os.environ[_FOLDER])
    return workspace.load(folder).package(folder.name)


@pytest.fixture(scope="session")
def plain(server_url: DatabaseURL) -> Iterator[psycopg.Connection[Any]]:
    """Yield the one connection that plain SQL has for all tests."""
    with psycopg.connect(server_url.text(secrets=True), autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def template(package: Package, _clones: Clones) -> str:
    """Return the name of the template that the plugin clones; what is paid once a run is paid."""
    _clones.drop(_clones.make(package))
    return name_of(package, datetime.now(UTC).date())


@contextlib.contextmanager
def _made(plain: psycopg.Connection[Any], template: str, url: DatabaseURL, strategy: str) -> Iterator[DatabaseURL]:
    create = sql.SQL("CREATE DATABASE plain_clone TEMPLATE {}" + strategy)
    plain.execute(create.format(sql.Identifier(template)))
    yield url.with_database("plain_clone")
    plain.execute("DROP DATABASE plain_clone")


@pytest.fixture
def raw(plain: psycopg.Connection[Any], template: str, server_url: DatabaseURL) -> Iterator[DatabaseURL]:
    """Yield a database that two statements make and drop."""
    with _made(plain, template, server_url, "") as url:
        yield url


@pytest.fixture
def copied(plain: psycopg.Connection[Any], template: str, server_url: DatabaseURL) -> Iterator[DatabaseURL]:
    """Do the same, its files copied."""
    with _made(plain, template, server_url, " STRATEGY file_copy") as url:
        yield url


@pytest.fixture
def migrated(plain: psycopg.Connection[Any], package: Package, server_url: DatabaseURL) -> Iterator[DatabaseURL]:
    """Yield a database that is made empty and migrated, in this process, for the one test."""
    from atriz_database import migrations

    url = server_url.with_database("plain_migrated")
    target = Target(package, url, "the benchmark", "test", "the benchmark")
    databases.create(target)
    migrations.upgrade(migrations.Run(target))
    yield url
    plain.execute("DROP DATABASE plain_migrated WITH (FORCE)")


@pytest.fixture
def by_alembic(plain: psycopg.Connection[Any], package: Package, server_url: DatabaseURL) -> Iterator[DatabaseURL]:
    """Yield a database that the command migrates, as most do it."""
    url = server_url.with_database("plain_alembic")
    plain.execute("CREATE DATABASE plain_alembic TEMPLATE template0")
    environ = {**os.environ, f"{package.prefix}_DIRECT_{package.variable}": url.text(secrets=True)}
    words = [sys.executable, "-m", "alembic", "upgrade", "head"]
    subprocess.run(words, cwd=package.folder, env=environ, check=True, capture_output=True)
    yield url
    plain.execute("DROP DATABASE plain_alembic WITH (FORCE)")


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Any:
    """Set up by the way whose turn it is."""
    return request.getfixturevalue(WAYS[request.param])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each way its turn in each round; another one begins each time."""
    if "place" in metafunc.fixturenames:
        names = list(WAYS)
        rounds = range(int(os.environ[_ROUNDS]))
        turns = [names[(start + step) % len(names)] for start in rounds for step in range(len(names))]
        metafunc.parametrize("place", turns, indirect=True, ids=[f"{n}-{WAYS[way]}" for n, way in enumerate(turns)])


def test_warm_up(template: str, database: Database, session: object) -> None:
    """Pay for what is paid once."""
    database.query("SELECT 1")


def test_turn(place: Any) -> None:
    """Use the database once; the connection is closed before the time for taking down runs."""
    query = f"SELECT FROM {os.environ[_TABLE]}"
    if isinstance(place, DatabaseURL):
        with psycopg.connect(place.text(secrets=True)) as connection:
            connection.execute(query.encode())
    elif isinstance(place, Database):
        place.query(query)
        place.close()
    elif isinstance(place, psycopg.Connection):
        place.execute(query.encode())
    else:
        place.execute(sqlalchemy.text(query))


def test_last() -> None:
    """Take down what is of the whole run."""


def main(rounds: str, folder: str, table: str) -> int:
    """Run the tests, and print what each turn took to set up and to take down."""
    os.environ |= {_ROUNDS: rounds, _FOLDER: folder, _TABLE: table}
    took: dict[str, list[float]] = {name: [] for name in WAYS}
    names = {f"{fixture}]": way for way, fixture in WAYS.items()}
    phases: dict[str, float] = {}

    def heard(report: pytest.TestReport) -> None:
        name = names.get(report.nodeid.rpartition("-")[2])
        if name is not None and report.when in ("setup", "teardown"):
            phases[report.nodeid] = phases.get(report.nodeid, 0.0) + report.duration
            if report.when == "teardown":
                took[name].append(phases[report.nodeid])

    output = io.StringIO()
    # Of its own settings, not the repository's: this module is imported before pytest begins.
    words = ["-q", "-x", "-c", os.devnull, f"--rootdir={folder}", "--import-mode=importlib", "-p", "no:cacheprovider"]
    with contextlib.redirect_stdout(output):
        status = pytest.main([*words, __file__], plugins=[SimpleNamespace(pytest_runtest_logreport=heard)])
    if status != 0:
        print(output.getvalue(), file=sys.stderr)
        return int(status)
    print(json.dumps(took))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
