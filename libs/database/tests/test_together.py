"""Revisions that go to the server in one string, which they do where each before them was quick."""

from __future__ import annotations

import signal

import pytest
from blocker import WAITING, holding
from tree import Tree, add_column

from atriz_database import lock

_QUICK = range(3, 51)
"""Numbers of revisions that the server takes longer for than the client: some of them go in one string."""
_MIDDLE = 20
_REVISIONS = "SELECT revision FROM atriz.history ORDER BY id"


def create_index(number: int) -> str:
    """Return the body of a revision that makes an index by Alembic's operation."""
    return f"op.create_index('i{number}', 'left_1', ['id'])"


def waits(number: int) -> str:
    """Return the body of a revision that needs a table for itself."""
    return f"{add_column('left_2', 'a')}\n    {create_index(number)}"


@pytest.fixture
def many(fleet: Tree) -> Tree:
    """Return a fleet whose package left has 48 revisions pending, all of them quick."""
    fleet.at_head()
    fleet.rows("left", "INSERT INTO left_1 SELECT generate_series(1, 5000) RETURNING 1")
    for number in _QUICK:
        fleet.revise("left", number, body=create_index(number))
    return fleet


def applied(tree: Tree) -> list[int]:
    """Return the numbers of the revisions of left that its history holds, which its catalog has to agree with."""
    numbers = [int(revision[-4:]) for (revision,) in tree.rows("left", _REVISIONS)]
    indexes = "SELECT substr(relname, 2)::int FROM pg_class WHERE relname ~ '^i[0-9]+$' ORDER BY oid"
    assert [number for (number,) in tree.rows("left", indexes)] == [each for each in numbers if each in _QUICK]
    assert tree.rows("left", "SELECT version_num FROM alembic_version") == [(f"left{numbers[-1]:04}",)]
    return numbers


def told(output: str) -> list[int]:
    """Return the numbers of the revisions of left that a run has told it applied."""
    words = [line.split() for line in output.splitlines()]
    return [int(each[3][:4]) for each in words if each[:1] == ["left"] and each[2:3] == ["applied"]]


@pytest.mark.parametrize(
    "body",
    [
        create_index(19),
        add_column("nowhere", "b"),
        "op.create_check_constraint('c', 'left_1', '1 = = 1')",
        "op.create_table_comment('left_1', '\\udcff')",
        "op.execute('SELECT nothing')",
        "1 / 0",
        f"{add_column('left_1', 'd')}\n    op.get_bind().commit()",
    ],
    ids=["no place in it", "a place in it", "syntax", "no text", "a question", "Python", "commit"],
)
def test_what_stands_before_a_failure_is_applied_and_what_stands_behind_it_is_not(many: Tree, body: str) -> None:
    """As if each had gone alone: the one that failed is named with its line, the run says what is pending."""
    path = many.revise("left", _MIDDLE, body=body)
    done = many.atriz("migrate", "left")
    assert done.returncode == 1
    assert f"{path}, line " in done.stderr
    assert applied(many) == list(range(1, _MIDDLE))
    assert told(done.stdout) == list(range(3, _MIDDLE))
    assert f"{_MIDDLE - 3} applied, {len(_QUICK) - _MIDDLE + 3} pending" in " ".join(done.stderr.split())
    many.revise("left", _MIDDLE, body=create_index(_MIDDLE))
    assert many.atriz("migrate", "left").returncode == 0
    assert applied(many) == list(range(1, _QUICK.stop))


@pytest.mark.parametrize("number", [_QUICK[0], _MIDDLE], ids=["the first", "in a string"])
def test_one_that_does_not_get_its_lock_is_tried_again_and_nothing_twice(many: Tree, number: int) -> None:
    """From where it failed: what stood before it in the string is committed, what stood behind it comes after it."""
    many.revise("left", number, body=waits(number))
    with holding(many, "LOCK TABLE left_2 IN ACCESS SHARE MODE") as holder:
        process = many.start("migrate", "left", "--lock-timeout", "0.2")
        assert process.stdout is not None
        before = []
        while "did not get a lock" not in (line := process.stdout.readline()):
            before.append(line)
            assert line, process.communicate()
        holder.rollback()
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"{number:04}_left{number:04} did not get a lock within 0.2 s" in line
    assert applied(many) == list(range(1, _QUICK.stop))
    assert told("".join(before) + output) == list(_QUICK)


