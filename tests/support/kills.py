"""A copy of this repository with a server of its own, on which commands, processes and the server itself are killed."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from clone import copy_tree
from tree import clean_environment, forked

from atriz_database import catalog, databases, server, settings, workspace
from atriz_database.__main__ import main
from atriz_database.settings import Target

DATABASES = ["atriz_db", "atriz_shared", "mextrack_db", "pshop_db"]
PATIENCE = 60.0
_NAMES = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1"
_OURS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'atriz %' AND pid <> pg_backend_pid()"
_LEFT = f"""
    SELECT 'connection', application_name FROM pg_stat_activity WHERE pid IN ({_OURS})
    UNION ALL SELECT 'lock', mode FROM pg_locks WHERE locktype = 'advisory'
    UNION ALL SELECT 'prepared transaction', gid FROM pg_prepared_xacts
"""
_CONTENTS = {
    "label": "SELECT package, environment FROM atriz.label",
    "version": "SELECT version_num FROM alembic_version",
    # How often each revision was applied more than undone, and what was done to it last.
    "history": """
        SELECT revision, sum(CASE direction WHEN 'upgrade' THEN 1 WHEN 'downgrade' THEN -1 END),
               (array_agg(direction ORDER BY id DESC))[1]
        FROM atriz.history GROUP BY 1 ORDER BY 1
    """,
}
_TABLES = """
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace ORDER BY 1
"""

Contents = dict[str, dict[str, Any]]
"""By database: its catalog, label, version, history, and the number of rows in each table."""


@dataclass
class Repository:
    """A copy of this repository, and its server, which keeps its promises about durability."""

    root: Path
    environ: dict[str, str]
    server: server.Server
    clean: Contents = field(default_factory=dict)
    """What a `setup` that nobody disturbs leaves in the databases."""

    def start(self, command: str, output: Path) -> subprocess.Popen[bytes]:
        """Start a command, which leads a process group of its own."""
        words = [sys.executable, "-m", "atriz_database", *command.split()]
        with output.open("wb") as to:
            return subprocess.Popen(
                words, cwd=self.root, env=self.environ, stdout=to, stderr=to, start_new_session=True
            )

    def run(self, command: str) -> None:
        """Run a command that must succeed."""
        done = forked(main, ["atriz", *command.split()], self.root, self.environ)
        assert done.returncode == 0, f"atriz {command}:\n{done.stdout}{done.stderr}"

    def targets(self) -> list[Target]:
        """Return where the databases are."""
        space = workspace.load(self.root)
        return [target.at(self.server.url) for target in settings.resolve(space, space.packages, self.environ)]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query on the server's own database."""
        with psycopg.connect(self.server.url.text(secrets=True), autocommit=True) as connection:
            return connection.execute(query.encode()).fetchall()

    def databases(self) -> list[str]:
        """Return the names of the databases, PostgreSQL's own left out."""
        return [name for (name,) in self.rows(_NAMES)]

    def left(self) -> list[tuple[Any, ...]]:
        """Return the connections, locks and prepared transactions that a run has left on the server."""
        return self.rows(_LEFT)

    def wipe(self) -> None:
        """Leave the server running, and no database on it."""
        server.start(self.server)
        with psycopg.connect(self.server.url.text(secrets=True), autocommit=True) as connection:
            for (name,) in connection.execute(_NAMES).fetchall():
                connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())

    def prepare(self, *, empty: bool) -> None:
        """Bring the databases to where a command begins: none there, or all of them whole."""
        if empty:
            self.wipe()
        elif self.databases() != DATABASES:
            self.run("setup")

    def contents(self) -> Contents:
        """Return what is in the databases."""
        found: Contents = {}
        for target in self.targets():
            with databases.connect(target) as connection:
                each = {what: connection.execute(query.encode()).fetchall() for what, query in _CONTENTS.items()}
                tables = [name for (name,) in connection.execute(_TABLES).fetchall()]
                counts = {
                    name: connection.execute(f"SELECT count(*) FROM {name}".encode()).fetchone() for name in tables
                }
                found[target.database] = {**each, "catalog": catalog.read(connection), "rows": counts}
        return found

    def crash(self, number: signal.Signals) -> None:
        """End the server by a signal, and return when it is gone; a run that is under way may start another."""
        pid = self.server.pid()
        if pid is not None:
            os.kill(pid, number)
            eventually(lambda: self.server.pid() != pid, "the server is still there")


def eventually(is_so: Callable[[], object], otherwise: str) -> None:
    """Return when something is so; fail where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def members(group: int) -> list[int]:
    """Return the living processes of a group, those included that a killed leader left behind."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = path.read_text().partition(" (")
            state, _, its_group, *_ = rest.rpartition(") ")[2].split()
            if int(its_group) == group and state not in "ZX":
                found.append(int(pid))
    return found


def kill(repository: Repository, whom: str, process: subprocess.Popen[bytes], chance: random.Random) -> str:
    """Kill one of those that work on a command, or nobody if it ends before; return who it was."""
    if whom == "client":
        process.kill()
    elif whom == "group":
        os.killpg(process.pid, signal.SIGKILL)
    elif whom == "worker":
        while process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if children:
                child = int(chance.choice(children))
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                return f"worker {child}, one of {len(children)}"
    elif whom == "backend":
        while process.poll() is None:
            if pids := repository.rows(_OURS):
                (pid,) = chance.choice(pids)
                what = repository.rows(f"SELECT application_name, state, query FROM pg_stat_activity WHERE pid = {pid}")
                repository.rows(f"SELECT pg_terminate_backend({pid})")
                return f"backend {what}"
    else:
        repository.crash({"postmaster": signal.SIGKILL, "immediate": signal.SIGQUIT}[whom])
    return whom


@contextmanager
def running() -> Iterator[Repository]:
    """Yield a copy whose server runs, its databases set up once without disturbance."""
    home = Path(tempfile.mkdtemp(prefix="atriz-kills-"))
    home.chmod(0o755)
    copy_tree(home / "clone")
    environ = {**clean_environment(home), "ATRIZ_SERVER_HOME": str(home / "server")}
    own = server.Server(home / "server", server.of(home).user)
    repository = Repository(home / "clone", environ, own)
    try:
        server.start(own)
        with psycopg.connect(own.url.text(secrets=True), autocommit=True) as connection:
            # What nobody waits for stays in memory for as long as may be, so that a crash takes it.
            connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            connection.execute("SELECT pg_reload_conf()")
        repository.run("setup")
        repository.clean = repository.contents()
        yield repository
    finally:
        server.stop(own)
        shutil.rmtree(home)
