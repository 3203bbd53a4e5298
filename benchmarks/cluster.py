"""The PostgreSQL server of a run of benchmarks: started by it, stopped by it, with its default durability."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from atriz_database import server
from atriz_database.url import DatabaseURL

ROOT = Path(__file__).parent.parent
_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Cluster:
    """A running server, and the folder in which a run may write."""

    folder: Path
    server: server.Server
    maintenance: psycopg.Connection[Any]

    @property
    def environ(self) -> Mapping[str, str]:
        """The PG* variables that name it."""
        parameters = self.server.url.parameters
        return {"PGHOST": parameters["host"], "PGPORT": parameters["port"], "PGUSER": parameters["user"]}

    @property
    def programs(self) -> Path:
        """The folder of PostgreSQL's programs."""
        return server._programs(self.server)

    def url(self, database: str) -> DatabaseURL:
        """Return the URL of one of its databases."""
        return self.server.url.with_database(database)

    def connect(self, database: str) -> psycopg.Connection[Any]:
        """Connect to one of its databases; everything commits at once."""
        return psycopg.connect(self.url(database).text(secrets=True), autocommit=True)

    def create(self, names: Sequence[str], templates: Sequence[str] | None = None) -> None:
        """Make databases anew, dropped first where they are there, empty or as copies of templates.

        Each is connected to once, as one that has been in use has been: the first connection of all writes files.
        """
        for name, template in zip(names, templates or ["template0"] * len(names), strict=True):
            self.drop([name])
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
            self.maintenance.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
        for name in names:
            self.connect(name).close()

    def drop(self, names: Sequence[str]) -> None:
        """Drop those of the databases that are there."""
        for name in names:
            self.maintenance.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def drop_all(self) -> None:
        """Drop every database that was made here."""
        query = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
        self.drop([row[0] for row in self.maintenance.execute(query).fetchall()])

    def settle(self) -> None:
        """Write to disk what is to be written, so that no later run pays for it."""
        self.maintenance.execute("CHECKPOINT")

    def settings(self) -> dict[str, str]:
        """Return the settings of the server that the figures depend on."""
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "commit_delay")
        return {name: str(self.maintenance.execute(f"SHOW {name}".encode()).fetchone()[0]) for name in names}  # type: ignore[index]

    def commit_seconds(self) -> float:
        """Return how long a transaction with one row takes: the disk's part in every figure."""
        self.maintenance.execute("CREATE TABLE commits (number int)")
        took = []
        for number in range(200):
            since = time.perf_counter()
            self.maintenance.execute("INSERT INTO commits VALUES (%s)", [number])
            took.append(time.perf_counter() - since)
        self.maintenance.execute("DROP TABLE commits")
        return sorted(took)[len(took) // 2]


@contextmanager
def running(commit_ms: float = 0.0) -> Iterator[Cluster]:
    """Yield a new server in a temporary folder on a disk; whatever happens, it is stopped and its folder removed.

    :param commit_ms: how long each flush of a commit waits, beside what the disk takes.
    """
    folder = Path(tempfile.mkdtemp(prefix="atriz-bench-", dir=_on_disk()))
    # The server's user, who is not root, must get there.
    folder.chmod(0o755)
    own = server.Server(folder / "server", server.of(ROOT).user)
    try:
        server.start(own)
        with psycopg.connect(own.url.text(secrets=True), autocommit=True) as maintenance:
            if commit_ms:
                maintenance.execute(f"ALTER SYSTEM SET commit_delay = {commit_ms * 1000:.0f}".encode())
                maintenance.execute("ALTER SYSTEM SET commit_siblings = 0")
                maintenance.execute("SELECT pg_reload_conf()")
            yield Cluster(folder, own, maintenance)
    finally:
        # An impatient second Ctrl-C would leave the server behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        server.stop(own)
        shutil.rmtree(folder)


def _on_disk() -> Path:
    """Return a folder for temporary files that is not in memory, where there is one: fsync costs nothing there."""
    usual = Path(tempfile.gettempdir())
    on_disk = (folder for folder in (usual, Path("/var/tmp")) if file_system(folder) not in _MEMORY)
    return next(on_disk, usual)


def lacks_journal(folder: Path) -> bool:
    """Whether a folder is on ext4 without a journal, as some virtual machines have it.

    For a new file the kernel looks there at each inode that was free and was deleted within the last minutes
    (``recently_deleted`` in Linux's fs/ext4/ialloc.c): databases that are made and dropped by the dozen took four to
    ten times as long to make as on ext4 with a journal.
    """
    device = folder.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    return Path("/proc/fs/ext4", name).is_dir() and not any(Path("/proc/fs/jbd2").glob(f"{name}-*"))


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on, ``unknown`` where the machine does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    of_folder = [(len(mount[1]), mount[2]) for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    return max(of_folder, default=(0, "unknown"))[1]
