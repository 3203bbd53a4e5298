"""What roles may do in one database: what they have, what they should have, and the statements between the two.

The application's role reads and writes rows, in every schema but ours, and calls functions. The role of dependents has
what the manifest says. PUBLIC, which is everybody, has nothing. Whatever else the administrator has given to roles of
their own is left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import psycopg
from psycopg import sql

from atriz_database import label, roles
from atriz_database.databases import Connection, Notify, said
from atriz_database.roles import Roles
from atriz_database.settings import Target
from atriz_database.workspace import Dependents

PUBLIC = ""
"""What stands for everybody in the place of a role."""
_ROWS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_WORDS = {"database": "DATABASE", "schema": "SCHEMA", "table": "TABLE", "sequence": "SEQUENCE", "function": "ROUTINE"}
# What the owner makes later has these rights from the moment it is there.
_LATER = (("SCHEMAS", ("USAGE",)), ("TABLES", _ROWS), ("SEQUENCES", ("USAGE",)), ("FUNCTIONS", ("EXECUTE",)))
_ROUNDS = 3
_LOCK_SECONDS = 5.0
_CLAUSES = {"composite type": "TYPE", "statistics object": "STATISTICS"}


class Right(NamedTuple):
    """One thing that a role may do with an object."""

    kind: str
    """``database``, ``schema``, ``table``, ``sequence``, ``function``; or ``default``, for what the owner makes."""
    name: str
    """The object as SQL writes it; of a ``default`` what is made, as in ``TABLES`` or ``FUNCTIONS IN SCHEMA auth``."""
    grantee: str
    privilege: str
    """``SELECT``; of a column ``SELECT (email)``."""
    grantable: bool = False
    """Whether the role may hand it on."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object that rights are on."""

    kind: str
    name: str
    """As SQL writes it, with its schema."""
    schema: str
    plain: str
    """Its name alone, unquoted."""
    owner: str
    acts: bool
    """Whether the current role may do what only the owner may."""
    columns: list[str]
    """Of a table."""


@dataclass(frozen=True, slots=True)
class State:
    """What is in a database, whose it is, and who may do what with it."""

    things: tuple[Thing, ...]
    rights: frozenset[Right]
    """Those of everybody but each object's owner."""

    @property
    def owner(self) -> str:
        """The role that owns the database."""
        return next(thing.owner for thing in self.things if thing.kind == "database")


@dataclass(frozen=True, slots=True)
class Foreign:
    """An object that belongs to another role than the database's owner."""

    kind: str
    name: str
    owner: str
    acts: bool
    """Whether the current role may give it away."""
    statement: str
    """What gives it to the right owner."""


@dataclass(frozen=True, slots=True)
class Change:
    """How rights differ from what they should be."""

    missing: tuple[Right, ...] = ()
    superfluous: tuple[Right, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.superfluous)


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


def read(connection: Connection, names: Roles) -> State:
    """Return what is in the connected database, extensions' objects left out, and the rights of every role on it.

    :param names: the database's own roles.
    """
    with connection.transaction(force_rollback=True):
        connection.execute(_SETTINGS)
        things = [Thing(*row) for row in connection.execute(_THINGS)]
        rows = connection.execute(_RIGHTS, {"owner": names.owner}).fetchall()
    return State(tuple(things), frozenset(Right(*row) for row in rows))


