"""The verb that gives each database an owner, and each application a role that may do what it needs and no more."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from psycopg import errors

from atriz_database import databases, fleet, interrupt, label, lock, passwords, rights, roles, settings, settlement
from atriz_database.databases import Connection
from atriz_database.errors import AtrizError, ServerError
from atriz_database.fleet import Act, Outcome, Report
from atriz_database.roles import Role, Roles, Step
from atriz_database.run import Options, ignore, locate, look_at, noticing
from atriz_database.settings import EMBEDDED, Target
from atriz_database.settlement import Settled
from atriz_database.workspace import Dependents, Workspace

T = TypeVar("T")
# Roles belong to the server: who else makes or changes one at the same moment is met here, with nothing done.
_TRANSIENT = (
    errors.DeadlockDetected,
    errors.DuplicateObject,
    errors.InternalError_,  # "tuple concurrently updated"
    errors.LockNotAvailable,
    errors.SerializationFailure,
    errors.UniqueViolation,
)
_LONGEST_PAUSE = 1.0  # seconds
_LEFT = "not granted"
_TAKEN = "`atriz env --write` takes the new passwords"
_MAINTENANCE = "postgres"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What every package's part of a run has to know of the others."""

    rotated: frozenset[str]
    """Packages whose roles get new passwords."""
    targets: tuple[Target, ...]
    databases: Mapping[str, str]
    """Of every package of the workspace."""
    at_head: frozenset[str]
    """Packages whose databases have all that the manifests can speak of."""


@dataclass(slots=True)
class _Done:
    """What one transaction has done."""

    made: list[str]
    signing_in: list[str]
    """Those of them that got a password."""
    changed: list[str]
    rotated: list[str]
    settled: Settled

    @property
    def is_nothing(self) -> bool:
        return not (self.made or self.changed or self.rotated or self.settled.moved or self.settled.change)


def grant(
    workspace: Workspace,
    name: str | None = None,
    options: Options = Options(),
    report: Report = ignore,
    *,
    rotate: bool = False,
    whole_server: bool = False,
) -> list[Outcome]:
    """Make the roles of the databases where they lack, and give each what it needs and no more; core first.

    A package comes with what it depends on, where its application's role gets what the manifests there say. New
    passwords are kept for `env --write`; on the embedded server, which asks for none, there are none.

    :param rotate: whether to give the package's roles that sign in new passwords; those of every package, without a
        name.
    :param whole_server: whether the server is this repository's alone: then nobody else may connect to any of its
        other databases either, unless they are granted that.

    Raise `AtrizError` if the run cannot begin; what fails for one package is in its outcome.
    """
    packages = workspace.select(name, dependencies=not options.only)
    found = locate(workspace, packages, report)
    targets = [settings.administrator(target) for target in found]
    looks, failed = look_at(targets, options, reads_revisions=False)
    for each in looks:
        if each.state == "missing" and each.error is not None:
            failed[each.target.package.name] = each.error
    names = database_names(workspace, targets)
    at_head = frozenset(each.target.package.name for each in looks if each.state == "up-to-date")
    rotated = frozenset(each.name for each in workspace.select(name)) if rotate else frozenset[str]()
    plan = _Plan(rotated, tuple(targets), names, at_head)
    outcomes = fleet.run(targets, fleet.whole(partial(_grant, options, plan)), report, failed=failed)
    outcomes = [_failed_if_left(outcome) for outcome in outcomes]
    if all(outcome.state == "done" for outcome in outcomes):
        if rotate or any(act.what == "made" for outcome in outcomes for act in outcome.acts):
            _tell_of_embedded(targets, report)
        outcomes = _mind_other_databases(targets, outcomes, names.values(), whole_server, report)
    return outcomes


def database_names(workspace: Workspace, targets: Sequence[Target]) -> dict[str, str]:
    """Return the database's name of every package.

    As the settings have it where the run covers the package, else as its manifest does.
    """
    found = {package.name: package.database for package in workspace.packages}
    return found | {target.package.name: target.database for target in targets}


def managed(names: Mapping[str, str]) -> frozenset[str]:
    """Return all roles of the workspace, whose rights are ours to say."""
    return frozenset(role for database in names.values() for role in roles.of(database).names)


