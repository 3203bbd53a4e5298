"""Database: what a block of transaction() does to the server, and to those beside it."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import TracebackException
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, OperationalError, ProgrammingError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from atriz_database import AsyncDatabase, Database, DatabaseClosedError, OutcomeUnknownError, TransactionError
from atriz_database.errors import SettingsError
from atriz_database.url import DatabaseURL


class Base(DeclarativeBase):
    """The tables of these tests."""


class Item(Base):
    """One row, with a name or none."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


@pytest.fixture
def db(empty: DatabaseURL) -> Iterator[Database]:
    """Yield a database with a table of items."""
    with Database(empty, name="shop", pool_size=3, pool_timeout=5) as made:
        Base.metadata.create_all(made.engine)
        yield made


def add(connection: Connection, number: int) -> None:
    connection.execute(text("INSERT INTO items VALUES (:id)"), {"id": number})


def ids(db: Database) -> list[int]:
    return [row.id for row in db.query("SELECT id FROM items ORDER BY id")]


def raised(function: Callable[[], object]) -> BaseException | None:
    try:
        function()
    except Exception as error:
        return error
    return None


def in_thread(function: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result(timeout=20)


def test_block_commits_at_its_end(db: Database) -> None:
    """Others see nothing of it before."""
    with db.transaction() as connection:
        add(connection, 1)
        assert in_thread(lambda: ids(db)) == []
    assert in_thread(lambda: ids(db)) == [1]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_error_that_leaves_the_block_rolls_back(db: Database, error: type[BaseException]) -> None:
    """The error itself comes out, and the connection goes back."""
    with pytest.raises(error), db.transaction() as connection:
        add(connection, 1)
        raise error
    assert (ids(db), db.pool.in_use) == ([], 0)


def test_nested_block_is_a_savepoint(db: Database) -> None:
    """Its error undoes its own part; the outer one goes on, and its end is the end of all."""
    with db.transaction() as connection:
        add(connection, 1)
        with pytest.raises(IntegrityError), db.transaction() as inner:
            assert inner is connection
            add(inner, 2)
            add(inner, 1)
        with db.transaction() as inner:
            add(inner, 3)
            with db.transaction(force_rollback=True) as innermost:
                add(innermost, 4)
        assert db.pool.in_use == 1
    assert ids(db) == [1, 3]
    with pytest.raises(ValueError, match="outer"), db.transaction() as connection:
        with db.transaction():
            add(connection, 5)
        raise ValueError("outer")
    assert ids(db) == [1, 3]


def test_everything_in_a_block_takes_part_in_it(db: Database) -> None:
    """query, execute, session, copy_rows and run use its connection, and are undone with it."""
    with db.transaction(force_rollback=True):
        assert db.execute("INSERT INTO items VALUES (1)") == 1
        assert db.copy_rows(Item, [{"id": 2}]) == 1
        with db.session() as session:
            session.add(Item(id=3))
        db.run(lambda connection: add(connection, 4))
        assert ids(db) == [1, 2, 3, 4]
        assert db.pool.in_use == 1
    assert ids(db) == []


def test_force_rollback_is_a_dry_run(db: Database) -> None:
    """All is done and read, and then undone."""
    with db.transaction(force_rollback=True) as connection:
        add(connection, 1)
        assert ids(db) == [1]
    assert ids(db) == []


def test_options_hold_for_the_transaction_and_no_longer(empty: DatabaseURL) -> None:
    """The next on the same connection to the server has the server's own."""
    shown = "SELECT current_setting(name) FROM unnest(CAST(:names AS text[])) AS name"
    names = ["transaction_isolation", "transaction_read_only", "statement_timeout", "lock_timeout", "application_name"]

    def settings() -> list[str]:
        return [row[0] for row in db.query(shown, names=names)]

    with Database(empty, name="shop", pool_size=1) as db:
        before = settings()
        with db.transaction(isolation="SERIALIZABLE", read_only=True, statement_timeout=1.5, lock_timeout=0.25):
            assert settings() == ["serializable", "on", "1500ms", "250ms", "shop"]
        with db.transaction():
            assert settings() == before == ["read committed", "off", "0", "0", "shop"]
        assert (settings(), db.pool.open) == (before, 1)


def test_read_only_refuses_changes(db: Database) -> None:
    with pytest.raises(DBAPIError, match="read-only transaction"), db.transaction(read_only=True) as connection:
        add(connection, 1)


def test_statement_timeout_ends_a_statement(db: Database) -> None:
    with pytest.raises(OperationalError, match="statement timeout"), db.transaction(statement_timeout=0.05):
        db.query("SELECT pg_sleep(10)")


def test_lock_timeout_ends_a_wait(db: Database) -> None:
    with db.transaction():
        db.execute("LOCK TABLE items")

        def wait() -> None:
            with db.transaction(lock_timeout=0.05):
                db.query("SELECT FROM items")

        with pytest.raises(OperationalError, match="lock timeout"):
            in_thread(wait)


def test_option_that_a_savepoint_cannot_have_is_refused(db: Database) -> None:
    """The message says which one, and where it belongs; the outer transaction goes on."""
    with db.transaction() as connection:
        with pytest.raises(TransactionError, match="no read_only and no lock_timeout: only the outermost"):
            db.transaction(read_only=True, lock_timeout=1).__enter__()
        add(connection, 1)
    assert ids(db) == [1]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12])