def wanted(state: State, names: Roles, dependents: Dependents) -> tuple[frozenset[Right], tuple[str, ...]]:
    """Return the rights that there should be, and what the manifest names that is not in the database.

    :param dependents: what the manifest grants to dependents.
    """
    rights: set[Right] = set()

    def give(thing: Thing, grantee: str, privileges: Iterable[str]) -> None:
        rights.update(Right(thing.kind, thing.name, grantee, privilege) for privilege in privileges)

    for thing in state.things:
        if thing.kind == "database":
            for role in filter(None, (names.app, names.dependents)):
                give(thing, role, ["CONNECT"])
        elif thing.schema == label.SCHEMA:
            continue
        elif thing.kind == "table":
            # Which revision it is at an application may ask; to say so is the migrations' business.
            give(thing, names.app, ["SELECT"] if thing.plain == "alembic_version" else _ROWS)
        else:
            give(thing, names.app, ["EXECUTE" if thing.kind == "function" else "USAGE"])
    for what, privileges in _LATER:
        rights.update(Right("default", what, names.app, privilege) for privilege in privileges)

    unknown = []
    schemas = {thing.schema: thing for thing in state.things if thing.kind == "schema"}
    for pattern in dependents.functions:
        schema, name = _split(pattern)
        found = [thing for thing in state.things if thing.kind == "function" and _matches(thing, schema, name)]
        for thing in found:
            give(thing, names.dependents, ["EXECUTE"])
        if not found:
            unknown.append(f"function {pattern}")
        if schema in schemas:
            give(schemas[schema], names.dependents, ["USAGE"])
            if name == "*":
                later = f"FUNCTIONS IN SCHEMA {schemas[schema].name}"
                rights.add(Right("default", later, names.dependents, "EXECUTE"))
    for table, columns in dependents.select:
        schema, name = _split(table)
        found = [thing for thing in state.things if thing.kind == "table" and _matches(thing, schema, name)]
        if not found or name == "*":
            unknown.append(f"table {table}")
            continue
        (thing,) = found
        give(schemas[schema], names.dependents, ["USAGE"])
        if columns == ("*",):
            give(thing, names.dependents, ["SELECT"])
            continue
        unknown += [f"column {table}.{column}" for column in columns if column not in thing.columns]
        give(thing, names.dependents, [f"SELECT ({each})" for each in columns if each in thing.columns])
    return frozenset(rights), tuple(unknown)


def compare(state: State, should_be: Collection[Right], managed: Collection[str]) -> Change:
    """Return how a database's rights differ from what they should be.

    :param managed: the roles whose rights are ours to say. Those of PUBLIC are as well.
    """
    ours = {PUBLIC, *managed}
    should = set(should_be)
    has, to_hand_on = set(), set()
    for right in state.rights:
        if right.grantee in ours:
            plain = right._replace(grantable=False)
            has.add(plain)
            if right.grantable and plain in should:
                to_hand_on.add(right)
    return Change(tuple(sorted(should - has)), tuple(sorted(has - should | to_hand_on)))


def foreign(connection: Connection, owner: str) -> list[Foreign]:
    """Return what is in the connected database, itself included, and belongs to another role; not what is others'.

    That is the objects of extensions, and what only a server's administrator makes, such as publications.
    """
    with connection.transaction(force_rollback=True):
        connection.execute(_SETTINGS)
        rows = connection.execute(_FOREIGN, {"owner": owner}).fetchall()
    found = []
    for kind, name, theirs, acts in rows:
        statement = f"ALTER {_CLAUSES.get(kind, kind.upper())} {name} OWNER TO {_quoted(owner)}"
        found.append(Foreign(kind, name, theirs, acts, statement))
    return found


def settle(connection: Connection, names: Roles, dependents: Dependents, managed: Collection[str]) -> Settled:
    """Make the database and all in it the owner's, and the rights of our roles what they should be.

    The caller holds the database's lock, and is in a transaction. The roles are there, and whoever calls may act for
    the owner. What needs a superuser is left, and told.

    :param managed: all the roles whose rights are ours to say.
    """
    moved = [each for each in foreign(connection, names.owner) if each.acts]
    _run(connection, [each.statement for each in moved])
    state = read(connection, names)
    should_be, unknown = wanted(state, names, dependents)
    first = change = compare(state, should_be, managed)
    # To revoke a right on a table takes those on its columns along, and one that was handed on takes those of others:
    # so look again.
    for _ in range(_ROUNDS):
        acts = {(thing.kind, thing.name) for thing in state.things if thing.acts}
        can = Change(
            *(tuple(each for each in part if _can(each, acts)) for part in (change.missing, change.superfluous))
        )
        if not can:
            break
        _run(connection, statements(can, names.owner))
        state = read(connection, names)
        change = compare(state, should_be, managed)
    left = [each.statement for each in foreign(connection, names.owner)] + statements(change, names.owner)
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
    found = [(f"{each.kind} {each.name}", f"it belongs to {each.owner}") for each in foreign(connection, names.owner)]
    state = read(connection, names)
    should_be, unknown = wanted(state, names, dependents)
    change = compare(state, should_be, managed)
    for what, part in (("lacks", change.missing), ("has", change.superfluous)):
        found += [(role, f"it {what} {text}") for role, texts in described(part).items() for text in texts]
    return unknown, found