def _grant(options: Options, plan: _Plan, target: Target, report: Report) -> None:
    started = time.perf_counter()
    name, database = target.package.name, target.database
    with lock.held(target, wait=options.lock_wait, notify=noticing(target, report)) as connection:
        label.check(target, label.read(connection))
        me = connection.info.user
        try:
            done = _again(lambda: _in_transaction(connection, options, plan, target), options.retries)
        except errors.InsufficientPrivilege as error:
            raise ServerError(
                f"{me} may not do what grant does ({target.url}, from {target.origin}): "
                f"{databases.said(error)}. It takes a superuser, or a role with CREATEROLE and CREATEDB that owns the "
                "database or has made its roles. Name one in PGUSER and PGPASSWORD, with PGHOST, in the process "
                "environment or the root .env. Nothing was changed."
            ) from None
    for act in _acts(done):
        report(replace(act, package=name, database=database))
    if done.settled.left:
        text = f"{me} may not change what belongs to others; have a superuser run in {database}: "
        report(Act(name, database, _LEFT, detail=text + "; ".join(done.settled.left), kind="warning"))
    if done.settled.unknown:
        text = f"the database has no {', '.join(done.settled.unknown)}, which "
        text += f"{target.package.shown(target.package.folder / 'pyproject.toml')} grants to dependents"
        is_mistaken = name in plan.at_head
        text += ": correct it" if is_mistaken else "; they get it once that is migrated"
        report(Act(name, database, _LEFT if is_mistaken else "not granted yet", detail=text, kind="warning"))
    if done.is_nothing:
        report(Act(name, database, "up to date", seconds=time.perf_counter() - started))


def _failed_if_left(outcome: Outcome) -> Outcome:
    """Return the outcome as a failure if something was left. Only now: other packages were not to wait for that."""
    left = " ".join(act.detail for act in outcome.acts if act.what == _LEFT)
    if outcome.state != "done" or not left:
        return outcome
    return replace(outcome, state="failed", status=1, error=f"the rest is done, and this is left: {left}.")


def _in_transaction(connection: Connection, options: Options, plan: _Plan, target: Target) -> _Done:
    """Make roles and rights what they should be, all of it or nothing, the new passwords kept before it is final."""
    package = target.package
    dependents = [each for each in plan.targets if package.name in each.package.requires]
    others = {roles.of(each.database).app: each for each in dependents}
    is_needed = bool(dependents) or package.dependents != Dependents()
    kept: list[tuple[str, str | None]] = []
    try:
        with ExitStack() as transaction:
            transaction.enter_context(connection.transaction())
            settlement.limit(connection, options.lock_timeout)
            own = roles.of(target.database)
            if not is_needed and not roles.existing(connection, [own.dependents]):
                own = replace(own, dependents="")
            made, changed = _settle_roles(connection, plan, target, own, others)
            signing_in = {own.owner: target, own.app: target} | others
            given = [role for role in made if role in signing_in and target.origin != EMBEDDED]
            rotated = [
                role
                for role, each in signing_in.items()
                if each.package.name in plan.rotated
                and role not in given
                and target.origin != EMBEDDED
                # What signs in here and belongs to another package gets its password there, if that is on this server.
                and (each is target or not _same_server(each, target))
            ]
            if given and {own.owner, own.app} & {*made}:
                # One that was there before the other was somebody's: who knows its password is not to have its rights.
                rotated += [
                    role for role in (own.owner, own.app) if role not in (*made, *rotated) and not _kept(target, role)
                ]
            for role in (*given, *rotated):
                password, statement = roles.new_password(connection, role)
                connection.execute(statement)
                kept.append((role, _kept(target, role)))
                _keep(target, role, password)
            settled = settlement.settle(connection, own, package.dependents, managed(plan.databases))
            # Signals wait: what is committed is also kept.
            with interrupt.blocked():
                transaction.close()
                kept.clear()
    except BaseException:
        # What was not committed is no password of theirs.
        for role, before in kept:
            with suppress(AtrizError):
                _keep(target, role, before)
        raise
    return _Done(made, given, changed, rotated, settled)


def _settle_roles(
    connection: Connection, plan: _Plan, target: Target, own: Roles, others: Collection[str]
) -> tuple[list[str], list[str]]:
    """Make the roles and their memberships, those of dependents' applications too; return which, and what changed."""
    wanted = [*roles.wanted(own, in_production=target.environment == "production"), *map(Role, others)]
    there = roles.existing(connection, [role.name for role in wanted])
    making = roles.settling(there, wanted)
    _run(connection, making)
    _run(connection, roles.acting(connection, [own.owner]))
    needs = [roles.of(plan.databases[name]).dependents for name in target.package.requires]
    joining = roles.joining(connection, own, others, needs, managed(plan.databases))
    _run(connection, joining)
    made = [step.role for step in making if step.role not in there]
    return made, [f"{step.role} {step.text}" for step in (*making, *joining) if step.role not in made]


