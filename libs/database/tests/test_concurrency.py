"""Several runs at once, and runs that are stopped in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from contextlib import suppress

import pytest
from tree import Tree

from atriz_database import lock

_SLEEPING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()
"""


def _wait_until_asleep(tree: Tree, name: str, process: subprocess.Popen[str]) -> None:
    """Return when the revision that sleeps has begun to."""
    while True:
        assert process.poll() is None, process.communicate()
        if tree.exists(name) and tree.rows(name, _SLEEPING) == [(1,)]:
            return


def _read_until(process: subprocess.Popen[str], text: str) -> None:
    """Return when the process has written a line with the text."""
    assert process.stdout is not None
    assert any(text in line for line in process.stdout)


def _workers(process: subprocess.Popen[str]) -> list[int]:
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    )
    return [int(pid) for pid in children.stdout.split()]


def test_eight_runs_at_once_apply_every_revision_exactly_once(fleet: Tree) -> None:
    """Eight `setup` on nothing all succeed, and each revision has one row of history."""
    processes = [fleet.start("setup") for _ in range(8)]
    results = [(process.communicate(timeout=120), process.returncode) for process in processes]
    assert [errors for (_, errors), code in results if code] == []
    for name in fleet.folders:
        rows = fleet.rows(name, "SELECT revision FROM atriz.history")
        assert Counter(rows) == {(f"{name}0001",): 1, (f"{name}0002",): 1}


def test_a_run_that_cannot_get_the_lock_says_who_holds_it(fleet: Tree) -> None:
    """After --lock-wait it gives up with status 1, and nothing has been changed."""
    fleet.atriz("create")
    with lock.held(fleet.target("core")) as connection:
        done = fleet.atriz("migrate", "core", "--lock-wait", "0.1")
        pid = connection.info.backend_pid
    assert done.returncode == 1
    assert f"pid {pid} (atriz lock core" in done.stderr
    assert "--lock-wait" in done.stderr
    assert f"waiting for pid {pid}" in done.stdout
    assert fleet.status()["core"]["state"] == "pending"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_cancels_rolls_back_and_says_what_was_applied(fleet: Tree, number: signal.Signals) -> None:
    """The running statement is cancelled on the server, its revision undone, no process is left."""
    fleet.revise("left", 3, "CREATE TABLE half (id int); SELECT pg_sleep(60)")
    process = fleet.start("migrate")
    _wait_until_asleep(fleet, "left", process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "interrupted" in errors
    assert "applied before it, and kept: 0001_left0001, 0002_left0002" in errors
    assert "Traceback" not in errors
    assert "left0002" in output
    assert fleet.rows("left", "SELECT to_regclass('half')") == [(None,)]
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'atriz mi%'"
    )
    assert fleet.rows("left", query) == [(0,)]
    assert fleet.status()["left"]["current"] == ["left0002"]


def test_ctrl_c_at_a_terminal_reaches_every_process_and_still_ends_well(fleet: Tree) -> None:
    """The whole process group gets SIGINT twice, as an impatient person gives it; the message is the same."""
    fleet.revise("left", 3, "SELECT pg_sleep(60)")
    process = fleet.start("migrate", start_new_session=True)
    _wait_until_asleep(fleet, "left", process)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "left" in errors
    assert "interrupted" in errors
    assert "Traceback" not in errors


def test_a_killed_worker_is_reported_and_the_next_run_finishes(fleet: Tree) -> None:
    """SIGKILL of the process that migrates: the run says so, the lock is free, nothing is half done."""
    path = fleet.revise("left", 3, "CREATE TABLE half (id int); SELECT pg_sleep(60)")
    process = fleet.start("migrate")
    _wait_until_asleep(fleet, "left", process)
    for pid in _workers(process):
        with suppress(ProcessLookupError):  # The other app's may have ended meanwhile.
            os.kill(pid, signal.SIGKILL)
    with fleet.connect("left") as connection:
        # The server itself only notices when the statement ends.
        connection.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()"
        )
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "SIGKILL" in errors
    path.unlink()
    fleet.revise("left", 3)
    again = fleet.atriz("migrate")
    assert again.returncode == 0, again.stderr
    assert fleet.rows("left", "SELECT to_regclass('half')") == [(None,)]


def test_a_worker_that_dies_before_its_turn_is_replaced(fleet: Tree) -> None:
    """While core waits for its lock the others' workers are killed: nothing was done, and so nothing is lost."""
    fleet.atriz("create")
    query = "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'atriz lock core%'"
    with lock.held(fleet.target("core")):
        process = fleet.start("migrate")
        _read_until(process, "waiting for pid")
        at_work = " ".join(name for (name,) in fleet.rows("core", query))
        waiting = [pid for pid in _workers(process) if f":{pid})" not in at_work]
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert waiting
    assert (process.returncode, errors) == (0, "")
    assert all(row["state"] == "up-to-date" for row in fleet.status().values())


def test_connections_that_are_ended_before_the_turn_are_made_again(fleet: Tree) -> None:
    """An app connects while core is at work; what a firewall ends of that meanwhile costs nothing."""
    fleet.at_head()
    fleet.revise("core", 3, "ALTER TABLE core_1 ADD COLUMN more int")
    fleet.revise("left", 3)
    early = (
        "FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle%' AND pid <> pg_backend_pid() "
        "AND (application_name LIKE 'atriz lock left%' OR application_name LIKE 'atriz migrate left%')"
    )
    with fleet.connect("core") as core, core.transaction():
        core.execute("LOCK TABLE core_1")
        process = fleet.start("migrate", "--lock-timeout", "0")
        fleet.wait_until("left", f"SELECT count(*) = 2 {early}", process)
        assert fleet.rows("left", f"SELECT pg_terminate_backend(pid) {early}") == [(True,), (True,)]
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    assert fleet.status()["left"]["current"] == ["left0003"]


