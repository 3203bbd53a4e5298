"""How long a revision waits, what is tried again, and what is durable when a run has ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
import second
from blocker import WAITING, holding
from second import Second
from tree import Tree

from atriz_database import databases
from atriz_database.url import DatabaseURL


def run_sql(tree: Tree, statement: str) -> None:
    """Run a statement on left's database."""
    with tree.connect("left") as connection:
        connection.execute(statement.encode())


def flaky(state: str, times: int) -> str:
    """Return SQL that fails with an SQLSTATE the first `times` times: a sequence outlives the rollback."""
    return (
        "CREATE TABLE left_3 (id int); "
        f"DO $$ BEGIN IF nextval('tries') <= {times} THEN RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; "
        "END IF; END $$"
    )


def history(tree: Tree, name: str = "left") -> list[str]:
    """Return the revisions of a package's history, in order."""
    return [row[0] for row in tree.rows(name, "SELECT revision FROM atriz.history ORDER BY id")]


def test_a_lock_that_somebody_holds_ends_the_revision_and_names_the_holder(fleet: Tree) -> None:
    """After --lock-timeout: for how long, who (pid, program, since, query), its passwords hidden; those before stay."""
    fleet.at_head()
    fleet.revise("left", 3)
    fleet.revise("left", 4, "CREATE TABLE half (id int); ALTER TABLE left_1 ADD COLUMN name text")
    hidden = "SELECT id FROM left_1 WHERE 'x' = 'ALTER ROLE r PASSWORD' OR id = 7 -- PASSWORD 'geheim'"
    with holding(fleet, hidden) as holder:
        done = fleet.atriz("migrate", "--lock-timeout", "1", "--retries", "0")
        pid = holder.info.backend_pid
    assert done.returncode == 1
    assert "0004_left0004.py, line 11: canceling statement due to lock timeout (55P03)" in done.stderr
    assert f"did not get a lock within 1 s, held by pid {pid} (a report from " in done.stderr
    assert ", idle in transaction since " in done.stderr
    assert "SELECT id FROM left_1" in done.stderr
    assert "geheim" not in done.stdout + done.stderr
    assert "tried once" in done.stderr
    assert history(fleet) == ["left0001", "left0002", "left0003"]
    assert fleet.status()["left"]["current"] == ["left0003"]
    assert fleet.rows("left", "SELECT to_regclass('half')") == [(None,)]


def test_a_lock_is_tried_for_again_until_its_holder_lets_go(fleet: Tree) -> None:
    """Each try is told of, with who was in the way; when the holder has ended, the run goes on and is done."""
    fleet.at_head()
    fleet.revise("left", 3, "ALTER TABLE left_1 ADD COLUMN name text")
    fleet.revise("left", 4)
    with holding(fleet, "LOCK TABLE left_1 IN ACCESS SHARE MODE") as holder:
        process = fleet.start("migrate", "--lock-timeout", "0.3")
        assert process.stdout is not None
        told = next(line for line in process.stdout if "did not get a lock" in line)
        holder.rollback()
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "0003_left0003 did not get a lock within 0.3 s, held by pid" in told
    assert "rolled back, again in" in told
    assert "(1 of 5)" in told
    assert "2 revisions applied" in output
    assert history(fleet) == ["left0001", "left0002", "left0003", "left0004"]


def test_readers_behind_a_waiting_revision_wait_no_longer_than_the_lock_timeout(fleet: Tree) -> None:
    """A reader that queues behind the revision's lock comes through as soon as the revision has given up."""
    fleet.at_head()
    fleet.revise("left", 3, "ALTER TABLE left_1 ADD COLUMN name text")
    with holding(fleet, "SELECT FROM left_1"), fleet.connect("left") as reader:
        process = fleet.start("migrate", "--lock-timeout", "1", "--retries", "0")
        fleet.wait_until("left", WAITING, process)
        # Behind a revision that waits on it would wait for as long as the report takes.
        reader.execute("SET statement_timeout = '20s'")
        began = time.monotonic()
        reader.execute("SELECT FROM left_1")
        waited = time.monotonic() - began
        # The report that is in the way is still there: it was the revision that made room.
        assert process.communicate(timeout=30) is not None
    assert process.returncode == 1
    assert waited < 5


