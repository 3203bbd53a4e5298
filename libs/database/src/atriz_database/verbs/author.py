"""Verbs for whoever writes revisions and looks after labels: new, stamp, repair, label."""

from __future__ import annotations

import difflib
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atriz_database import databases, label, lock
from atriz_database.errors import LabelError, MigrationError, RevisionError
from atriz_database.fleet import Act, Outcome, Report
from atriz_database.label import Label
from atriz_database.run import Options, ignore, locate, look_at, noticing, on_each, read
from atriz_database.settings import ENVIRONMENTS, Target
from atriz_database.workspace import Package, Workspace

if TYPE_CHECKING:  # SQLAlchemy's side of the library, which most verbs do without.
    from atriz_database.drift import Match

_SQL_REVISION = '''"""{message}

Revision ID: {id}
Revises: {down}

The body is the .sql file of the same name beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence

from atriz_database.migrations import sql_file

revision: str = "{id}"
down_revision: str | None = {down_literal}
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

upgrade, downgrade = sql_file(__file__)
'''
_SQL_BODY = """\
-- migrate:up

-- {message}: the statements that bring the database forward. They are sent as they stand, in one transaction.

-- migrate:down

-- What takes them back.
"""


def new(
    workspace: Workspace,
    name: str,
    message: str,
    options: Options = Options(),
    report: Report = ignore,
    *,
    empty: bool = False,
    as_sql: bool = False,
    allow_drop: bool = False,
) -> list[Outcome]:
    """Write a revision: the difference between the models and the database, which is at head.

    Where nothing has changed it says so, and writes nothing.

    :param message: what the revision does, in a few words; its file is named after it.
    :param empty: write one without a body, no database needed.
    :param as_sql: write one whose body is a plain .sql file, no database needed.
    :param allow_drop: let it drop tables that no revision made.

    Raise `AtrizError` if the run cannot begin; what fails is in the outcome.
    """
    package = workspace.package(name)
    if not message.strip():
        raise RevisionError("A revision needs a message: a few words that say what it does.")
    if not empty and not as_sql:
        return on_each(
            workspace, name, partial(_new, options, message, allow_drop), options, report, reads_revisions=True
        )
    started = time.perf_counter()
    read(package).single_head()
    path = _written(package, message, as_sql=as_sql)
    act = Act(name, package.database, "written", package.shown(path), seconds=time.perf_counter() - started)
    report(act)
    return [Outcome(name, package.database, "done", (act,))]


def stamp(
    workspace: Workspace, name: str, revision: str, options: Options = Options(), report: Report = ignore
) -> list[Outcome]:
    """Say that a database is at a revision, without running anything.

    Raise `AtrizError` if the run cannot begin; what fails is in the outcome.
    """
    return on_each(workspace, name, partial(_stamp, options, revision), options, report, reads_revisions=True)


def matching(workspace: Workspace, name: str, options: Options = Options()) -> Match:
    """Return which revision a database without a version corresponds to, by its catalog.

    The history is walked up in a scratch database, and what each revision leaves is compared.

    Raise `AtrizError` if the database cannot be reached, or the role may not create the scratch database.
    """
    from atriz_database import drift

    (target,) = locate(workspace, workspace.select(name))
    with databases.connect(target, purpose="stamp", wait=options.wait) as connection:
        label.check(target, label.read(connection))
    return drift.matching(target, read(target.package))


@dataclass(frozen=True, slots=True)
class Edit:
    """A revision file that differs from what was applied."""

    revision: str
    path: Path
    diff: str
    """From what was applied to what stands in the file now, as a unified diff."""


def edits(workspace: Workspace, name: str, options: Options = Options()) -> list[Edit]:
    """Return the revisions of one package that were edited since they were applied, with what was applied.

    Raise `AtrizError` if the database cannot be reached.
    """
    (target,) = locate(workspace, workspace.select(name))
    with databases.connect(target, purpose="repair", wait=options.wait) as connection:
        label.check(target, label.read(connection))
        return _edits(connection, target)


def repair(workspace: Workspace, name: str, options: Options = Options(), report: Report = ignore) -> list[Outcome]:
    """Accept the revision files of one package as they stand now; the database itself is not touched.

    Raise `AtrizError` if the run cannot begin; what fails is in the outcome.
    """
    return on_each(workspace, name, partial(_repair, options), options, report, reads_revisions=True)


def labels(
    workspace: Workspace, name: str | None = None, options: Options = Options()
) -> list[tuple[Target, Label | None]]:
    """Return the label that each database carries, whatever it should be; `None` where it has none.

    Raise `ServerError` if a database cannot be reached.
    """
    found = []
    for target in locate(workspace, workspace.select(name)):
        with databases.connect(target, purpose="label", wait=options.wait) as connection:
            found.append((target, label.read(connection)))
    return found