def renew(connection: Connection, target: Target, notify: Notify) -> None:
    """Make a database's rights what they should be, once something was made in it; where it has roles.

    What the owner made has its rights already, but for those of dependents. The caller holds the database's lock on
    `connection`, which is in autocommit. What cannot be done is told: whatever was made is there all the same.

    :param notify: gets a line about what is left to be done.
    """
    names = roles.in_use(connection, target.database)
    if names is None:
        return
    again = f"`atriz grant {target.package.name}` as the server's administrator does the rest"
    try:
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


def statements(change: Change, owner: str) -> list[str]:
    """Return the statements that bring about a change, few of them however many the objects are."""
    return [
        *_statements("REVOKE", "FROM", change.superfluous, owner, " CASCADE"),
        *_statements("GRANT", "TO", change.missing, owner, ""),
    ]


def _statements(verb: str, preposition: str, rights: Sequence[Right], owner: str, end: str) -> list[str]:
    found = []
    for (kind, privileges, grantee, grantable), names in grouped(rights).items():
        role = _quoted(grantee) if grantee else "PUBLIC"
        what = f"{verb} {'GRANT OPTION FOR ' if grantable else ''}{', '.join(map(_privilege, privileges))}"
        if kind != "default":
            found.append(f"{what} ON {_WORDS[kind]} {', '.join(names)} {preposition} {role}{end}")
            continue
        for name in names:
            made, _, schema = name.partition(" IN SCHEMA ")
            whose = f"{_quoted(owner)}{f' IN SCHEMA {schema}' if schema else ''}"
            found.append(f"ALTER DEFAULT PRIVILEGES FOR ROLE {whose} {what} ON {made} {preposition} {role}{end}")
    return found


class Group(NamedTuple):
    """What rights on several objects have in common."""

    kind: str
    privileges: tuple[str, ...]
    grantee: str
    grantable: bool


def grouped(rights: Iterable[Right]) -> dict[Group, list[str]]:
    """Return rights with the objects that a role has the same on standing together."""
    privileges: dict[tuple[str, str, str, bool], set[str]] = defaultdict(set)
    for kind, name, grantee, privilege, grantable in rights:
        privileges[kind, grantee, name, grantable].add(privilege)
    names: dict[Group, list[str]] = defaultdict(list)
    for (kind, grantee, name, grantable), found in sorted(privileges.items()):
        names[Group(kind, tuple(sorted(found, key=_order)), grantee, grantable)].append(name)
    return names


def described(rights: Iterable[Right]) -> dict[str, list[str]]:
    """Return rights as a person reads them, by role: ``SELECT, INSERT on 5 tables``."""
    texts: dict[str, list[str]] = defaultdict(list)
    for (kind, privileges, grantee, grantable), names in grouped(rights).items():
        if kind == "default":
            what = ", ".join(name.lower().replace("in schema", "of schema") for name in names)
            where = f"{what} that are made later"
        elif kind == "database":
            where = "the database"
        else:
            where = f"{kind} {names[0].removeprefix('public.')}" if len(names) == 1 else f"{len(names)} {kind}s"
        option = " WITH GRANT OPTION" if grantable else ""
        texts[grantee or "PUBLIC"].append(f"{', '.join(privileges)} on {where}{option}")
    return texts


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


