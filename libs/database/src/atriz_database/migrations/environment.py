"""What ``env.py`` calls: everything that must hold on every path, plain ``alembic`` included.

The URL, the label check, the lock, one transaction per revision, and the history row written in that transaction.
"""

from __future__ import annotations

import contextlib
import logging
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from alembic import context
from alembic.operations.ops import CreateTableOp, DropTableOp
from alembic.util import CommandError

from atriz_database import databases, label, lock, requirements, revisions, server, settings, settlement, workspace
from atriz_database.databases import Notify
from atriz_database.errors import AtrizError, MigrationError
from atriz_database.migrations.explain import explained
from atriz_database.migrations.journal import Applied, Journal
from atriz_database.migrations.retry import Blockers, retried
from atriz_database.migrations.session import Limits, Session, opened
from atriz_database.revisions import Revision
from atriz_database.settings import Target

RUN = "atriz.run"
COMMAND = "atriz.command"
logger = logging.getLogger(__name__)
"""Says what plain ``alembic``, which knows nothing of notices, should tell."""

# Partitions belong to their parent, and an extension's tables to the extension: neither is a model's.
_NOT_OURS = """
    SELECT c.relname FROM pg_class c
    WHERE c.relispartition AND c.relkind IN ('r', 'p', 'f')
       OR c.relkind = 'r' AND EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
"""


@dataclass(frozen=True, slots=True)
class Run:
    """What a verb tells ``env.py`` of the run it belongs to."""

    target: Target
    lock_wait: float = lock.DEFAULT_WAIT
    notify: Notify = lambda text: None
    applied: Callable[[Applied], None] = lambda applied: None
    force: tuple[str, ...] = ()
    """Names of databases that may be downgraded though they are production's."""
    expected: tuple[str, ...] | None = None
    """Where the database was when the caller decided what to do; another place is an error."""
    allow_drop: bool = False
    """Whether a new revision may drop a table that no revision made."""
    limits: Limits = field(default_factory=Limits)
    retries: int = 0
    """How often a revision is tried again that did not get its lock, or met a deadlock."""
    turn: Callable[[], None] | None = None
    """Returns when the run may begin. Until then it connects, and changes nothing."""


def run(metadata: str) -> None:
    """Do what the calling Alembic command asks for, on the database of the package that ``env.py`` belongs to.

    ``env.py`` is this one call::

        from atriz_database.migrations import run

        run("mextrack.models:Base.metadata")

    :param metadata: where the models' `MetaData` is, as ``module:attribute``; imported only by the commands that
        compare models with a database.
    """
    given: Run | None = context.config.attributes.get(RUN)
    folder = Path(context.script.dir).resolve()
    try:
        if context.is_offline_mode():
            _offline(folder)
        else:
            if given is None and _changes_the_database():
                # The verbs have read them before they came here.
                _check_files(folder / "versions")
            _online(given or _plain_run(folder), folder, metadata)
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        told = explained(error, folder / "versions")
        if given is not None:
            raise told from None
        # Plain alembic shows one line for its own error class, and a traceback for every other.
        raise CommandError(str(told)) from None


def _plain_run(folder: Path) -> Run:
    """Return the run of a plain ``alembic`` command in a package's folder."""
    space = workspace.load(folder)
    package = space.package(folder.parent.name)
    (target,) = settings.resolve(space, [package])
    if target.url is None:
        embedded = server.of(space.root)
        server.start(embedded)
        target = target.at(embedded.url)

    def say(applied: Applied) -> None:
        context.config.print_stdout("%s %s (%.2f s)", applied.direction, applied.title, applied.seconds)

    return Run(target, notify=logger.warning, applied=say)


def _online(run: Run, folder: Path, metadata: str) -> None:
    changes = _changes_the_database()
    journal = Journal(run.applied)
    with contextlib.ExitStack() as stack:
        if changes:
            locked, connection = stack.enter_context(_connected(run, journal))
            lock.acquire(locked, run.target, wait=run.lock_wait, notify=run.notify)
            journal.locked = locked
            _session(connection).join_lock()
            label.prepare(locked, run.target)
            if _command() == "downgrade":
                label.protect(run.target, label.read(locked), run.force, "rollback")
            if run.expected is not None and (now := label.versions(locked)) != run.expected:
                raise MigrationError(
                    f"{run.target.database} is at {', '.join(now) or 'base'} now, and was at "
                    f"{', '.join(run.expected) or 'base'} a moment ago: another run changed it. Look, and try again."
                )
        else:
            with databases.connect(run.target, purpose="alembic") as looking:
                label.check(run.target, label.read(looking))
            connection = stack.enter_context(opened(run.target, journal, run.limits))
        theirs = frozenset(connection.exec_driver_sql(_NOT_OURS).scalars()) if not changes else frozenset()
        connection.rollback()
        context.configure(
            connection=connection,
            target_metadata=None if changes else pkgutil.resolve_name(metadata),
            transaction_per_migration=True,
            on_version_apply=journal.record,
            include_name=lambda name, kind, _: kind != "table" or name not in theirs,
            compare_server_default=True,
            process_revision_directives=partial(_keep_to_ours, run, folder),
            atriz_journal=journal,
        )
        _refuse_to_undo()
        journal.follow(context.get_context(), partial(_check_requirements, run.target))
        # At the end whatever it is, so that what is told to be applied stays applied.
        try:
            _migrate(run, folder, journal, connection)
        except BaseException:
            with contextlib.suppress(MigrationError):
                journal.flush()
            raise
        journal.flush()
        if journal.locked is not None:
            settlement.renew(journal.locked, run.target, run.notify)


