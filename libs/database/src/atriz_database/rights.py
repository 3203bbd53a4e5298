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

from psycopg import sql

from atriz_database import label
from atriz_database.databases import Connection
from atriz_database.roles import Roles
from atriz_database.workspace import Dependents

PUBLIC = "\0PUBLIC"
"""What stands for everybody in the place of a role; no role can be called so."""
_ROWS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_WORDS = {"database": "DATABASE", "schema": "SCHEMA", "table": "TABLE", "sequence": "SEQUENCE", "function": "ROUTINE"}
# What the owner makes later has these rights from the moment it is there.
_LATER = (("SCHEMAS", ("USAGE",)), ("TABLES", _ROWS), ("SEQUENCES", ("USAGE",)), ("FUNCTIONS", ("EXECUTE",)))


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
class Change:
    """How rights differ from what they should be."""

    missing: tuple[Right, ...] = ()
    superfluous: tuple[Right, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.superfluous)


def read(connection: Connection, names: Roles) -> State:
    """Return what is in the connected database, extensions' objects left out, and the rights of every role on it.

    :param names: the database's own roles.
    """
    with connection.transaction(force_rollback=True):
        connection.execute(_SETTINGS)
        things = [Thing(*row) for row in connection.execute(_THINGS)]
        rows = connection.execute(_RIGHTS, {"owner": names.owner}).fetchall()
    # Whoever has it is `None` where that is everybody.
    found = (Right(kind, name, PUBLIC if role is None else role, *rest) for kind, name, role, *rest in rows)
    return State(tuple(things), frozenset(found))


def wanted(state: State, names: Roles, dependents: Dependents) -> tuple[frozenset[Right], tuple[str, ...]]:
    """Return the rights that there should be, and what the manifest names that is not in the database.

    :param dependents: what the manifest grants to dependents.
    """
    if not names.dependents:
        # Without its role, what it is to have is nobody's.
        dependents = Dependents()
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


def statements(change: Change, owner: str) -> list[str]:
    """Return the statements that bring about a change, few of them however many the objects are."""
    return [
        *_statements("REVOKE", "FROM", change.superfluous, owner, " CASCADE"),
        *_statements("GRANT", "TO", change.missing, owner, ""),
    ]


def _statements(verb: str, preposition: str, rights: Sequence[Right], owner: str, end: str) -> list[str]:
    found = []
    for (kind, privileges, grantee, grantable), names in grouped(rights).items():
        role = "PUBLIC" if grantee == PUBLIC else _quoted(grantee)
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
            made = [name.partition(" IN SCHEMA ") for name in names]
            what = ", ".join(f"{each.lower()}{f' in schema {schema}' if schema else ''}" for each, _, schema in made)
            where = f"{what} that are made later"
        elif kind == "database":
            where = "the database"
        else:
            where = f"{kind} {names[0].removeprefix('public.')}" if len(names) == 1 else f"{len(names)} {kind}s"
        option = " WITH GRANT OPTION" if grantable else ""
        texts["PUBLIC" if grantee == PUBLIC else grantee].append(f"{', '.join(privileges)} on {where}{option}")
    return texts


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
    return sql.Identifier(name).as_string()


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
SELECT DISTINCT kind, name, CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee)::text END,
       privilege_type || suffix, is_grantable
FROM acl, aclexplode(acl) WHERE grantee <> owner
""")
