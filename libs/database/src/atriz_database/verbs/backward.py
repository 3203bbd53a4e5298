"""Verbs that undo and remove: rollback, clean, drop, reset. In production each wants the database's name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from atriz_database import databases, label, lock
from atriz_database.errors import MigrationError
from atriz_database.fleet import Act, Outcome, Report
from atriz_database.revisions import Revisions, check_reversible, check_syntax
from atriz_database.run import Options, ignore, locate, look_at, noticing, on_each, read
from atriz_database.settings import Target
from atriz_database.verbs.forward import create, setup
from atriz_database.workspace import Workspace


def rollback(
    workspace: Workspace,
    name: str,
    options: Options = Options(),
    report: Report = ignore,
    *,
    count: int = 1,
    to: str | None = None,
) -> list[Outcome]:
    """Undo the newest revisions of one package, after naming them.

    :param count: how many.
    :param to: the revision to go back to, which itself stays, or ``base``; instead of `count`.

    Raise `AtrizError` if the run cannot begin; what fails is in the outcome.
    """
    task = partial(_rollback, options, count, to)
    outcomes = on_each(workspace, name, task, options, report, reads_revisions=True, destroys="rollback")
    return [
        replace(outcome, undone=tuple(act.detail for act in outcome.acts if act.what == "undone"))
        for outcome in outcomes
    ]


def clean(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = ignore
) -> list[Outcome]:
    """Empty every table and restart every sequence; structure and history stay, and `seed` works at once.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return on_each(workspace, name, partial(_clean, options), options, report, destroys="clean")


def drop(
    workspace: Workspace,
    name: str | None = None,
    options: Options = Options(),
    report: Report = ignore,
    *,
    force_connections: bool = False,
) -> list[Outcome]:
    """Remove the databases, dependents first.

    :param force_connections: whether to end the connections that others have to them.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    task = partial(_drop, options, force_connections)
    return on_each(workspace, name, task, options, report, makes_database=True, destroys="drop")


def reset(
    workspace: Workspace,
    name: str | None = None,
    options: Options = Options(),
    report: Report = ignore,
    *,
    force_connections: bool = False,
) -> list[Outcome]:
    """Drop, create, migrate and seed. Where a database could not be dropped, nothing is made.

    Raise `RevisionError` if the revision files are broken, before anything is dropped, and `AtrizError` if the run
    cannot begin; what fails for one package is in its outcome.
    """
    for package in workspace.select(name):
        # What could not be made again is not dropped.
        files = read(package)
        files.single_head()
        for revision in files.by_id.values():
            check_syntax(revision.path)
    task = partial(_drop, options, force_connections)
    outcomes = on_each(workspace, name, task, options, report, makes_database=True, destroys="reset")
    for verb in (create, setup):
        if any(outcome.state != "done" for outcome in outcomes):
            break
        outcomes = _joined(outcomes, verb(workspace, name, replace(options, only=True), report))
    return outcomes


def _joined(first: Sequence[Outcome], second: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of the second part of a run, each with what the first part did."""
    before = {outcome.package: outcome for outcome in first}
    return [
        replace(
            outcome,
            acts=(*before[outcome.package].acts, *outcome.acts),
            seconds=before[outcome.package].seconds + outcome.seconds,
            back="",  # What was there before is gone.
        )
        for outcome in second
    ]


def existing(workspace: Workspace, name: str | None, options: Options, verb: str) -> list[Target]:
    """Return the databases that a destructive verb would touch, for the question that is asked before it.

    Raise `LabelError` if one of them is protected or belongs to somebody else.
    """
    looks, _ = look_at(locate(workspace, workspace.select(name)), options, reads_revisions=False, destroys=verb)
    return [each.target for each in looks if each.state not in ("missing", "unreachable")]


def to_undo(files: Revisions, current: Sequence[str], count: int, to: str | None) -> tuple[str, ...]:
    """Return the ids that going back undoes, newest first.

    Raise `MigrationError` if there is no such way back.
    """
    applied = files.ancestors(current)
    if to is None:
        undone: list[str] = []
        at = tuple(current)
        while len(undone) < count and at:
            if len(at) > 1:
                raise MigrationError(
                    "The history branches here, so that a count does not say which way. Use --to REVISION."
                )
            undone.append(at[0])
            at = files.by_id[at[0]].down
        if len(undone) < count:
            raise MigrationError(
                f"There are {len(undone)} revisions to undo, not {count}. Use --to base to undo them all."
            )
        return tuple(undone)
    if to == "base":
        kept: set[str] = set()
    else:
        found = [id_ for id_ in files.by_id if id_.startswith(to)]
        if len(found) != 1 or found[0] not in applied:
            known = "is not one that was applied" if len(found) == 1 else f"means {len(found)} revisions"
            raise MigrationError(f"--to {to} {known}. `alembic history` in the package's folder lists them.")
        kept = files.ancestors(found)
    return tuple(reversed([id_ for id_ in files.pending(()) if id_ in applied - kept]))


def _rollback(options: Options, count: int, to: str | None, target: Target, report: Report) -> None:
    from atriz_database import migrations

    name, database = target.package.name, target.database
    (seen,), failed = look_at([target], options, destroys="rollback")
    if failed:
        raise failed[name]
    if seen.state == "ahead":
        raise MigrationError(
            f"{database} is at {', '.join(seen.current)}, which this code does not know and so cannot undo. Use the "
            "checkout it was migrated with."
        )
    undone = to_undo(seen.files, seen.current, count, to)
    if not undone:
        report(Act(name, database, "up to date", detail="nothing to undo"))
        return
    check_reversible(seen.files.by_id[id_] for id_ in undone)
    titles = [seen.files.by_id[id_].title for id_ in undone]
    report(Act(name, database, f"undoing {', '.join(titles)}", kind="notice"))
    below = seen.files.by_id[undone[-1]].down
    # Below a merge are several; Alembic then takes a number of steps.
    destination = f"-{len(undone)}" if len(below) > 1 else below[0] if below else "base"

    def applied(each: migrations.Applied) -> None:
        report(Act(name, database, "undone", each.title, each.revision, each.seconds))

    run = migrations.Run(
        target,
        options.lock_wait,
        noticing(target, report),
        applied,
        options.force,
        expected=seen.current,
        limits=migrations.Limits(options.lock_timeout, options.statement_timeout),
        # A number of steps counts from where the database is: begun again in the middle it would go too far.
        retries=0 if destination.startswith("-") else options.retries,
    )
    migrations.downgrade(run, destination)


def _clean(options: Options, target: Target, report: Report) -> None:
    from atriz_database import truncate

    started = time.perf_counter()
    name, database = target.package.name, target.database
    with lock.held(target, wait=options.lock_wait, notify=noticing(target, report)) as connection:
        label.check(target, label.read(connection))
        emptied = truncate.empty(connection, target.package.schemas)
    rows = ", ".join(f"{each.table} {'' if each.exact else 'about '}{each.rows}" for each in emptied if each.rows)
    report(Act(name, database, "cleaned", detail=rows or "no rows were there", seconds=time.perf_counter() - started))


def _drop(options: Options, force_connections: bool, target: Target, report: Report) -> None:
    started = time.perf_counter()

    def ending(visitors: Sequence[databases.Visitor]) -> None:
        noticing(target, report)(f"ending the connections of {'; '.join(map(str, visitors))}")

    gone = databases.drop(target, force_connections=force_connections, wait=options.wait, ending=ending)
    what = "dropped" if gone else "not there"
    report(Act(target.package.name, target.database, what, seconds=time.perf_counter() - started))