def test_timeout_that_is_none_is_refused(db: Database, seconds: float) -> None:
    with (
        pytest.raises(ValueError, match="must be more than 0 and at most 2147483 seconds"),
        db.transaction(lock_timeout=seconds),
    ):
        pass
    assert db.pool.in_use == 0


@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "READ UNCOMMITTED", "serializable", ""])
def test_isolation_that_is_none_is_refused(db: Database, isolation: Any) -> None:
    """AUTOCOMMIT above all, which SQLAlchemy knows, and in which no block would roll back."""
    with pytest.raises(ValueError, match="isolation must be READ COMMITTED, REPEATABLE READ, SERIALIZABLE or None"):
        db.transaction(isolation=isolation)
    with pytest.raises(ValueError, match="isolation must be"), db.session(isolation=isolation):
        pass


def test_block_that_is_open_cannot_be_entered_again(db: Database) -> None:
    """It would be a savepoint of itself, and never end; one that has ended can."""
    block = db.transaction()
    with block as connection:
        add(connection, 1)
        with pytest.raises(TransactionError, match="open already"), block:
            pass
    with block as connection:
        add(connection, 2)
    assert (ids(db), db.pool.in_use) == ([1, 2], 0)


def test_generator_may_hold_a_block_open(db: Database) -> None:
    """Whoever ends first, it or the block around it: what was done stays, and the connection comes back."""

    def numbers(first: int) -> Iterator[int]:
        with db.transaction() as connection:
            add(connection, first)
            yield first

    with db.transaction():
        inner = numbers(1)
        next(inner)
    inner.close()
    outer = numbers(2)
    next(outer)
    with db.transaction() as connection:
        add(connection, 3)
        assert list(outer) == []
    dropped = numbers(4)
    next(dropped)
    del dropped
    closed = numbers(5)
    next(closed)
    in_thread(closed.close)
    assert (ids(db), db.pool.in_use) == ([1, 2, 3], 0)


def test_failed_statement_that_was_passed_over_is_told(db: Database) -> None:
    """PostgreSQL answers such a COMMIT with ROLLBACK and no error; here it is an error."""
    with pytest.raises(TransactionError, match="all of it was rolled back"), db.transaction() as connection:
        add(connection, 1)
        with pytest.raises(ProgrammingError):
            connection.execute(text("SELECT nothing"))
    assert (ids(db), db.pool.in_use) == ([], 0)


def test_what_the_server_refuses_at_commit_is_rolled_back(db: Database) -> None:
    """A deferred constraint is SQLAlchemy's error, and no unknown outcome."""
    db.execute("ALTER TABLE items ADD UNIQUE (name) DEFERRABLE INITIALLY DEFERRED")
    with pytest.raises(IntegrityError), db.transaction():
        db.execute("INSERT INTO items VALUES (1, 'a'), (2, 'a')")
    assert ids(db) == []


