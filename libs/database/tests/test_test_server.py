"""The embedded server for tests: kept between runs, stopped by the last, not trusted after a crash of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tree import Tree, forked

from atriz_database import server as embedded
from atriz_database.server import Server
from atriz_database.testing import server

pytestmark = pytest.mark.gate


@pytest.fixture
def repository(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """Yield a repository with a package and a test, whose server is in a place of the test's own."""
    home = Path(tempfile.mkdtemp(prefix="atriz-own-"))
    home.chmod(0o755)
    for name in [name for name in os.environ if name.startswith(("PG", "ATRIZ", "APP_ENV"))]:
        monkeypatch.delenv(name)
    tree.environ = {name: value for name, value in tree.environ.items() if not name.startswith("PG")}
    tree.environ["ATRIZ_SERVER_HOME"] = str(home / "server")
    monkeypatch.setenv("ATRIZ_SERVER_HOME", str(home / "server"))
    folder = tree.add("core")
    (folder / "tests").mkdir()
    write(tree, "def test_it(database): pass\n")
    yield tree
    tree.folders.clear()  # They never were on the run's own server.
    embedded.stop(server.of(tree.root))
    shutil.rmtree(home)


def write(tree: Tree, text: str) -> None:
    (tree.folders["core"] / "tests" / "test_core.py").write_text(text)


def run(tree: Tree) -> str:
    """Run the repository's tests; return what pytest said."""

    def main() -> None:
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={tree.root}", str(tree.root / "packages")]))

    return forked(main, ["pytest"], tree.root, tree.environ).stdout


def start(tree: Tree) -> subprocess.Popen[str]:
    """Start the repository's tests, whose one test says that it waits for a line."""
    write(tree, "def test_it(database):\n    print('waiting', flush=True)\n    input()\n")
    words = [sys.executable, "-m", "pytest", "-sq", "-p", "no:cacheprovider", str(tree.root / "packages")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, cwd=tree.root, env=tree.environ, **pipes)
    assert any("waiting" in line for line in process.stdout)
    write(tree, "def test_it(database): pass\n")
    return process


def templates(own: Server) -> list[tuple[str, int]]:
    """Return the name and the id of each template."""
    embedded.start(own)
    query = "SELECT datname, oid FROM pg_database WHERE datname LIKE 'atriz_template%' ORDER BY 1"
    with psycopg.connect(own.url.text(secrets=True)) as connection:
        return connection.execute(query).fetchall()


def test_later_runs_find_server_and_template_made(repository: Tree) -> None:
    """The first run makes both, and stops the server; the next has the same template, and its data as it was."""
    own = server.of(repository.root)
    assert "1 passed" in run(repository)
    assert own.pid() is None
    made = (own.data / "PG_VERSION").stat().st_ino
    before = templates(own)
    assert "1 passed" in run(repository)
    assert own.pid() is None
    assert (own.data / "PG_VERSION").stat().st_ino == made
    assert templates(own) == before
    with psycopg.connect(own.url.text(secrets=True)) as connection:
        settings = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in ("fsync", "listen_addresses")]
    assert settings == [("off",), ("",)]


def test_last_run_to_leave_stops_it(repository: Tree) -> None:
    """A run that ends while another is at work leaves the server to that one."""
    own = server.of(repository.root)
    other = start(repository)
    pid = own.pid()
    assert pid is not None
    assert "1 passed" in run(repository)
    assert own.pid() == pid
    assert "1 passed" in other.communicate("go on\n", timeout=60)[0]
    assert own.pid() is None


def test_server_of_a_killed_run_serves_the_next_which_stops_it(repository: Tree) -> None:
    """Nobody has to look for processes after a kill."""
    own = server.of(repository.root)
    killed = start(repository)
    pid = own.pid()
    killed.kill()
    killed.communicate()
    assert own.pid() == pid
    assert "1 passed" in run(repository)
    assert own.pid() is None


def test_data_from_before_a_boot_of_the_machine_is_thrown_away(repository: Tree) -> None:
    """The server forces nothing to the disk: what a crash of the machine left is not looked at."""
    own = server.of(repository.root)
    assert "1 passed" in run(repository)
    (own.home / "made-for").write_text("another boot\n")
    shutil.rmtree(own.data / "base")
    assert "1 passed" in run(repository)
    assert templates(own)


def test_server_goes_on_while_it_keeps_a_database(repository: Tree) -> None:
    """After a failure one can still look; a run without one stops it."""
    own = server.of(repository.root)
    write(repository, "def test_it(database): assert False\n")
    output = run(repository)
    url = output.partition("psql '")[2].partition("'")[0]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM core_1").fetchone() == (0,)
    write(repository, "def test_it(database): pass\n")
    assert "Dropped the test databases" in run(repository)
    assert own.pid() is None