@pytest.mark.parametrize(("state", "words"), [("40P01", "met a deadlock"), ("40001", "met a serialization failure")])
def test_deadlocks_and_serialization_failures_are_tried_again(fleet: Tree, state: str, words: str) -> None:
    """The revision is whole at last, and its history has it once."""
    fleet.at_head()
    run_sql(fleet, "CREATE SEQUENCE tries")
    fleet.revise("left", 3, flaky(state, 2))
    done = fleet.atriz("migrate")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(words) == 2
    assert "(2 of 5)" in done.stdout
    assert history(fleet) == ["left0001", "left0002", "left0003"]
    assert fleet.rows("left", "SELECT last_value FROM tries") == [(3,)]


def test_a_true_deadlock_is_survived(fleet: Tree) -> None:
    """Two sessions that hold what the other wants: the revision is the one that is given up, and done again."""
    fleet.at_head()
    up = "SET LOCAL deadlock_timeout = '50ms'; LOCK TABLE left_2; LOCK TABLE left_1; CREATE TABLE left_3 (id int)"
    fleet.revise("left", 3, up)
    with holding(fleet, "SET LOCAL deadlock_timeout = '1min'", "LOCK TABLE left_1") as holder:
        process = fleet.start("migrate")
        fleet.wait_until("left", WAITING, process)
        # Served once the server has ended the revision's transaction.
        holder.execute("LOCK TABLE left_2")
        holder.rollback()
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "met a deadlock" in output or "did not get a lock" in output
    assert history(fleet) == ["left0001", "left0002", "left0003"]


def test_what_is_not_transient_is_not_tried_again(fleet: Tree) -> None:
    """An error that would come again is told at once."""
    fleet.at_head()
    run_sql(fleet, "CREATE SEQUENCE tries")
    fleet.revise("left", 3, flaky("23505", 1))
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert "again in" not in done.stdout
    assert fleet.rows("left", "SELECT last_value FROM tries") == [(1,)]


def test_as_often_as_retries_says_and_no_more(fleet: Tree) -> None:
    """A revision that never gets through is tried once and --retries times, and the message says so."""
    fleet.at_head()
    run_sql(fleet, "CREATE SEQUENCE tries")
    fleet.revise("left", 3, flaky("40001", 99))
    done = fleet.atriz("migrate", "--retries", "1")
    assert done.returncode == 1
    assert "tried 2 times" in done.stderr
    assert fleet.rows("left", "SELECT last_value FROM tries") == [(2,)]


