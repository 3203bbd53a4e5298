"""What is written down of each revision, in the transaction that applies it: its version row and its history row."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import psycopg
import sqlalchemy
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.runtime.migration import MigrationContext, RevisionStep
from psycopg import errors, pq
from psycopg.pq.abc import Escaping, PGresult
from sqlalchemy.schema import DDL, ExecutableDDLElement

from atriz_database import databases, interrupt, label, lock
from atriz_database.errors import AtrizError, LockTimeoutError, MigrationError
from atriz_database.migrations.batch import Statement, place_in
from atriz_database.migrations.explain import sql_message
from atriz_database.revisions import Revision, digest

_history = sqlalchemy.table(
    "history",
    *(
        sqlalchemy.column(name, sqlalchemy.Text())
        for name in ("revision", "direction", "checksum", "source", "applied_by")
    ),
    sqlalchemy.column("seconds", sqlalchemy.Float()),
    schema=label.SCHEMA,
)
# For hundreds of revisions the server parses and plans them once: a sixth of all that it does. EXECUTE, because it goes
# in one string with the rest. A NULL, which the column refuses, where the version table does not hold what Alembic has
# just left there. All transactions of a string begin when it came in, by the server's clock: who follows another there
# counts from when that was recorded.
_PREPARE_VERSION = """
    PREPARE atriz_version_{} (text, text) AS UPDATE alembic_version SET version_num = $1 WHERE version_num = $2"""
_PREPARE_HISTORY = """
    PREPARE atriz_history_{0} (boolean, text[], text, text, text, text, double precision, text) AS
    INSERT INTO atriz.history (revision, direction, checksum, source, seconds, applied_by)
    SELECT CASE WHEN v.found @> $2 AND v.found <@ $2 THEN $3 END, $4, $5, $6,
           $7 + date_part('epoch', clock_timestamp() - CASE WHEN $1
               THEN greatest(transaction_timestamp(), (SELECT applied_at FROM atriz.history ORDER BY id DESC LIMIT 1))
               ELSE transaction_timestamp() END),
           $8
    FROM (SELECT coalesce(array_agg(version_num::text), '{{}}') AS found FROM alembic_version) v
    RETURNING seconds"""
IN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)
# Written to the log of changes only, where it makes all that was committed before it durable.
_FLUSH = "SELECT pg_logical_emit_message(true, 'atriz', '')"


@dataclass(frozen=True, slots=True)
class Applied:
    """One revision that a run applied, undid or stamped, once its transaction was committed."""

    revision: str
    title: str
    direction: str
    seconds: float


class _VersionColumn:
    """Stands before the version table's column, and is compared with nothing: that alone takes 25 us a revision."""

    def __init__(self, column: sqlalchemy.Column[Any]) -> None:
        self._column = column

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __clause_element__(self) -> sqlalchemy.Column[Any]:
        return self._column


class _VersionTable:
    """Stands before Alembic's version table, and makes of every change to its rows nothing: the journal writes them.

    Alembic has SQLAlchemy compile its UPDATE anew for each revision, which is a quarter of what a run over hundreds of
    them takes. Its word stays what counts: the journal writes the heads that Alembic tells it.
    """

    def __init__(self, table: sqlalchemy.Table) -> None:
        self._table = table
        self.c = SimpleNamespace(version_num=_VersionColumn(table.c.version_num))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def insert(self, *_: object, **__: object) -> _VersionTable:
        """Return what is not written; `update`, `delete`, and what is said of them, are the same."""
        return self

    update = delete = values = where = insert


