"""What every run over databases begins with: from names to targets, a look at all of them, then a task for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from atriz_database import fleet, label, lock, revisions, server, settings
from atriz_database.errors import AtrizError
from atriz_database.fleet import Act, Outcome, Report
from atriz_database.look import Look, look
from atriz_database.revisions import Revisions
from atriz_database.settings import Target
from atriz_database.workspace import Package, Workspace


@dataclass(frozen=True, slots=True)
class Options:
    """What every verb on databases takes."""

    wait: float = 0.0
    """Seconds to try again while a server is down."""
    lock_wait: float = lock.DEFAULT_WAIT
    """Seconds to wait for another run."""
    only: bool = False
    """Whether to leave out what the named package depends on."""
    force: tuple[str, ...] = ()
    """Names of databases that may be destroyed though they are production's."""
    lock_timeout: float = 5.0
    """Seconds that a statement of a revision waits for a lock; 0 is without end."""
    statement_timeout: float | None = None
    """Seconds that a statement of a revision may take; 0 is without end, `None` what the server says."""
    retries: int = 5
    """How often a revision is tried again that did not get its lock, or met a deadlock."""


def ignore(act: Act) -> None:
    """Report to nobody."""


def on_each(
    workspace: Workspace,
    name: str | None,
    task: fleet.Task,
    options: Options = Options(),
    report: Report = ignore,
    *,
    makes_database: bool = False,
    reads_revisions: bool = False,
    destroys: str = "",
) -> list[Outcome]:
    """Do a task on the database of one package, or of each in order; for the verbs that packages add as well.

    Every database is looked at before any is touched.

    :param task: called with the target, in a process of its own; it takes the lock if it changes anything.
    :param makes_database: whether the task copes with a database that is missing.
    :param reads_revisions: whether it needs the revision files, so that broken ones are a failure.
    :param destroys: the verb, if it destroys something: then production is refused, and core comes last.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    targets = locate(workspace, workspace.select(name), report)
    looks, failed = look_at(targets, options, reads_revisions=reads_revisions, destroys=destroys)
    for each in looks:
        if each.state == "missing" and each.error is not None and not makes_database:
            failed[each.target.package.name] = each.error
    return fleet.run(targets, fleet.whole(task), report, failed=failed, reverse=bool(destroys))


def locate(workspace: Workspace, packages: Sequence[Package], report: Report = ignore) -> tuple[Target, ...]:
    """Return the targets of a run, the embedded server running if one of them is on it.

    Raise `SettingsError` if the settings cannot be used, `ServerError` if the embedded server does not start.
    """
    targets = settings.resolve(workspace, packages)
    if all(target.url is not None for target in targets):
        return targets
    embedded = server.of(workspace.root)
    started = time.perf_counter()
    notify = partial(notice, report, "server", "")
    if server.start(embedded, notify):
        seconds = time.perf_counter() - started
        report(Act("server", "", "started", detail=f"PostgreSQL in {embedded.home}", seconds=seconds))
    return tuple(target if target.url is not None else target.at(embedded.url) for target in targets)


def look_at(
    targets: Sequence[Target], options: Options, *, reads_revisions: bool = True, destroys: str = ""
) -> tuple[list[Look], dict[str, AtrizError]]:
    """Look at all databases before any is touched. Return what was seen, and which packages cannot go on and why.

    :param reads_revisions: whether broken revision files are a failure; if not, states say nothing of revisions.
    :param destroys: the verb, if it is one that production must not suffer by mistake.

    Raise `LabelError` if any of them belongs to another package or environment, or is protected.
    """
    failed: dict[str, AtrizError] = {}
    readable: list[tuple[Target, Revisions]] = []
    for target in targets:
        try:
            readable.append((target, read(target.package)))
        except AtrizError as error:
            if reads_revisions:
                failed[target.package.name] = error
            else:
                readable.append((target, Revisions(target.package.folder, {}, ())))
    looks = look([target for target, _ in readable], [files for _, files in readable], wait=options.wait)
    for each in looks:
        if each.state == "mislabelled" and each.error is not None:
            raise each.error
        if destroys and each.state not in ("missing", "unreachable"):
            label.protect(each.target, each.label, options.force, destroys)
        if each.state != "unreachable":
            label.check_environment(each.target, each.label)
        elif each.error is not None:
            failed[each.target.package.name] = each.error
    return looks, failed


def read(package: Package) -> Revisions:
    """Return the package's history, by Alembic where it takes Alembic to know it.

    Raise `RevisionError` if the files do not form one.
    """
    from_files = package.folder / "migrations" / "versions"
    try:
        return revisions.read(from_files)
    except revisions.Undecided:
        from atriz_database import migrations

        return migrations.read_revisions(package)


def noticing(target: Target, report: Report) -> Callable[[str], None]:
    """Return a function that reports a line about a database, for what takes a while."""
    return partial(notice, report, target.package.name, target.database)


def notice(report: Report, package: str, database: str, text: str) -> None:
    """Report that something takes a while."""
    report(Act(package, database, text, kind="notice"))
