"""Fixtures for tests on real databases: `docs/testing.md` shows them at work.

A package's tests get its migrated database, cloned from a template that is made once, and shared by workers, runs at
the same time and later ones. The server is the one that PG* name in the environment, else an embedded one that is kept
between runs.

Which fixture is cheaper is in its docstring; the figures are of the embedded server on two cores, and of a package of
this repository.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # The plugin is loaded with every pytest of an environment, wanted or not.
    import psycopg
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from atriz_database.asynchronous import AsyncDatabase
    from atriz_database.database import Database
    from atriz_database.databases import Connection
    from atriz_database.server import Server
    from atriz_database.settings import Target
    from atriz_database.testing.clone import Clones
    from atriz_database.testing.run import Run
    from atriz_database.testing.transaction import AsyncBoth, Both, Shared
    from atriz_database.url import DatabaseURL
    from atriz_database.workspace import Package, Workspace

# What a test has made, for the report of its failure; and whether that is kept.
_MADE = pytest.StashKey[list["Target"]]()
_KEPT = pytest.StashKey[bool]()
# How many databases the process has kept, and whose it has dropped that earlier runs kept.
_COUNT = pytest.StashKey[int]()
_DROPPED = pytest.StashKey[list[str]]()
_WORKER_KEY = "atriz_dropped"
_MOST_KEPT = 10


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers", "seeded: the databases that the test gets hold what the seeds of their packages make"
    )
    config.stash[_COUNT] = 0
    config.stash[_DROPPED] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """Keep the databases of a test that failed, and say in its report how to look into them."""
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    made = item.stash.get(_MADE, [])
    if made and report.failed and report.when != "teardown" and not item.stash.get(_KEPT, False):
        if item.config.stash[_COUNT] < _MOST_KEPT:
            item.config.stash[_COUNT] += 1
            item.stash[_KEPT] = True
            # Without the password: it has no place in a log, and whoever could run the tests has it in PGPASSWORD.
            lines = [f"psql '{target.url.without_secrets()}'" for target in made if target.url is not None]
            text = "\n".join(lines) + "\nKept until the next run in this checkout that finds nobody connected to it."
        else:
            text = f"Dropped: this run has kept the databases of {_MOST_KEPT} other tests."
        report.sections.append(("Test database", text))
    return report  # type: ignore[return-value]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear from an xdist worker what it has dropped."""
    node.config.stash[_DROPPED] += getattr(node, "workeroutput", {}).get(_WORKER_KEY, [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the controller, in an xdist worker, what has been dropped."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_WORKER_KEY] = session.config.stash[_DROPPED]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say whose databases are gone that earlier runs had kept."""
    dropped = config.stash[_DROPPED]
    if dropped:
        shown = ", ".join(dropped[:3]) + (f" and {len(dropped) - 3} more" if len(dropped) > 3 else "")
        terminalreporter.write_line(f"Dropped the test databases that an earlier run had kept for {shown}.")


@pytest.fixture(scope="session")
def server_home(pytestconfig: pytest.Config) -> Iterator[Path]:
    """Return the home of the embedded test server, for ATRIZ_SERVER_HOME; running, whatever PG* say.

    Its first start in a checkout, or after a boot of the machine, takes 1.5 s, a later one 0.2. The last run stops it.
    """
    import os

    from atriz_database.testing import server

    own = server.of(_root(pytestconfig))
    descriptor = server.join(own)
    yield own.home
    os.close(descriptor)
    server.leave(own, lambda: _has_kept(own))


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> DatabaseURL:
    """Return the server that tests run on: the one that PG* name, else the embedded one for tests."""
    from atriz_database import settings

    if settings.process_values(["APP_ENV"]).get("APP_ENV") == "production":
        raise pytest.UsageError(
            "APP_ENV is production, and tests make and drop databases. Unset it, or set it to test; see that PG* name "
            "a server for tests."
        )
    named = settings.named_server()
    if named is not None:
        return named
    from atriz_database.testing import server

    request.getfixturevalue("server_home")
    return server.of(_root(request.config)).url


@pytest.fixture(scope="session")
def _run(server_url: DatabaseURL, pytestconfig: pytest.Config) -> Iterator[Run]:
    """Yield what this process does on the server; what killed runs have left there is gone."""
    from atriz_database import settings
    from atriz_database.testing.clone import target_of
    from atriz_database.testing.run import Run
    from atriz_database.workspace import Package

    root = _root(pytestconfig)
    # The server shows its name beside the connection that serves all packages.
    nobodys = Package(root.name, root, root, server_url.database, "", (), ())
    origin = settings.EMBEDDED if settings.named_server() is None else "PG* in the environment"
    run = Run(target_of(nobodys, server_url, origin), root)
    pytestconfig.stash[_DROPPED] += run.sweep()
    yield run
    run.close()


@pytest.fixture(scope="session")
def _clones(_run: Run) -> Clones:
    from atriz_database.testing.clone import Clones

    return Clones(_run)


@pytest.fixture(scope="session")
def new_database_name(_run: Run) -> Callable[[str], str]:
    """Return a function that gives a name, for what it is told, to a database which the test makes and drops itself.

    Where a run is killed before, a later one drops it.
    """
    return _run.new_name


@pytest.fixture(scope="session")
def _workspaces() -> Callable[[Path], Workspace]:
    """Return a function that gives the workspace that a folder lies in, each read once."""
    from functools import cache

    from atriz_database import workspace

    return cache(workspace.load)


@pytest.fixture
def package(request: pytest.FixtureRequest, _workspaces: Callable[[Path], Workspace]) -> Package:
    """Return the package whose folder the test lies in. Override it where tests lie elsewhere."""
    from atriz_database.errors import WorkspaceError

    try:
        for each in _workspaces(request.path.parent).packages:
            if each.folder in request.path.parents:
                return each
        why = "none of the workspace's packages that own a database"
    except WorkspaceError:
        why = "no workspace: no pyproject.toml above it has a table [tool.uv.workspace]"
    raise pytest.UsageError(
        f"{request.path} lies in {why}. Give it a fixture `package` that returns one, such as "
        'atriz_database.workspace.load(Path("folder of the workspace")).package("name").'
    )


@contextmanager
def _cloned(request: pytest.FixtureRequest, clones: Clones, package: Package) -> Iterator[Target]:
    """Make a database for a test, and drop it, or keep it if the test has failed. Leaked connections fail the test."""
    made = clones.make(package, seeded=_is_seeded(request))
    node = request.node
    node.stash.setdefault(_MADE, []).append(made)
    yield made
    if node.stash.get(_KEPT, False):
        clones.keep(made, node.nodeid)
        return
    leaks = clones.drop(made)
    if leaks:
        lines = "\n".join(f"    {leak}" for leak in leaks)
        pytest.fail(
            f"Connections to {made.database} were still open after the test, and have been ended:\n{lines}\n"
            "Close what the test, or the code that it calls, has opened.",
            pytrace=False,
        )


@pytest.fixture
def target(request: pytest.FixtureRequest, package: Package, _clones: Clones) -> Iterator[Target]:
    """Yield a migrated database of the test's own, as the library's functions take it; dropped after the test.

    Costs what `database` costs; that is what applications want.
    """
    with _cloned(request, _clones, package) as made:
        yield made


@pytest.fixture
def database(target: Target) -> Iterator[Database]:
    """Yield a `Database` of the test's own, migrated, closed and dropped after the test.

    Costs a clone, 20 ms, where `connection` and `session` cost 3. For code that commits, has several connections, or
    takes a `Database`; ``database.url`` is for code that takes a URL.
    """
    from atriz_database.database import Database

    with Database(_url(target), name=target.package.name, production=False) as made:
        yield made


@pytest.fixture
def async_database(target: Target) -> Iterator[AsyncDatabase]:
    """Yield an `AsyncDatabase` on the database that `database` is on; costs the same."""
    from atriz_database.asynchronous import AsyncDatabase
    from atriz_database.testing.transaction import outside_loop

    with outside_loop(AsyncDatabase(_url(target), name=target.package.name, production=False)) as made:
        yield made


@pytest.fixture
def fleet(
    request: pytest.FixtureRequest,
    package: Package,
    database: Database,
    _clones: Clones,
    _workspaces: Callable[[Path], Workspace],
) -> Iterator[Mapping[str, Database]]:
    """Yield databases of the test's own by their packages' names: the package's, and all that it depends on.

    Costs a clone for each. The package's own is `database`.
    """
    from contextlib import ExitStack

    from atriz_database.database import Database

    with ExitStack() as stack:
        made = {}
        for each in _workspaces(package.folder).select(package.name, dependencies=True):
            if each == package:
                made[each.name] = database
                continue
            target = stack.enter_context(_cloned(request, _clones, each))
            made[each.name] = stack.enter_context(Database(_url(target), name=each.name, production=False))
        yield made


@pytest.fixture(scope="session")
def _shared(_clones: Clones) -> Iterator[Callable[[Package, bool], Shared]]:
    """Yield a function that gives what a process's rolled-back tests of a package share, with seeds or without."""
    from atriz_database.testing.transaction import Shared

    made: dict[tuple[Path, bool], Shared] = {}

    def shared(package: Package, seeded: bool) -> Shared:
        key = package.folder, seeded
        if key not in made:
            made[key] = Shared(_clones.make(package, seeded=seeded))
        return made[key]

    yield shared
    for each in made.values():
        _clones.drop(each.target)


@pytest.fixture
def _transaction(
    request: pytest.FixtureRequest, package: Package, _shared: Callable[[Package, bool], Shared]
) -> Iterator[Both]:
    with _shared(package, _is_seeded(request)).rolled_back() as both:
        yield both


@pytest.fixture
def connection(_transaction: Both) -> Connection:
    """Return psycopg's connection to a migrated database, in a transaction that is rolled back after the test.

    The cheap one: 3 ms. For tests of tables, seeds and SQL, which commit nothing; ``connection.transaction()`` is a
    savepoint, ``commit()`` an error.
    """
    return _transaction[1]


@pytest.fixture
def session(_transaction: Both) -> Iterator[Session]:
    """Yield a session of SQLAlchemy's ORM in the transaction of `connection`.

    As cheap as that. ``session.commit()`` ends a savepoint, and is rolled back with the rest. Functions that take a
    Connection of SQLAlchemy get ``session.connection()``.
    """
    from sqlalchemy.orm import Session

    with Session(_transaction[0], join_transaction_mode="create_savepoint", expire_on_commit=False) as opened:
        yield opened


@pytest.fixture
def _async_transaction(
    request: pytest.FixtureRequest, package: Package, _shared: Callable[[Package, bool], Shared]
) -> Iterator[AsyncBoth]:
    # Not an async fixture: so it works with every async plugin of pytest, and with none.
    from atriz_database.testing.transaction import outside_loop

    with outside_loop(_shared(package, _is_seeded(request)).async_rolled_back()) as both:
        yield both


@pytest.fixture
def async_connection(_async_transaction: AsyncBoth) -> psycopg.AsyncConnection[Any]:
    """Return what `connection` is, for asyncio: psycopg's AsyncConnection."""
    return _async_transaction[1]


@pytest.fixture
def async_session(_async_transaction: AsyncBoth) -> Iterator[AsyncSession]:
    """Yield what `session` is, for asyncio: an AsyncSession in the transaction of `async_connection`."""
    from sqlalchemy.ext.asyncio import AsyncSession

    from atriz_database.testing.transaction import outside_loop

    made = AsyncSession(_async_transaction[0], join_transaction_mode="create_savepoint", expire_on_commit=False)
    with outside_loop(made) as opened:
        yield opened


def _url(target: Target) -> DatabaseURL:
    """Return the URL of a target, complete in itself: what PG* say of another server is not mixed into it."""
    from atriz_database import libpq, settings
    from atriz_database.url import DatabaseURL

    assert target.url is not None
    if target.origin != settings.EMBEDDED:
        return target.url
    return DatabaseURL({**libpq.known(libpq.PLAIN), **target.url.parameters})


def _is_seeded(request: pytest.FixtureRequest) -> bool:
    return request.node.get_closest_marker("seeded") is not None


def _root(config: pytest.Config) -> Path:
    """Return the folder of the workspace that pytest runs in, or pytest's own root where there is none."""
    from atriz_database import workspace
    from atriz_database.errors import WorkspaceError

    try:
        return workspace.find_root(config.rootpath)
    except WorkspaceError:
        return config.rootpath


def _has_kept(server: Server) -> bool:
    """Return whether somebody may still want to look into a database on the server."""
    import psycopg

    from atriz_database.testing.run import has_kept

    with psycopg.connect(server.url.text(secrets=True), autocommit=True) as connection:
        return has_kept(connection)