def _split(name: str) -> tuple[str, str]:
    schema, dot, rest = name.partition(".")
    return (schema, rest) if dot else ("public", name)


def _matches(thing: Thing, schema: str, name: str) -> bool:
    return thing.schema == schema and name in ("*", thing.plain)


def _order(privilege: str) -> tuple[int, str]:
    return (_ROWS.index(privilege) if privilege in _ROWS else len(_ROWS)), privilege


def _privilege(privilege: str) -> str:
    word, space, column = privilege.partition(" ")
    return f"{word} ({_quoted(column[1:-1])})" if space else word


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_OPEN = """
    SELECT datname, pg_has_role(datdba, 'USAGE') FROM pg_database d
    WHERE datallowconn AND datconnlimit <> -2 AND datname <> ALL (%s) AND EXISTS (
        SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba)))
        WHERE grantee = 0 AND privilege_type = 'CONNECT')
    ORDER BY 1
"""

# Names are written with their schema, and without quotes where they need none.
_SETTINGS = """
    SET LOCAL search_path = '';
    SET LOCAL quote_all_identifiers = off;
    SET LOCAL jit = off;
"""

_BASE = sql.SQL("""
WITH extended AS (
    SELECT classid AS class, objid AS id FROM pg_depend WHERE deptype = 'e'
), schema AS (
    SELECT * FROM pg_namespace n
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM extended e WHERE e.class = 'pg_namespace'::regclass AND e.id = n.oid)
), thing (class, id, kind, name, schema, plain, owner, acl) AS (
    SELECT 'pg_database'::regclass, oid, 'database', quote_ident(datname), '', datname::text, datdba,
           coalesce(datacl, acldefault('d', datdba))
    FROM pg_database WHERE datname = current_database()
    UNION ALL
    SELECT 'pg_namespace'::regclass, oid, 'schema', quote_ident(nspname), nspname, nspname, nspowner,
           coalesce(nspacl, acldefault('n', nspowner))
    FROM schema
    UNION ALL
    SELECT 'pg_class'::regclass, c.oid, CASE relkind WHEN 'S' THEN 'sequence' ELSE 'table' END,
           quote_ident(nspname) || '.' || quote_ident(relname), nspname, relname, relowner,
           coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
    FROM pg_class c JOIN schema n ON n.oid = relnamespace WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
    UNION ALL
    SELECT 'pg_proc'::regclass, p.oid, 'function', p.oid::regprocedure::text, nspname, proname, proowner,
           coalesce(proacl, acldefault('f', proowner))
    FROM pg_proc p JOIN schema n ON n.oid = pronamespace
), own AS (
    SELECT * FROM thing t WHERE NOT EXISTS (SELECT FROM extended e WHERE e.class = t.class AND e.id = t.id)
)
""")

_THINGS = _BASE + sql.SQL("""
SELECT kind, name, schema, plain, pg_get_userbyid(owner), pg_has_role(owner, 'USAGE'),
       coalesce((SELECT array_agg(attname::text) FROM pg_attribute
                 WHERE kind = 'table' AND attrelid = id AND attnum > 0 AND NOT attisdropped), '{}')
FROM own ORDER BY kind, name
""")