def test_ctrl_c_leaves_what_is_committed_and_begins_nothing_more(many: Tree) -> None:
    """Of a string the server is in the middle of, and of what is ready behind it; what is committed is told."""
    many.revise("left", _MIDDLE, body=waits(_MIDDLE))
    with holding(many, "LOCK TABLE left_2 IN ACCESS SHARE MODE"):
        process = many.start("migrate", "left", "--lock-timeout", "0")
        many.wait_until("left", WAITING, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    assert "interrupted" in output + errors
    assert applied(many) == list(range(1, _MIDDLE))
    assert told(output) == list(range(3, _MIDDLE))


@pytest.mark.parametrize("lost", [0, 2], ids=["by the first request", "by a third"])
def test_a_signal_that_comes_while_a_revision_is_sent_ends_what_the_server_is_at(many: Tree, lost: int) -> None:
    """SQLAlchemy closes the connection then, and the server would go on with a string that nobody hears of.

    The server forgets a request to cancel that overtakes the string.
    """
    body = f"""{waits(_MIDDLE)}
    import os, signal
    session = op.get_bind().connection.driver_connection
    send, cancel, asked = session._send, session.cancel_safe, []
    session.cancel_safe = lambda **given: asked.append(1) if len(asked) < {lost} else cancel(**given)

    def send_and_be_told(*statements):
        batch = send(*statements)
        if any("left_2" in each.sql for each in statements):
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    session._send = send_and_be_told"""
    many.revise("left", _MIDDLE, body=body)
    with holding(many, "LOCK TABLE left_2 IN ACCESS SHARE MODE"):
        process = many.start("migrate", "left", "--lock-timeout", "0")
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    assert "interrupted" in output + errors
    numbers = applied(many)
    assert numbers[-1] < _MIDDLE
    assert told(output) == numbers[2:]


def test_a_revision_s_time_leaves_out_those_before_it(many: Tree) -> None:
    """Though the server has begun all transactions of a string at once, by its clock."""
    many.revise("left", _MIDDLE, body=waits(_MIDDLE))
    with holding(many, "LOCK TABLE left_2 IN ACCESS SHARE MODE") as holder:
        process = many.start("migrate", "left", "--lock-timeout", "0")
        many.wait_until("left", WAITING, process)
        holder.execute("SELECT pg_sleep(0.5)")
        holder.rollback()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    slow = many.rows("left", "SELECT revision FROM atriz.history WHERE seconds >= 0.5 AND id > 2")
    assert slow == [(f"left{_MIDDLE:04}",)]
    assert many.rows("left", "SELECT min(seconds) >= 0 FROM atriz.history WHERE id > 2") == [(True,)]


def test_a_question_is_answered_when_all_before_it_is_committed(many: Tree) -> None:
    """So that code which does something elsewhere can know that what it stands on is there; as the guide says."""
    seen = many.root / "seen"
    body = f"""op.get_bind().exec_driver_sql("SELECT 1")
    import psycopg
    with psycopg.connect(op.get_bind().connection.driver_connection.info.dsn) as other:
        rows = other.execute("SELECT count(*) FROM atriz.history").fetchone()
    __import__("pathlib").Path({str(seen)!r}).write_text(str(rows[0]))
    {create_index(_MIDDLE)}"""
    many.revise("left", _MIDDLE, body=body)
    done = many.atriz("migrate", "left")
    assert done.returncode == 0, done.stderr
    assert seen.read_text() == str(_MIDDLE - 1)
    assert applied(many) == list(range(1, _QUICK.stop))


def test_nothing_more_is_sent_once_the_lock_is_gone(many: Tree) -> None:
    """The revisions that were ready stay pending, and the first of them is named."""
    many.revise("left", _MIDDLE, body=waits(_MIDDLE))
    locks = "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'atriz lock%'"
    with holding(many, "LOCK TABLE left_2 IN ACCESS SHARE MODE") as holder:
        process = many.start("migrate", "left", "--lock-timeout", "0")
        many.wait_until("left", WAITING, process)
        assert holder.execute(f"SELECT pg_terminate_backend(pid, 5000) {locks}".encode()).fetchall() == [(True,)]
        holder.rollback()
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 1, output
    assert "held the database's lock was ended" in errors
    done = applied(many)
    # The string that was under way was whole.
    assert _MIDDLE <= done[-1] < _QUICK[-1]
    assert f"left{done[-1] + 1:04} of left" in errors
    assert told(output) == done[2:]
    with lock.held(many.target("left"), wait=5):
        pass
    assert many.atriz("migrate", "left").returncode == 0
    assert applied(many) == list(range(1, _QUICK.stop))


@pytest.mark.parametrize("number", [_QUICK[0], _MIDDLE], ids=["the first", "behind a string"])
@pytest.mark.parametrize("then", [create_index(0), "op.get_bind().exec_driver_sql('SELECT 1')"], ids=["held", "asked"])
def test_a_connection_that_breaks_is_one_message_and_the_next_run_finishes(many: Tree, number: int, then: str) -> None:
    """As when the server is killed: found by whoever comes to it first, while strings are under way or with none."""
    body = f"""import os, socket
    dead, other = socket.socketpair()
    other.close()
    os.dup2(dead.fileno(), op.get_bind().connection.driver_connection.pgconn.socket)
    {then}"""
    path = many.revise("left", number, body=body)
    done = many.atriz("migrate", "left")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "server closed the connection unexpectedly" in done.stderr
    assert f"{path.parent}/00" in done.stderr
    many.revise("left", number, body=create_index(number))
    assert many.atriz("migrate", "left").returncode == 0
    assert applied(many) == list(range(1, _QUICK.stop))