def test_backend_that_died_before_commit_is_no_unknown_outcome(db: Database) -> None:
    """COMMIT was never sent: the error says what the server said, and the pool makes a new connection."""
    with pytest.raises(OperationalError, match="terminating connection"), db.transaction() as connection:
        add(connection, 1)
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        in_thread(lambda: db.query("SELECT pg_terminate_backend(:pid, 5000)", pid=pid))
    assert (ids(db), db.pool.in_use) == ([], 0)


def test_connection_that_breaks_in_commit_leaves_an_unknown_outcome(db: Database) -> None:
    """A deferred trigger ends the backend inside COMMIT; run() does not try again."""
    db.execute("CREATE TABLE seen (id int)")
    # A function's pg_terminate_backend(own pid) is heeded at once, with the server's word for it: still no answer to
    # COMMIT, and only the server knows how far it came.
    db.execute(
        "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
    )
    db.execute(
        "CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON items DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION die()"
    )
    calls = []

    def insert(connection: Connection) -> None:
        calls.append(1)
        add(connection, 1)

    with pytest.raises(OutcomeUnknownError, match="broke while COMMIT was under way"):
        db.run(insert, isolation="SERIALIZABLE")
    assert (len(calls), ids(db), db.pool.in_use) == (1, [], 0)


def test_thread_started_in_a_block_has_a_transaction_of_its_own(db: Database) -> None:
    """And so has one that was given a copy of the context."""
    import contextvars

    with db.transaction():
        mine = db.query("SELECT pg_backend_pid()")
        context = contextvars.copy_context()
        assert in_thread(lambda: context.run(db.query, "SELECT pg_backend_pid()")) != mine
        assert db.query("SELECT pg_backend_pid()") == mine


def test_tasks_that_use_the_sync_form_do_not_share_a_transaction(db: Database) -> None:
    """Two tasks of one thread, each in its block at the same time."""

    async def main() -> set[int]:
        both = asyncio.Barrier(2)

        async def one() -> int:
            with db.transaction():
                await both.wait()
                return int(db.query("SELECT pg_backend_pid()")[0][0])

        return {*await asyncio.gather(one(), one())}

    assert len(asyncio.run(main())) == 2


def test_user_who_commits_inside_the_block_is_told(db: Database) -> None:
    """SQLAlchemy's own guard: what follows would be in no transaction of the block."""
    with pytest.raises(InvalidRequestError, match="closed transaction inside context manager"):
        with db.transaction() as connection:
            connection.commit()
            add(connection, 1)
    assert ids(db) == []


def test_session_is_flushed_and_committed_as_a_whole(db: Database) -> None:
    """Its objects can be read afterwards."""
    with db.session() as session:
        item = Item(id=1, name="pen")
        session.add(item)
    assert item.name == "pen"
    with db.session(read_only=True) as session:
        assert session.scalars(select(Item.name)).all() == ["pen"]


def test_commit_of_a_session_commits_nothing_before_the_block_ends(db: Database) -> None:
    """An error after it takes that back as well."""
    with pytest.raises(ValueError, match="later"), db.session() as session:
        session.add(Item(id=1))
        session.commit()
        assert in_thread(lambda: ids(db)) == []
        raise ValueError("later")
    assert ids(db) == []


def test_rollback_of_a_session_undoes_what_came_after_its_last_commit(db: Database) -> None:
    with db.session() as session:
        session.add(Item(id=1))
        session.commit()
        session.add(Item(id=2))
        session.flush()
        session.rollback()
        session.add(Item(id=3))
    assert ids(db) == [1, 3]


def test_query_takes_sql_and_statements(db: Database) -> None:
    """Rows have names; a statement of SQLAlchemy's and its parameters are taken as well."""
    db.execute("INSERT INTO items VALUES (:id, :name)", id=1, name="100% :ok")
    assert db.query("SELECT name FROM items WHERE id = :id", id=1)[0].name == "100% :ok"
    assert db.query(select(Item.id).where(Item.name == "100% :ok")) == [(1,)]
    assert db.query("SELECT 1 WHERE false") == []


def test_execute_counts_rows(db: Database) -> None:
    assert db.execute("INSERT INTO items SELECT generate_series(1, 5)") == 5
    assert db.execute("UPDATE items SET name = 'x' WHERE id > :id", id=3) == 2
    assert db.execute("CREATE TABLE more ()") == 0


