"""The verbs, one function each. They return values and never print; ``atriz`` is a thin shell over them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from atriz_database import databases, fleet, label, lock, revisions, server, settings
from atriz_database.errors import AtrizError, DatabaseMissingError, MigrationError
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


def _ignore(act: Act) -> None:
    """Report to nobody."""


def setup(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = _ignore
) -> list[Outcome]:
    """Create, migrate and seed: from nothing to working; on what is there, only what is missing.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return _migrating(workspace, name, options, report, seeding=True)


def create(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = _ignore
) -> list[Outcome]:
    """Make the databases that aren't there, and label them.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return on_each(workspace, name, partial(_create, options), options, report, makes_database=True)


def migrate(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = _ignore
) -> list[Outcome]:
    """Bring the databases to head, core first, the apps side by side.

    A missing database is created first, but for production. Where nothing is pending, Alembic isn't even imported.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return _migrating(workspace, name, options, report, seeding=False)


def seed(
    workspace: Workspace, name: str | None = None, options: Options = Options(), report: Report = _ignore
) -> list[Outcome]:
    """Run the packages' seed files; in production nothing runs, and a warning says so.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    return on_each(workspace, name, partial(_seed, options), options, report)


def on_each(
    workspace: Workspace,
    name: str | None,
    task: fleet.Task,
    options: Options = Options(),
    report: Report = _ignore,
    *,
    makes_database: bool = False,
) -> list[Outcome]:
    """Do a task on the database of one package, or of each in order; for the verbs that packages add as well.

    Every database is looked at before any is touched.

    :param task: called with the target, in a process of its own; it takes the lock if it changes anything.
    :param makes_database: whether the task copes with a database that is missing.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    targets = locate(workspace, workspace.select(name), report)
    looks, failed = _looked(targets, options)
    for each in looks:
        if each.state == "missing" and each.error is not None and not makes_database:
            failed[each.target.package.name] = each.error
    return fleet.run(targets, task, report, failed=failed)


def status(workspace: Workspace, name: str | None = None, options: Options = Options()) -> list[Look]:
    """Return where the databases stand against the code. Changes nothing, but for starting the embedded server.

    Raise `AtrizError` if the settings or the revision files cannot be read.
    """
    targets = locate(workspace, workspace.select(name), _ignore)
    return look(targets, [read(target.package) for target in targets], wait=options.wait, edited=True)


@dataclass(frozen=True, slots=True)
class Origin:
    """One setting of one package: its value, secrets masked, and where it comes from."""

    package: str
    name: str
    value: str
    origin: str


def environment(workspace: Workspace, name: str | None = None) -> list[Origin]:
    """Return every setting and its origin. Asks no server.

    Raise `SettingsError` if a value cannot be used.
    """
    packages = workspace.select(name)
    rows = []
    embedded = None
    direct = settings.resolve(workspace, packages)
    for target, administrative in zip(settings.resolve(workspace, packages, administrative=False), direct, strict=True):
        package = target.package
        rows.append(Origin(package.name, "APP_ENV", target.environment, target.environment_origin or "the default"))
        for label_, each in ((package.variable, target), (f"DIRECT_{package.variable}", administrative)):
            if each is administrative and administrative.url == target.url:
                continue
            if each.url is None:
                embedded = embedded or server.of(workspace.root)
                each = each.at(embedded.url)
            rows.append(Origin(package.name, label_, str(each.url), each.origin))
    return rows


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


def locate(workspace: Workspace, packages: Sequence[Package], report: Report = _ignore) -> tuple[Target, ...]:
    """Return the targets of a run, the embedded server running if one of them is on it.

    Raise `SettingsError` if the settings cannot be used, `ServerError` if the embedded server does not start.
    """
    targets = settings.resolve(workspace, packages)
    if all(target.url is not None for target in targets):
        return targets
    embedded = server.of(workspace.root)
    started = time.perf_counter()
    notify = partial(_notice, report, "server", "")
    if server.start(embedded, notify):
        seconds = time.perf_counter() - started
        report(Act("server", "", "started", detail=f"PostgreSQL in {embedded.home}", seconds=seconds))
    return tuple(target if target.url is not None else target.at(embedded.url) for target in targets)


def _migrating(
    workspace: Workspace, name: str | None, options: Options, report: Report, *, seeding: bool
) -> list[Outcome]:
    packages = workspace.select(name, dependencies=not options.only)
    targets = locate(workspace, packages, report)
    looks, failed = _looked(targets, options)
    by_name = {each.target.package.name: each for each in looks}
    for each in looks:
        reason = _obstacle(each)
        if reason is not None:
            failed.setdefault(each.target.package.name, reason)
    steps = partial(_bring_up, options, by_name, seeding)
    pending = [each for each in looks if each.state != "up-to-date"]
    if not pending and not failed and not seeding:
        # The most frequent run of all: nothing to do, and so no process to start.
        outcomes = []
        for target in targets:
            act = Act(target.package.name, target.database, "up to date")
            report(act)
            outcomes.append(Outcome(act.package, act.database, "done", (act,)))
        return outcomes
    if pending:
        # Imported here, before the workers fork, and so once for all of them.
        from atriz_database import migrations as _  # noqa: F401
    return fleet.run(targets, steps, report, failed=failed)


