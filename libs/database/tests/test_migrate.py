"""`atriz migrate` and its kin: order, processes, what is reported when something fails."""

from __future__ import annotations

import json

import pytest
from tree import Tree

from atriz_database import databases, lock


def test_brings_every_package_to_head_core_first(fleet: Tree) -> None:
    """Core's revisions are applied before any app's, and a second run finds nothing to do."""
    first = fleet.atriz("migrate")
    assert first.returncode == 0, first.stderr
    applied = [line.split()[0] for line in first.stdout.splitlines() if "  applied  " in line]
    assert applied[:2] == ["core", "core"]
    assert sorted(applied[2:]) == ["left", "left", "right", "right"]
    assert {row["state"] for row in fleet.status().values()} == {"up-to-date"}
    second = fleet.atriz("migrate")
    assert second.stdout.count("up to date") == 3
    assert "nothing to do" in second.stdout


def test_each_line_says_package_database_what_and_how_long(fleet: Tree) -> None:
    """One line per act, plain when piped: no colour codes."""
    line = next(
        line for line in fleet.atriz("setup").stdout.splitlines() if line.startswith("core") and "created" in line
    )
    assert line.split()[:3] == ["core", fleet.database("core"), "created"]
    assert line.endswith(" s")
    assert "\x1b" not in line


def test_of_one_package_includes_what_it_depends_on(fleet: Tree) -> None:
    """`migrate left` brings core to head first and leaves right alone."""
    assert fleet.atriz("migrate", "left").returncode == 0
    assert {name: row["state"] for name, row in fleet.status().items()} == {
        "core": "up-to-date",
        "left": "up-to-date",
        "right": "missing",
    }


def test_only_leaves_out_what_the_package_depends_on(fleet: Tree) -> None:
    """`migrate left --only` touches left alone."""
    assert fleet.atriz("migrate", "left", "--only").returncode == 0
    assert fleet.status()["core"]["state"] == "missing"
    assert fleet.status()["left"]["state"] == "up-to-date"


def test_apps_run_side_by_side_in_processes_of_their_own(fleet: Tree) -> None:
    """Two apps whose revisions wait for each other both finish: they run at the same time, in two processes."""
    for name, mine in (("left", 1), ("right", 2)):
        # Each shows itself by an advisory lock on the maintenance database and waits for the other's.
        body = (
            "import os, psycopg\n"
            f"    c = psycopg.connect({fleet.server.text(secrets=True)!r}, autocommit=True)\n"
            f"    c.execute('select pg_advisory_lock_shared(77, {mine})')\n"
            "    for _ in range(100000):\n"
            f"        n = c.execute('select count(distinct objid) from pg_locks where classid = 77').fetchone()[0]\n"
            "        if n == 2: break\n"
            '    c.execute("select pg_sleep(0.1)")\n'
            f"    op.execute(f'CREATE TABLE worker_{{os.getpid()}} (id int)')"
        )
        fleet.revise(name, 3, body=body)
    done = fleet.atriz("migrate")
    assert done.returncode == 0, done.stderr
    query = "SELECT relname FROM pg_class WHERE relname LIKE 'worker%'"
    assert fleet.rows("left", query) != fleet.rows("right", query)


def test_when_core_fails_the_apps_are_reported_as_not_run(fleet: Tree) -> None:
    """Nobody's revisions run on top of a core that is not at head."""
    fleet.revise("core", 3, "CREATE TABEL x ()")
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert "left" in done.stderr
    assert done.stderr.count("not run: core failed") == 2
    assert fleet.status()["left"]["state"] == "missing"


def test_when_an_app_fails_the_others_finish_and_the_summary_tells(fleet: Tree) -> None:
    """The failed one says which revision, why, where, and what was applied before it and kept."""
    fleet.revise("left", 3, "CREATE TABLE good (id int);\nSELECT 1 FROM nowhere")
    done = fleet.atriz("migrate")
    assert done.returncode == 1
    assert fleet.status()["right"]["state"] == "up-to-date"
    assert fleet.status()["left"]["current"] == ["left0002"]
    assert "0003_left0003.py, line 11" in done.stderr
    assert 'relation "nowhere" does not exist (42P01)' in done.stderr
    caret = done.stderr.splitlines()[done.stderr.splitlines().index("    SELECT 1 FROM nowhere") + 1]
    assert caret == "                  ^"
    assert "applied before it, and kept: 0001_left0001, 0002_left0002" in done.stderr
    assert "1 failed; done: core, right" in done.stderr
    assert fleet.rows("left", "SELECT to_regclass('good')") == [(None,)]


def test_a_revision_and_its_history_row_are_one_transaction(fleet: Tree) -> None:
    """Each applied revision has its row with checksum, text, duration and who; a failed one has none."""
    fleet.revise("left", 3, "SELECT 1 FROM nowhere")
    fleet.atriz("migrate")
    rows = fleet.rows(
        "left", "SELECT revision, direction, length(checksum), seconds >= 0, applied_by FROM atriz.history"
    )
    assert [row[:4] for row in rows] == [("left0001", "upgrade", 64, True), ("left0002", "upgrade", 64, True)]
    assert "@" in rows[0][4]