def test_single_statement_is_a_transaction_by_itself(db: Database) -> None:
    """It fails as a whole, and one that cannot run in a transaction block can be run."""
    with pytest.raises(IntegrityError):
        db.execute("INSERT INTO items VALUES (1), (2), (1)")
    assert ids(db) == []
    db.execute("VACUUM items")
    with db.transaction() as connection:
        add(connection, 1)
        assert in_thread(lambda: ids(db)) == [], "the next block on the same connection is a transaction"


def test_begin_as_a_statement_is_refused(db: Database) -> None:
    """Its connection is thrown away, so that nobody gets it with a transaction open."""
    with pytest.raises(TransactionError, match="use transaction"):
        db.execute("BEGIN")
    assert (ids(db), db.pool.in_use) == ([], 0)


def test_error_of_sql_is_sqlalchemys(db: Database) -> None:
    with pytest.raises(ProgrammingError, match="does not exist"):
        db.query("SELECT * FROM nowhere")


def test_use_after_close_is_refused(empty: DatabaseURL) -> None:
    """In every way to use it; a connection that is in use is closed when it comes back."""
    db = Database(empty, name="shop")
    with db.transaction() as connection:
        db.close()
        connection.execute(text("SELECT 1"))
        assert db.pool.open == 1
    assert db.pool.open == 0
    db.close()
    for use in (lambda: db.query("SELECT 1"), lambda: db.transaction().__enter__(), lambda: db.engine.connect()):
        with pytest.raises(DatabaseClosedError, match="shop has been closed"):
            use()


def test_database_dropped_without_close_warns(empty: DatabaseURL) -> None:
    """With its name and without its password; a closed one does not."""
    made = [Database(DatabaseURL({**empty.parameters, "password": "secret"}), name="shop")]
    with pytest.warns(ResourceWarning, match=r"<Database shop at .*> was dropped without close") as caught:
        made.clear()
    assert "secret" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Database(empty).close()
        gc.collect()


def test_forked_process_makes_connections_of_its_own(db: Database, tmp_path: Path) -> None:
    """The parent's stay the parent's, and its open transaction, too, whatever the child does."""
    idle = db.query("SELECT pg_backend_pid()")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork where threads live
        with db.transaction() as connection:
            mine = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            add(connection, 1)
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                add(connection, 2)
                assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() == mine
    if not pid:
        # The child fell through the end of the block, which was not its own to end.
        try:
            seen = f"{db.query('SELECT pg_backend_pid()')[0][0]} {ids(db)} {db.pool.in_use}"
            (tmp_path / "seen").write_text(seen)
            gc.collect()
        finally:
            os._exit(0)
    backend, rest = (tmp_path / "seen").read_text().split(maxsplit=1)
    assert int(backend) not in (mine, idle[0][0])
    assert rest == "[] 0"
    assert ids(db) == [1, 2]


def test_forked_process_does_not_reach_its_parents_transaction(db: Database, tmp_path: Path) -> None:
    """Neither by leaving the block of a session, nor by a statement on the connection, nor by closing it."""
    pid = -1
    try:
        with warnings.catch_warnings(), db.session() as session:
            warnings.simplefilter("ignore", DeprecationWarning)
            session.add(Item(id=1))
            session.commit()
            connection = session.connection()
            pid = os.fork()
            if not pid:
                errors = [raised(lambda: connection.execute(text("DELETE FROM items"))), raised(connection.close)]
                (tmp_path / "errors").write_text(repr(errors))
                raise SystemExit
            os.waitpid(pid, 0)
            session.add(Item(id=2))
        assert "server closed the connection" in (tmp_path / "errors").read_text()
        assert (tmp_path / "left").exists()
        assert ids(db) == [1, 2]
    except SystemExit:
        (tmp_path / "left").touch()
    finally:
        if not pid:
            os._exit(0)