def _looked(targets: Sequence[Target], options: Options) -> tuple[list[Look], dict[str, AtrizError]]:
    """Look at all databases before any is touched. Return what was seen, and which packages cannot go on and why.

    Raise `LabelError` if any of them belongs to another package or environment.
    """
    failed: dict[str, AtrizError] = {}
    readable: list[tuple[Target, Revisions]] = []
    for target in targets:
        try:
            readable.append((target, read(target.package)))
        except AtrizError as error:
            failed[target.package.name] = error
    looks = look([target for target, _ in readable], [files for _, files in readable], wait=options.wait)
    for each in looks:
        if each.state == "mislabelled" and each.error is not None:
            raise each.error
        if each.state != "unreachable":
            label.check_environment(each.target, each.label)
        elif each.error is not None:
            failed[each.target.package.name] = each.error
    return looks, failed


def _obstacle(seen: Look) -> AtrizError | None:
    """Return why a database cannot be migrated, if that is plain before trying."""
    target = seen.target
    folder = target.package.folder
    try:
        seen.files.single_head()
        for id_ in seen.pending:
            revisions.check_syntax(seen.files.by_id[id_].path)
    except AtrizError as error:
        return error
    if seen.state == "missing" and target.environment == "production":
        return DatabaseMissingError(
            f"{target.database} does not exist at {target.url} (from {target.origin}), and in production nothing is "
            f"created unasked. Make it with `atriz create {target.package.name}`."
        )
    if seen.state == "ahead":
        return MigrationError(
            f"{target.database} is at {', '.join(seen.current)}, which no file in {folder / 'migrations/versions'} "
            "has: the database is ahead of this code. Update the checkout, or deploy the code it was migrated with."
        )
    if seen.state == "unversioned":
        return MigrationError(
            f"{target.database} at {target.url} has tables but no version: something else made them. If they are "
            f"those of a revision, run `alembic stamp REVISION` in {folder}; if not, name another database."
        )
    return None


def _create(options: Options, target: Target, report: Report) -> None:
    started = time.perf_counter()
    made = databases.create(target, wait=options.wait)
    # Under the lock: a run that found the database before its label was written may be doing the same.
    with lock.held(target, wait=options.lock_wait, notify=_noticing(target, report)) as connection:
        label.prepare(connection, target)
    what = "created" if made else "there already"
    report(Act(target.package.name, target.database, what, seconds=time.perf_counter() - started))


def _migrate(options: Options, pending: int, target: Target, report: Report) -> None:
    from atriz_database import migrations

    name, database = target.package.name, target.database
    done = count(1)

    def applied(each: migrations.Applied) -> None:
        report(Act(name, database, "applied", each.title, each.revision, each.seconds))
        report(Act(name, database, f"{next(done)} of {pending} revisions", kind="progress"))

    report(Act(name, database, f"0 of {pending} revisions", kind="progress"))
    migrations.upgrade(migrations.Run(target, options.lock_wait, _noticing(target, report), applied))
    if next(done) == 1:
        # Another run did it while this one waited.
        report(Act(name, database, "up to date"))


def _seed(options: Options, target: Target, report: Report) -> None:
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
    for seeded in seeds.seed(target, lock_wait=options.lock_wait, notify=_noticing(target, report)):
        report(Act(name, database, "seeded", seeded.file, str(seeded), seeded.seconds))


def _bring_up(options: Options, looks: Mapping[str, Look], seeding: bool, target: Target, report: Report) -> None:
    state, pending = looks[target.package.name].state, len(looks[target.package.name].pending)
    if state == "missing":
        _create(options, target, report)
    if state == "up-to-date":
        report(Act(target.package.name, target.database, "up to date"))
    else:
        _migrate(options, pending, target, report)
    if seeding:
        _seed(options, target, report)


def _noticing(target: Target, report: Report) -> Callable[[str], None]:
    return partial(_notice, report, target.package.name, target.database)


def _notice(report: Report, package: str, database: str, text: str) -> None:
    report(Act(package, database, text, kind="notice"))


def find(start: Path) -> Workspace:
    """Return the workspace that `start` lies in; see :func:`atriz_database.workspace.load`."""
    from atriz_database import workspace

    return workspace.load(start)