def test_json_is_one_document_on_stdout(fleet: Tree) -> None:
    """A program reads what happened to each package, failures included, and nothing else is on stdout."""
    fleet.revise("left", 3, "SELECT 1 FROM nowhere")
    done = fleet.atriz("migrate", "--json")
    rows = {row["package"]: row for row in json.loads(done.stdout)}
    assert [rows[name]["state"] for name in ("core", "left", "right")] == ["done", "failed", "done"]
    assert [act["what"] for act in rows["core"]["acts"]] == ["created", "applied", "applied"]
    assert "nowhere" in rows["left"]["error"]


def test_quiet_says_nothing_when_all_is_well(fleet: Tree) -> None:
    """`--quiet` prints errors and warnings only."""
    done = fleet.atriz("migrate", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_app_alone_works_where_the_others_are_gone(tree: Tree) -> None:
    """In a tree with core and one app, create, migrate and seed work for both."""
    tree.add("core")
    tree.add("left")
    tree.seed("left", "001_rows.py", "connection.execute('INSERT INTO left_1 VALUES (1)')")
    for arguments in (("create", "core"), ("create", "left"), ("migrate", "left"), ("seed", "core"), ("seed", "left")):
        done = tree.atriz(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    assert tree.rows("left", "SELECT * FROM left_1") == [(1,)]


def test_production_creates_no_database_unasked(fleet: Tree) -> None:
    """In production a missing database is an error that names the command; `create` then makes it."""
    url = fleet.server
    environ = {
        "APP_ENV": "production",
        "CORE_SHARED_DATABASE_URL": url.with_database(fleet.database("core")).text(secrets=True),
    }
    refused = fleet.atriz("migrate", "core", **environ)
    assert refused.returncode == 1
    assert "atriz create core" in refused.stderr
    assert fleet.atriz("create", "core", **environ).returncode == 0
    assert fleet.atriz("migrate", "core", **environ).returncode == 0


def test_a_database_made_after_the_look_is_not_an_error(fleet: Tree) -> None:
    """`create` on what is there says so, and is not an error."""
    assert fleet.atriz("create").returncode == 0
    again = fleet.atriz("create")
    assert again.returncode == 0
    assert again.stdout.count("there already") == 3


def test_files_of_applied_revisions_are_not_run(fleet: Tree) -> None:
    """Of hundreds few are pending: what is behind the database is read, and its module's code does not run again."""
    fleet.at_head()
    path = next(fleet.folders["left"].rglob("0001*.py"))
    path.write_text(path.read_text() + "\nraise RuntimeError('run again')\n")
    fleet.revise("left", 3)
    done = fleet.atriz("migrate")
    assert done.returncode == 0, done.stderr
    assert fleet.status()["left"]["current"] == ["left0003"]


def test_what_was_rolled_back_since_the_look_is_applied_too(fleet: Tree) -> None:
    """A run that waits for the lock of one that goes back does all that is to do then, and not what it had seen."""
    fleet.at_head()
    fleet.revise("left", 3)
    with lock.held(fleet.target("left")) as holder:
        process = fleet.start("migrate")
        waiting = f"""
            SELECT count(*) > 0 FROM pg_stat_activity
            WHERE datname = '{fleet.database("left")}' AND application_name LIKE 'atriz lock%'
              AND query LIKE '%pg_locks%' AND pid <> {holder.info.backend_pid}
        """
        fleet.wait_until("core", waiting, process)
        holder.execute("DROP TABLE left_2; UPDATE alembic_version SET version_num = 'left0001'")
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert [line.split()[3] for line in output.splitlines() if "applied" in line and "left" in line][:2] == [
        "0002_left0002:",
        "0003_left0003:",
    ]
    assert fleet.rows("left", "SELECT to_regclass('left_2') IS NOT NULL") == [(True,)]


def test_after_a_failure_it_says_what_is_where_and_how_to_go_on_or_back(fleet: Tree) -> None:
    """Each database's place and what is pending; the way back leads to where all were, the way on to head."""
    fleet.at_head()
    before = {name: row["current"] for name, row in fleet.status().items()}
    for name in ("core", "left", "right"):
        fleet.revise(name, 3)
    fleet.revise("left", 4, "SELECT 1 FROM nowhere")
    done = fleet.atriz("migrate")
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert [" ".join(line.split()) for line in lines if " now " in line] == [
        f"core {fleet.database('core')} now at core0003 1 applied, 0 pending",
        f"left {fleet.database('left')} now at left0003 1 applied, 1 pending",
        f"right {fleet.database('right')} now at right0003 1 applied, 0 pending",
    ]
    assert "to go on: mend the cause (left0004 of left), then run `atriz migrate` again" in lines
    (back,) = (line.partition("`")[2].rstrip("`") for line in lines if line.startswith("to go back"))
    commands = [command.split()[1:] for command in back.split(" && ")]
    assert [command[1] for command in commands] == ["right", "left", "core"]
    for command in commands:
        assert fleet.atriz(*command).returncode == 0
    assert {name: row["current"] for name, row in fleet.status().items()} == before
    fleet.revise("left", 4)
    assert fleet.atriz("migrate").returncode == 0
    assert fleet.status()["left"]["current"] == ["left0004"]


def test_a_result_says_what_was_applied_what_failed_and_what_is_pending(fleet: Tree) -> None:
    """As values of the library, and the same in --json; a package that was not run has its place too."""
    fleet.atriz("migrate", "right")
    fleet.revise("core", 3)
    fleet.revise("core", 4, "SELECT 1 FROM nowhere")
    fleet.revise("core", 5)
    done = fleet.atriz("migrate", "--json")
    rows = {row["package"]: row for row in json.loads(done.stdout)}
    core, left, right = rows["core"], rows["left"], rows["right"]
    assert (core["applied"], core["failed"], core["pending"]) == (["core0003"], "core0004", ["core0004", "core0005"])
    assert (core["at"], core["back"]) == (["core0003"], "atriz rollback core --to core0002")
    assert (left["state"], left["applied"], left["pending"]) == ("not run", [], ["left0001", "left0002"])
    assert (right["state"], right["at"], right["pending"], right["back"]) == ("not run", ["right0002"], [], "")


def test_a_rollback_says_what_it_has_undone(fleet: Tree) -> None:
    """Newest first, and where one fails those that were undone before it."""
    fleet.revise("left", 3)
    fleet.at_head()
    path = next(fleet.folders["left"].rglob("0001*.py"))
    path.write_text(path.read_text().replace("DROP TABLE", "DROP TABEL"))
    done = fleet.atriz("rollback", "left", "--to", "base", "--json")
    (row,) = json.loads(done.stdout)
    assert done.returncode == 1
    assert (row["undone"], row["failed"]) == (["left0003", "left0002"], "left0001")


def test_no_way_back_is_named_where_there_is_none(fleet: Tree) -> None:
    """A database that the run made has no before, and what cannot be undone is not offered to be."""
    fleet.revise("left", 3, "SELECT 1 FROM nowhere")
    assert "to go back" not in fleet.atriz("migrate").stderr
    path = fleet.revise("left", 3)
    path.write_text(path.read_text().replace("depends_on = None", 'depends_on = None\nirreversible = "gone is gone"'))
    fleet.revise("left", 4, "SELECT 1 FROM nowhere")
    done = fleet.atriz("migrate")
    assert "now at left0003 1 applied, 1 pending" in " ".join(done.stderr.split())
    assert "to go back" not in done.stderr


def test_what_another_run_applied_meanwhile_is_not_pending(fleet: Tree) -> None:
    """A run that waited for the lock, found more applied than it had seen, and failed behind that, says where it is."""
    fleet.at_head()
    fleet.revise("left", 3)
    fleet.revise("left", 4, "SELECT 1 FROM nowhere")
    with lock.held(fleet.target("left")):
        process = fleet.start("migrate", "left", "--json")
        waits = "SELECT count(*) = 2 FROM pg_stat_activity WHERE application_name LIKE 'atriz lock left%'"
        fleet.wait_until("left", f"{waits} AND datname = current_database()", process)
        # As the other run would, before it ends.
        with fleet.connect("left") as connection:
            connection.execute("CREATE TABLE left_3 (id int); UPDATE alembic_version SET version_num = 'left0003'")
    output, _ = process.communicate(timeout=30)
    row = json.loads(output)[1]
    assert (row["applied"], row["pending"], row["at"]) == ([], ["left0004"], ["left0003"])


@pytest.mark.parametrize("pending", [True, False])
def test_a_database_that_goes_after_the_look_is_made_anew(fleet: Tree, pending: bool) -> None:
    """As by the worker of a `drop` that was killed, which ends what it had begun while the next run looks."""
    fleet.at_head()
    fleet.seed("left", "001_rows.py", "connection.execute('INSERT INTO left_1 VALUES (1)')")
    fleet.revise("core", 3)
    if pending:
        fleet.revise("left", 3)
    with lock.held(fleet.target("core")):
        process = fleet.start("setup", "left")
        waits = "SELECT count(*) = 2 FROM pg_stat_activity WHERE application_name LIKE 'atriz lock core%'"
        fleet.wait_until("core", f"{waits} AND datname = current_database()", process)
        databases.drop(fleet.target("left"), force_connections=True)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "created" in output
    assert fleet.status()["left"]["state"] == "up-to-date"
    assert fleet.rows("left", "SELECT count(*) FROM left_1") == [(1,)]
