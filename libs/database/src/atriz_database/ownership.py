"""Whose the objects in a database are, and the statements that give them to its owner."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from atriz_database.databases import Connection

# What SQL calls a kind, where that is not its name. An aggregate without arguments has the form of a routine only.
_CLAUSES = {"aggregate": "ROUTINE", "composite type": "TYPE", "statistics object": "STATISTICS"}


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


def foreign(connection: Connection, owner: str) -> list[Foreign]:
    """Return what is in the connected database, itself included, and belongs to another role; not what is others'.

    That is the objects of extensions, and what only a server's administrator makes, such as publications.
    """
    rows = connection.execute(_FOREIGN, {"owner": owner}).fetchall()
    to = f"OWNER TO {sql.Identifier(owner).as_string()}"
    return [
        Foreign(kind, name, theirs, acts, f"ALTER {_CLAUSES.get(kind, kind.upper())} {name} {to}")
        for kind, name, theirs, acts in rows
    ]


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
