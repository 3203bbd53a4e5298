"""Killed at any moment, whoever is killed: the next run finds a consistent state, and finishes.

A server that is stopped by ``immediate`` (SIGQUIT) or SIGKILL loses what a crash of the server loses: all that is in its
memory, commits that were not waited for included. What the system keeps in its page cache survives here, as it would not
a loss of power; that fsync then brings it to the disk is PostgreSQL's promise and the disk's, and is not tested.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from clone import copy_tree
from tree import clean_environment, forked

from atriz_database import catalog, databases, server, settings, workspace
from atriz_database.__main__ import main
from atriz_database.settings import Target

# To see one again: ATRIZ_SEED, and -k with the number in the failed test's name.
SEED = int(os.environ.get("ATRIZ_SEED", "1"))
KILLS = int(os.environ.get("ATRIZ_KILLS", "300"))
DATABASES = ["atriz_db", "atriz_shared", "mextrack_db", "pshop_db"]
# What runs, and whether it begins with nothing there.
COMMANDS = {
    "setup": True,
    "migrate": True,
    "rollback mextrack --to base": False,
    "rollback core --count 4": False,
    "reset --yes": False,
    "clean": False,
    "drop --yes": False,
}
# By PostgreSQL's own names; `starting` is a client that dies while it starts a server that had crashed.
WHOM = ("client", "worker", "group", "backend", "postmaster", "immediate", "starting")
_PATIENCE = 60.0
_HISTORY = """
    SELECT revision, sum(CASE direction WHEN 'upgrade' THEN 1 WHEN 'downgrade' THEN -1 END),
           (array_agg(direction ORDER BY id DESC))[1]
    FROM atriz.history GROUP BY 1 ORDER BY 1
"""
_TABLES = """
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace ORDER BY 1
"""
_OURS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'atriz %' AND pid <> pg_backend_pid()"
_LEFT = f"""
    SELECT 'connection', application_name FROM pg_stat_activity WHERE pid IN ({_OURS})
    UNION ALL SELECT 'lock', mode FROM pg_locks WHERE locktype = 'advisory'
    UNION ALL SELECT 'prepared transaction', gid FROM pg_prepared_xacts
"""


@dataclass
class Repository:
    """A copy of this repository, with a server of its own that keeps its promises about durability."""

    root: Path
    environ: dict[str, str]
    server: server.Server
    clean: dict[str, Any] = field(default_factory=dict)
    """What a run that nobody disturbs leaves in the databases."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each command takes then."""

    def start(self, command: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a command, the leader of a process group."""
        words = [sys.executable, "-m", "atriz_database", *command.split()]
        with output.open("wb") as to:
            return subprocess.Popen(
                words, cwd=self.root, env=self.environ, stdout=to, stderr=to, start_new_session=True
            )

    def run(self, command: str) -> float:
        """Run a command that must succeed; return how long it took, in seconds."""
        started = time.monotonic()
        done = forked(main, ["atriz", *command.split()], self.root, self.environ)
        assert done.returncode == 0, f"atriz {command}:\n{done.stdout}{done.stderr}"
        return time.monotonic() - started

    def targets(self) -> list[Target]:
        """Return where the databases are."""
        space = workspace.load(self.root)
        return [target.at(self.server.url) for target in settings.resolve(space, space.packages, self.environ)]

    @contextmanager
    def connected(self) -> Iterator[databases.Connection]:
        """Yield a connection to the server's own database."""
        with psycopg.connect(self.server.url.text(secrets=True), autocommit=True) as connection:
            yield connection

    def wipe(self) -> None:
        """Leave the server running, and no database on it."""
        server.start(self.server)
        with self.connected() as connection:
            for (name,) in connection.execute(
                "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
            ).fetchall():
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())

    def prepare(self, empty: bool) -> None:
        """Bring the databases to where a command begins."""
        if empty:
            self.wipe()
        elif self.databases() != DATABASES:
            self.run("setup")

    def databases(self) -> list[str]:
        """Return the names of the databases, PostgreSQL's own left out."""
        with self.connected() as connection:
            query = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1"
            return [row[0] for row in connection.execute(query)]

    def contents(self) -> dict[str, Any]:
        """Return what is in the databases: catalog, label, version, each revision's net count and last way, rows."""
        found: dict[str, Any] = {}
        for target in self.targets():
            with databases.connect(target) as connection:

                def rows(query: str, connection: databases.Connection = connection) -> list[Any]:
                    return connection.execute(query.encode()).fetchall()

                found[target.database] = {
                    "catalog": catalog.read(connection),
                    "label": rows("SELECT package, environment FROM atriz.label"),
                    "version": rows("SELECT version_num FROM alembic_version"),
                    "history": rows(_HISTORY),
                    "rows": {table: rows(f"SELECT count(*) FROM {table}") for (table,) in rows(_TABLES)},
                }
        return found

    def crash(self, number: signal.Signals) -> None:
        """End the server by a signal, and wait until it is gone."""
        pid = self.server.pid()
        assert pid is not None
        os.kill(pid, number)
        eventually(lambda: self.server.pid() is None, "the server is still there")


