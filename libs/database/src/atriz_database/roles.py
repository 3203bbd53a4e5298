"""The roles of a database: who owns it, who signs in for its application, and what dependents' applications have.

Roles belong to the whole server, so their names come from the database's. Passwords are made here, and the server gets
verifiers of them only: neither its log nor its statistics ever hold one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import LiteralString

from psycopg import sql

from atriz_database.databases import Connection

_LONGEST_NAME = 63  # PostgreSQL cuts longer ones off, in bytes.
_PASSWORD_BYTES = 24
_DEPENDENTS = "_dependents"
_ATTRIBUTES = {
    "rolcanlogin": "LOGIN",
    "rolcreatedb": "CREATEDB",
    "rolsuper": "SUPERUSER",
    "rolcreaterole": "CREATEROLE",
    "rolreplication": "REPLICATION",
    "rolbypassrls": "BYPASSRLS",
    "rolinherit": "INHERIT",
}


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of a database's roles."""

    owner: str
    """Owns the database and all in it; migrations sign in as it."""
    app: str
    """The package's application signs in as it."""
    dependents: str
    """Signs in nowhere: the applications of dependents are its members, and so have what it has.

    Empty for a database that no other package has a use for.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(filter(None, (self.owner, self.app, self.dependents)))


@dataclass(frozen=True, slots=True)
class Role:
    """How a role should be, beside which it may do nothing."""

    name: str
    login: bool = True
    createdb: bool = False

    @property
    def attributes(self) -> frozenset[str]:
        """The attributes it should have; every other one it should not."""
        given = {"LOGIN": self.login, "CREATEDB": self.createdb, "INHERIT": True}
        return frozenset(name for name, has in given.items() if has)


@dataclass(frozen=True, slots=True)
class Step:
    """One statement about roles, and what it comes to."""

    role: str
    text: str
    """What it does, for a person: ``is made``."""
    statement: sql.Composed


def of(database: str) -> Roles:
    """Return the names of the roles that belong to a database.

    >>> of("mextrack_db")
    Roles(owner='mextrack_db_owner', app='mextrack_db_app', dependents='mextrack_db_dependents')
    """
    return Roles(*(_name(database, suffix) for suffix in ("_owner", "_app", _DEPENDENTS)))


def in_use(connection: Connection, database: str, *, has_dependents: bool = False) -> Roles | None:
    """Return the roles that a database has, `None` where `grant` has made none.

    :param has_dependents: whether it should have one for dependents, be it there or not.
    """
    names = of(database)
    there = existing(connection, names.names)
    if names.owner not in there:
        return None
    return names if has_dependents or names.dependents in there else replace(names, dependents="")


def _name(database: str, suffix: str) -> str:
    name = database + suffix
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    # Two long names that begin alike must not share a role.
    suffix = f"_{hashlib.sha256(database.encode()).hexdigest()[:8]}{suffix}"
    return database.encode()[: _LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


def wanted(own: Roles, *, in_production: bool) -> list[Role]:
    """Return how the roles of a database should be.

    :param in_production: elsewhere the owner may make databases: scratch ones for `check`, `verify` and `new`, and its
        own anew for `reset`.
    """
    group = [Role(own.dependents, login=False)] if own.dependents else []
    return [Role(own.owner, createdb=not in_production), Role(own.app), *group]


def existing(connection: Connection, names: Collection[str]) -> dict[str, frozenset[str]]:
    """Return which of the roles are there, and the attributes of each: ``LOGIN``, ``CREATEDB`` and so on."""
    query = sql.SQL("SELECT rolname, {} FROM pg_roles WHERE rolname = ANY (%s)").format(
        sql.SQL(", ").join(map(sql.Identifier, _ATTRIBUTES))
    )
    rows = connection.execute(query, [list(names)]).fetchall()
    return {
        name: frozenset(word for word, has in zip(_ATTRIBUTES.values(), values, strict=True) if has)
        for name, *values in rows
    }


def settling(there: Mapping[str, frozenset[str]], wanted: Sequence[Role]) -> list[Step]:
    """Return the statements that make the roles that are missing, and change those that are not as they should be.

    :param there: what :func:`existing` returned.
    """
    steps = []
    for role in wanted:
        name = sql.Identifier(role.name)
        if role.name not in there:
            words = sql.SQL(" ").join(map(sql.SQL, sorted(role.attributes)))
            steps.append(Step(role.name, "is made", sql.SQL("CREATE ROLE {} {}").format(name, words)))
            continue
        # Only what differs: to name some attributes at all takes a superuser.
        lacking, too_much = sorted(role.attributes - there[role.name]), sorted(there[role.name] - role.attributes)
        changes = [*lacking, *(f"NO{word}" for word in too_much)]
        if changes:
            statement = sql.SQL("ALTER ROLE {} {}").format(name, sql.SQL(" ").join(map(sql.SQL, changes)))
            steps.append(Step(role.name, f"is {' '.join(changes)} now", statement))
    return steps


def new_password(connection: Connection, role: str) -> tuple[str, sql.Composed]:
    """Return a new password, and the statement that gives it to a role: it holds the verifier and not the password."""
    password = secrets.token_urlsafe(_PASSWORD_BYTES)
    verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    return password, sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier))


def joining(
    connection: Connection, own: Roles, dependents: Collection[str], needs: Collection[str], managed: Collection[str]
) -> list[Step]:
    """Return the statements that make the memberships of a database's roles what they should be.

    As a member of the application's role the owner sees what its connections are at, and may end them.

    :param dependents: the roles of the dependents' applications, which are to have what dependents have.
    :param needs: what the package's own application is a member of elsewhere.
    :param managed: all roles of the workspace. Packages that this tree leaves out have roles as well.
    """
    wanted = {(own.app, own.owner), *((own.dependents, name) for name in dependents if own.dependents)}
    # What the group is in, all its members have: it is to be in nothing.
    there = _memberships(connection, [*own.names, *dependents])
    allowed = wanted | {(group, own.app) for group in needs}
    superfluous = [
        (group, member)
        for group, member in there
        if member in own.names
        and (group, member) not in allowed
        and not (member == own.app and group.endswith(_DEPENDENTS) and group not in managed)
    ]
    steps = []
    # To become the other role, as with SET ROLE, is not what a membership is for here; before 16 it cannot be denied.
    options: LiteralString = " WITH INHERIT TRUE, SET FALSE" if connection.info.server_version >= 160000 else ""
    for group, member in sorted(superfluous):
        text = f"is no member of {group} any more"
        steps.append(Step(member, text, _membership("REVOKE {} FROM {} CASCADE", group, member)))
    for group, member in sorted(wanted):
        if there.get((group, member)):
            continue
        if (group, member) in there:
            statement = _membership("REVOKE ADMIN OPTION FOR {} FROM {} CASCADE", group, member)
            steps.append(Step(member, f"lets nobody else into {group}", statement))
        steps.append(Step(member, f"is a member of {group}", _membership("GRANT {} TO {}" + options, group, member)))
    return steps


def _memberships(connection: Connection, members: Collection[str]) -> dict[tuple[str, str], bool]:
    """Return what the roles are members of, group before member, and whether each membership is as it should be.

    That is, the member has what the group has, and cannot pass it on.
    """
    inherits = "inherit_option" if connection.info.server_version >= 160000 else "true"
    query = f"""
        SELECT g.rolname, m.rolname, bool_or({inherits}) AND NOT bool_or(admin_option)
        FROM pg_auth_members a JOIN pg_roles g ON g.oid = roleid JOIN pg_roles m ON m.oid = member
        WHERE m.rolname = ANY (%s) GROUP BY 1, 2
    """  # noqa: S608 -- one of two words
    return {(group, member): good for group, member, good in connection.execute(query.encode(), [list(members)])}


def _membership(statement: LiteralString, group: str, member: str) -> sql.Composed:
    return sql.SQL(statement).format(sql.Identifier(group), sql.Identifier(member))


def acting(connection: Connection, names: Sequence[str]) -> list[Step]:
    """Return the statements that let the current role act for the others: what only their owner may do, it may do.

    None for a superuser. Before 16 whoever may make roles may do this with each; from 16 on, with those it has made.
    """
    modern = connection.info.server_version >= 160000
    both = "pg_has_role(oid, 'USAGE') AND pg_has_role(oid, 'SET')" if modern else "pg_has_role(oid, 'USAGE')"
    query = f"SELECT rolname, current_user FROM pg_roles WHERE rolname = ANY (%s) AND NOT ({both}) ORDER BY 1"  # noqa: S608
    options = " WITH INHERIT TRUE, SET TRUE" if modern else ""
    return [
        Step(me, f"may act for {name}", _membership("GRANT {} TO {}" + options, name, me))
        for name, me in connection.execute(query.encode(), [list(names)])
    ]
