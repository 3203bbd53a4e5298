"""Alembic: what ``env.py`` calls, and an upgrade as the library's own verbs do it. The only module with Alembic.

Everything that must hold on every path stands in :func:`run`, so that it holds for plain ``alembic`` as well: the
URL, the label check, the lock, one transaction per revision, and the history row written in that transaction.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import logging
import pkgutil
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from alembic import command, context
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from psycopg.errors import Diagnostic

from atriz_database import databases, label, lock, revisions, server, settings, workspace
from atriz_database.databases import Notify
from atriz_database.errors import AtrizError, MigrationError, RevisionError
from atriz_database.revisions import Revision, Revisions
from atriz_database.settings import Target

_ATTRIBUTE = "atriz.run"
_UP, _DOWN = "-- migrate:up", "-- migrate:down"

_history = sqlalchemy.table(
    "history",
    *(
        sqlalchemy.column(name, sqlalchemy.Text())
        for name in ("revision", "direction", "checksum", "source", "applied_by")
    ),
    sqlalchemy.column("seconds", sqlalchemy.Float()),
    schema=label.SCHEMA,
)

# Partitions belong to their parent, and an extension's tables to the extension: neither is a model's.
_NOT_OURS = """
    SELECT c.relname FROM pg_class c
    WHERE c.relispartition AND c.relkind IN ('r', 'p', 'f')
       OR c.relkind = 'r' AND EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
"""


@dataclass(frozen=True, slots=True)
class Applied:
    """One revision that a run applied, undid or stamped, once its transaction was committed."""

    revision: str
    title: str
    direction: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """What a verb tells ``env.py`` of the run it belongs to."""

    target: Target
    lock_wait: float = lock.DEFAULT_WAIT
    notify: Notify = lambda text: None
    applied: Callable[[Applied], None] = lambda applied: None


def run(metadata: str) -> None:
    """Do what the calling Alembic command asks for, on the database of the package that ``env.py`` belongs to.

    ``env.py`` is this one call::

        from atriz_database.migrations import run

        run("mextrack.models:Base.metadata")

    :param metadata: where the models' `MetaData` is, as ``module:attribute``; imported only by the commands that
        compare models with a database.
    """
    given: Run | None = context.config.attributes.get(_ATTRIBUTE)
    folder = Path(context.script.dir).resolve()
    try:
        if context.is_offline_mode():
            _offline(folder)
        else:
            _online(given or _plain_run(folder), folder, metadata)
    except CommandError:
        raise
    except Exception as error:
        told = error if isinstance(error, AtrizError) else _explained(error, folder / "versions")
        if given is not None:
            raise told from None
        # Plain alembic shows one line for its own error class, and a traceback for every other.
        raise CommandError(str(told)) from None


def upgrade(run: Run) -> None:
    """Bring the database of one package to head. Does nothing on one that is there.

    The database exists. One call per process at a time: Alembic's contexts are process-wide.

    Raise `MigrationError` if a revision fails: those before it stay applied, that one is rolled back as a whole.
    Raise `RevisionError`, `LabelError` and `LockTimeoutError` as their names say.
    """
    config = _config(run.target.package)
    config.attributes[_ATTRIBUTE] = run
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise MigrationError(f"{run.target.database}: {error}") from None


def read_revisions(package: workspace.Package) -> Revisions:
    """Return the package's history as Alembic reads it, for files that :func:`revisions.read` cannot decide.

    Raise `RevisionError` if Alembic cannot load them.
    """
    folder = versions_folder(package)
    try:
        script = ScriptDirectory.from_config(_config(package))
        found = [
            Revision(each.revision, tuple(each._all_down_revisions), Path(each.path))
            for each in script.walk_revisions()
        ]
    except (CommandError, KeyError) as error:
        raise RevisionError(f"The revisions in {folder} cannot be loaded: {error}") from None
    except Exception as error:
        raise _explained(error, folder) from None
    return revisions.arrange(folder, found)


def versions_folder(package: workspace.Package) -> Path:
    """Return the folder of a package's revision files."""
    return package.folder / "migrations" / "versions"


