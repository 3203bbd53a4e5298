"""A database made what it should be: its owner's, with the rights of its roles and no others."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from atriz_database import ownership, rights, roles
from atriz_database.databases import Connection, Notify, said
from atriz_database.ownership import Foreign
from atriz_database.rights import Change, Right
from atriz_database.roles import Roles
from atriz_database.settings import Target
from atriz_database.workspace import Dependents

_ROUNDS = 3
_LOCK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Settled:
    """What was done to a database's rights."""

    moved: tuple[Foreign, ...]
    """What has another owner now."""
    change: Change
    """The rights that were given and taken."""
    left: tuple[str, ...]
    """Statements that the current role may not run, for a superuser."""
    unknown: tuple[str, ...]
    """What the manifest grants to dependents and the database does not have."""


def settle(connection: Connection, names: Roles, dependents: Dependents, managed: Collection[str]) -> Settled:
    """Make the database and all in it the owner's, and the rights of our roles what they should be.

    The caller holds the database's lock, and is in a transaction. The roles are there, and whoever calls may act for
    the owner. What needs a superuser is left, and told.

    :param managed: all the roles whose rights are ours to say.
    """
    moved = [each for each in ownership.foreign(connection, names.owner) if each.acts]
    _run(connection, [each.statement for each in moved])
    state = rights.read(connection, names)
    should_be, unknown = rights.wanted(state, names, dependents)
    first = change = rights.compare(state, should_be, managed)
    # To revoke a right on a table takes those on its columns along, and one that was handed on takes those of others:
    # so look again.
    for _ in range(_ROUNDS):
        acts = {(thing.kind, thing.name) for thing in state.things if thing.acts}
        can = Change(
            *(tuple(each for each in part if _can(each, acts)) for part in (change.missing, change.superfluous))
        )
        if not can:
            break
        _run(connection, rights.statements(can, names.owner))
        state = rights.read(connection, names)
        change = rights.compare(state, should_be, managed)
    left = [each.statement for each in ownership.foreign(connection, names.owner)] + rights.statements(
        change, names.owner
    )
    done = Change(
        tuple(each for each in first.missing if each not in change.missing),
        tuple(each for each in first.superfluous if each not in change.superfluous),
    )
    return Settled(tuple(moved), done, tuple(left), unknown)


def differences(
    connection: Connection, names: Roles, dependents: Dependents, managed: Collection[str]
) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Return what the manifest names in vain, and how the database is not as :func:`settle` would leave it.

    The latter as pairs of a role or an object, and a sentence. Changes nothing.
    """
    found = [
        (f"{each.kind} {each.name}", f"it belongs to {each.owner}")
        for each in ownership.foreign(connection, names.owner)
    ]
    state = rights.read(connection, names)
    should_be, unknown = rights.wanted(state, names, dependents)
    change = rights.compare(state, should_be, managed)
    for what, part in (("lacks", change.missing), ("has", change.superfluous)):
        found += [(role, f"it {what} {text}") for role, texts in rights.described(part).items() for text in texts]
    return unknown, found


def renew(connection: Connection, target: Target, notify: Notify) -> None:
    """Make a database's rights what they should be, once something was made in it; where it has roles.

    What the owner made has its rights already, but for those of dependents. The caller holds the database's lock on
    `connection`, which is in autocommit. What cannot be done is told: whatever was made is there all the same.

    :param notify: gets a line about what is left to be done.
    """
    again = f"`atriz grant {target.package.name}` as the server's administrator does the rest"
    try:
        names = roles.in_use(connection, target.database)
        if names is None:
            return
        with connection.transaction():
            limit(connection, _LOCK_SECONDS)
            if acting := roles.acting(connection, [names.owner]):
                notify(f"rights are not renewed: {acting[0].role} is no member of {names.owner}; {again}")
                return
            settled = settle(connection, names, target.package.dependents, names.names)
        if settled.left:
            notify(f"rights are renewed but for what belongs to others: {again}")
    except psycopg.Error as error:
        notify(f"rights are not renewed: {said(error)}; {again}")


def limit(connection: Connection, seconds: float) -> None:
    """Have each statement of the transaction wait no longer for a lock; others queue behind it."""
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{seconds * 1000:.0f}ms"])


def open_databases(connection: Connection, apart_from: Collection[str]) -> dict[str, bool]:
    """Return the server's databases that everybody may connect to, and whether the current role may change that.

    :param apart_from: the databases that are of no interest.
    """
    return dict(connection.execute(_OPEN, [list(apart_from)]).fetchall())


def close(connection: Connection, apart_from: Collection[str], owners: Collection[str], maintenance: str) -> list[str]:
    """Let nobody connect to the server's other databases unless they are granted that. Return those it was done to.

    :param apart_from: the databases to leave alone.
    :param owners: the roles that make and drop databases, for which they connect to `maintenance`.

    Raise `psycopg.Error` if the current role may not.
    """
    names = [name for name, acts in open_databases(connection, apart_from).items() if acts]
    if names:
        listed = sql.SQL(", ").join(map(sql.Identifier, names))
        connection.execute(sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(listed))
    lacking = "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s) AND NOT has_database_privilege(oid, %s, 'CONNECT')"
    for (owner,) in connection.execute(lacking, [list(owners), maintenance]).fetchall():
        statement = sql.SQL("GRANT CONNECT ON DATABASE {} TO {}")
        connection.execute(statement.format(sql.Identifier(maintenance), sql.Identifier(owner)))
    return names


def _can(right: Right, acts: Collection[tuple[str, str]]) -> bool:
    # Whoever is here may act for the owner, whose defaults they are.
    return right.kind == "default" or (right.kind, right.name) in acts


def _run(connection: Connection, batch: Sequence[str]) -> None:
    if batch:
        connection.execute(";\n".join(batch).encode())


_OPEN = """
    SELECT datname, pg_has_role(datdba, 'USAGE') FROM pg_database d
    WHERE datallowconn AND datconnlimit <> -2 AND datname <> ALL (%s) AND EXISTS (
        SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba)))
        WHERE grantee = 0 AND privilege_type = 'CONNECT')
    ORDER BY 1
"""