def _run(connection: Connection, steps: Sequence[Step]) -> None:
    for step in steps:
        connection.execute(step.statement)


def _again(work: Callable[[], T], retries: int = 5) -> T:
    """Do `work`, and again where another run on the server was in its way."""
    for attempt in range(retries + 1):
        try:
            return work()
        except _TRANSIENT:
            if attempt == retries:
                raise
            time.sleep(min(0.05 * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1))  # noqa: S311
    raise AssertionError("the last attempt returns or raises")


def _same_server(one: Target, other: Target) -> bool:
    return one.url is not None and other.url is not None and one.url.place[:2] == other.url.place[:2]


def _kept(target: Target, role: str) -> str | None:
    assert target.url is not None, "a located target has a URL"
    return passwords.read(target.package.root, target.url, role)


def _keep(target: Target, role: str, password: str | None) -> None:
    assert target.url is not None, "a located target has a URL"
    passwords.write(target.package.root, target.url, role, password)


def _acts(done: _Done) -> Iterator[Act]:
    """Yield what was done; whose database it was done to stays open."""
    if done.made:
        yield Act("", "", "made", ", ".join(done.made), _TAKEN if done.signing_in else "")
    for text in done.changed:
        yield Act("", "", "changed", text)
    if done.rotated:
        yield Act("", "", "rotated", ", ".join(done.rotated), _TAKEN)
    settled = done.settled
    if settled.moved:
        by_kind: dict[str, list[str]] = {}
        for each in settled.moved:
            by_kind.setdefault(each.kind, []).append(each.name)
        detail = ", ".join(
            f"{kind} {names[0].removeprefix('public.')}" if len(names) == 1 else f"{len(names)} {kind}s"
            for kind, names in by_kind.items()
        )
        yield Act("", "", "owned", "by its owner now", detail)
    for what, part in (("revoked", settled.change.superfluous), ("granted", settled.change.missing)):
        for grantee, texts in rights.described(part).items():
            yield Act("", "", what, grantee, "; ".join(texts))


def _mind_other_databases(
    targets: Sequence[Target], outcomes: Sequence[Outcome], ours: Collection[str], whole_server: bool, report: Report
) -> list[Outcome]:
    """Close the servers' other databases to everybody, or tell which are open."""
    servers = {target.url.place[:2]: target for target in reversed(targets) if target.url is not None}
    closed: dict[str, list[Act]] = {}
    for target in servers.values():
        name = target.package.name
        try:
            maintenance = databases.maintenance(target, purpose="grant")
        except ServerError:
            if whole_server:
                raise
            continue  # Who may not look there need not be told of it.
        with maintenance as connection:
            if whole_server:
                owners = [roles.of(each.database).owner for each in targets if _same_server(each, target)]
                for act in _closed(connection, ours, owners):
                    act = replace(act, package=name, database=target.database)
                    report(act)
                    closed.setdefault(name, []).append(act)
            # On the embedded server nothing tells roles from one another before they have connected.
            if (target.origin != EMBEDDED or whole_server) and (opened := settlement.open_databases(connection, ours)):
                text = (
                    f"{', '.join(opened)} on the same server: PUBLIC has CONNECT there, and so have these roles. If "
                    "the server is this repository's alone, `atriz grant --whole-server` as a superuser closes them"
                )
                report(Act(name, target.database, "not closed", detail=text, kind="warning"))
    return [replace(each, acts=(*each.acts, *closed.get(each.package, ()))) for each in outcomes]


def _tell_of_embedded(targets: Sequence[Target], report: Report) -> None:
    """Say what roles are good for on a server that believes everybody."""
    for target in targets:
        if target.origin == EMBEDDED:
            text = (
                "the embedded server asks nobody for one: apps go on as its superuser here, and there is none to "
                "rotate. On a server of your own `atriz env --write` has them sign in as these roles"
            )
            report(Act(target.package.name, target.database, "no passwords", detail=text, kind="warning"))
            return


def _closed(connection: Connection, ours: Collection[str], owners: Sequence[str]) -> list[Act]:
    def close() -> list[str]:
        with connection.transaction():
            return settlement.close(connection, ours, owners, _MAINTENANCE)

    return [Act("", "", "revoked", "PUBLIC", f"CONNECT, TEMPORARY on database {each}") for each in _again(close)]