def sql_file(revision: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the upgrade and the downgrade of a revision whose body is the ``.sql`` file beside it.

    The file has two parts, begun by the lines ``-- migrate:up`` and ``-- migrate:down``. Each is sent as it stands,
    comments included, in the revision's transaction; nothing in it is a parameter::

        upgrade, downgrade = sql_file(__file__)

    :param revision: the revision's own ``__file__``.

    Raise `RevisionError` if the file is missing or lacks a part.
    """
    path = Path(revision).with_suffix(".sql")
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise RevisionError(f"{path}, the body of the revision beside it, cannot be read: {error}") from None
    marks = {line.strip().lower(): number for number, line in enumerate(lines)}
    if _UP not in marks or _DOWN not in marks or marks[_UP] > marks[_DOWN]:
        raise RevisionError(f"{path} needs a line `{_UP}`, and after it a line `{_DOWN}`, each followed by SQL.")
    up, down = marks[_UP] + 1, marks[_DOWN] + 1
    return (
        lambda: _run_script(path, "".join(lines[up : down - 1]), up + 1),
        lambda: _run_script(path, "".join(lines[down:]), down + 1),
    )


def _config(package: workspace.Package) -> Config:
    return Config(toml_file=str(package.folder / "pyproject.toml"), stdout=io.StringIO())


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

    return Run(target, notify=logging.getLogger(__name__).warning, applied=say)


def _online(run: Run, folder: Path, metadata: str) -> None:
    changes = _changes_the_database()
    with contextlib.ExitStack() as stack:
        if changes:
            files = _checked(folder / "versions")
            locked = stack.enter_context(lock.held(run.target, wait=run.lock_wait, notify=run.notify))
            label.prepare(locked, run.target)
        else:
            files = None
            with databases.connect(run.target, purpose="alembic") as looking:
                label.check(run.target, label.read(looking))
        journal = _Journal(run, files)
        connection = stack.enter_context(_engine(run.target, journal).connect())
        theirs = frozenset(connection.exec_driver_sql(_NOT_OURS).scalars()) if not changes else frozenset()
        connection.rollback()
        context.configure(
            connection=connection,
            target_metadata=None if changes else pkgutil.resolve_name(metadata),
            transaction_per_migration=True,
            on_version_apply=journal.record,
            include_name=lambda name, kind, _: kind != "table" or name not in theirs,
            compare_server_default=True,
        )
        with context.begin_transaction():
            context.run_migrations()


def _offline(folder: Path) -> None:
    """Write the SQL of the revisions, history rows included, without a database."""
    journal = _Journal(None, _checked(folder / "versions"))
    context.configure(
        dialect_name="postgresql",
        literal_binds=True,
        transaction_per_migration=True,
        on_version_apply=journal.record,
    )
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


def _checked(folder: Path) -> Revisions | None:
    """Return the files' history, `None` where only Alembic can read it; refuse what is plainly broken."""
    try:
        return revisions.read(folder)
    except revisions.Undecided:
        return None


class _Journal:
    """Writes the history row of each revision, and tells of it once it is committed."""

    def __init__(self, run: Run | None, files: Revisions | None) -> None:
        self._run = run
        self._files = files
        self._since = time.perf_counter()
        self._uncommitted: list[Applied] = []
        self._who = f"{_user()}@{socket.gethostname()}"

    def record(self, ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
        """Write the row, in the revision's own transaction. Alembic calls this after each revision."""
        seconds = time.perf_counter() - self._since
        direction = "stamp" if step.is_stamp else "upgrade" if step.is_upgrade else "downgrade"
        for script in step.up_revisions:
            revision = Revision(script.revision, (), Path(script.path))
            values = {
                "revision": revision.id,
                "direction": direction,
                "checksum": revision.checksum(),
                "source": revision.source(),
                "seconds": seconds,
                "applied_by": self._who,
            }
            ctx.impl._exec(_history.insert().values(values))
            self._uncommitted.append(Applied(revision.id, revision.title, direction, seconds))

    def committed(self) -> None:
        """Tell of what the commit that just succeeded made true."""
        self._since = time.perf_counter()
        done, self._uncommitted = self._uncommitted, []
        for applied in done:
            if self._run is not None:
                self._run.applied(applied)

    def rolled_back(self) -> None:
        """Forget what did not come true."""
        self._uncommitted = []


def _engine(target: Target, journal: _Journal) -> sqlalchemy.Engine:
    class Connection(psycopg.Connection[Any]):
        # SQLAlchemy's commit event comes before the commit; only here is it known to have happened.
        def commit(self) -> None:
            super().commit()
            journal.committed()

        def rollback(self) -> None:
            journal.rolled_back()
            super().rollback()

    return sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: Connection.connect(**databases.parameters(target, "migrate")),
        poolclass=sqlalchemy.NullPool,
        use_native_hstore=False,
    )


def _run_script(path: Path, text: str, first_line: int) -> None:
    from alembic import op

    migration = op.get_context()
    if migration.as_sql:
        migration.impl.static_output(text.strip())
        return
    connection = op.get_bind().connection.driver_connection
    assert isinstance(connection, psycopg.Connection)
    try:
        # Without parameters psycopg sends the text as it is: many statements, and % and : are themselves.
        connection.execute(text.encode())
    except psycopg.Error as error:
        diagnostic = error.diag
        position = int(diagnostic.statement_position or 0)
        line = first_line + text.count("\n", 0, max(position - 1, 0))
        raise MigrationError(_sql_message(f"{path}, line {line}", text, error, diagnostic)) from None


def _explained(error: Exception, folder: Path) -> AtrizError:
    """Return what a failed revision means to the person who wrote it: file, line, and where in the statement."""
    if isinstance(error, SyntaxError) and error.filename:
        return revisions.syntax_error(Path(error.filename), error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if folder in Path(frame.filename).parents]
    place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(folder)
    if isinstance(error, sqlalchemy.exc.DBAPIError) and isinstance(error.orig, psycopg.Error):
        return MigrationError(_sql_message(place, error.statement or "", error.orig, error.orig.diag))
    if isinstance(error, psycopg.Error):
        return MigrationError(_sql_message(place, "", error, error.diag))
    return MigrationError(f"{place}: {type(error).__name__}: {error}")


def _sql_message(place: str, statement: str, error: psycopg.Error, diagnostic: Diagnostic) -> str:
    """Return the server's message with the line of the statement it means and a caret below the place."""
    first = diagnostic.message_primary or str(error).strip()
    lines = [f"{place}: {first}" + (f" ({diagnostic.sqlstate})" if diagnostic.sqlstate else "")]
    if diagnostic.statement_position and statement:
        at = int(diagnostic.statement_position) - 1
        begin = statement.rfind("\n", 0, at) + 1
        line = statement[begin:].partition("\n")[0].rstrip()
        lines += [f"    {line}", "    " + "".join("\t" if c == "\t" else " " for c in line[: at - begin]) + "^"]
    elif statement:
        lines += [f"    {line.rstrip()}" for line in statement.strip().splitlines()[:3]]
    for name, text in (("detail", diagnostic.message_detail), ("hint", diagnostic.message_hint)):
        if text:
            lines.append(f"    {name}: {text}")
    return "\n".join(lines)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
