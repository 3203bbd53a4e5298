"""Verbs that show where databases stand and change nothing: status, plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from atriz_database import requirements
from atriz_database.errors import AtrizError
from atriz_database.look import Look, look
from atriz_database.revisions import Revisions
from atriz_database.run import Options, ignore, locate, read
from atriz_database.workspace import Workspace


def status(workspace: Workspace, name: str | None = None, options: Options = Options()) -> list[Look]:
    """Return where the databases stand against the code. Changes nothing, but for starting the embedded server.

    Raise `AtrizError` if the settings cannot be used; what is wrong with one package is in its look.
    """
    targets = locate(workspace, workspace.select(name), ignore)
    files, broken = [], {}
    for target in targets:
        try:
            files.append(read(target.package))
        except AtrizError as error:
            files.append(Revisions(target.package.folder, {}, ()))
            broken[target.package.name] = error
    looks = look(targets, files, wait=options.wait, edited=True)
    return [
        replace(each, state="broken", error=broken[each.target.package.name], pending=(), edited=())
        if each.target.package.name in broken and each.state not in ("mislabelled", "unreachable")
        else each
        for each in looks
    ]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A revision of another package that a revision says it requires."""

    package: str
    revision: str
    state: str
    """``met`` by what is there, ``in this run`` where the same run applies it first, or ``unmet``."""


@dataclass(frozen=True, slots=True)
class Step:
    """One revision that `migrate` would apply."""

    revision: str
    title: str
    operations: tuple[str, ...]
    """What its statements do: ``CREATE TABLE users``."""
    sql: str
    error: str
    """Why it cannot be rendered without a database, if it cannot."""
    requires: tuple[Requirement, ...] = ()
    """What it needs of other packages' databases."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `migrate` would do to one database."""

    look: Look
    steps: tuple[Step, ...]


def plan(workspace: Workspace, name: str | None = None, options: Options = Options()) -> list[Plan]:
    """Return what `migrate` would do, database by database in its order. Takes no lock, changes nothing.

    Raise `AtrizError` if the settings or the revision files cannot be read.
    """
    targets = locate(workspace, workspace.select(name, dependencies=not options.only), ignore)
    looks = look(targets, [read(target.package) for target in targets], wait=options.wait)
    in_run = {each.target.package.name: each for each in looks}
    return [Plan(each, _steps(workspace, each, in_run)) for each in looks]


def _steps(workspace: Workspace, seen: Look, in_run: Mapping[str, Look]) -> tuple[Step, ...]:
    if not seen.pending:
        return ()
    from atriz_database import migrations

    return tuple(
        Step(
            each.revision.id,
            each.revision.title,
            each.operations,
            each.sql,
            each.error,
            tuple(
                Requirement(name, id_, _state_of(workspace, name, id_, in_run))
                for name, id_ in requirements.of(each.revision).items()
            ),
        )
        for each in migrations.render(seen.target.package, seen.pending)
    )


def _state_of(workspace: Workspace, name: str, id_: str, in_run: Mapping[str, Look]) -> str:
    """Return how a requirement stands. A package that the run leaves out is looked at now."""
    seen = in_run.get(name)
    if seen is None:
        if name not in {package.name for package in workspace.packages}:
            return "unmet"
        (seen,) = status(workspace, name)
    if id_ in seen.files.ancestors(set(seen.current) & seen.files.by_id.keys()):
        return "met"
    return "in this run" if name in in_run and id_ in seen.pending else "unmet"