def test_each_revision_has_its_own_tries(fleet: Tree) -> None:
    """What one revision has used up is not missing to the next."""
    fleet.at_head()
    run_sql(fleet, "CREATE SEQUENCE tries; CREATE SEQUENCE tries_4")
    fleet.revise("left", 3, flaky("40001", 1))
    fleet.revise("left", 4, flaky("40001", 1).replace("tries", "tries_4").replace("left_3", "left_4"))
    done = fleet.atriz("migrate", "--retries", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(1 of 1)") == 2


def test_a_revision_that_has_committed_something_is_not_tried_again(fleet: Tree) -> None:
    """After an autocommit block a second try might meet what the first has left, so there is none, and it is said."""
    fleet.at_head()
    run_sql(fleet, "CREATE SEQUENCE tries")
    body = (
        "with op.get_context().autocommit_block():\n"
        '        op.execute("CREATE TABLE left_outside (id int)")\n'
        f"    op.execute({flaky('40001', 1)!r})"
    )
    fleet.revise("left", 3, body=body)
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert "after it had committed something in its middle: it is not tried again" in done.stderr
    assert fleet.rows("left", "SELECT last_value FROM tries") == [(1,)]
    assert fleet.status()["left"]["current"] == ["left0002"]


def test_a_statement_that_takes_too_long_is_ended(fleet: Tree) -> None:
    """--statement-timeout ends it, and its revision is undone; it is not tried again."""
    fleet.revise("left", 3, "CREATE TABLE half (id int); SELECT pg_sleep(60)")
    done = fleet.atriz("migrate", "--statement-timeout", "0.2")
    assert done.returncode == 1
    assert "canceling statement due to statement timeout (57014)" in done.stderr
    assert "again in" not in done.stdout
    assert fleet.rows("left", "SELECT to_regclass('half')") == [(None,)]


def _limits_seen(tree: Tree) -> tuple[str, str]:
    """Return the lock_timeout and the statement_timeout that revision 3 ran with."""
    ((lock, statement),) = tree.rows("left", "SELECT * FROM seen")
    return lock, statement


_SEE = (
    "CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS lock, "
    "current_setting('statement_timeout') AS statement"
)


def test_the_servers_limit_on_statements_holds_unless_another_is_given(fleet: Tree) -> None:
    """What is set for the database stays in force; the lock_timeout is the run's own, five seconds."""
    fleet.at_head()
    with fleet.connect("left") as connection:
        name = fleet.database("left")
        connection.execute(f"ALTER DATABASE {name} SET statement_timeout = '7s'".encode())
        connection.execute(f"ALTER DATABASE {name} SET lock_timeout = '1h'".encode())
    fleet.revise("left", 3, _SEE)
    assert fleet.atriz("migrate").returncode == 0
    assert _limits_seen(fleet) == ("5s", "7s")
    fleet.revise("left", 4, f"DROP TABLE seen; {_SEE}")
    assert fleet.atriz("migrate", "--statement-timeout", "0", "--lock-timeout", "0").returncode == 0
    assert _limits_seen(fleet) == ("0", "0")


def test_a_revisions_own_limits_win_and_end_with_it(fleet: Tree) -> None:
    """SET LOCAL in a revision holds for that one; the next has the run's again."""
    fleet.revise("left", 3, f"SET LOCAL lock_timeout = '1min'; SET LOCAL statement_timeout = '2min'; {_SEE}")
    assert fleet.atriz("migrate", "left").returncode == 0
    assert _limits_seen(fleet) == ("1min", "2min")
    fleet.revise("left", 4, f"DROP TABLE seen; {_SEE}")
    assert fleet.atriz("migrate", "left", "--lock-timeout", "0.25").returncode == 0
    assert _limits_seen(fleet)[0] == "250ms"


@pytest.fixture(scope="module")
def lazy_server() -> Iterator[Second]:
    """Yield a server on TCP whose background processes leave the log alone, with a role that owns and no more."""
    with second.running() as server:
        given = {"host": "127.0.0.1", "port": server.port, "dbname": "postgres", "password": second.PASSWORD}
        with psycopg.connect(**given, user=server.user, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            connection.execute("ALTER SYSTEM SET wal_writer_flush_after = '1GB'")
            connection.execute("ALTER SYSTEM SET autovacuum = off")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE ROLE owner LOGIN CREATEDB PASSWORD 'owner'")
        yield server


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
@pytest.mark.parametrize("role", ["team", "owner"])
def test_what_a_run_has_told_is_on_disk_when_it_ends(fleet: Tree, lazy_server: Second, role: str, fails: bool) -> None:
    """The log is flushed past the last revision, though no revision's commit waited; an owner's rights suffice."""
    fleet.environ |= lazy_server.environ
    if role == "owner":
        fleet.environ |= {"PGUSER": "owner", "PGPASSWORD": "owner"}
    assert fleet.atriz("migrate", "core").returncode == 0
    # As late in the log as a revision can look: its own rows and its commit come after.
    fleet.revise("left", 3, "CREATE TABLE place AS SELECT pg_current_wal_insert_lsn() AS lsn")
    if fails:
        fleet.revise("left", 4, "SELECT 1/0")
    done = fleet.atriz("migrate", "left", "--only")
    assert done.returncode == int(fails), done.stderr
    assert fleet.rows("left", "SELECT pg_current_wal_flush_lsn() > lsn FROM place") == [(True,)]


def test_no_revision_waits_for_the_disk(fleet: Tree, lazy_server: Second) -> None:
    """The log is not flushed between two revisions: the first one's place in it is not on disk as the second runs."""
    fleet.environ |= lazy_server.environ
    assert fleet.atriz("migrate").returncode == 0
    fleet.revise("left", 3, "CREATE TABLE place AS SELECT pg_current_wal_insert_lsn() AS lsn")
    fleet.revise("left", 4, "CREATE TABLE later AS SELECT pg_current_wal_flush_lsn() < lsn AS waits FROM place")
    assert fleet.atriz("migrate", "left", "--only").returncode == 0
    assert fleet.rows("left", "SELECT waits FROM later") == [(True,)]


def test_a_connection_on_tcp_has_keepalives_and_a_urls_own_win(fleet: Tree, lazy_server: Second) -> None:
    """A firewall does not forget a connection that is silent for as long as a revision takes."""
    fleet.environ |= lazy_server.environ
    assert fleet.atriz("create", "core").returncode == 0
    with fleet.connect("core") as connection:
        given = connection.info.get_parameters()
        sockets = subprocess.run(["ss", "-tnoH"], capture_output=True, text=True) if shutil.which("ss") else None
    assert {name: value for name, value in given.items() if name.startswith("keepalives")} == {
        "keepalives": "1",
        "keepalives_idle": "30",
        "keepalives_interval": "10",
        "keepalives_count": "3",
    }
    assert given["tcp_user_timeout"] == "60000"
    if sockets is not None:
        ours = [line for line in sockets.stdout.splitlines() if f":{lazy_server.port} " in line]
        assert any("timer:(keepalive" in line for line in ours)
    target = fleet.target("core")
    assert target.url is not None
    url = DatabaseURL.parse(f"{target.url.text(secrets=True)}?keepalives_idle=5")
    with databases.connect(replace(target, url=url)) as connection:
        given = connection.info.get_parameters()
    assert (given["keepalives_idle"], given["keepalives_count"]) == ("5", "3")


def test_the_server_ends_the_statement_of_a_worker_that_was_killed(fleet: Tree) -> None:
    """SIGKILL in the middle of a long statement: within seconds the server lets go, and nobody had to cancel it."""
    fleet.at_head()
    with fleet.connect("left") as connection:
        if connection.info.server_version < 140000:
            pytest.skip("client_connection_check_interval is newer")
    fleet.revise("left", 3, "CREATE TABLE half (id int); SELECT pg_sleep(60)")
    process = fleet.start("migrate")
    asleep = """
        SELECT count(*) = 1 FROM pg_stat_activity
        WHERE datname = current_database() AND query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()
    """
    fleet.wait_until("left", asleep, process)
    # Asked in the same words: the session that waited with them may not have ended, and is idle.
    ((worker,),) = fleet.rows("left", asleep.replace("count(*) = 1", "substring(application_name FROM '[0-9]+\\)$')"))
    killed = time.monotonic()
    os.kill(int(worker.rstrip(")")), signal.SIGKILL)
    fleet.wait_until("left", asleep.replace("count(*) = 1", "count(*) = 0"))
    took = time.monotonic() - killed
    _, errors = process.communicate(timeout=20)
    assert took < 5
    assert process.returncode == 1
    assert "SIGKILL" in errors
    assert "run the same command again" in errors
    fleet.revise("left", 3)
    assert fleet.atriz("migrate").returncode == 0
    assert history(fleet) == ["left0001", "left0002", "left0003"]