# acldefault() writes sequences with a small s.
_RIGHTS = _BASE + sql.SQL("""
, acl (kind, name, owner, suffix, acl) AS (
    SELECT kind, name, owner, '', acl FROM own
    UNION ALL
    SELECT kind, name, owner, ' (' || attname || ')', attacl
    FROM own JOIN pg_attribute ON attrelid = id AND attnum > 0 AND NOT attisdropped
    WHERE kind = 'table' AND attacl IS NOT NULL
    UNION ALL
    SELECT 'default', what, o.oid, '', coalesce(defaclacl, acldefault(lower(type)::"char", o.oid))
    FROM pg_roles o CROSS JOIN (VALUES ('n', 'SCHEMAS'), ('r', 'TABLES'), ('S', 'SEQUENCES'), ('f', 'FUNCTIONS'))
             AS later (type, what)
    LEFT JOIN pg_default_acl ON defaclrole = o.oid AND defaclnamespace = 0 AND defaclobjtype = type::"char"
    WHERE rolname = %(owner)s
    UNION ALL
    SELECT 'default', what || ' IN SCHEMA ' || quote_ident(nspname), o.oid, '', defaclacl
    FROM pg_default_acl JOIN pg_roles o ON o.oid = defaclrole JOIN pg_namespace n ON n.oid = defaclnamespace
    JOIN (VALUES ('r', 'TABLES'), ('S', 'SEQUENCES'), ('f', 'FUNCTIONS')) AS later (type, what)
        ON defaclobjtype = type::"char"
    WHERE rolname = %(owner)s
)
SELECT DISTINCT kind, name, CASE grantee WHEN 0 THEN '' ELSE pg_get_userbyid(grantee)::text END,
       privilege_type || suffix, is_grantable
FROM acl, aclexplode(acl) WHERE grantee <> owner
""")

# A sequence of a column goes with its table. Of schema public its owner is from 15 on whoever owns the database.
_FOREIGN = """
WITH extended AS (
    SELECT classid AS class, objid AS id FROM pg_depend WHERE deptype = 'e'
), schema AS (
    SELECT oid, nspowner FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
), thing (rank, class, id, owner) AS (
    SELECT 0, 'pg_database'::regclass, oid, datdba FROM pg_database WHERE datname = current_database()
    UNION ALL SELECT 1, 'pg_namespace'::regclass, oid, nspowner FROM schema
    WHERE pg_get_userbyid(nspowner) <> 'pg_database_owner'
    UNION ALL SELECT 2, 'pg_class'::regclass, c.oid, relowner FROM pg_class c JOIN schema n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'f', 'v', 'm', 'c', 'S') AND NOT (relkind = 'S' AND EXISTS (
        SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
        AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')))
    UNION ALL SELECT 3, 'pg_proc'::regclass, p.oid, proowner FROM pg_proc p JOIN schema n ON n.oid = pronamespace
    UNION ALL SELECT 3, 'pg_type'::regclass, t.oid, typowner FROM pg_type t JOIN schema n ON n.oid = typnamespace
    WHERE typtype IN ('d', 'e', 'r')
    UNION ALL SELECT 3, 'pg_statistic_ext'::regclass, s.oid, stxowner
    FROM pg_statistic_ext s JOIN schema n ON n.oid = stxnamespace
    UNION ALL SELECT 3, 'pg_collation'::regclass, c.oid, collowner
    FROM pg_collation c JOIN schema n ON n.oid = collnamespace
    UNION ALL SELECT 3, 'pg_operator'::regclass, o.oid, oprowner
    FROM pg_operator o JOIN schema n ON n.oid = oprnamespace
    UNION ALL SELECT 3, 'pg_opclass'::regclass, o.oid, opcowner
    FROM pg_opclass o JOIN schema n ON n.oid = opcnamespace
    UNION ALL SELECT 3, 'pg_opfamily'::regclass, o.oid, opfowner
    FROM pg_opfamily o JOIN schema n ON n.oid = opfnamespace
    UNION ALL SELECT 3, 'pg_ts_config'::regclass, c.oid, cfgowner
    FROM pg_ts_config c JOIN schema n ON n.oid = cfgnamespace
    UNION ALL SELECT 3, 'pg_ts_dict'::regclass, d.oid, dictowner
    FROM pg_ts_dict d JOIN schema n ON n.oid = dictnamespace
)
SELECT i.type, i.identity, pg_get_userbyid(owner)::text, pg_has_role(owner, 'USAGE')
FROM thing t, pg_identify_object(class, id, 0) AS i
WHERE pg_get_userbyid(owner) <> %(owner)s
  AND NOT EXISTS (SELECT FROM extended e WHERE e.class = t.class AND e.id = t.id)
ORDER BY rank, 1, 2
"""