def test_broken_connections_are_replaced_unnoticed(db: Database) -> None:
    """After every backend was ended the next use makes new ones; with pre_ping=False it is told."""
    end_all = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
    )
    with Database(db.url, pre_ping=False) as careless:
        for each in (db, careless):
            each.query("SELECT 1")
        with psycopg.connect(db.url.text(secrets=True), autocommit=True) as other:
            other.execute(end_all.encode(), [db.url.database])
        assert ids(db) == []
        with pytest.raises(DBAPIError, match="terminating connection"):
            careless.query("SELECT 1")
        assert careless.query("SELECT 1") == [(1,)]


def test_application_name_is_the_packages_unless_the_url_says_another(empty: DatabaseURL) -> None:
    query = "SELECT current_setting('application_name')"
    with Database(empty, name="shop") as db:
        assert db.query(query) == [("shop",)]
    with Database(DatabaseURL({**empty.parameters, "application_name": "till"}), name="shop") as db:
        assert db.query(query) == [("till",)]
    with Database(empty) as db:
        assert db.query(query) == [(empty.database,)]


def test_pooler_in_transaction_mode_gets_no_prepared_statement(empty: DatabaseURL) -> None:
    """However often a statement is run; the option never reaches libpq."""
    query = "SELECT count(*) AS prepared FROM pg_prepared_statements WHERE statement LIKE :mine"
    counts = {}
    for option in ("", "pooler=transaction"):
        separator = "&" if "?" in empty.text() else "?"
        with Database(f"{empty.text(secrets=True)}{separator if option else ''}{option}", pool_size=1) as db:
            for _ in range(8):
                (row,) = db.query(query, mine="%pg_prepared_statements%")
            counts[option] = row.prepared
    assert counts == {"": 1, "pooler=transaction": 0}


def test_password_is_never_shown(empty: DatabaseURL) -> None:
    """Neither by the error of a connection, nor by what its traceback holds, nor by what it belongs to."""
    url = DatabaseURL({**empty.parameters, "password": "secret", "port": "1"})
    with Database(url) as db:
        with pytest.raises(OperationalError) as caught:
            db.query("SELECT 1")
        assert "secret" not in f"{caught.value} {db!r} {db.engine!r} {db.url}"
        assert "secret" not in with_values(caught.value)
        assert db.pool.in_use == 0

    async def ask() -> None:
        async with AsyncDatabase(url) as other:
            await other.query("SELECT 1")

    with pytest.raises(OperationalError) as caught:
        asyncio.run(ask())
    assert "secret" not in with_values(caught.value)


def with_values(error: BaseException) -> str:
    """Return a traceback with what every variable in it holds, as pytest and trackers of errors show it."""
    assert error.__traceback__ is not None
    # Without the test's own frame, which says what is looked for.
    shown = TracebackException(type(error), error, error.__traceback__.tb_next, capture_locals=True)
    return "".join(shown.format())


def test_many_threads_lose_and_leak_nothing(db: Database) -> None:
    """More threads than connections, each with its share of transactions: all of them count."""
    db.execute("INSERT INTO items VALUES (0, '0')")
    # All three are open before, so that one that got lost would be seen, however the threads take turns.
    with db.engine.connect(), db.engine.connect(), db.engine.connect():
        assert db.pool.open == 3

    def work() -> None:
        for _ in range(25):
            with db.transaction():
                db.execute("UPDATE items SET name = CAST(name AS int) + 1")

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.query("SELECT name FROM items") == [("300",)]
    assert (db.pool.in_use, db.pool.waiting, db.pool.open) == (0, 0, 3)


@pytest.mark.parametrize(
    "url",
    [
        None,
        5,
        b"postgresql://here/secret",
        "",
        "mysql://here/name",
        "postgresql://here",
        "postgresql://here/db?pooler=x",
    ],
)
def test_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^The URL "):
        Database(url)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pool_size", 0, "pool_size must be 1 or more, not 0"),
        ("pool_timeout", -1, "pool_timeout must be 0 seconds or more, not -1"),
        ("pool_timeout", float("nan"), "pool_timeout must be 0 seconds or more, not nan"),
        ("recycle", -1, "recycle must be 0 seconds or more, not -1; inf is never"),
    ],
)
def test_pool_that_cannot_be_is_refused(empty: DatabaseURL, name: str, value: Any, message: str) -> None:
    """When it is made, and not when somebody first has to wait."""
    with pytest.raises(ValueError, match=message):
        Database(empty, **{name: value})