def eventually(is_so: Callable[[], object], otherwise: str) -> None:
    """Wait until something is so; fail where it never is."""
    deadline = time.monotonic() + _PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def members(group: int) -> list[int]:
    """Return the living processes of a group, and so those that a killed leader left behind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = path.read_text().partition(" (")
            state, _, its_group, *_ = rest.rpartition(") ")[2].split()
            if int(its_group) == group and state not in "ZX":
                found.append(int(pid))
    return found


@pytest.fixture(scope="module")
def repository() -> Iterator[Repository]:
    """Yield a copy of the tree that has been set up, and taken down, once without disturbance."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find the processes that are to be killed")
    home = Path(tempfile.mkdtemp(prefix="atriz-kills-"))
    home.chmod(0o755)
    copy_tree(home / "clone")
    environ = {**clean_environment(home), "ATRIZ_SERVER_HOME": str(home / "server")}
    own = server.Server(home / "server", server.of(home).user)
    made = Repository(home / "clone", environ, own)
    try:
        server.start(own)
        with made.connected() as connection:
            # Commits that nobody waits for stay in memory for as long as may be, so that a crash takes them.
            connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            connection.execute("SELECT pg_reload_conf()")
        for command, empty in COMMANDS.items():
            made.prepare(empty)
            made.seconds[command] = timed(made, command, home / "output")
            if command == "setup":
                made.clean = made.contents()
            made.run("setup")
        assert made.contents() == made.clean
        yield made
    finally:
        server.stop(own)
        shutil.rmtree(home)


def timed(repository: Repository, command: str, output: Path) -> float:
    """Return how many seconds a command takes that nobody disturbs."""
    started = time.monotonic()
    process = repository.start(command, output)
    assert process.wait(_PATIENCE) == 0, output.read_text()
    return time.monotonic() - started


def kill(repository: Repository, whom: str, process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kill one of those that work on a command, or nobody if it ends before; return whom."""
    if whom in ("client", "starting"):
        process.kill()
    elif whom == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif whom == "worker":
        while process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if children:
                child = int(chance.choice(children))
                os.kill(child, signal.SIGKILL)
                return f"worker {child} of {children}"
    elif whom == "backend":
        with repository.connected() as connection:
            while process.poll() is None:
                if pids := [row[0] for row in connection.execute(_OURS).fetchall()]:
                    query = "SELECT application_name, state, query FROM pg_stat_activity WHERE pid = %s"
                    pid = chance.choice(pids)
                    what = connection.execute(query, [pid]).fetchone()
                    connection.execute("SELECT pg_terminate_backend(%s)", [pid])
                    return f"backend {what}"
    else:
        repository.crash(signal.SIGKILL if whom == "postmaster" else signal.SIGQUIT)
    return whom


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SEED * 1000, SEED * 1000 + KILLS))
def test_killed_at_any_moment_the_next_run_finishes(repository: Repository, seed: int, tmp_path: Path) -> None:
    """Whatever ran and whoever died: one `setup` later all four databases are as if nothing had been."""
    chance = random.Random(seed)
    command, whom = chance.choice(list(COMMANDS)), chance.choice(WHOM)
    moment = chance.uniform(0.0, 1.05) * repository.seconds[command]
    told = f"seed {seed}: `atriz {command}`, {whom} killed after {moment:.3f} s"
    output = tmp_path / "output"
    try:
        repository.prepare(COMMANDS[command])
        if whom == "starting":
            repository.crash(signal.SIGQUIT)
        process = repository.start(command, output)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            told = f"{told}: {kill(repository, whom, process, chance)}"
        status = process.wait(_PATIENCE)
        said = output.read_text()
        assert status in (0, 1, -signal.SIGKILL), f"{told}: status {status}\n{said}"
        assert "Traceback" not in said and "defect" not in said, f"{told}\n{said}"
        repository.run("setup")
        eventually(lambda: not members(process.pid), f"{told}: processes are left")
        with repository.connected() as connection:
            eventually(lambda: not connection.execute(_LEFT).fetchall(), f"{told}: not all has gone")
        assert repository.databases() == DATABASES, told
        found = repository.contents()
        for name, clean in repository.clean.items():
            assert catalog.compare(clean["catalog"], found[name]["catalog"]) == [], f"{told}\n{said}"
            for what in clean:
                assert found[name][what] == clean[what], f"{told}: {what} of {name}\n{said}"
    except BaseException as error:
        error.add_note(told)
        repository.wipe()
        raise


@pytest.mark.soak
def test_what_was_told_to_be_applied_outlives_a_crash(repository: Repository, tmp_path: Path) -> None:
    """The server dies the moment a run has ended well, ten times: everything is there without another run."""
    for command in ("migrate", "migrate", "rollback pshop --count 2"):
        repository.prepare(COMMANDS.get(command, False))
        process = repository.start(command, tmp_path / "output")
        assert process.wait(_PATIENCE) == 0
        repository.crash(signal.SIGQUIT)
        server.start(repository.server)