def relabel(workspace: Workspace, name: str, wanted: Label, options: Options = Options()) -> tuple[Label | None, Label]:
    """Give a database another label, as for a copy of production's data. Return the one before, and the new one.

    :param wanted: the package and the environment that it shall belong to.

    Raise `LabelError` if `options.force` doesn't hold the database's exact name.
    """
    workspace.package(wanted.package)
    if wanted.environment not in ENVIRONMENTS:
        raise LabelError(f"{wanted.environment!r} is not an environment; there are {', '.join(ENVIRONMENTS)}.")
    (target,) = locate(workspace, workspace.select(name))
    if target.database not in options.force:
        raise LabelError(
            f"The label is what keeps {target.database} at {target.url} from the wrong run. To change it to {wanted}, "
            f"name the database: --force {target.database}"
        )
    with lock.held(target, wait=options.lock_wait) as connection:
        before = label.read(connection)
        label.write(connection, wanted)
    return before, wanted


def _new(options: Options, message: str, allow_drop: bool, target: Target, report: Report) -> None:
    from atriz_database import migrations

    started = time.perf_counter()
    name, database = target.package.name, target.database
    (seen,), failed = look_at([target], options)
    if failed:
        raise failed[name]
    seen.files.single_head()
    if seen.state != "up-to-date":
        raise MigrationError(
            f"{database} is {seen.state}, and a revision is the difference between the models and a database at head. "
            f"Run `atriz migrate {name}` first, or write an empty one with --empty."
        )
    run = migrations.Run(target, notify=noticing(target, report), allow_drop=allow_drop)
    path = migrations.new(target.package, message, run)
    for missing in migrations.unimported(migrations.metadata_of(target.package)):
        detail = f"{target.package.shown(missing)} defines models that are never imported: their tables are not seen"
        report(Act(name, database, "models not imported", detail=detail, kind="warning"))
    seconds = time.perf_counter() - started
    if path is None:
        report(
            Act(name, database, "no change", detail="models and database agree; nothing was written", seconds=seconds)
        )
    else:
        report(Act(name, database, "written", target.package.shown(path), seconds=seconds))


def _written(package: Package, message: str, *, as_sql: bool) -> Path:
    from atriz_database import migrations

    path = migrations.new(package, message, None)
    assert path is not None, "an empty revision is always written"
    if as_sql:
        revision = next(each for each in read(package).by_id.values() if each.path == path)
        down = revision.down[0] if revision.down else None
        literal = f'"{down}"' if down else "None"
        text = _SQL_REVISION.format(message=message, id=revision.id, down=down or "", down_literal=literal)
        path.write_text(text.replace("Revises: \n", "Revises:\n"), encoding="utf-8")
        path.with_suffix(".sql").write_text(_SQL_BODY.format(message=message), encoding="utf-8")
    return path


def _stamp(options: Options, revision: str, target: Target, report: Report) -> None:
    from atriz_database import migrations

    name, database = target.package.name, target.database

    def applied(each: migrations.Applied) -> None:
        report(Act(name, database, "stamped", each.title, each.revision))

    run = migrations.Run(target, options.lock_wait, noticing(target, report), applied)
    migrations.stamp(run, revision)


def _repair(options: Options, target: Target, report: Report) -> None:
    name, database = target.package.name, target.database
    with lock.held(target, wait=options.lock_wait, notify=noticing(target, report)) as connection:
        label.check(target, label.read(connection))
        found = _edits(connection, target)
        if not found:
            report(Act(name, database, "up to date", detail="no applied revision has been edited"))
        by_id = read(target.package).by_id
        who = label.who()
        with connection.transaction():
            for edit in found:
                revision = by_id[edit.revision]
                connection.execute(
                    "INSERT INTO atriz.history (revision, direction, checksum, source, seconds, applied_by) "
                    "VALUES (%s, 'repair', %s, %s, 0, %s)",
                    [revision.id, revision.checksum(), revision.source(), who],
                )
        for edit in found:
            report(Act(name, database, "accepted", edit.path.stem, edit.revision))


def _edits(connection: databases.Connection, target: Target) -> list[Edit]:
    if label.read(connection) is None:
        return []
    files = read(target.package)
    current = label.versions(connection)
    if files.unknown(current):
        raise MigrationError(
            f"{target.database} is at {', '.join(files.unknown(current))}, which no file of {target.package.name} has."
        )
    rows = connection.execute(
        "SELECT DISTINCT ON (revision) revision, checksum, source FROM atriz.history "
        "WHERE direction <> 'downgrade' ORDER BY revision, id DESC"
    ).fetchall()
    applied = files.ancestors(current)
    found = []
    for id_, checksum, source in rows:
        if id_ not in applied or files.by_id[id_].checksum() == checksum:
            continue
        path = files.by_id[id_].path
        lines = difflib.unified_diff(
            source.splitlines(), files.by_id[id_].source().splitlines(), "as applied", path.name, lineterm=""
        )
        found.append(Edit(id_, path, "\n".join(lines)))
    return found
