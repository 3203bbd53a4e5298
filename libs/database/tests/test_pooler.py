"""Behind a pooler: in transaction mode a run is refused before it leaves anything, in session mode it goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from urllib.parse import quote

import pooler
import psycopg
import pytest
import second
from pooler import Pooler
from second import Second
from tree import Tree

from atriz_database import lock
from atriz_database.errors import ServerError, SettingsError

pytestmark = pytest.mark.gate

_BUSY = 6


@pytest.fixture(scope="module")
def team() -> Iterator[Second]:
    """Yield a server as a team has it, which lets in by password."""
    pooler.program()
    with second.running() as server:
        yield server


@pytest.fixture
def left(tree: Tree, team: Second) -> Tree:
    """Return a repository with one package and one revision, its database made."""
    tree.environ |= team.environ
    tree.add("left", requires=())
    assert tree.atriz("create").returncode == 0
    return tree


def through(tree: Tree, middle: Pooler) -> dict[str, str]:
    """Return the variable that leads left's database through the pooler."""
    return {"LEFT_DATABASE_URL": middle.url(tree.database("left"))}


def direct(tree: Tree) -> str:
    """Return the URL of left's database past the pooler."""
    given = tree.server.parameters
    password = quote(given["password"], safe="")
    return f"postgresql://{given['user']}:{password}@127.0.0.1:{given['port']}/{tree.database('left')}"


_LOCKS = """
    SELECT count(*) = {} FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextmanager
def other_clients(url: str, number: int) -> Iterator[None]:
    """Keep a pool busy with that many clients, whose transactions are of different lengths."""
    stop = threading.Event()
    begun = threading.Barrier(number + 1)

    def work(which: int) -> None:
        with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
            for turn in count():
                connection.execute(f"SELECT sum(n) FROM generate_series(1, {1 + (which * 7 + turn) % 5}000) n".encode())
                if turn == 0:
                    begun.wait()
                if stop.is_set():
                    return

    threads = [threading.Thread(target=work, args=(which,)) for which in range(number)]
    for thread in threads:
        thread.start()
    try:
        begun.wait()
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def fill(url: str, size: int) -> None:
    """Let the pooler open as many connections to the server as it may, by that many transactions at once."""
    with ExitStack() as stack:
        for _ in range(size):
            connection = stack.enter_context(psycopg.connect(url))
            connection.execute("SELECT 1")


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_in_transaction_mode_it_is_refused_and_says_where_to_name_the_server(left: Tree, mode: str) -> None:
    """Status 2, the variable's name, no lock and no setting left on the pooler's connections; status and plan work."""
    with left.connect("left") as connection:
        connection.execute(f"ALTER DATABASE {left.database('left')} SET idle_session_timeout = '1h'".encode())
    with pooler.running(left.server, pool_mode=mode) as middle:
        environ = through(left, middle)
        done = left.atriz("migrate", **environ)
        assert done.returncode == 2, done.stderr
        assert "transaction mode" in done.stderr
        assert "in LEFT_DIRECT_DATABASE_URL in the process environment" in done.stderr
        assert left.rows("left", _LOCKS.format(0)) == [(True,)]
        with psycopg.connect(middle.url(left.database("left")), autocommit=True) as connection:
            assert connection.execute("SHOW idle_session_timeout").fetchone() == ("1h",)
            assert connection.execute("SELECT to_regclass('left_1')").fetchone() == (None,)
        status = left.atriz("status", **environ)
        assert "pending" in status.stdout, status.stderr
        plan = left.atriz("plan", **environ)
        assert "left0001" in plan.stdout, plan.stderr
        done = left.atriz("migrate", **environ, LEFT_DIRECT_DATABASE_URL=direct(left))
        assert done.returncode == 0, done.stderr


def test_the_setting_of_an_env_file_is_advised_beside_it(left: Tree) -> None:
    """Plain alembic refuses as well, and names the file in which the variable is missing."""
    with pooler.running(left.server, pool_mode="transaction") as middle:
        path = left.folders["left"] / ".env"
        path.write_text(f"DATABASE_URL={middle.url(left.database('left'))}\n")
        done = left.alembic("left", "upgrade", "head")
        assert done.returncode != 0
        assert f"in DIRECT_DATABASE_URL in {path}" in done.stdout
        path.write_text(path.read_text() + f"DIRECT_DATABASE_URL='{direct(left)}'\n")
        done = left.alembic("left", "upgrade", "head")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("turns", [0, 1], ids=["last in first out", "round robin"])
@pytest.mark.parametrize("size", [1, 2, 20])
@pytest.mark.parametrize("clients", [0, _BUSY], ids=["quiet", "busy"])
def test_transaction_mode_is_always_seen(left: Tree, size: int, turns: int, clients: int) -> None:
    """Whatever the pool's size and whoever else is at work: fifteen times of fifteen, and no lock is left."""
    with pooler.running(
        left.server, pool_mode="transaction", default_pool_size=size, server_round_robin=turns
    ) as middle:
        fill(middle.url(left.database("left")), size)
        target = left.target("left", through(left, middle))
        with other_clients(middle.url(left.database("left")), clients) if clients else ExitStack():
            for _ in range(15):
                with pytest.raises(SettingsError, match="transaction mode"), lock.held(target):
                    pass
        assert left.rows("left", _LOCKS.format(0)) == [(True,)]


@pytest.mark.parametrize("size", [2, 20])
def test_in_session_mode_it_goes_on(left: Tree, size: int) -> None:
    """The lock holds there, against others behind the pooler and past it, and a whole run works."""
    with pooler.running(left.server, pool_mode="session", default_pool_size=size + 2) as middle:
        environ = through(left, middle)
        with lock.held(left.target("left", environ)):
            assert left.rows("left", _LOCKS.format(1)) == [(True,)]
            done = left.atriz("migrate", "--lock-wait", "0")
            assert "is locked by" in done.stderr
        # The pooler keeps the server's session, and clears it when it has heard that its client is gone.
        left.wait_until("left", _LOCKS.format(0))
        with other_clients(middle.url(left.database("left")), 1):
            done = left.atriz("migrate", **environ)
        assert done.returncode == 0, done.stderr
        assert left.rows("left", "SELECT version_num FROM alembic_version") == [("left0001",)]


def test_a_pool_too_small_for_a_run_is_refused_and_not_waited_for(left: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """In session mode with one connection the second would wait for the first for ever."""
    monkeypatch.setattr("atriz_database.pooler._WAIT_SECONDS", 0.3)
    with pooler.running(left.server, pool_mode="session", default_pool_size=1) as middle:
        target = left.target("left", through(left, middle))
        with pytest.raises(ServerError, match="a run needs two"), lock.held(target):
            pass