class Implementation(PostgresqlImpl):
    """Alembic's way with PostgreSQL, where a journal keeps the run: few round trips, and each straight to the driver.

    SQLAlchemy's way to execute a statement, with its events, parameters and results, takes longer than the server.
    """

    __dialect__ = "postgresql"

    def _exec(self, construct: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(construct, _VersionTable):
            return None
        if isinstance(construct, ExecutableDDLElement) and not isinstance(construct, DDL) and not self.as_sql:
            assert self.connection is not None
            driver: Any = self.connection.connection.driver_connection
            journal: Journal | None = self.context_opts.get("atriz_journal")
            if journal is not None and journal.current is not None and not driver.autocommit:
                # SQLAlchemy doubles the percent signs for a driver that looks for parameters.
                statement = str(construct.compile(dialect=self.dialect)).replace("%%", "%")
                return driver.hold(Statement(statement, place_in(journal.current.file)))
        return super()._exec(construct, *args, **kwargs)


class Journal:
    """Writes the rows of each revision, and tells of it once it is committed."""

    def __init__(self, applied: Callable[[Applied], None] = lambda applied: None) -> None:
        self._applied = applied
        self.locked: databases.Connection | None = None
        """What holds the database's lock, for a run that changes something."""
        self._since = self._began = time.perf_counter()
        self._heads: set[str] = set()
        self._uncommitted: list[Applied] = []
        self._rows: list[str] = []
        self._who = label.who()
        self._prepared = count(1)
        self._statement = 0
        self.current: Revision | None = None
        """The revision under way."""
        self.is_whole = True
        """Whether all that the revision under way has done goes if it is rolled back."""
        self.session_changed = False
        """Whether a revision may have changed a setting of the session, a role or the search path for example."""
        self.reset = ""
        """The statements that take the session back to what each revision begins with."""
        self.overlaps = False
        """Whether a revision may be prepared while the server still commits the one before."""
        self.broken: AtrizError | None = None
        """Why a revision could not be committed, whoever has heard of it."""
        self._committing: deque[tuple[Revision | None, bool, list[Applied]]] = deque()
        self._leaves_transaction = False
        self._undid_itself = False

    @property
    def is_in_revision(self) -> bool:
        """Whether a revision is under way that nothing is recorded of yet, so that its transaction must not end."""
        return self.current is not None and not self._uncommitted and not self._leaves_transaction

    def follow(self, migration: MigrationContext, check: Callable[[RevisionStep], None]) -> None:
        """Have the steps of a run pass by the journal.

        :param check: called with each step before it is taken; it raises an error to stop there.
        """
        planned = migration._migrations_fn
        if planned is None:
            return

        def followed(heads: Any, given: MigrationContext) -> Iterator[Any]:
            self._heads, self.broken = set(heads), None
            if not given.as_sql:
                given._version = _VersionTable(given._version)  # type: ignore[assignment]
            steps = planned(heads, given)
            # Where the next step is made only now, whoever makes it may look at what the one before has done.
            self.overlaps = isinstance(steps, list)
            for step in steps:
                check(step)
                script = getattr(step, "revision", None)
                self.current = Revision(script.revision, (), script.path) if script is not None else None
                self.is_whole, self._undid_itself = True, False
                self._since = time.perf_counter()
                yield step
                self.current = None

        migration._migrations_fn = followed
        self._find_versions(migration)
        begin_block = migration.autocommit_block

        @contextlib.contextmanager
        def autocommit_block() -> Iterator[None]:
            with contextlib.ExitStack() as block:
                # The one commit in the middle of a revision that is meant.
                self._leaves_transaction = True
                try:
                    block.enter_context(begin_block())
                finally:
                    self._leaves_transaction = False
                yield

        migration.autocommit_block = autocommit_block  # type: ignore[method-assign]

    def _find_versions(self, migration: MigrationContext) -> None:
        """Have Alembic ask for its table and its rows in two short statements.

        By SQLAlchemy's way to look for a table it does so with a query over the catalog, twice where there is none yet,
        which takes as long as ten revisions.
        """
        connection, table, ensure = migration.connection, migration._version, migration._ensure_version_table
        assert connection is not None

        def driver() -> Any:
            return connection.connection.driver_connection

        def ensure_version_table(purge: bool = False) -> None:
            if purge:
                ensure(purge)
            elif not label.is_versioned(driver()):
                table.create(connection, checkfirst=False)

        migration.get_current_heads = lambda: label.versions(driver())  # type: ignore[method-assign]
        migration._ensure_version_table = ensure_version_table  # type: ignore[method-assign]

    def record(self, ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
        """Note the rows, which go with the commit, or write them offline. Alembic calls this after each revision.

        Raise `MigrationError` if the revision has rolled back what it did.
        """
        if self.broken is not None:
            raise self.broken
        if self._undid_itself:
            raise MigrationError(
                f"{self._place}the revision rolled back its own transaction, by rollback() or close(), and with it "
                "what it had done. Take the call out; for a part that may fail there is op.get_bind().begin_nested()."
            )
        if ctx.as_sql or ctx.connection.connection.driver_connection.pgconn.transaction_status not in IN_TRANSACTION:
            self.begins()
        # Until its transaction begins; how long that takes the server knows.
        seconds = self._began - self._since
        direction = "stamp" if step.is_stamp else "upgrade" if step.is_upgrade else "downgrade"
        rows = []
        for id_ in step.up_revision_ids:
            revision = self.current
            if revision is None or revision.id != id_:
                script = step.revision_map.get_revision(id_)
                revision = Revision(script.revision, (), script.path)
            source = revision.source()
            rows.append(
                {
                    "revision": revision.id,
                    "direction": direction,
                    "checksum": digest(source),
                    "source": source,
                    "seconds": seconds,
                    "applied_by": self._who,
                }
            )
            self._uncommitted.append(Applied(revision.id, revision.title, direction, seconds))
        if ctx.as_sql:
            for row in rows:
                ctx.impl._exec(_history.insert().values(row))
        else:
            connection = ctx.connection.connection.driver_connection
            self._rows = self._statements(pq.Escaping(connection.pgconn), set(heads), rows, follows=connection.follows)
            self._heads = set(heads)

    def _statements(
        self, escaping: Escaping, heads: set[str], rows: list[dict[str, Any]], *, follows: bool
    ) -> list[str]:
        """Return what writes the version table's rows and the history's: for a string, and so all of it literals."""
        quote = partial(_quoted, escaping)
        gone, new = sorted(self._heads - heads), sorted(heads - self._heads)
        statements = []
        if self.session_changed:
            # The same revisions do the same in one run as in several.
            statements.append(self.reset)
            self.session_changed, self._statement = False, 0
        if not self._statement:
            # Under a new name each time: whether the server still has the one before is not known.
            self._statement = next(self._prepared)
            statements += [_PREPARE_VERSION.format(self._statement), _PREPARE_HISTORY.format(self._statement)]
        while gone and new:
            statements.append(f"EXECUTE atriz_version_{self._statement} ({quote(new.pop())}, {quote(gone.pop())})")
        for template, ids in (
            ("DELETE FROM alembic_version WHERE version_num = {}", gone),
            ("INSERT INTO alembic_version (version_num) VALUES ({})", new),
        ):
            statements += [template.format(quote(id_)) for id_ in ids]
        wanted = f"ARRAY[{', '.join(map(quote, sorted(heads)))}]::text[]"
        for row in rows:
            values = ", ".join(map(quote, row.values()))
            statements.append(f"EXECUTE atriz_history_{self._statement} ({follows}, {wanted}, {values})")
        return statements

    def begins(self) -> None:
        """Note that a transaction begins, or a statement outside of one."""
        self._began = time.perf_counter()

    def take_rows(self) -> list[str]:
        """Return the statements that write the rows of the revision that is done; they go with its commit."""
        rows, self._rows = self._rows, []
        return rows

    def set_apart(self) -> None:
        """Keep a revision that only the server has to do with now apart from the one that comes next."""
        self._committing.append((self.current, self.is_whole, self._uncommitted))
        self._uncommitted = []

    def settled(self, answers: list[PGresult], waited: float = 0.0) -> None:
        """Tell of revisions that were being committed, and now are.

        :param answers: what the server has said of them; of each history row, how long its revision took.
        :param waited: seconds that the revision under way has waited for them, which are not its own.
        """
        self._since += waited
        seconds = [float(value) for each in answers if each.ntuples and (value := each.get_value(0, 0))]
        revisions = sum(each.command_status == b"COMMIT" for each in answers)
        done = [applied for _ in range(revisions) for applied in self._committing.popleft()[2]]
        for applied, took in zip(done, seconds, strict=True):
            self._applied(replace(applied, seconds=took))

    def failed(self, error: psycopg.Error, statement: Statement | None) -> MigrationError:
        """Return what it means that a revision could not be committed with its rows.

        :param statement: which of the revision's own it was that failed, if it was one.
        """
        self._go_back()
        self.broken = told = self._explained(error, statement)
        told.__cause__ = error
        return told

    def _go_back(self) -> None:
        """Go back to the revision that could not be committed; the next ones may have begun."""
        if self._committing:
            self.current, self.is_whole, _ = self._committing[0]
        self._forget()

    def _explained(self, error: psycopg.Error, statement: Statement | None) -> MigrationError:
        if statement is not None:
            return MigrationError(sql_message(statement.place, statement.sql, error, error.diag))
        if isinstance(error, errors.NotNullViolation) and error.diag.table_name == "history":
            return MigrationError(
                f"{self._place}alembic_version was to hold {', '.join(sorted(self._heads)) or 'nothing'} now, and "
                "holds something else: another program, or the revision itself, has changed alembic_version. The "
                "revision is rolled back; look with `atriz status`, and run again."
            )
        if isinstance(error, errors.InFailedSqlTransaction):
            return MigrationError(
                f"{self._place}a statement of this revision failed, and the revision passed over the error, after "
                "which PostgreSQL only rolls back. Put what may fail into `with op.get_bind().begin_nested():`."
            )
        place = self.current.file if self.current is not None else "the commit"
        return MigrationError(sql_message(place, "", error, error.diag))

    @property
    def _place(self) -> str:
        return f"{self.current.file}: " if self.current is not None else ""

    def check_lock(self) -> None:
        """Raise `LockTimeoutError` if the database's lock is gone, so that nothing is committed without it."""
        if self.locked is None:
            return
        try:
            lock.check(self.locked)
        except LockTimeoutError as error:
            self._go_back()
            self.broken = error
            raise

    def committed(self) -> None:
        """Tell of what the commit that just succeeded made true."""
        if self.current is not None and not self._uncommitted:
            self.is_whole = False
        done, self._uncommitted = self._uncommitted, []
        for applied in done:
            self._applied(applied)

    def rolled_back(self) -> None:
        """Forget what did not come true."""
        self._undid_itself = self.is_in_revision
        self._forget()

    def _forget(self) -> None:
        self._committing.clear()
        self._uncommitted, self._rows, self._statement = [], [], 0

    def flush(self) -> None:
        """Have the server make durable what was committed: from here on a loss of power takes none of it.

        Raise `MigrationError` if it does not answer: then some of it may be lost already.
        """
        if self.locked is None:
            return
        try:
            with interrupt.blocked():
                self.locked.execute(_FLUSH)
        except psycopg.Error as error:
            raise MigrationError(
                f"The server did not confirm that what was applied is on its disk: {databases.said(error)}. Run the "
                "same command again, which looks at what is there."
            ) from None


def _quoted(escaping: Escaping, value: str | float) -> str:
    if isinstance(value, float):
        return repr(value)
    return bytes(escaping.escape_literal(value.encode())).decode()
