"""A clean copy of the tree, as somebody has it who has just cloned it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from atriz_database import server

ROOT = Path(__file__).parent.parent.parent


def uv(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run uv."""
    from uv import find_uv_bin

    return subprocess.run([find_uv_bin(), *arguments], check=True, capture_output=True, text=True, **options)


@dataclass
class Clone:
    """A copy of what git would clone, with an empty home beside it."""

    root: Path
    environ: dict[str, str]
    server: server.Server

    def nox(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run nox in the copy, and return how it ended."""
        return subprocess.run(
            [sys.executable, "-m", "nox", *arguments],
            cwd=self.root,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start nox in the copy, and return the process."""
        return subprocess.Popen(
            [sys.executable, "-m", "nox", *arguments],
            cwd=self.root,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # What a shell starts in the background ignores SIGINT, and so would all that is started by the tests then.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def databases(self) -> list[str]:
        """Return the databases on the copy's server, but for PostgreSQL's own."""
        query = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1"
        with psycopg.connect(**dict(self.server.url.parameters)) as connection:
            return [row[0] for row in connection.execute(query)]

    def rows(self, database: str, query: str) -> list[tuple[object, ...]]:
        """Return the rows of a query."""
        with psycopg.connect(**dict(self.server.url.with_database(database).parameters)) as connection:
            return connection.execute(query.encode()).fetchall()


def copy_tree(to: Path) -> None:
    """Copy what git knows or would add, as it is now; where there is no git, all but what tools have made."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        made = shutil.ignore_patterns(".venv*", ".nox", ".atriz", ".env", "*_cache", ".hypothesis", "__pycache__")
        shutil.copytree(ROOT, to, ignore=made)
        return
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


@contextmanager
def cloned() -> Iterator[Clone]:
    """Yield a fresh clone in a folder far too deep for a socket, its server in a place of the test's own."""
    home = Path(tempfile.mkdtemp(prefix="atriz-clone-"))
    home.chmod(0o755)
    root = home / ("a-deep-folder-" * 8) / "clone"
    copy_tree(root)
    (home / "home").mkdir()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home / "home"),
        "LANG": "C.UTF-8",
        "ATRIZ_SERVER_HOME": str(home / "server"),
        # What has been downloaded once is not downloaded for every test.
        "UV_CACHE_DIR": uv("cache", "dir").stdout.strip(),
    }
    environ |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))}
    yield Clone(root, environ, server.Server(home / "server", server.of(root).user))
    server.stop(server.Server(home / "server", server.of(root).user))
    shutil.rmtree(home)
