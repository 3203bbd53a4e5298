"""Verbs that build: setup, create, migrate, seed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from atriz_database import databases, fleet, label, lock, revisions
from atriz_database.errors import AtrizError, DatabaseMissingError, MigrationError
from atriz_database.fleet import Act, Outcome, Report
from atriz_database.look import Look
from atriz_database.run import Options, ignore, locate, look_at, noticing, on_each
from atriz_database.settings import Target
from atriz_database.workspace import Workspace

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory


def setup(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = ignore
) -> list[Outcome]:
    """Create, migrate and seed: from nothing to working; on what is there, only what is missing.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return _migrating(workspace, name, options, report, seeding=True)


def create(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = ignore
) -> list[Outcome]:
    """Make the databases that aren't there, and label them.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return on_each(workspace, name, partial(create_database, options), options, report, makes_database=True)


def migrate(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = ignore
) -> list[Outcome]:
    """Bring the databases to head, core first, the apps side by side.

    A missing database is created first, but for production. Where nothing is pending, Alembic isn't even imported.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return _migrating(workspace, name, options, report, seeding=False)


def seed(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = ignore
) -> list[Outcome]:
    """Run the packages' seed files; in production nothing runs, and a warning says so.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return on_each(workspace, name, partial(seed_database, options), options, report)


def _migrating(
    workspace: Workspace, name: str | None, options: Options, report: Report, *, seeding: bool
) -> list[Outcome]:
    packages = workspace.select(name, dependencies=not options.only)
    targets = locate(workspace, packages, report)
    looks, failed = look_at(targets, options)
    by_name = {each.target.package.name: each for each in looks}
    for each in looks:
        reason = _obstacle(each)
        if reason is not None:
            failed.setdefault(each.target.package.name, reason)
    # What another run is at work on may be anywhere in a moment, as when a `rollback` was killed: it waits its turn.
    pending = [each for each in looks if each.state != "up-to-date" or each.is_busy]
    if not pending and not failed and not seeding:
        # The most frequent run of all: nothing to do, and so no process to start.
        outcomes = []
        for target in targets:
            act = Act(target.package.name, target.database, "up to date")
            report(act)
            outcomes.append(Outcome(act.package, act.database, "done", (act,)))
        return [_placed(by_name[outcome.package], outcome) for outcome in outcomes]
    if pending:
        # Imported here, before the workers fork, and so once for all of them.
        from atriz_database.migrations import upgrade as _  # noqa: F401
    outcomes = fleet.run(targets, partial(_bring, options, by_name, seeding), report, failed=failed, early=True)
    return [_placed(by_name.get(outcome.package), outcome) for outcome in outcomes]


def _placed(seen: Look | None, outcome: Outcome) -> Outcome:
    """Return the outcome with what was applied, what is pending, and where the database is, which was seen before."""
    applied = tuple(act.detail for act in outcome.acts if act.what == "applied")
    if seen is None or seen.state in ("unreachable", "mislabelled"):
        return replace(outcome, applied=applied)
    files = seen.files
    if files.unknown(seen.current):
        return replace(outcome, at=seen.current)
    # Another run may have gone on while this one waited: whatever a revision stands on was there before it.
    below = files.by_id[outcome.failed].down if outcome.failed in files.by_id else ()
    there = files.ancestors(files.heads if outcome.state == "done" else {*seen.current, *applied, *below})
    at = seen.current if there == files.ancestors(seen.current) else files.tips(there)
    pending = tuple(id_ for id_ in seen.pending if id_ not in there)
    return replace(outcome, applied=applied, pending=pending, at=at, back=_way_back(seen, applied))


def _way_back(seen: Look, applied: Sequence[str]) -> str:
    """Return the command that undoes what was applied, if there is one: not for a new database, which has no before."""
    if not applied or seen.state == "missing" or len(seen.current) > 1:
        return ""
    try:
        revisions.check_reversible(seen.files.by_id[id_] for id_ in applied)
    except AtrizError:
        return ""
    target = seen.target
    force = f" --force {target.database}" if target.environment == "production" else ""
    return f"atriz rollback {target.package.name} --to {''.join(seen.current) or 'base'}{force}"


def _obstacle(seen: Look) -> AtrizError | None:
    """Return why a database cannot be migrated, if that is plain before trying."""
    target = seen.target
    folder = target.package.folder
    try:
        seen.files.single_head()
    except AtrizError as error:
        return error
    if seen.state == "missing" and target.environment == "production":
        return DatabaseMissingError(
            f"{target.database} does not exist at {target.url} (from {target.origin}), and in production nothing is "
            f"created unasked. Make it with `atriz create {target.package.name}`."
        )
    if seen.state == "diverged":
        rows, last = ", ".join(seen.current), " ".join(seen.files.tips(seen.current))
        return MigrationError(
            f"{target.database} has the version rows {rows}, which the files put on one line that ends in {last}: all "
            f"of it is applied. Say so: `alembic stamp --purge {last}` in {folder}."
        )
    if seen.state == "ahead":
        return MigrationError(
            f"{target.database} is at {', '.join(seen.current)}, which no file in {folder / 'migrations/versions'} "
            "has: the database is ahead of this code. Update the checkout, or deploy the code it was migrated with."
        )
    if seen.state == "unversioned":
        return MigrationError(
            f"{target.database} at {target.url} has tables but no version: something else made them, or "
            f"emptied alembic_version. `atriz stamp {target.package.name}` finds out which revision they are of, and "
            "says so to the database; if they are of none, name another one."
        )
    return None


def create_database(options: Options, target: Target, report: Report) -> None:
    """Make and label the database of one package, if it lacks either; the task of `create`."""
    from atriz_database import settlement

    started = time.perf_counter()
    made = databases.create(target, wait=options.wait)
    # Under the lock: a run that found the database before its label was written may be doing the same.
    with lock.held(target, wait=options.lock_wait, notify=noticing(target, report)) as connection:
        label.prepare(connection, target)
        # Made anew it has lost what `grant` gave; the roles, which belong to the server, have not.
        settlement.renew(connection, target, noticing(target, report))
    what = "created" if made else "there already"
    report(Act(target.package.name, target.database, what, seconds=time.perf_counter() - started))


def _migrate(
    options: Options, pending: int, script: ScriptDirectory, turn: fleet.Turn, target: Target, report: Report
) -> None:
    from atriz_database import migrations

    name, database = target.package.name, target.database
    done = count(1)

    def applied(each: migrations.Applied) -> None:
        number = next(done)
        progress = f"{number} of {max(number, pending)} revisions"
        report(Act(name, database, "applied", each.title, each.revision, each.seconds, progress=progress))

    def begin() -> None:
        turn()
        if pending:
            report(Act(name, database, f"0 of {pending} revisions", kind="progress"))

    limits = migrations.Limits(options.lock_timeout, options.statement_timeout)
    migrations.upgrade(
        migrations.Run(
            target,
            options.lock_wait,
            noticing(target, report),
            applied,
            limits=limits,
            retries=options.retries,
            turn=begin,
        ),
        script,
    )
    if next(done) == 1:
        # Another run did it while this one waited.
        report(Act(name, database, "up to date"))


def seed_database(options: Options, target: Target, report: Report) -> None:
    """Run the seed files of one package, but for production; the task of `seed`."""
    from atriz_database import seeds

    name, database = target.package.name, target.database
    if target.environment == "production":
        detail = "APP_ENV is production: seeds are for development and tests"
        report(Act(name, database, "not seeded", detail=detail, kind="warning"))
        return
    if not seeds.files(target.package.folder / "seeds"):
        report(Act(name, database, "not seeded", detail="it has no seed files"))
        return
    report(Act(name, database, "seeding", kind="progress"))
    for seeded in seeds.seed(target, lock_wait=options.lock_wait, notify=noticing(target, report)):
        report(Act(name, database, "seeded", seeded.file, str(seeded), seeded.seconds))


def _bring(
    options: Options, looks: Mapping[str, Look], seeding: bool, target: Target, report: Report, turn: fleet.Turn
) -> None:
    """Bring one database to head, and seed it if asked to; the task of `migrate` and `setup`.

    Its revision files are loaded, and the connections opened, before its turn.
    """
    seen = looks[target.package.name]
    try:
        if seen.state == "missing":
            _begin_anew(options, seen, turn, target, report)
        elif seen.state == "up-to-date" and not seen.is_busy:
            turn()
            report(Act(target.package.name, target.database, "up to date"))
        else:
            from atriz_database import migrations

            script = migrations.load(target.package, seen.files, seen.files.by_id.keys() - set(seen.pending))
            _migrate(options, len(seen.pending), script, turn, target, report)
        if seeding:
            seed_database(options, target, report)
    except DatabaseMissingError:
        # It has gone since the look, as after a `drop` that was killed.
        if target.environment == "production":
            raise
        turn()
        _begin_anew(options, seen, turn, target, report)
        if seeding:
            seed_database(options, target, report)


def _begin_anew(options: Options, seen: Look, turn: fleet.Turn, target: Target, report: Report) -> None:
    from atriz_database import migrations

    script = migrations.load(target.package, seen.files)
    turn()
    create_database(options, target, report)
    _migrate(options, len(seen.files.by_id), script, turn, target, report)