def test_a_worker_whose_parent_was_killed_stops_after_its_revision(fleet: Tree) -> None:
    """SIGKILL of the command: what runs is finished and recorded, and nothing more is begun."""
    fleet.revise("left", 3, "SELECT pg_sleep(1)")
    fleet.revise("left", 4)
    process = fleet.start("migrate", "left")
    _wait_until_asleep(fleet, "left", process)
    process.kill()
    # The worker has the same pipes: they are closed when it has ended too.
    process.communicate(timeout=20)
    assert fleet.status()["left"]["current"] == ["left0003"]
    assert fleet.atriz("migrate", "left").returncode == 0


def test_what_a_killed_rollback_still_undoes_the_next_run_applies_again(fleet: Tree) -> None:
    """A look in the middle sees nothing pending, and waits: when it is told that all is done, it is."""
    path = fleet.revise("left", 3)
    path.write_text(path.read_text().replace("'DROP", "'SELECT pg_sleep(1); DROP"))
    assert fleet.atriz("migrate", "left").returncode == 0
    process = fleet.start("rollback", "left")
    _wait_until_asleep(fleet, "left", process)
    process.kill()
    done = fleet.atriz("migrate", "left")
    process.communicate(timeout=20)
    assert done.returncode == 0, done.stderr
    assert "waiting for pid" in done.stdout
    assert fleet.status()["left"]["current"] == ["left0003"]
    history = "SELECT direction FROM atriz.history WHERE revision = 'left0003' ORDER BY id"
    assert fleet.rows("left", history) == [("upgrade",), ("downgrade",), ("upgrade",)]


def test_a_worker_left_behind_begins_nothing_once_it_gets_the_lock(fleet: Tree) -> None:
    """Killed while its worker waits for the lock: whoever looks after that is not surprised by it."""
    fleet.atriz("create")
    with lock.held(fleet.target("core")):
        process = fleet.start("migrate", "core")
        _read_until(process, "waiting for pid")
        process.kill()
        process.wait()
    # The worker has the same pipes: they are closed when it has ended too.
    process.communicate(timeout=20)
    assert fleet.status()["core"]["current"] == []


def test_the_lock_is_not_free_before_the_last_connection_of_the_run_is_gone(fleet: Tree) -> None:
    """A killed process's other connection may still have a commit to do: the next run waits for it by name."""
    fleet.atriz("create")
    with fleet.connect("core") as left:
        lock.join(left)
        done = fleet.atriz("migrate", "core", "--lock-wait", "0.1")
        assert done.returncode == 1
        assert f"pid {left.info.backend_pid} " in done.stderr
    assert fleet.atriz("migrate", "core").returncode == 0


def test_nothing_is_committed_once_the_lock_is_lost(fleet: Tree) -> None:
    """Where the connection that holds the lock is ended, the revision under way is rolled back, and it is said."""
    fleet.at_head()
    fleet.revise(
        "left",
        3,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'atriz lock%'; "
        "SELECT pg_sleep(0.3); CREATE TABLE half (id int)",
    )
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert "held the database's lock was ended" in done.stderr
    assert fleet.status()["left"]["current"] == ["left0002"]
    assert fleet.rows("left", "SELECT to_regclass('half')") == [(None,)]


def test_a_time_limit_for_idle_sessions_does_not_end_the_lock(fleet: Tree) -> None:
    """The lock's connection does nothing for as long as the run takes, which the server must bear."""
    fleet.at_head()
    with fleet.connect("left") as connection:
        if connection.info.server_version < 140000:
            pytest.skip("the setting is newer")
        connection.execute(f"ALTER DATABASE {fleet.database('left')} SET idle_session_timeout = '700ms'".encode())
    fleet.revise("left", 3, "SELECT pg_sleep(1)")
    done = fleet.atriz("migrate")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["rollback left", "reset left --yes"])
def test_what_a_package_brings_can_be_interrupted(fleet: Tree, verb: str) -> None:
    """SIGTERM while a revision or a seed runs: cancelled, undone, said, and no process is left."""
    fleet.at_head()
    fleet.seed("left", "001_rows.py", "connection.execute('INSERT INTO left_1 VALUES (1)')")
    assert fleet.atriz("seed").returncode == 0
    if verb.startswith("rollback"):
        path = fleet.folders["left"] / "migrations" / "versions" / "0002_left0002.py"
        path.write_text(path.read_text().replace("DROP TABLE", "SELECT pg_sleep(60); DROP TABLE"))
    fleet.seed("left", "001_rows.py", "connection.execute('INSERT INTO left_1 VALUES (2); SELECT pg_sleep(60)')")
    process = fleet.start(*verb.split())
    # Seen from core's database: to be connected to left's would be in the way of reset.
    sleeping = f"""
        SELECT count(*) = 1 FROM pg_stat_activity
        WHERE datname = '{fleet.database("left")}' AND state = 'active' AND query LIKE '%pg_sleep%'
    """
    fleet.wait_until("core", sleeping, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "interrupted" in errors
    assert "Traceback" not in errors
    kept = [] if verb.startswith("reset") else [(1,)]
    assert fleet.rows("left", "SELECT id FROM left_1") == kept
    at_work = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name LIKE 'atriz%' AND pid <> pg_backend_pid()"
    )
    assert fleet.rows("left", at_work) == [(0,)]