@contextlib.contextmanager
def _connected(run: Run, journal: Journal) -> Iterator[tuple[databases.Connection, sqlalchemy.Connection]]:
    """Wait for the run's turn, and yield a connection for the lock and one for the revisions.

    Both are opened before, so that they are there when the turn comes: with TLS over a network each takes a while.
    """

    def connect(stack: contextlib.ExitStack) -> tuple[databases.Connection, sqlalchemy.Connection]:
        locked = stack.enter_context(lock.connect(run.target))
        return locked, stack.enter_context(opened(run.target, journal, run.limits))

    if run.turn is not None:
        with contextlib.ExitStack() as early:
            connections = None
            # What is wrong now need not be then.
            with contextlib.suppress(AtrizError, psycopg.Error, sqlalchemy.exc.SQLAlchemyError):
                connections = connect(early)
            run.turn()
            if connections and lock.is_open(connections[0]) and lock.is_open(_session(connections[1])):
                yield connections
                return
    with contextlib.ExitStack() as stack:
        yield connect(stack)


def _migrate(run: Run, folder: Path, journal: Journal, connection: sqlalchemy.Connection) -> None:
    session = _session(connection)

    def work() -> None:
        with context.begin_transaction():
            context.run_migrations()
        session.settle()

    limit = run.limits.lock_timeout
    blockers = Blockers(run.target, every=min(1.0, limit / 4) or 1.0)
    try:
        with blockers.watching(session.info.backend_pid):
            retried(work, journal, blockers, retries=run.retries, notify=run.notify, limit=limit)
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        # What came of a revision that was not committed says less than why it was not.
        cause = journal.broken or error
        told = explained(cause, folder / "versions", journal.current.path if journal.current else None)
        told.revision = journal.current.id if journal.current else ""
        raise told from None


def _session(connection: sqlalchemy.Connection) -> Session:
    session = connection.connection.driver_connection
    assert isinstance(session, Session)
    return session


def _check_requirements(target: Target, step: Any) -> None:
    """Raise `MigrationError` if a revision that goes up needs another database further than it is."""
    script = getattr(step, "revision", None)  # A stamp has none.
    if step.is_upgrade and script is not None and hasattr(script.module, "requires"):
        requirements.check(target, Revision(script.revision, (), script.path), _files)


def _files(package: workspace.Package) -> revisions.Revisions:
    try:
        return revisions.read(package.folder / "migrations" / "versions")
    except revisions.Undecided:
        # Imported late: it needs what this file defines.
        from atriz_database.migrations.commands import read_revisions

        return read_revisions(package)


def _refuse_to_undo() -> None:
    """Have a downgrade refused before its first step if one of them undoes what cannot be undone."""
    if _command() != "downgrade":
        return
    migration = context.get_context()
    # The steps are known only once Alembic has read where the database is.
    planned = migration._migrations_fn
    assert planned is not None, "a downgrade has steps"

    def refused_or_planned(*where: Any) -> list[Any]:
        steps = list(planned(*where))
        revisions.check_reversible(Revision(step.revision.revision, (), step.revision.path) for step in steps)
        return steps

    migration._migrations_fn = refused_or_planned


def _keep_to_ours(run: Run, folder: Path, _context: object, _revision: object, directives: list[Any]) -> None:
    """Take out of a new revision what it must not do, and all of it where nothing has changed.

    Alembic drops every table that no model has, and a database may hold tables of somebody else.
    """
    if _command() not in ("revision", "new"):
        return  # `alembic check` tells of everything.
    allowed = run.allow_drop or "allow-drop" in context.get_x_argument(as_dictionary=True)
    modelled = context.get_context().opts["target_metadata"].tables
    ours = "\n".join(path.read_text(encoding="utf-8") for path in sorted((folder / "versions").glob("*.[ps][yq]*")))

    def strange(operation: object) -> bool:
        return (
            isinstance(operation, DropTableOp | CreateTableOp)
            and operation.table_name not in modelled
            and re.search(rf"\b{re.escape(operation.table_name)}\b", ours) is None
        )

    for script in directives:
        if not allowed:
            for operation in filter(strange, script.upgrade_ops.ops):
                run.notify(
                    f"left alone: table {operation.table_name}, which no model has and no revision made; "
                    "--allow-drop would drop it"
                )
            for operations in (script.upgrade_ops, script.downgrade_ops):
                operations.ops[:] = [operation for operation in operations.ops if not strange(operation)]
        if _command() == "new" and script.upgrade_ops.is_empty():
            directives.clear()


def _offline(folder: Path) -> None:
    """Write the SQL of the revisions, history rows included, without a database."""
    _check_files(folder / "versions")
    journal = Journal()
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        transaction_per_migration=True,
        on_version_apply=journal.record,
    )
    _refuse_to_undo()
    with context.begin_transaction():
        # What the history rows go into. The label is left to the first run that knows the environment.
        context.static_output(label.TABLES)
        context.run_migrations()


def _changes_the_database() -> bool:
    """Whether the command goes to a revision: upgrade, downgrade and stamp do, current, check and revision don't."""
    try:
        context.get_revision_argument()
    except KeyError:
        return False
    return True


def _command() -> str:
    """Return the name of the command that runs, where it matters: the library's word or plain Alembic's."""
    plain = getattr(context.config.cmd_opts, "cmd", None)
    return context.config.attributes.get(COMMAND) or (plain[0].__name__ if plain else "")


def _check_files(folder: Path) -> None:
    """Refuse files that plainly do not form a history; what only Alembic can read is left to it."""
    with contextlib.suppress(revisions.Undecided):
        revisions.read(folder)
