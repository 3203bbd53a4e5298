"""The benchmarks: what they measure is the work that they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from benchmarks import measure, workload
from benchmarks.measure import Command, Entry, RunError

from atriz_database import catalog
from atriz_database.url import DatabaseURL

ROOT = Path(__file__).parent.parent
CASES = {
    "migrate": ["nothing to do", "all pending", "one pending each", "nox -s migrate"],
    "data": [
        "transaction with one SELECT",
        "copy",
        "64 threads on 10 connections",
        "64 tasks on 10 connections",
        "import",
    ],
    "testing": [
        "test database, embedded server in memory",
        "test database, embedded server on disk",
        "test database, a server that is named",
    ],
    "signin": ["check of an access token", "sign-in", "look-ups by size, in users with ten tokens each"],
}


def test_the_workload_is_the_same_every_time(tmp_path: Path) -> None:
    """Two workspaces are equal byte by byte, and a longer history begins with the shorter one."""
    databases = {package: f"bench_{package}" for package in workload.PACKAGES}
    trees = []
    for name in ("first", "second"):
        workload.write_workspace(tmp_path / name, 9, databases, {"PGHOST": "here"})
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        trees.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in paths})
    assert trees[0] == trees[1]
    assert sum(path.startswith("apps/stock/migrations/versions/") for path in trees[0]) == 9
    assert workload.history("core", 9)[:5] == workload.history("core", 5)


@pytest.fixture
def database(server_url: DatabaseURL, new_database_name: Callable[[str], str]) -> Iterator[DatabaseURL]:
    """Yield an empty database."""
    name = new_database_name("bench")
    with psycopg.connect(server_url.text(secrets=True), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        yield server_url.with_database(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_the_floors_sql_is_what_alembic_makes_of_the_operations(tmp_path: Path, database: DatabaseURL) -> None:
    """Revisions applied by Alembic make the catalog that the plain SQL makes; down takes all of it back."""
    revisions = workload.history("core", 6)
    with psycopg.connect(database.text(secrets=True), autocommit=True) as connection:
        for revision in revisions:
            connection.execute(revision.sql.encode())
        by_sql = catalog.read(connection)
        for revision in reversed(revisions):
            connection.execute(revision.undo.encode())
        assert connection.execute(workload.CONTENTS.encode()).fetchone() == (0, 0, 0, 0)
    _alembic(tmp_path, database, "upgrade", "head")
    with psycopg.connect(database.text(secrets=True), autocommit=True) as connection:
        assert connection.execute(workload.CONTENTS.encode()).fetchone() == workload.contents("core", 6) == (2, 2, 1, 1)
        found = catalog.read(connection)
    assert {name: text for name, text in found.items() if name in by_sql} == by_sql
    _alembic(tmp_path, database, "downgrade", "base")
    with psycopg.connect(database.text(secrets=True)) as connection:
        assert connection.execute(workload.CONTENTS.encode()).fetchone() == (0, 0, 0, 0)


def _alembic(folder: Path, database: DatabaseURL, *arguments: str) -> None:
    root = folder / "workspace"
    if not root.exists():
        workload.write_workspace(root, 6, dict.fromkeys(workload.PACKAGES, database.database), {})
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "DIRECT_SHARED_DATABASE_URL": database.text(secrets=True),
        "APP_ENV": "test",
    }
    words = [sys.executable, "-m", "alembic", *arguments]
    done = subprocess.run(words, cwd=root / "packages" / "core", env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _python(folder: Path, program: str) -> Command:
    return Command((sys.executable, "-I", "-S", "-c", program), folder, {})


def test_a_contender_that_fails_gets_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    """Its last line is its failure; it is not run again, and the others have a sample of every round."""
    wrong = "import sys; print('first', flush=True); print('no such table', file=sys.stderr); sys.exit(3)"

    def nothing() -> None:
        pass

    def unfinished() -> None:
        raise RunError("one table is missing")

    good = Entry("good", 1, ((_python(tmp_path, "pass"),),), nothing, nothing)
    bad = Entry("bad", 1, ((_python(tmp_path, wrong),),), nothing, nothing)
    hollow = Entry("hollow", 1, ((_python(tmp_path, "pass"),),), nothing, unfinished)
    told: list[str] = []
    measure.in_rounds([good, bad, hollow], 2, told.append)
    assert (len(good.samples), good.failure) == (2, "")
    assert (bad.samples, bad.failure) == ({}, "failed: status 3: no such table")
    assert (hollow.samples, hollow.failure) == ({}, "failed: one table is missing")
    assert sum("bad" in line for line in told) == 1


def test_ratios_are_taken_within_a_round(tmp_path: Path) -> None:
    """One that takes part in every third round is compared with the others' samples of those rounds."""
    often = Entry("often", 1, ((_python(tmp_path, "pass"),),), lambda: None, lambda: None)
    seldom = Entry("seldom", 1, ((_python(tmp_path, "pass"),),), lambda: None, lambda: None, every=3)
    measure.in_rounds([often, seldom], 5, lambda text: None)
    assert sorted(often.samples) == [1, 2, 3, 4, 5]
    assert sorted(seldom.samples) == [1, 4]
    expected = {seldom.samples[number].seconds / often.samples[number].seconds for number in (1, 4)}
    assert set(seldom.ratios(often)) == expected


# Two commands that meet at a pipe, with their memory in hand: each opens one end of it and waits for the other.
_ALONE = """
import signal, time
signal.alarm(30)  # in turn they would wait for ever
held = b"x" * 30_000_000
open("meet").close()
time.sleep(0.3)
"""
_WITH_A_CHILD = """
import os, signal, time
signal.alarm(30)
(said, say), (ended, end) = os.pipe(), os.pipe()
child = os.fork() == 0
held = b"x" * 30_000_000
if child:
    os.close(end)
    os.write(say, b".")
    os.read(ended, 1)  # until its parent ends
else:
    os.read(said, 1)
    open("meet", "w").close()
    time.sleep(0.3)
"""


def test_time_and_memory_are_of_the_whole_run(tmp_path: Path) -> None:
    """Commands of a stage run at once, stages in turn; the sum of memory counts all processes, children's included."""
    os.mkfifo(tmp_path / "meet")
    began = time.perf_counter()
    sample = measure.run(((_python(tmp_path, _ALONE), _python(tmp_path, _WITH_A_CHILD)),), sampling=True)
    assert 0.3 <= sample.seconds <= time.perf_counter() - began
    assert 30e6 < sample.biggest < 60e6
    if sys.platform == "linux":
        assert sample.tree is not None
        assert 90e6 < sample.tree < 130e6
    wait = _python(tmp_path, "import time; time.sleep(0.3)")
    assert measure.run(((wait,), (wait,))).seconds >= 0.6


@pytest.mark.gate
@pytest.mark.parametrize("topic", CASES)
def test_a_quick_run_prints_every_case(topic: str) -> None:
    """With little work and one round all cases are measured, none fails, and the server is gone afterwards."""
    words = [sys.executable, "-m", "benchmarks", topic, "--quick", "--no-peers", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    names = [case["case"] for case in measured["cases"]]
    # Not every machine has room in memory.
    assert names == [name for name in CASES[topic] if name in names or "in memory" not in name]
    for case in measured["cases"]:
        for contender in case["contenders"]:
            assert contender["failure"] is None or contender["failure"].startswith("skipped"), contender
            assert contender["failure"] or len(contender["seconds"]) == 1
    assert "fsync on, synchronous_commit on" in measured["facts"]["postgresql"]
    assert not Path(measured["facts"]["folder"]).exists()
